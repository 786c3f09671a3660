//! The harness: starts the real `sluice` binary in a folder of its own, moves its clock, speaks its HTTP API in the
//! domain's words, receives its webhooks and traces. Invariant: whatever a test starts is stopped and removed when its
//! value is dropped, also on failure, and a failing test prints the broker's log. Never looks inside the broker: what
//! the suites say holds for anybody with an HTTP client. Apart from that, the `store_` modules are the bench on which the
//! message stores are tested in process.

pub mod answer;
pub mod binary;
pub mod broker;
pub mod client;
pub mod clock;
pub mod collector;
pub mod consume;
pub mod events;
mod failure;
pub mod fuzz;
pub mod guest;
pub mod h2_receiver;
pub mod history;
pub mod link;
pub mod outside;
pub mod publish;
pub mod raw_receiver;
pub mod receiver;
pub mod round_robin;
pub mod servers;
pub mod signature;
pub mod steady;
pub mod store_backends;
pub mod store_bed;
pub mod store_disk;
pub mod store_fleet;
pub mod store_oracle;
pub mod stream;
pub mod swap_record;
pub mod token;
pub mod usage;
pub mod wait;
pub mod warm;
pub mod workshop;

pub use answer::Answer;
pub use broker::{Broker, Settings};
pub use client::Client;
pub use clock::TestClock;
pub use collector::Collector;
pub use consume::Delivery;
pub use publish::Published;
pub use raw_receiver::RawReceiver;
pub use receiver::Receiver;
pub use usage::Usage;
