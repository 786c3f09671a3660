//! Webhooks.
pub mod breaker;
pub mod guard;
pub mod limits;
pub mod queue;
pub mod sender;
pub mod signature;
pub mod target;
#[cfg(test)]
mod testing;
