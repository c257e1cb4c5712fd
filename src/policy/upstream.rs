//! Which endpoint gets the request: an ordered list of at most three, best first. A retry goes to the next.
//!
//! `least_request`: the fewest requests in flight for its weight wins, counted over all workers. Among equals one is drawn by weight
//! (nginx's `least_conn` breaks ties by weighted round robin; a draw needs no state that workers would have to share).
//! Of more than [`SAMPLE`] endpoints a random sample is compared: with two choices already the fullest endpoint holds
//! O(log log n) more than the mean (Mitzenmacher, "The power of two choices in randomized load balancing", 2001), and the cost of a
//! request does not grow with the number of endpoints.

use crate::base::rng::Rng;
use crate::config::Percent;

/// Endpoints compared for one request.
pub const SAMPLE: usize = 8;

/// Endpoints on the list.
pub const LIST: usize = 3;

/// Whether an endpoint may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Availability {
    /// It is well.
    #[default]
    Available,
    /// It failed before and may be tried again, by a call that holds a permit.
    Trial,
    /// It is to be left alone.
    Out,
}

/// An endpoint as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Whether it may be used.
    pub availability: Availability,
    /// Relative capacity; 0 = drained.
    pub weight: u32,
    /// Requests in flight over all workers.
    pub in_flight: u64,
}

/// The endpoints picked, best first, by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct List {
    items: [Option<usize>; LIST],
}

impl List {
    /// The indices in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.items.iter().flatten().copied()
    }

    /// The best.
    #[must_use]
    pub fn first(&self) -> Option<usize> {
        self.iter().next()
    }

    /// The list without its first entry.
    #[must_use]
    pub const fn without_first(self) -> Self {
        let [_, second, third] = self.items;
        Self { items: [second, third, None] }
    }

    fn push(&mut self, item: usize) {
        if let Some(free) = self.items.iter_mut().find(|i| i.is_none()) {
            *free = Some(item);
        }
    }
}

/// How many endpoints there are, and how many of them may be used. Drained ones do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Endpoints with a weight.
    pub members: u32,
    /// Those that are well.
    pub available: u32,
    /// Those that may be tried.
    pub trial: u32,
}

impl Census {
    /// Counts endpoints.
    #[must_use]
    pub fn of(endpoints: impl Iterator<Item = (Availability, u32)>) -> Self {
        endpoints.filter(|(_, weight)| *weight > 0).fold(Self::default(), |sum, (availability, _)| Self {
            members: sum.members.saturating_add(1),
            available: sum.available.saturating_add((availability == Availability::Available).into()),
            trial: sum.trial.saturating_add((availability == Availability::Trial).into()),
        })
    }

    /// Whether so few are left that all must be used again: better some errors than the last ones crushed.
    #[must_use]
    pub fn panics(&self, threshold: Percent) -> bool {
        u64::from(self.available).saturating_mul(10_000) < u64::from(self.members).saturating_mul(threshold.0.into())
    }
}

/// Picks up to [`LIST`] of the `count` endpoints.
///
/// In a panic availability is ignored. Otherwise an endpoint on trial may only come first: a trial is one call, and a retry must not
/// land there without a permit. Endpoints that are well are preferred to none, never to a better one.
pub fn pick(count: usize, candidate: impl Fn(usize) -> Candidate, panic: bool, rng: &Rng) -> List {
    let mut sample = [(0usize, Candidate { availability: Availability::Out, weight: 0, in_flight: 0 }); SAMPLE];
    let filled = fill(&mut sample, count, &candidate, panic, rng);
    let mut list = List::default();
    for place in 0..LIST {
        let mut best: Option<usize> = None;
        let mut drawn_from = 0u64;
        for (at, (_, c)) in sample.iter().enumerate().take(filled) {
            let usable = c.weight > 0
                && (panic
                    || c.availability == Availability::Available
                    || (c.availability == Availability::Trial && place == 0));
            if !usable {
                continue;
            }
            let weight = u64::from(c.weight);
            let order = match best.and_then(|b| sample.get(b)) {
                None => std::cmp::Ordering::Less,
                Some((_, b)) => c.in_flight.saturating_mul(b.weight.into()).cmp(&b.in_flight.saturating_mul(weight)),
            };
            match order {
                std::cmp::Ordering::Greater => {}
                std::cmp::Ordering::Less => (best, drawn_from) = (Some(at), weight),
                // A draw among equals, by weight, without knowing beforehand how many there are.
                std::cmp::Ordering::Equal => {
                    drawn_from = drawn_from.saturating_add(weight);
                    if rng.below(drawn_from) < weight {
                        best = Some(at);
                    }
                }
            }
        }
        let Some((index, taken)) = best.and_then(|b| sample.get_mut(b)) else { break };
        taken.weight = 0;
        list.push(*index);
    }
    list
}

/// Fills the sample: with all endpoints if they fit, else with distinct random ones, drawing on while too few of them are usable.
fn fill(
    sample: &mut [(usize, Candidate); SAMPLE],
    count: usize,
    candidate: &impl Fn(usize) -> Candidate,
    panic: bool,
    rng: &Rng,
) -> usize {
    if count <= SAMPLE {
        for (index, entry) in sample.iter_mut().enumerate().take(count) {
            *entry = (index, candidate(index));
        }
        return count;
    }
    // A walk from a random start in a random stride meets distinct endpoints (nearly: a stride may share a factor with the count, then
    // it comes round early). It is bounded: in a set with few usable endpoints it looks at all of them before it gives up.
    let count = count as u64;
    let stride = rng.below(count.saturating_sub(1)).saturating_add(1);
    let stride = if gcd(stride, count) == 1 { stride } else { 1 };
    let mut at = rng.below(count);
    let mut filled = 0usize;
    for _ in 0..count {
        let index = usize::try_from(at).unwrap_or(0);
        let c = candidate(index);
        if c.weight > 0 && (panic || c.availability != Availability::Out) {
            let Some(entry) = sample.get_mut(filled) else { break };
            *entry = (index, c);
            filled = filled.saturating_add(1);
        }
        at = at.saturating_add(stride).checked_rem(count).unwrap_or(0);
    }
    filled
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while let Some(rest) = a.checked_rem(b) {
        (a, b) = (b, rest);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well(weight: u32, in_flight: u64) -> Candidate {
        Candidate { availability: Availability::Available, weight, in_flight }
    }

    fn as_is(availability: Availability, c: Candidate) -> Candidate {
        Candidate { availability, ..c }
    }

    fn order(all: &[Candidate], panic: bool, rng: &Rng) -> Vec<usize> {
        pick(all.len(), |i| all[i], panic, rng).iter().collect()
    }

    #[test]
    fn the_least_loaded_for_its_weight_comes_first() {
        let rng = Rng::new(1);
        // 3/3 < 2/1 < 9/4
        assert_eq!(order(&[well(1, 2), well(3, 3), well(4, 9)], false, &rng), [1, 0, 2]);
    }

    #[test]
    fn equals_are_drawn_by_weight() {
        let rng = Rng::new(2);
        let mut first = [0u32; 2];
        for _ in 0..40_000 {
            first[order(&[well(3, 0), well(1, 0)], false, &rng)[0]] += 1;
        }
        assert!((29_400..30_600).contains(&first[0]), "{first:?}");
    }

    #[test]
    fn what_is_out_or_drained_is_never_listed() {
        let rng = Rng::new(3);
        let all = [well(0, 0), as_is(Availability::Out, well(1, 0)), well(1, 50)];
        assert_eq!(order(&all, false, &rng), [2]);
        assert_eq!(order(&all[..2], false, &rng), [0usize; 0]);
    }

    #[test]
    fn a_trial_comes_first_or_not_at_all() {
        let rng = Rng::new(4);
        let trial = as_is(Availability::Trial, well(1, 0));
        assert_eq!(order(&[well(1, 1), trial, well(1, 2)], false, &rng), [1, 0, 2]);
        assert_eq!(order(&[well(1, 1), as_is(Availability::Trial, well(1, 5)), well(1, 2)], false, &rng), [0, 2]);
        assert_eq!(order(&[trial], false, &rng), [0]);
    }

    #[test]
    fn in_a_panic_all_but_the_drained_are_used() {
        let rng = Rng::new(5);
        let all = [as_is(Availability::Out, well(1, 1)), well(1, 2), well(0, 0)];
        assert_eq!(order(&all, true, &rng), [0, 1]);
        let census = |available, members| Census { members, available, trial: 0 };
        assert!(census(1, 3).panics(Percent(5_000)));
        assert!(!census(2, 4).panics(Percent(5_000)), "exactly the threshold is no panic");
        assert!(!census(0, 3).panics(Percent(0)), "0 = never");
    }

    #[test]
    fn the_census_leaves_out_the_drained() {
        let all = [
            (Availability::Available, 1),
            (Availability::Trial, 2),
            (Availability::Out, 1),
            (Availability::Available, 0),
        ];
        assert_eq!(Census::of(all.into_iter()), Census { members: 3, available: 1, trial: 1 });
    }

    #[test]
    fn many_endpoints_share_evenly_and_the_few_usable_are_found() {
        let rng = Rng::new(6);
        for count in [9usize, 10, 100, 1_000] {
            let all = vec![well(1, 0); count];
            let mut hits = vec![0u32; count];
            for _ in 0..count * 200 {
                let list = order(&all, false, &rng);
                assert_eq!(list.len(), LIST);
                assert!(list[0] != list[1] && list[1] != list[2] && list[0] != list[2]);
                hits[list[0]] += 1;
            }
            assert!(hits.iter().all(|h| (120..280).contains(h)), "{count}: {:?}", hits.iter().minmax_of());
        }
        let mut lonely = vec![as_is(Availability::Out, well(1, 0)); 1_000];
        lonely[777] = well(1, 9);
        for _ in 0..100 {
            assert_eq!(order(&lonely, false, &rng), [777]);
        }
    }

    trait MinMax {
        fn minmax_of(self) -> (u32, u32);
    }

    impl<'a, I: Iterator<Item = &'a u32> + Clone> MinMax for I {
        fn minmax_of(self) -> (u32, u32) {
            (*self.clone().min().unwrap(), *self.max().unwrap())
        }
    }
}
