//! One HAProxy. Invariant: it runs the configuration that it is given, as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::process::{self, Process};
use super::program;
use crate::client::http_client;
use crate::wait;

const PROGRAM: &str = "usr/sbin/haproxy";

/// A running proxy.
#[derive(Debug)]
pub struct Haproxy {
    folder: PathBuf,
    _process: Process,
}

impl Haproxy {
    /// What it says of a configuration, warnings being faults.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn check(config: &Path) -> Output {
        program(PROGRAM).args(["-c", "-dW", "-f"]).arg(config).output().expect("HAProxy starts")
    }

    /// A proxy with this configuration, once it answers 200 at `ready`.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(config: &str, ready: &str) -> Haproxy {
        let folder = process::folder("haproxy");
        let file = folder.join("haproxy.cfg");
        fs::write(&file, config).expect("a folder of ours can be written");
        let mut command = program(PROGRAM);
        command.args(["-db", "-f"]).arg(&file);
        let mut process = Process::start(command, &folder.join("log"));
        let http = http_client();
        wait::until("HAProxy is ready", async || {
            if let Some(why) = process.has_ended() {
                panic!("HAProxy ended at start: {why}");
            }
            http.get(ready).send().await.ok()?.error_for_status().ok().map(drop)
        })
        .await;
        Haproxy { folder, _process: process }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
