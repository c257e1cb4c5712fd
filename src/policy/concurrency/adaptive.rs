//! A limit that finds itself: haven admits as many requests as will be answered before the
//! deadline.
//!
//! **The law.** Where requests queue at the upstream, one that comes to N others is answered after
//! N / capacity (Little, "A proof for the queuing formula L = λW", 1961). So each worker notes of
//! each request how many were in flight when it came, and how long it took: N · target / time is
//! the number in flight at which it would have been answered just in time. The limit is that, over
//! the sums of many requests. Both numbers are of the same request, so that a ramp does not
//! deceive: the number in flight *now*, over the time of the requests that end now, would be far
//! too high while a queue grows.
//!
//! **Two states.** Below capacity N · target / time shows only the present load, not the capacity.
//! So there are two states:
//!
//! | | calm | pressed |
//! |---|---|---|
//! | when | otherwise | any of the three signs below |
//! | it rises to | twice the present load | what is answered within 75 % of the deadline |
//! | it falls | slowly, not below `initial_limit` | to the same, see below |
//!
//! A limit is pressed if half of it is in flight for ¼ of the deadline, if a request was refused in
//! the last two deadlines, or if answers take 85 % of the deadline. A pressed limit falls at once
//! if answers take 85 % of the deadline, and by quarters of the way if they take 75 to 85 %. A calm
//! one falls by 1/60 of the way per second and worker.
//!
//! In both states it falls at once, though not below `initial_limit`, if more requests are in
//! flight than are answered within the deadline: so a sudden load meets a limit before the first
//! late answer. It at most doubles in an eighth of the deadline (at most 500 ms): of the answers to
//! a burst the fast ones come first, and promise too much.
//!
//! A limit never falls because answers are slow, only because they come too late: it stays where it
//! is when an upstream turns slower and still answers in time. Nor does it fall for errors, which
//! are a breaker's matter: only answers count, and calls that end in any way after 75 % of the
//! deadline.
//!
//! | | |
//! |---|---|
//! | first start | `initial_limit` until eight answers have come; then it doubles step by step |
//! | idle | it stays; old observations are forgotten |
//! | an upstream that hangs | falls to `min_limit`; good answers then outweigh the older ones |
//! | a clock that steps back | observations are forgotten, the limit stays |
//! | few requests | it moves rarely: a worker needs at least eight calls for a step |
//!
//! **Sources.** From Breakwater (OSDI 2020) and DAGOR (SoCC 2018): admission follows the time spent
//! queueing, and priorities compare with a threshold on it. From CoDel (2012): a standing queue is
//! bad, a short one is not. From BBR (2016): each request is paired with the number in flight when
//! it began. Not used: Vegas and Gradient2 (Netflix concurrency-limits), nor Envoy's
//! adaptive_concurrency, which aim at the latency of the idle upstream, so that one that turns five
//! times slower is cut to a fifth of its load though it would serve it in time. Nor a success rate
//! (Envoy's admission_control): it refuses requests that would be answered in time.
//!
//! **Workers.** The limit is one gauge for all workers; each worker moves it by its own
//! observations. They all sample the same upstream, so that they agree apart from noise, and none
//! waits for another: there is no leader and no record. A worker with too few observations moves
//! nothing.
//!
//! Not for upstreams that take more than 85 % of the deadline when idle: they look overloaded at
//! any load, and get `min_limit`.

use crate::base::time::Nanos;

/// Bounds and aim of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptiveSettings {
    /// The least that is found, at least 1.
    pub min: u64,
    /// The most.
    pub max: u64,
    /// Where it begins.
    pub initial: u64,
    /// Answers after this are of no use: above zero.
    pub deadline: Nanos,
}

/// The deadline of a route without one: Envoy's own default.
pub const DEFAULT_DEADLINE: Nanos = Nanos::from_secs(15);

/// Fewer calls than this prove nothing.
const SAMPLES: u64 = 8;

/// The time in which a calm limit would fall to the usual load at its initial speed. Each of
/// several workers contributes its part.
const FALL: Nanos = Nanos::from_secs(60);

impl AdaptiveSettings {
    /// The limit in force, by its gauge: 0 is a gauge that no worker has set yet.
    #[must_use]
    pub fn limit(&self, gauge: u64) -> u64 {
        if gauge == 0 {
            self.initial
        } else {
            gauge.max(self.min).min(self.max)
        }
    }

    /// The time between two steps: short enough for several steps within a deadline.
    fn period(&self) -> Nanos {
        Nanos(self.deadline.0 / 16).clamp(Nanos::from_millis(5), Nanos::from_millis(100))
    }

    /// How long half of the limit must be in flight for it to be pressed.
    fn pressed_after(&self) -> Nanos {
        Nanos(self.deadline.0 / 4).clamp(Nanos::from_millis(20), Nanos::from_secs(1))
    }

    /// The time in which admitted requests should be answered: the rest of the deadline is for the
    /// way.
    const fn target(&self) -> u64 {
        (self.deadline.0 / 4).saturating_mul(3)
    }

    /// Answers that take as long are about to be late.
    const fn late(&self) -> u64 {
        (self.deadline.0 / 20).saturating_mul(17)
    }

    /// Whether a call of this length counts though it failed.
    #[must_use]
    pub const fn is_late(&self, elapsed: Nanos) -> bool {
        elapsed.0 >= self.target()
    }
}

/// Calls: how many, how many were in flight when they came, and how long they took, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CallTotals {
    count: u64,
    in_flight: u64,
    time: u64,
}

impl CallTotals {
    const fn add(&mut self, in_flight: u64, elapsed: Nanos) {
        self.count = self.count.saturating_add(1);
        self.in_flight = self.in_flight.saturating_add(in_flight);
        self.time = self.time.saturating_add(elapsed.0);
    }

    /// How many are answered within this time.
    fn within(&self, time: u64) -> u64 {
        let product = u128::from(self.in_flight).saturating_mul(time.into());
        // Faster than the clock shows: as if it had taken a nanosecond.
        u64::try_from(product.checked_div(self.time.max(1).into()).unwrap_or(0)).unwrap_or(u64::MAX)
    }

    fn mean(&self) -> u64 {
        self.time.checked_div(self.count).unwrap_or(0)
    }

    /// Older calls count less.
    fn aged(self) -> Self {
        let less = |n: u64| (n / 4).saturating_mul(3);
        Self {
            count: less(self.count),
            in_flight: less(self.in_flight),
            time: less(self.time),
        }
    }
}

/// A worker's recent observations of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observations {
    /// When the last step was.
    since: Nanos,
    /// When less than half of the limit was in flight.
    calm_at: Nanos,
    /// When the limit last fell while calm, or had no need to.
    fell_at: Nanos,
    /// When a request was refused last.
    refused_at: Option<Nanos>,
    /// Calls since then.
    new: CallTotals,
    /// The least that was in flight since then.
    least: u64,
    /// A limit that was in force, and when: it at most doubles from there.
    base: u64,
    base_at: Nanos,
    all: CallTotals,
    /// Those that came when half of the limit was in flight.
    pressed: CallTotals,
}

impl Observations {
    /// A request came; with it `in_flight` are in flight.
    pub fn arrived(
        &mut self,
        settings: &AdaptiveSettings,
        now: Nanos,
        in_flight: u64,
        limit: u64,
        admitted: bool,
    ) {
        self.keep_up(settings, now);
        self.note(now, in_flight, limit);
        if !admitted {
            self.refused_at = Some(now);
        }
    }

    /// A call ended that came when `admitted_at` were in flight; `in_flight` are now. It was
    /// answered, or is late.
    pub fn ended(
        &mut self,
        settings: &AdaptiveSettings,
        now: Nanos,
        admitted_at: u64,
        elapsed: Nanos,
        in_flight: u64,
        limit: u64,
    ) {
        self.keep_up(settings, now);
        self.note(now, in_flight, limit);
        self.new.add(admitted_at, elapsed);
        self.all.add(admitted_at, elapsed);
        if admitted_at.saturating_mul(2) >= limit {
            self.pressed.add(admitted_at, elapsed);
        }
    }

    /// The new limit, if a step is due and there are enough observations.
    pub fn next_limit(
        &mut self,
        settings: &AdaptiveSettings,
        now: Nanos,
        limit: u64,
    ) -> Option<u64> {
        let age = now.since(self.since);
        if age < settings.period() || self.new.count < SAMPLES {
            return None;
        }
        if self.new.mean() < self.all.mean() / 4 {
            // The upstream has recovered: the older calls would hold the limit down for long.
            (self.all, self.pressed) = (self.new, self.new);
        }
        let hopeless = self.least > self.all.within(settings.deadline.0).max(settings.initial);
        let found = if hopeless || self.is_pressed(settings, now) {
            let calls = if self.pressed.count >= SAMPLES {
                self.pressed
            } else {
                self.all
            };
            let (found, mean) = (calls.within(settings.target()), calls.mean());
            if found > limit {
                let found = if mean > settings.target() / 2 {
                    limit.saturating_add(found.saturating_sub(limit) / 2)
                } else {
                    found
                };
                found.min(self.doubled(settings, now, limit))
            } else if mean > settings.late() {
                found
            } else if hopeless {
                found.max(settings.initial)
            } else if mean > settings.target() {
                limit.saturating_sub(limit.saturating_sub(found) / 4)
            } else {
                limit
            }
        } else {
            let done = self.all.within(settings.target()).saturating_mul(2);
            let usual = done
                .max(settings.initial)
                .min(self.doubled(settings, now, limit));
            let step = fall(limit.saturating_sub(usual), now.since(self.fell_at));
            if step > 0 || usual >= limit {
                self.fell_at = now;
            }
            limit.saturating_sub(step).max(usual)
        };
        *self = Self {
            since: now,
            new: CallTotals::default(),
            least: u64::MAX,
            all: self.all.aged(),
            pressed: self.pressed.aged(),
            ..*self
        };
        let found = found.max(settings.min).min(settings.max);
        (found != limit).then_some(found)
    }

    fn is_pressed(&self, settings: &AdaptiveSettings, now: Nanos) -> bool {
        self.all.mean() > settings.late()
            || self
                .refused_at
                .is_some_and(|at| now.since(at) < settings.deadline.times(2))
            || now.since(self.calm_at) >= settings.pressed_after()
    }

    /// The most that the limit may rise to: the first answers to many requests are the fast ones,
    /// and promise too much.
    fn doubled(&mut self, settings: &AdaptiveSettings, now: Nanos, limit: u64) -> u64 {
        if self.base == 0
            || limit < self.base
            || now.since(self.base_at) >= Nanos(settings.pressed_after().0 / 2)
        {
            (self.base, self.base_at) = (limit, now);
        }
        self.base.saturating_mul(2).max(limit)
    }

    fn note(&mut self, now: Nanos, in_flight: u64, limit: u64) {
        self.least = self.least.min(in_flight);
        if in_flight.saturating_mul(2) < limit {
            self.calm_at = now;
        }
    }

    /// Forgets observations that are old or from the future (the clock has stepped back).
    fn keep_up(&mut self, settings: &AdaptiveSettings, now: Nanos) {
        let oldest = settings.deadline.times(8).plus(Nanos::from_secs(1));
        if now < self.since || now < self.calm_at || now.since(self.since) > oldest {
            *self = Self {
                since: now,
                calm_at: now,
                fell_at: now,
                base_at: now,
                least: u64::MAX,
                ..Self::default()
            };
        }
    }
}

/// How far a calm limit falls in this time, of the way to what is usual.
fn fall(way: u64, time: Nanos) -> u64 {
    let step = u128::from(way)
        .saturating_mul(time.0.into())
        .checked_div(FALL.0.into())
        .unwrap_or(0);
    u64::try_from(step).unwrap_or(u64::MAX).min(way)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: AdaptiveSettings = AdaptiveSettings {
        min: 3,
        max: 1000,
        initial: 20,
        deadline: Nanos::from_millis(500),
    };

    /// A worker, and the gauge.
    struct World {
        seen: Observations,
        limit: u64,
        now: Nanos,
    }

    impl World {
        fn new() -> Self {
            Self {
                seen: Observations::default(),
                limit: SETTINGS.initial,
                now: Nanos::from_secs(100),
            }
        }

        /// Over `millis`, a call ends each millisecond that came to `among` and took `time`.
        fn calls(&mut self, millis: u64, among: u64, time: u64) {
            for _ in 0..millis {
                self.now = self.now.plus(Nanos::from_millis(1));
                self.seen
                    .arrived(&SETTINGS, self.now, among, self.limit, true);
                self.seen.ended(
                    &SETTINGS,
                    self.now,
                    among,
                    Nanos::from_millis(time),
                    among,
                    self.limit,
                );
                if let Some(limit) = self.seen.next_limit(&SETTINGS, self.now, self.limit) {
                    self.limit = limit;
                }
            }
        }
    }

    #[test]
    fn below_capacity_it_is_well_above_what_is_done() {
        let mut world = World::new();
        world.calls(1_000, 10, 40);
        // 10 in 40 ms are 93 in 375 ms.
        assert_eq!(world.limit, 186);
        // Slower, and in time: as much is done, and the limit is still far above it.
        world.calls(2_000, 50, 200);
        assert!((186..=190).contains(&world.limit), "{}", world.limit);
    }

    #[test]
    fn a_queue_is_cut_to_what_is_in_time() {
        let mut world = World::new();
        world.calls(1_000, 20, 40);
        // 100 per second from now on: 37 in 375 ms.
        world.calls(500, 60, 600);
        assert_eq!(world.limit, 37);
    }

    #[test]
    fn with_little_time_left_it_goes_to_what_is_in_time_in_steps() {
        let mut world = World::new();
        world.limit = 100;
        // 90 in 380 ms are 88 in 375 ms: close, and not late.
        world.calls(2_000, 90, 380);
        assert!((88..=92).contains(&world.limit), "{}", world.limit);
    }

    #[test]
    fn it_falls_slowly_when_there_is_less_to_do() {
        let mut world = World::new();
        world.limit = 1_000;
        world.calls(2_000, 1, 40);
        assert!(world.limit > 900, "a burst may come again: {}", world.limit);
        world.calls(600_000, 1, 40);
        assert!((20..30).contains(&world.limit), "{}", world.limit);
    }

    #[test]
    fn what_hangs_brings_it_down_and_the_first_answers_up_again() {
        let mut world = World::new();
        for _ in 0..100 {
            let among = world.limit;
            world.calls(40, among, 500);
        }
        assert_eq!(world.limit, 3);
        for _ in 0..50 {
            let among = world.limit;
            world.calls(20, among, 40);
        }
        assert!(world.limit > 300, "{}", world.limit);
    }

    #[test]
    fn a_gauge_is_read_within_the_bounds() {
        assert_eq!(
            [0, 1, 3, 500, 1_001, u64::MAX].map(|gauge| SETTINGS.limit(gauge)),
            [20, 3, 3, 500, 1_000, 1_000]
        );
    }

    proptest! {
        #[test]
        fn whatever_it_sees_it_keeps_its_bounds(
            events in proptest::collection::vec(
                (
                    any::<u64>(),
                    any::<u64>(),
                    any::<u64>(),
                    0u64..2_000,
                    any::<bool>(),
                ),
                0..200,
            ),
            deadline in 1u64..=u64::MAX,
        ) {
            let settings = AdaptiveSettings {
                deadline: Nanos(deadline),
                ..SETTINGS
            };
            let (mut seen, mut limit) = (Observations::default(), 20);
            for (now, among, elapsed, in_flight, admitted) in events {
                let now = Nanos(now);
                seen.arrived(&settings, now, in_flight, limit, admitted);
                for _ in 0..8 {
                    seen.ended(&settings, now, among, Nanos(elapsed), in_flight, limit);
                }
                if let Some(found) =
                    seen.next_limit(&settings, now.plus(Nanos::from_secs(1)), limit)
                {
                    prop_assert!((3..=1_000).contains(&found) && found != limit);
                    limit = found;
                }
            }
        }
    }
}
