//! A simulator of worlds: clients that do not wait, Envoy, endpoints that queue, die, hang and slow
//! down, and between them haven's real engine, with everything on.
//!
//! All time is simulated, and all chance follows from a seed, so that a world is run again under
//! another configuration with the same arrivals and the same service times. `make worlds` compares
//! thousands of them, `make worlds SEED=n` shows one.

#![cfg(not(target_arch = "wasm32"))]

#[path = "../support/mod.rs"]
mod support;

mod abuser;
mod best;
mod bound;
mod config;
mod cores;
mod dominance;
mod draw;
mod envoy;
mod fault;
mod invariants;
mod proxy;
mod real;
mod record;
mod report;
mod sanity;
mod sim;
mod timeline;
mod verdict;
mod world;
