//! Sluice, a message broker whose topics run their owners' own logic as WebAssembly components. The modules stand in the
//! order of a message's way; ARCHITECTURE.md has the map.

pub mod clock;
pub mod entropy;
pub mod message;
