//! Lines for the plugin's log: `log::info!("…")`. In the broker they show under the plugin's name; in native
//! tests `testing::logs` hands them out.
//! Invariant: writing a line never fails and never blocks. Never formats what is thrown away.

use std::fmt;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the plugin's author.
    Debug,
    /// Worth knowing.
    Info,
    /// Something is off; the stage copes.
    Warn,
    /// The stage did not do its work.
    Error,
}

/// Writes one line. The macros of this module are the usual way.
pub fn write(level: Level, line: fmt::Arguments<'_>) {
    let text = match line.as_str() {
        Some(text) => text.into(),
        None => std::borrow::Cow::Owned(line.to_string()),
    };
    #[cfg(target_family = "wasm")]
    {
        use crate::host::bindings::sluice::plugin::log as host;
        let level = match level {
            Level::Debug => host::Level::Debug,
            Level::Info => host::Level::Info,
            Level::Warn => host::Level::Warn,
            Level::Error => host::Level::Error,
        };
        host::write(level, &text);
    }
    #[cfg(not(target_family = "wasm"))]
    crate::testing::keep_log_line(level, text.into_owned());
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_debug { ($($line:tt)+) => { $crate::log::write($crate::log::Level::Debug, ::std::format_args!($($line)+)) }; }
#[doc(hidden)]
#[macro_export]
macro_rules! __log_info { ($($line:tt)+) => { $crate::log::write($crate::log::Level::Info, ::std::format_args!($($line)+)) }; }
#[doc(hidden)]
#[macro_export]
macro_rules! __log_warn { ($($line:tt)+) => { $crate::log::write($crate::log::Level::Warn, ::std::format_args!($($line)+)) }; }
#[doc(hidden)]
#[macro_export]
macro_rules! __log_error { ($($line:tt)+) => { $crate::log::write($crate::log::Level::Error, ::std::format_args!($($line)+)) }; }

pub use __log_debug as debug;
pub use __log_error as error;
pub use __log_info as info;
pub use __log_warn as warn;
