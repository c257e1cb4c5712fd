//! The module as it is shipped, in a proxy that is as strict as nginx: two workers over one store.
//! A call that would end a worker there ends the test. The same module runs as in Envoy beside it.
#![cfg(not(target_arch = "wasm32"))]

mod strict;

use haven::base::rng::Rng;
use haven::host::HostKind;
use serde_json::{Value, json};
use strict::{Exchange, Guest, Open, Proxy};

/// The portable module: that of `HAVEN_PORTABLE`, else `dist/haven-portable.wasm`.
fn portable() -> Vec<u8> {
    module("HAVEN_PORTABLE", "dist/haven-portable.wasm")
}

fn module(variable: &str, usual: &str) -> Vec<u8> {
    let path = std::env::var(variable).unwrap_or_else(|_| usual.to_owned());
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; make wasm builds it"))
}

/// What works on nginx, all at once.
fn config() -> Value {
    json!({
        "health": {"grpc": false},
        "rate_limits": {
            "users": {"limit": 5, "period": "1h", "key": [{"header": "x-user"}], "headers": "both"},
            "all": {"limit": 1000, "period": "1s", "algorithm": "sliding_window"},
            "calls": {"limit": 100, "period": "1m", "algorithm": "fixed_window"},
        },
        "circuit_breakers": {
            "b": {"minimum_calls": 5, "window": {"type": "time", "size": "10s"},
                  "consecutive_failures": 4},
        },
        "concurrency_limits": {
            "few": {"algorithm": "fixed", "limit": 4},
            "found": {"fair": [{"header": "x-user"}]},
        },
        "fallbacks": {
            "f": {"on": ["overload", "circuit_open", "no_endpoint", "switched_off"],
                  "steps": [{"respond": {"status": 200, "body": "later"}}]},
        },
        "switches": {"s": "off"},
        "upstreams": {
            "service": {
                "endpoints": [{"address": "192.0.2.7:80"}, {"address": "192.0.2.8:80"}],
                "health_check": {"interval": "1s", "jitter": 0},
                "load_balancer": {"policy": "peak_ewma"},
                "load_report": "orca",
                "concurrency_limit": "found",
            },
            "canary": {"endpoints": [{"address": "192.0.2.9:80"}]},
        },
        "routes": [
            {"name": "off", "match": {"prefix": "/off"}, "switch": "s", "fallback": "f"},
            {"name": "users", "match": {"prefix": "/users"}, "rate_limits": ["users"]},
            {"name": "few", "match": {"prefix": "/few"}, "concurrency_limit": "few"},
            {"name": "host", "match": {"hosts": ["shop.example"]}, "rate_limits": ["calls"],
             "circuit_breaker": "b"},
            {"name": "rest", "upstream": "service", "rate_limits": ["all"], "fallback": "f",
             "timeout": {"deadline_header": "x-left", "reject_below": "10ms"},
             "canary": {"upstream": "canary", "percent": 20, "sticky": [{"header": "x-user"}],
                        "color_header": "x-color"}},
        ],
    })
}

fn proxy(kind: HostKind, config: &Value) -> (Proxy, [Guest; 2]) {
    let mut proxy = Proxy::new(kind, &portable());
    let text = config.to_string();
    let workers = [(); 2].map(|()| proxy.worker(&text).unwrap());
    (proxy, workers)
}

fn get<'a>(path: &'a str, more: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, &'a [u8])> {
    let mut headers: Vec<(&str, &[u8])> = vec![
        (":path", path.as_bytes()),
        (":method", b"GET"),
        (":scheme", b"http"),
        (":authority", b"server.name:80"),
        ("host", b"api.example"),
    ];
    headers.extend(more);
    headers
}

fn status(open: &Open) -> Option<u32> {
    open.exchange.reply.as_ref().map(|reply| reply.0)
}

/// A request that is answered with this status if haven lets it pass; what the client gets.
fn ask(worker: &mut Guest, headers: &[(&str, &[u8])], answer: u16) -> (u32, Exchange) {
    let mut open = worker.request(headers, false);
    let status = status(&open).unwrap_or(answer.into());
    worker.answer(&mut open, answer, 1, false);
    (status, worker.end(open))
}

#[test]
fn nginx_is_known_by_what_it_does_and_said_once() {
    let leaky = json!({
        "rate_limits": {"l": {"limit": 1, "algorithm": "leaky_bucket"}},
        "routes": [{"name": "r", "rate_limits": ["l"]}],
    });
    let mut nginx = Proxy::new(HostKind::Nginx, &portable());
    let refused = nginx.worker(&leaky.to_string()).err().unwrap();
    assert!(
        refused.contains("rate_limits.l.algorithm: \"leaky_bucket\""),
        "{refused}"
    );
    assert!(
        refused.contains("nginx resumes none from a timer"),
        "{refused}"
    );
    assert!(refused.contains("health.grpc: true"), "{refused}");
    let mut envoy = Proxy::new(HostKind::Envoy, &portable());
    envoy.worker(&leaky.to_string()).unwrap();
    let said = |proxy: &Proxy| {
        let shared = proxy.shared.borrow();
        let said = shared
            .log
            .iter()
            .filter(|(_, line)| line.contains("docs/hosts.md"));
        said.map(|(level, _)| *level).collect::<Vec<_>>()
    };
    assert!(said(&envoy).is_empty());
    let (nginx, _workers) = proxy(HostKind::Nginx, &config());
    assert_eq!(said(&nginx), [3], "one warning for two workers");
}

#[test]
fn the_module_for_envoy_says_on_nginx_which_one_to_load() {
    let module = module("HAVEN_WASM", "dist/haven.wasm");
    let refused = Proxy::new(HostKind::Nginx, &module).worker("{}").err();
    assert!(refused.is_some_and(|it| it.contains("nginx needs haven-portable.wasm")));
    Proxy::new(HostKind::Envoy, &module).worker("{}").unwrap();
}

#[test]
fn limits_are_of_all_workers() {
    for kind in [HostKind::Envoy, HostKind::Nginx] {
        let (proxy, mut workers) = proxy(kind, &config());
        let passed = (0..20).filter(|turn| {
            let headers = get("/users/1", &[("x-user", b"a")]);
            ask(&mut workers[turn % 2], &headers, 200).0 == 200
        });
        assert_eq!(passed.count(), 5, "{kind:?}");
        // Four places, for both together.
        let mut open: Vec<_> = (0..6)
            .map(|turn| workers[turn % 2].request(&get("/few", &[]), true))
            .collect();
        let refused: Vec<_> = open.iter().filter_map(status).collect();
        assert_eq!(refused, [503, 503], "{kind:?}");
        for (turn, mut it) in open.drain(..).enumerate() {
            if turn % 3 > 0 {
                workers[turn % 2].answer(&mut it, 200, 2, turn == 1);
            }
            workers[turn % 2].end(it);
        }
        workers.iter_mut().for_each(Guest::tick);
        for (name, number) in proxy.metrics("haven_concurrency_in_flight") {
            assert_eq!(number, 0, "{kind:?} {name}");
        }
        // The host is what the client has asked for, and failures there open the breaker for all.
        let shop = |worker: &mut Guest, answer| {
            let mut headers = get("/", &[]);
            headers[4].1 = b"shop.example";
            if kind == HostKind::Envoy {
                headers[3].1 = b"shop.example";
            }
            ask(worker, &headers, answer).0
        };
        for turn in 0..4 {
            assert_eq!(shop(&mut workers[turn % 2], 500), 500);
        }
        proxy.advance(1_000);
        assert_eq!(
            [0, 1].map(|at| shop(&mut workers[at], 200)),
            [503, 503],
            "{kind:?}"
        );
    }
}

#[test]
fn an_upstream_gets_no_header_of_a_client_that_only_haven_may_set() {
    let (_proxy, mut workers) = proxy(HostKind::Nginx, &config());
    let reserved = [
        "x-haven-upstream",
        "x-haven-cluster",
        "x-color",
        "x-envoy-retry-on",
    ];
    for name in reserved {
        let (status, it) = ask(&mut workers[0], &get("/", &[(name, b"evil")]), 200);
        assert_eq!(status, 200);
        assert!(
            !it.sent_on(name).concat().contains("evil"),
            "{name}: {:?}",
            it.sent_on(name)
        );
        let twice = get("/", &[(name, b"evil"), ("x-other", b"1"), (name, b"evil")]);
        assert_eq!(ask(&mut workers[1], &twice, 200).0, 400, "{name}");
    }
    // What haven sets is there, once.
    let (_, it) = ask(
        &mut workers[0],
        &get("/", &[("x-haven-upstream", b"evil")]),
        200,
    );
    let [list] = &it.sent_on("x-haven-upstream")[..] else {
        panic!("{it:?}");
    };
    assert!(list.starts_with("192.0.2."), "{list}");
    // What counts as one value is one.
    let twice = get("/users/1", &[("x-user", b"a"), ("x-user", b"b")]);
    assert_eq!(ask(&mut workers[0], &twice, 200).0, 400);
    let many: Vec<_> = (0..100).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b"1"[..])).collect();
    assert_eq!(ask(&mut workers[0], &get("/", &many[..94]), 200).0, 200);
    assert_eq!(ask(&mut workers[0], &get("/", &many), 200).0, 431);
    // An upstream's claims do not reach a client.
    assert_eq!(it.answered("x-haven-own"), None);
}

#[test]
fn a_grpc_call_is_refused_as_grpc_knows_it() {
    let (_proxy, mut workers) = proxy(HostKind::Nginx, &config());
    let grpc: &[(&str, &[u8])] = &[("content-type", b"application/grpc"), ("x-user", b"g")];
    let mut last = None;
    for turn in 0..6 {
        let open = workers[turn % 2].request(&get("/users/1", grpc), false);
        last = workers[turn % 2].end(open).reply;
    }
    let (status, headers, body) = last.unwrap();
    assert_eq!((status, headers.get("grpc-status")), (200, Some(&b"8"[..])));
    assert_eq!(headers.get("content-type"), Some(&b"application/grpc"[..]));
    assert!(headers.get("grpc-message").is_some_and(|it| !it.is_empty()) && body.is_empty());
}

#[test]
fn checks_go_to_addresses_and_take_out_what_fails() {
    let (proxy, mut workers) = proxy(HostKind::Nginx, &config());
    assert_eq!(workers[0].tick_period(), 100, "one period for all");
    for _ in 0..100 {
        for at in [0, 1] {
            workers[at].tick();
            let Some(to) = workers[at].called() else {
                continue;
            };
            let ends = [".7:80", ".8:80"].map(|end| to.ends_with(end));
            assert!(ends[0] || ends[1], "{to}");
            workers[at].answer_call(Some(if ends[0] { 503 } else { 200 }));
        }
        proxy.advance(100);
    }
    for at in [0, 1] {
        for _ in 0..10 {
            let (_, it) = ask(&mut workers[at], &get("/", &[("x-user", b"z")]), 200);
            let list = it.sent_on("x-haven-upstream").concat();
            assert!(!list.starts_with("192.0.2.7"), "{list}");
        }
    }
}

/// Anything, in any order: no worker ends, and nothing stays in flight.
#[test]
fn no_request_ends_a_worker_and_nothing_stays_in_flight() {
    let schedules = std::env::var("HAVEN_SCHEDULES")
        .ok()
        .and_then(|it| it.parse().ok());
    for seed in 0..schedules.unwrap_or(1u64) * 30 {
        let rng = Rng::new(seed);
        let kind = [HostKind::Nginx, HostKind::Envoy][(seed % 3 / 2) as usize];
        let (proxy, mut workers) = proxy(kind, &config());
        let mut open: [Vec<Open>; 2] = Default::default();
        for _ in 0..60 {
            let at = rng.below(2) as usize;
            let worker = &mut workers[at];
            match rng.below(8) {
                0 => worker.tick(),
                1 => {
                    let time = [1, 20, 300, 5_000][rng.below(4) as usize];
                    proxy.advance(time);
                    if time > 1_000 {
                        workers.iter_mut().for_each(|it| it.answer_call(None));
                    }
                }
                2 => {
                    let status = [None, Some(200), Some(500)][rng.below(3) as usize];
                    worker.answer_call(status);
                }
                3..6 => {
                    let request = hostile(&rng);
                    let headers: Vec<(&str, &[u8])> = request
                        .iter()
                        .map(|(name, value)| (name.as_str(), value.as_slice()))
                        .collect();
                    open[at].push(worker.request(&headers, rng.below(3) == 0));
                }
                _ if !open[at].is_empty() => {
                    let place = rng.below(open[at].len() as u64) as usize;
                    let mut it = open[at].swap_remove(place);
                    if rng.below(5) > 0 {
                        let status = [200, 204, 404, 429, 500, 503][rng.below(6) as usize];
                        let cut = rng.below(4) == 0;
                        worker.answer(&mut it, status, rng.below(3) as u32, cut);
                    }
                    worker.end(it);
                }
                _ => {}
            }
        }
        for (worker, open) in workers.iter_mut().zip(open) {
            open.into_iter().for_each(|it| _ = worker.end(it));
        }
        // What was held a little longer goes with time.
        for _ in 0..40 {
            proxy.advance(1_000);
            workers.iter_mut().for_each(|it| it.answer_call(None));
            workers.iter_mut().for_each(Guest::tick);
        }
        for begin in ["haven_concurrency_in_flight", "haven_endpoint_in_flight"] {
            for (name, number) in proxy.metrics(begin) {
                assert_eq!(number, 0, "seed {seed} {kind:?}: {name}");
            }
        }
    }
}

/// A request as nobody should send it.
fn hostile(rng: &Rng) -> Vec<(String, Vec<u8>)> {
    let paths: [&[u8]; 7] = [
        b"/users/1",
        b"/few",
        b"/off",
        b"/",
        b"/readyz",
        b"/\xff\x00//;x=1/../users",
        b"",
    ];
    let names = [
        "x-user",
        "x-haven-upstream",
        "x-color",
        "cookie",
        "content-type",
        "grpc-timeout",
        "x-left",
        "x-forwarded-for",
        "\u{ff}",
        "",
    ];
    let mut headers = vec![
        (":path".to_owned(), paths[rng.below(7) as usize].to_vec()),
        (
            ":method".to_owned(),
            [&b"GET"[..], b"POST", b"HEAD", b""][rng.below(4) as usize].to_vec(),
        ),
        (":authority".to_owned(), b"server".to_vec()),
        (
            "host".to_owned(),
            [&b"shop.example"[..], b"", b"\xfe"][rng.below(3) as usize].to_vec(),
        ),
    ];
    for _ in 0..rng.below(6) {
        let value: Vec<u8> = match rng.below(4) {
            0 => (0..rng.below(40)).map(|_| rng.below(256) as u8).collect(),
            1 => vec![b'9'; rng.below(400) as usize],
            2 => b"application/grpc".to_vec(),
            _ => rng.below(3).to_string().into_bytes(),
        };
        headers.push((names[rng.below(10) as usize].to_owned(), value));
    }
    headers
}
