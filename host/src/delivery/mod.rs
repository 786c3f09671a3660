//! A message's way out: lease → the subscription's stages → hand out (`pull`) or send (`push`). Invariant: what is handed
//! out or sent is leased, and its lease has not ended. Never settles for a consumer.

pub mod backoff;
mod cloud_event;
pub mod dead_letters;
pub mod envelope;
pub mod failure_view;
pub mod liveness;
pub mod outbound;
pub mod pull;
pub mod push;
mod remembered;
pub mod replies;
mod turns;
