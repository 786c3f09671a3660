//! Granting and settling. Invariant: a grant, and the end of one, are each one script; what is to be a dead letter is
//! nobody's from then on, and its copy follows (`bury.rs`). Decides nothing about backoff.

use std::sync::atomic::Ordering;

use super::bury::Doomed;
use super::script::{Args, ENDED, LEASE, Reply, SETTLE, strange};
use super::{Shared, codec};
use crate::clock::Timestamp;
use crate::message::{FailedAttempt, Failure};
use crate::store::{
    Lease, LeaseRef, LeaseRequest, Leased, Mode, Receipt, Settle, SettleRefused, Settled, Settlement, StoreError,
};

/// Settlements in one script.
const SETTLES_MAX: usize = 1000;

type SettleResult = Result<Settled, SettleRefused>;

/// What a script made of a settlement.
enum Told {
    Settled(SettleResult),
    /// Its message is to be a dead letter.
    Bury(Box<Doomed>),
}

impl Shared {
    /// See [`crate::store::MessageStore::lease`].
    pub(super) async fn lease(&self, request: &LeaseRequest) -> Result<Leased, StoreError> {
        if request.ordered {
            return Err(StoreError::Unsupported("leases of a topic in Redis are in no order"));
        }
        if request.mode == Mode::AtMostOnce {
            return Err(StoreError::Unsupported("messages in Redis are delivered at least once"));
        }
        self.check_open()?;
        let epoch = self.opened().await?;
        // As many numbers as it may need; what is left of them is never used.
        let grant = self.next_grant.fetch_add(request.max as u64, Ordering::Relaxed);
        let args = Args::new()
            .text(request.topic.0.to_string())
            .text(request.group.0.to_string())
            .text(self.time())
            .int(request.max)
            .int(request.bytes_max)
            .int(request.duration.as_millis())
            .text(epoch.to_string())
            .int(grant)
            .text(&*request.holder);
        let mut reply = self.call(request.topic, &LEASE, &args).await?;
        let (more, buries, deadline) = (reply.int()? == 1, reply.int()? > 0, Timestamp(reply.int()?));
        let (mut list, mut leases) = (reply.list()?, Vec::new());
        while !list.is_empty() {
            leases.push(granted(request, epoch, deadline, list.list()?)?);
        }
        self.known.lock().gave(request.topic, leases.iter().map(|lease| lease.position.offset.sequence()));
        if buries {
            // A tick does it otherwise.
            let only = format!("{}:{}", request.topic.0, request.group.0);
            if let Err(error) = self.end_overdue(&only).await {
                tracing::debug!(%error, "what has expired is buried later");
            }
        }
        Ok(Leased { leases, more })
    }

    /// See [`crate::store::MessageStore::settle`].
    pub(super) async fn settle(&self, settles: &[Settle]) -> Result<Vec<SettleResult>, StoreError> {
        self.check_open()?;
        self.opened().await?;
        let mut results = Vec::with_capacity(settles.len());
        for some in settles.chunks(SETTLES_MAX) {
            match self.settle_some(some).await {
                Ok(done) => results.extend(done),
                Err(error) if results.is_empty() => return Err(error),
                Err(error) => return Err(StoreError::OutcomeUnknown(error.to_string())),
            }
        }
        Ok(results)
    }

    /// See [`crate::store::MessageStore::ended`].
    pub(super) async fn ended(&self, receipts: &[Receipt]) -> Result<Vec<Receipt>, StoreError> {
        self.check_open()?;
        self.opened().await?;
        let mut ended = Vec::new();
        for some in receipts.chunks(SETTLES_MAX) {
            let args = some.iter().fold(Args::new().text(self.time()).int(some.len()), |args, receipt| {
                args.text(receipt.position.topic.0.to_string())
                    .text(receipt.group.0.to_string())
                    .text(format!("{}:{}", receipt.position.partition, receipt.position.offset.0))
                    .text(receipt.epoch.to_string())
                    .text(receipt.grant.to_string())
            });
            let mut list = self.run(&ENDED, &args).await?.list()?;
            for receipt in some {
                if list.int()? == 1 {
                    ended.push(*receipt);
                }
            }
        }
        Ok(ended)
    }

    async fn settle_some(&self, settles: &[Settle]) -> Result<Vec<SettleResult>, StoreError> {
        let mut args = Args::new().text(self.time()).int(settles.len());
        for settle in settles {
            args = settle_args(args, settle, self.clock.now())?;
        }
        let mut reply = self.run(&SETTLE, &args).await?;
        let (mut list, woken, now) = (reply.list()?, reply.list()?, Timestamp(reply.int()?));
        let mut told = Vec::with_capacity(settles.len());
        for settle in settles {
            told.push(told_of(list.list()?, settle, now)?);
        }
        self.wake_all(woken)?;
        let doomed: Vec<&Doomed> =
            told.iter().filter_map(|told| if let Told::Bury(doomed) = told { Some(&**doomed) } else { None }).collect();
        // All is decided: nobody gets these again, and no answer is doubted for the want of their copies.
        if let Err(error) = self.bury(&doomed, now).await {
            tracing::warn!(%error, count = doomed.len(), "dead letters wait for their copies; they are made as soon as that can be done");
        }
        let result = |told| match told {
            Told::Settled(result) => result,
            Told::Bury(_) => Ok(Settled::DeadLettered),
        };
        Ok(told.into_iter().map(result).collect())
    }
}

fn granted(request: &LeaseRequest, epoch: i64, deadline: Timestamp, mut told: Reply) -> Result<Lease, StoreError> {
    let (partition, seq) = (told.small()?, told.count()?);
    let position = codec::position(request.topic, partition, seq)?;
    let (attempt, grant): (u32, u64) = (told.small()?, told.count()?);
    let message = codec::message(&told.text()?, &told.bytes()?)?;
    let epoch = epoch.cast_unsigned();
    let receipt = Receipt { position, group: request.group, epoch, grant, attempt };
    Ok(Lease { position, message, attempt, deadline, receipt })
}

fn settle_args(args: Args, settle: &Settle, now: Timestamp) -> Result<Args, StoreError> {
    let args = match &settle.lease {
        LeaseRef::Receipt { receipt, message } => args
            .text("R")
            .text(receipt.position.topic.0.to_string())
            .text(receipt.group.0.to_string())
            .text(receipt.position.partition.to_string())
            // As a lane other than the only one it names nothing.
            .text(receipt.position.offset.0.to_string())
            .text(receipt.epoch.to_string())
            .text(receipt.grant.to_string())
            .text(message.map(|id| id.0.simple().to_string()).unwrap_or_default()),
        LeaseRef::Holder { topic, group, message, holder } => args
            .text("H")
            .text(topic.0.to_string())
            .text(group.0.to_string())
            .text(message.0.simple().to_string())
            .text(&**holder),
    };
    // Its number is what the script knows of the lease.
    let failed = |failure: &Failure| codec::failure(FailedAttempt { attempt: 0, at: now, failure: failure.clone() });
    Ok(match &settle.settlement {
        Settlement::Ack => args.text("A").int(0).text(""),
        Settlement::Release => args.text("L").int(0).text(""),
        Settlement::Extend { duration } => args.text("E").int(duration.as_millis()).text(""),
        Settlement::DeadLetter { failure } => args.text("D").int(0).bytes(failed(failure)?),
        Settlement::Retry { at, failure } => args.text("T").int(at.0).bytes(failed(failure)?),
    })
}

fn told_of(mut told: Reply, settle: &Settle, now: Timestamp) -> Result<Told, StoreError> {
    let word = told.text()?;
    Ok(Told::Settled(match word.as_str() {
        "acked" => Ok(Settled::Acked),
        "released" => Ok(Settled::Released),
        "dead" => Ok(Settled::DeadLettered),
        "retrying" => Ok(Settled::Retrying { at: Timestamp(told.int()?) }),
        "extended" => Ok(Settled::Extended { until: Timestamp(told.int()?) }),
        "expired" => Err(SettleRefused::LeaseExpired),
        "wrong" => Err(SettleRefused::WrongMessage),
        "not_found" => Err(SettleRefused::NotFound),
        "bury" => {
            let failure = match &settle.settlement {
                Settlement::Retry { failure, .. } | Settlement::DeadLetter { failure } => failure.clone(),
                _ => Failure::default(),
            };
            return Ok(match Doomed::read(told, Some(failure), now) {
                Ok(doomed) => Told::Bury(Box::new(doomed)),
                // It is nobody's all the same, and the look at what is over tells of it.
                Err(error) => {
                    tracing::error!(%error, "a message that is a dead letter cannot be read: its copy cannot be made");
                    Told::Settled(Ok(Settled::DeadLettered))
                }
            });
        }
        other => return Err(strange("settle", &format!("the word '{other}'"))),
    }))
}
