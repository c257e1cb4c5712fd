//! The filter in a real Envoy; one program, for each one more would compile and link the harness
//! again.

#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "test code: a failed assumption is to end the test at once; clippy only sees that in functions marked #[test]"
)]

#[path = "../support/haven.rs"]
mod filter;
#[path = "../support/mod.rs"]
mod support;

mod balancing;
mod breaker;
mod canary;
mod checks;
mod concurrency;
mod deadline;
mod endpoints;
mod fallback;
mod grpc_health;
mod harness;
mod health;
mod hostile;
mod limits;
mod memory;
mod module;
mod outage;
mod overload;
mod pacing;
mod reasons;
mod recipes;
mod reference;
mod reload;
mod retry;
mod settings;
