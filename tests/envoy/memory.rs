//! What a million clients cost, in a real Envoy with four workers; or as many as
//! `HAVEN_MEMORY_KEYS` says, for a table for `HAVEN_MEMORY_MAX_KEYS`.

use crate::filter::assert_sound;
use crate::support::{Envoy, EnvoyConfig, raw, run};
use serde_json::json;
use tokio::time::Instant;

/// What shared data may take for each slot, all told: 16 bytes, its part of the record's name and
/// header, and the map's entry around them.
const BYTES_OF_SLOT: u64 = 32;

/// What Envoy's own buffers and caches may come to meanwhile.
const NOISE: u64 = 4 << 20;

/// The number in an environment variable; without it, what `make test` has time for.
fn setting(variable: &str, usual: u64) -> u64 {
    let parse = |text: String| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text}: want a whole number"))
    };
    std::env::var(variable).map_or(usual, parse)
}

#[test]
fn a_million_clients_take_no_more_memory_than_the_table_is_for() {
    let (clients, max_keys) = (
        setting("HAVEN_MEMORY_KEYS", 1_000_000),
        setting("HAVEN_MEMORY_MAX_KEYS", 65_536),
    );
    // With three keys for each that it is for, hardly a slot of the table is free.
    let filling = 3 * max_keys;
    assert!(
        max_keys > 16 && filling < clients,
        "HAVEN_MEMORY_KEYS: want more than 3 times HAVEN_MEMORY_MAX_KEYS"
    );
    // Half as many again as asked for, in sets of 16.
    let slots = (max_keys + max_keys.div_ceil(2)).next_multiple_of(16);
    run(async {
        // Each key owes a token for long: none may be forgotten for free.
        let filter = json!({
            "rate_limits": {
                "per-client": {"limit": 1, "period": "1h", "burst": 2, "key": [{"header": "x-client"}], "max_keys": max_keys},
            },
            "routes": [{"name": "all", "rate_limits": ["per-client"]}],
        });
        let mut envoy = Envoy::start(EnvoyConfig::direct().haven(&filter)).await;
        // Buffers and connections that the load itself needs.
        flood(&envoy, 20_000, |_| {
            "GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()
        })
        .await;
        let client = |number: u64| {
            format!("GET / HTTP/1.1\r\nhost: x\r\nx-client: client-{number:08}\r\n\r\n")
        };
        let begun = Instant::now();
        let memory = async |clients: u64| {
            let (allocated, resident) = (envoy.memory_allocated().await, envoy.memory_resident());
            println!(
                "{clients} clients: {allocated} bytes allocated, {resident} resident, {:.0?}",
                begun.elapsed()
            );
            (allocated, resident)
        };
        println!(
            "max_keys {max_keys}: {slots} slots of 16 bytes, {} bytes",
            slots * 16
        );
        let empty = memory(0).await;
        flood(&envoy, max_keys, client).await;
        memory(max_keys).await;
        flood(&envoy, filling - max_keys, move |number| {
            client(max_keys + number)
        })
        .await;
        let filled = memory(filling).await;
        flood(&envoy, clients - filling, move |number| {
            client(filling + number)
        })
        .await;
        let after = memory(clients).await;

        let metrics = envoy.metrics().await;
        let (keys, evictions) = (
            metrics.total("haven_rate_limit_keys", &[]),
            metrics.total("haven_rate_limit_evictions_total", &[]),
        );
        println!("{keys} keys are tracked, {evictions} were forgotten");
        assert!(
            (max_keys as f64..=slots as f64).contains(&keys),
            "{keys} keys"
        );
        assert_eq!(
            keys + evictions,
            clients as f64,
            "a key that owed tokens is counted when it is forgotten"
        );
        assert_eq!(
            metrics.total("haven_decisions_total", &[]),
            0.0,
            "nobody has spent a whole burst"
        );
        let grown = filled.0.saturating_sub(empty.0);
        assert!(
            grown < slots * BYTES_OF_SLOT + NOISE,
            "{empty:?} -> {filled:?}"
        );
        assert!(
            after.0.saturating_sub(filled.0) < NOISE,
            "{filled:?} -> {after:?}"
        );
        assert!(
            after.1.saturating_sub(filled.1) < 2 * NOISE,
            "{filled:?} -> {after:?}"
        );
        assert_sound(&mut envoy).await;

        // The newest are known: each has two tokens, and no third.
        flood(&envoy, 1000, move |number| client(clients + number)).await;
        flood(&envoy, 1000, move |number| client(clients + number)).await;
        let tally = raw::flood(envoy.addr(), 16, 1000, move |number| {
            client(clients + number).into_bytes()
        })
        .await;
        assert_eq!(tally.count(429), 1000, "{tally:?}");
    });
}

/// Requests that all pass.
async fn flood(
    envoy: &Envoy,
    total: u64,
    request: impl Fn(u64) -> String + Clone + Send + Sync + 'static,
) {
    let tally = raw::flood(envoy.addr(), 16, total, move |number| {
        request(number).into_bytes()
    })
    .await;
    assert_eq!(tally.count(200), total, "{tally:?}");
}
