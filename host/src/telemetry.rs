//! Logs and traces: how they are set up, and the trace that a request or a delivery belongs to. Invariant: telemetry
//! never blocks, never grows without bound and never fails a request; what the collector can't take is dropped, and what
//! the log has been told often enough is counted. Metrics live with what they measure; `/metrics` is the API's.

mod export;
mod flood;
mod trace;

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::subscriber::Interest;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, dynamic_filter_fn};
use tracing_subscriber::layer::{Filter, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Telemetry;

pub use export::ExportError;
pub use flood::left_out;
pub use trace::{
    Traced, current_trace_context, in_trace, is_sampled, is_sampled_here, link_to, new_trace, parse_traceparent,
    parse_tracestate, set_parent, trace_id,
};

/// How long a stop waits for the last spans to reach the collector: long enough for a healthy one, short enough that a
/// dead one does not hold up a rolling update.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Spans that may begin a trace, by name; who makes one asks [`is_sampled`] or
/// [`is_sampled_here`] first. Others are made within one of these.
const ROOTS: [&str; 4] = ["request", "push", "consume", "prepare"];

/// Measures how long something took, for metrics, for logs, and for how the machine itself gets on. What messages may rest on
/// takes a `Clock`.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    /// Starts measuring.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place where durations are measured")]
    pub fn start() -> Stopwatch {
        Stopwatch(std::time::Instant::now())
    }

    /// The time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Why logging or tracing could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is no filter.
    #[error(
        "telemetry.log_level: '{level}' is neither a level (error, warn, info, debug, trace) nor a list such as \
             'sluice=debug,warn': {source}"
    )]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// No exporter can be built for the endpoint.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Something else in the process has set up logging.
    #[error("logging is set up twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Keeps telemetry alive; dropping it sends what is waiting to the collector, for at most `FLUSH_TIMEOUT`.
#[must_use = "dropping the guard stops the export of traces"]
#[derive(Debug)]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider
            && let Err(error) = provider.shutdown_with_timeout(FLUSH_TIMEOUT)
        {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}

/// Sets up logs on stderr and, when an endpoint is configured, traces over OTLP. Once per process, before anything is
/// logged. `node_id` names this broker in the collector.
///
/// # Errors
/// When the level or the endpoint is wrong, or logging is already set up.
pub fn init(settings: &Telemetry, node_id: &str) -> Result<Guard, TelemetryError> {
    let provider = export::provider(settings, node_id)?;
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("sluice"))
            .with_location(false)
            .with_threads(false)
            .with_filter(spans_of_sampled_work())
    });
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = if settings.log_json {
        logs.json().flatten_event(true).with_current_span(false).with_span_list(false).with_ansi(false).boxed()
    } else {
        logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed()
    };
    let logs = logs.with_filter(flood::Flood::default());
    tracing_subscriber::registry().with(level(&settings.log_level)?).with(logs).with(traces).try_init()?;
    if provider.is_some() {
        trace::export_share(settings.sampling_rate);
    }
    Ok(Guard { provider })
}

/// What is done for a request or a delivery that is not sampled makes no spans. The exporter's own HTTP client makes none
/// at all, or each export would cause spans to export.
fn spans_of_sampled_work<S>() -> impl Filter<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let is_ours = |meta: &tracing::Metadata<'_>| {
        *meta.level() <= tracing::Level::DEBUG
            && !["hyper", "h2", "reqwest", "rustls"].iter().any(|foreign| meta.target().starts_with(foreign))
    };
    let begins = |meta: &tracing::Metadata<'_>| meta.is_span() && ROOTS.contains(&meta.name());
    dynamic_filter_fn(move |meta, context| is_ours(meta) && (begins(meta) || context.lookup_current().is_some()))
        .with_callsite_filter(move |meta| if is_ours(meta) { Interest::sometimes() } else { Interest::never() })
        .with_max_level_hint(LevelFilter::DEBUG)
}

/// Sends panics to the log as well, so that they stand where everything else does, in its form and under its trace.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        let payload = panic.payload_as_str().unwrap_or("something that is no text");
        let place = panic.location().map_or_else(|| "?".to_owned(), ToString::to_string);
        tracing::error!(place, %backtrace, trace_id = trace_id(), "panicked: {payload}");
    }));
}

/// Reads a level or a list of directives.
///
/// # Errors
/// When the text is neither.
pub fn level(text: &str) -> Result<EnvFilter, TelemetryError> {
    // The client of Redis tells of each try to connect; who uses it tells what they come to, once.
    let quiet = if text.contains("redis=") { "" } else { "redis=off," };
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(format!("{quiet}{text}"))
        .map_err(|source| TelemetryError::Level { level: text.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopwatch_counts_up() {
        let watch = Stopwatch::start();
        let first = watch.elapsed();
        assert!(watch.elapsed() >= first);
    }

    #[test]
    fn levels_are_checked() {
        for good in ["info", "debug", "sluice=debug,warn", "sluice::store=trace,info"] {
            assert!(level(good).is_ok(), "{good}");
        }
        for bad in ["sluice=loud", "a=b=c"] {
            assert!(level(bad).is_err(), "{bad}");
        }
    }
}
