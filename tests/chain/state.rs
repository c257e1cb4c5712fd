//! Two configurations in one proxy: they share nothing by accident, and what they want to share.

use haven::engine::Engine;
use haven::engine::chain::Exchange;
use haven::host::scoped::Scoped;
use haven::host::sim::{HostKind, Machine, SimStream, Worker};
use serde_json::{Value, json};
use std::rc::Rc;

/// A configuration under this name.
struct Filter {
    host: Scoped<Worker>,
    engine: Rc<Engine>,
}

impl Filter {
    fn new(machine: &Rc<Machine>, state: &str, config: &Value) -> Self {
        let host = Scoped::new(Worker(Rc::clone(machine)), state);
        let config = haven::document::parse(config.to_string().as_bytes()).unwrap();
        let engine = Rc::new(Engine::new(config, &host).unwrap());
        Self { host, engine }
    }

    fn begin(&self) -> (SimStream, Exchange) {
        let stream = SimStream::request("GET", "/", &[]);
        let mut exchange = Exchange::new(Rc::clone(&self.engine));
        exchange.on_request(&self.host, &stream);
        (stream, exchange)
    }

    /// The status of an answer; an upstream that is reached answers with this.
    fn ask(&self, status: u16) -> u16 {
        let (stream, mut exchange) = self.begin();
        if stream.replied().is_none() {
            stream.answer(status, Some("10.0.0.1:80"), &[]);
            exchange.on_response(&self.host, &stream);
        }
        exchange.on_end(&self.host);
        stream.replied().map_or(status, |reply| reply.status)
    }
}

/// Filters of these names in one proxy.
fn filters<const N: usize>(names: [&str; N], config: &Value) -> (Rc<Machine>, [Filter; N]) {
    let machine = Machine::new(HostKind::Envoy, 7);
    let filters = names.map(|name| Filter::new(&machine, name, config));
    (machine, filters)
}

#[test]
fn a_bucket_is_ones_own_unless_the_name_is_shared() {
    let config = json!({
        "rate_limits": {"l": {"limit": 1, "period": "1h"}},
        "routes": [{"name": "r", "rate_limits": ["l"]}]});
    let (_, [haven, a, b, too]) = filters(["", "a", "b", "a"], &config);
    for filter in [&haven, &a, &b] {
        assert_eq!([filter.ask(200), filter.ask(200)], [200, 429]);
    }
    assert_eq!(too.ask(200), 429, "the same name");
}

#[test]
fn a_breaker_is_ones_own_with_its_gauges() {
    let config = json!({
        "circuit_breakers": {"b": {"consecutive_failures": 2}},
        "routes": [{"name": "r", "circuit_breaker": "b"}]});
    let (machine, [a, b, too]) = filters(["haven", "b", "haven"], &config);
    (0..2).for_each(|_| assert_eq!(a.ask(500), 500));
    assert_eq!([a.ask(200), b.ask(200), too.ask(200)], [503, 200, 503]);
    let state = |label: &str| {
        machine.metric(&format!(
            "haven_circuit_breaker_state;circuit_breaker=b;key=r{label}"
        ))
    };
    assert_eq!([state(""), state(";state=b")], [1, 0]);
}

#[test]
fn places_in_flight_are_ones_own() {
    let config = json!({
        "concurrency_limits": {"c": {"algorithm": "fixed", "limit": 1}},
        "routes": [{"name": "r", "concurrency_limit": "c"}]});
    let (machine, [a, b]) = filters(["a", "b; odd=1"], &config);
    let (_, mut held) = a.begin();
    assert_eq!([a.ask(200), b.ask(200)], [503, 200]);
    let in_flight = |label: &str| {
        machine.metric(&format!(
            "haven_concurrency_in_flight;policy=c;key=r;state={label}"
        ))
    };
    assert_eq!([in_flight("a"), in_flight("b__odd_1")], [1, 0]);
    held.on_end(&a.host);
    assert_eq!(in_flight("a"), 0);
}
