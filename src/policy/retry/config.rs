//! Which requests the proxy tries again, as it is configured.

use crate::base::percent::Percent;
use crate::schema::{Either, Int, Method, Pct, Set, choice, section};

/// Which requests are tried again, how often, and how many of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries after the first.
    pub attempts: u32,
    /// Envoy's words for `x-envoy-retry-on`, joined by commas.
    pub on: String,
    /// Its words for `x-envoy-retry-grpc-on`, joined by commas.
    pub grpc_on: String,
    /// Methods, upper case.
    pub methods: Vec<String>,
    /// What bounds the retries of all requests together.
    pub budget: RetryBudget,
    /// Retries per second that the budget has in any case.
    pub min_per_second: u32,
}

/// What bounds the retries of all requests together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryBudget {
    /// The room that the route's concurrency limits show; where they show none, a fifth of the
    /// recent requests.
    Auto,
    /// A share of recent requests.
    Share(Percent),
}

section! {
    /// Retries by Envoy.
    RetrySection {
        /// Retries after the first try.
        attempts: Int<0, 10> = Default("1");
        /// What is tried again, in Envoy's words. gRPC calls are tried again if gRPC's words
        /// (`cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`) are
        /// among them, or if `methods` has POST.
        on: Set<RetryOn, 1, 16> = Default(r#"["connect-failure", "reset", "gateway-error"]"#);
        /// The methods that are tried again; for gRPC see `on`.
        methods: Set<Method, 1, 32> =
            Default(r#"["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]"#);
        /// Retries as a percentage of the route's recent requests, over all workers: a hard cap.
        /// `auto` spends spare capacity: while less than half of the route's concurrency limits is
        /// in use, nothing is refused and answers are fast, each request has its `attempts`; else,
        /// and without a concurrency limit, it is 20. Nothing is retried while a limit of the route
        /// refuses or is nearly full.
        budget: Either<Pct, AutoBudget> = Default("\"auto\"");
        /// Retries per second that the budget allows where its share is fewer.
        min_per_second: Int<0, 10_000> = Default("3");
    }
}

/// Envoy's words for what is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RetryOn {
    /// One of `x-envoy-retry-on`.
    Any(&'static str),
    /// One of `x-envoy-retry-grpc-on`.
    Grpc(&'static str),
}

choice! { RetryOn {
    "5xx" => Self::Any("5xx"),
    "gateway-error" => Self::Any("gateway-error"),
    "reset" => Self::Any("reset"),
    "reset-before-request" => Self::Any("reset-before-request"),
    "connect-failure" => Self::Any("connect-failure"),
    "envoy-ratelimited" => Self::Any("envoy-ratelimited"),
    "retriable-4xx" => Self::Any("retriable-4xx"),
    "refused-stream" => Self::Any("refused-stream"),
    "retriable-status-codes" => Self::Any("retriable-status-codes"),
    "retriable-headers" => Self::Any("retriable-headers"),
    "http3-post-connect-failure" => Self::Any("http3-post-connect-failure"),
    "cancelled" => Self::Grpc("cancelled"),
    "deadline-exceeded" => Self::Grpc("deadline-exceeded"),
    "internal" => Self::Grpc("internal"),
    "resource-exhausted" => Self::Grpc("resource-exhausted"),
    "unavailable" => Self::Grpc("unavailable"),
} }

choice! {
    /// A budget that is found.
    enum AutoBudget {
        Auto = "auto",
    }
}

impl RetrySection {
    /// The retries, with Envoy's words by the header that they go into.
    pub(crate) fn compile(self) -> Retry {
        let (mut on, mut grpc_on) = (Vec::new(), Vec::new());
        for word in self.on {
            match word {
                RetryOn::Any(word) => on.push(word),
                RetryOn::Grpc(word) => grpc_on.push(word),
            }
        }
        Retry {
            attempts: self.attempts,
            on: on.join(","),
            grpc_on: grpc_on.join(","),
            methods: self.methods,
            budget: match self.budget {
                Either::First(share) => RetryBudget::Share(share),
                Either::Second(AutoBudget::Auto) => RetryBudget::Auto,
            },
            min_per_second: self.min_per_second,
        }
    }
}
