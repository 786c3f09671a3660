//! The trace that the current work belongs to (W3C Trace Context), with or without a collector. Invariant: a trace
//! context that leaves here is valid by the recommendation. Never trusts a caller's `tracestate` beyond its length.

use std::future::Future;
use std::sync::{Arc, LazyLock, OnceLock};

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::entropy::Entropy;
use crate::message::TraceContext;

/// Bytes of a `tracestate` that is passed on: what the recommendation asks for (§3.3.1.5); a longer one is left out.
const TRACESTATE_BYTES_MAX: usize = 512;

/// Ids of traces and their sampling need no replay, so they don't come from the broker's own sequence.
static IDS: LazyLock<Entropy> = LazyLock::new(Entropy::system);
/// Share of the traces that begin here and are exported; none where there is no collector.
static SHARE: OnceLock<f64> = OnceLock::new();

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// A future that runs in a trace; see [`in_trace`].
pub type Traced<F> = tokio::task::futures::TaskLocalFuture<TraceContext, F>;

/// Reads a `traceparent` header (W3C Trace Context §3.2). A later version is read as version 00, as the recommendation
/// asks. `None` for anything malformed: the caller then begins a trace of its own.
#[must_use]
pub fn parse_traceparent(text: &str) -> Option<TraceContext> {
    let text = text.trim_matches([' ', '\t']);
    let fields = text.get(..55).filter(|fields| fields.is_ascii())?;
    let version = &fields[..2];
    let whole = match version {
        "ff" => false,
        "00" => text.len() == 55,
        _ => text.len() == 55 || text.as_bytes()[55] == b'-',
    };
    let dashes = [2, 35, 52].iter().all(|&at| fields.as_bytes()[at] == b'-');
    let hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let parts = [version, fields.get(3..35)?, fields.get(36..52)?, fields.get(53..55)?];
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    if !whole || !dashes || !parts.iter().all(|part| hex(part)) || zero(parts[1]) || zero(parts[2]) {
        return None;
    }
    Some(TraceContext { parent: format!("00{}", &fields[2..]).into(), state: None })
}

/// Reads a `tracestate` header: kept as given when it is one, left out when it is too long or malformed.
#[must_use]
pub fn parse_tracestate(text: &str) -> Option<Arc<str>> {
    let usable = !text.is_empty() && text.len() <= TRACESTATE_BYTES_MAX;
    (usable && text.parse::<TraceState>().is_ok()).then(|| text.into())
}

/// From now on there is a collector, for this share of the traces that begin here.
pub(super) fn export_share(share: f64) {
    // The subscriber can be set once, and so can this.
    let _ = SHARE.set(share);
}

/// Whether spans are to be made for work that continues `upstream`, or begins a trace: decided before anything is made,
/// since a span that is made and then not exported costs as much as one that is.
#[must_use]
pub fn is_sampled(upstream: Option<&TraceContext>) -> bool {
    let Some(share) = SHARE.get() else { return false };
    match upstream.map(|context| flags(&context.parent)) {
        Some(flags) => flags.is_some_and(|flags| flags.is_sampled()),
        None => IDS.fraction() < *share,
    }
}

/// The same for work that may stand in a request, in a delivery, or by itself, such as what an event stream hands out.
#[must_use]
pub fn is_sampled_here() -> bool {
    SHARE.get().is_some() && is_sampled(current_trace_context().as_ref())
}

fn flags(parent: &str) -> Option<TraceFlags> {
    Some(TraceFlags::new(u8::from_str_radix(parent.get(53..55)?, 16).ok()?))
}

/// A new trace that nobody upstream began; not sampled, as no span of it is exported.
#[must_use]
pub fn new_trace() -> TraceContext {
    // Zero is no valid id; the odds are 1 in 2⁶⁴, the `| 1` settles it.
    let parent = format!("00-{:016x}{:016x}-{:016x}-00", IDS.next_u64(), IDS.next_u64() | 1, IDS.next_u64() | 1);
    TraceContext { parent: parent.into(), state: None }
}

/// Runs `future` in a trace: [`trace_id`] and [`current_trace_context`] then answer with it where no span is
/// made. One call per request, around the handler.
pub fn in_trace<F: Future>(context: TraceContext, future: F) -> Traced<F> {
    CURRENT.scope(context, future)
}

/// The trace of the current work: the current span's where the work is sampled, else the one that [`in_trace`] was given. To be stored with a message.
#[must_use]
pub fn current_trace_context() -> Option<TraceContext> {
    exported_span().map(|span| to_wire(&span)).or_else(|| CURRENT.try_with(Clone::clone).ok())
}

/// The id that finds the current work in logs and traces: 32 hex digits. Outside any trace, a new one.
#[must_use]
pub fn trace_id() -> String {
    if let Some(span) = exported_span() {
        return span.trace_id().to_string();
    }
    let begun = CURRENT.try_with(Clone::clone).unwrap_or_else(|_| new_trace());
    begun.parent.get(3..35).map_or_else(String::new, str::to_owned)
}

/// Makes `span` a child of `context`. Before the span is entered. Without a collector this does nothing.
pub fn set_parent(span: &Span, context: &TraceContext) {
    if let Some(remote) = from_wire(context) {
        // An error means that no collector is configured or that the span is filtered out: there is nothing to parent.
        let _ = span.set_parent(Context::new().with_remote_span_context(remote));
    }
}

/// Links `span` to `context`: a delivery to the publish it carries. Without a collector this does nothing.
pub fn link_to(span: &Span, context: &TraceContext) {
    if let Some(remote) = from_wire(context) {
        span.add_link(remote);
    }
}

fn exported_span() -> Option<SpanContext> {
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

fn to_wire(span: &SpanContext) -> TraceContext {
    let flags = span.trace_flags() & TraceFlags::SAMPLED;
    let state = span.trace_state().header();
    TraceContext {
        parent: format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), flags.to_u8()).into(),
        state: (!state.is_empty()).then(|| state.into()),
    }
}

fn from_wire(context: &TraceContext) -> Option<SpanContext> {
    let parent = parse_traceparent(&context.parent)?.parent;
    let trace = TraceId::from_hex(parent.get(3..35)?).ok()?;
    let span = SpanId::from_hex(parent.get(36..52)?).ok()?;
    let flags = flags(&parent)?;
    let state = context.state.as_deref().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    Some(SpanContext::new(trace, span, flags, true, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn traceparents_are_read_by_the_recommendation() {
        let later = format!("cc{}-what-will-be", &PARENT[2..]);
        for good in [PARENT, &format!(" {PARENT}\t"), &later] {
            assert_eq!(parse_traceparent(good).map(|context| context.parent), Some(PARENT.into()), "{good}");
        }
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473ü-00f067aa0ba902b7-0",
        ] {
            assert_eq!(parse_traceparent(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_tracestate_is_kept_whole_or_left_out() {
        assert_eq!(
            parse_tracestate("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE").as_deref(),
            Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")
        );
        for bad in ["", "no-equals-sign", &format!("a={}", "x".repeat(600))] {
            assert_eq!(parse_tracestate(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_context_survives_the_way_through_opentelemetry() {
        let context = TraceContext { parent: PARENT.into(), state: Some("rojo=1".into()) };
        let span = from_wire(&context).expect("valid");
        assert!(span.is_remote() && span.is_sampled());
        assert_eq!(to_wire(&span), context);
    }

    #[tokio::test]
    async fn without_a_collector_the_request_keeps_one_id() {
        assert_eq!(current_trace_context(), None);
        assert_ne!(trace_id(), trace_id());
        let context = new_trace();
        assert_eq!(parse_traceparent(&context.parent), Some(context.clone()));
        in_trace(context.clone(), async {
            assert_eq!(current_trace_context(), Some(context.clone()));
            assert_eq!(trace_id(), &context.parent[3..35]);
        })
        .await;
    }

    #[test]
    fn a_span_follows_its_parent_when_traces_are_exported() {
        use opentelemetry::trace::TracerProvider as _;
        use tracing_subscriber::layer::SubscriberExt as _;
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let span = tracing::info_span!("publish");
        set_parent(&span, &TraceContext { parent: PARENT.into(), state: None });
        let _entered = span.enter();
        assert_eq!(trace_id(), &PARENT[3..35]);
        let context = current_trace_context().expect("in a span");
        assert!(context.parent.starts_with(&PARENT[..35]) && *context.parent != *PARENT, "{context:?}");
    }
}
