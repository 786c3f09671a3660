//! What each catalog promises, one test a rule, over a file (SQLite), a PostgreSQL, and a PostgreSQL behind a pooler. Invariant: a
//! rule speaks to `Catalog` alone and runs unedited over each; what a fleet's alone does is in `fleet.rs` and `migrations.rs`,
//! what a file's alone does is with the broker's own tests.

#![expect(clippy::unwrap_used, reason = "a catalog that refuses fails the test, which is what a panic says")]

#[path = "catalog/bed.rs"]
mod bed;
#[path = "catalog/changes.rs"]
mod changes;
#[path = "catalog/fleet.rs"]
mod fleet;
#[path = "catalog/migrations.rs"]
mod migrations;
#[path = "catalog/plugins.rs"]
mod plugins;
#[path = "catalog/records.rs"]
mod records;

/// Makes one test of each rule over an engine. Each has a database of its own.
macro_rules! rules {
    ($engine:ident, $kind:ident) => {
        rules! { $engine, $kind;
            changes: everything_survives_a_restart, of_concurrent_creations_one_wins_and_the_others_conflict, a_queue_has_one_subscription_and_a_group_one_on_its_topic, numbers_are_not_used_again_after_deletion_and_restart, a_revision_is_not_used_again_after_its_subscription_was_deleted, a_change_based_on_an_old_version_is_refused, settings_change_and_secrets_stay, a_column_that_was_never_written_so_is_damage, a_history_keeps_its_latest_revisions, a_closed_catalog_says_so;
            plugins: the_version_accepted_last_is_latest_and_a_label_keeps_its_bytes, a_bound_version_stays_and_an_unbound_one_goes_with_its_bytes, a_name_whose_versions_are_deleted_is_remembered_and_so_many_are, bytes_that_are_not_their_digests_are_damage;
            records: every_change_is_told_without_secrets, the_audit_log_keeps_so_many_entries_however_young, details_of_an_audit_entry_are_left_out_where_they_are_long, versions_of_a_schema_are_kept_and_the_last_one_validates;
        }
    };
    ($engine:ident, $kind:ident; $($room:ident: $($rule:ident),+;)+) => {
        mod $engine {
            $(mod $room {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    crate::$room::$rule(crate::bed::Bed::new(crate::bed::Engine::$kind, stringify!($rule)).await).await;
                })+
            })+
        }
    };
}

rules!(sqlite, Sqlite);
rules!(postgres, Postgres);
rules!(postgres_behind_a_pooler, Pooled);
