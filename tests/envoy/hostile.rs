//! Requests and answers that no well-behaved peer sends, with a real Envoy: none of them may change
//! anything for others.

use std::sync::Arc;
use std::time::Duration;

use crate::bodies;
use crate::filter::{Scripted, Steady, assert_sound, counted, grpc_request, nothing_in_flight};
use crate::support::config::reference_text;
use crate::support::{
    Client, Cluster, Envoy, EnvoyConfig, Route, Upstream, checkout, haven_wasm, raw, run, wait_for,
};
use http_body_util::Full;
use hyper::Request;
use hyper::header::HeaderValue;
use serde_json::{Value, json};

/// A filter that looks at every part of a request that it can look at.
fn curious(upstream: &Upstream) -> Value {
    let wide =
        |key: Value| json!({"limit": 1_000_000, "period": "1h", "key": key, "max_keys": 100});
    let mut cost = wide(json!([{"header": "x-cost"}]));
    cost["cost"] = json!({"header": "x-cost"});
    let limits = json!({
        "ip": wide(json!(["client_ip"])),
        "text": wide(json!(["method", "path", "host", "route"])),
        "header": wide(json!([{"header": "x-odd"}])),
        "cookie": wide(json!([{"cookie": "sid"}])),
        "query": wide(json!([{"query": "q"}])),
        "segment": wide(json!([{"path_segment": 0}, {"path_segment": 1}])),
        "cost": cost,
    });
    let names: Vec<&String> = limits.as_object().unwrap().keys().collect();
    json!({
        "client_ip": {"source": "x-forwarded-for", "trusted_hops": 2},
        "upstreams": {"users": {"endpoints": crate::filter::endpoints(&[upstream.addr()]), "circuit_breaker": "calm"}},
        "circuit_breakers": {"calm": {"minimum_calls": 1_000_000}},
        "fallbacks": {"id": {"steps": [{"respond": {"content_type": "application/json", "body": "{\"id\":\"{{request_id}}\"}"}}]}},
        "rate_limits": limits,
        "routes": [
            {"name": "hosts", "match": {"hosts": ["*.odd.test"], "headers": {"x-odd": "*"}}, "rate_limits": names},
            {"name": "pattern", "match": {"pattern": "/p/{id}/q"}, "rate_limits": names},
            {"name": "methods", "match": {"methods": ["BREW"]}, "rate_limits": names},
            {"name": "fails", "match": {"prefix": "/fails"}, "rate_limits": names, "fallback": "id"},
            {"name": "all", "upstream": "users", "circuit_breaker": "calm", "rate_limits": names, "fallback": "id"},
        ],
    })
}

/// An Envoy with this filter, and a load of other clients that must not notice anything.
async fn with_others(config: EnvoyConfig) -> (Envoy, Steady) {
    let envoy = Envoy::start(config).await;
    let others = (0..8).map(|number| {
        if number % 2 == 0 {
            envoy.h1()
        } else {
            envoy.h2()
        }
    });
    let steady = Steady::start(
        others.collect::<Vec<_>>(),
        "/others",
        Duration::from_millis(5),
    );
    (envoy, steady)
}

/// Nobody has noticed anything, no worker has lost its filter, nothing is left in flight.
async fn assert_harmless(mut envoy: Envoy, steady: Steady, active_before: u64) {
    let tally = steady.stop().await;
    assert!(
        tally.total() > 20 && tally.total() == tally.count(200),
        "others were harmed: {tally:?}"
    );
    let fresh = Client::h1_fresh(envoy.addr());
    for _ in 0..16 {
        assert_eq!(
            fresh.get("/others").await.unwrap().status,
            200,
            "a worker has lost its filter"
        );
    }
    nothing_in_flight(&envoy).await;
    assert_eq!(
        envoy.stat("wasm.envoy.wasm.runtime.v8.active").await,
        active_before
    );
    assert_sound(&mut envoy).await;
}

async fn active(envoy: &Envoy) -> u64 {
    envoy.stat("wasm.envoy.wasm.runtime.v8.active").await
}

#[test]
fn no_odd_request_harms_another_client() {
    run(async {
        let upstream = Upstream::start("a").await;
        let config = EnvoyConfig::proxy([upstream.addr()]).haven(&curious(&upstream));
        let (envoy, steady) = with_others(config).await;
        let before = active(&envoy).await;
        wait_for("others are served", async || {
            upstream.counters().requests > 20
        })
        .await;

        let header = |name: &[u8], value: &[u8]| [name, b": ", value, b"\r\n"].concat();
        let entries = |entry: &[u8], count: usize| entry.repeat(count);
        let mut odd: Vec<(&str, Vec<u8>)> = vec![
            ("xff value", raw::get(b"/", b"x-odd: \xff\r\n")),
            ("all bytes", raw::get(b"/", &header(b"x-odd", &(0x80..=0xff).collect::<Vec<u8>>()))),
            ("broken UTF-8", raw::get(b"/", b"x-odd: \xc3\x28\xa0\xa1\xe2\x28\xa1\xf0\x90\x28\xbc\r\n")),
            ("empty value", raw::get(b"/", b"x-odd:\r\nx-cost:\r\ncookie:\r\nx-forwarded-for:\r\nx-request-id:\r\n")),
            ("60 KB value", raw::get(b"/", &header(b"x-odd", &b"a".repeat(60_000)))),
            ("60 KB of \\xff", raw::get(b"/", &header(b"x-odd", &b"\xff".repeat(60_000)))),
            ("60 KB cookie", raw::get(b"/", &header(b"cookie", &b"a=b;".repeat(15_000)))),
            ("60 KB request id", raw::get(b"/fails", &header(b"x-request-id", &b"\"".repeat(50_000)))),
            ("more than Envoy takes", raw::get(b"/", &header(b"x-odd", &b"a".repeat(64 << 10)))),
            ("90 headers of one name", raw::get(b"/", &b"x-odd: 1\r\n".repeat(90))),
            ("more headers than Envoy takes", raw::get(b"/", &b"x-odd: 1\r\n".repeat(200))),
            ("10,000 forwarders", raw::get(b"/", &header(b"x-forwarded-for", &entries(b"::1,", 10_000)))),
            ("10,000 empty forwarders", raw::get(b"/", &header(b"x-forwarded-for", &entries(b",", 10_000)))),
            ("90 lists of forwarders", raw::get(b"/", &header(b"x-forwarded-for", b"1.2.3.4, ,x").repeat(90))),
            ("a forwarder of \\xff", raw::get(b"/", b"x-forwarded-for: \xff\xfe, \xff\r\n")),
            ("a forwarder of colons", raw::get(b"/", &header(b"x-forwarded-for", &b":".repeat(20_000)))),
            ("a forwarder of brackets", raw::get(b"/", b"x-forwarded-for: [[[::1]]]:999999, [, ], []:1\r\n")),
            ("a forwarder of digits", raw::get(b"/", &header(b"x-forwarded-for", &b"9".repeat(20_000)))),
            ("forwarders with zones", raw::get(b"/", b"x-forwarded-for: fe80::1%eth0, ::ffff:1.2.3.4, ::ffff:1.2.3.4\r\n")),
            ("cost", raw::get(b"/", b"x-cost: -99999999999999999999999999999999\r\n")),
            ("costs", raw::get(b"/", b"x-cost: 99999999999999999999999999999999\r\nx-cost: \xff\r\n")),
            ("cookies", raw::get(b"/", b"cookie: ;;;=;sid;=sid;sid=\xff;sid==;\r\ncookie: sid=\"\r\n")),
            ("claims", raw::get(b"/", b"x-haven-upstream: \xff\r\nx-haven-cluster: \xff\r\nx-haven-upstream:\r\n")),
            ("pseudo-ish headers", raw::get(b"/", b":path: /x\r\n:path: /y\r\n:status: 200\r\n")),
            ("names with bars", raw::get(b"/", b"path: /x\r\nmethod: GET\r\nauthority: x\r\nscheme: x\r\nhost2: x\r\n")),
            ("two hosts", raw::get(b"/", b"host: second.test\r\n")),
            ("no part of the pattern", raw::get(b"/p//q", b"")),
            ("pattern", raw::get(b"/p/\xff/q", b"")),
            ("path of slashes", raw::get(&b"/".repeat(5_000), b"")),
            ("//", raw::get(b"//", b"")),
            ("//others", raw::get(b"//others", b"")),
            ("%00", raw::get(b"/%00", b"")),
            ("%ff", raw::get(b"/%ff%fe%2f%2e%2e", b"")),
            ("a percent", raw::get(b"/%", b"")),
            ("dots", raw::get(b"/../../../x/./..", b"")),
            ("a fragment", raw::get(b"/x#y?q=1", b"")),
            ("a space", raw::get(b"/x y", b"")),
            ("a raw NUL", raw::get(b"/\0", b"")),
            ("raw bytes", raw::get(b"/\xff\xfe", b"")),
            ("no path", b"GET  HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec()),
            ("a path without a slash", raw::get(b"x", b"")),
            ("question marks", raw::get(b"/????&&&&====?q&q=&=q", b"")),
            ("a long query", raw::get(&[b"/?q=".as_slice(), &b"x".repeat(50_000)].concat(), b"")),
            ("many parameters", raw::get(&[b"/?".as_slice(), &b"a&".repeat(20_000)].concat(), b"")),
            ("*", b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec()),
            ("GET *", raw::get(b"*", b"")),
            ("absolute form", raw::get(b"http://other.odd.test:99/p/1/q?x", b"x-odd: 1\r\n")),
            ("absolute form without a path", raw::get(b"http://other.odd.test", b"x-odd: 1\r\n")),
            ("absolute form of another scheme", raw::get(b"ftp://x/y", b"")),
            ("no host", b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n".to_vec()),
            ("HTTP/1.0 without a host", b"GET / HTTP/1.0\r\n\r\n".to_vec()),
            ("an empty host", b"GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n".to_vec()),
            ("an odd host", b"GET / HTTP/1.1\r\nhost: [::1]:x]:[.odd.test\r\nx-odd: 1\r\nconnection: close\r\n\r\n".to_vec()),
            ("a host of \\xff", b"GET / HTTP/1.1\r\nhost: \xff.odd.test\r\nx-odd: 1\r\nconnection: close\r\n\r\n".to_vec()),
            ("a host of dots", b"GET / HTTP/1.1\r\nhost: .odd.test\r\nx-odd: 1\r\nconnection: close\r\n\r\n".to_vec()),
            ("HTTP/9.9", b"GET / HTTP/9.9\r\nhost: x\r\n\r\n".to_vec()),
            ("HTTP/2 half-way", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec()),
            ("nonsense", b"\0\x01\x02 \xff nonsense\r\n\r\n".to_vec()),
            ("two lengths", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\nconnection: close\r\n\r\nabcd".to_vec()),
            ("bad chunks", b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\nzz\r\n".to_vec()),
            ("gRPC that is none", raw::get(b"/", b"content-type: application/grpc\xff\r\n")),
            ("gRPC by GET", raw::get(b"/fails", b"content-type: application/grpc;;;\r\n")),
            ("odd accepts", raw::get(b"/health", b"accept: ,;,;q=\xff,application/json;\r\naccept:\r\n")),
            ("readyz and more", raw::get(b"/readyz?\xff#x", b"")),
        ];
        for method in [
            "BREW", "TRACE", "CONNECT", "get", "G", "M-SEARCH", "PROPFIND", "QUERY", "PATCH",
        ] {
            let request =
                format!("{method} /p/1/q HTTP/1.1\r\nhost: x:80\r\nconnection: close\r\n\r\n");
            odd.push((method, request.into_bytes()));
        }
        // Four times each, so that not always the same worker gets it; at once, for Envoy takes a
        // second to hang up after an error.
        let (addr, places) = (envoy.addr(), Arc::new(tokio::sync::Semaphore::new(24)));
        let mut exchanges = tokio::task::JoinSet::new();
        for (what, bytes) in odd.iter().cycle().take(4 * odd.len()) {
            let (what, bytes, places) = (what.to_string(), bytes.clone(), places.clone());
            exchanges.spawn(async move {
                let _place = places.acquire().await;
                (what, raw::exchange(addr, &bytes).await)
            });
        }
        for (what, reply) in exchanges.join_all().await {
            // What is not HTTP at all gets no answer, or one that is none.
            if ["nonsense", "HTTP/2 half-way"].contains(&what.as_str()) {
                continue;
            }
            let reply = reply.unwrap_or_else(|error| panic!("{what}: {error}"));
            let sane = (200..=505).contains(&reply.status) && reply.status != 503;
            assert!(sane, "{what}: {} {:.400}", reply.status, reply.text());
        }
        assert_harmless(envoy, steady, before).await;
    });
}

#[test]
fn no_odd_request_of_http2_harms_another_client() {
    run(async {
        let upstream = Upstream::start("a").await;
        let config = EnvoyConfig::proxy([upstream.addr()]).haven(&curious(&upstream));
        let (envoy, steady) = with_others(config).await;
        let before = active(&envoy).await;
        let client = envoy.h2();
        let names = [
            "x-odd",
            "x-cost",
            "cookie",
            "x-forwarded-for",
            "x-haven-upstream",
            "x-request-id",
            "accept",
            "content-type",
        ];
        let long = [b'\xff'; 15_000];
        let values: [&[u8]; 7] = [
            b"\xff",
            b"",
            b"\xff\xff, \xfe",
            b"\xc3\x28",
            b"[::1",
            b",,,,",
            &long,
        ];
        for name in names {
            for value in values {
                for path in ["/", "/fails", "/%00?q=%ff", "//p//q", "/p/1/q", "/readyz"] {
                    let request = Request::builder()
                        .uri(format!("http://{}{path}", envoy.addr()))
                        .header(name, HeaderValue::from_bytes(value).unwrap())
                        .header(name, HeaderValue::from_bytes(value).unwrap())
                        .body(Full::default());
                    let reply = client.send(request.unwrap()).await.unwrap();
                    let short: String = String::from_utf8_lossy(value).chars().take(20).collect();
                    assert!(
                        reply.status == 200 || reply.status == 431,
                        "{name}: {short:?} at {path}: {reply:?}"
                    );
                }
            }
        }
        assert_harmless(envoy, steady, before).await;
    });
}

#[test]
fn a_key_of_any_bytes_is_a_key() {
    run(async {
        let filter = json!({
            "rate_limits": {"few": {"limit": 2, "period": "1h", "key": [{"header": "x-odd"}]}},
            "routes": [{"name": "all", "rate_limits": ["few"]}],
        });
        let envoy = Envoy::start(EnvoyConfig::direct().haven(&filter)).await;
        let long = b"\xff".repeat(50_000);
        let other = [&long[..49_999], b"\xfe"].concat();
        for value in [
            b"\xff".as_slice(),
            b"\xff\xff",
            b"\xfe",
            b"",
            b"\xef\xbf\xbd",
            &long,
            &other,
        ] {
            let request = raw::get(b"/", &[b"x-odd: ", value, b"\r\n"].concat());
            let mut statuses = Vec::new();
            for _ in 0..4 {
                statuses.push(raw::exchange(envoy.addr(), &request).await.unwrap().status);
            }
            assert_eq!(
                statuses,
                [200, 200, 429, 429],
                "{:.20}",
                String::from_utf8_lossy(value)
            );
        }
    });
}

#[test]
fn an_absurd_list_of_forwarders_gives_nobody_a_bucket_of_ones_own() {
    run(async {
        // The peer's entry is Envoy's; the one before it is the client's claim, trusted here if it
        // is an address.
        let filter = json!({
            "client_ip": {"source": "x-forwarded-for", "trusted_hops": 2},
            "rate_limits": {"few": {"limit": 1, "period": "1h", "key": ["client_ip"]}},
            "routes": [{"name": "all", "rate_limits": ["few"]}],
        });
        let envoy = Envoy::start(EnvoyConfig::direct().haven(&filter)).await;
        let ask = async |value: &[u8]| {
            let request = raw::get(b"/", &[b"x-forwarded-for: ", value, b"\r\n"].concat());
            raw::exchange(envoy.addr(), &request).await.unwrap().status
        };
        assert_eq!(ask(b"nonsense").await, 200);
        let (commas, colons, digits) = (
            b",".repeat(10_000),
            b":".repeat(20_000),
            b"1".repeat(20_000),
        );
        let hops = b"x,".repeat(10_000);
        let odd: [&[u8]; 11] = [
            b"\xff",
            b"",
            &commas,
            &colons,
            &digits,
            &hops,
            b"[::1",
            b"1.2.3",
            b"1.2.3.4.5",
            b"::1::",
            b"1.2.3.4 5.6.7.8",
        ];
        for value in odd {
            assert_eq!(
                ask(value).await,
                429,
                "{:.30}",
                String::from_utf8_lossy(value)
            );
        }
        let many = [b"::1,".repeat(10_000), b"192.0.2.1".to_vec()].concat();
        assert_eq!(
            (ask(&many).await, ask(b"192.0.2.1").await),
            (200, 429),
            "of 10,000 the last counts"
        );
    });
}

/// An answer of the hostile upstream, by the number in the path.
fn odd_answer(number: usize) -> Option<Vec<u8>> {
    let ok = |fields: &[u8]| {
        [
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n",
            fields,
            b"\r\nok",
        ]
        .concat()
    };
    let bad = |fields: &[u8]| {
        [
            b"HTTP/1.1 503 Bad\r\ncontent-length: 3\r\n",
            fields,
            b"\r\nbad",
        ]
        .concat()
    };
    let status =
        |line: &str| format!("HTTP/1.1 {line}\r\ncontent-length: 2\r\n\r\nok").into_bytes();
    let long = b"\xff".repeat(50_000);
    let longer = b"a".repeat(100_000);
    let answers: Vec<Vec<u8>> = vec![
        status("599 Odd"),
        status("600 Odd"),
        status("999 Odd"),
        status("000 Odd"),
        status("99 Odd"),
        status("2147483648 Odd"),
        status("-1 Odd"),
        status("abc Odd"),
        status("299"),
        [b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), ok(b"")].concat(),
        [b"HTTP/1.1 103 Early Hints\r\nlink: \xff\r\n\r\n".to_vec(), bad(b"")].concat(),
        [b"HTTP/1.1 100 Continue\r\n\r\n".repeat(20), bad(b"")].concat(),
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n".to_vec(),
        b"HTTP/1.1 204 No Content\r\n\r\nbody".to_vec(),
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\n\r\n".to_vec(),
        ok(b"x-odd: \xff\r\n"),
        bad(b"x-odd: \xff\xfe\r\ncontent-type: \xff\r\n"),
        ok(&[b"x-odd: ", long.as_slice(), b"\r\n"].concat()),
        bad(&[b"x-odd: ", long.as_slice(), b"\r\n"].concat()),
        bad(&[b"x-odd: ", longer.as_slice(), b"\r\n"].concat()),
        bad(&b"x-odd: 1\r\n".repeat(500)),
        bad(b"retry-after: \xff\r\nretry-after: -1\r\n"),
        bad(b"retry-after: 99999999999999999999999999999\r\n"),
        bad(b"retry-after: 18446744073709551615\r\ngrpc-retry-pushback-ms: 18446744073709551615\r\n"),
        bad(b"retry-after:\r\ngrpc-retry-pushback-ms: x\r\n"),
        ok(b"content-type: application/grpc\r\ngrpc-status: \xff\r\n"),
        ok(b"grpc-status: -1\r\ngrpc-message: \xff\r\n"),
        ok(b"grpc-status: 99999999999999999999\r\n"),
        ok(b":status: 500\r\n"),
        ok(b"content-length: 99\r\n"),
        ok(b"ratelimit: \xff\r\nproxy-status: \xff\r\n"),
        b"HTTP/1.1 503 Bad\r\ncontent-length: 100000\r\n\r\nshort".to_vec(),
        b"HTTP/1.1 503 Bad\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nbad".to_vec(),
        b"HTTP/1.1 503 Bad\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-trailer: \xff\r\n\r\n".to_vec(),
        b"HTTP/1.1 503\r\n\r\n".to_vec(),
        b"nonsense".to_vec(),
        b"\xff\xff\xff\xff\r\n\r\n".to_vec(),
        b"HTTP/2.0 200 OK\r\n\r\n".to_vec(),
        b"HTTP/1.0 200 OK\r\n\r\nno length".to_vec(),
        Vec::new(),
    ];
    answers.into_iter().nth(number)
}

#[test]
fn no_odd_answer_of_an_upstream_harms_anyone() {
    run(async {
        let good = Upstream::start("a").await;
        let odd = Scripted::start(|head| {
            let text = String::from_utf8_lossy(head);
            let number = text
                .split("/odd/")
                .nth(1)
                .and_then(|rest| rest.split(' ').next()?.parse().ok());
            odd_answer(number.unwrap_or(0)).unwrap_or_default()
        })
        .await;
        let calm =
            json!({"minimum_calls": 1_000_000, "open_duration": "1s", "max_open_duration": "1s"});
        let step = json!([{"respond": {"status": 200, "content_type": "application/json", "body": "{\"calm\":true}"}}]);
        let filter = json!({
            "upstreams": {"odd": {"endpoints": crate::filter::endpoints(&[odd.addr()]), "circuit_breaker": "calm"}},
            "circuit_breakers": {"calm": calm},
            "rate_limits": {"wide": {"limit": 1_000_000}},
            "fallbacks": {"calm": {"steps": step}},
            "routes": [
                {"name": "calm", "match": {"headers": {"x-calm": "*"}}, "upstream": "odd", "circuit_breaker": "calm",
                 "rate_limits": ["wide"], "fallback": "calm"},
                {"name": "bare", "match": {"prefix": "/odd"}, "upstream": "odd", "circuit_breaker": "calm", "rate_limits": ["wide"]},
                {"name": "others", "rate_limits": ["wide"]},
            ],
        });
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("odd", [odd.addr()]))
            .cluster(Cluster::new("good", [good.addr()]))
            .route(Route::to("/odd", "odd").timeout(Duration::from_secs(5)))
            .route(Route::to("/", "good"))
            .haven(&filter);
        let (envoy, steady) = with_others(config).await;
        let before = active(&envoy).await;
        let clients = [envoy.h1(), envoy.h2_told_of_cuts()];
        for number in 0.. {
            let Some(answer) = odd_answer(number) else {
                break;
            };
            let shown: String = String::from_utf8_lossy(&answer).chars().take(60).collect();
            let path = format!("/odd/{number}");
            for client in &clients {
                let bare = client.get(&path).await;
                let calm = client.get_with(&path, &[("x-calm", "1")]).await;
                // gRPC clients may meet such an upstream too.
                let _ = client
                    .get_with(
                        &path,
                        &[("x-calm", "1"), ("content-type", "application/grpc")],
                    )
                    .await;
                // What breaks off unannounced, the proxy answers itself: docs/fallbacks.md.
                let announced = shown.contains("content-length");
                if let Ok(calm) = &calm
                    && let Ok(bare) = &bare
                    && bare.status >= 500
                    && (bare.cut.is_none() || announced)
                    // One request may meet a connection that the upstream is about to close, and the
                    // other not: that one has nothing to be calm about.
                    && !(bare.text().contains("connection termination") && calm.text() == "ok")
                {
                    assert_eq!(
                        (calm.status, calm.text().as_str()),
                        (200, "{\"calm\":true}"),
                        "{shown:?}: {bare:?}"
                    );
                    assert_eq!(
                        (calm.header("x-odd"), calm.header("retry-after")),
                        (None, None),
                        "{shown:?}"
                    );
                }
                // What Envoy passes on as it is, a strict client may refuse to read: then it at
                // least got an answer at once.
                for reply in [bare, calm] {
                    if let Err(error) = reply {
                        assert!(!error.contains("no answer within"), "{shown:?}: {error}");
                        println!("{shown:?}: {error}");
                    }
                }
            }
        }
        assert_harmless(envoy, steady, before).await;
    });
}

#[test]
fn a_garbled_retry_after_does_not_change_the_open_time() {
    run(async {
        let values: [&[u8]; 9] = [
            b"",
            b"\xff",
            b"-5",
            b"5.5",
            b"soon",
            b"5 s",
            b"0x5",
            b"+5",
            b"Wed, 21 Oct 2115 07:28:00 GMT",
        ];
        let odd = Scripted::start(move |head| {
            let text = String::from_utf8_lossy(head);
            let number: usize = text
                .split("/r")
                .nth(1)
                .and_then(|rest| rest.split(' ').next()?.parse().ok())
                .unwrap();
            [
                b"HTTP/1.1 503 Bad\r\ncontent-length: 0\r\nretry-after: ",
                values[number],
                b"\r\n\r\n",
            ]
            .concat()
        })
        .await;
        let breakers: Value = (0..values.len())
            .map(|number| {
                (
                    format!("r{number}"),
                    json!({"consecutive_failures": 1, "open_duration": "7s"}),
                )
            })
            .collect::<serde_json::Map<_, _>>()
            .into();
        let routes: Vec<Value> = (0..values.len())
            .map(|number| {
                let name = format!("r{number}");
                json!({"name": name, "match": {"prefix": format!("/{name}")}, "circuit_breaker": name})
            })
            .collect();
        let config = EnvoyConfig::proxy([odd.addr()])
            .haven(&json!({"circuit_breakers": breakers, "routes": routes}));
        let mut envoy = Envoy::start(config).await;
        for number in 0..values.len() {
            assert_eq!(
                envoy.h1().get(&format!("/r{number}")).await.unwrap().status,
                503
            );
        }
        let opened = envoy
            .logs()
            .lines()
            .filter(|line| line.contains("closed -> open for 7000 ms"))
            .count();
        assert_eq!(opened, values.len(), "{}", envoy.logs());
        assert_sound(&mut envoy).await;
    });
}

/// What a client may do with its deadline: nothing to others, and nothing that its request would
/// not have had.
#[test]
fn a_deadline_is_no_key_and_opens_nothing_for_others() {
    run(async {
        let upstream = Upstream::start("a").await;
        upstream.set(|faults| faults.hang = true).await;
        let backup = Upstream::start("backup").await;
        let filter = json!({
            "upstreams": {"users": {"cluster": "users", "endpoints": crate::filter::endpoints(&[upstream.addr()]), "circuit_breaker": "endpoints"}},
            "circuit_breakers": {
                "endpoints": {"consecutive_failures": 5, "open_duration": "50s"},
                "route": {"failure_rate_threshold": 90, "minimum_calls": 20, "open_duration": "50s"}},
            "rate_limits": {"few": {"limit": 30, "period": "1h"}},
            "fallbacks": {"f": {"steps": [{"cluster": "backup"}]}},
            "routes": [{"name": "all", "upstream": "users", "circuit_breaker": "route", "rate_limits": ["few"], "fallback": "f",
                "timeout": {"request": "10s", "deadline_header": "x-left"}}]});
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new("users", [upstream.addr()]))
            .cluster(Cluster::new("backup", [backup.addr()]))
            .route(Route::to_named_by("/", "x-haven-cluster"))
            .haven(&filter);
        let mut envoy = Envoy::start(config).await;
        let client = envoy.h2();
        for _ in 0..20 {
            let reply = client
                .get_with("/", &[("grpc-timeout", "20m")])
                .await
                .unwrap();
            assert_eq!(reply.status, 504, "{reply:?}");
        }
        upstream.set(|faults| faults.hang = false).await;
        assert_eq!(
            client.get("/").await.unwrap().status,
            200,
            "no breaker has opened"
        );
        for name in ["grpc-timeout", "x-left"] {
            let value = if name == "x-left" { "0" } else { "0m" };
            let mut statuses = Vec::new();
            for _ in 0..12 {
                statuses.push(client.get_with("/", &[(name, value)]).await.unwrap().status);
            }
            assert!(
                statuses.iter().all(|status| [504, 429].contains(status)),
                "{statuses:?}"
            );
        }
        assert_eq!(
            client.get("/").await.unwrap().status,
            429,
            "each has cost the limit"
        );
        assert_eq!(backup.counters().requests, 0);
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

/// Who is told apart by an identity that something in front of haven has changed gets no answer that
/// was kept for another.
#[test]
fn an_identity_that_a_filter_in_front_writes_keeps_answers_apart() {
    run(async {
        // As `jwt_authn` with `claim_to_headers`, which takes the token away.
        let who = json!({
            "name": "envoy.filters.http.header_mutation",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
                "mutations": {"request_mutations": [
                    {"append": {"header": {"key": "x-who", "value": "%REQ(authorization)%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}},
                    {"remove": "authorization"}]}},
        });
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "fallbacks": {
                "named": {"steps": [{"stale": {"vary": ["x-who"]}}, {"respond": {"status": 203}}]},
                "unnamed": {"steps": [{"stale": {}}, {"respond": {"status": 203}}]}},
            "routes": [
                {"name": "named", "match": {"prefix": "/named"}, "fallback": "named"},
                {"name": "unnamed", "fallback": "unnamed"}]});
        let config = EnvoyConfig::proxy([upstream.addr()])
            .filter_before(who)
            .haven(&filter);
        let mut envoy = Envoy::start(config).await;
        let client = envoy.h1();
        let ask = async |path: &str, name: &str, value: &str| {
            client
                .get_with(path, &[(name, value)])
                .await
                .unwrap()
                .status
        };
        for (path, name) in [("/named", "authorization"), ("/plain", "x-api-key")] {
            assert_eq!(ask(path, name, "a").await, 200);
        }
        upstream.set(|faults| faults.status = Some(500)).await;
        for (path, name) in [("/named", "authorization"), ("/plain", "x-api-key")] {
            assert_eq!(ask(path, name, "a").await, 200, "{path}");
            assert_eq!(ask(path, name, "b").await, 203, "{path}");
            assert_eq!(client.get(path).await.unwrap().status, 203, "{path}");
        }
        let warned = envoy.logs().matches("was kept for others").count();
        assert_eq!(warned, 1, "of one route, by one of the workers");
        assert_sound(&mut envoy).await;
    });
}

/// So many requests with a body that never ends, of which the upstream has the beginning.
async fn unfinished(envoy: &Envoy, count: u64, head: &str) -> Vec<tokio::net::TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(bodies::send(envoy.addr(), head).await);
    }
    wait_for("they are at the upstream", async || {
        envoy.stat("cluster.users.upstream_rq_active").await == count
    })
    .await;
    all
}

#[test]
fn unfinished_bodies_take_no_places_from_others() {
    run(async {
        for limit in [
            json!({"algorithm": "fixed", "limit": 20}),
            json!({"algorithm": "adaptive", "initial_limit": 20, "max_limit": 20}),
        ] {
            let upstream = Upstream::start("a").await;
            let filter = json!({
                "upstreams": {"users": {"endpoints": crate::filter::endpoints(&[upstream.addr()]), "concurrency_limit": "c"}},
                "concurrency_limits": {"c": limit},
                "routes": [{"name": "all", "upstream": "users"}],
            });
            let envoy = Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&filter)).await;
            let mut hostile = unfinished(&envoy, 99, bodies::POST).await;
            let client = envoy.h1();
            for _ in 0..50 {
                assert_eq!(client.get("/api/user").await.unwrap().status, 200);
                let mut post = bodies::send(envoy.addr(), &format!("{}b", bodies::POST)).await;
                assert_eq!(bodies::status(&mut post).await, "200");
            }
            // Those that end are answered as any.
            for one in hostile.iter_mut().take(5) {
                tokio::io::AsyncWriteExt::write_all(one, b"b")
                    .await
                    .unwrap();
                assert_eq!(bodies::status(one).await, "200");
            }
            drop(hostile);
            nothing_in_flight(&envoy).await;
        }
    });
}

#[test]
fn unfinished_bodies_keep_no_breaker_open() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "upstreams": {"users": {"endpoints": crate::filter::endpoints(&[upstream.addr()])}},
            "circuit_breakers": {"b": {"consecutive_failures": 2, "open_duration": "1s", "half_open_calls": 2, "half_open_max_wait": "1h"}},
            "routes": [{"name": "all", "upstream": "users", "circuit_breaker": "b"}],
        });
        let envoy = Envoy::start(EnvoyConfig::proxy([upstream.addr()]).haven(&filter)).await;
        let client = envoy.h1();
        upstream.set(|faults| faults.status = Some(500)).await;
        for _ in 0..2 {
            assert_eq!(client.get("/api/user").await.unwrap().status, 500);
        }
        assert_eq!(client.get("/api/user").await.unwrap().status, 503);
        upstream.heal().await;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let get = "GET /api/user HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na";
        let hostile = unfinished(&envoy, 10, get).await;
        for _ in 0..20 {
            assert_eq!(client.get("/api/user").await.unwrap().status, 200);
        }
        drop(hostile);
        nothing_in_flight(&envoy).await;
    });
}

/// With the reference configuration a route may switch haven off: the client still picks no
/// endpoint, and the upstream sees no word of haven's.
#[test]
fn a_route_that_bypasses_the_filter_lets_no_client_choose() {
    run(async {
        let mut upstreams = Vec::new();
        for name in ["a", "b", "c"] {
            upstreams.push(Upstream::start(name).await);
        }
        let addrs: Vec<_> = upstreams.iter().map(|it| it.addr()).collect();
        let text = std::fs::read_to_string(checkout("envoy.yaml")).unwrap();
        let place = "              - match: { path_separated_prefix: /api/users }\n";
        assert!(text.contains(place), "the first route of envoy.yaml");
        let bypass = [
            "              - match: { path_separated_prefix: /echo/bypass }\n",
            "                route: { cluster: users }\n",
            "                typed_per_filter_config:\n",
            "                  haven: { \"@type\": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true }\n",
            place,
        ];
        let text = text.replace(place, &bypass.concat());
        let config = EnvoyConfig::text(reference_text(&text, &addrs, &haven_wasm().unwrap()));
        let mut envoy = Envoy::start(config).await;
        let client = envoy.h1();
        let wanted = addrs[2].to_string();
        let claims: &[(&str, &str)] = &[
            ("x-haven-upstream", &wanted),
            ("x-haven-cluster", "users"),
            ("x-real-ip", "203.0.113.9"),
        ];
        for path in ["/echo/bypass", "/api/users"] {
            let before = upstreams[2].counters().requests;
            for _ in 0..20 {
                let reply = client.get_with(path, claims).await.unwrap();
                assert_eq!(reply.status, 200, "{path}");
                let seen = reply.json();
                let seen = seen["headers"].as_object().cloned().unwrap_or_default();
                assert_eq!(seen.is_empty(), path == "/api/users", "what echoes");
                for (name, _) in claims {
                    assert!(!seen.contains_key(*name), "{path}: {name} in {seen:?}");
                }
            }
            let there = upstreams[2].counters().requests - before;
            assert!(
                there < 20,
                "{path}: {there} of 20 went where the client said"
            );
        }
        assert_sound(&mut envoy).await;
    });
}

/// Clients are told apart by their API key, at a limit that never refuses.
fn by_api_key(route: &Value, rest: &Value) -> Value {
    let mut filter = rest.clone();
    filter["concurrency_limits"] = json!({"wide": {"algorithm": "fixed", "limit": 1_000_000, "fair": [{"header": "x-api-key"}]}});
    filter["routes"] = json!([route]);
    filter["routes"][0]["concurrency_limit"] = json!("wide");
    filter
}

/// One client has more requests wait than there are places: another's wait all the same.
#[test]
fn waiting_places_are_shared() {
    run(async {
        let filter = by_api_key(
            &json!({"name": "all", "rate_limits": ["pace"]}),
            &json!({"rate_limits": {"pace": {"algorithm": "leaky_bucket", "limit": 5, "period": "1s", "burst": 2_000,
                "max_wait": "10m", "key": [{"header": "x-api-key"}]}}}),
        );
        let mut envoy = Envoy::start(EnvoyConfig::direct().concurrency(1).haven(&filter)).await;
        let clients: Vec<_> = (0..12).map(|_| envoy.h2()).collect();
        let mut evil = tokio::task::JoinSet::new();
        for number in 0..1_200 {
            let client = clients[number % clients.len()].clone();
            evil.spawn(async move { client.get_with("/", &[("x-api-key", "evil")]).await });
        }
        let waits = async || envoy.stat("http.ingress.downstream_rq_active").await;
        wait_for("all places are taken", async || waits().await >= 950).await;
        wait_for("and more were asked for", async || {
            counted(&envoy, &[("reason", "rate_limited")]).await > 50
        })
        .await;
        let honest = envoy.h2();
        let mut others = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let client = honest.clone();
            others.spawn(async move { client.get_with("/", &[("x-api-key", "honest")]).await });
        }
        for reply in others.join_all().await {
            assert_eq!(reply.unwrap().status, 200, "an honest client has no place");
        }
        let refused = counted(&envoy, &[("reason", "rate_limited")]).await;
        assert!(
            refused < 400,
            "no more lost their places than were asked for: {refused}"
        );
        evil.shutdown().await;
        drop(clients);
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

/// All of one client's requests fail, at any rate that it manages: what fails of another's is tried
/// again all the same.
#[test]
fn retries_are_shared() {
    run(async {
        let known = Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
        let upstream = Scripted::start(move |head| {
            let path = head
                .split(|b| *b == b' ')
                .nth(1)
                .unwrap_or_default()
                .to_vec();
            let fails =
                path == b"/evil" || (path.ends_with(b"7") && known.lock().unwrap().insert(path));
            let status = if fails { "503 Unavailable" } else { "200 OK" };
            format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes()
        })
        .await;
        let filter = by_api_key(
            &json!({"name": "all", "retry": {"attempts": 1, "on": ["5xx"], "budget": 20, "min_per_second": 0}}),
            &json!({}),
        );
        let mut envoy = Envoy::start(
            EnvoyConfig::proxy([upstream.addr()])
                .concurrency(2)
                .haven(&filter),
        )
        .await;
        let mut evil = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let client = envoy.h2();
            evil.spawn(async move {
                loop {
                    let _ = client.get_with("/evil", &[("x-api-key", "evil")]).await;
                }
            });
        }
        wait_for("its retries are spent", async || {
            envoy.metrics().await.total("haven_retries_total", &[]) > 100.0
        })
        .await;
        let client = envoy.h1();
        let mut failed = 0;
        for number in 0..400 {
            let path = format!("/{number}");
            let reply = client
                .get_with(&path, &[("x-api-key", "honest")])
                .await
                .unwrap();
            failed += u64::from(reply.status != 200);
        }
        evil.shutdown().await;
        assert!(failed <= 8, "{failed} of 40 were not tried again");
        assert_sound(&mut envoy).await;
    });
}

/// With the reference configuration no upstream speaks in haven's name, on no route: where haven
/// looks at answers, where it has no route, where it is switched off.
#[test]
fn an_upstream_speaks_in_havens_name_on_no_route() {
    run(async {
        let mut upstreams = Vec::new();
        for _ in 0..3 {
            let claims = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\
                Proxy-Status: haven; error=http_request_denied\r\nproxy-status: other; x, Haven\r\n\
                x-haven-health: 1\r\nX-Haven-Anything: 1\r\nx-own: 1\r\n\r\nok";
            upstreams.push(Scripted::start(|_| claims.to_vec()).await);
        }
        let addrs: Vec<_> = upstreams.iter().map(Scripted::addr).collect();
        let text = std::fs::read_to_string(checkout("envoy.yaml")).unwrap();
        let place = "              - match: { path_separated_prefix: /api/users }\n";
        let others = [
            "              - match: { path_separated_prefix: /bypass }\n",
            "                route: { cluster: users }\n",
            "                typed_per_filter_config:\n",
            "                  haven: { \"@type\": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true }\n",
            "              - match: { path_separated_prefix: /unknown }\n",
            "                route: { cluster: users }\n",
            place,
        ];
        let text = text.replace(place, &others.concat());
        let config = EnvoyConfig::text(reference_text(&text, &addrs, &haven_wasm().unwrap()));
        let mut envoy = Envoy::start(config).await;
        let client = envoy.h1();
        for path in ["/api/users", "/bypass", "/unknown"] {
            let reply = client.get(path).await.unwrap();
            assert_eq!(reply.header("x-own").as_deref(), Some("1"), "{path}");
            for name in ["proxy-status", "x-haven-health", "x-haven-anything"] {
                assert_eq!(reply.header(name), None, "{path}: {name}");
            }
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn what_is_sent_twice_reaches_the_upstream_as_it_was_counted() {
    run(async {
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "rate_limits": {
                "key": {"limit": 1, "period": "1h", "key": [{"header": "x-key"}]},
                "sid": {"limit": 1, "period": "1h", "key": [{"cookie": "sid"}]}},
            "routes": [
                {"name": "pay", "match": {"path": "/echo/pay"}, "rate_limits": ["key"]},
                {"name": "sid", "match": {"path": "/echo/sid"}, "rate_limits": ["sid"]}]});
        let config = EnvoyConfig::proxy([upstream.addr()]).haven(&filter);
        let mut envoy = Envoy::start(config).await;
        let ask = async |path: &[u8], headers: &[u8]| {
            let reply = raw::exchange(envoy.addr(), &raw::get(path, headers))
                .await
                .unwrap();
            // The upstream's JSON, whatever frames it.
            let text = reply.text();
            let json = text.find('{').zip(text.rfind('}'));
            let json = json.and_then(|(from, to)| text.get(from..=to));
            let seen = json.and_then(|json| serde_json::from_str::<Value>(json).ok());
            (reply.status, seen.unwrap_or_default())
        };
        let (status, seen) = ask(b"/echo/pay", b"x-key: a\r\nx-key: b\r\n").await;
        assert_eq!((status, &seen["headers"]["x-key"]), (200, &json!("a, b")));
        assert_eq!(ask(b"/echo/pay;x=1", b"x-key: a, b\r\n").await.0, 429);
        let (status, seen) = ask(
            b"/echo/sid",
            b"cookie: sid=a; t=1; sid=b\r\ncookie: sid=c\r\n",
        )
        .await;
        assert_eq!(
            (status, &seen["headers"]["cookie"]),
            (200, &json!("sid=a; t=1"))
        );
        assert_eq!(ask(b"/echo/sid", b"cookie: sid=a\r\n").await.0, 429);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn addresses_that_clients_can_write_are_told_of_once() {
    run(async {
        let filter = |source: &str| {
            json!({"client_ip": {"source": source},
                "rate_limits": {"l": {"limit": 1000, "key": ["client_ip"]}},
                "routes": [{"name": "r", "rate_limits": ["l"]}]})
        };
        for (source, remote, warned) in [
            ("x-forwarded-for", false, 1),
            ("x-forwarded-for", true, 0),
            ("connection", false, 1),
            ("connection", true, 0),
        ] {
            let config = EnvoyConfig::direct()
                .use_remote_address(remote)
                .haven(&filter(source));
            let mut envoy = Envoy::start(config).await;
            let client = Client::h1_fresh(envoy.addr());
            for headers in [&[][..], &[("x-forwarded-for", "203.0.113.9")]].repeat(8) {
                assert_eq!(client.get_with("/", headers).await.unwrap().status, 200);
            }
            let lines = envoy.logs().matches("client_ip: ").count();
            assert_eq!(lines, warned, "{source} {remote}: {}", envoy.logs());
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn grpc_health_checks_pass_no_limit_where_no_bridge_answers_them() {
    run(async {
        const CHECK: &str = "/grpc.health.v1.Health/Check";
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "rate_limits": {"few": {"limit": 2, "period": "1h"}},
            "routes": [{"name": "all", "rate_limits": ["few"]}]});
        for whole in [true, false] {
            let mut config = EnvoyConfig::proxy([upstream.addr()])
                .concurrency(2)
                .haven(&filter);
            if !whole {
                config = config.stop_all();
            }
            let before = upstream.counters().requests;
            let mut envoy = Envoy::start(config).await;
            let client = envoy.h2();
            let mut refused = 0;
            // Without the setting each waits for 2 s: a few show it.
            for _ in 0..if whole { 50 } else { 4 } {
                let reply = client
                    .send(grpc_request(envoy.addr(), CHECK))
                    .await
                    .unwrap();
                refused += u64::from(reply.header("grpc-status").as_deref() == Some("8"));
            }
            let reached = upstream.counters().requests - before;
            assert_eq!(
                reached, 2,
                "as many as the limit allows; {refused} were refused"
            );
            let line = if whole {
                "no bridge"
            } else {
                "the message of a call did not come"
            };
            assert_eq!(envoy.logs().matches(line).count(), 1, "{}", envoy.logs());
            nothing_in_flight(&envoy).await;
            assert_sound(&mut envoy).await;
        }
    });
}

/// Nor does a check go on before its moment, because it has waited for its message before.
#[test]
fn grpc_health_checks_wait_at_limits_like_others() {
    run(async {
        const CHECK: &str = "/grpc.health.v1.Health/Check";
        let upstream = Upstream::start("a").await;
        let filter = json!({
            "rate_limits": {"pace": {"algorithm": "leaky_bucket", "limit": 1, "period": "10m", "burst": 6,
                "max_wait": "1h"}},
            "routes": [{"name": "all", "rate_limits": ["pace"]}]});
        let config = EnvoyConfig::proxy([upstream.addr()]).concurrency(1);
        let mut envoy = Envoy::start(config.haven(&filter)).await;
        let mut checks = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let client = envoy.h2();
            let check = grpc_request(envoy.addr(), CHECK);
            checks.spawn(async move { client.send(check).await });
        }
        let active = async || envoy.stat("http.ingress.downstream_rq_active").await;
        wait_for("one goes, the others wait", async || {
            upstream.counters().requests == 1 && active().await == 3
        })
        .await;
        // One more that never sends its message: when it is given up, so would be the others.
        let head = format!(
            "POST {CHECK} HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\n\
            te: trailers\r\ncontent-length: 5\r\n\r\n"
        );
        let late = bodies::send(envoy.addr(), &head).await;
        wait_for("its message is given up", async || {
            envoy.logs().contains("the message of a call did not come")
        })
        .await;
        assert_eq!(upstream.counters().requests, 1, "the pace is kept");
        drop(late);
        checks.shutdown().await;
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}
