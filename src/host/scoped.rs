//! A host as one configuration sees it: what it keeps there is its own, or that of all that share
//! its name on purpose.
//!
//! A proxy has one store of shared data for each `vm_id`, and metrics are global in its process. So
//! two configurations, of two listeners or twice in one chain, that name a policy alike would share
//! its buckets, breakers, kept answers and counts in flight by accident.

use super::{
    Call, CallId, Calls, Cas, CasMismatch, Clock, Environment, HostKind, MetricId, MetricKind,
    Metrics, NoCall, Platform, Random, SharedCounter, SharedCounters, SharedData,
};
use crate::base::hash::of_names;
use crate::base::text::push_all;
use crate::base::time::{Moment, UnixTime};

/// The name that metrics do not show: that of the reference configuration.
pub const USUAL: &str = "haven";

/// A host with the state of one name.
#[derive(Clone, Debug)]
pub struct Scoped<H> {
    host: H,
    scope: u64,
    /// `;state=NAME`, which ends the names of its metrics; empty for [`USUAL`].
    label: String,
}

impl<H> Scoped<H> {
    /// The state of this name; an empty one is as good as [`USUAL`].
    pub fn new(host: H, state: &str) -> Self {
        let usual = state.is_empty() || state == USUAL;
        // What a configuration's names are made of, or a proxy could not read the metric.
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || "._:/-".contains(c) {
                c
            } else {
                '_'
            }
        };
        let shown: String = state.chars().take(64).map(plain).collect();
        Self {
            host,
            scope: if usual { 0 } else { of_names(&[state]) },
            label: if usual {
                String::new()
            } else {
                [";state=", &shown].concat()
            },
        }
    }

    /// Whether both have the state of one name.
    pub fn is_same_state(&self, other: &Self) -> bool {
        self.scope == other.scope
    }
}

impl<H: Platform> Scoped<H> {
    /// The metric's name in this state. What the proxy would not take is cut, and told apart by
    /// its hash.
    #[inline(never)]
    fn name(&self, name: &str) -> String {
        let mut name = [name, &self.label].concat();
        let most = self.host.kind().longest_metric();
        if name.len() > most {
            let hash = of_names(&[&name]).to_string();
            let mut end = most.saturating_sub(hash.len()).saturating_sub(1);
            while !name.is_char_boundary(end) {
                end = end.saturating_sub(1);
            }
            name.truncate(end);
            push_all(&mut name, &["#", &hash]);
        }
        name
    }
}

impl<H: Platform> Platform for Scoped<H> {
    fn kind(&self) -> HostKind {
        self.host.kind()
    }
}

impl<H: Clock> Clock for Scoped<H> {
    fn monotonic(&self) -> Moment {
        self.host.monotonic()
    }

    fn wall(&self) -> UnixTime {
        self.host.wall()
    }
}

impl<H: SharedData> SharedData for Scoped<H> {
    fn scope(&self) -> u64 {
        self.scope
    }

    fn shared(&self, key: &[u8]) -> Option<(Vec<u8>, Cas)> {
        self.host.shared(key)
    }

    fn set_shared(&self, key: &[u8], value: &[u8], expected: Cas) -> Result<(), CasMismatch> {
        self.host.set_shared(key, value, expected)
    }
}

impl<H: SharedCounters + Platform> SharedCounters for Scoped<H> {
    fn define_shared(&self, name: &str) -> SharedCounter {
        self.host.define_shared(&self.name(name))
    }

    fn define_stored(&self, name: &str) -> SharedCounter {
        self.host.define_stored(&self.name(name))
    }

    fn increment(&self, counter: SharedCounter, offset: i64) {
        self.host.increment(counter, offset);
    }

    fn store(&self, counter: SharedCounter, number: u64) {
        self.host.store(counter, number);
    }

    fn load(&self, counter: SharedCounter) -> u64 {
        self.host.load(counter)
    }
}

impl<H: Metrics + Platform> Metrics for Scoped<H> {
    fn define(&self, kind: MetricKind, name: &str) -> MetricId {
        self.host.define(kind, &self.name(name))
    }

    fn add(&self, id: MetricId, offset: i64) {
        self.host.add(id, offset);
    }

    fn record(&self, id: MetricId, value: u64) {
        self.host.record(id, value);
    }

    fn value(&self, id: MetricId) -> u64 {
        self.host.value(id)
    }
}

impl<H: Random> Random for Scoped<H> {
    fn entropy(&self) -> u64 {
        self.host.entropy()
    }
}

impl<H: Environment> Environment for Scoped<H> {
    fn variable(&self, name: &str) -> Option<String> {
        self.host.variable(name)
    }
}

impl<H: Calls> Calls for Scoped<H> {
    fn call(&self, call: &Call<'_>) -> Result<CallId, NoCall> {
        self.host.call(call)
    }
}
