//! The processes of servers. Invariant: a server never runs as root, dies with the test process even when that is killed, and
//! takes all its children with it. What a test process that was killed has left on disk goes when the next one starts a server.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex, Once};
use std::thread;

use crate::broker::signal;

/// `nobody`, who runs servers where we are root: PostgreSQL refuses root.
const NOBODY: u32 = 65534;
/// Below the ports that systems give to outgoing connections, so that a server gets its own again after a restart.
const PORTS: std::ops::Range<u16> = 10_000..30_000;
/// Bytes of a server's log that are shown when a test fails.
const LOG_SHOWN_BYTES: usize = 8 * 1024;

/// A command that runs without privileges and ends when this process does.
pub(super) fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if is_root() {
        // The one power that is left lets it reach the target folder, wherever that is: with `no_setuid_fixup` `access` counts it too.
        command.args(["--securebits", "+no_setuid_fixup"]);
        command.args(["--reuid", &NOBODY.to_string(), "--regid", &NOBODY.to_string(), "--clear-groups"]);
        command.args(["--inh-caps", "-all,+dac_override", "--ambient-caps", "-all,+dac_override"]);
        command.args(["--bounding-set", "-all,+dac_override"]);
    }
    command.arg("--").arg(program);
    command
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|of| of.uid() == 0)
}

/// Gives a folder or file to the one who runs servers.
pub(super) fn hand_over(path: &Path) {
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// A new folder for one server, which it may write.
pub(super) fn folder(kind: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static CLEAN: Once = Once::new();
    let all = super::folder().join("run");
    CLEAN.call_once(|| remove_left(&all));
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = all.join(format!("{}-{number}-{kind}", std::process::id()));
    fs::create_dir_all(&folder).expect("the target folder can be written");
    hand_over(&folder);
    folder
}

/// Removes what servers of test processes that are gone had.
fn remove_left(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Does what a test may not do on its own runtime, which is not there for the next one.
pub(super) fn on_a_thread<T: Send + 'static>(work: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime starts").block_on(work())
    };
    thread::spawn(work).join().expect("it is done")
}

/// A port of 127.0.0.1 that nobody listens at.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let width = PORTS.end - PORTS.start;
    // Test processes begin at different places.
    let begin = u16::try_from(std::process::id() % u32::from(width / 64)).expect("below the width") * 64;
    let port = || PORTS.start + begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % width;
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    std::iter::repeat_with(port).take(usize::from(width)).find(free).expect("a port is free")
}

/// A running server.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it says goes to the end of `log`.
    pub(super) fn start(mut command: Command, log: &Path) -> Process {
        crate::failure::remember();
        let file = || File::options().create(true).append(true).open(log).expect("a log can be opened");
        command.stdin(Stdio::null()).stdout(file()).stderr(file());
        let child = spawn(command).unwrap_or_else(|error| panic!("{}: {error}", super::NEEDED));
        Process { child, log: log.to_owned() }
    }

    /// The log, if the server has ended by itself.
    pub(super) fn has_ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().expect("a child can be waited for")?;
        Some(format!("{status}\n{}", end_of(&self.log)))
    }

    /// Stops all its processes where they are.
    pub(super) fn pause(&self) {
        // First the one that makes the others, so that none is missed.
        assert!(signal(self.child.id(), "STOP"), "the server does not run");
        for process in descendants(self.child.id()) {
            // One may have ended meanwhile.
            let _ = signal(process, "STOP");
        }
    }

    /// Lets them go on.
    pub(super) fn resume(&self) {
        for process in descendants(self.child.id()) {
            let _ = signal(process, "CONT");
        }
        assert!(signal(self.child.id(), "CONT"), "the server does not run");
    }

    /// Kills all its processes at once, as when the power fails.
    pub(super) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let id = self.child.id();
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = signal(id, "STOP");
            let all = descendants(id);
            let _ = self.child.kill();
            for process in all {
                let _ = signal(process, "KILL");
            }
            self.child.wait().expect("a child can be waited for");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if thread::panicking() {
            eprintln!("--- {} ---\n{}\n--- its end ---", self.log.display(), end_of(&self.log));
        }
    }
}

fn end_of(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_SHOWN_BYTES)..]).into_owned()
}

type Order = (Command, Sender<std::io::Result<Child>>);

/// Starts a process from a thread that never ends: the signal that a child gets when its parent dies is sent when the parent's
/// thread ends, and a test is a thread.
fn spawn(command: Command) -> std::io::Result<Child> {
    static KEEPER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
        let (orders, taken): (Sender<Order>, Receiver<Order>) = channel();
        thread::spawn(move || {
            for (mut command, answer) in taken {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, answered) = channel();
    let orders = KEEPER.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    orders.send((command, answer)).expect("the keeper never ends");
    answered.recv().expect("the keeper answers")
}

/// Children, their children, and so on.
fn descendants(of: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").expect("Linux has /proc").flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // `pid (name) state parent …`: a name may hold anything. A process may end while we look.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (process, parent)));
    }
    let mut found = vec![of];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|of| of.1 == parent).map(|of| of.0));
        at += 1;
    }
    found.split_off(1)
}

/// Runs a command to its end and demands that it succeeds; what it said.
pub(super) fn succeed(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{}: {error}", super::NEEDED));
    assert!(output.status.success(), "{command:?}: {}", crate::outside::said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Copies a folder with everything that is in it, owners and modes too.
pub(super) fn copy(from: &Path, to: &Path) {
    succeed(Command::new("cp").args([OsStr::new("-a"), from.as_os_str(), to.as_os_str()]));
}
