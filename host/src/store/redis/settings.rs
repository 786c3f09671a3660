//! Which topics and groups there are, as far as this broker knows, and what follows when Redis knows less. Invariant: what Redis has is
//! the truth as long as it is the Redis that it was; one that was emptied, or has gone back in time, is told all settings again, by
//! whoever notices first. Never brings a message back.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::script::{Args, OPEN, PUT_GROUP, PUT_TOPIC, REGISTER, Reply, SETTINGS, strange};
use super::{Shared, codec};
use crate::message::{GroupId, TopicId};
use crate::store::{GroupSpec, SeekTo, StoreError, TopicSpec};

/// Topics by number.
#[derive(Default)]
pub(super) struct Known {
    /// What Redis was born as, when all this was read.
    born: String,
    /// The version of all settings then.
    version: i64,
    topics: BTreeMap<TopicId, KnownTopic>,
}

struct KnownTopic {
    spec: TopicSpec,
    groups: BTreeMap<GroupId, GroupSpec>,
    told: watch::Sender<u64>,
    /// The first sequence that was given in none of its partitions, as far as is known here.
    free: u64,
}

impl KnownTopic {
    fn new(spec: TopicSpec) -> KnownTopic {
        KnownTopic { spec, groups: BTreeMap::new(), told: watch::channel(0).0, free: 0 }
    }
}

impl Known {
    pub(super) fn told(&self, topic: TopicId) -> Option<watch::Receiver<u64>> {
        self.topics.get(&topic).map(|topic| topic.told.subscribe())
    }

    /// Whether somebody waits.
    pub(super) fn wake(&self, topic: TopicId) -> bool {
        let Some(topic) = self.topics.get(&topic) else { return false };
        topic.told.send_modify(|count| *count += 1);
        topic.told.receiver_count() > 0
    }

    /// All that somebody waits for.
    pub(super) fn waited(&self) -> Vec<TopicId> {
        let waited = self.topics.iter().filter(|(_, topic)| topic.told.receiver_count() > 0);
        waited.map(|(id, _)| *id).collect()
    }

    /// Those whose ids' 24 bits these are.
    pub(super) fn of_id(&self, low: TopicId) -> Vec<TopicId> {
        self.topics.keys().copied().filter(|topic| topic.0 & 0xff_ffff == low.0).collect()
    }

    pub(super) fn all(&self) -> Vec<TopicId> {
        self.topics.keys().copied().collect()
    }

    pub(super) fn groups(&self, topic: TopicId) -> Vec<GroupId> {
        self.topics.get(&topic).map(|topic| topic.groups.keys().copied().collect()).unwrap_or_default()
    }

    pub(super) fn put_topic(&mut self, spec: TopicSpec) {
        match self.topics.get_mut(&spec.id) {
            Some(topic) => topic.spec = spec,
            None => {
                self.topics.insert(spec.id, KnownTopic::new(spec));
            }
        }
    }

    /// The first sequence that was not given, of a topic that is known.
    pub(super) fn free(&self, topic: TopicId) -> Option<u64> {
        self.topics.get(&topic).map(|topic| topic.free)
    }

    /// These were given.
    pub(super) fn gave(&mut self, topic: TopicId, sequences: impl Iterator<Item = u64>) {
        let Some(last) = sequences.max() else { return };
        if let Some(topic) = self.topics.get_mut(&topic) {
            topic.free = topic.free.max(last.saturating_add(1));
        }
    }

    pub(super) fn put_group(&mut self, spec: GroupSpec) {
        if let Some(topic) = self.topics.get_mut(&spec.topic) {
            topic.groups.insert(spec.group, spec);
        }
    }

    /// Whether Redis is not the one that it was. Settings are never taken back: a smaller version is one of the past, as is the same
    /// without a topic or a group that was there.
    fn is_lost(&self, read: &Read) -> bool {
        if self.born.is_empty() {
            return false;
        }
        let lacks_one = || {
            let there: BTreeMap<TopicId, &Vec<GroupSpec>> =
                read.topics.iter().map(|(spec, groups)| (spec.id, groups)).collect();
            let lacks = |group: &GroupId, groups: &[GroupSpec]| !groups.iter().any(|there| there.group == *group);
            self.topics.iter().any(|(topic, known)| {
                there.get(topic).is_none_or(|groups| known.groups.keys().any(|group| lacks(group, groups)))
            })
        };
        read.born != self.born || read.version < self.version || (read.version == self.version && lacks_one())
    }

    pub(super) fn forget_topic(&mut self, topic: TopicId) {
        self.topics.remove(&topic);
    }

    pub(super) fn forget_group(&mut self, topic: TopicId, group: GroupId) {
        if let Some(topic) = self.topics.get_mut(&topic) {
            topic.groups.remove(&group);
        }
    }
}

/// What Redis has.
struct Read {
    born: String,
    version: i64,
    topics: Vec<(TopicSpec, Vec<GroupSpec>)>,
}

impl Shared {
    /// This opening's epoch. Asked for once; what this node had leased before has ended then.
    pub(super) async fn opened(&self) -> Result<i64, StoreError> {
        self.epoch.get_or_try_init(|| self.begin()).await.copied()
    }

    async fn begin(&self) -> Result<i64, StoreError> {
        let born = self.new_mark();
        let mut reply = self.run(&OPEN, &Args::new().text(&*self.node).text(self.time()).text(born)).await?;
        let (epoch, _born, mut list) = (reply.int()?, reply.text()?, reply.list()?);
        let mut before = Vec::new();
        while !list.is_empty() {
            before.push(list.text()?);
        }
        let read = self.read_settings().await?;
        self.take_over(read);
        self.end_orphans(before).await?;
        Ok(epoch)
    }

    pub(super) fn is_known(&self, topic: TopicId) -> bool {
        self.known.lock().topics.contains_key(&topic)
    }

    /// Whether Redis has other settings than are known here.
    pub(super) fn is_behind(&self, born: &str, version: i64) -> bool {
        let known = self.known.lock();
        (&*known.born, known.version) != (born, version)
    }

    /// Takes over what other brokers have changed; where Redis has lost settings, it is told them.
    pub(super) async fn catch_up(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.editing.lock().await;
        let read = self.read_settings().await?;
        if !self.known.lock().is_lost(&read) {
            self.take_over(read);
            return Ok(());
        }
        let remembered = self.remembered();
        if !remembered.is_empty() {
            self.losses.inc();
            tracing::error!(
                redis = self.server.place(),
                topics = remembered.len(),
                "Redis has lost what it held: its topics are made anew, and the messages that were in them are gone. Redis keeps them \
                 over a restart with appendonly yes; whoever empties it (FLUSHALL) empties these topics"
            );
        }
        let epoch = self.epoch.get().copied().unwrap_or(0);
        self.run(&REGISTER, &Args::new().int(epoch).text(&*self.node).text(self.new_mark())).await?;
        for (spec, groups, free) in remembered {
            // Nobody who has read it is ahead of what comes.
            self.run(&PUT_TOPIC, &put_topic(&spec, Some(free))?.text(self.time())).await?;
            for group in groups {
                // What came in between is nobody's past: all of it waits.
                self.run(&PUT_GROUP, &put_group(&GroupSpec { start: SeekTo::Earliest, ..group })?).await?;
            }
        }
        let read = self.read_settings().await?;
        self.take_over(read);
        let topics = self.known.lock().all();
        topics.into_iter().for_each(|topic| self.wake(topic));
        Ok(())
    }

    /// Topics that take dead letters first: the others name them.
    fn remembered(&self) -> Vec<(TopicSpec, Vec<GroupSpec>, u64)> {
        let known = self.known.lock();
        let all = known.topics.values();
        let all = all.map(|topic| (topic.spec.clone(), topic.groups.values().cloned().collect(), topic.free));
        let mut all: Vec<(TopicSpec, Vec<GroupSpec>, u64)> = all.collect();
        all.sort_by_key(|(spec, ..)| spec.dead_letter.is_some());
        all
    }

    async fn read_settings(&self) -> Result<Read, StoreError> {
        let mut reply = self.run(&SETTINGS, &Args::new().text("")).await?;
        let mut read = Read { born: reply.text()?, version: reply.int()?, topics: Vec::new() };
        let mut topics = reply.list()?;
        while !topics.is_empty() {
            let mut topic = topics.list()?;
            let (_id, spec, mut groups) = (topic.text()?, topic.text()?, topic.list()?);
            let mut specs = Vec::new();
            while !groups.is_empty() {
                let mut group = groups.list()?;
                let (_id, spec) = (group.text()?, group.text()?);
                specs.push(serde_json::from_str(&spec).map_err(|error| strange("a group", &error.to_string()))?);
            }
            let spec = serde_json::from_str(&spec).map_err(|error| strange("a topic", &error.to_string()))?;
            read.topics.push((spec, specs));
        }
        Ok(read)
    }

    /// Whoever waits for a topic that is still there waits on.
    fn take_over(&self, read: Read) {
        let mut known = self.known.lock();
        let mut before = std::mem::take(&mut known.topics);
        (known.born, known.version) = (read.born, read.version);
        for (spec, groups) in read.topics {
            let topic = before.remove(&spec.id).unwrap_or_else(|| KnownTopic::new(spec.clone()));
            let groups = groups.into_iter().map(|group| (group.group, group)).collect();
            known.topics.insert(spec.id, KnownTopic { spec, groups, ..topic });
        }
    }

    fn new_mark(&self) -> String {
        format!("{:016x}", self.entropy.next_u64())
    }

    /// See [`crate::store::MessageStore::groups`].
    pub(super) async fn groups(&self, topic: TopicId) -> Result<Vec<GroupId>, StoreError> {
        self.call(topic, &SETTINGS, &Args::new().text(topic.0.to_string())).await.and_then(groups_of)
    }

    /// The same as Redis has it now.
    pub(super) async fn groups_in_redis(&self, topic: TopicId) -> Result<Vec<GroupId>, StoreError> {
        self.run(&SETTINGS, &Args::new().text(topic.0.to_string())).await.and_then(groups_of)
    }
}

fn groups_of(mut reply: Reply) -> Result<Vec<GroupId>, StoreError> {
    let (_born, _version, mut topics) = (reply.text()?, reply.int()?, reply.list()?);
    let mut all = Vec::new();
    while !topics.is_empty() {
        let mut topic = topics.list()?;
        let (_id, _spec, mut groups) = (topic.text()?, topic.text()?, topic.list()?);
        while !groups.is_empty() {
            all.push(codec::group(&groups.list()?.text()?)?);
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// What makes a topic, but the time. One that is made `anew` begins above what it gave before, and not below that.
pub(super) fn put_topic(spec: &TopicSpec, anew: Option<u64>) -> Result<Args, StoreError> {
    let json = serde_json::to_string(spec).map_err(|error| StoreError::Invalid(error.to_string()))?;
    Ok(Args::new()
        .text(spec.id.0.to_string())
        .int(spec.partitions)
        .text(json)
        .int(spec.retention.as_millis())
        .maybe(spec.retention_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)))
        .int(spec.dedup_window.as_millis())
        .int(spec.dedup_keys_max)
        .text(spec.dead_letter.map(|dead| dead.0.to_string()).unwrap_or_default())
        .flag(spec.dead_letter_expired)
        .flag(spec.dead_letter_payload)
        .maybe(anew.map(|free| i64::try_from(free).unwrap_or(i64::MAX))))
}

/// What makes a group.
pub(super) fn put_group(spec: &GroupSpec) -> Result<Args, StoreError> {
    let json = serde_json::to_string(spec).map_err(|error| StoreError::Invalid(error.to_string()))?;
    let args = Args::new()
        .text(spec.topic.0.to_string())
        .text(spec.group.0.to_string())
        .text(&*spec.name)
        .int(spec.attempts_max)
        .text(json);
    Ok(to(args, spec.start))
}

/// Where a cursor goes.
pub(super) fn to(args: Args, to: SeekTo) -> Args {
    match to {
        SeekTo::Earliest => args.text("earliest").text("").int(0),
        SeekTo::Latest => args.text("latest").text("").int(0),
        SeekTo::Time(at) => args.text("time").text("").int(at.0),
        SeekTo::Offset(partition, offset) => {
            let word = if offset.lane() == 0 { "offset" } else { "elsewhere" };
            args.text(word).text(partition.to_string()).int(offset.sequence().cast_signed())
        }
    }
}
