//! PgBouncer before a PostgreSQL, in transaction mode. Invariant: between two transactions a client's connection to the server
//! is anybody's, as in a deployment: nothing that a session remembers is there the next time.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::process::{self, Process};
use super::{Postgres, postgres, program};
use crate::wait;

/// Connections to the server, fewer than clients have: what belongs to a session gets mixed up at once.
const SERVER_CONNECTIONS: u32 = 3;

/// A running pooler.
#[derive(Debug)]
pub struct Pooler {
    folder: PathBuf,
    port: u16,
    server_port: u16,
    _process: Process,
}

impl Pooler {
    /// The usual pooler before the usual server, one for all tests of the process.
    ///
    /// # Panics
    /// When it does not start.
    pub fn shared() -> &'static Pooler {
        static SHARED: OnceLock<Pooler> = OnceLock::new();
        SHARED.get_or_init(|| process::on_a_thread(async || Pooler::before(Postgres::shared()).await))
    }

    /// A pooler before `server`, ready.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn before(server: &Postgres) -> Pooler {
        let folder = process::folder("pooler");
        let port = process::free_port();
        let (user, password) = postgres::CREDENTIALS;
        fs::write(folder.join("users"), format!("\"{user}\" \"{password}\"\n"))
            .expect("a folder of ours can be written");
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = {SERVER_CONNECTIONS}\nmax_client_conn = 500\n\
             server_idle_timeout = 2\nignore_startup_parameters = extra_float_digits\n",
            server.port(),
            folder.join("users").display()
        );
        let file = folder.join("pgbouncer.ini");
        fs::write(&file, settings).expect("a folder of ours can be written");
        let mut command = program("usr/sbin/pgbouncer");
        command.arg(&file);
        let mut process = Process::start(command, &folder.join("log"));
        let server_port = server.port();
        let url = server.url().replace(&format!(":{server_port}/"), &format!(":{port}/"));
        wait::until("PgBouncer answers", async || {
            if let Some(why) = process.has_ended() {
                panic!("PgBouncer ended at start: {why}");
            }
            PgConnection::connect(&url).await.ok()?.close().await.ok()
        })
        .await;
        Pooler { folder, port, server_port, _process: process }
    }

    /// The address of the database at `url` (of the server) through the pooler.
    #[must_use]
    pub fn url(&self, url: &str) -> String {
        url.replace(&format!(":{}/", self.server_port), &format!(":{}/", self.port))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
