//! `sluice migrate` on a real PostgreSQL.

use std::process::{Command, Output};

use sluice_tests::binary;
use sluice_tests::outside::said;
use sluice_tests::servers::Postgres;

fn migrate(arguments: &[&str], database: &str) -> Output {
    let mut command = Command::new(binary::sluice());
    command.arg("migrate").args(arguments).env("ConnectionStrings__PostgreSQL", database);
    command.output().expect("sluice starts")
}

#[tokio::test]
async fn tables_are_brought_up_to_date_once_and_the_state_is_told() {
    let server = Postgres::shared();
    let url = server.database("migrate");
    let status = migrate(&["status", "--json"], &url);
    assert_eq!(status.status.code(), Some(1), "{}", said(&status));
    assert!(said(&status).contains(r#""state": "missing""#), "{}", said(&status));

    let planned = migrate(&["up", "--dry-run"], &url);
    assert!(planned.status.success(), "{}", said(&planned));
    assert!(said(&planned).contains("CREATE TABLE audit_logs"), "{}", said(&planned));
    assert_eq!(migrate(&["status"], &url).status.code(), Some(1), "a dry run changes nothing");

    let done = migrate(&["up"], &url);
    assert!(done.status.success() && said(&done).contains("001_initial_schema.sql"), "{}", said(&done));
    let again = migrate(&["up"], &url);
    assert!(again.status.success() && said(&again).contains("nothing to do"), "{}", said(&again));
    let nothing = migrate(&["up", "--dry-run"], &url);
    assert!(nothing.status.success() && said(&nothing).is_empty(), "{}", said(&nothing));
    let status = migrate(&["status"], &url);
    assert!(status.status.success() && said(&status).contains("001_initial_schema"), "{}", said(&status));
}

#[tokio::test]
async fn the_guides_words_serve_and_no_password_is_shown() {
    let server = Postgres::shared();
    let url = server.database("words");
    let name = url.rsplit('/').next().expect("a database");
    let words = |password: &str| {
        format!("Host=127.0.0.1;Port={};Database={name};Username=messaging_user;Password={password}", server.port())
    };
    let done = migrate(&["up"], &words("a/pass@word"));
    assert!(done.status.success(), "{}", said(&done));
    let refused = migrate(&["up"], &words("hunter2"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("password authentication failed"), "{}", said(&refused));
    for (database, code) in [
        ("Host=127.0.0.1;Port=1;Database=d;Username=u;Password=hunter2", 3),
        ("Host=127.0.0.1;Username=u;Password=hunter2", 2),
        ("Host=127.0.0.1;Database=d;Username=u;Password=hunter2;Warp=9", 2),
    ] {
        let refused = migrate(&["status"], database);
        assert_eq!(refused.status.code(), Some(code), "{}", said(&refused));
        assert!(!said(&refused).contains("hunter2"), "{}", said(&refused));
    }
    let help = migrate(&["up", "--help"], &words("hunter2"));
    assert!(!said(&help).contains("hunter2"), "{}", said(&help));
}
