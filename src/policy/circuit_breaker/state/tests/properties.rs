//! Against a plain model, and over any input.

use super::*;
use proptest::prelude::*;

fn bytes_phase(now: u64) -> u8 {
    (now % 4) as u8
}

/// A breaker that keeps the whole history instead of a ring.
#[derive(Default)]
struct Reference {
    history: Vec<(Moment, bool)>,
}

proptest! {
    #[test]
    fn a_closed_breaker_opens_when_the_window_says_so(
        steps in proptest::collection::vec((0u64..4_000, any::<bool>()), 1..120),
    ) {
        let mut bench = Bench::new(config());
        let mut reference = Reference::default();
        for (pause, failed) in steps {
            bench.now = bench.now.plus(Nanos::from_millis(pause));
            reference.history.push((bench.now, failed));
            bench.call(if failed {
                Outcome::Failure
            } else {
                Outcome::Success
            });
            // The ring holds the newest bucket and nine whole ones before it.
            let bucket = Nanos::from_secs(2).0;
            let oldest = (bench.now.0 / bucket).saturating_sub(9);
            let inside: Vec<_> = reference
                .history
                .iter()
                .filter(|(at, _)| at.0 / bucket >= oldest)
                .collect();
            let failures = inside.iter().filter(|(_, failed)| *failed).count();
            let opens = inside.len() >= 5 && failures * 2 >= inside.len();
            prop_assert_eq!(bench.state.phase == Phase::Open, opens);
            if opens {
                break;
            }
        }
    }

    #[test]
    fn records_are_read_back_and_any_bytes_are_safe(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..260),
        start in 0usize..4,
        size in prop_oneof![0u32..2, 60u32..70, 1_020u32..1_030],
        now: u64,
        epoch: u32,
    ) {
        // The beginnings and lengths of records that pass for ones.
        if let (1.., Some(first)) = (start, bytes.first_chunk_mut()) {
            *first = [codec::VERSION, bytes_phase(now), (start - 1) as u8, 0];
            bytes.resize(
                if start == 3 {
                    68 + size.div_ceil(64) as usize * 16
                } else {
                    192
                },
                0xa5,
            );
            if start == 3 {
                bytes[56..60].copy_from_slice(&size.to_le_bytes());
            }
        }
        let mut state = BreakerState::decode(&bytes);
        let window = if start == 3 {
            config::WindowConfig::Count(size.clamp(1, 1_024))
        } else {
            config::WindowConfig::Time(Nanos(now))
        };
        let settings = BreakerSettings::new(config::CircuitBreaker { window, ..config() });
        state = state.bounded(&settings);
        state.roll(&settings, Moment(now), state.epoch, now);
        let _ = state.trip(
            &settings,
            Moment(now),
            epoch,
            TripReason::FailureRate,
            None,
            now,
        );
        let _ = state.acquire(&settings, Moment(now));
        let _ = state.end(
            &settings,
            Moment(now),
            epoch,
            CallResult {
                outcome: Outcome::Failure,
                duration: Nanos(now),
                retry_after: Some(Nanos(now)), begun: false },
            now,
        );
        let mut written = Vec::new();
        state.encode(&mut written);
        prop_assert_eq!(BreakerState::decode(&written), state);
    }

    #[test]
    fn it_is_never_stuck(steps in proptest::collection::vec((0u64..3, 0u64..8_000), 1..60)) {
        let mut bench = Bench::new(config());
        bench.trip();
        for (what, pause) in steps {
            bench.now = bench.now.plus(Nanos::from_millis(pause));
            if let Ok(epoch) = bench.acquire() {
                // Some calls never report: their VM is lost.
                match what {
                    0 => {}
                    1 => {
                        bench.end(epoch, Outcome::Failure, Nanos::ZERO);
                    }
                    _ => {
                        bench.end(epoch, Outcome::Ignore, Nanos::ZERO);
                    }
                }
            }
        }
        // Two maximal waits later it lets a call through, whatever happened.
        let admitted = (0..3).any(|_| {
            bench.now = bench.now.plus(Nanos::from_secs(61));
            bench.acquire().is_ok()
        });
        prop_assert!(admitted);
    }
}
