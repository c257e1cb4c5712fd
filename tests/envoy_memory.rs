//! What a million clients cost, in a real Envoy with four workers.

#![cfg(not(target_arch = "wasm32"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "test code: a failed assumption is to end the test at once; clippy only sees that in functions marked #[test]"
)]

#[path = "support/haven.rs"]
mod haven;
mod support;

use haven::assert_sound;
use serde_json::json;
use support::{Envoy, EnvoyConfig, raw, run};
use tokio::time::Instant;

const MIB: u64 = 1 << 20;

/// Slots of a table for 65,536 keys: half as many again, in sets of 16.
const SLOTS: u64 = 98_304;

#[test]
fn a_million_clients_take_no_more_memory_than_the_table_is_for() {
    run(async {
        // Each key owes a token for long: none may be forgotten for free.
        let filter = json!({
            "rate_limits": {
                "per-client": {"limit": 1, "period": "1h", "burst": 2, "key": [{"header": "x-client"}], "max_keys": 65536},
            },
            "routes": [{"name": "all", "rate_limits": ["per-client"]}],
        });
        let mut envoy = Envoy::start(EnvoyConfig::direct().haven(&filter)).await;
        // Buffers and connections that the load itself needs.
        flood(&envoy, 20_000, |_| "GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()).await;
        let client = |number: u64| format!("GET / HTTP/1.1\r\nhost: x\r\nx-client: client-{number:08}\r\n\r\n");
        let memory = async |what: &str| {
            let both = (envoy.memory_allocated().await, envoy.memory_resident());
            println!("{what}: {} MiB allocated, {} MiB resident", both.0 / MIB, both.1 / MIB);
            both
        };
        let begun = Instant::now();
        let empty = memory("no client").await;
        flood(&envoy, 100_000, client).await;
        let some = memory("100,000 clients").await;
        flood(&envoy, 900_000, move |number| client(100_000 + number)).await;
        let full = memory("1,000,000 clients").await;
        println!("{:?}", begun.elapsed());

        let metrics = envoy.metrics().await;
        let (keys, evictions) =
            (metrics.total("haven_rate_limit_keys", &[]), metrics.total("haven_rate_limit_evictions_total", &[]));
        assert!((65_536.0..=SLOTS as f64).contains(&keys), "{keys} keys");
        assert_eq!(keys + evictions, 1_000_000.0, "a key that owed tokens is counted when it is forgotten");
        assert_eq!(metrics.total("haven_decisions_total", &[]), 0.0, "nobody has spent a whole burst");
        // 16 bytes a slot, and what a map's entries cost around them.
        assert!(some.0.saturating_sub(empty.0) < 16 * MIB, "{empty:?} -> {some:?}");
        assert!(full.0.saturating_sub(some.0) < 4 * MIB, "{some:?} -> {full:?}");
        assert!(full.1.saturating_sub(some.1) < 8 * MIB, "{some:?} -> {full:?}");
        assert_sound(&mut envoy).await;

        // The newest are known: each has two tokens, and no third.
        flood(&envoy, 1000, move |number| client(1_000_000 + number)).await;
        flood(&envoy, 1000, move |number| client(1_000_000 + number)).await;
        let tally = raw::flood(envoy.addr(), 16, 1000, move |number| client(1_000_000 + number).into_bytes()).await;
        assert_eq!(tally.count(429), 1000, "{tally:?}");
    });
}

/// Requests that all pass.
async fn flood(envoy: &Envoy, total: u64, request: impl Fn(u64) -> String + Clone + Send + Sync + 'static) {
    let tally = raw::flood(envoy.addr(), 16, total, move |number| request(number).into_bytes()).await;
    assert_eq!(tally.count(200), total, "{tally:?}");
}
