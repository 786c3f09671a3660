//! Topics, groups, cursors; what is removed, and what time alone brings. Invariant: each is a script, or scripts each of which leaves
//! all in order, so that one that is not followed by the next is followed by a call that is made again.

use std::sync::Arc;

use super::Shared;
use super::script::{
    Args, CURSOR, DELETE_GROUP, DELETE_TOPIC, DISCARD, EPOCHS, ERASE, FORGET_EPOCHS, ORPHANS, PUT_GROUP, PUT_TOPIC,
    TRIM, UPKEEP, strange,
};
use super::settings::{put_group, put_topic, to};
use crate::clock::Timestamp;
use crate::message::{GroupId, MessageId, PARTITIONS_MAX, PRIORITY_MAX, Position, TopicId};
use crate::store::{GroupSpec, RetainReport, SNAPSHOTS_MAX, SeekTo, StoreError, TopicSpec};

/// Gaps that a snapshot keeps of what is settled between messages that are not; what is settled beyond them comes again.
const GAPS_MAX: usize = 10_000;
/// Leases that one script looks at.
const ORPHANS_MAX: i64 = 1000;
/// Rounds of one look at what is over; what is left then comes with the next.
const ROUNDS_MAX: usize = 100;

impl Shared {
    /// See [`crate::store::MessageStore::put_topic`]; one that was made before is made `anew` where Redis has lost it.
    pub(super) async fn put_topic(&self, spec: TopicSpec, anew: Option<u64>) -> Result<(), StoreError> {
        if spec.partitions == 0 || spec.partitions > PARTITIONS_MAX {
            return Err(StoreError::Invalid(format!("a topic has 1 to {PARTITIONS_MAX} partitions")));
        }
        if spec.dead_letter == Some(spec.id) {
            return Err(StoreError::Invalid("a topic cannot be its own dead-letter topic".to_owned()));
        }
        self.check_open()?;
        self.opened().await?;
        let _one_at_a_time = self.editing.lock().await;
        // One that is known was made before, too.
        let anew = self.known.lock().free(spec.id).or(anew);
        self.run(&PUT_TOPIC, &put_topic(&spec, anew)?.text(self.time())).await?;
        self.known.lock().put_topic(spec);
        Ok(())
    }

    /// See [`crate::store::MessageStore::delete_topic`].
    pub(super) async fn delete_topic(&self, topic: TopicId) -> Result<(), StoreError> {
        self.check_open()?;
        self.opened().await?;
        let _one_at_a_time = self.editing.lock().await;
        loop {
            let (word, _) = self.said(&DELETE_TOPIC, &Args::new().text(topic.0.to_string())).await?;
            if word != "groups" {
                break;
            }
            // One at a time: to free all of them at once would keep Redis from all else.
            let groups = self.groups_now(topic).await?;
            for group in groups {
                self.run(&DELETE_GROUP, &place(topic, group)).await?;
            }
        }
        self.known.lock().forget_topic(topic);
        Ok(())
    }

    async fn groups_now(&self, topic: TopicId) -> Result<Vec<GroupId>, StoreError> {
        match self.groups_in_redis(topic).await {
            Err(StoreError::NoTopic) => Ok(Vec::new()),
            other => other,
        }
    }

    /// See [`crate::store::MessageStore::topics`].
    pub(super) async fn topics(&self) -> Result<Vec<TopicId>, StoreError> {
        self.check_open()?;
        self.opened().await?;
        self.catch_up().await?;
        Ok(self.known.lock().all())
    }

    /// See [`crate::store::MessageStore::put_group`].
    pub(super) async fn put_group(&self, spec: GroupSpec) -> Result<(), StoreError> {
        if let SeekTo::Offset(_, offset) = spec.start
            && offset.lane() > PRIORITY_MAX
        {
            return Err(StoreError::Invalid("there is no such offset".to_owned()));
        }
        self.check_open()?;
        self.opened().await?;
        let args = put_group(&spec)?;
        let mut asked = self.put_known_group(&spec, &args).await;
        if matches!(asked, Err(StoreError::NoTopic)) && self.is_known(spec.topic) {
            self.catch_up().await?;
            asked = self.put_known_group(&spec, &args).await;
        }
        asked
    }

    /// Nothing comes between Redis and what is known of it here.
    async fn put_known_group(&self, spec: &GroupSpec, args: &Args) -> Result<(), StoreError> {
        let _one_at_a_time = self.editing.lock().await;
        self.run(&PUT_GROUP, args).await?;
        self.known.lock().put_group(spec.clone());
        Ok(())
    }

    /// See [`crate::store::MessageStore::delete_group`].
    pub(super) async fn delete_group(&self, topic: TopicId, group: GroupId) -> Result<(), StoreError> {
        self.check_open()?;
        self.opened().await?;
        let _one_at_a_time = self.editing.lock().await;
        self.run(&DELETE_GROUP, &place(topic, group)).await?;
        self.known.lock().forget_group(topic, group);
        Ok(())
    }

    fn cursor(&self, topic: TopicId, group: GroupId, what: &str) -> Args {
        place(topic, group).text(what).text(self.time())
    }

    /// See [`crate::store::MessageStore::seek`].
    pub(super) async fn seek(&self, topic: TopicId, group: GroupId, seek_to: SeekTo) -> Result<(), StoreError> {
        if let SeekTo::Offset(_, offset) = seek_to
            && offset.lane() > PRIORITY_MAX
        {
            return Err(StoreError::Invalid("there is no such offset".to_owned()));
        }
        let args = to(self.cursor(topic, group, "seek"), seek_to);
        let mut reply = self.call(topic, &CURSOR, &args).await?;
        self.wake_all(reply.list()?)
    }

    /// See [`crate::store::MessageStore::purge`].
    pub(super) async fn purge(&self, topic: TopicId, group: GroupId) -> Result<u64, StoreError> {
        let mut reply = self.call(topic, &CURSOR, &self.cursor(topic, group, "purge")).await?;
        self.wake_all(reply.list()?)?;
        reply.count()
    }

    /// See [`crate::store::MessageStore::put_snapshot`].
    pub(super) async fn put_snapshot(&self, topic: TopicId, group: GroupId, name: &str) -> Result<(), StoreError> {
        let args = self.cursor(topic, group, "keep").text(name).int(SNAPSHOTS_MAX).int(GAPS_MAX);
        self.call(topic, &CURSOR, &args).await.map(drop)
    }

    /// See [`crate::store::MessageStore::delete_snapshot`].
    pub(super) async fn delete_snapshot(&self, topic: TopicId, group: GroupId, name: &str) -> Result<bool, StoreError> {
        let mut reply = self.call(topic, &CURSOR, &self.cursor(topic, group, "forget").text(name)).await?;
        reply.list()?;
        Ok(reply.int()? > 0)
    }

    /// See [`crate::store::MessageStore::snapshots`].
    pub(super) async fn snapshots(
        &self,
        topic: TopicId,
        group: GroupId,
    ) -> Result<Vec<(Arc<str>, Timestamp)>, StoreError> {
        let mut reply = self.call(topic, &CURSOR, &self.cursor(topic, group, "list")).await?;
        reply.list()?;
        let (mut list, mut all) = (reply.list()?, Vec::new());
        while !list.is_empty() {
            let (name, kept) = (list.text()?, list.text()?);
            let at = kept.split(';').next().and_then(|at| at.parse().ok());
            let at = at.ok_or_else(|| strange("a snapshot", "its time is none"))?;
            all.push((name.into(), Timestamp(at)));
        }
        all.sort_unstable();
        Ok(all)
    }

    /// See [`crate::store::MessageStore::restore`].
    pub(super) async fn restore(&self, topic: TopicId, group: GroupId, name: &str) -> Result<bool, StoreError> {
        let mut reply = self.call(topic, &CURSOR, &self.cursor(topic, group, "restore").text(name)).await?;
        self.wake_all(reply.list()?)?;
        Ok(reply.int()? > 0)
    }

    /// See [`crate::store::MessageStore::discard_dead_letters`].
    pub(super) async fn discard_dead_letters(&self, positions: &[Position]) -> Result<usize, StoreError> {
        self.check_open()?;
        self.opened().await?;
        let args = positions.iter().fold(Args::new().int(positions.len()), |args, position| {
            args.text(position.topic.0.to_string()).text(position.partition.to_string()).int(position.offset.0)
        });
        self.run(&DISCARD, &args).await?.small()
    }

    /// See [`crate::store::MessageStore::erase`].
    pub(super) async fn erase(&self, id: MessageId) -> Result<bool, StoreError> {
        self.check_open()?;
        self.opened().await?;
        let topics = self.known.lock().of_id(id.topic());
        let mut found = false;
        for topic in topics {
            let args = Args::new().text(topic.0.to_string()).text(id.0.simple().to_string()).text(self.time());
            let mut reply = self.run(&ERASE, &args).await?;
            found |= reply.int()? > 0;
            self.wake_all(reply.list()?)?;
        }
        Ok(found)
    }

    /// See [`crate::store::MessageStore::tick`].
    pub(super) async fn tick(&self) -> Result<Option<Timestamp>, StoreError> {
        let mut ended = self.end_overdue("").await?;
        for _ in 0..ROUNDS_MAX {
            if !ended.more {
                break;
            }
            ended = self.end_overdue("").await?;
        }
        if self.is_behind(&ended.born, ended.version) {
            self.catch_up().await?;
        }
        let heard = std::mem::replace(&mut *self.heard.lock(), ended.news.iter().cloned().collect());
        for (topic, word) in &ended.news {
            if heard.get(topic) != Some(word) {
                self.wake_here(*topic);
            }
        }
        Ok(if ended.more { Some(ended.now) } else { ended.next })
    }

    /// See [`crate::store::MessageStore::retain`].
    pub(super) async fn retain(&self) -> Result<RetainReport, StoreError> {
        let topics = self.known.lock().all();
        let mut report = RetainReport::default();
        for topic in topics {
            match self.trim(topic, 0, &mut report).await {
                // Another broker has removed it.
                Ok(()) | Err(StoreError::NoTopic) => {}
                Err(error) => return Err(error),
            }
        }
        if self.run(&UPKEEP, &Args::new().text(self.time()).text(&*self.node)).await?.int()? > 0
            && let Err(why) = self.server.rewrite().await
        {
            tracing::warn!(
                why,
                "what was erased is in the append-only file of Redis until that is written anew (BGREWRITEAOF)"
            );
        }
        Ok(report)
    }

    /// Removes so many bytes of what every group has settled, as far as there are.
    pub(super) async fn make_room(&self, topic: TopicId, need: u64) -> Result<(), StoreError> {
        self.trim(topic, need, &mut RetainReport::default()).await
    }

    async fn trim(&self, topic: TopicId, need: u64, report: &mut RetainReport) -> Result<(), StoreError> {
        let mut left = need;
        loop {
            let args = Args::new().text(topic.0.to_string()).text(self.time()).int(left);
            let mut reply = self.run(&TRIM, &args).await?;
            let (removed, expired, bytes) = (reply.count()?, reply.count()?, reply.count()?);
            let more = reply.int()? == 1;
            self.wake_all(reply.list()?)?;
            report.removed += removed;
            report.expired += expired;
            report.bytes += bytes;
            left = left.saturating_sub(bytes);
            if !more || removed == 0 || (need > 0 && left == 0) {
                return Ok(());
            }
        }
    }

    /// What this node had leased in earlier openings has ended.
    pub(super) async fn end_orphans(&self, epochs: Vec<String>) -> Result<(), StoreError> {
        if epochs.is_empty() {
            return Ok(());
        }
        self.end_epochs(&epochs, "").await?;
        for _ in 0..ROUNDS_MAX {
            if !self.end_overdue("").await?.more {
                break;
            }
        }
        let args = epochs.iter().fold(Args::new().int(epochs.len()), |args, epoch| args.text(epoch.as_str()));
        self.run(&FORGET_EPOCHS, &args).await.map(drop)
    }

    /// See [`super::RedisStore::end_sending`].
    pub(super) async fn end_sending(&self, node: &str) -> Result<(), StoreError> {
        let mut reply = self.run(&EPOCHS, &Args::new().text(node)).await?;
        let (mut list, mut epochs) = (reply.list()?, Vec::new());
        while !list.is_empty() {
            epochs.push(list.text()?);
        }
        self.end_epochs(&epochs, node).await
    }

    async fn end_epochs(&self, epochs: &[String], holder: &str) -> Result<(), StoreError> {
        if epochs.is_empty() {
            return Ok(());
        }
        let topics = self.known.lock().all();
        for topic in topics {
            let groups = self.known.lock().groups(topic);
            for group in groups {
                let mut skip = 0;
                loop {
                    let args = place(topic, group).text(holder).int(skip).int(ORPHANS_MAX).int(epochs.len());
                    let args = epochs.iter().fold(args, |args, epoch| args.text(epoch.as_str()));
                    let mut reply = self.run(&ORPHANS, &args).await?;
                    let (looked, ended) = (reply.int()?, reply.int()?);
                    skip += looked - ended;
                    if looked < ORPHANS_MAX {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

fn place(topic: TopicId, group: GroupId) -> Args {
    Args::new().text(topic.0.to_string()).text(group.0.to_string())
}
