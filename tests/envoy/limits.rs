//! Rate limits in a real Envoy with four workers.

use std::time::Duration;

use crate::filter::{assert_sound, counted, decisions, grpc};
use crate::support::{Client, Envoy, EnvoyConfig, Route, Tally, load, raw, run, wait_for};
use serde_json::{Value, json};
use tokio::time::Instant;

/// Only as many as the burst: the next token comes after the test.
const NO_REFILL: &str = "1h";

/// An Envoy that answers by itself what the filter lets through.
async fn envoy(filter: &Value) -> Envoy {
    Envoy::start(EnvoyConfig::direct().haven(filter)).await
}

/// A filter with one limit for all.
fn one_limit(limit: &Value) -> Value {
    json!({"rate_limits": {"per-client": limit}, "routes": [{"name": "all", "rate_limits": ["per-client"]}]})
}

/// How many of `count` requests pass.
async fn passing(client: &Client, count: u64, path: &str, headers: &[(&str, &str)]) -> u64 {
    let tally = load(client, count, 1, path, headers).await;
    assert_eq!(tally.count(200) + tally.count(429), count, "{tally:?}");
    tally.count(200)
}

/// Overloads a limit from `clients` for some seconds. Never more than burst + rate × time may pass,
/// and nearly as much must.
async fn overload(
    clients: Vec<Client>,
    each: u64,
    path: &'static str,
    rate: f64,
    burst: f64,
) -> Tally {
    let begun = Instant::now();
    let until = begun + Duration::from_secs(4);
    let mut senders = tokio::task::JoinSet::new();
    for client in clients {
        for _ in 0..each {
            let client = client.clone();
            senders.spawn(async move {
                let mut tally = Tally::default();
                while Instant::now() < until {
                    tally.add(&client.get(path).await);
                }
                tally
            });
        }
    }
    let mut tally = Tally::default();
    while let Some(part) = senders.join_next().await {
        tally.merge(part.unwrap());
    }
    let elapsed = begun.elapsed().as_secs_f64();
    let passed = tally.count(200) as f64;
    println!("{path}: {} in {elapsed:.2} s: {tally:?}", tally.total());
    assert_eq!(
        tally.total(),
        tally.count(200) + tally.count(429),
        "{tally:?}"
    );
    assert!(
        tally.total() as f64 > 2.0 * passed,
        "no overload: {tally:?}"
    );
    let most = rate.mul_add(elapsed, burst);
    assert!(passed <= most, "{passed} passed, at most {most:.1} may");
    // 4 s of load are certain; what comes in the moment after it is not.
    let least = 0.97 * rate.mul_add(4.0, burst);
    assert!(
        passed >= least,
        "{passed} passed, at least {least:.1} should"
    );
    tally
}

#[test]
fn four_workers_that_write_one_bucket_thousands_of_times_a_second_stay_within_it() {
    run(async {
        let (rate, burst) = (5000.0, 20.0);
        let mut envoy = envoy(&one_limit(&json!({"limit": 5000, "burst": 20}))).await;
        let addr = envoy.addr();
        let begun = Instant::now();
        let request = |_| b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
        let tally = raw::flood(addr, 16, 60_000, request).await;
        let most = rate * begun.elapsed().as_secs_f64() + burst;
        let contended = envoy
            .metrics()
            .await
            .total("haven_store_contention_total", &[]);
        println!("{tally:?}, at most {most}, contended {contended}");
        assert_eq!((tally.total(), tally.failed()), (60_000, 0), "{tally:?}");
        assert!(
            tally.count(200) as f64 <= most,
            "{tally:?}, at most {most}; contended: {contended}"
        );
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn four_workers_admit_no_more_than_burst_and_rate_allow_under_tenfold_overload() {
    run(async {
        let limit = json!({"limit": 100, "burst": 50});
        let filter = json!({
            "rate_limits": {"one": limit, "two": limit},
            "routes": [
                {"name": "one", "match": {"prefix": "/one"}, "rate_limits": ["one"]},
                {"name": "two", "match": {"prefix": "/two"}, "rate_limits": ["two"]},
            ],
        });
        let mut envoy = envoy(&filter).await;
        let of = |client: fn(&Envoy) -> Client| (0..16).map(|_| client(&envoy)).collect::<Vec<_>>();
        let h1 = overload(of(Envoy::h1), 1, "/one", 100.0, 50.0).await;
        let h2 = overload(of(Envoy::h2), 4, "/two", 100.0, 50.0).await;
        for (policy, tally) in [("one", h1), ("two", h2)] {
            let labels = [
                ("route", policy),
                ("policy", policy),
                ("reason", "rate_limited"),
                ("mode", "enforce"),
            ];
            assert_eq!(counted(&envoy, &labels).await, tally.count(429));
            assert_eq!(
                envoy
                    .metrics()
                    .await
                    .total("haven_store_contention_total", &[("policy", policy)]),
                0.0
            );
        }
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_key_of_a_header_has_a_bucket_of_its_own_that_all_workers_share() {
    run(async {
        let filter =
            one_limit(&json!({"limit": 7, "period": NO_REFILL, "key": [{"header": "X-Api-Key"}]}));
        let envoy = envoy(&filter).await;
        // A connection per request: all workers get some.
        let fresh = Client::h1_fresh(envoy.addr());
        for key in ["a", "b", "ab", "A"] {
            let tally = load(&fresh, 60, 6, "/", &[("x-api-key", key)]).await;
            assert_eq!((tally.count(200), tally.count(429)), (7, 53), "{key}");
        }
        assert_eq!(
            load(&envoy.h2(), 30, 10, "/", &[("x-api-key", "h2")])
                .await
                .count(200),
            7
        );
        // Who has no key is not limited.
        assert_eq!(passing(&fresh, 20, "/", &[]).await, 20);
        assert_eq!(
            envoy
                .metric("haven_rate_limit_keys", &[("policy", "per-client")])
                .await,
            Some(5.0)
        );
    });
}

#[test]
fn a_refusal_tells_why_and_when_to_come_again() {
    run(async {
        let mut filter =
            one_limit(&json!({"limit": 2, "period": "100s", "burst": 3, "key": ["client_ip"]}));
        filter["rate_limits"]["wide"] = json!({"limit": 100, "period": "1m"});
        filter["routes"][0]["rate_limits"] = json!(["per-client", "wide"]);
        let mut envoy = envoy(&filter).await;
        for client in [envoy.h1(), envoy.h2()] {
            let passed = client.get("/").await.unwrap();
            if passed.status == 200 {
                let policies = passed.header("ratelimit-policy").unwrap();
                let (client, rest) = policies.split_once(";pk=:").unwrap();
                assert_eq!(
                    (client, &rest[12..]),
                    ("\"per-client\";q=3;w=100", ":, \"wide\";q=100;w=60")
                );
                assert!(
                    passed
                        .header("ratelimit")
                        .unwrap()
                        .starts_with("\"per-client\";r=2;t="),
                    "{passed:?}"
                );
                assert_eq!(
                    (passed.header("proxy-status"), passed.header("retry-after")),
                    (None, None)
                );
            }
            let tally = load(&client, 4, 1, "/", &[]).await;
            assert!(tally.count(429) > 0);
            let refused = client.get("/").await.unwrap();
            assert_eq!(refused.status, 429);
            let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
            // A token takes 50 s.
            assert!((1..=50).contains(&wait), "{wait}");
            let of = |name: &str| {
                refused
                    .header(name)
                    .unwrap_or_else(|| panic!("no {name}: {refused:?}"))
            };
            let (policy, partition) = of("ratelimit-policy")
                .split_once(";pk=")
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .unwrap();
            assert_eq!(policy, "\"per-client\";q=3;w=100");
            let state = of("ratelimit");
            let state = state
                .strip_suffix(&format!(";pk={partition}"))
                .unwrap_or_else(|| panic!("{state}"));
            let reset: u64 = state
                .strip_prefix("\"per-client\";r=0;t=")
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(reset, wait, "no later than Retry-After");
            assert_eq!(
                of("proxy-status"),
                "haven; error=http_request_denied; details=\"rate_limited per-client\""
            );
            assert_eq!(of("content-type"), "application/problem+json");
            assert_eq!(of("content-length"), refused.body.len().to_string());
            let problem = refused.json();
            assert_eq!(
                problem["type"],
                "https://iana.org/assignments/http-problem-types#quota-exceeded"
            );
            assert_eq!(
                (&problem["status"], &problem["reason"]),
                (&429.into(), &"rate_limited".into())
            );
            assert_eq!(problem["policy"], "per-client");
            assert_eq!(problem["violated-policies"], json!(["per-client"]));
            assert!(
                problem["title"].is_string() && problem["detail"].is_string(),
                "{problem}"
            );
        }
        let log = envoy.access_log_of(12).await;
        let refused = log.iter().filter(|line| line["status"] == 429).count();
        assert_eq!((log.len(), refused), (12, 9));
        for line in &log {
            let want = if line["status"] == 429 {
                "rate_limited per-client enforce"
            } else {
                "-"
            };
            assert_eq!(decisions(std::slice::from_ref(line)), [want]);
        }
        let labels = [
            ("route", "all"),
            ("policy", "per-client"),
            ("reason", "rate_limited"),
            ("mode", "enforce"),
        ];
        assert_eq!(counted(&envoy, &labels).await, 9);
        assert_eq!(counted(&envoy, &[]).await, 9, "and nothing else");
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn a_token_comes_back_when_retry_after_said() {
    run(async {
        let envoy = envoy(&one_limit(&json!({"limit": 1, "period": "2s"}))).await;
        let client = envoy.h1();
        assert_eq!(client.get("/").await.unwrap().status, 200);
        let refused = client.get("/").await.unwrap();
        let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!(
            refused.status == 429 && (1..=2).contains(&wait),
            "{refused:?}"
        );
        tokio::time::sleep(Duration::from_secs(wait)).await;
        assert_eq!(client.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn a_client_is_known_by_its_connection_whatever_it_claims() {
    run(async {
        let envoy = envoy(&one_limit(
            &json!({"limit": 3, "period": NO_REFILL, "key": ["client_ip"]}),
        ))
        .await;
        for local in ["127.0.0.5", "127.0.0.6"] {
            let mut passed = 0;
            for claim in [
                "198.51.100.1",
                "198.51.100.2",
                "garbage",
                "",
                "127.0.0.9, 127.0.0.10",
            ] {
                // Each a connection of its own.
                let client = Client::h1_from(envoy.addr(), local.parse().unwrap());
                passed += passing(
                    &client,
                    1,
                    "/",
                    &[("x-forwarded-for", claim), ("x-real-ip", claim)],
                )
                .await;
            }
            assert_eq!(passed, 3, "{local}");
        }
        assert_eq!(envoy.metric("haven_rate_limit_keys", &[]).await, Some(2.0));
    });
}

#[test]
fn behind_a_trusted_proxy_the_client_is_the_entry_that_the_proxy_wrote() {
    run(async {
        let mut filter = one_limit(&json!({"limit": 2, "period": NO_REFILL, "key": ["client_ip"]}));
        filter["client_ip"] = json!({"source": "x-forwarded-for", "trusted_hops": 2});
        // Envoy appends the peer: the second entry from the right is what the proxy in front has
        // written.
        let envoy = envoy(&filter).await;
        let from = |local: &str| Client::h2_from(envoy.addr(), local.parse().unwrap());
        let proxy = from("127.0.0.7");
        let ask = async |client: &Client, entry: &str| {
            passing(client, 1, "/", &[("x-forwarded-for", entry)]).await
        };
        // One client in many spellings, with whatever it wrote itself to the left.
        let mut passed = 0;
        for entry in [
            "203.0.113.7",
            "1.2.3.4, 203.0.113.7",
            "203.0.113.7:4711",
            "5.6.7.8,\t203.0.113.7:1",
            "x,203.0.113.7 ",
        ] {
            passed += ask(&proxy, entry).await;
        }
        assert_eq!(passed, 2);
        assert_eq!(ask(&proxy, "203.0.113.8").await, 1, "another client");
        // IPv6: clients are told apart by /64.
        let mut passed = 0;
        for entry in [
            "2001:db8::1",
            "2001:DB8:0:0::2",
            "[2001:db8::3]:443",
            "2001:db8:0:0:ffff::",
        ] {
            passed += ask(&proxy, entry).await;
        }
        assert_eq!((passed, ask(&proxy, "2001:db8:0:1::1").await), (2, 1));
        // Missing, short or malformed: the connection's address.
        let direct = from("127.0.0.8");
        assert_eq!(passing(&direct, 2, "/", &[]).await, 2);
        assert_eq!(passing(&direct, 1, "/", &[]).await, 0);
        for entry in ["unknown", "300.1.1.1", "203.0.113.7;"] {
            assert_eq!(ask(&direct, entry).await, 0, "{entry}");
        }
    });
}

#[test]
fn a_shadow_refuses_nobody_and_says_whom_it_would_have() {
    run(async {
        let mut filter = one_limit(&json!({"limit": 4, "period": NO_REFILL, "mode": "shadow"}));
        filter["rate_limits"]["real"] = json!({"limit": 8, "period": NO_REFILL});
        filter["routes"][0]["rate_limits"] = json!(["per-client", "real"]);
        let mut envoy = envoy(&filter).await;
        let client = envoy.h1();
        for number in 0..10 {
            let reply = client.get("/").await.unwrap();
            assert_eq!(reply.status, if number < 8 { 200 } else { 429 }, "{number}");
            let policies = reply.header("ratelimit-policy").unwrap();
            assert!(
                !policies.contains("per-client"),
                "a shadow shows nothing to clients: {policies}"
            );
        }
        let count = async |policy: &str, mode: &str| {
            counted(&envoy, &[("policy", policy), ("mode", mode)]).await
        };
        // A request that is refused is not asked of the shadow.
        assert_eq!(
            (
                count("per-client", "shadow").await,
                count("real", "enforce").await
            ),
            (4, 2)
        );
        assert_eq!(count("per-client", "enforce").await, 0);
        let said = decisions(&envoy.access_log_of(10).await);
        assert_eq!(said[..4], ["-", "-", "-", "-"]);
        assert_eq!(said[4..8], ["rate_limited per-client shadow"; 4]);
        assert_eq!(said[8..], ["rate_limited real enforce"; 2]);
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn what_is_off_does_nothing() {
    run(async {
        let tight = json!({"limit": 1, "period": NO_REFILL});
        let mut off = tight.clone();
        off["mode"] = json!("off");
        let filter = json!({
            "rate_limits": {"tight": tight, "off": off},
            "routes": [
                {"name": "route-off", "match": {"prefix": "/route"}, "mode": "off", "rate_limits": ["tight"]},
                {"name": "policy-off", "match": {"prefix": "/policy"}, "rate_limits": ["off"]},
                {"name": "on", "match": {"prefix": "/on"}, "rate_limits": ["tight"]},
            ],
        });
        let envoy = envoy(&filter).await;
        let client = envoy.h1();
        for path in ["/route", "/policy", "/none"] {
            for _ in 0..5 {
                let reply = client.get(path).await.unwrap();
                assert_eq!(
                    (reply.status, reply.header("ratelimit")),
                    (200, None),
                    "{path}"
                );
            }
        }
        assert_eq!(
            passing(&client, 5, "/on", &[]).await,
            1,
            "the same limit elsewhere is in force, and was not drawn from"
        );
        assert_eq!(counted(&envoy, &[]).await, 4);
        assert_eq!(decisions(&envoy.access_log_of(15).await)[..15], ["-"; 15]);
    });
}

#[test]
fn a_grpc_call_is_refused_in_its_own_words() {
    run(async {
        let envoy = envoy(&one_limit(&json!({"limit": 1, "period": NO_REFILL}))).await;
        let client = envoy.h2();
        assert_eq!(passing(&client, 1, "/", &[]).await, 1);
        let (status, reply) = grpc(&client, envoy.addr(), "/users.Users/List").await;
        assert_eq!((status.as_deref(), reply.status), (Some("8"), 200));
        assert_eq!(
            reply.header("content-type").as_deref(),
            Some("application/grpc")
        );
        assert!(reply.body.is_empty(), "{reply:?}");
        assert!(
            reply
                .header("grpc-message")
                .unwrap()
                .contains("rate_limited per-client"),
            "{reply:?}"
        );
        assert!(
            reply.header("retry-after").is_some() && reply.header("ratelimit").is_some(),
            "{reply:?}"
        );
        // Not gRPC, though it looks like it.
        let other = client
            .get_with("/", &[("content-type", "application/grpc-web")])
            .await
            .unwrap();
        assert_eq!(other.status, 429);
    });
}

#[test]
fn the_limits_of_a_route_charge_all_or_nothing() {
    run(async {
        let limit = |burst: u64, header: &str| json!({"limit": burst, "period": NO_REFILL, "key": [{"header": header}]});
        let filter = json!({
            "rate_limits": {"wide": limit(10, "x-wide"), "narrow": limit(2, "x-narrow")},
            "routes": [{"name": "all", "rate_limits": ["wide", "narrow"]}],
        });
        let envoy = envoy(&filter).await;
        let fresh = Client::h1_fresh(envoy.addr());
        // 2 pass; the 38 that the narrow one refuses must not have cost anything in the wide one.
        let tally = load(&fresh, 40, 8, "/", &[("x-wide", "a"), ("x-narrow", "1")]).await;
        assert_eq!(tally.count(200), 2);
        let mut passed = 2;
        for narrow in ["2", "3", "4", "5", "6"] {
            let tally = load(&fresh, 10, 4, "/", &[("x-wide", "a"), ("x-narrow", narrow)]).await;
            passed += tally.count(200);
        }
        assert_eq!(passed, 10);
        // The wide one is spent; its refusals cost nothing in the narrow one either.
        assert_eq!(
            passing(&fresh, 5, "/", &[("x-wide", "a"), ("x-narrow", "7")]).await,
            0
        );
        assert_eq!(
            passing(&fresh, 5, "/", &[("x-wide", "b"), ("x-narrow", "7")]).await,
            2
        );
        assert_eq!(
            counted(&envoy, &[("policy", "wide")]).await
                + counted(&envoy, &[("policy", "narrow")]).await,
            38 + 42 + 5 + 3
        );
    });
}

/// A filter whose route `/name` has the limit `name`.
fn many(limits: &Value) -> Value {
    let names = limits.as_object().unwrap().keys();
    let routes: Vec<Value> = names
        .map(|name| json!({"name": name, "match": {"prefix": format!("/{name}")}, "rate_limits": [name]}))
        .collect();
    json!({"rate_limits": limits, "routes": routes})
}

#[test]
fn each_part_of_a_key_tells_requests_apart() {
    run(async {
        let limit = |key: Value| json!({"limit": 2, "period": NO_REFILL, "key": key});
        let mut share = limit(json!([{"header": "x-key"}]));
        share["missing_key"] = json!("share");
        let envoy = envoy(&many(&json!({
            "query": limit(json!([{"query": "user"}])),
            "cookie": limit(json!([{"cookie": "sid"}])),
            "segment": limit(json!([{"path_segment": 1}])),
            "path": limit(json!(["path"])),
            "method": limit(json!(["method"])),
            "host": limit(json!(["host"])),
            "pair": limit(json!([{"header": "x-a"}, {"header": "x-b"}])),
            "share": share,
        })))
        .await;
        let client = envoy.h1();
        let passes =
            async |path: &str, headers: &[(&str, &str)]| passing(&client, 3, path, headers).await;

        assert_eq!(
            (
                passes("/query?user=a", &[]).await,
                passes("/query/x?z=1&us%65r=%61&user=a", &[]).await
            ),
            (2, 0)
        );
        assert_eq!(
            (
                passes("/query?user=b", &[]).await,
                passes("/query?xuser=a", &[]).await
            ),
            (2, 3)
        );

        assert_eq!(passes("/cookie", &[("cookie", "a=b; sid=1")]).await, 2);
        assert_eq!(passes("/cookie", &[("cookie", "sid=1; sid=2")]).await, 0);
        assert_eq!(
            (
                passes("/cookie", &[("cookie", "sid=2")]).await,
                passes("/cookie", &[("cookie", "xsid=2")]).await
            ),
            (2, 3)
        );

        assert_eq!(
            (
                passes("/segment/a", &[]).await,
                passes("/segment/a/x?y", &[]).await
            ),
            (2, 0)
        );
        assert_eq!(
            (
                passes("/segment/b", &[]).await,
                passes("/segment", &[]).await
            ),
            (2, 3)
        );

        assert_eq!(
            (
                passes("/path/a", &[]).await,
                passes("/path/a?x=1", &[]).await,
                passes("/path/a/", &[]).await
            ),
            (2, 0, 2)
        );

        assert_eq!(passes("/method", &[]).await, 2);
        assert_eq!(
            client
                .request("POST", "/method", &[], "")
                .await
                .unwrap()
                .status,
            200
        );

        let host = async |name: &str| passes("/host", &[("host", name)]).await;
        assert_eq!(
            (
                host("a.test").await,
                host("A.Test:8080").await,
                host("b.test").await
            ),
            (2, 0, 2)
        );

        assert_eq!(passes("/pair", &[("x-a", "ab"), ("x-b", "c")]).await, 2);
        assert_eq!(passes("/pair", &[("x-a", "a"), ("x-b", "bc")]).await, 2);
        assert_eq!(
            passes("/pair", &[("x-a", "ab")]).await,
            3,
            "a part is missing"
        );

        assert_eq!(
            (
                passes("/share", &[]).await,
                passes("/share", &[("x-other", "1")]).await
            ),
            (2, 0)
        );
        assert_eq!(passes("/share", &[("x-key", "1")]).await, 2);
    });
}

#[test]
fn exact_keys_have_quotas_of_their_own() {
    run(async {
        let filter = one_limit(&json!({
            "limit": 2, "period": NO_REFILL, "key": [{"header": "x-api-key"}],
            "overrides": [{"key": ["vip"], "limit": 9, "period": NO_REFILL}, {"key": ["bot"], "limit": 1, "period": NO_REFILL}],
        }));
        let envoy = envoy(&filter).await;
        let client = envoy.h1();
        for (key, want) in [("vip", 9), ("bot", 1), ("other", 2), ("VIP", 2)] {
            assert_eq!(
                passing(&client, 12, "/", &[("x-api-key", key)]).await,
                want,
                "{key}"
            );
        }
        let refused = client.get_with("/", &[("x-api-key", "vip")]).await.unwrap();
        let policy = refused.header("ratelimit-policy").unwrap();
        assert_eq!(
            policy.split(";pk=").next(),
            Some("\"per-client\";q=9;w=3600")
        );
    });
}

#[test]
fn exempt_networks_are_never_limited() {
    run(async {
        let filter =
            one_limit(&json!({"limit": 1, "period": NO_REFILL, "exempt": ["127.0.2.0/24"]}));
        let envoy = envoy(&filter).await;
        let passed = async |local: &str| {
            let client = Client::h1_from(envoy.addr(), local.parse().unwrap());
            passing(&client, 10, "/", &[("x-forwarded-for", "127.0.2.7")]).await
        };
        assert_eq!(
            (
                passed("127.0.2.1").await,
                passed("127.0.3.1").await,
                passed("127.0.2.255").await
            ),
            (10, 1, 10)
        );
    });
}

#[test]
fn a_request_costs_what_its_header_says_within_bounds() {
    run(async {
        let filter = one_limit(&json!({
            "limit": 20, "period": NO_REFILL, "key": [{"header": "x-key"}],
            "cost": {"header": "x-cost", "default": 2, "max": 10},
        }));
        let envoy = envoy(&filter).await;
        let client = envoy.h1();
        for (cost, want) in [
            ("1", 20),
            ("5", 4),
            ("10", 2),
            ("11", 2),
            ("99999999999999999999999999", 2),
            ("-1", 10),
            ("1.5", 10),
            ("", 10),
            ("garbage", 10),
            ("0", 20),
        ] {
            let passed = passing(&client, 24, "/", &[("x-key", cost), ("x-cost", cost)]).await;
            assert_eq!(passed, want, "{cost:?}");
        }
        assert_eq!(passing(&client, 24, "/", &[("x-key", "none")]).await, 10);
    });
}

#[test]
fn the_older_headers_are_sent_where_asked_for() {
    run(async {
        let limit = |headers: &str| json!({"limit": 3, "period": "30s", "headers": headers});
        let envoy = envoy(&many(
            &json!({"x": limit("x"), "both": limit("both"), "none": limit("none")}),
        ))
        .await;
        let client = envoy.h2();
        for (path, old, new) in [
            ("/x", true, false),
            ("/both", true, true),
            ("/none", false, false),
        ] {
            for status in [200, 200, 200, 429] {
                let reply = client.get(path).await.unwrap();
                assert_eq!(reply.status, status);
                assert_eq!(
                    reply.header("x-ratelimit-limit"),
                    old.then(|| "3".to_owned()),
                    "{path}"
                );
                assert_eq!(
                    reply.header("x-ratelimit-remaining").is_some(),
                    old,
                    "{path}"
                );
                assert_eq!(reply.header("x-ratelimit-reset").is_some(), old, "{path}");
                assert_eq!(reply.header("ratelimit").is_some(), new, "{path}");
                assert_eq!(reply.header("retry-after").is_some(), status == 429);
            }
        }
    });
}

#[test]
fn a_refused_upload_is_answered_and_its_connection_goes_on() {
    run(async {
        let envoy = Envoy::start(
            EnvoyConfig::empty()
                .route(Route::direct("/", 200, "ok"))
                .haven(&one_limit(&json!({"limit": 1, "period": NO_REFILL}))),
        )
        .await;
        assert_eq!(envoy.h1().get("/").await.unwrap().status, 200);
        for client in [envoy.h1(), envoy.h2()] {
            for _ in 0..3 {
                let refused = client.request("POST", "/", &[], vec![b'x'; 3 << 20]).await;
                // HTTP/1.1: Envoy answers and hangs up on a body that nobody will read; the client
                // may see either.
                if let Ok(refused) = refused {
                    assert_eq!(refused.status, 429);
                }
                assert_eq!(client.get("/").await.unwrap().status, 429);
            }
        }
        wait_for("all are logged", async || counted(&envoy, &[]).await == 12).await;
    });
}

#[test]
fn a_limit_that_looks_at_no_request_refuses_http_and_grpc() {
    let filter = json!({
        "request_headers": "ignore",
        "health": {"livez": null, "readyz": null, "startupz": null, "health": null, "grpc": false},
        "rate_limits": {"all": {"limit": 1, "period": NO_REFILL}},
        "routes": [{"name": "all", "rate_limits": ["all"]}]
    });
    run(async {
        let mut envoy = envoy(&filter).await;
        let client = envoy.h2();
        assert_eq!(client.get("/livez").await.unwrap().status, 200, "no probe");
        let reply = client.get("/").await.unwrap();
        assert_eq!(
            (
                reply.status,
                reply.header("content-type").as_deref(),
                reply.header("grpc-status")
            ),
            (429, Some("application/problem+json"), None)
        );
        assert!(reply.body.starts_with(b"{\"type\":"));
        let (status, reply) = grpc(&client, envoy.addr(), "/users.Users/List").await;
        assert_eq!(
            (status.as_deref(), reply.header("content-type").as_deref()),
            (Some("8"), Some("application/grpc"))
        );
        let log = envoy.access_log_of(3).await;
        let details = |at: usize| log[at]["details"].as_str().unwrap_or_default().to_owned();
        for line in [1, 2] {
            assert_eq!(details(line), "haven{rate_limited:all:enforce}");
            assert!(log[line]["decision"].is_null(), "{}", log[line]);
        }
        assert_sound(&mut envoy).await;
    });
}
