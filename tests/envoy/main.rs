//! The filter in a real Envoy; one program, for each one more would compile and link the harness
//! again.

#![cfg(not(target_arch = "wasm32"))]

#[path = "../support/haven.rs"]
mod filter;
#[path = "../support/mod.rs"]
mod support;

mod balancing;
mod bodies;
mod breaker;
mod canary;
mod checks;
mod concurrency;
mod deadline;
mod deploy;
mod discovery_sources;
mod endpoints;
mod examples;
mod exceptions;
mod fallback;
mod followed;
mod grpc_health;
mod harness;
mod health;
mod hostile;
mod in_flight;
mod limits;
mod local_replies;
mod memory;
mod module;
mod outage;
mod overload;
mod pacing;
mod readme;
mod reasons;
mod recipes;
mod reference;
mod reload;
mod replaced;
mod retry;
mod scaling;
mod serve_endpoints;
mod settings;
mod state;
mod steering;
mod symptoms;
