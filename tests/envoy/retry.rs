//! Retries in a real Envoy: who gets them, where they go, and what they add to a storm.

use std::time::Duration;

use crate::filter::{Steady, assert_sound, endpoints, grpc, nothing_in_flight};
use crate::support::{Cluster, Envoy, EnvoyConfig, Route, Upstream, load, run, wait_for};
use serde_json::{Value, json};

/// One route for all, to these upstreams.
fn filter(upstreams: &[Upstream], retry: &Value) -> Value {
    let addrs: Vec<_> = upstreams.iter().map(|upstream| upstream.addr()).collect();
    json!({
        "upstreams": {"users": {"endpoints": endpoints(&addrs)}},
        "routes": [{"name": "all", "upstream": "users", "retry": retry}],
    })
}

async fn envoy(upstreams: &[Upstream], filter: &Value) -> Envoy {
    Envoy::start(
        EnvoyConfig::proxy(upstreams.iter().map(|upstream| upstream.addr()))
            .internal_clients()
            .haven(filter),
    )
    .await
}

fn requests(upstreams: &[Upstream]) -> u64 {
    upstreams
        .iter()
        .map(|upstream| upstream.counters().requests)
        .sum()
}

async fn retries(envoy: &Envoy) -> u64 {
    envoy
        .metrics()
        .await
        .total("haven_retries_total", &[("route", "all")]) as u64
}

#[test]
fn a_killed_endpoint_is_no_clients_business() {
    run(async {
        let upstreams = Upstream::start_many(3).await;
        let mut filter = filter(&upstreams, &json!({"min_per_second": 100}));
        filter["circuit_breakers"] =
            json!({"ep": {"consecutive_failures": 3, "open_duration": "300ms"}});
        filter["upstreams"]["users"]["circuit_breaker"] = json!("ep");
        let mut envoy = envoy(&upstreams, &filter).await;
        let clients = (0..4).map(|_| envoy.h1()).collect::<Vec<_>>();
        let steady = Steady::start(clients, "/", Duration::from_millis(10));
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        upstreams[1].set(|faults| faults.close = true).await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let tally = steady.stop().await;
        assert_eq!(tally.count(200), tally.total(), "{tally:?}");
        assert!(retries(&envoy).await > 0);
        nothing_in_flight(&envoy).await;
        assert_sound(&mut envoy).await;
    });
}

#[test]
fn only_what_may_be_sent_twice_is_and_whatever_clients_ask_for() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        for upstream in &upstreams {
            upstream.set(|faults| faults.status = Some(503)).await;
        }
        let envoy = envoy(
            &upstreams,
            &filter(&upstreams, &json!({"budget": 100, "min_per_second": 100})),
        )
        .await;
        let client = envoy.h1();
        for (method, headers, tries) in [
            ("GET", &[][..], 2),
            ("PUT", &[], 2),
            ("POST", &[], 1),
            ("PATCH", &[], 1),
            (
                "POST",
                &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "9")],
                1,
            ),
            (
                "GET",
                &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "9")],
                2,
            ),
        ] {
            let before = requests(&upstreams);
            assert_eq!(
                client
                    .request(method, "/", headers, "")
                    .await
                    .unwrap()
                    .status,
                503
            );
            assert_eq!(requests(&upstreams) - before, tries, "{method} {headers:?}");
        }
        assert_eq!(retries(&envoy).await, 3);
        let counters = upstreams
            .iter()
            .map(|upstream| upstream.counters().requests)
            .collect::<Vec<_>>();
        assert!(
            counters.iter().all(|n| *n >= 3),
            "each try goes to another: {counters:?}"
        );
    });
}

#[test]
fn envoys_own_retries_have_no_say_on_a_route_with_ours() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        for upstream in &upstreams {
            upstream.set(|faults| faults.status = Some(503)).await;
        }
        let config = EnvoyConfig::empty()
            .cluster(Cluster::new(
                "users",
                upstreams.iter().map(|upstream| upstream.addr()),
            ))
            .route(Route::to("/", "users").retry(&crate::support::Retry::default()));
        let envoy = Envoy::start(config.haven(&filter(&upstreams, &json!({"budget": 100})))).await;
        let client = envoy.h1();
        client.request("POST", "/", &[], "").await.unwrap();
        assert_eq!(requests(&upstreams), 1);
        client.get("/").await.unwrap();
        assert_eq!(requests(&upstreams), 3);
    });
}

#[test]
fn grpc_calls_are_tried_again_where_the_route_speaks_of_their_statuses() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        for upstream in &upstreams {
            upstream
                .set(|faults| {
                    faults
                        .headers
                        .insert("content-type".into(), "application/grpc".into());
                    faults.headers.insert("grpc-status".into(), "14".into());
                })
                .await;
        }
        for (on, tries) in [
            (json!(["unavailable"]), 2),
            (json!(["internal"]), 1),
            (json!(["reset", "gateway-error"]), 1),
        ] {
            let config = EnvoyConfig::empty()
                .cluster(
                    Cluster::new("users", upstreams.iter().map(|upstream| upstream.addr())).http2(),
                )
                .route(Route::to("/", "users"));
            let envoy = Envoy::start(config.haven(&filter(&upstreams, &json!({"on": on})))).await;
            let before = requests(&upstreams);
            let (status, _) = grpc(&envoy.h2(), envoy.addr(), "/users.Users/List").await;
            assert_eq!(status.as_deref(), Some("14"));
            assert_eq!(requests(&upstreams) - before, tries, "{on}");
        }
    });
}

/// An upstream whose every answer is this one.
async fn answers(upstream: &Upstream, status: u16, headers: &[(&str, &str)]) {
    upstream
        .set(|faults| {
            faults.status = Some(status);
            let owned = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
            faults.headers = headers.iter().map(owned).collect();
        })
        .await;
}

/// A failed gRPC call, with more headers.
fn failed_call<'a>(status: &'a str, more: (&'a str, &'a str)) -> [(&'a str, &'a str); 3] {
    [
        ("content-type", "application/grpc"),
        ("grpc-status", status),
        more,
    ]
}

#[test]
fn no_answer_forbids_the_retry_of_its_own_request() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let mut filter = filter(
            &upstreams,
            &json!({"on": ["gateway-error", "envoy-ratelimited", "retriable-headers"], "budget": 100, "min_per_second": 100}),
        );
        filter["routes"][0]["timeout"] = json!({"request": "5s"});
        let mut with_http1 = envoy(&upstreams, &filter).await;
        filter["routes"][0]["retry"]["on"] = json!(["unavailable"]);
        let config = EnvoyConfig::empty()
            .cluster(
                Cluster::new("users", upstreams.iter().map(|upstream| upstream.addr())).http2(),
            )
            .route(Route::to("/", "users"));
        let mut with_http2 = Envoy::start(config.haven(&filter)).await;
        for (status, wait, tries) in [
            (503, "3600", 2),
            (503, "Sun, 06 Nov 2094 08:49:37 GMT", 2),
            (503, "soon", 2),
            (429, "3600", 1),
        ] {
            for upstream in &upstreams {
                answers(upstream, status, &[("retry-after", wait)]).await;
            }
            let before = requests(&upstreams);
            let reply = with_http1.h1().get("/").await.unwrap();
            assert_eq!(reply.status, status, "{wait}");
            assert_eq!(reply.header("retry-after").as_deref(), Some(wait));
            assert_eq!(requests(&upstreams) - before, tries, "{status} {wait}");
        }
        // UNAVAILABLE is asked to be tried again, RESOURCE_EXHAUSTED is not.
        for (status, tries) in [("14", 2), ("8", 1)] {
            for wait in ["-1", "soon", "3600000"] {
                let headers = failed_call(status, ("grpc-retry-pushback-ms", wait));
                for upstream in &upstreams {
                    answers(upstream, 200, &headers).await;
                }
                let before = requests(&upstreams);
                let (seen, reply) = grpc(&with_http2.h2(), with_http2.addr(), "/u.U/List").await;
                assert_eq!(seen.as_deref(), Some(status));
                // The client's own retries may obey it.
                assert_eq!(
                    reply.header("grpc-retry-pushback-ms").as_deref(),
                    Some(wait)
                );
                assert_eq!(requests(&upstreams) - before, tries, "{status} {wait}");
            }
        }
        for envoy in [&mut with_http1, &mut with_http2] {
            nothing_in_flight(envoy).await;
            assert_sound(envoy).await;
        }
    });
}

/// How many tries there were until the route's breaker was open, and for how many seconds it says
/// that it is.
async fn open_for(honour: bool, headers: &[(&str, &str)]) -> (u64, u64) {
    let upstreams = Upstream::start_many(1).await;
    let mut filter = filter(
        &upstreams,
        &json!({"on": ["gateway-error", "unavailable"], "budget": 100, "min_per_second": 100}),
    );
    filter["circuit_breakers"] = json!({"b": {
        "consecutive_failures": 1, "open_duration": "20s", "max_open_duration": "30m", "honour_retry_after": honour}});
    filter["routes"][0]["circuit_breaker"] = json!("b");
    let config = EnvoyConfig::empty()
        .cluster(Cluster::new("users", [upstreams[0].addr()]).http2())
        .route(Route::to("/", "users"));
    let mut envoy = Envoy::start(config.haven(&filter)).await;
    let is_call = headers.iter().any(|(name, _)| *name == "grpc-status");
    answers(&upstreams[0], if is_call { 200 } else { 503 }, headers).await;
    let client = envoy.h2();
    if is_call {
        grpc(&client, envoy.addr(), "/u.U/List").await;
    } else {
        client.get("/").await.unwrap();
    }
    let tries = requests(&upstreams);
    // The upstream is well again, and is asked to wait for no less.
    upstreams[0].heal().await;
    let mut refused = None;
    wait_for("the breaker is open", async || {
        let reply = client.get("/").await.unwrap();
        refused = reply.header("retry-after");
        reply.status == 503
    })
    .await;
    assert_eq!(requests(&upstreams), tries, "nothing is asked any more");
    assert_sound(&mut envoy).await;
    (tries, refused.unwrap().parse().unwrap())
}

#[test]
fn what_the_last_answer_asks_for_holds_for_the_requests_to_come() {
    run(async {
        for (headers, honour, seconds) in [
            (&[("retry-after", "600")][..], true, 600),
            (
                &[
                    ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                    ("retry-after", "Sun, 06 Nov 1994 08:59:37 GMT"),
                ],
                true,
                600,
            ),
            (
                &failed_call("14", ("grpc-retry-pushback-ms", "600000")),
                true,
                600,
            ),
            // Not beyond `max_open_duration`.
            (&[("retry-after", "86400")], true, 1_800),
            // The breaker's own time.
            (
                &failed_call("14", ("grpc-retry-pushback-ms", "-1")),
                true,
                20,
            ),
            (&[("retry-after", "600")], false, 20),
        ] {
            let (tries, open) = open_for(honour, headers).await;
            println!("{headers:?}: {tries} tries, open for {open} s");
            assert_eq!(tries, 2, "{headers:?}");
            // What has passed since is less than tells one from the other.
            assert!(
                open <= seconds && open * 4 > seconds,
                "{open} s for {headers:?}"
            );
        }
    });
}

#[test]
fn an_endpoint_is_left_alone_for_as_long_as_the_last_answer_asks() {
    run(async {
        // Only a POST's first try is its last one: what Envoy tries again it shows nobody.
        for (method, status, open) in [("POST", 503, "600000"), ("GET", 200, "20000")] {
            let upstreams = Upstream::start_many(3).await;
            let mut filter = filter(&upstreams, &json!({"budget": 100, "min_per_second": 100}));
            filter["circuit_breakers"] = json!({"b": {"consecutive_failures": 1, "open_duration": "20s", "max_open_duration": "30m"}});
            filter["upstreams"]["users"]["circuit_breaker"] = json!("b");
            filter["upstreams"]["users"]["load_balancer"] = json!({"policy": "first"});
            let mut envoy = envoy(&upstreams, &filter).await;
            answers(&upstreams[0], 503, &[("retry-after", "600")]).await;
            let client = envoy.h1();
            let reply = client.request(method, "/", &[], "").await.unwrap();
            assert_eq!(reply.status, status, "{method}");
            let change = format!("closed -> open for {open} ms");
            wait_for("the log tells", async || envoy.logs().contains(&change)).await;
            upstreams[0].heal().await;
            assert_eq!(load(&client, 50, 4, "/", &[]).await.count(200), 50);
            assert_eq!(upstreams[0].counters().requests, 1, "{method}");
            nothing_in_flight(&envoy).await;
            assert_sound(&mut envoy).await;
        }
    });
}

/// A wait beyond the deadline ends there, with Envoy's 504: the answer that asks for it is gone.
#[test]
fn envoys_route_waits_as_it_is_told() {
    run(async {
        let upstreams = Upstream::start_many(2).await;
        let addrs = || upstreams.iter().map(|upstream| upstream.addr());
        let mut filter = filter(&upstreams, &json!({"budget": 100, "min_per_second": 100}));
        filter["routes"][0]["timeout"] = json!({"request": "700ms"});
        for upstream in &upstreams {
            answers(upstream, 503, &[("retry-after", "60")]).await;
        }
        // What asks for more than `max_interval` is tried again as if it had not asked.
        for (longest, status, tries) in [
            (None, 503, 2),
            (Some("300s"), 504, 1),
            (Some("0.2s"), 503, 2),
        ] {
            let mut route = Route::to("/", "users");
            if let Some(longest) = longest {
                let wait = json!({
                    "reset_headers": [{"name": "retry-after", "format": "SECONDS"}], "max_interval": longest});
                route = route.with(&json!({"retry_policy": {"rate_limited_retry_back_off": wait}}));
            }
            let config = EnvoyConfig::empty()
                .cluster(Cluster::new("users", addrs()))
                .route(route);
            let mut envoy = Envoy::start(config.haven(&filter)).await;
            let before = requests(&upstreams);
            let reply = envoy.h1().get("/").await.unwrap();
            assert_eq!(reply.status, status, "{longest:?}");
            assert_eq!(requests(&upstreams) - before, tries, "{longest:?}");
            nothing_in_flight(&envoy).await;
            assert_sound(&mut envoy).await;
        }
    });
}

#[test]
fn a_storm_is_not_made_worse_than_its_budget() {
    run(async {
        // Three of five fail: 60 % of all tries.
        let upstreams = Upstream::start_many(5).await;
        // A floor that no machine is slow enough to come down to.
        let retry = json!({"on": ["5xx"], "attempts": 3, "min_per_second": 1});
        let mut config = filter(&upstreams, &retry);
        // least_request would soon avoid those that fail.
        config["upstreams"]["users"]["load_balancer"] = json!({"policy": "round_robin"});
        let mut envoy = envoy(&upstreams, &config).await;
        let clients: Vec<_> = (0..16).map(|_| envoy.h1()).collect();
        let calm = Steady::start(clients.clone(), "/", Duration::from_millis(40));
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(calm.stop().await.count(200), requests(&upstreams));
        for upstream in &upstreams[..3] {
            upstream.set(|faults| faults.status = Some(500)).await;
        }
        let before = requests(&upstreams);
        let storm = Steady::start(clients, "/", Duration::from_millis(40));
        tokio::time::sleep(Duration::from_secs(8)).await;
        let tally = storm.stop().await;
        let (sent, tried) = (tally.total(), requests(&upstreams) - before);
        assert!(tally.count(500) > 0 && tally.count(200) > 0, "{tally:?}");
        assert!(tried * 100 < sent * 125, "{tried} for {sent}");
        assert!(
            tried * 100 > sent * 110,
            "the budget is there to be used: {tried} for {sent}"
        );
        assert_eq!(retries(&envoy).await, tried - sent);
        println!(
            "{tried} upstream requests for {sent}: {} %",
            tried * 100 / sent
        );
        // It is over: single failures are tried again as before.
        for upstream in &upstreams {
            upstream.heal().await;
        }
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(load(&envoy.h1(), 100, 4, "/", &[]).await.count(200), 100);
        assert_sound(&mut envoy).await;
    });
}
