//! What a run came to, in the numbers of the report.

use std::time::Duration;

use super::support::endpoint::LATE;
use super::support::open_loop::Outcome;
use super::world::{Path, World};

/// The share of delayed ones above which a run says nothing.
pub const LAG: f64 = 0.005;
/// The share of useful answers at which a service is well again.
const WELL: f64 = 0.95;
/// Between the windows that are looked at for the recovery, each a second long.
const STEP: Duration = Duration::from_millis(250);

/// The numbers of one run. All but the recovery and `before` are of the requests that were sent
/// while the fault lasted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measures {
    /// Percent with a good answer from an endpoint in time.
    pub useful: f64,
    /// Percent with a good answer in time, fallbacks included.
    pub answered: f64,
    /// As `useful`, of the critical route's requests.
    pub critical: f64,
    /// Tries that reached an endpoint, for each request that was sent.
    pub tries: f64,
    /// What 99 of 100 good answers took at most, in milliseconds; none without such answers.
    pub p99: Option<f64>,
    /// Seconds from the fault's end to the first second with 95 % useful answers; none if there
    /// was none before the run's end.
    pub recovery: Option<f64>,
    /// Percent useful before the fault: less than about 100 says that the world was not well.
    pub before: f64,
    /// Percent of the requests sent, in the whole run, that were sent late.
    pub late: f64,
}

/// The numbers of a run; `tries` says how often each request reached an endpoint.
pub fn measure(world: &World, outcomes: &[Outcome], tries: &[u32]) -> Measures {
    let all = || world.arrivals.iter().zip(outcomes);
    let counted = || all().filter(|(arrival, _)| arrival.counted);
    let sent = |from: Duration, to: Duration| {
        counted().filter(move |(arrival, _)| (from..to).contains(&arrival.at))
    };
    let in_fault = || sent(world.from, world.to);
    let useful = |from, to| {
        percent(
            sent(from, to).map(|(_, outcome)| outcome.useful()),
            f64::NAN,
        )
    };
    let mut took: Vec<_> = in_fault()
        .filter(|(_, outcome)| outcome.answered())
        .map(|(_, outcome)| outcome.took)
        .collect();
    took.sort_unstable();
    let reached = world.arrivals.iter().zip(tries);
    let reached = reached.filter(|(arrival, _)| world.in_fault(arrival.at));
    let (sum, number) = reached.fold((0, 0), |(sum, number), (_, tries)| {
        (sum + u64::from(*tries), number + 1)
    });
    let critical = in_fault()
        .filter(|(arrival, _)| arrival.path == Path::Critical)
        .map(|(_, outcome)| outcome.useful());
    Measures {
        useful: useful(world.from, world.to),
        answered: percent(in_fault().map(|(_, outcome)| outcome.answered()), f64::NAN),
        critical: percent(critical, f64::NAN),
        tries: sum as f64 / number as f64,
        p99: quantile(&took, 0.99).map(|time| time.as_secs_f64() * 1_000.0),
        recovery: recovery(world, useful),
        // The first second is the proxy's own start.
        before: useful(Duration::from_secs(1), world.from),
        late: percent(all().map(|(_, outcome)| outcome.late > LATE), 0.0),
    }
}

fn recovery(world: &World, useful: impl Fn(Duration, Duration) -> f64) -> Option<f64> {
    let second = Duration::from_secs(1);
    let mut from = world.to;
    while from + second <= world.end {
        if useful(from, from + second) >= WELL * 100.0 {
            return Some((from - world.to).as_secs_f64());
        }
        from += STEP;
    }
    None
}

/// How many of 100 hold; `none` if there are none.
pub fn percent(each: impl Iterator<Item = bool>, none: f64) -> f64 {
    let (hits, all) = each.fold((0_u64, 0_u64), |(hits, all), hit| {
        (hits + u64::from(hit), all + 1)
    });
    if all == 0 {
        none
    } else {
        100.0 * hits as f64 / all as f64
    }
}

/// The least value that at least this share of the sorted ones does not exceed.
fn quantile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The median; of an even number the upper one of the two in the middle. Where there is a `None`
/// it counts as more than any number.
pub fn median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<_> = values.map(|value| value.unwrap_or(f64::INFINITY)).collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.get(values.len() / 2).copied()?;
    middle.is_finite().then_some(middle)
}

/// The medians of some runs of the same scenario.
pub fn medians(runs: &[Measures]) -> Measures {
    let of = |field: fn(&Measures) -> f64| {
        median(runs.iter().map(|run| Some(field(run)))).unwrap_or(f64::NAN)
    };
    Measures {
        useful: of(|run| run.useful),
        answered: of(|run| run.answered),
        critical: of(|run| run.critical),
        tries: of(|run| run.tries),
        p99: median(runs.iter().map(|run| run.p99)),
        recovery: median(runs.iter().map(|run| run.recovery)),
        before: of(|run| run.before),
        late: of(|run| run.late),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn outcome(useful: bool, millis: u64) -> Outcome {
        Outcome {
            status: if useful { 200 } else { 503 },
            real: useful,
            took: Duration::from_millis(millis),
            late: Duration::ZERO,
        }
    }

    #[test]
    fn shares_are_of_the_fault_and_recovery_is_after_it() {
        let world = World::draw(Kind::Outage, 5);
        let back = world.to + Duration::from_millis(1_600);
        let fate = |at| !(world.from..back).contains(&at);
        let arrivals = world.arrivals.iter();
        let outcomes: Vec<_> = arrivals.map(|a| outcome(fate(a.at), 20)).collect();
        let tries: Vec<_> = world.arrivals.iter().map(|_| 2).collect();
        let measures = measure(&world, &outcomes, &tries);
        assert_eq!((measures.useful, measures.answered), (0.0, 0.0));
        assert_eq!((measures.critical, measures.before), (0.0, 100.0));
        assert_eq!((measures.tries, measures.p99), (2.0, None));
        // A window that begins a little before may still hold 95 %.
        let recovery = measures.recovery.unwrap();
        assert!((1.5..=1.75).contains(&recovery), "{recovery}");
    }

    #[test]
    fn a_fallback_answers_and_is_of_no_use() {
        let world = World::draw(Kind::Dead, 5);
        let fallback = Outcome {
            real: false,
            ..outcome(true, 3)
        };
        let outcomes = vec![fallback; world.arrivals.len()];
        let measures = measure(&world, &outcomes, &vec![0; outcomes.len()]);
        assert_eq!((measures.useful, measures.answered), (0.0, 100.0));
        assert_eq!((measures.p99, measures.recovery), (Some(3.0), None));
    }

    #[test]
    fn what_is_not_counted_counts_for_tries_alone() {
        let world = World::draw(Kind::BadRoute, 5);
        let arrivals = world.arrivals.iter();
        let outcomes: Vec<_> = arrivals.map(|a| outcome(a.counted, 9)).collect();
        let arrivals = world.arrivals.iter();
        let tries: Vec<_> = arrivals.map(|a| if a.counted { 1 } else { 3 }).collect();
        let measures = measure(&world, &outcomes, &tries);
        assert_eq!(measures.useful, 100.0);
        assert!((1.4..2.2).contains(&measures.tries), "{}", measures.tries);
    }

    #[test]
    fn lateness_is_a_share_of_all_requests() {
        let world = World::draw(Kind::Slow, 5);
        let mut outcomes = vec![outcome(true, 9); world.arrivals.len()];
        for outcome in outcomes.iter_mut().step_by(10) {
            outcome.late = Duration::from_millis(6);
        }
        let late = measure(&world, &outcomes, &vec![1; outcomes.len()]).late;
        assert!((10.0..10.1).contains(&late), "{late}");
    }

    #[test]
    fn quantiles_and_medians() {
        let millis = |n: u64| Duration::from_millis(n);
        let sorted: Vec<_> = (1..=200).map(millis).collect();
        assert_eq!(quantile(&sorted, 0.99), Some(millis(198)));
        assert_eq!(quantile(&sorted[..1], 0.99), Some(millis(1)));
        assert_eq!(quantile(&[], 0.99), None);
        let of = |values: &[Option<f64>]| median(values.iter().copied());
        assert_eq!(of(&[Some(3.0), Some(1.0), Some(2.0)]), Some(2.0));
        assert_eq!(of(&[Some(3.0), None, Some(2.0)]), Some(3.0));
        assert_eq!(of(&[None, None, Some(2.0)]), None);
        assert_eq!(of(&[]), None);
    }
}
