//! The contract of `MessageStore` (the header of `host/src/store/mod.rs`), one test a rule, over every engine. Invariant:
//! a rule speaks to the trait alone and runs unedited over each engine; where an engine lacks a capability, the rules of
//! that capability have nothing to say. A new rule of the contract comes here first.

#![expect(clippy::unwrap_used, reason = "a store that refuses fails the test, which is what a panic says")]

#[path = "store_conformance/append.rs"]
mod append;
#[path = "store_conformance/browse.rs"]
mod browse;
#[path = "store_conformance/dead_letters.rs"]
mod dead_letters;
#[path = "store_conformance/dedup.rs"]
mod dedup;
#[path = "store_conformance/durability.rs"]
mod durability;
#[path = "store_conformance/grants.rs"]
mod grants;
#[path = "store_conformance/groups.rs"]
mod groups;
#[path = "store_conformance/leases.rs"]
mod leases;
#[path = "store_conformance/ordered.rs"]
mod ordered;
#[path = "store_conformance/retention.rs"]
mod retention;
#[path = "store_conformance/schedule.rs"]
mod schedule;
#[path = "store_conformance/values.rs"]
mod values;

/// Makes one test of each rule over the backend that `$backend` makes of the rule's name. Each has data of its own.
macro_rules! conformance {
    ($engine:ident, $backend:expr) => {
        conformance! { $engine, $backend;
            append: items_of_a_lane_get_rising_offsets, partitions_and_lanes_count_apart, every_field_comes_back,
                a_stale_revision_stores_nothing, a_refused_batch_stores_nothing, emitted_messages_come_with_their_source,
                an_unknown_topic_or_partition_is_refused, a_key_value_write_meets_the_version_it_was_read_at,
                a_deleted_topic_is_gone, a_topics_settings_change_and_its_partitions_do_not, a_closed_store_refuses;
            browse: pages_show_each_message_once_in_order, a_page_keeps_its_bounds, reading_begins_where_it_is_told,
                a_reader_that_goes_on_where_it_was_follows_the_log,
                reading_moves_no_cursor, a_message_is_found_by_its_id, an_erased_message_is_nowhere, figures_add_up;
            dead_letters: the_last_attempt_makes_a_dead_letter_with_its_facts, an_expired_last_lease_makes_a_dead_letter,
                a_dead_letter_at_once, without_a_dead_letter_topic_the_message_is_done,
                a_dead_letter_may_leave_its_payload_behind,
                what_expires_undelivered_is_a_dead_letter_where_that_is_wanted,
                what_has_expired_is_a_dead_letter_whatever_moves_the_cursor_meanwhile, a_stage_turns_a_message_away,
                discarding_takes_off_the_list, a_replay_is_for_its_group_alone_and_off_the_list,
                an_outdated_replay_leaves_the_list_alone, dead_letters_are_listed_in_pages;
            dedup: a_repeat_gets_the_first_outcome, another_request_under_the_key_is_a_conflict, a_key_ages_out, a_key_that_comes_again_counts_once,
                repeats_in_one_batch_store_one, of_racing_appends_one_stores, outcomes_of_every_kind_are_kept,
                a_full_key_table_refuses_and_keeps_no_key, all_or_nothing_stores_nothing_with_a_duplicate,
                keys_are_of_their_topic;
            durability: appended_is_there_after_a_crash, settled_is_settled_after_a_crash,
                a_retry_is_remembered_after_a_crash, keys_revisions_and_values_outlive_a_crash,
                attempts_outlive_a_restart, a_restart_ends_all_leases, at_most_once_is_never_again,
                many_restarts_lose_nothing, topics_and_groups_outlive_a_crash, a_large_batch_is_one_unit;
            grants: grants_follow_offsets, the_highest_lane_goes_first_and_the_lowest_is_not_starved,
                a_lease_keeps_its_bounds, more_says_whether_more_waits, more_knows_of_every_partition, of_racing_leases_each_message_has_one,
                an_expired_message_is_not_granted, a_target_is_the_only_group_that_gets_it,
                at_most_once_settles_by_the_grant, waiting_is_told_of_appends_retries_and_expiries;
            groups: each_group_gets_every_message, a_group_begins_where_it_is_told, a_group_keeps_its_cursor_when_changed,
                a_deleted_group_is_gone, seeking_back_delivers_again, seeking_on_skips, seeking_by_time,
                seeking_by_offset_moves_one_lane, seeking_in_one_lane_hides_nothing_of_another, seeking_ends_leases, a_seek_makes_no_dead_letter_of_what_is_out, purging_settles_what_waits,
                a_snapshot_brings_back_what_was_not_settled_then, a_snapshot_is_of_its_group_and_keeps_no_message;
            leases: a_lease_ends_at_its_deadline, a_late_settle_is_refused, an_ack_is_for_good,
                a_receipt_settles_once, a_wrong_message_is_refused, a_holder_settles_without_a_receipt,
                a_retry_waits_and_counts, a_release_does_not_count, an_extended_lease_lasts, one_refusal_touches_no_other,
                an_old_receipt_settles_no_later_lease, what_is_not_there_is_refused;
            ordered: a_key_has_one_message_out_at_a_time, a_retry_keeps_its_place, an_expired_lease_keeps_its_place,
                a_dead_letter_lets_the_next_go, order_ignores_lanes, order_outlives_a_restart;
            retention: what_is_too_old_is_gone, what_is_gone_is_not_missed_when_the_store_opens, unsettled_messages_expire_and_are_counted,
                a_full_topic_refuses_until_messages_are_settled, settled_messages_make_room,
                an_atomic_batch_finds_room_or_none, dead_letters_have_retention_of_their_own;
            schedule: a_scheduled_message_waits, what_is_due_enters_in_order, the_schedule_outlives_a_crash,
                retention_counts_from_when_it_is_due, a_scheduled_message_is_erased, what_is_due_already_enters_at_once;
            values: a_namespace_tells_its_room_and_takes_no_more, what_was_read_and_has_changed_refuses_the_batch,
                values_go_with_the_items_that_they_are_written_for,
                what_stands_on_an_item_that_is_not_stored_refuses_the_batch, nobody_comes_before_who_has_the_turn, values_go_with_their_topic_and_are_listed_in_order;
        }
    };
    ($engine:ident, $backend:expr; $($room:ident: $($rule:ident),+;)+) => {
        mod $engine {
            $(mod $room {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    crate::$room::$rule(sluice_tests::store_bed::Bed::new($backend(stringify!($rule))).await).await;
                })+
            })+
        }
    };
}

conformance!(embedded, sluice_tests::store_backends::OnDisk::named);
// Each reopening of a rule is a power cut here, and each rule loses other parts of what was not synced.
conformance!(embedded_without_power, sluice_tests::store_backends::PowerCuts::named);
conformance!(embedded_cramped, sluice_tests::store_backends::PowerCuts::cramped);
conformance!(postgres, sluice_tests::store_backends::OnPostgres::named);
// Each call of a rule goes to another broker than the one before, through a pooler.
conformance!(postgres_fleet, sluice_tests::store_backends::OnPostgres::fleet);
// Each reopening of a rule moves all there is from a folder to a database, or back.
conformance!(moved_up, sluice_tests::store_backends::Moving::up);
conformance!(moved_down, sluice_tests::store_backends::Moving::down);
conformance!(redis, sluice_tests::store_backends::OnRedis::named);
conformance!(redis_fleet, sluice_tests::store_backends::OnRedis::fleet);
