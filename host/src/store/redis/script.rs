//! The scripts that the store has Redis run, what they are given, and their answers. Invariant: a script is one unit: all of it is
//! done, or nothing. Decides nothing; what each does is at its head, in `lua/`.

use std::sync::{LazyLock, OnceLock};

use ::redis::{Cmd, Value, cmd};
use bytes::Bytes;

use crate::store::StoreError;

/// A script, and how it may be run.
pub(super) struct Script {
    /// What it is called in the log.
    pub name: &'static str,
    /// Whether it changes something: an answer that is lost leaves its outcome unknown then.
    pub writes: bool,
    text: LazyLock<String>,
    digest: OnceLock<String>,
}

macro_rules! scripts {
    ($($name:ident $file:literal $flags:literal $writes:literal;)+) => {$(
        pub(super) static $name: Script = Script {
            name: $file,
            writes: $writes,
            text: LazyLock::new(|| {
                concat!("#!lua", $flags, "\n", include_str!("lua/words.lua"), include_str!(concat!("lua/", $file, ".lua")))
                    .to_owned()
            }),
            digest: OnceLock::new(),
        };
    )+};
}

// What gives memory back, or is needed to, runs also when memory is full; the rest is refused then before it begins.
scripts! {
    APPEND "append" "" true;
    BURY "bury" "" true;
    CURSOR "cursor" " flags=allow-oom" true;
    DELETE_GROUP "delete_group" " flags=allow-oom" true;
    DELETE_TOPIC "delete_topic" " flags=allow-oom" true;
    DISCARD "discard" " flags=allow-oom" true;
    ENDED "ended" " flags=no-writes" false;
    EPOCHS "epochs" " flags=no-writes" false;
    ERASE "erase" " flags=allow-oom" true;
    FORGET_EPOCHS "forget_epochs" " flags=allow-oom" true;
    GET "get" " flags=no-writes" false;
    LEASE "lease" " flags=allow-oom" true;
    LOOKUP "lookup" " flags=no-writes" false;
    OPEN "open" " flags=allow-oom" true;
    ORPHANS "orphans" " flags=allow-oom" true;
    PUT_GROUP "put_group" "" true;
    PUT_TOPIC "put_topic" "" true;
    READ "read" " flags=no-writes" false;
    REGISTER "register" " flags=allow-oom" true;
    SETTINGS "settings" " flags=no-writes" false;
    SETTLE "settle" " flags=allow-oom" true;
    STATS "stats" " flags=no-writes" false;
    TICK "tick" " flags=allow-oom" true;
    TRIM "trim" " flags=allow-oom" true;
    UPKEEP "upkeep" " flags=allow-oom" true;
}

impl Script {
    /// Its text, for a server that does not know it.
    pub(super) fn whole(&self, key: &str, args: &Args) -> Cmd {
        Script::called("EVAL", &self.text, key, args)
    }

    /// By its digest, once a server has told that.
    pub(super) fn known(&self, key: &str, args: &Args) -> Option<Cmd> {
        self.digest.get().map(|digest| Script::called("EVALSHA", digest, key, args))
    }

    /// Asks a server to keep it, and for its digest.
    pub(super) fn load(&self) -> Cmd {
        let mut load = cmd("SCRIPT");
        load.arg("LOAD").arg(&*self.text);
        load
    }

    /// A server has told its digest; all have the same.
    pub(super) fn is_known_as(&self, digest: String) {
        let _first = self.digest.set(digest);
    }

    fn called(how: &str, what: &str, key: &str, args: &Args) -> Cmd {
        let mut call = cmd(how);
        call.arg(what).arg(1).arg(key);
        for arg in &args.0 {
            match arg {
                Arg::Text(text) => call.arg(text),
                Arg::Bytes(bytes) => call.arg(&bytes[..]),
                Arg::Int(number) => call.arg(number),
            };
        }
        call
    }
}

enum Arg {
    Text(String),
    Bytes(Bytes),
    Int(i64),
}

/// What a script is given, in its order.
#[derive(Default)]
pub(super) struct Args(Vec<Arg>);

impl Args {
    pub(super) fn new() -> Args {
        Args::default()
    }

    pub(super) fn text(mut self, text: impl Into<String>) -> Args {
        self.0.push(Arg::Text(text.into()));
        self
    }

    pub(super) fn bytes(mut self, bytes: Bytes) -> Args {
        self.0.push(Arg::Bytes(bytes));
        self
    }

    pub(super) fn int(mut self, number: impl TryInto<i64>) -> Args {
        self.0.push(Arg::Int(number.try_into().unwrap_or(i64::MAX)));
        self
    }

    pub(super) fn flag(self, flag: bool) -> Args {
        self.text(if flag { "1" } else { "0" })
    }

    /// A number, or nothing where there is none.
    pub(super) fn maybe(self, number: Option<i64>) -> Args {
        match number {
            Some(number) => self.int(number),
            None => self.text(""),
        }
    }
}

/// An answer, read from its beginning.
pub(super) struct Reply {
    script: &'static str,
    values: std::vec::IntoIter<Value>,
}

impl Reply {
    /// Of a script's answer.
    ///
    /// # Errors
    /// When it is no list.
    pub(super) fn of(script: &'static Script, value: Value) -> Result<Reply, StoreError> {
        Reply::listed(script.name, value)
    }

    fn listed(script: &'static str, value: Value) -> Result<Reply, StoreError> {
        match value {
            Value::Array(values) => Ok(Reply { script, values: values.into_iter() }),
            other => Err(strange(script, &format!("{other:?} where a list is expected"))),
        }
    }

    fn value(&mut self) -> Result<Value, StoreError> {
        self.values.next().ok_or_else(|| strange(self.script, "it ends early"))
    }

    pub(super) fn bytes(&mut self) -> Result<Bytes, StoreError> {
        match self.value()? {
            Value::BulkString(bytes) => Ok(bytes.into()),
            Value::SimpleString(text) => Ok(text.into()),
            Value::Int(number) => Ok(number.to_string().into()),
            other => Err(strange(self.script, &format!("{other:?} where bytes are expected"))),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, StoreError> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.into()).map_err(|_| strange(self.script, "a text that is none"))
    }

    pub(super) fn int(&mut self) -> Result<i64, StoreError> {
        let text = self.text()?;
        text.parse().map_err(|_| strange(self.script, &format!("'{text}' where a number is expected")))
    }

    pub(super) fn count(&mut self) -> Result<u64, StoreError> {
        Ok(self.int()?.max(0).cast_unsigned())
    }

    /// A number, or none where it is empty.
    pub(super) fn maybe(&mut self) -> Result<Option<i64>, StoreError> {
        let text = self.text()?;
        if text.is_empty() {
            return Ok(None);
        }
        // A sorted set may have it with a fraction.
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Some(number as i64)),
            _ => Err(strange(self.script, &format!("'{text}' where a number is expected"))),
        }
    }

    pub(super) fn small<T: TryFrom<i64>>(&mut self) -> Result<T, StoreError> {
        let number = self.int()?;
        T::try_from(number).map_err(|_| strange(self.script, &format!("{number} where a smaller number is expected")))
    }

    pub(super) fn list(&mut self) -> Result<Reply, StoreError> {
        let value = self.value()?;
        Reply::listed(self.script, value)
    }

    /// Whether all of it was read.
    pub(super) fn is_empty(&self) -> bool {
        self.values.as_slice().is_empty()
    }
}

/// What is in Redis, or comes from there, is not what this store has written.
pub(super) fn strange(what: &str, detail: &str) -> StoreError {
    StoreError::Damaged { file: format!("Redis ({what})"), offset: 0, detail: detail.to_owned() }
}
