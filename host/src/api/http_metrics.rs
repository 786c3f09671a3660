//! Requests in figures: how many, how long, by route and status. Invariant: labels come from the route table and the
//! status alone, so their number is bounded whatever clients send. Never measures a message.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::auth::table::ROUTES;

/// Statuses whose counters are at hand; the others are looked up.
const USUAL: [u16; 4] = [200, 201, 202, 204];
/// The `route` of requests that no route matches.
const UNMATCHED: &str = "unmatched";

/// All figures.
pub struct HttpMetrics {
    requests: IntCounterVec,
    in_flight: IntGauge,
    routes: Vec<RouteMetrics>,
    unmatched: RouteMetrics,
}

struct RouteMetrics {
    method: &'static str,
    route: &'static str,
    duration: Histogram,
    usual: [IntCounter; USUAL.len()],
}

impl HttpMetrics {
    /// Registers them; `in_flight` is counted in, and is registered.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(in_flight: IntGauge, registry: &Registry) -> prometheus::Result<HttpMetrics> {
        let requests = IntCounterVec::new(
            Opts::new("sluice_http_requests_total", "Requests answered, by route template and status."),
            &["method", "route", "status"],
        )?;
        let duration = HistogramVec::new(
            prometheus::histogram_opts!(
                "sluice_http_request_duration_seconds",
                "From a request's head to its answer's head, by route template.",
                prometheus::exponential_buckets(0.000_1, 3.0, 12)?
            ),
            &["method", "route"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        let of = |method: &'static str, route: &'static str| RouteMetrics {
            method,
            route,
            duration: duration.with_label_values(&[method, route]),
            usual: USUAL.map(|status| requests.with_label_values(&[method, route, &status.to_string()])),
        };
        let routes = ROUTES.iter().map(|route| of(route.method.as_str(), route.path)).collect();
        Ok(HttpMetrics { routes, unmatched: of("any", UNMATCHED), requests, in_flight })
    }

    /// A request has begun; the returned guard ends it.
    #[must_use]
    pub fn begin(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// How many requests wait for their answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        usize::try_from(self.in_flight.get()).unwrap_or(0)
    }

    /// Notes an answer; `route` is its place in the table.
    pub fn observe(&self, route: Option<usize>, status: u16, seconds: f64) {
        let metrics = route.and_then(|index| self.routes.get(index)).unwrap_or(&self.unmatched);
        metrics.duration.observe(seconds);
        match USUAL.iter().position(|usual| *usual == status) {
            Some(index) => metrics.usual[index].inc(),
            None => {
                self.requests.with_label_values(&[metrics.method, metrics.route, &status.to_string()]).inc();
            }
        }
    }
}

/// Counts one request as being answered, until it is dropped: also when its client has gone.
#[derive(Debug)]
pub struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
