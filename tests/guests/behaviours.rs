//! All that hostile guests do, listed once. Invariant: what obeys a row (the guest `hostile`, the text of a component, a
//! file) and what shows that it hurts nobody (the host's tests, the suite over the real binary) are both made from the row,
//! so that a row without the one or the other does not compile. Never a place for a guest that is merely useful.
//!
//! A list is a macro that hands its rows to another one: `misdeeds!(tests)` is `tests! { spin … }`. A row's name is the
//! word that the guest is told, the function that obeys it, and the test that shows what becomes of it.

/// What the guest `hostile` does with a message whose header `do` says so. Each is a function of the guest, and one of
/// `host/src/pipeline/tests/hostile/misdeeds.rs` that says what the host makes of it.
#[macro_export]
macro_rules! misdeeds {
    ($with:ident) => {
        $with! {
            // Time.
            spin drip sleep
            // Memory and stack.
            bomb leak recurse recurse_and_call
            // Ends.
            panic edit_and_panic fail exit
            // The batch.
            index drop_borrow keep_borrow
            // Too much, too long, not allowed.
            payload payload_of_the_topic payloads copy headers long_header control_header long_key media_type
            long_names emit emits rejects
            // Noise.
            log print forged_log
            // Powers that it has not.
            file net env
            // Powers that it has, and abuses.
            kv_key kv_value kv_sets kv_index figures figure_names schema_late
        }
    };
}

/// What the guest `hostile` does in `configure` if its config's `do` says so.
#[macro_export]
macro_rules! configures {
    ($with:ident) => {
        $with! { configure_spin configure_panic configure_bomb configure_recurse configure_refuse configure_log configure_kv configure_schemas }
    };
}

/// What no Rust guest would be compiled to: components written as text, from `raw.wat`.
#[macro_export]
macro_rules! raws {
    ($with:ident) => {
        $with! {
            // While it runs.
            table_bomb stack_bomb borrow_kept
            // Refused before it does.
            table_large tables memory_large memories core_instances start_spins function_long functions interfaces
        }
    };
}

/// What is no plugin, brought as one.
#[macro_export]
macro_rules! files {
    ($with:ident) => {
        $with! {
            empty random_bytes truncated core_module machine_code wrong_world wrong_import newer_world newer_function
            oversized
        }
    };
}

/// Those that a process might die of, shown over the real binary as well: `tests/suites/hostile.rs`.
#[macro_export]
macro_rules! deadly {
    ($with:ident) => {
        $with! {
            recurse recurse_and_call stack_bomb bomb table_bomb payload log print drip configure_spin start_spins
            oversized
        }
    };
}
