use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const SETTINGS: AdaptiveSettings = AdaptiveSettings {
    min: 3,
    max: 1000,
    initial: 20,
    deadline: Nanos::from_millis(500),
    share: 100,
};

/// A worker, and the gauge.
struct World {
    seen: Observations,
    limit: u64,
    now: Moment,
}

impl World {
    fn new() -> Self {
        Self {
            seen: Observations::default(),
            limit: SETTINGS.initial,
            now: Moment::from_secs(100),
        }
    }

    /// Over `millis`, a call ends each millisecond that came to `among` and took `time`.
    fn calls(&mut self, millis: u64, among: u64, time: u64) {
        for _ in 0..millis {
            self.now = self.now.plus(Nanos::from_millis(1));
            self.seen
                .arrived(&SETTINGS, self.now, among, self.limit, Answer::Room);
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
fn a_sudden_load_does_not_raise_it_by_its_first_answers() {
    let mut world = World::new();
    world.calls(1_000, 5, 40);
    let before = world.limit;
    assert_eq!(before, 92);
    // More than half of it is in flight, and the first answers, to what found a free place, are
    // quick: 60 in 220 ms are 102 in 375 ms.
    world.calls(100, 60, 220);
    assert!((before..=110).contains(&world.limit), "{}", world.limit);
}

#[test]
fn beside_a_worker_that_refuses_it_is_not_taken_for_idle() {
    let limits = [false, true].map(|others_refuse| {
        let mut world = World::new();
        world.calls(300, 5, 60);
        for _ in 0..2_000 {
            if others_refuse {
                world.seen.refused_elsewhere(&SETTINGS, world.now);
            }
            // They queue, though less than half of the limit is in flight.
            world.calls(1, 20, 160);
        }
        world.limit
    });
    // 5 in 60 ms are 31 in 375 ms, 20 in 160 ms are 47: the double is for one that is idle.
    assert_eq!(limits, [92, 62]);
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

/// An upstream under more requests than the limit lets in, of which the most critical may fill
/// `share` percent of it: each takes `base`, or what the queue behind `slots` makes of it. Returns
/// the limit after each deadline.
fn refused(share: u64, slots: u64, base: u64, deadlines: u64) -> Vec<u64> {
    let settings = AdaptiveSettings { share, ..SETTINGS };
    let (mut seen, mut limit) = (Observations::default(), settings.initial);
    let mut flight: VecDeque<(u64, u64, u64)> = VecDeque::new();
    let mut limits = Vec::new();
    for ms in 1..=deadlines * 500 {
        let now = Moment::from_secs(100).plus(Nanos::from_millis(ms));
        while flight.front().is_some_and(|(end, ..)| *end <= ms) {
            let (_, came, among) = flight.pop_front().unwrap();
            let elapsed = Nanos::from_millis(ms - came);
            seen.ended(&settings, now, among, elapsed, flight.len() as u64, limit);
        }
        while (flight.len() as u64 * 100) < limit * share {
            let among = flight.len() as u64 + 1;
            let takes = base * among.div_ceil(slots).max(1);
            flight.push_back((ms + takes, ms, among));
            seen.arrived(&settings, now, among, limit, Answer::Room);
        }
        seen.arrived(&settings, now, flight.len() as u64 + 1, limit, Answer::Full);
        limit = seen.next_limit(&settings, now, limit).unwrap_or(limit);
        if ms % 500 == 0 {
            limits.push(limit);
        }
    }
    limits
}

#[test]
fn a_slow_upstream_that_does_not_queue_soon_has_what_it_can_do() {
    // Half of the deadline when idle, and up to 300 at once.
    for share in [70, 95, 100] {
        let limits = refused(share, 300, 250, 10);
        assert!(
            limits[7..].iter().all(|it| *it >= 150),
            "{share} %: {limits:?}"
        );
    }
    // Where there is a queue, the limit stays with what is answered in time: 30 take the target.
    let limits = refused(100, 10, 125, 20);
    assert!(limits.iter().all(|it| *it <= 40), "{limits:?}");
}

#[test]
fn what_the_most_critical_may_not_fill_is_not_lost() {
    // A limit of what is in time, of which only 70 % can be used, would leave time unused.
    let mut limits = refused(70, 10, 40, 40);
    let settled = limits.split_off(10);
    // 90 in flight are answered in 360 ms of 375.
    let in_flight: Vec<u64> = settled.iter().map(|it| it * 7 / 10).collect();
    assert!(
        in_flight.iter().all(|it| (70..=100).contains(it)),
        "{in_flight:?}"
    );
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
            let now = Moment(now);
            seen.arrived(&settings, now, in_flight, limit, if admitted { Answer::Room } else { Answer::Full });
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
