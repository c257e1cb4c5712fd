//! A simulated proxy: any number of workers over one shared-data store and one set of metrics, with
//! a clock that the test moves.
//!
//! Every host call that touches what workers share is an interleaving point: [`Machine::on_call`]
//! is called before it, and a scheduler may switch to another worker there. Faults are set on the
//! [`Machine`]: failed compare-and-swaps, a lost shared-data service, clocks that step. The
//! scheduler loses a VM: it drops the worker's state in the middle.
//!
//! It is Envoy, or nginx: what that would not survive is a failed test here.

mod log_lines;
mod stream;

pub use stream::{SimStream, decision_of};

pub use super::HostKind;
use super::{
    Call, CallId, Calls, Cas, CasMismatch, Clock, Environment, MetricId, MetricKind, Metrics,
    NoCall, Platform, Random, SharedCounter, SharedCounters, SharedData,
};
use crate::base::rng::Rng;
use crate::base::time::{Moment, Nanos, UnixTime};
use log_lines::LogLines;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A value and its version.
type Record = (Vec<u8>, u32);

/// The proxy: what its workers share.
pub struct Machine {
    kind: HostKind,
    data: RefCell<BTreeMap<Vec<u8>, Record>>,
    next_cas: Cell<u32>,
    metrics: RefCell<Vec<(MetricKind, String, u64)>>,
    monotonic: Cell<Moment>,
    wall: Cell<UnixTime>,
    rng: Rng,
    /// Share of compare-and-swaps that fail for no reason, in percent.
    pub cas_failures: Cell<u64>,
    /// A host that has no metrics: it refuses to define any.
    pub no_metrics: Cell<bool>,
    logs: LogLines,
    hook: RefCell<Option<Rc<dyn Fn()>>>,
    calls: Cell<u64>,
    /// A proxy that knows no cluster: no call of ours can be started.
    pub no_clusters: Cell<bool>,
    /// The variables that its plugin has.
    pub variables: RefCell<BTreeMap<String, String>>,
    outgoing: RefCell<Vec<Outgoing>>,
    next_call: Cell<u32>,
}

/// A call that a worker has started and that waits for its answer. The test plays the network and
/// hands the answer to the worker's engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number.
    pub id: CallId,
    /// The cluster.
    pub cluster: String,
    /// Headers, or a gRPC call's metadata.
    pub headers: Vec<(String, String)>,
    /// The body, or the message of a gRPC call.
    pub message: Vec<u8>,
    /// Time that it may take.
    pub timeout: Nanos,
    /// When it was started.
    pub at: Moment,
}

impl Outgoing {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("now", &self.monotonic)
            .field("data", &self.data)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// A proxy that has just started, one hour after its machine did.
    #[must_use]
    pub fn new(kind: HostKind, seed: u64) -> Rc<Self> {
        Rc::new(Self {
            kind,
            data: RefCell::default(),
            next_cas: Cell::new(1),
            metrics: RefCell::default(),
            monotonic: Cell::new(Moment::from_secs(3_600)),
            wall: Cell::new(UnixTime::from_secs(1_800_000_000)),
            rng: Rng::new(seed),
            cas_failures: Cell::new(0),
            no_metrics: Cell::new(false),
            logs: LogLines::new(),
            hook: RefCell::new(None),
            calls: Cell::new(0),
            no_clusters: Cell::new(false),
            variables: RefCell::default(),
            outgoing: RefCell::default(),
            next_call: Cell::new(1),
        })
    }

    /// Which proxy it is.
    #[must_use]
    pub fn kind(&self) -> HostKind {
        self.kind
    }

    /// Calls `hook` before every host call that touches shared things.
    pub fn on_call(&self, hook: Rc<dyn Fn()>) {
        *self.hook.borrow_mut() = Some(hook);
    }

    /// The monotonic clock.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.monotonic.get()
    }

    /// Lets time pass.
    pub fn advance(&self, by: Nanos) {
        self.monotonic.set(self.monotonic.get().plus(by));
        self.wall.set(self.wall.get().plus(by));
    }

    /// Sets the monotonic clock to any value, backwards too.
    pub fn set_clock(&self, to: Moment) {
        self.monotonic.set(to);
    }

    /// Value of the metric of this name; 0 if there is none.
    #[must_use]
    pub fn metric(&self, name: &str) -> u64 {
        self.metrics
            .borrow()
            .iter()
            .find(|(_, n, _)| n == name)
            .map_or(0, |(_, _, value)| *value)
    }

    /// All metrics whose name starts so, by name.
    #[must_use]
    pub fn metrics_of(&self, prefix: &str) -> Vec<(String, u64)> {
        self.metrics
            .borrow()
            .iter()
            .filter(|(_, n, _)| n.starts_with(prefix))
            .map(|(_, n, v)| (n.clone(), *v))
            .collect()
    }

    /// Bytes in shared data, keys and values.
    #[must_use]
    pub fn shared_bytes(&self) -> usize {
        self.data
            .borrow()
            .iter()
            .map(|(k, (v, _))| k.len().saturating_add(v.len()))
            .sum()
    }

    /// The records whose keys pass `which`.
    pub fn records(&self, which: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        self.data
            .borrow()
            .iter()
            .filter(|(key, _)| which(key))
            .map(|(_, (value, _))| value.clone())
            .collect()
    }

    /// Overwrites every record that passes `which` with `bytes`: what a broken or foreign version
    /// could leave behind.
    pub fn corrupt(&self, which: impl Fn(&[u8]) -> bool, bytes: &[u8]) {
        for (key, (value, cas)) in self.data.borrow_mut().iter_mut() {
            if which(key) {
                *value = bytes.to_vec();
                *cas = self.fresh_cas();
            }
        }
    }

    /// The lines that its workers have logged, newest last; the first 1,000.
    #[must_use]
    pub fn logs(&self) -> Vec<(log::Level, String)> {
        self.logs.lines()
    }

    /// Host calls made so far, over all workers.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.get()
    }

    /// Takes the calls that were started since it was asked last.
    pub fn take_outgoing(&self) -> Vec<Outgoing> {
        self.outgoing.take()
    }

    fn called(&self) {
        self.calls.set(self.calls.get().saturating_add(1));
        self.logs.collect();
        let hook = self.hook.borrow().clone();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn fresh_cas(&self) -> u32 {
        let cas = self.next_cas.get();
        self.next_cas.set(cas.wrapping_add(1).max(1));
        cas
    }
}

/// One worker of a [`Machine`].
#[derive(Clone, Debug)]
pub struct Worker(pub Rc<Machine>);

impl Clock for Worker {
    fn monotonic(&self) -> Moment {
        self.0.called();
        self.0.monotonic.get()
    }

    fn wall(&self) -> UnixTime {
        self.0.wall.get()
    }
}

impl SharedData for Worker {
    fn shared(&self, key: &[u8]) -> Option<(Vec<u8>, Cas)> {
        self.0.called();
        self.0
            .data
            .borrow()
            .get(key)
            .map(|(value, cas)| (value.clone(), Cas(*cas)))
    }

    fn set_shared(&self, key: &[u8], value: &[u8], expected: Cas) -> Result<(), CasMismatch> {
        self.0.called();
        let mut data = self.0.data.borrow_mut();
        // Only on a record that exists: no host refuses to insert for no reason, and haven
        // distinguishes the hosts by such refusals.
        if data.contains_key(key) && self.0.rng.below(100) < self.0.cas_failures.get() {
            return Err(CasMismatch);
        }
        let allowed = match (data.get(key), self.0.kind) {
            (Some((_, cas)), HostKind::Envoy) => expected.0 == 0 || expected.0 == *cas,
            (Some((_, cas)), HostKind::Nginx) => expected.0 == *cas,
            (None, HostKind::Envoy) => true,
            (None, HostKind::Nginx) => expected.0 == 0,
        };
        if !allowed {
            return Err(CasMismatch);
        }
        data.insert(key.to_vec(), (value.to_vec(), self.0.fresh_cas()));
        Ok(())
    }
}

impl Platform for Worker {
    fn kind(&self) -> HostKind {
        self.0.kind
    }
}

impl Machine {
    /// What nginx ends a worker over, and Envoy lets pass.
    fn survives(&self, does: bool, what: &str) {
        assert!(does || self.kind == HostKind::Envoy, "nginx: {what}");
    }
}

/// As on a real host they stand among the metrics of the [`Machine`].
impl SharedCounters for Worker {
    fn define_shared(&self, name: &str) -> SharedCounter {
        SharedCounter(self.define(MetricKind::UpDownCounter, name).0)
    }

    fn define_stored(&self, name: &str) -> SharedCounter {
        SharedCounter(self.define(MetricKind::Gauge, name).0)
    }

    fn increment(&self, counter: SharedCounter, offset: i64) {
        self.add(MetricId(counter.0), offset);
    }

    fn store(&self, counter: SharedCounter, number: u64) {
        self.record(MetricId(counter.0), number);
    }

    fn load(&self, counter: SharedCounter) -> u64 {
        self.value(MetricId(counter.0))
    }
}

impl Metrics for Worker {
    fn define(&self, kind: MetricKind, name: &str) -> MetricId {
        if self.0.no_metrics.get() {
            return MetricId::NONE;
        }
        self.0
            .survives(name.len() <= 230, "the name of a metric is too long");
        let kind = self.0.kind.metric(kind);
        let mut metrics = self.0.metrics.borrow_mut();
        // One name is one metric on nginx.
        let other = metrics.iter().any(|(k, n, _)| n == name && *k != kind);
        self.0.survives(!other, "a metric of two kinds");
        let at = metrics
            .iter()
            .position(|(k, n, _)| *k == kind && n == name)
            .unwrap_or_else(|| {
                metrics.push((kind, name.to_owned(), 0));
                metrics.len().saturating_sub(1)
            });
        MetricId(u32::try_from(at).unwrap_or(u32::MAX))
    }

    fn add(&self, id: MetricId, offset: i64) {
        self.0.called();
        if let Some((kind, _, value)) = self.0.metrics.borrow_mut().get_mut(id.0 as usize) {
            let counts = *kind == MetricKind::Counter;
            self.0.survives(counts, "increment_metric of no counter");
            *value = value.wrapping_add_signed(offset);
        }
    }

    fn record(&self, id: MetricId, new: u64) {
        self.0.called();
        if let Some((kind, _, value)) = self.0.metrics.borrow_mut().get_mut(id.0 as usize) {
            let sets = matches!(kind, MetricKind::Gauge | MetricKind::Histogram);
            self.0.survives(sets, "record_metric of a counter");
            // A histogram's value is the number of its samples.
            *value = if *kind == MetricKind::Histogram {
                value.saturating_add(1)
            } else {
                new
            };
        }
    }

    fn value(&self, id: MetricId) -> u64 {
        self.0.called();
        self.0
            .metrics
            .borrow()
            .get(id.0 as usize)
            .map_or(0, |(kind, _, value)| {
                let has_one = *kind != MetricKind::Histogram;
                self.0.survives(has_one, "get_metric of a histogram");
                *value
            })
    }
}

impl Random for Worker {
    fn entropy(&self) -> u64 {
        self.0.rng.bits()
    }
}

impl Environment for Worker {
    fn variable(&self, name: &str) -> Option<String> {
        self.0.variables.borrow().get(name).cloned()
    }
}

impl Calls for Worker {
    fn call(&self, call: &Call<'_>) -> Result<CallId, NoCall> {
        self.0.called();
        if self.0.no_clusters.get() {
            return Err(NoCall);
        }
        let number = self.0.next_call.get();
        self.0.next_call.set(number.wrapping_add(1));
        let owned = |headers: &[(&str, &str)]| {
            headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let at = self.0.monotonic.get();
        let is_http = matches!(call, Call::Http { .. });
        self.0.survives(is_http, "proxy_grpc_call");
        let outgoing = match *call {
            Call::Http {
                cluster,
                headers,
                body,
                timeout,
            } => Outgoing {
                id: CallId::Http(number),
                cluster: cluster.to_owned(),
                headers: owned(headers),
                message: body.to_vec(),
                timeout,
                at,
            },
            Call::Grpc {
                cluster,
                metadata,
                message,
                timeout,
                ..
            } => Outgoing {
                id: CallId::Grpc(number),
                cluster: cluster.to_owned(),
                headers: owned(metadata),
                message: message.to_vec(),
                timeout,
                at,
            },
        };
        let id = outgoing.id;
        self.0.outgoing.borrow_mut().push(outgoing);
        Ok(id)
    }
}
