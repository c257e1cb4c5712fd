//! What the proxy did with what haven asked it for: read where it can be, counted and told where it
//! is something else, and blamed on nobody.

use super::*;

const THREE: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];

fn three(override_: &Value) -> Value {
    let endpoints: Vec<_> = THREE.iter().map(|it| json!({"address": it})).collect();
    upstream(&json!({
        "upstreams": {"u": {"endpoints": endpoints, "override": override_}},
        "circuit_breakers": {"ep": {"consecutive_failures": 1, "open_duration": "1h"}}}))
}

impl Proxy {
    /// A request that this one of the list answers, after so many tries.
    fn answered_by(&self, from: usize, attempts: u64, status: u16) -> SimStream {
        let stream = SimStream::request("GET", "/api", &[]);
        let mut exchange = self.begin(&stream);
        let list = stream.request_header("x-haven-upstream").unwrap();
        let count = attempts.to_string();
        stream.answer(
            status,
            list.split(',').nth(from),
            &[
                ("x-envoy-attempt-count", count.as_bytes()),
                ("x-envoy-upstream-service-time", b"1"),
            ],
        );
        stream.set_property(Property::AttemptCount, &attempts.to_le_bytes());
        exchange.on_response(&self.worker, &stream);
        exchange.on_end(&self.worker);
        stream
    }

    fn open(&self) -> u64 {
        let states = self
            .machine
            .metrics_of("haven_circuit_breaker_state;circuit_breaker=ep");
        states.iter().filter(|(_, state)| *state == 1).count() as u64
    }

    fn not_followed(&self) -> u64 {
        self.machine.metric("haven_not_followed_total;route=r")
    }

    fn retries(&self) -> u64 {
        self.machine.metric("haven_retries_total;route=r")
    }
}

#[test]
fn a_cluster_that_picks_by_itself_fails_nobody() {
    let proxy = Proxy::new(&three(&json!({})));
    (0..300).for_each(|n| drop(proxy.answered_by(n % 3, 1, 200)));
    assert_eq!(
        (proxy.open(), proxy.retries(), proxy.not_followed()),
        (0, 0, 200)
    );
    let lines = proxy.log_lines();
    assert_eq!(lines.len(), 1, "told once: {lines:?}");
    assert!(lines[0].starts_with("route r: 10.0.0."), "{lines:?}");
    assert!(lines[0].contains("override_host"), "{lines:?}");
    // Whoever fails is to blame all the same, and nobody else.
    proxy.answered_by(1, 1, 500);
    assert_eq!(proxy.open(), 1);
}

#[test]
fn the_proxys_own_count_does_not_hide_it() {
    let proxy = Proxy::new(&three(&json!({"attempt_count": true})));
    (0..300).for_each(|n| drop(proxy.answered_by(n % 3, 1, 200)));
    assert_eq!((proxy.open(), proxy.retries()), (0, 0));
    assert!(
        (1..=5).contains(&proxy.not_followed()),
        "a look at one in 64: {}",
        proxy.not_followed()
    );
}

#[test]
fn a_trial_is_not_passed_by_another() {
    let mut config = three(&json!({"attempt_count": true}));
    config["circuit_breakers"]["ep"]["open_duration"] = json!("1s");
    let proxy = Proxy::new(&config);
    proxy.answered_by(0, 1, 500);
    assert_eq!(proxy.open(), 1);
    proxy.machine.advance(Nanos::from_secs(2));
    // Its trial is answered by another: nothing is known of it, and another call tries it.
    for _ in 0..20 {
        proxy.answered_by(1, 1, 200);
    }
    let closed = "haven_circuit_breaker_transitions_total;circuit_breaker=ep;to=closed";
    assert_eq!(proxy.machine.metric(closed), 0);
    assert!(proxy.not_followed() > 0);
    for _ in 0..20 {
        proxy.answered_by(0, 1, 200);
    }
    assert_eq!(proxy.machine.metric(closed), 1);
}

#[test]
fn tries_are_counted_as_the_proxy_counts_them() {
    // With a hedged try the first answers although there were two.
    let proxy = Proxy::new(&three(&json!({"attempt_count": true})));
    proxy.answered_by(0, 2, 200);
    assert_eq!(
        (proxy.retries(), proxy.open(), proxy.not_followed()),
        (1, 0, 0)
    );
    // Real retries are as before.
    proxy.answered_by(1, 2, 200);
    assert_eq!(
        (proxy.retries(), proxy.open(), proxy.not_followed()),
        (2, 1, 0)
    );
}

#[test]
fn a_canary_that_went_elsewhere_is_not_judged_by_it() {
    let config = json!({
        "upstreams": {
            "v1": {"cluster": "one", "endpoints": [{"address": "10.0.0.1:80"}]},
            "v2": {"cluster": "two", "endpoints": [{"address": "10.0.1.1:80"}], "circuit_breaker": "ep"}},
        "circuit_breakers": {"ep": {"consecutive_failures": 1, "open_duration": "1h"}},
        "fallbacks": {"f": {"on": ["switched_off"], "steps": [{"cluster": "spare"}]}},
        "switches": {"s": "off"},
        "routes": [
            {"name": "r", "match": {"prefix": "/api"}, "upstream": "v1", "canary": {"upstream": "v2", "percent": 100}},
            {"name": "off", "upstream": "v1", "switch": "s", "fallback": "f"}]});
    let proxy = Proxy::new(&config);
    let send = |path: &str, cluster: &[u8], status| {
        let stream = SimStream::request("GET", path, &[]);
        let mut exchange = proxy.begin(&stream);
        assert!(stream.replied().is_none());
        let address = if cluster == b"two" {
            "10.0.1.1:80"
        } else {
            "10.0.0.1:80"
        };
        stream.answer(status, Some(address), &[]);
        stream.set_property(Property::ClusterName, cluster);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
    };
    (0..20).for_each(|_| send("/api", b"one", 500));
    assert_eq!((proxy.not_followed(), proxy.open()), (20, 0));
    assert!(
        proxy.machine.logs().iter().any(|(_, line)| line
            .contains("route r: one answered where two was asked for")
            && line.contains("cluster_header")),
        "{:?}",
        proxy.machine.logs()
    );
    send("/other", b"one", 200);
    assert_eq!(
        proxy.machine.metric("haven_not_followed_total;route=off"),
        1,
        "a fallback's cluster"
    );
    send("/other", b"spare", 200);
    send("/api", b"two", 200);
    assert_eq!(
        (
            proxy.not_followed(),
            proxy.machine.metric("haven_not_followed_total;route=off")
        ),
        (20, 1)
    );
    assert_eq!(
        proxy
            .machine
            .metrics_of("haven_concurrency_in_flight")
            .len(),
        0
    );
    assert!(
        proxy
            .machine
            .metrics_of("haven_endpoint_in_flight")
            .iter()
            .all(|(_, n)| *n == 0)
    );
}
