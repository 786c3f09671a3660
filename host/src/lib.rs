//! Sluice, a message broker whose topics run their owners' own logic as WebAssembly components. The modules stand in the
//! order of a message's way; ARCHITECTURE.md has the map.

// The way of a message, in order (apart, since rustfmt sorts neighbours).
pub mod publish;

pub mod pipeline;

pub mod store;

pub mod delivery;

pub mod settle;

// What every step shares.
pub mod clock;
pub mod config;
pub mod database;
pub mod entropy;
pub mod message;
pub mod telemetry;
pub mod window;

// What it is about: topics, subscriptions, schemas, plugins.
pub mod catalog;
pub mod directory;
pub mod dry_run;
pub mod duty;
pub mod events;
pub mod fleet;
pub mod redis;
pub mod schemas;
pub mod system_topics;
pub mod topic_history;
pub mod topic_metrics;

// Around it.
pub mod api;
pub mod broker;
pub mod capture;
pub mod changes;
pub mod cli;
pub mod offline;
pub mod process;
