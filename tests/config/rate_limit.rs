//! Rate limits.

use haven::base::time::Nanos;
use haven::document::{
    Algorithm, Cidr, Cost, KeyPart, MissingKey, OnContention, Quota, QuotaHeaders,
};

use crate::support::{FULL, good, refuses};

#[test]
fn the_full_document_is_read_as_it_is_meant() {
    let config = good(FULL);
    let [client, usual] = &config.rate_limits[..] else {
        panic!()
    };
    assert_eq!(
        client.quota,
        Quota {
            limit: 100,
            period: Nanos::from_millis(1500),
            burst: 50
        }
    );
    assert_eq!(
        client.key,
        [
            KeyPart::ClientIp,
            KeyPart::Host,
            KeyPart::Header("x-tenant".into()),
            KeyPart::Cookie("Sid".into()),
            KeyPart::Query("Q".into()),
            KeyPart::PathSegment(0),
        ]
    );
    assert_eq!(
        client.cost,
        Cost::Header {
            name: "x-cost".into(),
            default: 2,
            min: 1,
            max: 10
        }
    );
    assert_eq!(client.overrides.len(), 1);
    assert_eq!(
        client.overrides[0].1,
        Quota {
            limit: 5,
            period: Nanos::from_millis(1500),
            burst: 5
        }
    );
    assert_eq!(
        client.exempt,
        [
            Cidr {
                address: 0xffff_0a00_0000,
                prefix: 104
            },
            Cidr {
                address: 0x2001_0db8 << 96,
                prefix: 32
            },
            Cidr {
                address: 1,
                prefix: 128
            },
        ]
    );
    assert_eq!(
        (client.missing_key, client.max_keys, client.headers),
        (MissingKey::Share, 10, QuotaHeaders::Both)
    );
    assert_eq!(client.on_contention, OnContention::Deny);
    assert_eq!(
        usual.quota,
        Quota {
            limit: 7,
            period: Nanos::from_secs(1),
            burst: 7
        }
    );
    assert_eq!(
        (&usual.key, &usual.cost, usual.max_keys),
        (&vec![], &Cost::Fixed(1), 65_536)
    );
    assert_eq!(
        (usual.headers, usual.on_contention, usual.missing_key),
        (QuotaHeaders::Ietf, OnContention::Allow, MissingKey::Skip)
    );
}

#[test]
fn rate_limits_are_checked() {
    refuses(
        r#"{"rate_limits": {"a": @}}"#,
        &[
            (
                r#"{"limit": 1, "burst": 367, "period": "1d"}"#,
                "rate_limits.a.burst: 367 is not allowed, want at most 366, or the bucket would \
                 take more than 366d to fill",
            ),
            (
                r#"{"limit": 1, "period": "1000us", "cost": 2}"#,
                "rate_limits.a.cost: 2 is not allowed, want at most the burst of 1, or no \
                 request would ever pass",
            ),
            (
                r#"{"limit": 1, "algorithm": "sliding_window", "burst": 5}"#,
                "rate_limits.a.burst: 5 is not allowed, want none: only token_bucket and \
                 leaky_bucket have a burst",
            ),
            (
                r#"{"limit": 1, "algorithm": "fixed_window", "key": ["path"], "overrides": [{"key": ["/"], "limit": 2, "burst": 2}]}"#,
                "rate_limits.a.overrides[0].burst: 2 is not allowed, want none: only \
                 token_bucket and leaky_bucket have a burst",
            ),
            (
                r#"{"limit": 1, "algorithm": "fixed_window", "cost": 2}"#,
                "rate_limits.a.cost: 2 is not allowed, want at most the limit of 1, or no \
                 request would ever pass",
            ),
            (
                r#"{"limit": 1, "algorithm": "leaky_bucket", "warm_up": "1m"}"#,
                "rate_limits.a.warm_up: \"1m\" is not allowed, want none: only token_bucket \
                 warms up",
            ),
            (
                r#"{"limit": 1, "max_wait": "0s"}"#,
                "rate_limits.a.max_wait: \"0ns\" is not allowed, want none: only leaky_bucket \
                 has requests wait",
            ),
            (
                r#"{"limit": 1, "algorithm": "leaky_bucket", "max_wait": "61m"}"#,
                "rate_limits.a.max_wait: \"61m\" is not allowed, want a duration from 0ns to 1h \
                 like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"limit": 1, "period": "999us"}"#,
                "rate_limits.a.period: \"999us\" is not allowed, want a duration from 1ms to \
                 366d like \"250ms\" or \"10s\"",
            ),
            (
                r#"{"limit": 1, "period": 5}"#,
                "rate_limits.a.period: 5 is not allowed, want a duration from 1ms to 366d like \
                 \"250ms\" or \"10s\"",
            ),
            (
                r#"{"limit": 1, "key": ["ip"]}"#,
                "rate_limits.a.key[0]: \"ip\" is not allowed, want one of \"client_ip\", \"method\", \"path\", \"host\", \"route\" or an \
             object with one of header, cookie, query, path_segment",
            ),
            (
                r#"{"limit": 1, "key": [{"header": "a", "cookie": "b"}]}"#,
                "rate_limits.a.key[0]: {\"header\":\"a\",\"cookie\":\"b\"} is not allowed, want an object with one of header, cookie, query, \
             path_segment",
            ),
            (
                r#"{"limit": 1, "key": [{"header": "a b"}]}"#,
                "rate_limits.a.key[0].header: \"a b\" is not allowed, want a header name",
            ),
            (
                r#"{"limit": 1, "key": [{"path_segment": 256}]}"#,
                "rate_limits.a.key[0].path_segment: 256 is not allowed, want an integer from 0 \
                 to 255",
            ),
            (
                r#"{"limit": 1, "cost": -1}"#,
                "rate_limits.a.cost: -1 is not allowed, want an integer from 0 to 1000000000 or \
                 an object",
            ),
            (
                r#"{"limit": 1, "cost": {}}"#,
                "rate_limits.a.cost.header: nothing is not allowed, want a header name (required)",
            ),
            (
                r#"{"limit": 1, "cost": {"header": "a", "default": 5, "max": 4}}"#,
                "rate_limits.a.cost.default: 5 is not allowed, want at most the max of 4",
            ),
            (
                r#"{"limit": 1, "overrides": [{"key": ["a"], "limit": 1}]}"#,
                "rate_limits.a.overrides[0].key: [\"a\"] is not allowed, want a list of 0 \
                 values, one for each part of the rate limit's key",
            ),
            (
                r#"{"limit": 1, "key": ["client_ip"], "overrides": [{"key": ["me"], "limit": 1}]}"#,
                "rate_limits.a.overrides[0].key[0]: \"me\" is not allowed, want an IP address",
            ),
            (
                r#"{"limit": 1, "key": ["path"], "overrides": [{"key": ["/"], "limit": 1, "burst": 2, "period": "366d"}]}"#,
                "rate_limits.a.overrides[0].burst: 2 is not allowed, want at most 1, or the \
                 bucket would take more than 366d to fill",
            ),
            (
                r#"{"limit": 1, "exempt": ["10.0.0.0/33"]}"#,
                "rate_limits.a.exempt[0]: \"10.0.0.0/33\" is not allowed, want a network like \
                 \"10.0.0.0/8\" or \"2001:db8::/32\"",
            ),
            (
                r#"{"limit": 1, "exempt": ["::/+1"]}"#,
                "rate_limits.a.exempt[0]: \"::/+1\" is not allowed, want a network like \
                 \"10.0.0.0/8\" or \"2001:db8::/32\"",
            ),
            (
                r#"{"limit": 1, "max_keys": 0}"#,
                "rate_limits.a.max_keys: 0 is not allowed, want an integer from 1 to 10000000",
            ),
            (
                r#"{"limit": 1, "headers": "all"}"#,
                "rate_limits.a.headers: \"all\" is not allowed, want one of \"ietf\", \"x\", \
                 \"both\", \"none\"",
            ),
        ],
    );
    good(
        r#"{"rate_limits": {"a": {"limit": 1, "burst": 366, "period": "1d", "cost": 0, "exempt": ["0.0.0.0/0", "::/0"]}}}"#,
    );
    good(
        r#"{"rate_limits": {"a": {"limit": 1000000000, "burst": 1000000000, "period": "366d", "algorithm": "token_bucket"}}}"#,
    );
}

#[test]
fn each_algorithm_has_its_own_parameters() {
    let of = |fields: &str| {
        let document = format!(r#"{{"rate_limits": {{"a": {{"limit": 7, {fields}}}}}}}"#);
        let limit = good(&document).rate_limits[0].clone();
        (limit.algorithm, limit.quota.burst)
    };
    let ms = Nanos::from_millis;
    assert_eq!(
        of(r#""burst": 9"#),
        (Algorithm::TokenBucket { warm_up: None }, 9)
    );
    assert_eq!(
        of(r#""warm_up": "1m""#),
        (
            Algorithm::TokenBucket {
                warm_up: Some(ms(60_000))
            },
            7
        )
    );
    assert_eq!(
        of(r#""algorithm": "leaky_bucket""#),
        (
            Algorithm::LeakyBucket {
                max_wait: ms(1_000)
            },
            7
        )
    );
    let leaky = of(r#""algorithm": "leaky_bucket", "max_wait": "0s", "burst": 2"#);
    assert_eq!(leaky, (Algorithm::LeakyBucket { max_wait: ms(0) }, 2));
    assert_eq!(
        of(r#""algorithm": "sliding_window""#),
        (Algorithm::SlidingWindow, 7)
    );
    assert_eq!(
        of(r#""algorithm": "fixed_window""#),
        (Algorithm::FixedWindow, 7)
    );
}
