//! One PostgreSQL. Invariant: its clients show a password (SCRAM), its owner of data is no superuser, and what it has
//! acknowledged is on disk, unless a test says otherwise; that of the shared one need not be. Each call of `database` makes one that nobody else has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice::catalog::postgres::MIGRATIONS;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

use super::process::{self, Process};
use super::{Options, program};
use crate::wait;

const BIN: &str = "usr/lib/postgresql/15/bin";
/// Who runs the server and may do everything.
const SUPERUSER: &str = "postgres";
/// Whom the brokers log in as, by the deployment guide's name.
const USER: &str = "messaging_user";
/// Of both; with letters that addresses have to escape.
const PASSWORD: &str = "a/pass@word";
const PASSWORD_ESCAPED: &str = "a%2Fpass%40word";
/// How long one try to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A PostgreSQL of a test's own, or the one that a test process shares.
#[derive(Debug)]
pub struct Postgres {
    options: Options,
    folder: PathBuf,
    port: u16,
    process: Option<Process>,
    databases: AtomicU32,
}

impl Postgres {
    /// A server, ready.
    pub async fn start(options: Options) -> Postgres {
        let folder = process::folder("postgres");
        process::copy(&template(), &folder.join("data"));
        let port = process::free_port();
        let mut postgres = Postgres { options, folder, port, process: None, databases: AtomicU32::new(0) };
        postgres.restart().await;
        postgres
    }

    /// A standby that follows this server, and without which this one answers no commit from now on.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub async fn synchronous_standby(&self) -> Postgres {
        let folder = process::folder("postgres");
        process::hand_over(&folder);
        let mut copying = program(&format!("{BIN}/pg_basebackup"));
        copying.arg("-D").arg(folder.join("data")).args([
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "-d",
            &self.superuser_url(),
        ]);
        process::succeed(&mut copying);
        let (options, port) = (self.options.clone(), process::free_port());
        let mut standby = Postgres { options, folder, port, process: None, databases: AtomicU32::new(0) };
        standby.restart().await;
        for setting in ["ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"] {
            self.as_superuser(setting).await;
        }
        wait::until("the standby is synchronous", async || {
            let state = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'";
            let mut sql = PgConnection::connect(&self.superuser_url()).await.ok()?;
            sql.fetch_optional(state).await.ok()?.map(drop)
        })
        .await;
        standby
    }

    /// Makes a standby the server, which waits for no other.
    pub async fn promote(&self) {
        for statement in
            ["SELECT pg_promote()", "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"]
        {
            self.as_superuser(statement).await;
        }
    }

    async fn as_superuser(&self, statement: &'static str) {
        let mut sql = PgConnection::connect(&self.superuser_url()).await.expect("the server answers");
        sql.execute(statement).await.expect("the superuser may");
    }

    /// The usual server, one for all tests of the process: for those that need only databases of their own.
    ///
    /// # Panics
    /// When it does not start.
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        // Nobody stops it and looks what is left.
        SHARED.get_or_init(|| process::on_a_thread(async || Postgres::start(Options::new().set("fsync", "off")).await))
    }

    /// Makes the tables of a fleet in the database at `url`, as an operator would with `psql`.
    ///
    /// # Panics
    /// When a migration fails.
    pub fn make_tables(&self, url: &str) {
        for migration in MIGRATIONS {
            let told = self.psql(url, &["--quiet", "--command", migration.sql]);
            assert!(told.status.success(), "{}: {}", migration.file, crate::outside::said(&told));
        }
    }

    /// Makes a database with the tables of a fleet on the shared server; its address.
    ///
    /// # Panics
    /// When the server does not answer.
    #[must_use]
    pub fn shared_with_tables(name: &str) -> String {
        static WITH_TABLES: OnceLock<String> = OnceLock::new();
        let server = Postgres::shared();
        let with_tables = WITH_TABLES.get_or_init(|| {
            let url = server.database("with_tables");
            server.make_tables(&url);
            url
        });
        server.copy(with_tables, name)
    }

    /// The address of the database `messaging`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("messaging")
    }

    /// The same for who may do everything.
    #[must_use]
    pub fn superuser_url(&self) -> String {
        format!("postgres://{SUPERUSER}:{PASSWORD_ESCAPED}@127.0.0.1:{}/messaging", self.port)
    }

    /// The folder of its Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> PathBuf {
        // A socket's path has at most 107 bytes, and the target folder's may have more.
        std::env::temp_dir().join(format!("sluice-postgres-{}", self.port))
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes an empty database, whose name begins with `name`; its address.
    ///
    /// # Panics
    /// When the server does not answer.
    #[must_use]
    pub fn database(&self, name: &str) -> String {
        self.made(name, "template1")
    }

    /// Makes a database that begins as a copy of the one at `url`, to which nobody is connected; its address.
    ///
    /// # Panics
    /// When the server does not answer.
    #[must_use]
    pub fn copy(&self, url: &str, name: &str) -> String {
        self.made(name, url.rsplit('/').next().expect("an address ends with the database's name"))
    }

    fn made(&self, name: &str, template: &str) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name: String =
            name.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '_').take(40).collect();
        let name = format!("{name}_{number}").to_lowercase();
        let made = self.psql(&self.url(), &["--command", &format!("CREATE DATABASE {name} TEMPLATE {template}")]);
        assert!(made.status.success(), "a database can be made: {}", crate::outside::said(&made));
        self.url_of(&name)
    }

    /// What `psql` does with these arguments on the database at `url`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn psql(&self, url: &str, arguments: &[&str]) -> Output {
        let mut psql = program(&format!("{BIN}/psql"));
        psql.args(["--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--dbname", url]).args(arguments);
        psql.output().expect("setpriv starts")
    }

    /// Kills all its processes at once, as when the power fails; what was synced stays.
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
        let sockets = self.socket_dir();
        let _ = fs::remove_dir_all(&sockets);
        fs::create_dir(&sockets).expect("the temporary folder takes another");
        process::hand_over(&sockets);
        let mut command = program(&format!("{BIN}/postgres"));
        command.arg("-D").arg(self.folder.join("data")).arg("-k").arg(&sockets);
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "jit=off"]);
        for (name, value) in &self.options.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let mut process = Process::start(command, &self.folder.join("log"));
        let url = self.superuser_url();
        wait::until("PostgreSQL answers", async || {
            if let Some(why) = process.has_ended() {
                panic!("PostgreSQL ended at start: {why}");
            }
            let connecting = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect(&url)).await;
            connecting.ok()?.ok()?.close().await.ok()
        })
        .await;
        self.process = Some(process);
    }

    /// Stops all its processes where they are (SIGSTOP): connections stay and nobody answers.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pause(&self) {
        self.running().pause();
    }

    /// Lets them go on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn resume(&self) {
        self.running().resume();
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("the server runs")
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD_ESCAPED}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(self.socket_dir());
    }
}

/// For the pooler, which logs in itself.
pub(super) const CREDENTIALS: (&str, &str) = (USER, PASSWORD);

/// A folder of data as a new server has it, with the user and the database: made once, since that takes seconds.
fn template() -> PathBuf {
    let template = super::folder().join("postgres-template-1");
    if !template.exists() {
        let beside = process::folder("template");
        let data = beside.join("data");
        initialise(&beside, &data);
        // Whole or not at all; who was faster has the same.
        if let Err(error) = fs::rename(&data, &template) {
            assert!(template.exists(), "{}: {error}", template.display());
        }
        let _ = fs::remove_dir_all(&beside);
    }
    template
}

fn initialise(folder: &Path, data: &Path) {
    let password = folder.join("password");
    fs::write(&password, PASSWORD).expect("a folder of ours can be written");
    let mut initdb = program(&format!("{BIN}/initdb"));
    initdb.arg("-D").arg(data).arg("--pwfile").arg(&password);
    initdb.args(["-U", SUPERUSER, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"]);
    process::succeed(&mut initdb);
    let statements = [
        format!("CREATE ROLE {USER} LOGIN CREATEDB PASSWORD '{PASSWORD}'"),
        format!("CREATE DATABASE messaging OWNER {USER}"),
    ];
    for statement in statements {
        let file = folder.join("statement.sql");
        fs::write(&file, statement).expect("a folder of ours can be written");
        let mut single = program(&format!("{BIN}/postgres"));
        single.args(["--single", "-D"]).arg(data).args(["-c", "exit_on_error=on", "postgres"]);
        single.stdin(fs::File::open(&file).expect("it was just written"));
        let output = single.output().expect("setpriv starts");
        assert!(output.status.success(), "{}", crate::outside::said(&output));
    }
}
