//! Topics, and the dead-letter topic that comes with each. Invariant: the two are made and removed together; name, type,
//! partition count and number never change. Never touches the store (who creates a topic writes the store first; who
//! deletes one, the catalog first).

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use super::columns::{Columns, integer, millis, name};
use super::model::{CaptureInput, Topic, TopicSettings};
use super::{Actor, Catalog, CatalogError, Event, Writing, conflict, expect_version};
use crate::message::TopicId;

/// A message's id has 24 bits for its topic's number.
const TOPIC_ID_MAX: u32 = 0xff_ffff;

impl Catalog {
    /// All topics, dead-letter topics included, by number.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn topics(&self) -> Result<Vec<Topic>, CatalogError> {
        let rows = sqlx::query("SELECT * FROM topics ORDER BY topic_id").fetch_all(&mut *self.read().await?).await?;
        rows.iter().map(topic).collect()
    }

    /// A number for a new topic. It is used up when this returns, whatever becomes of it.
    ///
    /// # Errors
    /// When the database fails, or all 16 million numbers are used up.
    pub async fn reserve_topic_id(&self) -> Result<TopicId, CatalogError> {
        let id = self.next_number("INSERT INTO topic_ids DEFAULT VALUES RETURNING id", "DELETE FROM topic_ids").await?;
        match u32::try_from(id) {
            Ok(id) if id <= TOPIC_ID_MAX => Ok(TopicId(id)),
            _ => Err(CatalogError::Conflict("the numbers for topics are used up".to_owned())),
        }
    }

    /// Writes a topic and the topic of its dead letters.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if one of the names is taken.
    pub async fn insert_topic(&self, topic: &Topic, dead_letter: &Topic, actor: &Actor) -> Result<(), CatalogError> {
        debug_assert_eq!(topic.dead_letter, Some(dead_letter.id));
        let mut writing = self.write().await?;
        // The topic first: its name is the one that the caller knows, so a conflict names that.
        insert(&mut writing, topic).await?;
        insert(&mut writing, dead_letter).await?;
        let details = json!({ "before": null, "after": shown(topic) });
        self.audit(&mut writing, event("topic.created", topic, details), actor).await?;
        Ok(writing.commit().await?)
    }

    /// Writes new settings, as the version after the stored one; returns the topic as it stands then.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::PreconditionFailed`], and [`CatalogError::Conflict`] for a change of
    /// type or partition count.
    pub async fn update_topic(
        &self,
        changed: &Topic,
        expected_version: Option<u64>,
        actor: &Actor,
    ) -> Result<Topic, CatalogError> {
        let mut writing = self.write().await?;
        let before = stored(&mut writing, changed.id).await?;
        expect_version(expected_version, before.version)?;
        let (old, new) = (&before.settings, &changed.settings);
        if (old.kind, old.partition_count) != (new.kind, new.partition_count) {
            return Err(CatalogError::Conflict("a topic's type and partitionCount cannot be changed".to_owned()));
        }
        let after = Topic {
            settings: new.clone(),
            updated_at: self.clock.now(),
            version: before.version + 1,
            ..before.clone()
        };
        write_settings(&mut writing, &after).await?;
        let details = json!({ "before": shown(&before), "after": shown(&after) });
        self.audit(&mut writing, event("topic.updated", &after, details), actor).await?;
        writing.commit().await?;
        Ok(after)
    }

    /// Removes a topic, its dead-letter topic, and the subscriptions and pipelines of both.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`]; [`CatalogError::Conflict`] for a dead-letter topic, which goes with its topic only.
    pub async fn delete_topic(&self, id: TopicId, actor: &Actor) -> Result<(), CatalogError> {
        let mut writing = self.write().await?;
        let before = stored(&mut writing, id).await?;
        if before.name.is_dead_letter() {
            return Err(CatalogError::Conflict("a dead-letter topic is deleted with its topic, not alone".to_owned()));
        }
        let mut subscriptions: Vec<String> = Vec::new();
        for gone in std::iter::once(id).chain(before.dead_letter) {
            subscriptions.extend(delete(&mut writing, gone).await?);
        }
        let details = json!({ "before": shown(&before), "after": null, "subscriptions": subscriptions });
        self.audit(&mut writing, event("topic.deleted", &before, details), actor).await?;
        Ok(writing.commit().await?)
    }

    /// Takes the next number of a sequence, durably. The row goes again at once: only the sequence has to remember.
    pub(super) async fn next_number(&self, take: &'static str, clear: &'static str) -> Result<i64, CatalogError> {
        let mut writing = self.write_aside().await?;
        let number: i64 = sqlx::query_scalar(take).fetch_one(&mut *writing).await?;
        sqlx::query(clear).execute(&mut *writing).await?;
        writing.commit().await?;
        Ok(number)
    }
}

/// The topic, or that there is none.
pub(super) async fn stored(writing: &mut Writing, id: TopicId) -> Result<Topic, CatalogError> {
    let row = sqlx::query("SELECT * FROM topics WHERE topic_id = $1")
        .bind(i64::from(id.0))
        .fetch_optional(&mut **writing)
        .await?;
    row.as_ref().map(topic).transpose()?.ok_or_else(|| CatalogError::NotFound("there is no such topic".to_owned()))
}

pub(super) async fn insert(writing: &mut Writing, topic: &Topic) -> Result<(), CatalogError> {
    let settings = &topic.settings;
    sqlx::query(
        "INSERT INTO topics (topic_id, name, dead_letter_topic_id, description, type, schema_id, delivery_guarantee,
             retention_ms, retention_bytes, partition_count, max_message_size, dedup_window_ms, dedup_keys_max,
             dead_letter_payload, dead_letter_expired, dead_letter_threshold, created_at, updated_at, version,
             capture_ttl_ms, capture_bytes_max, storage)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)",
    )
    .bind(i64::from(topic.id.0))
    .bind(topic.name.as_str())
    .bind(topic.dead_letter.map(|id| i64::from(id.0)))
    .bind(&settings.description)
    .bind(name(settings.kind))
    .bind(settings.schema_id.as_deref())
    .bind(name(settings.guarantee))
    .bind(millis(settings.retention))
    .bind(settings.retention_bytes.map(integer))
    .bind(i64::from(settings.partition_count))
    .bind(integer(settings.max_message_size))
    .bind(millis(settings.dedup_window))
    .bind(i64::from(settings.dedup_keys_max))
    .bind(name(settings.dead_letter_payload))
    .bind(i64::from(settings.dead_letter_expired))
    .bind(settings.dead_letter_threshold.map(integer))
    .bind(topic.created_at.0)
    .bind(topic.updated_at.0)
    .bind(integer(topic.version))
    .bind(settings.capture_input.map(|how| millis(how.ttl)))
    .bind(settings.capture_input.map(|how| integer(how.bytes_max)))
    .bind(name(settings.storage))
    .execute(&mut **writing)
    .await
    .map_err(|error| conflict(error, || format!("there is a topic '{}' already", topic.name)))?;
    Ok(())
}

async fn write_settings(writing: &mut Writing, topic: &Topic) -> Result<(), CatalogError> {
    let settings = &topic.settings;
    sqlx::query(
        "UPDATE topics SET description = $2, schema_id = $3, delivery_guarantee = $4, retention_ms = $5,
             retention_bytes = $6, max_message_size = $7, dedup_window_ms = $8, dedup_keys_max = $9,
             dead_letter_payload = $10, dead_letter_expired = $11, dead_letter_threshold = $12, updated_at = $13,
             version = $14, capture_ttl_ms = $15, capture_bytes_max = $16
         WHERE topic_id = $1",
    )
    .bind(i64::from(topic.id.0))
    .bind(&settings.description)
    .bind(settings.schema_id.as_deref())
    .bind(name(settings.guarantee))
    .bind(millis(settings.retention))
    .bind(settings.retention_bytes.map(integer))
    .bind(integer(settings.max_message_size))
    .bind(millis(settings.dedup_window))
    .bind(i64::from(settings.dedup_keys_max))
    .bind(name(settings.dead_letter_payload))
    .bind(i64::from(settings.dead_letter_expired))
    .bind(settings.dead_letter_threshold.map(integer))
    .bind(topic.updated_at.0)
    .bind(integer(topic.version))
    .bind(settings.capture_input.map(|how| millis(how.ttl)))
    .bind(settings.capture_input.map(|how| integer(how.bytes_max)))
    .execute(&mut **writing)
    .await?;
    Ok(())
}

/// Removes one topic's rows; returns the ids of its subscriptions.
async fn delete(writing: &mut Writing, id: TopicId) -> Result<Vec<String>, CatalogError> {
    let number = i64::from(id.0);
    let subscriptions: Vec<String> =
        sqlx::query_scalar("SELECT subscription_id FROM subscriptions WHERE topic_id = $1 ORDER BY subscription_id")
            .bind(number)
            .fetch_all(&mut **writing)
            .await?;
    sqlx::query("DELETE FROM pipeline_revisions WHERE topic_id = $1").bind(number).execute(&mut **writing).await?;
    sqlx::query("DELETE FROM subscriptions WHERE topic_id = $1").bind(number).execute(&mut **writing).await?;
    sqlx::query("DELETE FROM topics WHERE topic_id = $1").bind(number).execute(&mut **writing).await?;
    Ok(subscriptions)
}

pub(super) fn topic(row: &AnyRow) -> Result<Topic, CatalogError> {
    let columns = Columns(row);
    Ok(Topic {
        id: TopicId(columns.number("topic_id")?),
        name: columns.parsed("name")?,
        dead_letter: columns.number_opt("dead_letter_topic_id")?.map(TopicId),
        settings: TopicSettings {
            description: columns.text("description")?,
            kind: columns.named("type")?,
            schema_id: columns.text_opt("schema_id")?.map(Into::into),
            guarantee: columns.named("delivery_guarantee")?,
            retention: columns.duration("retention_ms")?,
            retention_bytes: columns.number_opt("retention_bytes")?,
            partition_count: columns.number("partition_count")?,
            max_message_size: columns.number("max_message_size")?,
            dedup_window: columns.duration("dedup_window_ms")?,
            dedup_keys_max: columns.number("dedup_keys_max")?,
            dead_letter_payload: columns.named("dead_letter_payload")?,
            dead_letter_expired: columns.int("dead_letter_expired")? != 0,
            dead_letter_threshold: columns.number_opt("dead_letter_threshold")?,
            capture_input: capture_input(&columns)?,
            storage: columns.named("storage")?,
        },
        created_at: columns.time("created_at")?,
        updated_at: columns.time("updated_at")?,
        version: columns.number("version")?,
    })
}

fn capture_input(columns: &Columns<'_>) -> Result<Option<CaptureInput>, CatalogError> {
    let ttl = columns.number_opt::<u64>("capture_ttl_ms")?.map(Duration::from_millis);
    let bytes_max = columns.number_opt("capture_bytes_max")?;
    Ok(ttl.zip(bytes_max).map(|(ttl, bytes_max)| CaptureInput { ttl, bytes_max }))
}

fn event<'a>(event_type: &'a str, topic: &'a Topic, details: Value) -> Event<'a> {
    Event { event_type, entity_type: "topic", entity_id: topic.name.as_str(), details }
}

/// A topic as the audit log shows it.
fn shown(topic: &Topic) -> Value {
    let settings = &topic.settings;
    json!({
        "name": topic.name,
        "version": topic.version,
        "description": settings.description,
        "type": settings.kind,
        "schemaId": settings.schema_id,
        "deliveryGuarantee": settings.guarantee,
        "retentionMs": millis(settings.retention),
        "retentionBytes": settings.retention_bytes,
        "partitionCount": settings.partition_count,
        "maxMessageSize": settings.max_message_size,
        "dedupWindowMs": millis(settings.dedup_window),
        "dedupKeysMax": settings.dedup_keys_max,
        "deadLetterPayload": settings.dead_letter_payload,
        "deadLetterExpired": settings.dead_letter_expired,
        "deadLetterThreshold": settings.dead_letter_threshold,
        "captureInput": settings.capture_input.map(|how| json!({ "ttlMs": millis(how.ttl), "maxBytes": how.bytes_max })),
        "storage": settings.storage,
    })
}
