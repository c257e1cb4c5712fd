//! Circuit breakers: Closed, Open, Half-Open, shared by all workers.
//!
//! [`state`] is the pure machine; [`CircuitBreaker`] keeps its record in shared data. In Closed a request costs one read, and its outcome one
//! compare-and-swap. When that is lost too often the outcome is dropped (and counted in `haven_store_contention_total`): a breaker
//! judges by rates, one sample more or less does not matter; a request is then admitted as in Closed, since a breaker that cannot be
//! read is no reason to refuse. A half-open permit that is lost this way, or with its VM, is missed until `half_open_max_wait` ends the
//! round.

pub mod state;

use crate::base::hash::of_names;
use crate::base::rng::Rng;
use crate::base::time::Nanos;
use crate::host::SharedData;
use crate::store::{self, Contended, Key, Kind, Step};
use state::{Admission, Call, Settings, State, Transition};

/// A breaker of one route, upstream or endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    key: Key,
}

/// A change of state, or none.
pub type Change = Option<Transition>;

impl CircuitBreaker {
    /// The breaker `name` for `subject` (a route, an upstream, an endpoint). `namespace` keeps shadow uses apart.
    #[must_use]
    pub fn new(name: &str, subject: &[&str], namespace: &str) -> Self {
        let mut names = vec![name, namespace];
        names.extend_from_slice(subject);
        Self { key: Key::new(Kind::CircuitBreaker, of_names(&names), 0) }
    }

    /// Asks for admission.
    ///
    /// # Errors
    /// [`Contended`]: nothing was decided.
    pub fn acquire<H: SharedData>(
        &self,
        host: &H,
        settings: &Settings,
        now: Nanos,
    ) -> Result<(Admission, Change), Contended> {
        self.step(host, settings, |state| state.acquire(settings, now))
    }

    /// Reports how an admitted call ended.
    ///
    /// # Errors
    /// [`Contended`]: the outcome is lost.
    pub fn end<H: SharedData>(
        &self,
        host: &H,
        settings: &Settings,
        now: Nanos,
        epoch: u32,
        call: Call,
        rng: &Rng,
    ) -> Result<Change, Contended> {
        let random = rng.bits();
        self.step(host, settings, |state| ((), state.end(settings, now, epoch, call, random)))
            .map(|((), change)| change)
    }

    /// Looks without asking.
    pub fn look<H: SharedData>(&self, host: &H) -> State {
        store::read(host, &self.key).map_or_else(State::default, |bytes| State::decode(&bytes))
    }

    fn step<H: SharedData, A>(
        &self,
        host: &H,
        settings: &Settings,
        mut step: impl FnMut(&mut State) -> (A, Change),
    ) -> Result<(A, Change), Contended> {
        store::update(host, &self.key, |bytes| {
            let before = State::decode(bytes).bounded(settings);
            let mut after = before;
            let answer = step(&mut after);
            if after == before {
                return Step::Keep(answer);
            }
            after.encode(bytes);
            Step::Write(answer)
        })
    }
}
