//! Real servers for tests: PostgreSQL, a transaction pooler before it, Redis, and a proxy for brokers, from Debian's packages.
//! Invariant: the packages are unpacked once, below the target folder; nothing is installed into the system, and nothing that
//! happens to be installed there is used but its C library. Each server has a folder and a port of its own and ends, with all
//! its processes, when its value is dropped or the test process ends, however it does.

mod haproxy;
mod pooler;
mod postgres;
mod process;
mod redis;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::binary::target_dir;

pub use haproxy::Haproxy;
pub use pooler::Pooler;
pub use postgres::Postgres;
pub use process::free_port;
pub use redis::{Redis, Sentinel};

/// The programs; the libraries that they need are found through apt.
const PACKAGES: [&str; 8] = [
    "postgresql-15",
    "postgresql-client-15",
    "pgbouncer",
    "redis-server",
    "redis-tools",
    "haproxy",
    "prometheus",
    "libfaketime",
];

/// Libraries that are not taken along: the C library goes with the system's loader, one is for a just-in-time compiler of SQL
/// (100 MB) that tests leave off, and others are for pages that nobody looks at.
const NOT_TAKEN: [&str; 3] = ["libc6", "libllvm", "libjs"];

/// What the system lacks, to who runs the tests.
const NEEDED: &str = "the tests over real servers unpack the packages of PostgreSQL 15, PgBouncer, Redis, HAProxy, \
                      Prometheus and libfaketime: they need apt-get, apt-cache and dpkg-deb with the sources of Debian 12 (or others that \
                      have these packages), and setpriv (util-linux)";

/// Where the packages are unpacked.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(unpacked);

/// How a server differs from the usual one: settings by the names that its own configuration gives them.
#[derive(Debug, Clone, Default)]
pub struct Options {
    settings: Vec<(String, String)>,
}

impl Options {
    /// The usual server.
    #[must_use]
    pub fn new() -> Options {
        Options::default()
    }

    /// One setting (`fsync` = `off`, `max_connections` = `20`; `appendfsync` = `always`); the last one of a name counts.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Options {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A program of the packages, with their libraries, by its path in them.
fn program(path: &str) -> Command {
    let mut command = process::unprivileged(&PROGRAMS.join(path));
    let folders = ["usr/lib", "lib"].map(|folder| PROGRAMS.join(folder).join(multiarch()));
    command.env("LD_LIBRARY_PATH", std::env::join_paths(folders).expect("no colon in the target folder's path"));
    // What is set for the one who runs the tests is not for these.
    for name in ["PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGOPTIONS", "PGSERVICE", "PGDATA"] {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C.UTF-8").env("TZ", "GMT").env_remove("NOTIFY_SOCKET");
    command
}

/// What Prometheus' own tool says, run in `folder`.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn promtool(folder: &Path, arguments: &[&str]) -> Output {
    let mut promtool = Command::new(PROGRAMS.join("usr/bin/promtool"));
    promtool.args(arguments).current_dir(folder).output().unwrap_or_else(|error| panic!("{NEEDED}: {error}"))
}

/// The library that gives a program another time (`LD_PRELOAD`).
#[must_use]
pub fn libfaketime() -> PathBuf {
    PROGRAMS.join("usr/lib").join(multiarch()).join("faketime/libfaketime.so.1")
}

fn multiarch() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

/// The folder of what is kept for servers.
fn folder() -> PathBuf {
    target_dir().join("servers")
}

fn unpacked() -> PathBuf {
    let whole = folder().join(format!("packages-{}", PACKAGES.join("-")));
    if whole.exists() {
        return whole;
    }
    let beside = folder().join(format!("unpacking-{}", std::process::id()));
    fs::create_dir_all(beside.join("packages")).expect("the target folder can be written");
    download(&beside.join("packages"));
    let root = beside.join("root");
    for package in fs::read_dir(beside.join("packages")).expect("a folder of ours can be read") {
        let package = package.expect("a folder of ours can be read").path();
        run(Command::new("dpkg-deb").arg("-x").arg(package).arg(&root));
    }
    // Whole or not at all; who was faster has the same.
    if let Err(error) = fs::rename(&root, &whole) {
        assert!(whole.exists(), "{}: {error}", whole.display());
    }
    let _ = fs::remove_dir_all(&beside);
    whole
}

fn download(into: &Path) {
    let fetched = |command: &mut Command| command.current_dir(into).output();
    let all = || PACKAGES.into_iter().map(str::to_owned).chain(libraries());
    let mut output = fetched(Command::new("apt-get").arg("download").args(all()));
    if output.as_ref().is_ok_and(|output| !output.status.success()) {
        // The system's lists may be missing or old.
        run(Command::new("apt-get").arg("update"));
        output = fetched(Command::new("apt-get").arg("download").args(all()));
    }
    match output {
        Ok(output) => assert!(output.status.success(), "{NEEDED}: {}", crate::outside::said(&output)),
        Err(error) => panic!("{NEEDED}: {error}"),
    }
}

/// The names of all libraries that the programs need, and those that these need.
fn libraries() -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let mut asked: Vec<String> = PACKAGES.into_iter().map(str::to_owned).collect();
    while !asked.is_empty() {
        let output = run(Command::new("apt-cache").args(["depends", "--important"]).args(&asked));
        let text = String::from_utf8(output.stdout).expect("names of packages are text");
        let needed = text.lines().filter_map(|line| line.trim_start_matches([' ', '|']).strip_prefix("Depends: "));
        let taken = |name: &&str| name.starts_with("lib") && !NOT_TAKEN.iter().any(|not| name.starts_with(not));
        asked = needed.filter(taken).map(str::to_owned).filter(|name| known.insert(name.clone())).collect();
    }
    known
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{NEEDED}: {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", crate::outside::said(&output));
    output
}

#[cfg(test)]
mod tests;
