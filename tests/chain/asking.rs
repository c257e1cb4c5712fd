//! How endpoints are asked for: what is sent, when, and what becomes of answers and of none.

use super::Proxy;
use haven::base::headers::HeaderMap;
use haven::base::time::{Moment, Nanos};
use haven::document;
use haven::engine::Engine;
use haven::host::CallAnswer;
use haven::host::sim::{HostKind, Machine, Outgoing, Worker};
use haven::policy::discovery::record::{Known, SourceRecord, SourceState};
use serde_json::{Value, json};
use std::rc::Rc;

/// A proxy whose workers ask for the endpoints of the upstream `u`.
struct World {
    machine: Rc<Machine>,
    config: String,
    engines: Vec<(Worker, Engine)>,
    /// What was asked, with the time since the start.
    asked: Vec<(Nanos, Outgoing)>,
    start: Moment,
}

type Registry<'r> = &'r mut dyn FnMut(&Outgoing) -> Option<CallAnswer>;

fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Option<CallAnswer> {
    let status = status.to_string();
    let mut all = vec![(":status", status.as_str())];
    all.extend(headers);
    Some(CallAnswer::Http {
        headers: HeaderMap::from_pairs(&all),
        body: body.as_bytes().to_vec(),
        size: body.len(),
    })
}

fn ok(body: &Value) -> Option<CallAnswer> {
    answer(200, &[], &body.to_string())
}

impl World {
    fn new(config: &Value, workers: usize) -> Self {
        let machine = Machine::new(HostKind::Envoy, 7);
        let mut world = Self {
            start: machine.now(),
            machine,
            config: config.to_string(),
            engines: Vec::new(),
            asked: Vec::new(),
        };
        (0..workers).for_each(|_| world.add_worker());
        world
    }

    fn add_worker(&mut self) {
        let worker = Worker(Rc::clone(&self.machine));
        let config = document::parse(self.config.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        let engine = Engine::new(config, &worker).unwrap();
        self.engines.push((worker, engine));
    }

    /// Lets time pass, in ticks of 10 ms; answers come at once.
    fn run(&mut self, time: Nanos, registry: Registry<'_>) {
        let end = self.machine.now().plus(time);
        while self.machine.now() < end {
            self.machine.advance(Nanos::from_millis(10));
            let now = self.machine.now();
            for (worker, engine) in &self.engines {
                engine.check(worker, now);
                loop {
                    let calls = self.machine.take_outgoing();
                    if calls.is_empty() {
                        break;
                    }
                    for call in calls {
                        let answer = registry(&call);
                        let id = call.id;
                        self.asked.push((now.since(self.start), call));
                        if let Some(answer) = answer {
                            engine.answered(worker, id, &answer, now);
                        }
                    }
                    engine.check(worker, now);
                }
            }
        }
    }

    fn known(&self) -> Known {
        SourceRecord::new("u").read(&self.engines[0].0)
    }

    fn addresses(&self) -> Vec<String> {
        let known = self.known();
        let members = known.members.members().iter();
        members.map(|it| it.address.clone()).collect()
    }

    fn state(&self) -> (SourceState, String) {
        let status = self.known().status;
        (status.state, status.reason)
    }

    fn count(&self) -> usize {
        self.asked.len()
    }
}

const SECOND: Nanos = Nanos::from_secs(1);

fn with_source(source: Value) -> Value {
    json!({"discovery": {"envoy_admin": "admin"}, "upstreams": {"u": {"endpoints": source}}})
}

fn envoy_hosts(addresses: &[&str]) -> Value {
    let host = |address: &&str| {
        let (ip, port) = address.rsplit_once(':').unwrap();
        json!({"address": {"socket_address": {"address": ip, "port_value": port.parse::<u16>().unwrap()}},
            "health_status": {"eds_health_status": "HEALTHY"}, "weight": 1, "locality": {}})
    };
    let hosts: Vec<_> = addresses.iter().map(host).collect();
    json!({"cluster_statuses": [{"name": "users.v1", "host_statuses": hosts}]})
}

#[test]
fn one_worker_of_five_asks_the_proxy_once_a_second() {
    let mut world = World::new(&with_source(json!({"envoy": {"cluster": "users.v1"}})), 5);
    world.run(SECOND.times(20), &mut |_| {
        ok(&envoy_hosts(&["10.0.0.2:80", "10.0.0.1:80"]))
    });
    assert!((18..=23).contains(&world.count()), "{}", world.count());
    let gaps = world
        .asked
        .windows(2)
        .map(|pair| pair[1].0.minus(pair[0].0));
    let (mut least, mut most) = (SECOND, SECOND);
    gaps.for_each(|gap| (least, most) = (least.min(gap), most.max(gap)));
    assert!(least >= Nanos::from_millis(900) && most <= Nanos::from_millis(1_150));
    assert!(most.minus(least) > Nanos::from_millis(50), "jitter");
    let call = &world.asked[0].1;
    assert_eq!(
        (call.cluster.as_str(), call.header(":method")),
        ("admin", Some("GET"))
    );
    assert_eq!(
        call.header(":path"),
        Some("/clusters?format=json&filter=%5Eusers%5C.v1%24")
    );
    assert_eq!(world.addresses(), ["10.0.0.1:80", "10.0.0.2:80"]);
}

#[test]
fn a_lost_asker_is_replaced_and_a_lost_call_holds_up_nobody() {
    let mut world = World::new(&with_source(json!({"envoy": {"cluster": "users.v1"}})), 3);
    let mut list = vec!["10.0.0.1:80", "10.0.0.2:80"];
    world.run(SECOND.times(3), &mut |_| ok(&envoy_hosts(&list)));
    // The holder's VM is gone with a call in flight.
    for _ in 0..3 {
        let before = world.count();
        world.run(Nanos::from_millis(1_200), &mut |_| None);
        assert_eq!(world.count() - before, 1);
        world.engines.remove(0);
        world.add_worker();
        list.push(["10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80"][list.len() - 2]);
        world.run(Nanos::from_millis(3_500), &mut |_| ok(&envoy_hosts(&list)));
        assert_eq!(world.addresses(), list);
    }
    // Nothing answers any more, for any reason: what is known stays, and the state says so.
    world.run(SECOND.times(30), &mut |_| None);
    assert_eq!(world.addresses(), list);
    assert_eq!(
        world.state(),
        (SourceState::Error, "no answer came in time".into())
    );
    world.machine.no_clusters.set(true);
    world.run(SECOND.times(30), &mut |_| None);
    let stuck = "nobody can be asked in the cluster admin";
    assert_eq!(world.state(), (SourceState::Error, stuck.into()));
    world.machine.no_clusters.set(false);
    world.run(SECOND.times(10), &mut |_| ok(&envoy_hosts(&list)));
    assert_eq!(world.state().0, SourceState::Ok);
}

#[test]
fn clocks_that_step_and_reloads_do_not_stop_the_asking() {
    let mut world = World::new(&with_source(json!({"envoy": {"cluster": "users.v1"}})), 2);
    let list = ["10.0.0.1:80"];
    world.run(SECOND.times(3), &mut |_| ok(&envoy_hosts(&list)));
    for step in ["back", "forth", "reload"] {
        match step {
            "back" => world.machine.set_clock(Moment::from_secs(60)),
            "forth" => world.machine.set_clock(Moment::from_secs(1_000_000)),
            _ => {
                world.add_worker();
                world.add_worker();
            }
        }
        world.start = world.machine.now();
        let before = world.count();
        world.run(SECOND.times(20), &mut |_| ok(&envoy_hosts(&list)));
        let asked = world.count() - before;
        assert!((14..=23).contains(&asked), "{step}: {asked}");
    }
}

#[test]
fn one_failure_is_tried_again_at_once_and_many_wait_longer_and_longer() {
    let mut world = World::new(&with_source(json!({"envoy": {"cluster": "users.v1"}})), 1);
    let list = ["10.0.0.1:80"];
    let mut turn = 0;
    world.run(SECOND.times(10), &mut |_| {
        turn += 1;
        if turn % 2 == 0 {
            ok(&envoy_hosts(&list))
        } else {
            answer(503, &[], "")
        }
    });
    // Each second call fails, and nobody hears of it.
    assert_eq!(world.state(), (SourceState::Ok, String::new()));
    assert_eq!(world.known().status.since_unix, 1_800_000_000);
    world.start = world.machine.now();
    world.asked.clear();
    world.run(SECOND.times(60), &mut |_| answer(503, &[], ""));
    assert!((9..=12).contains(&world.count()), "{}", world.count());
    let why = "Envoy's admin interface answers with status 503";
    assert_eq!(world.state(), (SourceState::Error, why.into()));
    world.run(SECOND.times(10), &mut |_| ok(&envoy_hosts(&list)));
    assert_eq!(world.state().0, SourceState::Ok);
}

fn instance(address: &str, port: u16) -> Value {
    json!({"Node": {"Address": "10.9.9.9"}, "Service": {"Address": address, "Port": port,
        "Weights": {"Passing": 1, "Warning": 1}, "Meta": {}}, "Checks": [{"Status": "passing"}]})
}

fn consul(index: u64, instances: &[Value]) -> Option<CallAnswer> {
    let index = index.to_string();
    answer(
        200,
        &[("x-consul-index", &index)],
        &json!(instances).to_string(),
    )
}

#[test]
fn consul_is_asked_by_the_rules_of_its_blocking_queries() {
    let source = json!({"consul": {"cluster": "consul", "service": "user service", "tag": "v1",
        "datacenter": "dc1", "near": "_agent", "token": "s3cret", "wait": "10s"}});
    let mut world = World::new(&with_source(source), 3);
    // Answers at once to what has no index; what has one waits, and is answered in 5 s.
    world.run(SECOND, &mut |call| {
        let path = call.header(":path").unwrap();
        (!path.contains("index=")).then(|| consul(7, &[instance("10.0.0.1", 80)]))?
    });
    let first = &world.asked[0].1;
    assert_eq!(
        first.header(":path"),
        Some("/v1/health/service/user%20service?dc=dc1&tag=v1&near=_agent&passing=1")
    );
    assert_eq!(first.header("x-consul-token"), Some("s3cret"));
    world.run(SECOND, &mut |_| None);
    assert_eq!(world.count(), 2, "it waits");
    let waits = &world.asked[1].1;
    let path = waits.header(":path").unwrap();
    assert!(path.contains("&passing=1&index=7&wait="), "{path}");
    let wait: u64 = path
        .rsplit_once('=')
        .unwrap()
        .1
        .trim_end_matches("ms")
        .parse()
        .unwrap();
    assert!((9_000..=11_000).contains(&wait), "{wait}");
    assert!(
        waits.timeout > Nanos::from_millis(wait + wait / 16),
        "{:?}",
        waits.timeout
    );
    // The answer that it waited for.
    let id = waits.id;
    world.run(SECOND.times(4), &mut |_| None);
    let now = world.machine.now();
    let list = [instance("10.0.0.1", 80), instance("10.0.0.2", 80)];
    for (worker, engine) in &world.engines {
        engine.answered(worker, id, &consul(9, &list).unwrap(), now);
    }
    assert_eq!(world.addresses(), ["10.0.0.1:80", "10.0.0.2:80"]);
    let status = world.known().status;
    assert_eq!(
        (status.cursor, status.confirmed),
        (9, now),
        "as new as its answer"
    );
    // The index goes back: the next query does not wait. One of 0 is none.
    let mut paths = Vec::new();
    let mut answers = [3, 3, 0, 5].into_iter();
    world.run(SECOND.times(6), &mut |call| {
        paths.push(call.header(":path").unwrap().to_owned());
        consul(answers.next()?, &list)
    });
    let waits: Vec<_> = paths.iter().map(|path| path.contains("index=")).collect();
    assert_eq!(waits, [true, false, true, false, true], "{paths:?}");
    assert!(paths[2].contains("index=3") && paths[4].contains("index=5"));
}

#[test]
fn consul_that_fails_is_left_alone_for_longer_and_asked_anew() {
    let source = json!({"consul": {"cluster": "consul", "service": "s"}});
    for status in [429, 500, 503] {
        let mut world = World::new(&with_source(source.clone()), 2);
        let list = [instance("10.0.0.1", 80)];
        let mut first = true;
        world.run(SECOND.times(60), &mut |_| {
            if std::mem::take(&mut first) {
                consul(7, &list)
            } else {
                answer(status, &[], "no")
            }
        });
        assert!((9..=14).contains(&world.count()), "{}", world.count());
        assert_eq!(world.addresses(), ["10.0.0.1:80"]);
        let why = format!("Consul answers with status {status}");
        assert_eq!(world.state(), (SourceState::Error, why));
        let last = &world.asked.last().unwrap().1;
        assert!(!last.header(":path").unwrap().contains("index="));
    }
}

/// Consul answers at once, all the time: a service that changes without end.
#[test]
fn consul_is_not_asked_more_often_than_once_in_an_interval() {
    let source = json!({"consul": {"cluster": "consul", "service": "s", "interval": "500ms"}});
    let mut world = World::new(&with_source(source), 2);
    let mut index = 0;
    world.run(SECOND.times(10), &mut |_| {
        index += 1;
        consul(index, &[instance("10.0.0.1", 80)])
    });
    assert!((17..=24).contains(&world.count()), "{}", world.count());
}

/// What lacks too much is asked for again soon, and not only when Consul has another change.
#[test]
fn a_list_that_is_held_is_asked_for_again() {
    let source = json!({"consul": {"cluster": "consul", "service": "s"}});
    let mut world = World::new(&with_source(source), 2);
    let all: Vec<_> = (1..=10)
        .map(|n| instance(&format!("10.0.0.{n}"), 80))
        .collect();
    let mut answers = 0;
    world.run(SECOND.times(5), &mut |call| {
        let path = call.header(":path").unwrap();
        let waits = path.contains("index=1&") || path.contains("index=2&");
        answers += 1;
        match answers {
            1 => consul(1, &all),
            2 => consul(2, &all[..2]),
            _ if waits => None,
            _ => consul(2, &all[..2]),
        }
    });
    assert_eq!(world.addresses(), ["10.0.0.1:80", "10.0.0.2:80"]);
}

/// A small etcd: keys with values, a limit, a revision, a user.
#[derive(Default)]
struct Etcd {
    keys: std::collections::BTreeMap<String, String>,
    revision: u64,
    compacted: u64,
    password: Option<&'static str>,
    tokens: u32,
    log: Vec<Value>,
}

fn coded(text: &str) -> String {
    haven::base::base64::encode(text.as_bytes())
}

fn decoded(value: &Value) -> String {
    let bytes = haven::base::base64::decode(value.as_str().unwrap().as_bytes()).unwrap();
    String::from_utf8(bytes).unwrap()
}

impl Etcd {
    fn put(&mut self, name: &str, value: &str) {
        self.keys.insert(format!("/users/{name}"), value.to_owned());
        self.revision += 1;
    }

    fn call(&mut self, call: &Outgoing) -> Option<CallAnswer> {
        let body: Value = serde_json::from_slice(&call.message).unwrap();
        assert_eq!(call.header(":method"), Some("POST"));
        assert_eq!(
            call.header("content-length"),
            Some(&*call.message.len().to_string())
        );
        self.log.push(body.clone());
        if call.header(":path") == Some("/v3/auth/authenticate") {
            if body["password"].as_str() != self.password || body["name"] != "haven" {
                return answer(400, &[], r#"{"error":"no","code":3}"#);
            }
            self.tokens += 1;
            return ok(&json!({"header": {}, "token": format!("token.{}", self.tokens)}));
        }
        let token = format!("token.{}", self.tokens);
        if self.password.is_some() && call.header("authorization") != Some(&token) {
            return answer(
                401,
                &[],
                r#"{"error":"etcdserver: invalid auth token","code":16}"#,
            );
        }
        let asked: u64 = body["revision"]
            .as_str()
            .map_or(0, |it| it.parse().unwrap());
        if asked > 0 && asked < self.compacted {
            return answer(400, &[], r#"{"error":"compacted","code":11}"#);
        }
        let (from, end) = (decoded(&body["key"]), decoded(&body["range_end"]));
        let limit: usize = body["limit"].as_str().unwrap().parse().unwrap();
        let all: Vec<_> = self.keys.range(from..end).collect();
        let shown = all.iter().take(limit).map(|(key, value)| {
            let mut entry = json!({"key": coded(key), "mod_revision": "3"});
            if !value.is_empty() {
                entry["value"] = json!(coded(value));
            }
            entry
        });
        let mut answer = json!({"header": {"revision": self.revision.to_string()},
            "count": all.len().to_string()});
        let kvs: Vec<_> = shown.collect();
        if !kvs.is_empty() {
            answer["kvs"] = json!(kvs);
        }
        if all.len() > limit {
            answer["more"] = json!(true);
        }
        ok(&answer)
    }
}

fn etcd_source() -> Value {
    with_source(json!({"etcd": {"cluster": "etcd", "prefix": "/users/"}}))
}

#[test]
fn keys_of_etcd_are_endpoints_page_by_page() {
    let mut world = World::new(&etcd_source(), 2);
    let mut etcd = Etcd::default();
    for n in 0..1_000 {
        etcd.put(
            &format!("{n:04}"),
            &format!("10.0.{}.{}:80", n / 250, n % 250),
        );
    }
    world.run(SECOND, &mut |call| etcd.call(call));
    assert_eq!(world.known().members.len(), 1_000);
    assert_eq!(etcd.log[0]["limit"], "500");
    let second = &etcd.log[1];
    assert_eq!(decoded(&second["key"]), "/users/0499\0");
    assert_eq!(
        (&second["revision"], &second["range_end"]),
        (&json!("1000"), &json!(coded("/users0")))
    );
    // One more is too much, and is not cut in silence.
    etcd.put("9999", "10.1.0.0:80");
    world.run(SECOND.times(2), &mut |call| etcd.call(call));
    assert_eq!(world.known().members.len(), 1_000);
    let (state, why) = world.state();
    assert_eq!(state, SourceState::Refused);
    assert!(
        why.contains("one more than the 1000") && why.contains("/users/9999"),
        "{why}"
    );
}

#[test]
fn a_compaction_between_two_pages_begins_anew() {
    let mut world = World::new(&etcd_source(), 1);
    let mut etcd = Etcd::default();
    for n in 0..600 {
        etcd.put(
            &format!("{n:04}"),
            &format!("10.0.{}.{}:80", n / 250, n % 250),
        );
    }
    let mut calls = 0;
    world.run(SECOND, &mut |call| {
        calls += 1;
        if calls == 2 {
            etcd.put("0000", "10.0.0.0:81");
            etcd.compacted = etcd.revision;
        }
        etcd.call(call)
    });
    let known = world.known();
    assert_eq!((known.members.len(), known.status.cursor), (600, 601));
    assert!(known.members.find("10.0.0.0:81").is_some());
    assert!(etcd.log[2].get("revision").is_none());
    // Compacted before each second page: it ends, and what is known stays.
    world.run(SECOND.times(5), &mut |call| {
        if call.message.windows(8).any(|it| it == b"revision") {
            etcd.compacted = etcd.revision + 1;
        }
        etcd.call(call)
    });
    assert_eq!(world.known().members.len(), 600);
    assert_eq!(world.state().1, "one question takes too many calls");
    assert!(world.count() < 60, "{}", world.count());
}

fn with_user() -> Value {
    with_source(
        json!({"etcd": {"cluster": "etcd", "prefix": "/users/", "username": "haven",
        "password_env": "ETCD_PASSWORD"}}),
    )
}

#[test]
fn a_user_of_etcd_is_let_in_and_a_token_that_ends_is_renewed() {
    let machine = Machine::new(HostKind::Envoy, 7);
    let worker = Worker(Rc::clone(&machine));
    let config = document::parse(with_user().to_string().as_bytes()).unwrap();
    let refused = Engine::new(config, &worker).unwrap_err();
    assert!(
        refused.starts_with("upstreams.u.endpoints.etcd.password_env: this variable is not set"),
        "{refused}"
    );
    let mut world = World::new(&json!({}), 0);
    world.config = with_user().to_string();
    let variables = [("ETCD_PASSWORD".to_owned(), "geh\"eim".to_owned())];
    *world.machine.variables.borrow_mut() = variables.into_iter().collect();
    world.add_worker();
    let mut etcd = Etcd {
        password: Some("geh\"eim"),
        ..Etcd::default()
    };
    etcd.put("1", "10.0.0.1:80");
    world.run(SECOND.times(3), &mut |call| etcd.call(call));
    assert_eq!(
        (world.addresses(), etcd.tokens),
        (vec!["10.0.0.1:80".to_owned()], 1)
    );
    // etcd has forgotten its tokens.
    etcd.tokens = 7;
    etcd.put("2", "10.0.0.2:80");
    world.run(SECOND.times(2), &mut |call| etcd.call(call));
    assert_eq!((world.known().members.len(), etcd.tokens), (2, 8));
    // The password is another one: the list stays, and no message repeats a secret.
    etcd.password = Some("other");
    etcd.tokens = 20;
    world.run(SECOND.times(20), &mut |call| etcd.call(call));
    assert_eq!(world.known().members.len(), 2);
    assert_eq!(
        world.state(),
        (
            SourceState::Error,
            "etcd does not let the user in: status 400".into()
        )
    );
    let logs = world.machine.logs();
    let words = format!("{logs:?}{:?}{:?}", world.known(), world.engines[0].1);
    assert!(!words.contains("geh"), "{words}");
}

/// Whatever a registry answers, what is known stays, and the reason is bounded and names a place.
#[test]
fn hostile_answers_change_nothing() {
    let mut world = World::new(&etcd_source(), 1);
    let mut etcd = Etcd::default();
    etcd.put("1", "10.0.0.1:80");
    world.run(SECOND.times(2), &mut |call| etcd.call(call));
    let deep = "[".repeat(1 << 20);
    let huge = "x".repeat(5 << 20);
    let kvs = |value: &str| {
        json!({"kvs": [{"key": coded("/users/x"), "value": coded(value)}]}).to_string()
    };
    for (body, why) in [
        (deep, "no JSON"),
        (huge, "more than 4 MiB"),
        (String::new(), "no JSON"),
        ("[]".into(), "the list is empty"),
        (r#"{"kvs": 7}"#.into(), "kvs is no list: 7"),
        (
            kvs("10.0.0.2:0"),
            "endpoint 0: \"10.0.0.2:0\" is no IP address with a port from 1 to 65535, key \"/users/x\"",
        ),
        (kvs("users.local:80"), "\"users.local:80\" is no IP address"),
        (
            kvs(r#"{"address": "10.0.0.2:80", "weight": 1000000000}"#),
            "\"1000000000\" is no weight from 0 to 1000",
        ),
        (kvs(r#"{"address": 7}"#), "no text: 7"),
        (kvs(""), "is no IP address"),
        (
            json!({"kvs": [{"key": "!", "value": ""}]}).to_string(),
            "is no base64",
        ),
        (
            json!({"kvs": [{"key": coded("a"), "value": coded("[::1]:80")},
            {"key": coded("b"), "value": coded("[0:0::0:1]:80")}]})
            .to_string(),
            "\"[::1]:80\" stands twice",
        ),
    ] {
        world.run(SECOND.times(10), &mut |_| answer(200, &[], &body));
        assert_eq!(world.addresses(), ["10.0.0.1:80"]);
        let (state, reason) = world.state();
        assert_eq!(state, SourceState::Refused, "{reason}");
        assert!(reason.contains(why), "{reason}");
        world.run(SECOND.times(10), &mut |call| etcd.call(call));
        assert_eq!(world.state().0, SourceState::Ok);
    }
}

#[test]
fn a_source_that_is_asked_wants_ticks() {
    let with = Proxy::new(&etcd_source());
    assert!(with.engine.has_checks());
    assert!(
        !Proxy::new(&json!({"upstreams": {"u": {}}}))
            .engine
            .has_checks()
    );
}
