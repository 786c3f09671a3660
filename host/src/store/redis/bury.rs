//! Dead letters: the copy that a broker makes of a message, since only brokers can read it, and the script that puts it in its place.
//! Invariant: the message waits to be buried or its copy is in its topic, never both; of two brokers that bury a message one does.

use bytes::Bytes;

use super::script::{Args, BURY, Reply, TICK, strange};
use super::{Shared, codec};
use crate::clock::Timestamp;
use crate::message::{DeadLetterFacts, FailedAttempt, Failure, Failures, GroupId, MessageId, Position, TopicId};
use crate::store::StoreError;
use crate::store::embedded::ops::Body;
use crate::store::embedded::state::settle::{EXPIRED, LEASE_EXPIRED, dead_letter_id};

/// A message that is to be a dead letter.
pub(super) struct Doomed {
    topic: TopicId,
    group: GroupId,
    position: Position,
    place: String,
    /// What holds it: whoever buries it must still find it held so.
    record: String,
    dead: TopicId,
    original: MessageId,
    copy: Body,
}

impl Doomed {
    /// As `settle` and `tick` tell of it. Without a failure that is known it is the one remembered, or time has passed: that of a
    /// lease, or its own.
    pub(super) fn read(mut told: Reply, failure: Option<Failure>, now: Timestamp) -> Result<Doomed, StoreError> {
        let (topic, group) = (codec::topic(&told.text()?)?, codec::group(&told.text()?)?);
        let (place, record, dead) = (told.text()?, told.text()?, codec::topic(&told.text()?)?);
        let (with_payload, name, mut failures) = (told.int()? == 1, told.text()?, codec::failures(told.list()?)?);
        let original = codec::message(&told.text()?, &told.bytes()?)?;
        let wrong = || strange("a lease", &format!("'{record}' at '{place}'"));
        let (partition, seq) = place.split_once(':').ok_or_else(wrong)?;
        let (partition, seq) = (partition.parse().map_err(|_| wrong())?, seq.parse().map_err(|_| wrong())?);
        let position = codec::position(topic, partition, seq)?;
        let mut words = record.split(' ');
        let first = words.next().unwrap_or_default();
        let attempts = if ["X", "F"].contains(&first) { words.next().unwrap_or_default() } else { first };
        let attempts: u32 = attempts.parse().map_err(|_| wrong())?;
        let remembered = || failures.as_slice().last().map(|failed| failed.failure.clone());
        let failure = match first {
            "X" => expired(),
            "F" => failure.or_else(remembered).unwrap_or_default(),
            _ => {
                failures.push(FailedAttempt { attempt: attempts, at: now, failure: lease_expired() });
                lease_expired()
            }
        };
        let mut copy = original.clone();
        copy.id = dead_letter_id(now, dead, original.id, group);
        let facts = facts(((&original, position), (group, name)), (attempts, failures), failure, now);
        copy.meta.dead_letter = Some(Box::new(facts));
        if !with_payload {
            copy.payload = Bytes::new();
        }
        let copy = Body::new(&copy, None, false);
        Ok(Doomed { topic, group, position, place, record, dead, original: original.id, copy })
    }
}

fn facts(
    (origin, (group, name)): ((&crate::message::Message, Position), (GroupId, String)),
    tried: (u32, Failures),
    last: Failure,
    now: Timestamp,
) -> DeadLetterFacts {
    DeadLetterFacts::failed(origin, (group, name.into()), tried, last, now)
}

fn lease_expired() -> Failure {
    let detail = "the last delivery was not settled before its deadline";
    Failure { reason: LEASE_EXPIRED.into(), detail: detail.into(), ..Failure::default() }
}

fn expired() -> Failure {
    let detail = "it was not delivered before its expiresAt";
    Failure { reason: EXPIRED.into(), detail: detail.into(), ..Failure::default() }
}

impl Shared {
    /// Buries what is to be; what is not buried now is told again by a look at what is over.
    pub(super) async fn bury(&self, all: &[&Doomed], now: Timestamp) -> Result<(), StoreError> {
        if all.is_empty() {
            return Ok(());
        }
        let mut args = Args::new().text(self.time()).int(all.len());
        for doomed in all {
            args = args
                .text(doomed.topic.0.to_string())
                .text(doomed.group.0.to_string())
                .text(&*doomed.place)
                .text(&*doomed.record)
                .text(doomed.dead.0.to_string())
                .text(codec::head(&doomed.copy, Some(doomed.original)))
                .bytes(codec::bytes(&doomed.copy))
                .int(now.0);
        }
        let mut reply = self.run(&BURY, &args).await?;
        let (mut list, woken) = (reply.list()?, reply.list()?);
        for doomed in all {
            if list.int()? == 0 {
                tracing::debug!(position = ?doomed.position, at = now.0, "somebody was quicker than its end");
            }
        }
        self.wake_all(woken)
    }

    /// Ends what is over: of one group, or of all.
    pub(super) async fn end_overdue(&self, only: &str) -> Result<Ended, StoreError> {
        let waited = if only.is_empty() { self.known.lock().waited() } else { Vec::new() };
        let may_bury = !self.server.is_out_of_memory();
        let mut args = Args::new().text(self.time()).text(only).flag(may_bury).int(waited.len());
        for topic in &waited {
            args = args.text(topic.0.to_string());
        }
        let mut reply = self.run(&TICK, &args).await?;
        let (more, next) = (reply.int()? == 1, reply.maybe()?.map(Timestamp));
        let (born, version, mut list) = (reply.text()?, reply.int()?, reply.list()?);
        self.wake_all(reply.list()?)?;
        let (mut heard, now) = (reply.list()?, Timestamp(reply.int()?));
        let mut news = Vec::with_capacity(waited.len());
        for topic in waited {
            news.push((topic, heard.text()?));
        }
        let mut doomed = Vec::new();
        while !list.is_empty() {
            match Doomed::read(list.list()?, None, now) {
                Ok(one) => doomed.push(one),
                // It holds up nothing else that is due.
                Err(error) => {
                    tracing::error!(%error, "a message that is to be a dead letter cannot be read; it stays where it is")
                }
            }
        }
        let all: Vec<&Doomed> = doomed.iter().collect();
        match self.bury(&all, now).await {
            Ok(()) => {}
            // Copies take memory, and there is none: they are made when there is. All else goes on.
            Err(StoreError::Busy(why)) => {
                tracing::debug!(why, "dead letters wait for memory");
            }
            Err(error) => return Err(error),
        }
        Ok(Ended { more, next, born, version, news, now })
    }
}

/// What a look at what is over has brought.
pub(super) struct Ended {
    /// Whether there is more to do now.
    pub more: bool,
    /// When there is something to do.
    pub next: Option<Timestamp>,
    /// What Redis was born as, and its settings' version.
    pub born: String,
    pub version: i64,
    /// By topic that somebody waits for, a word that is another one when something has become leasable.
    pub news: Vec<(TopicId, String)>,
    /// Redis's time.
    pub now: Timestamp,
}
