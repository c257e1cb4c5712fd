//! `"steer": "by_exception"`: the proxy's own choice, while it will do, and haven's where it will
//! not; and what endpoints are known to have done is right either way.

use super::balancing::{another, config};
use super::*;
use haven::base::rng::Rng;
use haven::policy::circuit_breaker::CircuitBreaker;
use haven::policy::circuit_breaker::window::Counts;
use std::collections::BTreeMap;

/// How outcomes are learnt.
const OUTCOMES: [&str; 2] = ["every", "by_exception"];

/// An upstream of so many endpoints, steered by exception.
fn steered(count: usize, outcomes: &str, extra: &Value) -> Value {
    let mut config = config(count, &json!({"steer": "by_exception"}));
    config["outcomes"] = json!(outcomes);
    merge(&mut config["upstreams"]["u"], extra);
    config
}

/// What an answer is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Good,
    Fails,
    /// The first try fails somewhere, the second answers.
    Retried,
    /// Its client goes while it is answered.
    Left,
}

/// A proxy whose Envoy draws the endpoint where haven does not say it.
struct Draws {
    proxy: Proxy,
    rng: Rng,
    outcomes: &'static str,
}

impl Draws {
    fn new(config: &Value, outcomes: &'static str) -> Self {
        Self::of(Proxy::new(config), config, outcomes)
    }

    /// One whose access log is known to report what fails, so that nothing else is read.
    fn of(proxy: Proxy, config: &Value, outcomes: &'static str) -> Self {
        let it = Self {
            proxy,
            rng: Rng::new(7),
            outcomes,
        };
        let count = config["upstreams"]["u"]["endpoints"]
            .as_array()
            .unwrap()
            .len();
        if outcomes == "by_exception" {
            it.send(count, &|_| Fate::Left);
            it.send(count, &|_| Fate::Retried);
            while it.send(count, &|_| Fate::Good).1 {}
        }
        it
    }

    /// Sends a request, whose endpoint decides how it ends. Who answered, and whether haven has
    /// said so.
    fn send(&self, count: usize, fate: &dyn Fn(usize) -> Fate) -> (usize, bool) {
        let stream = SimStream::request("GET", "/", &[]);
        let exchange = self.proxy.begin(&stream);
        let list = listed(&stream);
        let drawn = usize::try_from(self.rng.below(count as u64)).unwrap();
        let at = list.first().copied().unwrap_or(drawn);
        self.end(exchange, &stream, at, fate(at));
        (at, !list.is_empty())
    }

    /// Lets a request end, which this endpoint has.
    fn end(&self, mut exchange: Exchange, stream: &SimStream, at: usize, fate: Fate) {
        let host = &self.proxy.worker;
        let status = if fate == Fate::Fails { 503 } else { 200 };
        let tries = if fate == Fate::Retried { 2u64 } else { 1 };
        let flags = if fate == Fate::Left { 1u64 << 14 } else { 0 };
        let took: &[(&str, &[u8])] = &[("x-envoy-upstream-service-time", b"1")];
        stream.answer(status, Some(&address(at)), took);
        stream.set_property(Property::AttemptCount, &tries.to_le_bytes());
        stream.set_property(Property::ResponseFlags, &flags.to_le_bytes());
        if self.outcomes == "every" || status >= 500 {
            exchange.on_response(host, stream);
        }
        exchange.on_log(host, stream);
        if status >= 500 || tries != 1 || flags != 0 {
            exchange.on_report(host, stream);
        }
        exchange.on_delete(host, stream);
        if exchange.is_unsettled() {
            exchange.on_cut(host, stream);
        }
        exchange.on_end(host);
    }

    /// How many of so many requests are steered.
    fn steered(&self, requests: usize, count: usize) -> usize {
        let all = (0..requests).map(|_| self.send(count, &|_| Fate::Good));
        all.filter(|(_, steered)| *steered).count()
    }
}

fn address(number: usize) -> String {
    super::balancing::address(number)
}

/// The endpoints that haven has written, by number.
fn listed(stream: &SimStream) -> Vec<usize> {
    let Some(list) = stream.request_header("x-haven-upstream") else {
        return vec![];
    };
    let number = |it: &str| (0..1_000).find(|at| address(*at) == it).unwrap();
    list.split(',').map(number).collect()
}

#[test]
fn while_all_are_well_the_proxy_chooses() {
    for outcomes in OUTCOMES {
        for count in [1, 3, 20] {
            let it = Draws::new(&steered(count, outcomes, &json!({})), outcomes);
            assert_eq!(it.steered(500, count), 0, "{outcomes}, {count}");
            let gauges = it.proxy.machine.metrics_of("haven_endpoint_in_flight");
            assert!(gauges.iter().all(|(_, n)| *n == 0), "{gauges:?}");
            assert_eq!(it.proxy.log_lines(), [""; 0], "{outcomes}, {count}");
        }
    }
}

#[test]
fn a_clients_own_header_is_removed() {
    let it = Draws::new(&steered(3, "every", &json!({})), "every");
    let stream = SimStream::request("GET", "/", &[("x-haven-upstream", b"10.9.9.9:80")]);
    it.proxy.begin(&stream);
    assert_eq!(listed(&stream), [0; 0]);
}

#[test]
fn what_is_drained_is_steered_round_and_what_is_in_reserve_is_not() {
    let with = |last: &Value| {
        let mut config = steered(3, "every", &json!({}));
        merge(&mut config["upstreams"]["u"]["endpoints"][2], last);
        Draws::new(&config, "every")
    };
    let drained = with(&json!({"weight": 0}));
    for _ in 0..100 {
        let (at, steered) = drained.send(3, &|_| Fate::Good);
        assert!(steered && at != 2);
    }
    let reserve = with(&json!({"priority": 1}));
    for _ in 0..100 {
        let (_, steered) = reserve.send(2, &|_| Fate::Good);
        assert!(!steered);
    }
}

#[test]
fn a_dead_endpoint_is_steered_round_tried_and_comes_back_slowly() {
    for outcomes in OUTCOMES {
        let slow = json!({"load_balancer": {"slow_start": "10s"}});
        let it = Draws::new(&steered(3, outcomes, &slow), outcomes);
        let (mut failed, mut last) = (0, 0);
        for n in 0..400 {
            let (at, _) = it.send(3, &|at| if at == 1 { Fate::Fails } else { Fate::Good });
            if at == 1 {
                (failed, last) = (failed + 1, n);
            }
        }
        // The default breaker's three in a row, those in flight not counted.
        assert_eq!(failed, 3, "{outcomes}: the last is number {last}");
        assert!(last < 60, "{outcomes}: {last}");
        // Trials are few, and known: the first that is well closes the breaker.
        it.proxy.machine.advance(Nanos::from_millis(1_500));
        let tried: Vec<_> = (0..30).map(|_| it.send(3, &|_| Fate::Good)).collect();
        assert!(tried.iter().all(|(_, steered)| *steered), "{tried:?}");
        assert!(tried.iter().any(|(at, _)| *at == 1), "{tried:?}");
        let opened = "haven_circuit_breaker_transitions_total;circuit_breaker=u/outlier;to=";
        let changes = |to| it.proxy.machine.metric(&[opened, to].concat());
        assert_eq!([changes("open"), changes("closed")], [1, 1], "{outcomes}");
        // While it ramps it gets less than its part.
        let ramping: Vec<_> = (0..300).map(|_| it.send(3, &|_| Fate::Good)).collect();
        assert!(ramping.iter().all(|(_, steered)| *steered), "{outcomes}");
        let to_it = ramping.iter().filter(|(at, _)| *at == 1).count();
        assert!(to_it < 60, "{outcomes}: {to_it} of 300");
        it.proxy.machine.advance(Nanos::from_secs(11));
        assert_eq!(it.steered(200, 3), 0, "{outcomes}");
    }
}

#[test]
fn what_began_before_an_endpoint_was_out_is_no_trial() {
    for outcomes in OUTCOMES {
        let it = Draws::new(&steered(3, outcomes, &json!({})), outcomes);
        let old: Vec<_> = (0..200)
            .map(|_| {
                let stream = SimStream::request("GET", "/", &[]);
                (it.proxy.begin(&stream), stream)
            })
            .collect();
        it.proxy.machine.advance(Nanos::from_millis(1));
        while it.proxy.machine.metrics_of("haven_circuit_breaker_state")[1].1 == 0 {
            it.send(3, &|at| if at == 1 { Fate::Fails } else { Fate::Good });
        }
        // The worker learns of it.
        assert_ne!(it.send(3, &|_| Fate::Good).0, 1);
        it.proxy.machine.advance(Nanos::from_millis(1_500));
        for (exchange, stream) in old {
            it.end(exchange, &stream, 1, Fate::Good);
        }
        let states = it.proxy.machine.metrics_of("haven_circuit_breaker_state");
        assert_ne!(states[1].1, 0, "{outcomes}: {states:?}");
    }
}

#[test]
fn after_a_retry_the_next_requests_show_who_fails() {
    for outcomes in OUTCOMES {
        let mut config = steered(3, outcomes, &json!({}));
        config["routes"][0]["retry"] =
            json!({"attempts": 1, "budget": 100, "min_per_second": 1_000});
        let it = Draws::new(&config, outcomes);
        assert_eq!(it.steered(50, 3), 0);
        while it.send(3, &|_| Fate::Retried).1 {}
        // Eight for each endpoint, and then no more.
        let next: Vec<_> = (0..30).map(|_| it.send(3, &|_| Fate::Good).1).collect();
        assert_eq!(next.iter().filter(|it| **it).count(), 24, "{outcomes}");
        assert!(next[..24].iter().all(|it| *it), "{outcomes}");
    }
}

/// Of the first failure only a good answer at the second try is seen.
#[test]
fn an_endpoint_whose_failures_are_all_retried_is_found_one_failure_later() {
    for outcomes in OUTCOMES {
        let mut config = steered(3, outcomes, &json!({}));
        config["routes"][0]["retry"] =
            json!({"attempts": 1, "budget": 100, "min_per_second": 1_000});
        let it = Draws::new(&config, outcomes);
        let is_out = || it.proxy.machine.metrics_of("haven_circuit_breaker_state")[1].1 != 0;
        let mut failed = 0;
        while !is_out() {
            let stream = SimStream::request("GET", "/", &[]);
            let exchange = it.proxy.begin(&stream);
            let list = listed(&stream);
            let drawn = usize::try_from(it.rng.below(3)).unwrap();
            if *list.first().unwrap_or(&drawn) == 1 {
                failed += 1;
                let next = *list.get(1).unwrap_or(&0);
                it.end(exchange, &stream, next, Fate::Retried);
            } else {
                it.end(
                    exchange,
                    &stream,
                    *list.first().unwrap_or(&drawn),
                    Fate::Good,
                );
            }
        }
        assert_eq!(failed, 1 + 3, "{outcomes}");
    }
}

/// Breakers that count each call, and never open.
fn counting(count: usize, outcomes: &str) -> Value {
    let counts = json!({"window": {"type": "count", "size": 1000}, "minimum_calls": 1000});
    let mut config = steered(count, outcomes, &json!({"circuit_breaker": "ep"}));
    config["circuit_breakers"]["ep"] = counts;
    config
}

fn counted(proxy: &Proxy, at: usize) -> Counts {
    let breaker = CircuitBreaker::new("ep", &["endpoint", "u", &address(at)], "");
    breaker.peek(&proxy.worker).window.sum()
}

/// One endpoint fails now and then, and its peers do not: then all of its failures count.
#[test]
fn rates_of_failure_are_right() {
    for outcomes in OUTCOMES {
        for seed in 0..8 {
            let it = Draws::new(&counting(3, outcomes), outcomes);
            let rng = Rng::new(seed);
            let chances = [0, rng.below(60), 0];
            let mut sums = [(0.0, 0.0); 3];
            for n in 0..9_000 {
                it.send(3, &|at| match rng.below(200) < chances[at] {
                    true => Fate::Fails,
                    false => Fate::Good,
                });
                it.proxy.machine.advance(Nanos::from_millis(1));
                if n % 500 == 499 {
                    for (at, sum) in sums.iter_mut().enumerate() {
                        let seen = counted(&it.proxy, at);
                        *sum = (
                            sum.0 + f64::from(seen.failures),
                            sum.1 + f64::from(seen.calls),
                        );
                    }
                }
            }
            for (at, (failures, calls)) in sums.into_iter().enumerate() {
                let (rate, chance) = (failures / calls, chances[at] as f64 / 200.0);
                let wrong = (rate - chance).abs();
                assert!(
                    wrong < 0.012 + chance * 0.35,
                    "{outcomes}, {seed}, {at}: {rate} for {chance}"
                );
            }
        }
    }
}

/// What fails now and then does so rarely three times in a row.
#[test]
fn failures_that_are_not_in_a_row_open_nothing() {
    for outcomes in OUTCOMES {
        let it = Draws::new(&steered(3, outcomes, &json!({})), outcomes);
        let rng = Rng::new(3);
        for _ in 0..20_000 {
            it.send(3, &|at| match at == 1 && rng.below(50) == 0 {
                true => Fate::Fails,
                false => Fate::Good,
            });
            it.proxy.machine.advance(Nanos::from_millis(1));
        }
        let opened = it
            .proxy
            .machine
            .metric("haven_circuit_breaker_transitions_total;circuit_breaker=u/outlier;to=open");
        // Of some 130 failures: all read, 0.05 times on average.
        assert!(opened <= 1, "{outcomes}: {opened}");
    }
}

#[test]
fn all_workers_steer_a_millisecond_later() {
    for outcomes in OUTCOMES {
        let config = steered(3, outcomes, &json!({"circuit_breaker": "ep"}));
        let one = Draws::new(&config, outcomes);
        let other = Draws::of(another(&one.proxy, &config), &config, outcomes);
        assert_eq!(other.steered(100, 3), 0);
        while one.send(3, &|_| Fate::Fails).0 != 1 {}
        one.proxy.machine.advance(VERSION_HOLDS);
        let (at, steered) = other.send(3, &|_| Fate::Good);
        assert!(steered && at != 1, "{outcomes}: {at}");
    }
}

/// Whatever the proxy has in flight where haven does not know it: what is steered is spread evenly,
/// and goes to nobody that is out.
#[test]
fn the_first_steered_requests_are_spread_evenly() {
    for seed in 0..20 {
        let rng = Rng::new(seed);
        let count = 3 + usize::try_from(rng.below(5)).unwrap();
        let config = steered(count, "every", &json!({"circuit_breaker": "ep"}));
        let it = Draws::new(&config, "every");
        let hidden: Vec<_> = (0..rng.below(100))
            .map(|_| {
                let stream = SimStream::request("GET", "/", &[]);
                let exchange = it.proxy.begin(&stream);
                assert_eq!(listed(&stream), [0; 0]);
                (
                    exchange,
                    stream,
                    usize::try_from(rng.below(count as u64)).unwrap(),
                )
            })
            .collect();
        let (out, _) = it.send(count, &|_| Fate::Fails);
        let mut held = BTreeMap::<usize, u32>::new();
        let mut kept = Vec::new();
        for _ in 0..(count - 1) * 10 {
            let stream = SimStream::request("GET", "/", &[]);
            kept.push(it.proxy.begin(&stream));
            *held.entry(listed(&stream)[0]).or_default() += 1;
        }
        assert!(!held.contains_key(&out), "{seed}: {held:?}, {out} is out");
        assert!(
            held.len() == count - 1 && held.values().all(|n| (9..=11).contains(n)),
            "{seed}: {held:?}"
        );
        for (exchange, stream, at) in hidden {
            it.end(exchange, &stream, at, Fate::Good);
        }
        kept.iter_mut().for_each(|it_| it_.on_end(&it.proxy.worker));
        it.proxy.engine.close(&it.proxy.worker);
        let gauges = it.proxy.machine.metrics_of("haven_endpoint_in_flight");
        assert!(gauges.iter().all(|(_, n)| *n == 0), "{gauges:?}");
    }
}

#[test]
fn an_endpoint_that_only_the_proxy_knows_ends_its_freedom() {
    for outcomes in OUTCOMES {
        let it = Draws::new(&steered(2, outcomes, &json!({})), outcomes);
        // A third one, of Envoy's own.
        let steered = (0..400).filter(|_| it.send(3, &|_| Fate::Good).1).count();
        assert!(steered > 200, "{outcomes}: {steered}");
        assert_eq!(it.steered(50, 2), 50);
        let lines = it.proxy.log_lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let third = address(2);
        assert!(lines[0].contains(&third), "{lines:?}");
        assert!(it.proxy.machine.metric("haven_not_followed_total;route=r") > 0);
    }
}

#[test]
fn a_failure_of_a_sampled_answer_counts_once() {
    let it = Draws::new(&counting(1, "every"), "every");
    for _ in 0..300 {
        let stream = SimStream::request("GET", "/", &[]);
        let mut exchange = it.proxy.begin(&stream);
        let took: &[(&str, &[u8])] = &[("x-envoy-upstream-service-time", b"1")];
        stream.answer(200, Some(&address(0)), took);
        let host = &it.proxy.worker;
        exchange.on_response_headers(host, &stream, false);
        let cut = b"upstream_reset_after_response_started{connection_termination}";
        stream.set_property(Property::ResponseCodeDetails, cut);
        stream.set_property(Property::ResponseFlags, &(1u64 << 6).to_le_bytes());
        exchange.on_delete(host, &stream);
        exchange.on_cut(host, &stream);
        exchange.on_end(host);
    }
    let Counts {
        calls, failures, ..
    } = counted(&it.proxy, 0);
    assert_eq!([calls, failures], [300, 300]);
}
