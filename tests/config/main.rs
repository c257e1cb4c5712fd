//! The configuration as users meet it: documents in, a typed configuration or messages out.

#![cfg(not(target_arch = "wasm32"))]

mod canary;
mod circuit_breaker;
mod concurrency;
mod deadline;
mod discovery;
mod document;
mod envoy_routes;
mod fallback;
mod health_check;
mod hosts;
mod json;
mod nonsense;
mod rate_limit;
mod retry;
mod route;
mod schema;
mod support;
mod upstream;
mod warnings;
