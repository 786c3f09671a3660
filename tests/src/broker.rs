//! One broker under test: the real binary with a folder, a port, a clock and a signing secret of its own. Invariant: the
//! process ends and the folder goes when the value is dropped; if the test is failing, its log is printed first. Never
//! shares anything with another test.

use std::fs::{self, OpenOptions};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::round_robin::RoundRobin;
use crate::servers::{Postgres, Redis};
use crate::token::Claims;
use crate::{Client, TestClock, binary, failure, wait, warm};

/// The line that says that a broker is ready.
const READY: &str = "listening on http://";
/// HS256 key of brokers that are given one.
const SECRET: &str = "a-secret-of-the-suites-that-is-long-enough-for-hs256";
/// Bytes of log shown when a test fails: its end says why, and a chatty test must not bury its own message.
const LOG_SHOWN_BYTES: usize = 24 * 1024;

/// The other brokers of a fleet that a suite runs over.
const OTHERS: [&str; 2] = ["second", "third"];

/// How a broker differs from the usual one.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    env: Vec<(String, String)>,
    own_secret: bool,
}

impl Settings {
    /// The usual broker: development profile, embedded store, empty plugins folder.
    #[must_use]
    pub fn new() -> Settings {
        Settings::default()
    }

    /// One of the brokers of this name on the database at `url`.
    #[must_use]
    pub fn on(self, url: &str, node: &str) -> Settings {
        self.env("SLUICE__POSTGRES__URL", url).env("SLUICE__NODE_ID", node)
    }

    /// A setting by its environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Settings {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As it is; or on a database of its own: all suites run so with `SLUICE_TEST_STORAGE=postgres`; with three brokers and a Redis on
    /// it: with `fleet`; or with a Redis, in which topics are that are made without a word of it: with `redis-topics`. Beside it,
    /// how many other brokers there are.
    fn on_any_storage(self) -> (Settings, usize) {
        let says = |wanted: &str| self.env.iter().any(|(name, _)| name == wanted);
        let is_told = self.own_secret || says("SLUICE__POSTGRES__URL");
        match std::env::var("SLUICE_TEST_STORAGE").as_deref() {
            Ok("postgres") if !is_told => (self.on(&Postgres::shared_with_tables("suite"), "broker"), 0),
            Ok("fleet") if !is_told => {
                let on_database = self.on(&Postgres::shared_with_tables("suite"), "broker");
                (on_database.env("SLUICE__REDIS__URL", &Redis::shared().url()), OTHERS.len())
            }
            Ok("redis-topics") if !says("SLUICE__REDIS__URL") => {
                (self.env("SLUICE__REDIS__URL", &Redis::shared().url()), 0)
            }
            _ => (self, 0),
        }
    }

    /// What is kept stays where it is.
    fn stay_on_storage_of(&mut self, before: Settings) {
        for (name, value) in before.env {
            let is_storage = ["SLUICE__POSTGRES__URL", "SLUICE__NODE_ID", "SLUICE__REDIS__URL"].contains(&&*name);
            if is_storage && !self.env.iter().any(|(known, _)| *known == name) {
                self.env.push((name, value));
            }
        }
    }

    /// The broker makes its signing secret itself, as at a first start on a laptop.
    #[must_use]
    pub fn own_secret(mut self) -> Settings {
        self.own_secret = true;
        self
    }
}

/// A running broker; derefs to an `Admin`'s client of it.
#[derive(Debug)]
pub struct Broker {
    admin: Client,
    settings: Settings,
    folder: TempDir,
    clock: TestClock,
    file_size_max: Option<u64>,
    open_files_max: Option<u64>,
    process: Option<Child>,
    /// Where it listens itself.
    address: String,
    /// The others of a fleet that the suite runs over, and what is before all of them.
    fleet: Option<(Vec<Broker>, RoundRobin)>,
}

impl Deref for Broker {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.admin
    }
}

impl Broker {
    /// The usual broker, ready.
    pub async fn start() -> Broker {
        Broker::with(Settings::new()).await
    }

    /// A broker with settings, ready.
    pub async fn with(settings: Settings) -> Broker {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("plugins")).expect("an empty folder takes another");
        let clock = TestClock::in_file(&folder.path().join("clock"));
        let admin = Client::new("http://127.0.0.1:0", "");
        let (settings, others) = settings.on_any_storage();
        let (file_size_max, open_files_max) = (None, None);
        let mut broker = Broker {
            admin,
            settings,
            folder,
            clock,
            file_size_max,
            open_files_max,
            process: None,
            address: String::new(),
            fleet: None,
        };
        warm::seed(&broker.data_dir());
        broker.launch("127.0.0.1:0").await;
        if others > 0 {
            broker.join_others().await;
        }
        broker
    }

    /// Brokers beside this one, on its clock; requests go to each in turn from now on.
    async fn join_others(&mut self) {
        let clock = self.folder.path().join("clock").display().to_string();
        let mut others = Vec::new();
        for node in OTHERS {
            let settings = self.settings.clone().env("SLUICE__NODE_ID", node).env("SLUICE__TEST_CLOCK_FILE", &clock);
            others.push(Box::pin(Broker::with(settings)).await);
        }
        let address = |broker: &Broker| broker.address.parse().expect("a broker tells its address");
        let all = others.iter().map(address).chain([address(self)]).collect();
        let proxy = RoundRobin::before(all, "127.0.0.1:0").await;
        self.admin = Client::new(&proxy.url(), self.admin.token());
        self.fleet = Some((others, proxy));
    }

    /// A client with these claims, signed with the broker's secret.
    #[must_use]
    pub fn client(&self, claims: &Claims) -> Client {
        self.admin.with_token(&claims.sign(&self.secret()))
    }

    /// An `Admin`.
    #[must_use]
    pub fn admin(&self) -> Client {
        self.client(&Claims::new("admin", &["Admin"]))
    }

    /// A `Producer` on topics that match the glob.
    #[must_use]
    pub fn producer(&self, topics: &str) -> Client {
        self.client(&Claims::new("producer", &["Producer"]).topics(&[topics]))
    }

    /// A `Consumer` on topics that match the glob.
    #[must_use]
    pub fn consumer(&self, topics: &str) -> Client {
        self.client(&Claims::new("consumer", &["Consumer"]).topics(&[topics]))
    }

    /// A `Viewer`.
    #[must_use]
    pub fn viewer(&self) -> Client {
        self.client(&Claims::new("viewer", &["Viewer"]))
    }

    /// A client without a token.
    #[must_use]
    pub fn anonymous(&self) -> Client {
        self.admin.with_token("")
    }

    /// The key that the broker checks tokens with.
    #[must_use]
    pub fn secret(&self) -> Vec<u8> {
        if !self.settings.own_secret {
            return SECRET.as_bytes().to_vec();
        }
        let file = self.data_dir().join("jwt.secret");
        let text = fs::read_to_string(&file).expect("a broker in development makes its secret at first start");
        text.trim_end().as_bytes().to_vec()
    }

    /// The broker's clock.
    #[must_use]
    pub fn clock(&self) -> &TestClock {
        &self.clock
    }

    /// Everything the broker keeps.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder it watches for plugins.
    #[must_use]
    pub fn plugins_dir(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    /// Puts a plugin into the watched folder, whole at once.
    pub fn place_plugin(&self, file_name: &str, bytes: &[u8]) {
        let beside = self.plugins_dir().join(format!(".{file_name}.new"));
        fs::write(&beside, bytes).expect("the plugins folder can be written");
        fs::rename(&beside, self.plugins_dir().join(file_name)).expect("a plugin can be replaced");
    }

    /// Places versions of a plugin in this order, and waits until the broker has taken all of them in.
    pub async fn place_versions(&self, name: &str, versions: &[(&str, &[u8])]) {
        for (version, bytes) in versions {
            self.place_plugin(&format!("{name}@{version}.wasm"), bytes);
            wait::timed(&format!("{name}@{version} is taken in"), async || {
                let plugin = self.get(&format!("/plugins/{name}")).await;
                let known = plugin.status == 200 && plugin.json()["versions"][0]["version"] == *version;
                known.then_some(())
            })
            .await;
        }
    }

    /// What the broker has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_file()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The process's id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("the broker runs").id()
    }

    /// Bytes of memory that the process has in use now.
    ///
    /// # Panics
    /// When the system does not say.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process_id())).expect("the broker runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says VmRSS");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("VmRSS is in kB");
        kilobytes * 1024
    }

    /// No file of the broker grows beyond so many bytes, as on a disk without more room: from now on and after restarts,
    /// until it is lifted by `None`. Without privileges, unlike a file system of its own.
    ///
    /// # Panics
    /// When the system does not let us.
    pub fn limit_file_size(&mut self, bytes: Option<u64>) {
        self.file_size_max = bytes;
        let process_id = self.process_id().to_string();
        let set = Command::new("prlimit").arg(file_size_limit(bytes)).args(["--pid", &process_id]).status();
        assert!(set.expect("prlimit(1) starts").success(), "the limit could not be set");
    }

    /// From its next start on, the broker may have so many files and connections open; it can't raise that.
    pub fn limit_open_files(&mut self, files: Option<u64>) {
        self.open_files_max = files;
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Gone already is as good.
            let _ = process.kill();
            process.wait().expect("a child can be waited for");
        }
    }

    /// Asks the process to stop (SIGTERM) and leaves it to do so.
    pub fn ask_to_stop(&self) {
        self.signal("TERM");
    }

    /// Waits until a process that was asked to stop has ended.
    pub async fn stopped(&mut self) -> ExitStatus {
        self.stopped_within(wait::PATIENCE).await
    }

    /// The same, with less patience.
    pub async fn stopped_within(&mut self, patience: Duration) -> ExitStatus {
        let process = self.process.as_mut().expect("the broker runs");
        let ended = async || process.try_wait().expect("a child can be waited for");
        let status = wait::within(patience, "the broker stops", ended).await;
        self.process = None;
        status
    }

    /// Asks the process to stop and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        self.ask_to_stop();
        self.stopped().await
    }

    /// Starts again on the same folder and port.
    ///
    /// # Panics
    /// When it still runs.
    pub async fn restart(&mut self) {
        assert!(self.process.is_none(), "the broker still runs");
        let address = self.address.clone();
        self.launch(&address).await;
    }

    /// The same, with other settings.
    ///
    /// # Panics
    /// When it still runs.
    pub async fn restart_with(&mut self, settings: Settings) {
        let before = std::mem::replace(&mut self.settings, settings);
        self.settings.stay_on_storage_of(before);
        self.restart().await;
    }

    /// `kill -9` and a start on the same folder and port.
    pub async fn crash(&mut self) {
        self.kill();
        self.restart().await;
    }

    /// Runs a command of the CLI against this broker, with an admin's token.
    #[must_use]
    pub fn cli(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(binary::sluice());
        command.args(arguments).env("SLUICE_URL", self.url()).env("SLUICE_TOKEN", self.admin.token());
        command.output().expect("the CLI starts")
    }

    /// A script of bash, as at a prompt in `folder`: `sluice` is on the path, finds this broker and shows an admin's token.
    ///
    /// # Panics
    /// When the folder of the test cannot be written.
    #[must_use]
    pub fn bash(&self, folder: &Path, script: &str) -> Command {
        let bin = self.folder.path().join("bin");
        if !bin.exists() {
            fs::create_dir(&bin).expect("the folder takes another");
            // By its own name, whatever `SLUICE_BINARY` calls it.
            std::os::unix::fs::symlink(binary::sluice(), bin.join("sluice")).expect("a link can be made");
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(folder).stdin(Stdio::null());
        command.env("PATH", format!("{}:{path}", bin.display())).env("HOME", folder);
        command.env("SLUICE_URL", self.url()).env("SLUICE_TOKEN", self.admin.token());
        command
    }

    async fn launch(&mut self, listen: &str) {
        failure::remember();
        // Emptied first, or the line of the start before would be taken for this one's.
        fs::write(self.stdout_file(), "").expect("a file in a folder of ours can be written");
        self.clock.begins();
        self.process = Some(self.command(listen).spawn().expect("the broker's process starts"));
        let url = wait::until("the broker is ready", async || {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().ok().flatten());
            assert!(ended.is_none(), "the broker ended at start: {ended:?}");
            let said = fs::read_to_string(self.stdout_file()).ok()?;
            // Only a finished line holds the whole address.
            said.strip_prefix(READY)?.split_once('\n').map(|(address, _)| format!("http://{}", address.trim_end()))
        })
        .await;
        self.address = url.trim_start_matches("http://").to_owned();
        let url = self.fleet.as_ref().map_or(url, |(_, proxy)| proxy.url());
        self.admin = Client::new(&url, &Claims::new("admin", &["Admin"]).sign(&self.secret()));
    }

    fn command(&self, listen: &str) -> Command {
        let append = |path| OpenOptions::new().create(true).append(true).open(path).expect("a file can be opened");
        let mut command = self.program();
        command
            .args(["serve", "--profile", "development", "--listen", listen, "--data-dir"])
            .arg(self.data_dir())
            .arg("--plugins-dir")
            .arg(self.plugins_dir())
            .current_dir(self.folder.path())
            .env("SLUICE__TEST_CLOCK_FILE", self.folder.path().join("clock"))
            .envs(self.settings.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(append(self.stdout_file()))
            .stderr(append(self.log_file()));
        if !self.settings.own_secret {
            command.env("JWT__Secret", SECRET);
        }
        command
    }

    /// The binary, under the limits that the test has set.
    fn program(&self) -> Command {
        let file_size = self.file_size_max.map(|_| file_size_limit(self.file_size_max));
        let open_files = self.open_files_max.map(|files| format!("--nofile={files}:{files}"));
        let limits: Vec<String> = file_size.into_iter().chain(open_files).collect();
        if limits.is_empty() {
            return Command::new(binary::sluice());
        }
        // It becomes the broker, so the process is the same.
        let mut limited = Command::new("prlimit");
        limited.args(limits).arg(binary::sluice());
        limited
    }

    fn signal(&self, name: &str) {
        assert!(signal(self.process_id(), name), "the signal could not be sent");
    }

    fn stdout_file(&self) -> PathBuf {
        self.folder.path().join("broker.out")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("broker.log")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        warm::harvest(&self.data_dir());
        if std::thread::panicking() {
            let log = self.log();
            let from = log.char_indices().map(|(at, _)| at).find(|at| log.len() - at <= LOG_SHOWN_BYTES).unwrap_or(0);
            eprintln!("--- the broker's log ---\n{}\n--- end of the log ---", &log[from..]);
            // Again, since of a long output often just the end is kept.
            if let Some(why) = failure::why() {
                eprintln!("{why}");
            }
        }
    }
}

/// The soft limit alone, so that it can be raised again.
fn file_size_limit(bytes: Option<u64>) -> String {
    format!("--fsize={}:", bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string()))
}

/// Sends a signal (`TERM`, `STOP`, `CONT`) to a process; answers whether it was there to take it.
#[must_use]
pub fn signal(process_id: u32, name: &str) -> bool {
    let kill = Command::new("kill").args(["-s", name, &process_id.to_string()]).stderr(Stdio::null()).status();
    kill.expect("kill(1) starts").success()
}

/// All files below `folder`, for looking at what a broker keeps.
#[must_use]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                // Removed while we looked.
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}
