//! Redis: one server, the masters of a Cluster, a Sentinel. Invariant: a server asks for a password, keeps an append-only file that
//! is synced each second and evicts nothing, unless a test says otherwise.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::process::{self, Process};
use super::{Options, program};
use crate::binary::repository;
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

    /// The usual server, one for all tests of the process: for those that need only keys of their own.
    ///
    /// # Panics
    /// When it does not start.
    pub fn shared() -> &'static Redis {
        static SHARED: OnceLock<Redis> = OnceLock::new();
        // What is in it no test looks for after a crash of the machine.
        SHARED
            .get_or_init(|| process::on_a_thread(async || Redis::start(Options::new().set("appendfsync", "no")).await))
    }

    /// A server that speaks TLS too, at a port of its own, with the certificate `good.pem` of `tests/data/tls`.
    pub async fn start_with_tls() -> Redis {
        let tls = |name: &str| repository().join("tests/data/tls").join(name).display().to_string();
        let options = Options::new()
            .set("tls-port", &process::free_port().to_string())
            .set("tls-cert-file", &tls("good.pem"))
            .set("tls-key-file", &tls("receiver.key"))
            .set("tls-ca-cert-file", &tls("ca.pem"))
            .set("tls-auth-clients", "no");
        Redis::start(options).await
    }

    /// The address at which it speaks TLS.
    ///
    /// # Panics
    /// When it speaks none.
    #[must_use]
    pub fn tls_url(&self) -> String {
        let port = self.options.settings.iter().find(|(name, _)| name == "tls-port").expect("it was started with TLS");
        format!("rediss://:{PASSWORD_ESCAPED}@127.0.0.1:{}", port.1)
    }

    /// Three masters that are one Cluster, ready.
    pub async fn start_cluster() -> Vec<Redis> {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let options = Options::new()
                .set("cluster-enabled", "yes")
                .set("cluster-port", &process::free_port().to_string())
                .set("cluster-node-timeout", "2000");
            nodes.push(Redis::start(options).await);
        }
        let mut create = program("usr/bin/redis-cli");
        create.args(["--cluster", "create", "--cluster-yes"]).env("REDISCLI_AUTH", PASSWORD);
        create.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        process::succeed(&mut create);
        for node in &nodes {
            wait::until("the Cluster is whole", async || {
                node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok").then_some(())
            })
            .await;
        }
        nodes
    }

    /// The address of a Cluster.
    #[must_use]
    pub fn cluster_url(nodes: &[Redis]) -> String {
        let hosts: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis-cluster://:{PASSWORD_ESCAPED}@{}", hosts.join(","))
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

/// A Sentinel that watches one server.
#[derive(Debug)]
pub struct Sentinel {
    folder: PathBuf,
    port: u16,
    password: &'static str,
    process: Option<Process>,
}

impl Sentinel {
    /// One that calls `master` by the name `main`, and its first replica so when it is gone for half a second, ready. It asks for a
    /// password itself if it is `guarded`.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start(master: &Redis, guarded: bool) -> Sentinel {
        let password = if guarded { PASSWORD } else { "" };
        let (folder, port) = (process::folder("sentinel"), process::free_port());
        let mut settings = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {} 1\nsentinel auth-pass main {PASSWORD}\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n",
            folder.display(),
            master.port
        );
        if guarded {
            settings.push_str(&format!("requirepass {PASSWORD}\n"));
        }
        let file = folder.join("sentinel.conf");
        fs::write(&file, settings).expect("a folder of ours can be written");
        // It writes there what it finds out.
        process::hand_over(&file);
        let mut command = program("usr/bin/redis-server");
        command.arg(&file).arg("--sentinel");
        let process = Some(Process::start(command, &folder.join("log")));
        let sentinel = Sentinel { folder, port, password, process };
        sentinel.names(master).await;
        sentinel
    }

    /// Waits until it says that this one is the master.
    pub async fn names(&self, master: &Redis) {
        wait::until("a Sentinel names a master", async || {
            self.ask(&["GET-MASTER-ADDR-BY-NAME", "main"]).contains(&master.port.to_string()).then_some(())
        })
        .await;
    }

    /// Waits until it knows that this one follows the master.
    pub async fn knows(&self, replica: &Redis) {
        wait::until("a Sentinel knows a replica", async || {
            self.ask(&["REPLICAS", "main"]).contains(&replica.port.to_string()).then_some(())
        })
        .await;
    }

    fn ask(&self, command: &[&str]) -> String {
        let mut cli = program("usr/bin/redis-cli");
        cli.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "SENTINEL"]).args(command);
        cli.env("REDISCLI_AUTH", self.password);
        String::from_utf8_lossy(&cli.output().expect("setpriv starts").stdout).into_owned()
    }

    /// The address of the master that it watches.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis-sentinel://:{PASSWORD_ESCAPED}@127.0.0.1:{}/main", self.port)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}
