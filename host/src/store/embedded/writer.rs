//! Group commit: takes what waits, plans it, writes and syncs one frame, applies it, answers. Invariant: nothing is applied,
//! seen or answered before its frame is synced, and there is one unsynced frame at a time. [`Writer::turn`] needs no
//! thread: a simulator drives it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::core::{Command, Core, Reply};
use super::journal::{Journal, JournalError, Purpose};
use super::ops::{Body, Op};
use super::recovery::OpenError;
use super::state::State;
use super::state::append::Plan;
use super::state::control::Control;
use super::state::{Applying, settle::Live};
use crate::clock::Timestamp;
use crate::store::StoreError;

/// Notes that are written without waiting for a command: bounds their memory when consumers only lease.
const NOTES_MAX: usize = 4096;
/// How long the writer sleeps when nobody calls it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the writer sleeps while appends wait for segments to be written; a command wakes it.
const FLUSH_PATIENCE: Duration = Duration::from_millis(5);
/// How often they wait that long before they are refused: five seconds.
const FLUSH_WAITS: usize = 1000;
/// Appends held back at most: their memory is no longer counted by the queue.
const HELD_MAX: usize = 256;

/// Sends the planned answer, or the error that befell the frame.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Whether memory has room for more messages.
enum Room {
    Some,
    /// Once segments are written.
    Later,
    /// Not until something is mended.
    Never(StoreError),
}

/// See the module.
pub struct Writer {
    core: Arc<Core>,
    journal: Journal,
    head: Vec<u8>,
    /// Appends that wait until memory has room for them.
    held: Vec<Command>,
    /// How often they have waited.
    waits: usize,
}

impl Writer {
    /// A writer that goes on with `journal`.
    #[must_use]
    pub fn new(core: Arc<Core>, journal: Journal) -> Writer {
        Writer { core, journal, head: Vec::new(), held: Vec::new(), waits: 0 }
    }

    /// Makes this opening of the store a new epoch, so that receipts of earlier ones are refused.
    ///
    /// # Errors
    /// `Io` if it cannot be written.
    pub fn begin_epoch(&mut self) -> Result<(), OpenError> {
        let epoch = self.core.state.lock().epoch + 1;
        let ops = vec![Op::Epoch(epoch)];
        let sequence = self.write(Purpose::Upkeep, &ops, &[]).map_err(|error| OpenError::Io {
            what: "beginning a new epoch in the journal".to_owned(),
            source: std::io::Error::other(error),
        })?;
        apply(&mut self.core.state.lock(), ops, Vec::new(), self.core.clock.now(), sequence);
        // Opened on a full disk, it serves what is stored; whether it takes messages, the next look says.
        drop(self.make_room());
        Ok(())
    }

    /// Runs until the queue is closed and empty.
    pub fn run(mut self) {
        let core = Arc::clone(&self.core);
        let _ending = Ending(&core);
        while self.turn(if self.held.is_empty() { PATIENCE } else { FLUSH_PATIENCE }) {}
        self.finish();
    }

    /// Carries out what waits, or what comes within `patience`; false once the queue is closed and empty.
    pub fn turn(&mut self, patience: Duration) -> bool {
        let alone = |taken: &[Command], next: &Command| {
            !matches!(next, Command::Control(..)) && !matches!(taken.first(), Some(Command::Control(..)))
        };
        let taken = self.core.commands.take(self.core.limits.frame_bytes, patience, alone);
        let Some(commands) = taken else { return false };
        self.waits = if self.held.is_empty() { 0 } else { self.waits + usize::from(commands.is_empty()) };
        if commands.is_empty() && self.held.is_empty() {
            self.idle();
            return true;
        }
        let commands = self.admit(commands);
        if !commands.is_empty() {
            self.commit(commands);
        }
        true
    }

    /// Whether appends wait for room.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// The last frame.
    pub fn finish(&mut self) {
        // Nobody waits for room any more: what did not find it is refused.
        self.waits = FLUSH_WAITS;
        self.admit(Vec::new());
        // What was granted is worth remembering even when nobody settled it.
        self.commit(Vec::new());
    }

    /// When nobody calls: many grants are written, and after a failed write it is tried whether the disk is back.
    fn idle(&mut self) {
        let (notes, epoch) = {
            let state = self.core.state.lock();
            (state.notes.len(), state.epoch)
        };
        if notes >= NOTES_MAX {
            self.commit(Vec::new());
        } else if self.journal.is_full() {
            if self.make_room().is_err() {
                self.want_room();
            }
        } else if self.core.write_fault.lock().is_some() {
            // An epoch that was begun before: a frame that changes nothing.
            let ops = vec![Op::Epoch(epoch)];
            if let Ok(sequence) = self.write(Purpose::Upkeep, &ops, &[]) {
                apply(&mut self.core.state.lock(), ops, Vec::new(), self.core.clock.now(), sequence);
                self.note_health(None);
            }
        }
    }

    /// Lets appends pass if memory has room for them, and those first that were held back before; otherwise holds them
    /// back, up to a bound and a time, while all else passes.
    fn admit(&mut self, commands: Vec<Command>) -> Vec<Command> {
        let appends = commands.iter().any(|command| matches!(command, Command::Append(..)));
        if !appends && self.held.is_empty() {
            return commands;
        }
        let fault = match self.room() {
            Room::Some => {
                // One by one: each was weighed against the frame's bound when it was taken.
                for command in std::mem::take(&mut self.held) {
                    self.commit(vec![command]);
                }
                return commands;
            }
            Room::Never(fault) => Some(fault),
            Room::Later if self.waits >= FLUSH_WAITS || self.held.len() + commands.len() > HELD_MAX => {
                Some(StoreError::Busy("segments are not written as fast as messages come".to_owned()))
            }
            Room::Later => None,
        };
        let (new, pass): (Vec<_>, Vec<_>) =
            commands.into_iter().partition(|command| matches!(command, Command::Append(..)));
        self.held.extend(new);
        if let Some(fault) = fault {
            for command in self.held.drain(..) {
                if let Command::Append(_, reply) = command {
                    answer(reply, Err(fault.clone()));
                }
            }
        }
        pass
    }

    fn room(&mut self) -> Room {
        if let Err(fault) = self.make_room() {
            return Room::Never(fault);
        }
        if self.core.journal_bytes.load(Ordering::Relaxed) > self.core.limits.journal_bytes_max {
            let fault = "the journal has no room left, because checkpoints fail";
            return Room::Never(StoreError::Unavailable(fault.to_owned()));
        }
        if self.core.state.lock().unflushed_bytes <= self.core.limits.unflushed_bytes_max {
            return Room::Some;
        }
        if let Some(fault) = self.core.maintenance_fault.lock().clone() {
            return Room::Never(StoreError::Unavailable(fault));
        }
        self.core.jobs.nudge();
        Room::Later
    }

    /// Where no journal file could be made, tries again: messages are refused while that fails, before they cost anything.
    fn make_room(&mut self) -> Result<(), StoreError> {
        let was_full = self.journal.is_full();
        let made = self.journal.make_room();
        self.core.journal_files.lock().extend(self.journal.take_made());
        let made = made.map_err(|error| StoreError::Unavailable(error.to_string()));
        if was_full {
            self.note_health(made.as_ref().err());
        }
        made
    }

    /// A checkpoint gives back what the journal takes itself.
    fn want_room(&self) {
        self.core.room_wanted.store(true, Ordering::Relaxed);
        self.core.jobs.nudge();
    }

    /// Carries out commands as one frame, and writes what was granted since the last.
    pub fn commit(&mut self, commands: Vec<Command>) {
        let core = Arc::clone(&self.core);
        let now = core.clock.now();
        let brings =
            |command: &Command| matches!(command, Command::Append(..) | Command::Control(Control::Take(..), _));
        let messages = commands.iter().any(brings);
        let purpose = if messages { Purpose::Messages } else { Purpose::Upkeep };
        let wants_notes = commands.is_empty() || commands.iter().any(|command| matches!(command, Command::Tick(..)));
        let mut plan = Plan::default();
        let mut answers = Vec::with_capacity(commands.len());
        let mut state = core.state.lock();
        for command in commands {
            answers.push(plan_command(&mut state, command, now, &mut plan));
        }
        let notes = if plan.is_empty() && !wants_notes { VecDeque::new() } else { std::mem::take(&mut state.notes) };
        drop(state);
        if plan.is_empty() && notes.is_empty() {
            // All that these answers rest on was synced before.
            answers.into_iter().for_each(|answer| answer(Ok(())));
            return;
        }
        let Plan { appends, bodies, settles, side, marked, .. } = plan;
        let noted = notes.len();
        let ops: Vec<Op> = notes.into_iter().chain(appends).chain(settles).chain(side).collect();
        let written = self.write(purpose, &ops, &bodies);
        let mut state = core.state.lock();
        let outcome = match written {
            Ok(sequence) => {
                apply(&mut state, ops, bodies, now, sequence);
                Ok(())
            }
            Err(error) => {
                give_back(&mut state, ops, noted, &marked);
                Err(error)
            }
        };
        drop(state);
        self.note_health(outcome.as_ref().err());
        answers.into_iter().for_each(|answer| answer(outcome.clone()));
    }

    fn write(&mut self, purpose: Purpose, ops: &[Op], bodies: &[Body]) -> Result<u64, StoreError> {
        let mut head = std::mem::take(&mut self.head);
        head.clear();
        head = postcard::to_extend(ops, head).expect("ops have no type that postcard refuses");
        let parts = bodies.iter().flat_map(|body| [&body.meta[..], &body.payload[..]]);
        let bytes = head.len() as u64 + bodies.iter().map(|body| u64::from(body.head.body_len)).sum::<u64>();
        let was_full = self.journal.is_full();
        let result = self.journal.write(purpose, &head, parts);
        self.core.journal_files.lock().extend(self.journal.take_made());
        if self.journal.is_full() && !was_full {
            self.want_room();
        }
        if head.capacity() <= 4 << 20 {
            self.head = head;
        }
        let sequence = result.map_err(|error| match error {
            JournalError::NotWritten(reason) => StoreError::Unavailable(reason),
            JournalError::Unknown(reason) => StoreError::OutcomeUnknown(reason),
        })?;
        let before = self.core.journal_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes >= self.core.limits.checkpoint_bytes {
            self.core.jobs.nudge();
        }
        Ok(sequence)
    }

    /// Logs a fault when it comes, and that it is over, not each time that it is met.
    fn note_health(&self, error: Option<&StoreError>) {
        let now = error.map(ToString::to_string);
        let mut fault = self.core.write_fault.lock();
        if *fault == now || (now.is_none() && self.journal.is_full()) {
            // Full it is, though a settlement has found room.
            return;
        }
        match error {
            Some(error) => tracing::error!(%error, "the journal could not be written"),
            None => tracing::info!("the journal can be written again"),
        }
        *fault = now;
    }
}

/// Even a panic must not leave callers waiting for a thread that is gone.
struct Ending<'a>(&'a Core);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.commands.abandon();
        if std::thread::panicking() {
            *self.0.write_fault.lock() = Some("the store's writer ended".to_owned());
        }
    }
}

fn apply(state: &mut State, ops: Vec<Op>, bodies: Vec<Body>, now: Timestamp, sequence: u64) {
    let mut bodies = bodies.into_iter();
    for op in ops {
        state.apply(op, &mut bodies, now, Applying::Live);
    }
    state.applied = sequence;
    state.evict();
    state.wake_all();
}

/// Forgets a frame that was not written: its notes are for the next, its leases live on.
fn give_back(state: &mut State, ops: Vec<Op>, noted: usize, marked: &[Live]) {
    for op in ops.into_iter().take(noted).rev() {
        state.notes.push_front(op);
    }
    for live in marked {
        if let Ok(group) = state.group_mut(live.position.topic, live.group) {
            group.unmark(live.position.partition, live.position.offset, live.grant);
        }
    }
}

fn plan_command(state: &mut State, command: Command, now: Timestamp, plan: &mut Plan) -> Answer {
    match command {
        Command::Append(batch, reply) => later(reply, state.plan_append(batch, now, plan)),
        Command::Settle(items, reply) => {
            let results = items.into_iter().map(|item| state.plan_settle(item, now, plan)).collect();
            later(reply, Ok(results))
        }
        Command::Once(live, reply) => {
            let lived = state.plan_once(&live, now, plan);
            later(reply, Ok(lived))
        }
        Command::Discard(positions, reply) => later(reply, Ok(state.plan_discard(&positions, plan))),
        Command::Tick(due, dying, reply) => {
            for (topic, number) in due {
                state.plan_due(topic, number, now, plan);
            }
            for (place, message) in dying {
                state.plan_exhausted(place, message.as_ref(), now, plan);
            }
            later(reply, Ok(()))
        }
        Command::Control(control, reply) => later(reply, state.plan_control(control, now, plan)),
    }
}

fn later<T: Send + 'static>(reply: Reply<T>, planned: Result<T, StoreError>) -> Answer {
    Box::new(move |outcome| {
        // A refusal stands whatever became of the frame: nothing of it was in there.
        let result = match planned {
            Ok(value) => outcome.map(|()| value),
            refused => refused,
        };
        answer(reply, result);
    })
}

fn answer<T>(reply: Reply<T>, result: Result<T, StoreError>) {
    // Whoever asked may have stopped waiting; what was done stands.
    let _gone = reply.send(result);
}
