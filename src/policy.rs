//! Floor 4: the policies. Each is a folder of its own and uses no other; the engine joins them in
//! the order of [`crate::engine`]'s chain. What they share stands here and in [`crate::request`].

pub mod canary;
pub mod circuit_breaker;
pub mod concurrency;
pub mod deadline;
pub mod discovery;
pub mod fallback;
pub mod health_check;
pub mod lease;
pub mod mode;
pub mod probe;
pub mod rate_limit;
pub mod retry;
pub mod route;
pub mod sections;
pub mod shares;
pub mod upstream;

/// How a call ended: what the policies judge an upstream by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream answered well.
    Success,
    /// The call failed.
    Failure,
    /// The call says nothing about the upstream: the client cancelled it, haven answered it, or it
    /// was never sent.
    Ignore,
}
