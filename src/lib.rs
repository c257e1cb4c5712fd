//! haven: high availability for any service behind Envoy (and other proxy-wasm hosts), in one
//! WebAssembly filter.
//!
//! ```text
//!               request headers            response headers         end of stream
//!                      │                          │                       │
//!  7 wasm      ────────┼──────────────────────────┼───────────────────────┼──  glue, wasm32 only
//!                      ▼                          ▼                       ▼
//!  6 engine    Exchange::on_request     Exchange::on_response     Exchange::on_end
//!                      │
//!                      ▼
//!  5 document  the configuration as a whole: upstreams, routes, names
//!  4 policy    route · canary · deadline · rate_limit · concurrency · circuit_breaker · upstream
//!              retry · fallback · probe · health_check: section, step, record, tests
//!  3 request   a request, the keys made from it, the reasons to refuse it, replies
//!  2 schema    how a JSON document is declared, checked and decoded
//!  2 store     records in shared data: pure steps in a bounded compare-and-swap loop
//!  1 host      ports to the proxy; host::sim, N simulated workers
//!  0 base      time, hashing, header maps, addresses, random choice
//! ```
//!
//! A module uses only lower floors, and policies never use each other: the engine joins them, and
//! makes all host calls but those for a policy's own record. `tests/floors.rs` keeps it so.
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
pub mod document;
pub mod engine;
pub mod host;
pub mod policy;
pub mod request;
pub mod schema;
pub mod store;
#[cfg(all(target_arch = "wasm32", not(test)))]
mod wasm;
