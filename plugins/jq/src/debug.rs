//! What a program says with `debug` and `stderr` goes to the plugin's log.
//! Invariant: a line is written as it is said; how many are kept is the broker's business. Never changes a value.

use log::{Log, Metadata, Record};
use sluice_plugin::log::{Level, write};

struct PluginLog;

impl Log for PluginLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            log::Level::Error => Level::Error,
            log::Level::Warn => Level::Warn,
            log::Level::Info => Level::Info,
            log::Level::Debug | log::Level::Trace => Level::Debug,
        };
        write(level, *record.args());
    }

    fn flush(&self) {}
}

/// Once per instance; it stays as it is after that.
pub(crate) fn to_the_plugins_log() {
    if log::set_logger(&PluginLog).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}
