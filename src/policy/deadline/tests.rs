use super::*;
use crate::base::headers::HeaderMap;
use crate::base::percent::Percent;
use proptest::prelude::*;
use serde_json::Value;

/// gRPC's and Envoy's cases, as facts: `tests/vectors/14_grpc_status_timeout.json`.
fn vectors() -> Value {
    serde_json::from_str(include_str!(
        "../../../tests/vectors/14_grpc_status_timeout.json"
    ))
    .unwrap()
}

fn ms(n: u64) -> Nanos {
    Nanos::from_millis(n)
}

fn at_ms(n: u64) -> Moment {
    Moment::from_millis(n)
}

fn read(headers: &[(&str, &[u8])]) -> Option<Nanos> {
    Incoming::read(&HeaderMap::from_pairs(headers), Some("x-deadline"), false).left()
}

fn seen(time: Nanos, now: Moment) -> Sketch {
    let mut sketch = Sketch::default();
    (0..30).for_each(|_| sketch.add(now, time));
    sketch
}

#[test]
fn vectors_grpc_timeouts_are_read_as_envoy_reads_them() {
    for case in vectors()["grpc_timeout_decode_ms"].as_array().unwrap() {
        let (text, want) = (case[0].as_str().unwrap(), case[1].as_u64().unwrap());
        // The vector's 0 stands for "no deadline".
        let found = decode_to_millis(text.as_bytes());
        assert_eq!(found.unwrap_or(0), want, "{text}");
        assert_eq!(found.is_none(), want == 0, "{text}");
    }
}

/// Rounded up, as the vectors have it.
fn decode_to_millis(value: &[u8]) -> Option<u64> {
    grpc_timeout::decode(value).map(|time| time.0.div_ceil(1_000_000))
}

#[test]
fn vectors_grpc_timeouts_are_written_as_envoy_writes_them() {
    for case in vectors()["grpc_timeout_encode"].as_array().unwrap() {
        let millis = case[0].as_u64().unwrap_or(u64::MAX);
        assert_eq!(
            grpc_timeout::encode(millis),
            case[1].as_str().unwrap(),
            "{millis}"
        );
    }
}

#[test]
fn grpc_timeouts_that_break_the_protocol_are_none() {
    for bad in [
        &b"-1S"[..],
        b"+1S",
        b" 1S",
        b"1 S",
        b"1.5S",
        b"S",
        b"1s",
        b"123456789m",
        b"\xff1S",
        b"1\xff",
        b"1SS",
    ] {
        assert_eq!(grpc_timeout::decode(bad), None, "{bad:?}");
    }
    assert_eq!(grpc_timeout::decode(b"0m"), Some(Nanos::ZERO));
    assert_eq!(
        grpc_timeout::decode(b"99999999H"),
        Some(Nanos::MAX),
        "no overflow"
    );
}

#[test]
fn the_least_of_all_deadlines_counts_and_what_is_malformed_does_not() {
    type Case<'a> = (&'a [(&'a str, &'a [u8])], Option<u64>);
    let cases: &[Case<'_>] = &[
        (&[], None),
        (&[("grpc-timeout", b"1S")], Some(1_000)),
        (&[("Grpc-Timeout", b"1S")], Some(1_000)),
        (&[("x-envoy-expected-rq-timeout-ms", b"250")], Some(250)),
        (&[("x-deadline", b" 300 ")], Some(300)),
        (
            &[
                ("grpc-timeout", b"1S"),
                ("x-envoy-expected-rq-timeout-ms", b"250"),
                ("x-deadline", b"300"),
            ],
            Some(250),
        ),
        (
            &[
                ("grpc-timeout", b"100m"),
                ("x-envoy-expected-rq-timeout-ms", b"soon"),
                ("x-deadline", b"\xff"),
            ],
            Some(100),
        ),
        (
            &[
                ("x-deadline", b"500"),
                ("x-deadline", b"200"),
                ("x-deadline", b"400"),
            ],
            Some(200),
        ),
        (&[("x-deadline", b"0"), ("grpc-timeout", b"1S")], Some(0)),
        (&[("x-envoy-expected-rq-timeout-ms", b"0")], Some(0)),
        (&[("x-deadline", b"-5")], None),
        (&[("x-deadline", b"1e3")], None),
        (&[("x-deadline", b"18446744073709551616")], None),
        (&[("x-envoy-upstream-rq-timeout-ms", b"5")], None),
    ];
    for (headers, want) in cases {
        assert_eq!(read(headers), want.map(ms), "{headers:?}");
    }
    assert_eq!(
        read(&[("x-deadline", b"18446744073709551615")]),
        Some(Nanos::MAX)
    );
    let headers = HeaderMap::from_pairs(&[("x-envoy-upstream-rq-timeout-ms", "5")]);
    assert_eq!(
        Incoming::read(&headers, None, true).left(),
        Some(ms(5)),
        "where clients are trusted with it"
    );
    let headers = HeaderMap::from_pairs(&[("x-envoy-upstream-rq-timeout-ms", "0")]);
    assert_eq!(
        Incoming::read(&headers, None, true).left(),
        None,
        "Envoy's for ever"
    );
}

#[test]
fn what_is_left_is_passed_on_where_it_is_news() {
    let pass = |headers: &[(&str, &str)], left: Nanos, grpc: bool, own: Option<&str>| {
        let mut set = Vec::new();
        let incoming = Incoming::read(&HeaderMap::from_pairs(headers), own, false);
        incoming.pass_on(left, grpc, own, |name, value| {
            set.push((name.to_owned(), String::from_utf8(value.to_vec()).unwrap()))
        });
        set.into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
    };
    let (grpc, expected) = ("grpc-timeout", "x-envoy-expected-rq-timeout-ms");
    assert_eq!(
        pass(&[], ms(90), false, None),
        [""; 0],
        "Envoy writes its own header by itself"
    );
    assert_eq!(pass(&[], ms(90), true, None), ["grpc-timeout=90m"]);
    assert_eq!(pass(&[(grpc, "90m")], ms(90), true, None), [""; 0]);
    assert_eq!(pass(&[(grpc, "1S")], ms(1_000), true, None), [""; 0]);
    assert_eq!(
        pass(&[(grpc, "1S")], ms(90), false, None),
        ["grpc-timeout=90m"]
    );
    assert_eq!(
        pass(&[(expected, "soon")], ms(90), false, None),
        ["x-envoy-expected-rq-timeout-ms=90"]
    );
    assert_eq!(
        pass(&[], Nanos(1_999_999), false, Some("x-left")),
        ["x-left=1"]
    );
    assert_eq!(
        pass(&[("x-left", "7")], Nanos(1), false, Some("x-left")),
        ["x-left=1"],
        "0 would be for ever"
    );
    assert_eq!(
        pass(&[("x-left", "7")], ms(7), false, Some("x-left")),
        [""; 0]
    );
    assert_eq!(
        pass(&[(grpc, "7S")], ms(7), false, Some(grpc)),
        ["grpc-timeout=7m"],
        "named twice, written once"
    );
}

#[test]
fn a_dynamic_timeout_follows_what_the_upstream_takes_within_its_bounds() {
    let dynamic = |min, max| {
        RequestTimeout::Dynamic(DynamicTimeout {
            quantile: Percent(9_900),
            factor: Percent(200),
            min: ms(min),
            max: ms(max),
        })
    };
    let now = at_ms(1);
    assert_eq!(
        request_timeout(dynamic(50, 2_000), now, &mut Sketch::default()),
        ms(2_000),
        "while little is known"
    );
    let timeout = request_timeout(dynamic(50, 2_000), now, &mut seen(ms(100), now));
    assert!((ms(200)..=ms(226)).contains(&timeout), "{timeout:?}");
    assert_eq!(
        request_timeout(dynamic(50, 2_000), now, &mut seen(ms(1), now)),
        ms(50)
    );
    assert_eq!(
        request_timeout(dynamic(50, 2_000), now, &mut seen(ms(60_000), now)),
        ms(2_000)
    );
    assert_eq!(
        request_timeout(RequestTimeout::Fixed(ms(7)), now, &mut seen(ms(100), now)),
        ms(7)
    );
}

#[test]
fn a_timeout_that_cuts_off_grows_and_never_spirals_down() {
    for (quantile, factor_centi) in [(9_900, 200), (9_000, 150), (5_000, 110)] {
        let config = RequestTimeout::Dynamic(DynamicTimeout {
            quantile: Percent(quantile),
            factor: Percent(factor_centi),
            min: ms(1),
            max: ms(2_000),
        });
        // The upstream turns slower than the timeout: what is cut off counts for at least as long.
        let mut now = at_ms(1);
        let mut sketch = Sketch::default();
        (0..200).for_each(|_| sketch.add(now, ms(10)));
        let first = request_timeout(config, now, &mut sketch);
        let mut last = first;
        for n in 0..4_000u64 {
            now = now.plus(ms(10));
            let timeout = request_timeout(config, now, &mut sketch);
            assert!(
                timeout >= Nanos(last.0 / 8 * 7),
                "it shrank from {last:?} to {timeout:?}"
            );
            last = timeout;
            sketch.add_cut_off(now, timeout, n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        if quantile == 9_900 {
            assert_eq!(last, ms(2_000));
        } else {
            assert!(last >= first.times(2), "{first:?} {last:?}");
        }
    }
}

#[test]
fn hopeless_is_what_leaves_nothing_or_too_little() {
    let config = |reject_below| Timeout {
        reject_below,
        ..Timeout::default()
    };
    let now = at_ms(1);
    let mut nothing = Sketch::default();
    assert!(is_hopeless(&config(None), Nanos::ZERO, now, &mut nothing));
    assert!(!is_hopeless(&config(None), Nanos(1), now, &mut nothing));
    let time = config(Some(RejectBelow::Time(ms(20))));
    assert!(is_hopeless(&time, Nanos(19_999_999), now, &mut nothing));
    assert!(!is_hopeless(&time, ms(20), now, &mut nothing));
    let p50 = config(Some(RejectBelow::Quantile(Percent(5_000))));
    assert!(
        !is_hopeless(&p50, Nanos(1), now, &mut nothing),
        "nothing is known"
    );
    assert!(is_hopeless(&p50, ms(50), now, &mut seen(ms(100), now)));
    assert!(!is_hopeless(&p50, ms(101), now, &mut seen(ms(100), now)));
    let later = now.plus(Nanos::from_secs(6));
    assert!(
        !is_hopeless(&p50, ms(50), later, &mut seen(ms(100), now)),
        "a request has to find out whether it still holds"
    );
}

#[test]
fn a_try_is_bounded_only_below_the_whole() {
    let config = Timeout {
        per_try: Some(ms(100)),
        ..Timeout::default()
    };
    assert_eq!(per_try(&config, None), Some(ms(100)));
    assert_eq!(per_try(&config, Some(ms(101))), Some(ms(100)));
    assert_eq!(per_try(&config, Some(ms(100))), None);
    assert_eq!(per_try(&Timeout::default(), None), None);
}

proptest! {
    #[test]
    fn grpc_timeouts_shrink_by_less_than_their_unit(millis in any::<u64>()) {
        let text = grpc_timeout::encode(millis);
        prop_assert!(text.len() <= 9);
        let back = grpc_timeout::decode(text.as_bytes()).unwrap();
        prop_assert!(back <= ms(millis));
        if millis <= 99_999_999 {
            prop_assert_eq!(back, ms(millis));
        }
    }

    #[test]
    fn a_deadline_only_shrinks_on_its_way(
        values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..6),
        numbers in proptest::collection::vec(0u64..100_000, 0..3),
        own in proptest::option::of(any::<u64>()),
        waited in any::<u64>(),
        grpc: bool,
    ) {
        let names = [
            "grpc-timeout",
            "x-envoy-expected-rq-timeout-ms",
            "x-deadline",
        ];
        let mut headers: Vec<(&str, Vec<u8>)> = values
            .into_iter()
            .enumerate()
            .map(|(i, v)| (names[i % 3], v))
            .collect();
        headers.extend(numbers.iter().enumerate().map(|(i, n)| {
            (
                names[i],
                if i == 0 {
                    format!("{n}m")
                } else {
                    n.to_string()
                }
                .into_bytes(),
            )
        }));
        let incoming = Incoming::read(&HeaderMap::from_pairs(&headers), Some("x-deadline"), false);
        let whole = least(own.map(Nanos), incoming.left());
        if let (Some(own), Some(whole)) = (own, whole) {
            prop_assert!(
                whole <= Nanos(own),
                "a client never lengthens what the route allows"
            );
        }
        let Some(left) = whole
            .map(|whole| whole.minus(Nanos(waited)))
            .filter(|left| *left >= ms(1))
        else {
            return Ok(());
        };
        let mut passed = Vec::new();
        incoming.pass_on(left, grpc, Some("x-deadline"), |name, value| {
            passed.push((name.to_owned(), value.to_vec()))
        });
        let mut after: Vec<(String, Vec<u8>)> = headers
            .iter()
            .filter(|(n, _)| passed.iter().all(|(p, _)| p != n))
            .map(|(n, v)| ((*n).to_owned(), v.clone()))
            .collect();
        after.extend(passed);
        let there =
            Incoming::read(&HeaderMap::from_pairs(&after), Some("x-deadline"), false).left();
        prop_assert!(
            there.is_some_and(|there| there <= left),
            "{there:?} {left:?}"
        );
    }
}
