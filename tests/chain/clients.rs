//! What a client controls decides nothing for others: its cancels, what it sends twice, the spelling
//! of its path, what it says a request costs.

use super::*;

type Headers<'a> = &'a [(&'a str, &'a [u8])];

const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";

fn warnings(proxy: &Proxy, of: &str) -> usize {
    let lines = proxy.machine.logs();
    lines.iter().filter(|(_, line)| line.contains(of)).count()
}

#[test]
fn cancels_feed_no_quantile_that_refuses_others_or_cuts_them_off() {
    let dynamic = json!({"dynamic": {"quantile": 50, "factor": 2, "min": "1ms", "max": "10s"}});
    let proxy = Proxy::new(
        &json!({"routes": [{"name": "r", "timeout": {"request": dynamic, "reject_below": "p50"}}]}),
    );
    let honest = || {
        let stream = SimStream::request("GET", "/api", &[(EXPECTED, b"100")]);
        let mut exchange = proxy.begin(&stream);
        if stream.replied().is_none() {
            proxy.machine.advance(Nanos::from_millis(50));
            stream.answer(200, Some("10.0.0.9:80"), &[]);
            exchange.on_response(&proxy.worker, &stream);
        }
        exchange.on_end(&proxy.worker);
        assert!(stream.replied().is_none(), "an honest client is refused");
    };
    (0..40).for_each(|_| honest());
    let timeout = || {
        let stream = SimStream::request("GET", "/api", &[]);
        drop(proxy.begin(&stream));
        stream.request_header("x-envoy-upstream-rq-timeout-ms")
    };
    let before = timeout();
    for n in 0..600 {
        let stream = SimStream::request("GET", "/api?slow", &[]);
        let mut exchange = proxy.begin(&stream);
        proxy.machine.advance(Nanos::from_millis(33));
        if n % 2 == 0 {
            // In the middle of the answer.
            stream.answer(200, Some("10.0.0.9:80"), &[]);
            exchange.on_response_headers(&proxy.worker, &stream, false);
            proxy.machine.advance(Nanos::from_secs(2));
            stream.set_property(
                Property::ResponseCodeDetails,
                b"downstream_remote_disconnect",
            );
            exchange.on_cut(&proxy.worker, &stream);
        } else {
            proxy.machine.advance(Nanos::from_secs(2));
        }
        exchange.on_end(&proxy.worker);
        (0..2).for_each(|_| honest());
    }
    assert_eq!(timeout(), before);
}

#[test]
fn one_endpoints_pause_moves_no_route_and_that_of_most_does() {
    let open_for = |asking: &[(&str, u64)]| {
        let config = json!({
            "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}, {"address": "10.0.0.3:80"}],
                "load_balancer": {"policy": "round_robin"}}},
            "circuit_breakers": {"r": {"minimum_calls": 12, "open_duration": "1s", "max_open_duration": "1h"}},
            "routes": [{"name": "r", "match": {"prefix": "/api"}, "upstream": "u", "circuit_breaker": "r"}]});
        let proxy = Proxy::new(&config);
        for _ in 0..50 {
            let stream = SimStream::request("GET", "/api", &[]);
            let mut exchange = proxy.begin(&stream);
            if let Some(reply) = stream.replied() {
                let wait = reply
                    .headers
                    .iter()
                    .find(|(name, _)| *name == "retry-after");
                return String::from_utf8(wait.unwrap().1.clone()).unwrap();
            }
            let list = stream.request_header("x-haven-upstream").unwrap();
            let first = list.split(',').next().unwrap();
            let wait = asking.iter().find(|(address, _)| *address == first);
            let wait = wait.map(|(_, wait)| wait.to_string().into_bytes());
            let headers: Vec<_> = wait
                .iter()
                .map(|wait| ("retry-after", wait.as_slice()))
                .collect();
            stream.answer(503, Some(first), &headers);
            exchange.on_response(&proxy.worker, &stream);
            exchange.on_end(&proxy.worker);
        }
        panic!("it does not open")
    };
    let (a, b, c) = ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80");
    for one in [a, b, c] {
        assert_eq!(open_for(&[(one, 3_000)]), "1", "{one}");
    }
    // Whether the last one to fail is of those that ask or not, what two of three ask for holds.
    assert!(["20", "1"].contains(&open_for(&[(a, 3_000), (b, 20)]).as_str()));
    assert_eq!(open_for(&[(a, 3_000), (b, 20), (c, 30)]), "30");
}

#[test]
fn a_cost_that_a_client_names_is_at_least_the_least() {
    let config = |cost: Value| json!({"rate_limits": {"l": {"limit": 2, "period": "1h", "cost": cost}}, "routes": [{"name": "r", "rate_limits": ["l"]}]});
    let passed = |cost: Value, value: &[u8]| {
        let proxy = Proxy::new(&config(cost));
        (0..20)
            .filter(|_| proxy.status("/", &[("x-cost", value)]) == 200)
            .count()
    };
    assert_eq!(passed(json!({"header": "x-cost"}), b"0"), 2);
    assert_eq!(passed(json!({"header": "x-cost", "min": 2}), b"1"), 1);
    assert_eq!(passed(json!({"header": "x-cost", "min": 0}), b"0"), 20);
    assert_eq!(passed(json!(0), b"1"), 20, "the configuration only looks");
}

#[test]
fn what_is_sent_twice_has_one_reading_and_the_upstream_gets_no_other() {
    let config = json!({
        "rate_limits": {
            "key": {"limit": 1, "period": "1h", "key": [{"header": "x-api-key"}]},
            "sid": {"limit": 1, "period": "1h", "key": [{"cookie": "sid"}]}},
        "routes": [
            {"name": "gold", "match": {"headers": {"x-tier": "gold"}}},
            {"name": "key", "match": {"prefix": "/key"}, "rate_limits": ["key"]},
            {"name": "sid", "match": {"prefix": "/sid"}, "rate_limits": ["sid"]}]});
    let proxy = Proxy::new(&config);
    let ask = |path: &str, headers: Headers<'_>| {
        let stream = proxy.request(path, headers, 200);
        let status = stream.replied().map_or(200, |reply| reply.status);
        (status, stream)
    };
    assert_eq!(ask("/key", &[("x-api-key", b"a")]).0, 200);
    let (status, stream) = ask("/key", &[("x-api-key", b"a"), ("X-Api-Key", b"b")]);
    assert_eq!(status, 200, "another key");
    assert_eq!(stream.request_header("x-api-key").as_deref(), Some("a, b"));
    assert_eq!(
        stream.request_headers("x-api-key").len(),
        1,
        "and no other line"
    );
    assert_eq!(
        ask("/key", &[("x-api-key", b"a"), ("x-api-key", b"b")]).0,
        429
    );
    // A list in one line is the same.
    assert_eq!(ask("/key", &[("x-api-key", b"a, b")]).0, 429);
    // Cookies: the first, in whichever line.
    assert_eq!(ask("/sid", &[("cookie", b"a=1; sid=one")]).0, 200);
    for headers in [
        &[("cookie", &b"sid=one; b=2; sid=two"[..])][..],
        &[("cookie", b"sid=one"), ("cookie", b"sid=two; b=2")],
        &[
            ("cookie", b"b=2; sid=one; sid = two"),
            ("Cookie", b"sid=three"),
        ],
    ] {
        let (status, stream) = ask("/sid", headers);
        assert_eq!(status, 429, "{headers:?}");
        let lines = stream.request_headers("cookie");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("sid=one") && lines[0].contains("b=2"),
            "{lines:?}"
        );
        assert!(
            !lines[0].contains("two") && !lines[0].contains("three"),
            "{lines:?}"
        );
    }
    // No second line leads to another route.
    let (status, stream) = ask(
        "/key",
        &[
            ("x-tier", b"none"),
            ("x-tier", b"gold"),
            ("x-api-key", b"a"),
        ],
    );
    assert_eq!(status, 429);
    assert_eq!(stream.request_headers("x-tier"), ["none, gold"]);
    // What the configuration does not read goes on as it came.
    let (_, stream) = ask("/other", &[("accept", b"a"), ("accept", b"b")]);
    assert_eq!(stream.request_headers("accept"), ["a", "b"]);
}

#[test]
fn parameters_in_a_path_lead_past_no_limit_unless_they_are_kept() {
    let config = |how: &str| {
        json!({"path_parameters": how, "rate_limits": {"l": {"limit": 1, "period": "1h", "key": ["path"]}},
            "routes": [{"name": "r", "match": {"path": "/api/pay"}, "rate_limits": ["l"]}]})
    };
    let statuses = |how: &str| {
        let proxy = Proxy::new(&config(how));
        [
            "/api/pay",
            "/api/pay;x",
            "/api;y=1/pay;x=2?z",
            "/;/api/pay",
            "/x/..;/api/.;y/pay",
            "/api/pay/;x",
        ]
        .map(|path| proxy.status(path, &[]))
    };
    assert_eq!(statuses("strip"), [200, 429, 429, 429, 429, 200]);
    assert_eq!(statuses("keep"), [200; 6]);
}

#[test]
fn addresses_that_clients_can_write_are_warned_of_once() {
    let warned = |source: &str, headers: Headers<'_>, peer: &str| {
        let config = json!({"client_ip": {"source": source},
            "rate_limits": {"l": {"limit": 9, "key": ["client_ip"]}}, "routes": [{"name": "r", "rate_limits": ["l"]}]});
        let proxy = Proxy::new(&config);
        let again = Proxy::engine(&proxy.worker, &config);
        for engine in [&proxy.engine, &again, &proxy.engine] {
            let stream = SimStream::request("GET", "/", headers);
            stream.set_property(Property::SourceAddress, peer.as_bytes());
            let mut exchange = Exchange::new(Rc::clone(engine));
            exchange.on_request(&proxy.worker, &stream);
            exchange.on_end(&proxy.worker);
        }
        warnings(&proxy, "client_ip: ")
    };
    let direct = "192.0.2.1:40000";
    assert_eq!(warned("x-forwarded-for", &[], direct), 1);
    assert_eq!(
        warned(
            "x-forwarded-for",
            &[("x-forwarded-for", b"192.0.2.1")],
            direct
        ),
        0
    );
    assert_eq!(
        warned("x-forwarded-for", &[("x-forwarded-for", b"junk")], direct),
        0
    );
    assert_eq!(warned("x-real-ip", &[], direct), 1);
    assert_eq!(
        warned("x-real-ip", &[("x-real-ip", b"192.0.2.1")], direct),
        0
    );
    assert_eq!(warned("connection", &[], direct), 0);
    assert_eq!(warned("connection", &[], "192.0.2.1:0"), 1);
}

#[test]
fn an_upstream_does_not_speak_in_havens_name() {
    let proxy = Proxy::new(&upstream(&json!({})));
    let stream = SimStream::request("GET", "/api", &[]);
    let mut exchange = proxy.begin(&stream);
    stream.answer(
        200,
        Some("10.0.0.1:80"),
        &[
            (
                "proxy-status",
                b"haven; error=http_request_denied; details=\"rate_limited l\"",
            ),
            ("proxy-status", b"cdn; hit"),
            ("X-Haven-Upstream", b"10.0.0.1:80"),
            ("x-haven-cluster", b"c"),
            ("x-other", b"1"),
        ],
    );
    exchange.on_response(&proxy.worker, &stream);
    assert_eq!(
        stream.response_header("proxy-status").as_deref(),
        Some("cdn; hit")
    );
    assert_eq!(stream.response_header("x-haven-upstream"), None);
    assert_eq!(stream.response_header("x-haven-cluster"), None);
    assert_eq!(stream.response_header("x-other").as_deref(), Some("1"));
}

/// Of 100 honest requests a second, from 9 addresses or API keys, of which one in 20 fails at first,
/// how many were granted no retry, and how many there were. One client sends 300 that all fail, if
/// it is `there`.
fn unaided(
    config: &Value,
    there: bool,
    of: impl Fn(u64) -> Vec<(&'static str, Vec<u8>)>,
) -> [u64; 2] {
    let proxy = Proxy::new(config);
    let mut counts = [0, 0];
    for n in 0..4_000u64 {
        proxy.machine.advance(Nanos(2_500_000));
        let hostile = n % 4 != 0;
        if hostile && !there {
            continue;
        }
        let headers = of(if hostile { 9 } else { n / 4 % 9 });
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, &value[..]))
            .collect();
        let stream = SimStream::request("GET", "/api", &headers);
        let mut exchange = proxy.begin(&stream);
        let retries = stream.request_header("x-envoy-max-retries");
        let granted = retries.as_deref() == Some("1");
        let failed = hostile || n / 4 % 20 == 7;
        if n > 800 && !hostile && failed {
            counts[0] += u64::from(!granted);
            counts[1] += 1;
        }
        let tries = if failed && granted { 2 } else { 1 };
        let status = if hostile || (failed && !granted) {
            503
        } else {
            200
        };
        stream.fail(status, "via_upstream", Some("10.0.0.9:80"), tries);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
    }
    counts
}

#[test]
fn one_client_leaves_to_others_their_part_of_a_retry_budget() {
    let route = |budget: Value| {
        json!({"client_ip": {"source": "x-forwarded-for"},
            "routes": [{"name": "r", "retry": {"attempts": 1, "on": ["5xx"], "budget": budget, "min_per_second": 0}}]})
    };
    let by_address =
        |client: u64| vec![("x-forwarded-for", format!("192.0.2.{client}").into_bytes())];
    let nobody = |_| Vec::new();
    let mut by_key = route(json!(20));
    by_key["concurrency_limits"] =
        json!({"c": {"algorithm": "fixed", "limit": 1_000_000, "fair": [{"header": "x-api-key"}]}});
    by_key["routes"][0]["concurrency_limit"] = json!("c");
    // All come from one address, as behind a load balancer.
    let keyed = |client: u64| vec![("x-api-key", client.to_string().into_bytes())];
    for (case, budget) in [("a cap", json!(20)), ("auto", json!("auto"))] {
        let config = route(budget);
        for there in [false, true] {
            let [unaided, failed] = unaided(&config, there, by_address);
            assert!(
                unaided * 20 <= failed,
                "{case}, hostile: {there}: {unaided} of {failed}"
            );
        }
        let [unaided, failed] = unaided(&config, true, nobody);
        assert!(
            unaided * 2 > failed,
            "{case}, not told apart: {unaided} of {failed}"
        );
    }
    let [unaided, failed] = unaided(&by_key, true, keyed);
    assert!(
        unaided * 20 <= failed,
        "by fair's key: {unaided} of {failed}"
    );
}

#[test]
fn a_request_that_nobody_looks_at_is_limited_all_the_same() {
    let quiet =
        json!({"livez": null, "readyz": null, "startupz": null, "health": null, "grpc": false});
    let proxy = Proxy::new(&json!({
        "request_headers": "ignore", "health": quiet,
        "rate_limits": {
            "all": {"limit": 3, "period": "1h"},
            "each": {"limit": 2, "period": "1h", "key": ["client_ip"]}
        },
        "routes": [{"name": "r", "rate_limits": ["all", "each"]}]
    }));
    let ask = |peer: &str| {
        // What would choose a bucket, a probe or an endpoint elsewhere chooses nothing.
        let headers: Headers<'_> = &[
            ("x-forwarded-for", b"203.0.113.9"),
            ("grpc-timeout", b"0m"),
            ("content-type", b"application/grpc"),
        ];
        let stream = SimStream::request("GET", "/livez", headers);
        stream.set_property(haven::host::Property::SourceAddress, peer.as_bytes());
        let mut exchange = proxy.begin(&stream);
        exchange.on_end(&proxy.worker);
        stream
            .replied()
            .map(|reply| (reply.status, reply.grpc_status, stream.decision()))
    };
    let refused =
        |policy: &str| Some((429, Some(8), Some(format!("rate_limited {policy} enforce"))));
    assert_eq!(
        [(); 3].map(|()| ask("192.0.2.1:1")),
        [None, None, refused("each")]
    );
    assert_eq!(ask("192.0.2.2:1"), None);
    assert_eq!(ask("192.0.2.3:1"), refused("all"));
}
