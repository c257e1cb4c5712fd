//! Floor 1: what haven needs of a proxy, as small ports. On wasm32 they are host calls; natively a
//! simulation stands behind them.

#[cfg(not(target_arch = "wasm32"))]
pub mod sim;

use crate::base::headers::HeaderMap;
use crate::base::time::Nanos;

/// All that the engine needs outside of a request.
pub trait Host: Clock + SharedData + Metrics + Random + Log {}

impl<T: Clock + SharedData + Metrics + Random + Log> Host for T {}

/// The clocks. Read once per callback; the reading is handed down as an argument.
pub trait Clock {
    /// A clock that does not step, the same for all workers of a proxy.
    fn monotonic(&self) -> Nanos;

    /// Time since 1970-01-01 UTC. It may step: only for what people read.
    fn wall(&self) -> Nanos;
}

/// The key-value store that all workers of a proxy share.
pub trait SharedData {
    /// The value and its version, if there is one.
    fn shared(&self, key: &[u8]) -> Option<(Vec<u8>, Cas)>;

    /// Writes `value` if the record is still as `expected` says.
    ///
    /// # Errors
    /// [`CasMismatch`] if it is not, or if the host refused for any other reason.
    fn set_shared(&self, key: &[u8], value: &[u8], expected: Cas) -> Result<(), CasMismatch>;
}

/// A record's version, never 0 for one that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cas(pub u32);

/// Somebody else wrote first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CasMismatch;

/// Counters, gauges and histograms; on Envoy atomic over all workers, and cheaper than shared data
/// by ten times.
pub trait Metrics {
    /// The metric of this name, made if missing.
    fn define(&self, kind: MetricKind, name: &str) -> MetricId;

    /// Adds to a counter or gauge.
    fn add(&self, id: MetricId, offset: i64);

    /// Sets a gauge, or adds a sample to a histogram.
    fn record(&self, id: MetricId, value: u64);

    /// The value of a counter or gauge over all workers; 0 if the host has none.
    fn value(&self, id: MetricId) -> u64;
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Collects samples.
    Histogram,
}

/// A metric that was defined. [`MetricId::NONE`] swallows everything: a host without metrics is no
/// reason to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricId(pub u32);

impl MetricId {
    /// Stands for a metric that the host refused.
    pub const NONE: Self = Self(u32::MAX);
}

/// Randomness for seeds.
pub trait Random {
    /// 64 bits that a client cannot guess.
    fn entropy(&self) -> u64;
}

/// The proxy's log.
pub trait Log {
    /// Writes a line.
    fn log(&self, level: log::Level, message: &str);
}

/// Calls that we make by ourselves, outside of any request. The answer comes in a callback of the
/// context that called, or, if its VM is lost, never.
pub trait Calls {
    /// Starts a call.
    ///
    /// # Errors
    /// [`NoCall`]: there will be no callback.
    fn call(&self, call: &Call<'_>) -> Result<CallId, NoCall>;
}

/// A call to start.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    /// A request without a body.
    Http {
        /// The proxy's cluster.
        cluster: &'a str,
        /// Pseudo-headers and headers.
        headers: &'a [(&'a str, &'a str)],
        /// Time that it may take.
        timeout: Nanos,
    },
    /// A unary gRPC call.
    Grpc {
        /// The proxy's cluster.
        cluster: &'a str,
        /// The service's name.
        service: &'a str,
        /// The method's.
        method: &'a str,
        /// Headers.
        metadata: &'a [(&'a str, &'a str)],
        /// The request.
        message: &'a [u8],
        /// Time that it may take.
        timeout: Nanos,
    },
}

/// A call that was started. HTTP and gRPC calls are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallId {
    /// An HTTP call.
    Http(u32),
    /// A gRPC call.
    Grpc(u32),
}

/// A call could not be started: there is no such cluster, or nobody in it. On Envoy either may
/// still come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCall;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallAnswer {
    /// An HTTP answer, perhaps of the proxy's own making.
    Http {
        /// Its headers; none at all where the host could not reach anybody and says so in that way.
        headers: HeaderMap,
        /// As much of the body as was asked for.
        body: Vec<u8>,
        /// How long the body is.
        size: usize,
    },
    /// The message of a gRPC call that went well.
    GrpcMessage(Vec<u8>),
    /// The status of a gRPC call that did not.
    GrpcStatus(u32),
}

/// One HTTP exchange, as seen from a callback of its own.
pub trait Stream {
    /// All headers of a message in one call: reading them one by one costs nearly as much for each.
    fn headers(&self, of: Message) -> HeaderMap;

    /// Sets a header to exactly one value.
    fn set_header(&self, of: Message, name: &str, value: &[u8]);

    /// Adds a value to a header.
    fn add_header(&self, of: Message, name: &str, value: &[u8]);

    /// Removes all values of a header.
    fn remove_header(&self, of: Message, name: &str);

    /// What has come of the response's body with the callback that runs, at most `size` bytes.
    fn body(&self, size: usize) -> Option<Vec<u8>>;

    /// What has come of the request's body while the request was kept, at most `size` bytes. In
    /// callbacks of the body and the trailers.
    fn request_body(&self, size: usize) -> Option<Vec<u8>>;

    /// A property of the exchange.
    fn property(&self, property: Property) -> Option<Vec<u8>>;

    /// Stores a value for access logs: `wasm.<name>` in Envoy's filter state.
    fn set_state(&self, name: &str, value: &[u8]);

    /// Answers in the upstream's place; the request, or the upstream's answer, goes no further.
    fn reply(&self, reply: &Reply);
}

/// The header maps of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// From the client.
    Request,
    /// To the client.
    Response,
    /// What follows the response's body.
    ResponseTrailers,
}

/// What a stream can be asked beside its headers. Each costs about as much as a whole header map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// The connection's peer, `ip:port`.
    SourceAddress,
    /// The endpoint that was tried last, `ip:port`. Response phase.
    UpstreamAddress,
    /// How often the proxy tried, a little-endian u64. Response phase.
    AttemptCount,
    /// Why the response is as it is. Response phase, and the end of the stream.
    ResponseCodeDetails,
    /// What went wrong, a little-endian u64 of bits. Response phase, and the end of the stream.
    ResponseFlags,
}

impl Property {
    /// The path, its parts joined by NUL as the ABI wants it.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::SourceAddress => "source\0address",
            Self::UpstreamAddress => "upstream\0address",
            Self::AttemptCount => "upstream\0request_attempt_count",
            Self::ResponseCodeDetails => "response\0code_details",
            Self::ResponseFlags => "response\0flags",
        }
    }
}

/// An answer of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// gRPC status; `None` for a request that is not gRPC.
    pub grpc_status: Option<u8>,
    /// Headers beside those that the proxy makes (length, date).
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// Headers of a kept answer of the upstream's.
    pub kept_headers: HeaderMap,
    /// Headers with names from the configuration.
    pub configured_headers: Vec<(String, String)>,
    /// The body; on gRPC the proxy makes it the message of the status.
    pub body: Vec<u8>,
}
