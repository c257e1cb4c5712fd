//! Floor 4: the policies. Each is a folder of its own and uses no other; the engine joins them in
//! the order of [`crate::engine`]'s chain. What they share stands here and in [`crate::request`].

pub mod canary;
pub mod circuit_breaker;
pub mod concurrency;
pub mod deadline;
pub mod fallback;

pub mod health_check;
pub mod probe;
pub mod rate_limit;
pub mod retry;
pub mod route;
pub mod shares;
pub mod upstream;

/// How a call ended, for those who judge an upstream by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered well.
    Success,
    /// It failed.
    Failure,
    /// It says nothing about the upstream: cancelled by the client, answered by us, never sent.
    Ignore,
}
