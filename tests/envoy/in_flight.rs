//! Counts of requests in flight in a real Envoy without any fault: no scrape shows one below zero,
//! and a limit of three never lets four in.
//!
//! For longer: `make test-envoy ONLY=in_flight IN_FLIGHT=300` runs 30/s and 3,000/s (or what the
//! machine carries: the line for each says it) with 1, 2, 4 and 8 workers for 300 s each, with a
//! reload every 7 s.

use std::time::Duration;

use crate::filter::{Steady, assert_sound, endpoints, nothing_in_flight};
use crate::support::{Client, Cluster, Envoy, EnvoyConfig, Route, Update, Upstream, run_alone};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Gauges that count what is in flight.
const GAUGES: [&str; 2] = ["haven_endpoint_in_flight", "haven_concurrency_in_flight"];

fn filter(upstreams: &[Upstream], version: u64) -> Value {
    let addrs: Vec<_> = upstreams.iter().map(|upstream| upstream.addr()).collect();
    json!({
        "service": format!("v{version}"),
        "concurrency_limits": {"three": {"algorithm": "fixed", "limit": 3}, "c": {"algorithm": "adaptive"}},
        "upstreams": {"users": {"endpoints": endpoints(&addrs), "concurrency_limit": "c"}},
        "routes": [
            {"name": "three", "match": {"prefix": "/three"}, "concurrency_limit": "three", "criticality": "critical_plus"},
            {"name": "other", "upstream": "users"},
        ],
    })
}

/// Traffic at about this rate for a time, scraped all the while.
async fn watch(rate: u32, workers: u32, seconds: u64, reloads: bool) {
    let upstreams = Upstream::start_many(3).await;
    let few = Upstream::start("few").await;
    few.set(|faults| faults.delay_ms = 40).await;
    for upstream in &upstreams {
        upstream.set(|faults| faults.delay_ms = 15).await;
    }
    let config = EnvoyConfig::empty()
        .lds()
        .concurrency(workers)
        .cluster(Cluster::new("users", upstreams.iter().map(|it| it.addr())))
        .cluster(Cluster::new("few", [few.addr()]).plain())
        .route(Route::to("/three", "few"))
        .route(Route::to("/", "users"))
        .haven(&filter(&upstreams, 0));
    let mut envoy = Envoy::start(config).await;
    let clients = if rate > 100 { 80 } else { 2 };
    let pause = Duration::from_secs(1) * clients / rate;
    let pause = pause.saturating_sub(Duration::from_millis(17));
    let clients = (0..clients).map(|_| Client::h1_fresh(envoy.addr()));
    let steady = Steady::start(clients, "/echo", pause);
    let four = (0..4).map(|_| Client::h1_fresh(envoy.addr()));
    let four = Steady::start(four, "/three", Duration::from_millis(70));
    let (mut looks, mut version, start) = (0, 0, Instant::now());
    while start.elapsed() < Duration::from_secs(seconds) {
        let metrics = envoy.metrics().await;
        for series in GAUGES.iter().flat_map(|name| metrics.matching(name, &[])) {
            // Below zero is close to 2^64 on this page.
            assert!(
                series.value < 100_000.0,
                "{series:?} after {:?}",
                start.elapsed()
            );
        }
        looks += 1;
        assert!(few.counters().max_in_flight <= 3, "{:?}", start.elapsed());
        if reloads && start.elapsed().as_secs() / 7 > version {
            version += 1;
            let update = envoy
                .update_filter_config(&filter(&upstreams, version))
                .await;
            assert!(matches!(update, Update::Applied), "{update:?}");
        }
        sleep(Duration::from_millis(100)).await;
    }
    let (tally, of_four) = (steady.stop().await, four.stop().await);
    println!(
        "{rate}/s, {workers} workers, {seconds} s, {version} reloads: {looks} looks, {} requests, {} of them refused",
        tally.total() + of_four.total(),
        of_four.count(503),
    );
    nothing_in_flight(&envoy).await;
    assert_sound(&mut envoy).await;
}

#[test]
fn no_count_is_ever_below_zero_and_no_limit_exceeded() {
    run_alone(async {
        let Ok(seconds) = std::env::var("HAVEN_IN_FLIGHT_SECONDS") else {
            return watch(30, 2, 24, false).await;
        };
        for (rate, workers) in [30, 3_000]
            .into_iter()
            .flat_map(|rate| [1, 2, 4, 8].map(|n| (rate, n)))
        {
            watch(rate, workers, seconds.parse().unwrap(), true).await;
        }
    });
}
