//! When each endpoint is checked. Pure: the caller passes the time and the random number.
//!
//! Each endpoint has its own times. The first checks follow each other by [`SPREAD`], so that a
//! handful is known at once and a thousand are spread over seconds. From then on each is checked at
//! its interval, and the jitter spreads checks that coincide. After a pause, however long, no more
//! are checked at once than at a steady pace: missed checks are not made up for.

use crate::base::sort;
use crate::base::time::{Moment, Nanos};
use crate::policy::health_check::config::HealthCheck;

/// Time between the first checks of two endpoints.
const SPREAD: Nanos = Nanos::from_millis(5);

/// The least and the most calls that may be in flight for an upstream; between them it is a quarter
/// of its endpoints.
const IN_FLIGHT: (usize, usize) = (32, 256);

/// The times of the next checks of an upstream's endpoints.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// By endpoint; [`Moment::MAX`] while a check is in flight.
    due: Vec<Moment>,
    in_flight: usize,
}

impl Schedule {
    /// The schedule of `count` endpoints that begins `now`.
    #[must_use]
    pub fn new(count: usize, now: Moment) -> Self {
        Self {
            due: (0..count)
                .map(|at| now.plus(SPREAD.times(at as u64)))
                .collect(),
            in_flight: 0,
        }
    }

    /// The schedule of endpoints of which each was at a place of this one, or is new.
    #[must_use]
    pub fn rearranged(&self, from: &[Option<usize>], now: Moment) -> Self {
        let mut new = 0u64;
        let due = from.iter().map(|at| {
            at.and_then(|at| self.due.get(at))
                .copied()
                .unwrap_or_else(|| {
                    new = new.saturating_add(1);
                    now.plus(SPREAD.times(new))
                })
        });
        Self {
            due: due.collect(),
            in_flight: self.in_flight,
        }
    }

    /// How late a check may be: the checks that are due within this time start in one tick.
    #[must_use]
    pub fn quantum(check: &HealthCheck) -> Nanos {
        Nanos(check.interval_changing.0 / 10).clamp(Nanos::from_millis(5), Nanos::from_millis(50))
    }

    /// The endpoints to check now, the longest overdue first; their checks count as in flight
    /// afterwards.
    #[must_use]
    pub fn take_due(&mut self, check: &HealthCheck, now: Moment) -> Vec<usize> {
        let (least, most) = IN_FLIGHT;
        let room = (self.due.len() / 4)
            .clamp(least, most)
            .saturating_sub(self.in_flight);
        // Twice the pace at which they come due when all are checked at the shortest interval.
        let pace = (self.due.len() as u64)
            .saturating_mul(Self::quantum(check).0)
            .saturating_mul(2)
            .checked_div(check.interval_changing.0)
            .map_or(1, |n| {
                usize::try_from(n).unwrap_or(usize::MAX).saturating_add(1)
            });
        let mut ready: Vec<(Moment, usize)> = self
            .due
            .iter()
            .enumerate()
            .filter(|(_, due)| **due <= now)
            .map(|(at, due)| (*due, at))
            .collect();
        sort::by_key(&mut ready, |due| *due);
        ready.truncate(room.min(pace));
        for (_, at) in &ready {
            self.in_flight = self.in_flight.saturating_add(1);
            self.set(*at, Moment::MAX);
        }
        ready.into_iter().map(|(_, at)| at).collect()
    }

    /// The check that began at `started` has ended, with or without an answer. `random`: any
    /// number.
    pub fn answered(
        &mut self,
        at: usize,
        check: &HealthCheck,
        changing: bool,
        started: Moment,
        now: Moment,
        random: u64,
    ) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let interval = if changing {
            check.interval_changing
        } else {
            check.interval
        };
        // The next check starts no sooner than a moment after this answer: some answers take longer
        // than the interval.
        self.set(
            at,
            started
                .plus(jittered(interval, check.jitter.0, random))
                .max(now.plus(SPREAD)),
        );
    }

    /// The endpoint could not be checked; the next try is after `pause`.
    pub fn put_off(&mut self, at: usize, now: Moment, pause: Nanos) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.set(at, now.plus(pause));
    }

    /// When the next check is due.
    #[must_use]
    pub fn next(&self) -> Moment {
        self.due.iter().copied().min().unwrap_or(Moment::MAX)
    }

    fn set(&mut self, at: usize, due: Moment) {
        if let Some(known) = self.due.get_mut(at) {
            *known = due;
        }
    }
}

/// `interval`, longer or shorter by up to `jitter` hundredths of a percent.
fn jittered(interval: Nanos, jitter: u32, random: u64) -> Nanos {
    let most = u64::try_from(u128::from(interval.0).saturating_mul(jitter.into()) / 10_000)
        .unwrap_or(u64::MAX);
    let range = most.saturating_mul(2).saturating_add(1);
    interval
        .minus(Nanos(most))
        .plus(Nanos(random.checked_rem(range).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    fn check(fields: &str) -> HealthCheck {
        let config = format!(r#"{{"upstreams": {{"u": {{"health_check": {{{fields}}}}}}}}}"#);
        crate::document::parse(config.as_bytes()).unwrap().upstreams[0]
            .health_check
            .clone()
            .unwrap()
    }

    /// Runs it for a time, with answers that take 1 ms; the moments at which each endpoint was
    /// started.
    fn run(
        schedule: &mut Schedule,
        check: &HealthCheck,
        from: Moment,
        time: Nanos,
    ) -> Vec<Vec<Moment>> {
        let rng = Rng::new(1);
        let mut started = vec![Vec::new(); schedule.due.len()];
        let mut now = from;
        while now < from.plus(time) {
            for at in schedule.take_due(check, now) {
                started[at].push(now);
                schedule.answered(
                    at,
                    check,
                    false,
                    now,
                    now.plus(Nanos::from_millis(1)),
                    rng.bits(),
                );
            }
            now = now.plus(Schedule::quantum(check));
        }
        started
    }

    #[test]
    fn who_stays_keeps_its_time_and_who_is_new_is_asked_at_once() {
        let check = check(r#""interval": "10s""#);
        let now = Moment::from_secs(100);
        let mut before = Schedule::new(3, now);
        let asked = before.take_due(&check, now.plus(Nanos::from_secs(1)));
        assert_eq!(asked, [0]);
        let later = now.plus(Nanos::from_secs(2));
        let mut after = before.rearranged(&[Some(1), None, Some(2), None], later);
        let (kept, new) = (before.due[1], later.plus(SPREAD));
        assert_eq!(after.due, [kept, new, before.due[2], new.plus(SPREAD)]);
        // The one that was being asked has gone; its answer makes room all the same.
        assert_eq!(after.in_flight, 1);
        after.answered(usize::MAX, &check, false, later, later, 0);
        assert_eq!(after.in_flight, 0);
    }

    #[test]
    fn each_is_asked_at_its_interval() {
        for (count, fields, interval) in [
            (3, r#""interval": "100ms""#, 100),
            (1_000, r#""interval": "5s""#, 5_000),
        ] {
            let check = check(fields);
            let mut schedule = Schedule::new(count, Moment::ZERO);
            let started = run(
                &mut schedule,
                &check,
                Moment::ZERO,
                Nanos::from_millis(interval * 20),
            );
            for moments in started {
                assert!(
                    (16..=21).contains(&moments.len()),
                    "{count}: {}",
                    moments.len()
                );
                for pair in moments.windows(2) {
                    let gap = pair[1].since(pair[0]).as_millis();
                    assert!(
                        gap >= interval * 9 / 10 && gap <= interval * 13 / 10,
                        "{count}: {gap}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_thousand_are_spread_out_and_a_stall_is_not_caught_up() {
        let check = check(r#""interval": "5s""#);
        let mut schedule = Schedule::new(1_000, Moment::ZERO);
        run(&mut schedule, &check, Moment::ZERO, Nanos::from_secs(20));
        let begin = Moment::from_secs(80);
        let started = run(&mut schedule, &check, begin, Nanos::from_secs(5));
        let mut by_tick = std::collections::BTreeMap::<Moment, u32>::new();
        for moment in started.iter().flatten() {
            *by_tick.entry(*moment).or_default() += 1;
        }
        assert!(
            by_tick.values().all(|started| *started <= 101),
            "{by_tick:?}"
        );
        assert!(
            started
                .iter()
                .all(|moments| (1..=2).contains(&moments.len())),
            "each once, or once more"
        );
    }

    #[test]
    fn so_many_are_in_flight_at_once() {
        let check = check(r#""interval": "100ms", "timeout": "10s""#);
        for (count, most) in [(10, 10), (100, 32), (1_000, 250), (5_000, 256)] {
            let mut schedule = Schedule::new(count, Moment::ZERO);
            let mut taken = 0;
            for tick in 0..200 {
                taken += schedule
                    .take_due(&check, Moment::from_secs(100 + tick))
                    .len();
            }
            assert_eq!(taken, most, "{count}");
        }
    }

    #[test]
    fn answers_that_take_longer_than_the_interval_are_not_piled_up() {
        let check = check(r#""interval": "100ms", "timeout": "1s""#);
        let mut schedule = Schedule::new(1, Moment::ZERO);
        assert_eq!(schedule.take_due(&check, Moment::ZERO), [0]);
        let late = Moment::from_secs(1);
        assert_eq!(schedule.take_due(&check, late), [0usize; 0]);
        schedule.answered(0, &check, false, Moment::ZERO, late, 0);
        assert_eq!(schedule.next(), late.plus(SPREAD));
        schedule.put_off(0, late, Nanos::from_secs(1));
        assert_eq!(schedule.next(), Moment::from_secs(2));
    }
}
