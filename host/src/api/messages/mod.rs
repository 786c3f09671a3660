//! Messages: published, consumed, settled, looked at, erased. Invariant: a handler reads, makes one call to the domain,
//! and answers. Never touches the store's files or a plugin itself.

mod batch;
mod browse;
mod cloud_events;
mod consume;
mod one;
mod publish;
mod publish_body;
mod publish_stream;
mod request;
mod settle;
mod settle_batch;
mod slots;
mod stream;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;

pub(super) use self::batch::is_ndjson;
pub(super) use self::browse::offset;
pub(super) use self::consume::ACK_TIMEOUT_MAX;
pub(super) use self::one::MessageView;
pub(super) use self::publish_body::{PublishBody, Reading};
pub use self::slots::Slots;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(publish::publish))
        .routes(routes!(batch::publish_batch))
        .routes(routes!(publish_stream::publish_stream))
        .routes(routes!(request::request))
        .routes(routes!(consume::consume))
        .routes(routes!(stream::stream))
        .routes(routes!(settle::ack))
        .routes(routes!(settle::nack))
        .routes(routes!(settle::extend))
        .routes(routes!(settle_batch::settle_batch))
        .routes(routes!(one::get, one::erase))
        .routes(routes!(browse::browse))
}
