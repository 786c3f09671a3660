//! Looking without changing anything: pages, single messages, dead letters, figures.

use super::script::{Args, GET, READ, Reply, STATS, strange};
use super::{Shared, codec};
use crate::clock::Timestamp;
use crate::message::{Failures, MessageId, Offset, Position, TopicId};
use crate::store::{
    DeliveryState, Found, GroupStats, GroupStatus, Page, ReadCursor, ReadFrom, ReadRequest, StoreError, TopicStats,
};

/// Bytes of one page, whoever asks for more: Redis does nothing else while it reads them.
const PAGE_BYTES_MAX: usize = 64 << 20;

impl Shared {
    /// See [`crate::store::MessageStore::read`].
    pub(super) async fn read(&self, request: &ReadRequest) -> Result<Page, StoreError> {
        let (word, places): (&str, Vec<(u16, i64)>) = match &request.from {
            ReadFrom::Earliest => ("earliest", Vec::new()),
            ReadFrom::Latest => ("latest", Vec::new()),
            ReadFrom::Time(at) => ("time", vec![(0, at.0)]),
            ReadFrom::Offset(offset) => {
                let partition = request
                    .partition
                    .ok_or_else(|| StoreError::Invalid("reading from an offset needs a partition".to_owned()))?;
                ("offset", vec![(partition, sequence(*offset))])
            }
            ReadFrom::Cursor(ReadCursor(nexts)) => {
                let nexts = nexts.iter().filter(|(_, next)| next.lane() == 0);
                ("cursor", nexts.map(|(partition, next)| (*partition, sequence(*next))).collect())
            }
        };
        let only = request.partition.map(|partition| partition.to_string()).unwrap_or_default();
        let bytes_max = request.bytes_max.min(PAGE_BYTES_MAX);
        let args = self.page_args(request.topic, (request.limit, bytes_max, false), &only, word, &places);
        page(request.topic, self.call(request.topic, &READ, &args).await?)
    }

    /// See [`crate::store::MessageStore::dead_letters`].
    pub(super) async fn dead_letters(
        &self,
        topic: TopicId,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let (word, places) = match after {
            None => ("earliest", Vec::new()),
            Some(after) => ("after", vec![(after.partition, sequence(after.offset))]),
        };
        let args = self.page_args(topic, (limit, PAGE_BYTES_MAX, true), "", word, &places);
        page(topic, self.call(topic, &READ, &args).await?)
    }

    fn page_args(
        &self,
        topic: TopicId,
        (limit, bytes_max, listed): (usize, usize, bool),
        only: &str,
        from: &str,
        places: &[(u16, i64)],
    ) -> Args {
        let args = Args::new().text(topic.0.to_string()).text(self.time()).int(limit).int(bytes_max).flag(listed);
        let args = args.text(only).text(from).int(places.len());
        places.iter().fold(args, |args, (partition, value)| args.text(partition.to_string()).int(*value))
    }

    /// See [`crate::store::MessageStore::get`].
    pub(super) async fn get(&self, id: MessageId) -> Result<Option<Found>, StoreError> {
        self.check_open()?;
        self.opened().await?;
        let topics = self.known.lock().of_id(id.topic());
        for topic in topics {
            let args = Args::new().text(topic.0.to_string()).text(id.0.simple().to_string()).text(self.time());
            let (word, mut reply) = self.said(&GET, &args).await?;
            if word == "none" {
                continue;
            }
            let position = codec::position(topic, reply.small()?, reply.count()?)?;
            let message = codec::message(&reply.text()?, &reply.bytes()?)?;
            let (mut list, mut groups) = (reply.list()?, Vec::new());
            while !list.is_empty() {
                groups.push(status(list.list()?)?);
            }
            groups.sort_by_key(|status| status.group);
            return Ok(Some(Found { message, position: Some(position), due: None, groups }));
        }
        Ok(None)
    }

    /// See [`crate::store::MessageStore::stats`].
    pub(super) async fn stats(&self, topic: TopicId) -> Result<TopicStats, StoreError> {
        let args = Args::new().text(topic.0.to_string()).text(self.time());
        let mut reply = self.call(topic, &STATS, &args).await?;
        let mut stats = TopicStats {
            messages: reply.count()?,
            bytes: reply.count()?,
            oldest: reply.maybe()?.map(Timestamp),
            scheduled: 0,
            appended_total: reply.count()?,
            removed_total: reply.count()?,
            dedup_keys: reply.count()?,
            groups: Vec::new(),
        };
        let mut list = reply.list()?;
        while !list.is_empty() {
            let mut told = list.list()?;
            stats.groups.push(GroupStats {
                group: codec::group(&told.text()?)?,
                waiting: told.count()?,
                leased: told.count()?,
                retrying: told.count()?,
                oldest_unsettled: told.maybe()?.map(Timestamp),
                acked_total: told.count()?,
                dead_lettered_total: told.count()?,
                expired_total: told.count()?,
                delivered_total: told.count()?,
            });
        }
        stats.groups.sort_by_key(|figures| figures.group);
        Ok(stats)
    }
}

/// A sequence of the one lane; beyond all of them for any other lane.
fn sequence(offset: Offset) -> i64 {
    if offset.lane() == 0 { offset.sequence().cast_signed() } else { 1 << 48 }
}

fn page(topic: TopicId, mut reply: Reply) -> Result<Page, StoreError> {
    let more = reply.int()? == 1;
    let (mut nexts, mut reached) = (reply.list()?, Vec::new());
    while !nexts.is_empty() {
        let (partition, next) = (nexts.small()?, nexts.count()?);
        reached.push((partition, codec::position(topic, partition, next)?.offset));
    }
    let (mut list, mut messages) = (reply.list()?, Vec::new());
    while !list.is_empty() {
        let mut told = list.list()?;
        let position = codec::position(topic, told.small()?, told.count()?)?;
        messages.push((position, codec::message(&told.text()?, &told.bytes()?)?));
    }
    Ok(Page { messages, reached: ReadCursor(reached), more })
}

fn status(mut told: Reply) -> Result<GroupStatus, StoreError> {
    let (group, word) = (codec::group(&told.text()?)?, told.text()?);
    let (number, at): (u32, i64) = (told.small()?, told.maybe()?.unwrap_or(0));
    let failures = codec::failures(told.list()?)?;
    let state = match word.as_str() {
        "W" => DeliveryState::Waiting,
        "L" => DeliveryState::Leased { attempt: number, deadline: Timestamp(at) },
        "R" => DeliveryState::Retrying { attempts: number, at: Timestamp(at) },
        "S" => return Ok(GroupStatus { group, state: DeliveryState::Settled, failures: Failures::default() }),
        other => return Err(strange("get", &format!("the state '{other}'"))),
    };
    Ok(GroupStatus { group, state, failures })
}
