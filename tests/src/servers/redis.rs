//! One Redis. Invariant: it asks for a password, keeps an append-only file that is synced each second and evicts nothing,
//! unless a test says otherwise.

use std::fs;
use std::path::PathBuf;

use super::process::{self, Process};
use super::{Options, program};
use crate::wait;

const PASSWORD: &str = "a/redis@word";
const PASSWORD_ESCAPED: &str = "a%2Fredis%40word";

/// A Redis of a test's own.
#[derive(Debug)]
pub struct Redis {
    options: Options,
    folder: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Redis {
    /// A server, ready.
    pub async fn start(options: Options) -> Redis {
        let usual = [
            ("requirepass", PASSWORD),
            ("appendonly", "yes"),
            ("appendfsync", "everysec"),
            ("maxmemory-policy", "noeviction"),
            // No snapshots beside the append-only file.
            ("save", ""),
        ];
        let usual = usual.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let options = Options { settings: usual.into_iter().chain(options.settings).collect() };
        let mut redis = Redis { options, folder: process::folder("redis"), port: process::free_port(), process: None };
        redis.restart().await;
        redis
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        if self.password().is_empty() {
            return format!("redis://127.0.0.1:{}", self.port);
        }
        let password = if self.password() == PASSWORD { PASSWORD_ESCAPED } else { self.password() };
        format!("redis://:{password}@127.0.0.1:{}", self.port)
    }

    /// The password that it asks for.
    #[must_use]
    pub fn password(&self) -> &str {
        let set = self.options.settings.iter().rev().find(|(name, _)| name == "requirepass");
        set.map_or("", |(_, password)| password)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it answers to a command, as `redis-cli` shows it.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn ask(&self, command: &[&str]) -> String {
        let mut cli = program("usr/bin/redis-cli");
        cli.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).args(command);
        cli.env("REDISCLI_AUTH", self.password());
        process::succeed(&mut cli).trim_end().to_owned()
    }

    /// Removes everything in it.
    ///
    /// # Panics
    /// When it does not.
    pub fn flush(&self) {
        assert_eq!(self.ask(&["FLUSHALL", "SYNC"]), "OK");
    }

    /// Kills it, as when the power fails; what was written to its file stays.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts on the same folder and port, after a kill if it still runs.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn restart(&mut self) {
        self.kill();
        let mut command = program("usr/bin/redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--daemonize", "no"]);
        command.arg("--dir").arg(&self.folder);
        for (name, value) in &self.options.settings {
            command.arg(format!("--{name}")).arg(value);
        }
        let mut process = Process::start(command, &self.folder.join("log"));
        wait::until("Redis answers", async || {
            if let Some(why) = process.has_ended() {
                panic!("Redis ended at start: {why}");
            }
            let mut ping = program("usr/bin/redis-cli");
            ping.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "PING"]).env("REDISCLI_AUTH", self.password());
            let said = ping.output().expect("setpriv starts").stdout;
            said.starts_with(b"PONG").then_some(())
        })
        .await;
        self.process = Some(process);
    }

    /// Starts again with nothing in it.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn restart_empty(&mut self) {
        self.kill();
        for entry in fs::read_dir(&self.folder).expect("its folder can be read").flatten() {
            // The log is wanted when the test fails.
            if entry.file_name() != "log" {
                let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
            }
        }
        self.restart().await;
    }

    /// Stops it where it is (SIGSTOP): connections stay and nobody answers.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pause(&self) {
        self.process.as_ref().expect("the server runs").pause();
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn resume(&self) {
        self.process.as_ref().expect("the server runs").resume();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
