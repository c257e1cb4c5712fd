//! Shared state under every order of things: 2 to 8 simulated workers over one store, each host
//! call an interleaving point.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]
#![allow(missing_docs, reason = "tests")]

mod algorithms;
mod breaker;
mod chain;
mod checks;
mod concurrency;
mod limits;
mod scheduler;
mod stale;
mod whole;
