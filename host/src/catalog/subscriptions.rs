//! Subscriptions: the consumer groups of topics, with their settings and secrets. Invariant: a group's name and number
//! are unique on their topic, a Queue has at most one subscription, and its kind, topic and group never change. No secret
//! gets into the audit log.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use super::columns::{self, Columns, integer, millis, name};
use super::model::{
    Authorization, Backoff, Pause, Secret, Subscription, SubscriptionId, SubscriptionSettings, TopicKind,
};
use super::{Actor, Catalog, CatalogError, Event, Writing, conflict, expect_version, topics};
use crate::clock::Timestamp;
use crate::message::{GroupId, TopicId};

const SELECT: &str = "SELECT s.*, t.name AS topic_name FROM subscriptions s JOIN topics t ON t.topic_id = s.topic_id";

impl Catalog {
    /// All subscriptions, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn subscriptions(&self) -> Result<Vec<Subscription>, CatalogError> {
        let select = sqlx::AssertSqlSafe(format!("{SELECT} ORDER BY s.created_at, s.subscription_id"));
        let rows = sqlx::query(select).fetch_all(&mut *self.read().await?).await?;
        rows.iter().map(subscription).collect()
    }

    /// A number for a new cursor, from 1. It is used up when this returns, whatever becomes of it.
    ///
    /// # Errors
    /// When the database fails, or all 4 billion numbers are used up.
    pub async fn reserve_group_id(&self) -> Result<GroupId, CatalogError> {
        let id = self.next_number("INSERT INTO group_ids DEFAULT VALUES RETURNING id", "DELETE FROM group_ids").await?;
        let used_up = |_| CatalogError::Conflict("the numbers for consumer groups are used up".to_owned());
        u32::try_from(id).map(GroupId).map_err(used_up)
    }

    /// Writes a new subscription.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] without its topic; [`CatalogError::Conflict`] if the group is taken, or a Queue has a
    /// subscription already.
    pub async fn insert_subscription(&self, new: &Subscription, actor: &Actor) -> Result<(), CatalogError> {
        let mut writing = self.write().await?;
        let topic = topics::stored(&mut writing, new.topic).await?;
        if topic.settings.kind == TopicKind::Queue && !topic.name.is_dead_letter() {
            refuse_second(&mut writing, new).await?;
        }
        insert(&mut writing, new).await?;
        let details = json!({ "before": null, "after": shown(new) });
        self.audit(&mut writing, event("subscription.created", &new.id.to_string(), details), actor).await?;
        Ok(writing.commit().await?)
    }

    /// Writes new settings, as the version after the stored one; returns the subscription as it stands then. Secrets and
    /// pause stay as they are.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::PreconditionFailed`], and [`CatalogError::Conflict`] for a change of
    /// kind, topic or group.
    pub async fn update_subscription(
        &self,
        changed: &Subscription,
        expected_version: Option<u64>,
        actor: &Actor,
    ) -> Result<Subscription, CatalogError> {
        self.change(changed.id, "subscription.updated", actor, |before| {
            expect_version(expected_version, before.version)?;
            let fixed = |of: &Subscription| (of.settings.kind, of.topic, of.group, of.consumer_group.clone());
            if fixed(&before) != fixed(changed) {
                return Err(CatalogError::Conflict(
                    "a subscription's type, topicName and consumerGroup cannot be changed".to_owned(),
                ));
            }
            Ok(Subscription { settings: changed.settings.clone(), ..before })
        })
        .await
    }

    /// Stops its deliveries, or starts them again.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub async fn set_pause(
        &self,
        id: SubscriptionId,
        pause: Option<Pause>,
        actor: &Actor,
    ) -> Result<Subscription, CatalogError> {
        let event_type = if pause.is_some() { "subscription.paused" } else { "subscription.resumed" };
        self.change(id, event_type, actor, |before| Ok(Subscription { pause, ..before })).await
    }

    /// Signs with `new` from now on, and with the secret before it until `previous_until`.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub async fn rotate_secret(
        &self,
        id: SubscriptionId,
        new: Secret,
        previous_until: Timestamp,
        actor: &Actor,
    ) -> Result<Subscription, CatalogError> {
        let now = self.clock.now();
        self.change(id, "subscription.secretRotated", actor, |before| {
            let signs_too = previous_until > now;
            let previous_secret = before.secret.clone().filter(|_| signs_too).map(|secret| (secret, previous_until));
            Ok(Subscription { secret: Some(new), previous_secret, ..before })
        })
        .await
    }

    /// Removes a subscription and its pipeline.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub async fn delete_subscription(&self, id: SubscriptionId, actor: &Actor) -> Result<(), CatalogError> {
        let mut writing = self.write().await?;
        let before = stored(&mut writing, id).await?;
        let id = id.to_string();
        sqlx::query("DELETE FROM pipeline_revisions WHERE subscription_id = $1")
            .bind(&id)
            .execute(&mut *writing)
            .await?;
        sqlx::query("DELETE FROM subscriptions WHERE subscription_id = $1").bind(&id).execute(&mut *writing).await?;
        let details = json!({ "before": shown(&before), "after": null });
        self.audit(&mut writing, event("subscription.deleted", &id, details), actor).await?;
        Ok(writing.commit().await?)
    }

    /// Reads, changes and writes one subscription as one transaction.
    async fn change(
        &self,
        id: SubscriptionId,
        event_type: &'static str,
        actor: &Actor,
        change: impl FnOnce(Subscription) -> Result<Subscription, CatalogError> + Send,
    ) -> Result<Subscription, CatalogError> {
        let mut writing = self.write().await?;
        let before = stored(&mut writing, id).await?;
        let details_before = shown(&before);
        let version = before.version + 1;
        let after = Subscription { updated_at: self.clock.now(), version, ..change(before)? };
        update(&mut writing, &after).await?;
        let details = json!({ "before": details_before, "after": shown(&after) });
        self.audit(&mut writing, event(event_type, &id.to_string(), details), actor).await?;
        writing.commit().await?;
        Ok(after)
    }
}

async fn stored(writing: &mut Writing, id: SubscriptionId) -> Result<Subscription, CatalogError> {
    let select = sqlx::AssertSqlSafe(format!("{SELECT} WHERE s.subscription_id = $1"));
    let row = sqlx::query(select).bind(id.to_string()).fetch_optional(&mut **writing).await?;
    let missing = || CatalogError::NotFound("there is no such subscription".to_owned());
    row.as_ref().map(subscription).transpose()?.ok_or_else(missing)
}

async fn refuse_second(writing: &mut Writing, new: &Subscription) -> Result<(), CatalogError> {
    let taken: i64 = sqlx::query_scalar("SELECT count(*) FROM subscriptions WHERE topic_id = $1")
        .bind(i64::from(new.topic.0))
        .fetch_one(&mut **writing)
        .await?;
    if taken > 0 {
        let sentence = format!("the Queue '{}' has a subscription already, and takes one at most", new.topic_name);
        return Err(CatalogError::Conflict(sentence));
    }
    Ok(())
}

async fn insert(writing: &mut Writing, new: &Subscription) -> Result<(), CatalogError> {
    let insert = sqlx::query(
        "INSERT INTO subscriptions (subscription_id, consumer_endpoint, filter, max_retries, ack_timeout_ms,
             backoff_initial_ms, backoff_multiplier, backoff_max_ms, backoff_jitter, ordered, max_in_flight, rate_limit,
             format, headers, secret, previous_secret, previous_secret_until, pause_reason, paused_since, updated_at,
             version, endpoint_authorization, client_certificate, ca_certificate, attempt_bodies, topic_id, group_id,
             consumer_group, type, created_by, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
             $23, $24, $25, $26, $27, $28, $29, $30, $31)",
    );
    bind_changeable(insert, new)
        .bind(i64::from(new.topic.0))
        .bind(i64::from(new.group.0))
        .bind(&*new.consumer_group)
        .bind(name(new.settings.kind))
        .bind(&new.created_by)
        .bind(new.created_at.0)
        .execute(&mut **writing)
        .await
        .map_err(|error| {
            conflict(error, || {
                let (group, topic) = (&new.consumer_group, &new.topic_name);
                format!("there is a subscription of the consumer group '{group}' on '{topic}' already")
            })
        })?;
    Ok(())
}

async fn update(writing: &mut Writing, changed: &Subscription) -> Result<(), CatalogError> {
    let update = sqlx::query(
        "UPDATE subscriptions SET consumer_endpoint = $2, filter = $3, max_retries = $4, ack_timeout_ms = $5,
             backoff_initial_ms = $6, backoff_multiplier = $7, backoff_max_ms = $8, backoff_jitter = $9, ordered = $10,
             max_in_flight = $11, rate_limit = $12, format = $13, headers = $14, secret = $15, previous_secret = $16,
             previous_secret_until = $17, pause_reason = $18, paused_since = $19, updated_at = $20, version = $21,
             endpoint_authorization = $22, client_certificate = $23, ca_certificate = $24, attempt_bodies = $25
         WHERE subscription_id = $1",
    );
    bind_changeable(update, changed).execute(&mut **writing).await?;
    Ok(())
}

type Statement<'q> = sqlx::query::Query<'q, sqlx::Any, sqlx::any::AnyArguments>;

/// The id and what can change: the first 25 values of both statements.
fn bind_changeable<'q>(statement: Statement<'q>, of: &Subscription) -> Statement<'q> {
    let settings = &of.settings;
    statement
        .bind(of.id.to_string())
        .bind(settings.endpoint.clone())
        .bind(settings.filter.as_ref().map(columns::json))
        .bind(i64::from(settings.max_retries))
        .bind(millis(settings.ack_timeout))
        .bind(millis(settings.backoff.initial))
        .bind(settings.backoff.multiplier)
        .bind(millis(settings.backoff.max))
        .bind(settings.backoff.jitter)
        .bind(i64::from(settings.ordered))
        .bind(settings.max_in_flight.map(i64::from))
        .bind(settings.rate_limit.map(i64::from))
        .bind(name(settings.format))
        .bind(columns::json(&settings.headers))
        .bind(of.secret.as_ref().map(|secret| secret.expose().to_owned()))
        .bind(of.previous_secret.as_ref().map(|(secret, _)| secret.expose().to_owned()))
        .bind(of.previous_secret.as_ref().map(|(_, until)| until.0))
        .bind(of.pause.as_ref().map(|pause| pause.reason.clone()))
        .bind(of.pause.as_ref().map(|pause| pause.since.0))
        .bind(of.updated_at.0)
        .bind(integer(of.version))
        .bind(settings.authorization.as_ref().map(columns::json))
        .bind(settings.client_certificate.as_ref().map(columns::json))
        .bind(settings.ca_certificate.clone())
        .bind(name(settings.attempt_bodies))
}

pub(super) fn subscription(row: &AnyRow) -> Result<Subscription, CatalogError> {
    let columns = Columns(row);
    let previous = columns.text_opt("previous_secret")?.zip(columns.time_opt("previous_secret_until")?);
    let pause = columns.text_opt("pause_reason")?.zip(columns.time_opt("paused_since")?);
    Ok(Subscription {
        id: columns.parsed("subscription_id")?,
        group: GroupId(columns.number("group_id")?),
        topic: TopicId(columns.number("topic_id")?),
        topic_name: columns.parsed("topic_name")?,
        consumer_group: columns.text("consumer_group")?.into(),
        settings: settings(&columns)?,
        secret: columns.text_opt("secret")?.map(Secret::new),
        previous_secret: previous.map(|(secret, until)| (Secret::new(secret), until)),
        pause: pause.map(|(reason, since)| Pause { reason, since }),
        created_by: columns.text("created_by")?,
        created_at: columns.time("created_at")?,
        updated_at: columns.time("updated_at")?,
        version: columns.number("version")?,
    })
}

fn settings(columns: &Columns<'_>) -> Result<SubscriptionSettings, CatalogError> {
    Ok(SubscriptionSettings {
        kind: columns.named("type")?,
        endpoint: columns.text_opt("consumer_endpoint")?,
        filter: columns.json_opt("filter")?,
        max_retries: columns.number("max_retries")?,
        ack_timeout: columns.duration("ack_timeout_ms")?,
        backoff: Backoff {
            initial: columns.duration("backoff_initial_ms")?,
            multiplier: columns.float("backoff_multiplier")?,
            max: columns.duration("backoff_max_ms")?,
            jitter: columns.float("backoff_jitter")?,
        },
        ordered: columns.int("ordered")? != 0,
        max_in_flight: columns.number_opt("max_in_flight")?,
        rate_limit: columns.number_opt("rate_limit")?,
        format: columns.named("format")?,
        headers: columns.json("headers")?,
        authorization: columns.json_opt("endpoint_authorization")?,
        client_certificate: columns.json_opt("client_certificate")?,
        ca_certificate: columns.text_opt("ca_certificate")?,
        attempt_bodies: columns.named("attempt_bodies")?,
    })
}

fn event<'a>(event_type: &'a str, id: &'a str, details: Value) -> Event<'a> {
    Event { event_type, entity_type: "subscription", entity_id: id, details }
}

/// A subscription as the audit log shows it: without its signing secret, the values of its headers, its token and its key,
/// and those parts of the endpoint's address that often hold a password or a token.
fn shown(of: &Subscription) -> Value {
    let settings = &of.settings;
    let headers: BTreeMap<&str, &str> = settings.headers.keys().map(|name| (name.as_str(), "[redacted]")).collect();
    json!({
        "version": of.version,
        "topicName": of.topic_name,
        "consumerGroup": of.consumer_group,
        "type": settings.kind,
        "consumerEndpoint": settings.endpoint.as_deref().map(without_credentials),
        "filter": settings.filter,
        "maxRetries": settings.max_retries,
        "ackTimeoutMs": millis(settings.ack_timeout),
        "backoff": {
            "initialMs": millis(settings.backoff.initial),
            "multiplier": settings.backoff.multiplier,
            "maxMs": millis(settings.backoff.max),
            "jitter": settings.backoff.jitter,
        },
        "ordered": settings.ordered,
        "maxInFlight": settings.max_in_flight,
        "rateLimit": settings.rate_limit,
        "format": settings.format,
        "headers": headers,
        "authorization": settings.authorization.as_ref().map(|Authorization::Bearer { .. }| "bearer"),
        "clientCertificate": settings.client_certificate.as_ref().map(|both| both.certificate.as_str()),
        "caCertificate": settings.ca_certificate,
        "attemptBodies": settings.attempt_bodies,
        "pause": of.pause,
        "previousSecretUntil": of.previous_secret.as_ref().map(|(_, until)| until.rfc3339()),
    })
}

fn without_credentials(endpoint: &str) -> String {
    let Ok(mut url) = url::Url::parse(endpoint) else { return "[unreadable]".to_owned() };
    // Both refuse addresses that cannot have credentials, and then there are none to take away.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    if url.query().is_some() {
        url.set_query(Some("redacted"));
    }
    url.set_fragment(None);
    url.into()
}
