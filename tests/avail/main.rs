//! Availability, measured: fault scenarios in a real Envoy, with plain Envoy, with Envoy's own
//! filters tuned, and with haven, side by side against the same drawn world.
//!
//! `make avail SEED=7 SCENARIOS=overload` runs the round below; docs/availability.md says what is
//! measured and how. The other tests here are of the measuring itself.

#![cfg(not(target_arch = "wasm32"))]
#[path = "../support/mod.rs"]
mod support;

mod clients;
mod detail;
mod draw;
mod kind;
mod report;
mod round;
mod stats;
mod svg;
mod targets;
mod upstream;
mod variants;
mod world;

/// The whole comparison; writes docs/availability.md and its picture when no scenario is left out.
#[test]
#[ignore = "minutes long, and wants the machine for itself: make avail"]
fn compare() {
    let options = round::Options::from_env().unwrap_or_else(|error| panic!("{error}"));
    round::run(&options);
}
