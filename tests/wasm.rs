//! What differs inside wasm: 32-bit sizes, and arithmetic and hashing that must agree with every
//! other build. Run under node.
#![cfg(target_arch = "wasm32")]

use haven::base::hash::{self, KeyHasher, Seed};
use haven::base::headers::{HeaderMap, parse_number};
use haven::base::rng::Rng;
use haven::base::time::{Moment, Nanos};
use haven::document::{self, Quota};
use haven::policy::rate_limit::gcra::Gcra;
use haven::policy::rate_limit::take::Verdict;
use wasm_bindgen_test::wasm_bindgen_test;

#[wasm_bindgen_test]
fn sizes_are_32_bit_here() {
    assert_eq!(size_of::<usize>(), 4);
}

#[wasm_bindgen_test]
fn lengths_that_lie_about_4_gib_are_harmless() {
    for count in [1u32, 2, 0x1fff_ffff, 0x2000_0000, 0x7fff_ffff, u32::MAX] {
        for length in [0u32, 1, 0x7fff_ffff, 0xffff_fffe, u32::MAX] {
            let bytes: Vec<u8> = [count, length, length, 0]
                .iter()
                .flat_map(|n| n.to_le_bytes())
                .collect();
            let map = HeaderMap::from_host(bytes);
            assert!(map.iter().count() <= 1);
            assert!(map.iter().rev().count() <= 1);
            assert_eq!(map.get("x"), None);
        }
    }
}

#[wasm_bindgen_test]
fn hashes_are_those_of_every_other_build() {
    // The native tests hold the same numbers: shared records are found again whatever built the
    // filter.
    assert_eq!(
        hash::of_names(&["per-client", "users"]),
        5_780_167_904_523_750_881
    );
    let mut hasher = KeyHasher::new(Seed(1, 2));
    hasher.part(b"\xff\x00");
    assert_eq!(hash::place(hasher.finish(), 1), 0);
    assert_eq!(hash::place(u64::MAX, u32::MAX), u32::MAX - 1);
}

#[wasm_bindgen_test]
fn large_times_and_numbers_do_not_wrap() {
    let quota = Quota {
        limit: 1_000_000_000,
        period: Nanos::from_secs(1),
        burst: 1_000_000_000,
    };
    let bucket = Gcra::new(&quota);
    for now in [0, 1, u64::MAX / 64, u64::MAX] {
        for cost in [0, 1, 1_000_000_000, u64::MAX] {
            let (verdict, take) = bucket.take(u64::MAX / 2, Moment(now), cost);
            match verdict {
                // Debt that no bucket can have is forgotten; nothing else changes.
                Verdict::Refused { .. } => assert!(take.spent == 0 && take.after <= take.before),
                _ => assert_eq!(take.spent == 0, cost == 0),
            }
        }
    }
    assert_eq!(parse_number(b"18446744073709551615"), Some(u64::MAX));
    assert_eq!(Nanos::MAX.plus(Nanos(1)), Nanos::MAX);
}

#[wasm_bindgen_test]
fn choices_stay_in_range() {
    let rng = Rng::new(1);
    assert!((0..1_000).all(|_| rng.below(3) < 3));
    assert!((0..1_000).all(|_| rng.below(1 << 40) < 1 << 40));
}

#[wasm_bindgen_test]
fn configurations_are_read_and_refused() {
    assert!(document::parse(b"").is_ok());
    let good =
        br#"{"rate_limits": {"l": {"limit": 5}}, "routes": [{"name": "r", "rate_limits": ["l"]}]}"#;
    assert_eq!(document::parse(good).unwrap().rate_limits[0].quota.burst, 5);
    let bad = document::parse(
        br#"{"rate_limits": {"l": {"limit": 0, "period": "18446744073709551615h"}}}"#,
    )
    .unwrap_err()
    .to_string();
    assert!(
        bad.contains("rate_limits.l.limit: 0 is not allowed, want an integer from 1 to 1000000000"),
        "{bad}"
    );
    assert!(bad.contains("rate_limits.l.period"), "{bad}");
    // Deeper than any stack should be asked to go.
    assert!(document::parse("[".repeat(100_000).as_bytes()).is_err());
}
