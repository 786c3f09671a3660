//! Sends spans to a collector by OTLP over HTTP. Invariant: spans wait in a bounded queue on a thread of their own; when
//! the collector is slow or gone they are dropped, and that is logged once until it is back. Never uses the broker's
//! runtime, so an export can neither delay a message nor wait for one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};

use crate::config::Telemetry;

/// Spans that wait for export at most: some seconds of a busy broker at the production sampling rate, about 10 MB.
const QUEUE_SPANS_MAX: usize = 8192;
/// Spans in one request, the SDK's own default.
const BATCH_SPANS_MAX: usize = 512;
/// How long the collector may take for one batch; while it takes that long, the queue fills and the rest is dropped.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a span waits for its batch to fill.
const BATCH_DELAY: Duration = Duration::from_secs(2);

/// Why no exporter could be built.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The endpoint can't be used.
    #[error("telemetry.otlp_endpoint '{endpoint}': {reason}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// The thread's runtime could not be made.
    #[error("the trace exporter could not start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// The source of spans, or none when no endpoint is configured.
pub(super) fn provider(settings: &Telemetry, node_id: &str) -> Result<Option<SdkTracerProvider>, ExportError> {
    let Some(endpoint) = &settings.otlp_endpoint else { return Ok(None) };
    let refuse = |reason: String| ExportError::Endpoint { endpoint: endpoint.clone(), reason };
    let client = reqwest::Client::builder()
        .timeout(EXPORT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| refuse(error.to_string()))?;
    let otlp = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(traces_url(endpoint))
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| refuse(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let batch = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE_SPANS_MAX)
        .with_max_export_batch_size(BATCH_SPANS_MAX)
        .with_scheduled_delay(BATCH_DELAY)
        .build();
    let exporter = OwnRuntime { otlp, runtime, failing: AtomicBool::new(false) };
    Ok(Some(
        SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batch).build())
            // What is not to be exported is not made: `is_sampled` has decided before.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource(node_id))
            .build(),
    ))
}

fn resource(node_id: &str) -> Resource {
    Resource::builder()
        .with_service_name("sluice")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", node_id.to_owned()))
        .build()
}

/// The endpoint with the path of OTLP's trace signal, unless it is there already.
fn traces_url(endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    if base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") }
}

/// The batch processor calls its exporter from a bare thread, where an HTTP client built on tokio finds no reactor: this
/// one brings its own, and runs it on that thread.
#[derive(Debug)]
struct OwnRuntime<E> {
    otlp: E,
    runtime: tokio::runtime::Runtime,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for OwnRuntime<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.runtime.block_on(self.otlp.export(batch));
        match (&result, self.failing.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(%error, spans, "traces do not reach the collector and are dropped"),
            (Ok(()), true) => tracing::info!("traces reach the collector again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.otlp.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use opentelemetry::trace::{Tracer as _, TracerProvider as _};

    use super::*;

    fn settings(endpoint: Option<String>) -> Telemetry {
        Telemetry {
            otlp_endpoint: endpoint,
            sampling_rate: 1.0,
            log_json: false,
            log_level: "info".to_owned(),
            public_metrics: true,
            public_docs: true,
        }
    }

    #[test]
    fn the_trace_path_is_added_once() {
        for (given, used) in [
            ("http://otel:4318", "http://otel:4318/v1/traces"),
            ("http://otel:4318/", "http://otel:4318/v1/traces"),
            ("http://otel:4318/v1/traces", "http://otel:4318/v1/traces"),
            ("http://gate/otlp", "http://gate/otlp/v1/traces"),
        ] {
            assert_eq!(traces_url(given), used);
        }
    }

    #[test]
    fn without_an_endpoint_there_is_no_provider() {
        assert!(provider(&settings(None), "node").expect("nothing to go wrong").is_none());
    }

    #[test]
    fn spans_reach_the_collector_when_the_broker_stops() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let collector = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the exporter connects");
            let mut request = Vec::new();
            let mut chunk = [0; 4096];
            while !request.windows(15).any(|part| part == b"a-span-to-find!") {
                let read = stream.read(&mut chunk).expect("the exporter sends");
                assert!(read > 0, "the request ended early");
                request.extend_from_slice(&chunk[..read]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("the answer is sent");
            String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned()
        });
        let provider = provider(&settings(Some(endpoint)), "node").expect("built").expect("configured");
        drop(provider.tracer("test").start("a-span-to-find!"));
        provider.shutdown_with_timeout(Duration::from_secs(3)).expect("flushed");
        assert_eq!(collector.join().expect("the collector ends"), "POST /v1/traces HTTP/1.1");
    }

    #[test]
    fn a_dead_collector_holds_nothing_up() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let provider = provider(&settings(Some(format!("http://{free}"))), "node").expect("built").expect("configured");
        for _ in 0..QUEUE_SPANS_MAX * 2 {
            drop(provider.tracer("test").start("lost"));
        }
        let _ = provider.shutdown_with_timeout(Duration::from_millis(200));
    }
}
