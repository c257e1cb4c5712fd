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
            let now = Moment(now);
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
