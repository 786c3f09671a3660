//! The store's connection to Redis. Invariant: no call waits longer than its patience, after a failure none waits until the server has
//! answered again, and each failure says whether something may have been stored. Knows no script's meaning.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::redis::{ErrorKind, FromRedisValue, RedisError, ServerErrorKind, Value, cmd};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::script::{Args, Reply, Script};
use crate::entropy::Entropy;
use crate::redis::link::{Address, Link, Told, is_of_a_script};
use crate::redis::look::{field, inspect};
use crate::redis::{Pause, Trouble};
use crate::store::StoreError;
use crate::telemetry::Stopwatch;

/// How often a server is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a look may take.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// How long a call may take; the connection itself gives up before ([`Address::patience`]).
const CALL_MAX: Duration = Duration::from_secs(6);
/// Who has answered for so long begins anew.
const STEADY: Duration = Duration::from_secs(10);

/// What the server's answer to a publish is worth, from the most to the least.
const DURABILITIES: [&str; 5] = ["redis-always", "redis-everysec", "redis-no", "redis-none", "redis"];
/// It has not said.
const UNKNOWN: u8 = 4;

/// See the module.
pub(super) struct Server {
    address: Address,
    /// The one key that scripts are given.
    key: String,
    link: ArcSwapOption<Link>,
    doubt: Notify,
    fault: Mutex<Option<String>>,
    is_full: AtomicBool,
    durability: AtomicU8,
    entropy: Entropy,
    /// Told whether it answers.
    watcher: OnceLock<Box<dyn Fn(bool) + Send + Sync>>,
}

impl Server {
    pub(super) fn new(address: Address, key: String, entropy: Entropy) -> Arc<Server> {
        Arc::new(Server {
            address,
            key,
            link: ArcSwapOption::empty(),
            doubt: Notify::new(),
            fault: Mutex::new(Some("it was not reached yet".to_owned())),
            is_full: AtomicBool::new(false),
            durability: AtomicU8::new(UNKNOWN),
            entropy,
            watcher: OnceLock::new(),
        })
    }

    /// Has `tell` called when it answers, and when it does not any more. Once.
    pub(super) fn watch(&self, tell: impl Fn(bool) + Send + Sync + 'static) {
        tell(self.link.load().is_some());
        let _first = self.watcher.set(Box::new(tell));
    }

    /// See [`DURABILITIES`].
    pub(super) fn durability(&self) -> &'static str {
        DURABILITIES.get(usize::from(self.durability.load(Ordering::Relaxed))).copied().unwrap_or("redis")
    }

    /// Where it is, without its password.
    pub(super) fn place(&self) -> String {
        self.address.url.to_string()
    }

    /// Whether it takes only what gives memory back.
    pub(super) fn is_out_of_memory(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Why it takes no writes now.
    pub(super) fn fault(&self) -> Option<String> {
        if self.is_full.load(Ordering::Relaxed) {
            return Some(full());
        }
        self.fault.lock().clone()
    }

    /// Connects for the first time.
    ///
    /// # Errors
    /// `Refused` says what to set; `Away` is for a while.
    pub(super) async fn begin(self: &Arc<Self>) -> Result<(), Trouble> {
        let link = self.connect().await.inspect_err(|trouble| self.give_up(trouble.why()))?;
        self.take(link);
        Ok(())
    }

    /// Keeps the connection, and makes another one when it fails, as long as it is polled.
    pub(super) async fn keep(self: Arc<Self>) {
        let (mut pause, mut told) = (Pause::new(&self.entropy), self.link.load().is_none());
        loop {
            let link = match self.link.load_full() {
                Some(link) => link,
                None => match self.connect().await {
                    Ok(link) => self.take(link),
                    Err(trouble) => {
                        self.tell(&trouble, &mut told);
                        pause.wait().await;
                        continue;
                    }
                },
            };
            if std::mem::take(&mut told) {
                tracing::info!("Redis answers: topics in it are served");
            }
            let steady = Stopwatch::start();
            let trouble = loop {
                let _doubted = tokio::time::timeout(LOOK_EVERY, self.doubt.notified()).await;
                if let Err(trouble) = self.look(&link).await {
                    break trouble;
                }
                // It answers after all.
                self.take_again(&link);
            };
            if steady.elapsed() >= STEADY {
                pause.begin_anew();
            }
            self.tell(&trouble, &mut told);
            pause.wait().await;
        }
    }

    fn tell(&self, trouble: &Trouble, told: &mut bool) {
        self.give_up(trouble.why());
        if std::mem::replace(told, true) {
            tracing::debug!(why = trouble.why(), "Redis does not serve its topics yet");
        } else {
            tracing::error!(redis = %self.address.url, why = trouble.why(), "Redis does not serve; topics in it wait until it does");
        }
    }

    async fn connect(self: &Arc<Self>) -> Result<Link, Trouble> {
        let hearer = Arc::downgrade(self);
        let told: Told = Arc::new(move |info| {
            if info.kind == ::redis::PushKind::Disconnection
                && let Some(hearer) = hearer.upgrade()
            {
                hearer.doubt.notify_one();
            }
        });
        let link = Link::connect(&self.address, &told).await?;
        self.look(&link).await?;
        self.begin_anew(&link).await.map_err(|error| link.trouble(&error))?;
        Ok(link)
    }

    fn take(&self, link: Link) -> Arc<Link> {
        let link = Arc::new(link);
        self.take_again(&link);
        link
    }

    fn take_again(&self, link: &Arc<Link>) {
        *self.fault.lock() = None;
        self.link.store(Some(Arc::clone(link)));
        if let Some(tell) = self.watcher.get() {
            tell(true);
        }
    }

    fn give_up(&self, why: &str) {
        *self.fault.lock() = Some(why.to_owned());
        self.link.store(None);
        if let Some(tell) = self.watcher.get() {
            tell(false);
        }
    }

    async fn look(&self, link: &Link) -> Result<(), Trouble> {
        let silent = |_| Trouble::Away("it does not answer in time".to_owned());
        tokio::time::timeout(LOOK_MAX, self.look_at(link)).await.map_err(silent)?
    }

    async fn look_at(&self, link: &Link) -> Result<(), Trouble> {
        let told = inspect(link).await?;
        let fsync = match link.ask::<Value>(cmd("CONFIG").arg("GET").arg("appendfsync")).await {
            Ok(value) => word_of(&value),
            // Where others run the server there may be no such command.
            Err(_) => None,
        };
        // Of several servers the worst counts.
        let worst = told.iter().map(|info| durability(field(info, "aof_enabled"), fsync.as_deref())).max();
        self.durability.store(worst.unwrap_or(UNKNOWN), Ordering::Relaxed);
        // One that follows another, or can't save, says so to a write alone.
        let mut write = cmd("SET");
        write.arg(format!("{}look", self.key)).arg(1).arg("PX").arg(60_000);
        let written = link.ask::<()>(&write).await;
        let is_full = written.as_ref().is_err_and(|error| error.code() == Some("OOM"));
        self.is_full(is_full);
        // It serves who consumes, and so gets room again.
        if is_full { Ok(()) } else { written.map_err(|error| link.trouble(&error)) }
    }

    /// Has it write its append-only file anew; one that cannot at this time is asked again.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) async fn rewrite(&self) -> Result<(), String> {
        let link = self.link.load_full().ok_or("it does not answer")?;
        // Of a Cluster each: it names no key, and would go to any.
        let Err(error) = link.ask_each(&cmd("BGREWRITEAOF")).await else { return Ok(()) };
        if error.code() != Some("NOPERM") && !error.to_string().contains("unknown command") {
            let again = link.ask::<()>(cmd("HSETNX").arg(&self.key).arg("rewrite").arg(1)).await;
            again.map_err(|error| error.to_string())?;
        }
        Err(error.to_string())
    }

    /// Runs a script.
    ///
    /// # Errors
    /// `OutcomeUnknown` when one that writes was sent and not answered; otherwise nothing was stored.
    pub(super) async fn run(&self, script: &'static Script, args: &Args) -> Result<Reply, StoreError> {
        let Some(link) = self.link.load_full() else {
            let why = self.fault.lock().clone().unwrap_or_default();
            return Err(StoreError::Unavailable(format!("Redis does not serve: {why}")));
        };
        let answer = tokio::time::timeout(CALL_MAX, self.ask(&link, script, args)).await;
        match answer {
            Ok(Ok(value)) => Reply::of(script, value),
            Ok(Err(error)) => Err(self.failed(script, &error)),
            Err(_) => {
                self.lose("it does not answer in time");
                Err(lost(script, "it does not answer in time"))
            }
        }
    }

    async fn ask(&self, link: &Link, script: &'static Script, args: &Args) -> Result<Value, RedisError> {
        if script.known(&self.key, args).is_none() {
            self.begin_anew(link).await?;
            if let Ok(digest) = link.ask::<String>(&script.load()).await {
                script.is_known_as(digest);
            }
        }
        if let Some(call) = script.known(&self.key, args) {
            match asked(link.ask::<Value>(&call).await) {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {}
                other => return other,
            }
        }
        // It has lost its scripts, or keeps none.
        self.begin_anew(link).await?;
        asked(link.ask::<Value>(&script.whole(&self.key, args)).await)
    }

    /// A server may be another one than before, whose last save was in the same second: its next script looks.
    async fn begin_anew(&self, link: &Link) -> Result<(), RedisError> {
        link.ask::<()>(cmd("HDEL").arg(&self.key).arg("saved")).await
    }

    /// Says it once.
    fn is_full(&self, is_full: bool) {
        if is_full == self.is_full.swap(is_full, Ordering::Relaxed) {
            return;
        }
        match is_full {
            true => tracing::error!(redis = self.place(), "{}", full()),
            false => tracing::info!("Redis has memory again, and takes publishes"),
        }
    }

    /// Nobody waits for it before it has answered again.
    fn lose(&self, why: &str) {
        self.give_up(why);
        self.doubt.notify_one();
    }

    fn failed(&self, script: &'static Script, error: &RedisError) -> StoreError {
        let why = error.to_string();
        match (error.kind(), error.code()) {
            (_, Some("OOM")) => {
                self.is_full(true);
                StoreError::Busy(full())
            }
            // A script that failed in the midst is a fault of ours, or its Cluster moves the slot.
            (kind, _) if kind == ErrorKind::Server(ServerErrorKind::ResponseError) || is_of_a_script(error) => {
                tracing::error!(script = script.name, why, "a script of the store failed");
                if script.writes {
                    StoreError::OutcomeUnknown(format!("Redis: {why}"))
                } else {
                    StoreError::Unavailable(format!("Redis: {why}"))
                }
            }
            (ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::ClusterConnectionNotFound, _) => {
                // It says that it did not (it loads, follows another server, moves a slot, or cannot save), or was not asked.
                self.lose(&why);
                StoreError::Unavailable(format!("Redis: {why}"))
            }
            _ => {
                self.lose(&why);
                lost(script, &why)
            }
        }
    }
}

/// An error that a server sends as an answer is one.
fn asked(answer: Result<Value, RedisError>) -> Result<Value, RedisError> {
    match answer? {
        Value::ServerError(error) => Err(error.into()),
        value => Ok(value),
    }
}

fn lost(script: &'static Script, why: &str) -> StoreError {
    if script.writes {
        StoreError::OutcomeUnknown(format!("Redis: {why}"))
    } else {
        StoreError::Unavailable(format!("Redis: {why}"))
    }
}

fn full() -> String {
    "the memory of Redis is full: it takes nothing more until messages are consumed and out of retention; raise its maxmemory, or set \
     retentionBytes on topics in it"
        .to_owned()
}

/// The value that a server has for one setting.
fn word_of(value: &Value) -> Option<String> {
    match value {
        Value::Map(pairs) => pairs.first().and_then(|(_, value)| String::from_redis_value_ref(value).ok()),
        Value::Array(values) => values.get(1).and_then(|value| String::from_redis_value_ref(value).ok()),
        _ => None,
    }
}

/// Which of [`DURABILITIES`] it is.
fn durability(aof_enabled: &str, fsync: Option<&str>) -> u8 {
    match (aof_enabled, fsync) {
        ("0", _) => 3,
        (_, Some("always")) => 0,
        (_, Some("everysec")) => 1,
        (_, Some("no")) => 2,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_is_worth_follows_from_what_the_server_says() {
        let of = |aof, fsync| DURABILITIES[usize::from(durability(aof, fsync))];
        assert_eq!(of("1", Some("always")), "redis-always");
        assert_eq!(of("1", Some("everysec")), "redis-everysec");
        assert_eq!(of("1", Some("no")), "redis-no");
        assert_eq!(of("0", Some("always")), "redis-none");
        assert_eq!(of("1", None), "redis", "CONFIG is not allowed everywhere");
    }
}
