//! Spellings that mean the same: one route, one bucket, one kept answer.

use super::*;

type Headers<'a> = &'a [(&'a str, &'a [u8])];

/// A limit of one request an hour for each key: which of these requests, in their order, pass.
fn passes(key: &Value, requests: &[(&str, Headers<'_>)]) -> Vec<bool> {
    let proxy = Proxy::new(&limited(&json!({"limit": 1, "period": "1h", "key": key})));
    let status = |(path, headers): &(&str, Headers<'_>)| proxy.status(path, headers) == 200;
    requests.iter().map(status).collect()
}

/// Of paths.
fn pass(key: &Value, paths: &[&str]) -> Vec<bool> {
    let requests: Vec<_> = paths.iter().map(|path| (*path, &[][..])).collect();
    passes(key, &requests)
}

#[test]
fn a_query_in_another_spelling_is_no_new_bucket() {
    let key = json!([{"query": "user"}]);
    let alice = [
        "/api?user=alice",
        "/api?user=%61lice",
        "/api?%75ser=alice",
        "/api?x&us%65r=alic%65&y",
    ];
    assert_eq!(pass(&key, &alice), [true, false, false, false]);
    assert_eq!(
        pass(
            &key,
            &["/api?user=a+b", "/api?user=a%20b", "/api?user=a%2Bb"]
        ),
        [true, false, true]
    );
    assert_eq!(
        pass(&json!([{"query": "a b"}]), &["/api?a+b=1", "/api?a%20b=1"]),
        [true, false]
    );
    // No encoding: as it stands.
    assert_eq!(
        pass(&key, &["/api?user=%zz", "/api?user=%zz", "/api?user=%"]),
        [true, false, true]
    );
}

#[test]
fn several_values_are_no_way_to_new_buckets() {
    let key = json!([{"query": "user"}]);
    let several = [
        "/api?user=1&user=alice",
        "/api?user=2&user=alice",
        "/api?user=alice&user=3",
    ];
    assert_eq!(pass(&key, &several), [true, false, false]);
    // The same one twice is one, and its own.
    assert_eq!(
        pass(
            &key,
            &["/api?user=a", "/api?user=a&user=%61", "/api?user=b&user=b"]
        ),
        [true, false, true]
    );
    let header = |values: &[&'static [u8]]| {
        values
            .iter()
            .map(|value| ("x-key", *value))
            .collect::<Vec<_>>()
    };
    // Lines of one name are one value, for the service too.
    let both = [
        header(&[b"1", b"me"]),
        header(&[b"1", b"me"]),
        header(&[b"me"]),
    ];
    let requests: Vec<_> = both
        .iter()
        .map(|headers| ("/api", headers.as_slice()))
        .collect();
    assert_eq!(
        passes(&json!([{"header": "x-key"}]), &requests),
        [true, false, true]
    );
}

#[test]
fn cookies_hosts_and_segments_have_one_spelling() {
    let cookie = |value: &'static [u8]| [("cookie", value)];
    let cookies = [
        cookie(b"sid=abc"),
        cookie(b"sid=\"abc\""),
        cookie(b"x=1; sid=\"abc\""),
    ];
    let requests: Vec<_> = cookies
        .iter()
        .map(|headers| ("/api", headers.as_slice()))
        .collect();
    assert_eq!(
        passes(&json!([{"cookie": "sid"}]), &requests),
        [true, false, false]
    );
    for part in [json!({"path_segment": 1}), json!("path")] {
        assert_eq!(
            pass(
                &json!([part]),
                &["/api/alice", "/api/%61lice", "/api/al%69ce?x", "/api/bob"]
            ),
            [true, false, false, true]
        );
    }
}

/// A request to this host.
fn to_host(proxy: &Proxy, host: &str) -> u16 {
    let stream = SimStream::request("GET", "/api", &[]);
    stream.set_header(Message::Request, ":authority", host.as_bytes());
    let mut exchange = proxy.begin(&stream);
    if stream.replied().is_none() {
        stream.answer(200, Some("10.0.0.9:80"), &[]);
        exchange.on_response(&proxy.worker, &stream);
    }
    exchange.on_end(&proxy.worker);
    stream.replied().map_or(200, |reply| reply.status)
}

#[test]
fn a_host_with_a_dot_behind_it_takes_the_same_route_and_bucket() {
    for key in [json!(["host"]), json!(["client_ip"])] {
        let proxy = Proxy::new(&json!({
            "rate_limits": {"l": {"limit": 1, "period": "1h", "key": key}},
            "routes": [{"name": "r", "match": {"hosts": ["example.com"]}, "rate_limits": ["l"]}]}));
        assert_eq!(to_host(&proxy, "example.com"), 200);
        for host in ["example.com.", "EXAMPLE.com.:8080", "example.com:80"] {
            assert_eq!(to_host(&proxy, host), 429, "{host}");
        }
        assert_eq!(to_host(&proxy, "example.org"), 200);
    }
}

#[test]
fn an_override_means_what_requests_mean() {
    for (part, value, path, headers) in [
        (
            json!({"query": "user"}),
            "alice",
            "/api?user=%61lice",
            &[][..],
        ),
        (
            json!({"cookie": "sid"}),
            "\"abc\"",
            "/api",
            &[("cookie", &b"sid=abc"[..])],
        ),
        (json!({"path_segment": 1}), "a%20b", "/api/a%20b", &[]),
    ] {
        let proxy = Proxy::new(&limited(&json!({"limit": 1, "period": "1h", "key": [part],
            "overrides": [{"key": [value], "limit": 3}]})));
        let passed = (0..5)
            .filter(|_| proxy.status(path, headers) == 200)
            .count();
        assert_eq!(passed, 3, "{path}");
    }
}

#[test]
fn a_key_of_the_header_host_is_the_host() {
    // A proxy shows it as `:authority`. Such a key had no value, and its limit held nobody.
    for key in [
        json!(["host"]),
        json!([{"header": "host"}]),
        json!([{"header": "Host"}]),
    ] {
        let proxy = Proxy::new(&limited(&json!({"limit": 1, "period": "1h", "key": key})));
        let passes = |host: &[u8]| {
            let stream = SimStream::request("GET", "/api", &[]);
            stream.set_header(Message::Request, ":authority", host);
            proxy.begin(&stream);
            stream.replied().is_none()
        };
        assert!(passes(b"a.example"), "{key}");
        assert!(!passes(b"A.example:8080"), "{key}");
        assert!(passes(b"b.example") && !passes(b"b.example."), "{key}");
    }
}

#[test]
fn a_condition_on_the_header_host_is_one_on_the_host() {
    let config = json!({
        "rate_limits": {"l": {"limit": 1, "period": "1h"}},
        "routes": [{"name": "a", "match": {"headers": {"Host": "a.example"}}, "rate_limits": ["l"]},
            {"name": "any", "match": {"headers": {"host": "*"}}}]});
    let proxy = Proxy::new(&config);
    let passes = |host: &[u8]| {
        let stream = SimStream::request("GET", "/api", &[]);
        stream.set_header(Message::Request, ":authority", host);
        proxy.begin(&stream);
        stream.replied().is_none()
    };
    assert!(passes(b"a.example") && !passes(b"a.example") && passes(b"b.example"));
}
