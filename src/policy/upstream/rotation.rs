//! Smooth weighted round robin: the order of nginx's `upstream` ("Upstream: smooth weighted
//! round-robin balancing", nginx 1.3.1).
//!
//! Each pick adds every endpoint's weight to its current one, takes the endpoint whose current
//! weight is highest (the first among equals), and takes the sum of all weights from it. Weights 5,
//! 1 and 1 give a a b a c a a, and not a a a a a b c.
//!
//! **Workers.** Each has an order of its own, from a random start. A shared counter would cost a
//! host call per request, and the smoothness (of one order over four workers each gets an arbitrary
//! part). A common start would send the first requests of all workers to one endpoint. As each
//! worker keeps to the weights within one request per endpoint, so do all together within one per
//! worker.
//!
//! **Cost.** A pass over an array of small numbers, no host call: about 10,000 instructions for
//! 1,000 endpoints, 4 % of a proxied request. (A heap would cost their logarithm, and would not
//! give nginx's order.)

use super::EndpointList;
use super::roster::RosterEntry;
use crate::base::rng::Rng;

/// The most steps of a random start, times endpoints.
const START: u64 = 1 << 16;

/// The present position in the order.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// By endpoint.
    current: Vec<i64>,
    started: bool,
}

impl Rotation {
    /// The order of `endpoints` from its beginning.
    #[must_use]
    pub fn new(endpoints: usize) -> Self {
        Self {
            current: vec![0; endpoints],
            started: false,
        }
    }

    /// Skips a random number of steps, once.
    pub fn start(&mut self, entries: &[RosterEntry], rng: &Rng) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let most = START.checked_div(entries.len() as u64).unwrap_or(0);
        for _ in 0..rng.below(most) {
            self.next(entries, &|_| false, rng);
        }
    }

    /// The next endpoint, and behind it two others from a random place on, so that the retries of a
    /// failing endpoint do not all go to the same one.
    pub fn next(
        &mut self,
        entries: &[RosterEntry],
        open: &dyn Fn(usize) -> bool,
        rng: &Rng,
    ) -> EndpointList {
        let mut total = 0i64;
        let mut best = (i64::MIN, usize::MAX);
        for entry in entries {
            if entry.trial && !open(entry.at) {
                continue;
            }
            let Some(current) = self.current.get_mut(entry.at) else {
                continue;
            };
            let weight = i64::from(entry.weight);
            // Far from any overflow: within the sum of all weights.
            *current = current.wrapping_add(weight);
            total = total.wrapping_add(weight);
            if *current > best.0 {
                best = (*current, entry.at);
            }
        }
        let mut list = EndpointList::default();
        if let Some(current) = self.current.get_mut(best.1) {
            *current = current.wrapping_sub(total);
            list.push(best.1);
        }
        let start = usize::try_from(rng.below(entries.len() as u64)).unwrap_or(0);
        let (before, from) = entries.split_at_checked(start).unwrap_or((entries, &[]));
        for entry in from.iter().chain(before).filter(|entry| !entry.trial) {
            if list.is_full() {
                break;
            }
            list.push(entry.at);
        }
        list
    }
}
