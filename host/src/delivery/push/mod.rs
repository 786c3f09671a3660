//! Webhooks: `supervisor` runs a `worker` per subscription, which takes messages from its `feed`, lines them up in a
//! `queue`, asks its `endpoint` (`limits`, `breaker`, `figures`) and the `room` of all whether one may go, and has the `sender` make one signed request
//! (`target`, `signature`, `credentials`) to an address that the `guard` lets pass. Invariant: one bad endpoint never delays another.
//! Absent on purpose: redirects, proxies, cookies, and retries that nobody counts.

pub mod breaker;
pub mod credentials;
pub mod endpoint;
pub mod feed;
pub mod figures;
pub mod guard;
pub mod limits;
pub mod metrics;
pub mod queue;
pub mod room;
pub mod sender;
pub mod signature;
pub mod supervisor;
pub mod target;
pub mod test_delivery;
#[cfg(test)]
mod testing;
pub mod worker;

pub use endpoint::{AttemptRecord, EndpointStatus};
pub use figures::EndpointMetrics;
pub use guard::validate_endpoint;
pub use supervisor::{PushError, PushParts, PushSupervisor};
pub use target::validate_headers;
pub use test_delivery::{TestRequest, TestResponse, TestResult};
