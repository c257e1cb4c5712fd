//! haven: high availability for any service behind Envoy (and other proxy-wasm hosts), in one
//! WebAssembly filter.
//!
//! ```text
//!            request headers                                response headers          end of stream
//!                  │                                               │                        │
//!  wasm ───────────┼───────────────────────────────────────────────┼────────────────────────┼──── [6] glue, wasm32 only
//!                  ▼                                               ▼                        ▼
//!  engine   Exchange::on_request ── the chain ─┐          Exchange::on_response   Exchange::on_end     [5]
//!                                              ▼                   │                        │
//!  policy   route · canary · deadline · rate_limit · concurrency · circuit_breaker · upstream · retry           [4]
//!           fallback · probe                    │
//!  request  Request · key · Reason · reply      │                                                            [3]
//!                                              │
//!  store    records in shared data: pure steps inside a bounded compare-and-swap loop     [2]    config [2]
//!  host     ports: Clock, SharedData, SharedCounters, Metrics, Random, Stream   host::sim: N workers [1]
//!  base     time, hashing, header maps, addresses, random choice                                        [0]
//! ```
//!
//! A module uses only lower floors, and policies never use each other: the engine joins them.
//! `tests/floors.rs` keeps it so.
//!
//! **The one invariant**: what a request was granted (a place in flight, a half-open permit) is
//! given back exactly once, at its end, whether it was answered, reset, cancelled or answered by
//! us, and whatever the configuration has become in between.

// A panic kills a proxy's worker: nothing in the library can panic. A failed test is to panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::todo,
        clippy::unimplemented,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod base;
pub mod config;
pub mod engine;
pub mod host;
pub mod policy;
pub mod request;
pub mod schema;
pub mod store;
#[cfg(all(target_arch = "wasm32", not(test)))]
mod wasm;
