//! Floor 1: what haven needs of a proxy, as small ports. On wasm32 they are host calls; natively a
//! simulation stands behind them.
//!
//! The log needs no port: haven writes it with the macros of the `log` crate. On wasm32 the logger
//! behind them writes to the proxy's log; a simulated proxy keeps its lines.

mod kind;
pub mod scoped;
#[cfg(not(target_arch = "wasm32"))]
pub mod sim;

use crate::base::headers::HeaderMap;
use crate::base::time::{Moment, Nanos, UnixTime};
use std::rc::Rc;

pub use kind::{Feature, HostKind, Platform};

/// All that the engine needs outside of a request.
pub trait Host:
    Clock + SharedData + SharedCounters + Metrics + Random + Platform + Environment
{
}

impl<T: Clock + SharedData + SharedCounters + Metrics + Random + Platform + Environment> Host
    for T
{
}

/// The clocks. A callback reads one once and hands the reading down as an argument.
pub trait Clock {
    /// A clock that does not step, the same for all workers of a proxy.
    fn monotonic(&self) -> Moment;

    /// Time since 1970-01-01 UTC. It may step: only for what people read.
    fn wall(&self) -> UnixTime;
}

/// The key-value store that all workers of a proxy share.
pub trait SharedData {
    /// Whose records these are: a part of each record's name ([`scoped::Scoped`]).
    fn scope(&self) -> u64 {
        0
    }

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

/// Another worker wrote first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CasMismatch;

/// Numbers that the workers of a proxy share, each changed in one atomic step; ten times cheaper
/// than [`SharedData`], which suits what a single number can hold: requests in flight, a version, a
/// few packed fields.
///
/// A proxy-wasm host keeps them among its metrics: Envoy as gauges, of which it adds and sets one
/// number; nginx adds to counters, of which each worker has its own and all are summed, and sets
/// gauges, of which the last worker's counts. So a number is either counted or stored. Those that
/// only workers read have names that start with [`INTERNAL`]; a few are also what dashboards show,
/// such as requests in flight.
///
/// **What if one is set back to 0?** The admin endpoint of Envoy that resets counters leaves gauges
/// alone, and a restart starts the workers anew too; so this takes another filter that defines the
/// same name. A count of requests in flight then sinks below 0 as they end, which reads as none:
/// a limit lets more through until the shares that the VMs report correct it, some 20 s later. A
/// tally loses the outcomes since its bucket began. A version that moves in either direction makes
/// the workers read the record again. A latency or load is unknown until the next answer.
///
/// **What if a name changes**, by a new version of haven or a new name in the configuration? The
/// new number starts at 0, and the old one stays in the host's metrics until the proxy restarts.
/// A request keeps the number under which it was counted, and ends there; so a limit may let
/// through, beside what is in flight under the old name, as much again. Nothing may therefore
/// depend on a number without a safe meaning for 0.
pub trait SharedCounters: Platform {
    /// The number of this name, which is counted; 0 if it is new.
    fn define_shared(&self, name: &str) -> SharedCounter;

    /// The number of this name, which is only stored; 0 if it is new.
    fn define_stored(&self, name: &str) -> SharedCounter;

    /// Adds `offset` to a number that is counted, in one atomic step. It wraps; below 0 it reads as
    /// a huge number.
    fn increment(&self, counter: SharedCounter, offset: i64);

    /// Sets a number that is counted back to 0. Where two workers do that at once on nginx, it may
    /// end as far below 0 as it was above: whoever clears one takes what is huge for 0.
    fn clear(&self, counter: SharedCounter) {
        if self.kind().counts_in_gauges() {
            return self.store(counter, 0);
        }
        let number = self.load(counter).cast_signed();
        self.increment(counter, number.wrapping_neg());
    }

    /// Replaces a number that is stored. Of two workers that store at once one loses.
    fn store(&self, counter: SharedCounter, number: u64);

    /// The number; 0 if the host has none.
    fn load(&self, counter: SharedCounter) -> u64;
}

/// What the names of shared counters start with that are of no use to people.
pub const INTERNAL: &str = "haven_internal_";

/// A shared counter that was defined. [`SharedCounter::NONE`] ignores every change and reads as 0:
/// a host without them is no reason to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedCounter(pub u32);

impl SharedCounter {
    /// Stands for a counter that the host refused.
    pub const NONE: Self = Self(u32::MAX);
}

/// Counters, gauges and histograms for people and their dashboards; on Envoy summed over all
/// workers. What workers must know of each other is in [`SharedCounters`].
pub trait Metrics {
    /// The metric of this name, made if missing.
    fn define(&self, kind: MetricKind, name: &str) -> MetricId;

    /// Adds to a counter, of either kind.
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
    /// Goes up and down by what is added.
    UpDownCounter,
    /// Is set.
    Gauge,
    /// Collects samples.
    Histogram,
}

/// A metric that was defined. [`MetricId::NONE`] ignores everything: a host without metrics is no
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

/// The variables that the proxy hands to the plugin: where secrets stand that are not to be in the
/// configuration.
pub trait Environment {
    /// The value of the variable of this name.
    fn variable(&self, name: &str) -> Option<String>;
}

/// Calls that haven makes outside of any request. The answer comes in a callback of the context
/// that called, or, if its VM is lost, never.
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
    /// A request.
    Http {
        /// The proxy's cluster.
        cluster: &'a str,
        /// Pseudo-headers and headers.
        headers: &'a [(&'a str, &'a str)],
        /// Its body; empty: it has none.
        body: &'a [u8],
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

/// A call that was started. The host numbers HTTP and gRPC calls separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallId {
    /// An HTTP call.
    Http(u32),
    /// A gRPC call.
    Grpc(u32),
}

/// A call could not be started: the proxy has no such cluster, or no endpoint in it. On Envoy
/// either may still come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCall;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallAnswer {
    /// An HTTP answer, perhaps of the proxy's own making.
    Http {
        /// Its headers; none at all if the host reached no endpoint.
        headers: HeaderMap,
        /// The part of the body that was requested.
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
    /// All headers of a message in one call: a call for a single header costs nearly as much.
    fn headers(&self, of: Message) -> HeaderMap;

    /// Puts these headers in the place of all that a message has, `:status` included.
    fn set_headers(&self, of: Message, headers: &HeaderMap);

    /// Sets a header to exactly one value.
    fn set_header(&self, of: Message, name: &str, value: &[u8]);

    /// Adds a value to a header; to a request's that was removed, or is not there.
    fn add_header(&self, of: Message, name: &str, value: &[u8]);

    /// Removes all values of a header. Of a request on nginx an empty one stays, since what is
    /// removed there is sent on, unseen; what is added to it takes its place.
    fn remove_header(&self, of: Message, name: &str);

    /// The piece of the response's body that the running callback brought, at most `size` bytes.
    fn body(&self, size: usize) -> Option<Vec<u8>>;

    /// Puts `by` in the place of the first `size` bytes of the response's body that are at hand: the
    /// piece that the running callback brought, and those that haven has kept. `false`: there is no
    /// body, or the host refuses.
    fn replace_body(&self, size: usize, by: &[u8]) -> bool;

    /// The request's body that the host buffered while the request was paused, at most `size`
    /// bytes. Only in callbacks of the body and the trailers.
    fn request_body(&self, size: usize) -> Option<Vec<u8>>;

    /// A property of the exchange.
    fn property(&self, property: Property) -> Option<Vec<u8>>;

    /// Stores a value for access logs: `wasm.<name>` in Envoy's filter state.
    fn set_state(&self, name: &str, value: &[u8]);

    /// Answers in the upstream's place; the host drops the request, or the upstream's answer.
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

/// What a stream has beside its headers. Each costs about as much as a whole header map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// The connection's peer, `ip:port`.
    SourceAddress,
    /// Where the connection came in, `ip:port`.
    DestinationAddress,
    /// The endpoint that was tried last, `ip:port`. Response phase.
    UpstreamAddress,
    /// How often the proxy tried, a little-endian u64. Response phase.
    AttemptCount,
    /// Why the response is as it is. Response phase, and the end of the stream.
    ResponseCodeDetails,
    /// The cluster that the request was routed to. Response phase.
    ClusterName,
    /// What went wrong, a little-endian u64 of bits. Response phase, and the end of the stream.
    ResponseFlags,
}

impl Property {
    /// The path, its parts joined by NUL as the ABI requires.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::SourceAddress => "source\0address",
            Self::DestinationAddress => "destination\0address",
            Self::UpstreamAddress => "upstream\0address",
            Self::AttemptCount => "upstream\0request_attempt_count",
            Self::ResponseCodeDetails => "response\0code_details",
            Self::ClusterName => "xds\0cluster_name",
            Self::ResponseFlags => "response\0flags",
        }
    }
}

/// The part of an answer that is made once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadyReply {
    /// Headers.
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

/// An answer that haven gives itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// gRPC status; `None` for a request that is not gRPC.
    pub grpc_status: Option<u8>,
    /// What says in the access log why (`%RESPONSE_CODE_DETAILS%`), without spaces; empty: nothing.
    pub details: String,
    /// The part that is the same for many; its headers and its body come before those here.
    pub ready: Option<Rc<ReadyReply>>,
    /// Headers beside those that the proxy makes (length, date).
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// Headers of a stored answer of the upstream's.
    pub kept_headers: HeaderMap,
    /// Headers with names from the configuration.
    pub configured_headers: Vec<(String, String)>,
    /// The body, where none is ready; on gRPC the proxy makes it the message of the status.
    pub body: Vec<u8>,
}

impl Reply {
    /// All its headers, in the order in which they are sent.
    pub fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        let ready = self.ready.iter().flat_map(|ready| &ready.headers);
        let own = ready.chain(&self.headers);
        let own = own.map(|(name, value)| (name.as_bytes(), value.as_slice()));
        let configured = self.configured_headers.iter();
        let configured = configured.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        own.chain(self.kept_headers.iter()).chain(configured)
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.ready.as_ref().map_or(&self.body, |ready| &ready.body)
    }
}
