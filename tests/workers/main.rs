//! Shared state under every order of things: 2 to 8 simulated workers over one store, each host
//! call an interleaving point.

mod algorithms;
mod breaker;
mod chain;
mod checks;
mod concurrency;
mod discovery;
mod fair;
mod hosts;
mod limits;
mod scheduler;
mod stale;
mod whole;
