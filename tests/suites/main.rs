//! The suites that talk to the real binary, one module a concern. Invariant: each test has a broker of its own.

mod bad_input;
mod batches;
mod cli;
mod cli_examples;
mod cli_settle;
mod crash;
mod delivery;
mod fairness;
mod full_disk;
mod guide;
mod hostile;
mod http;
mod idempotency;
mod limits;
mod main_job;
mod offline;
mod pipelines;
mod receivers;
mod reload;
mod seek;
mod soak;
mod streams;
mod swaps;
mod telemetry;
mod webhooks;
