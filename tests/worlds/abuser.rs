//! A client that sends ten times what all others do, under the one configuration of `make avail`:
//! the others keep their answers.

use crate::config::address;
use crate::draw::{Draw, MS, SECOND, Service, Shape, Time};
use crate::fault::{Fault, Kind};
use crate::invariants::seeds;
use crate::record::{End, is_abuse};
use crate::sim::run;
use crate::timeline;
use crate::world::{Client, Route, World};
use serde_json::{Value, json};

/// Worlds of a run of the tests.
const WORLDS: u64 = 60;

/// A world as `make avail` draws it for its abusive client: little is left of each slot's time, and
/// the deadline is a few times what a request takes.
fn draw(seed: u64) -> World {
    let draw = Draw::of(&[seed, 0xab]);
    let (endpoints, slots) = (draw.count(3, 5), draw.count(2, 5));
    let capacity = draw.between(90.0, 130.0);
    let mean = ((endpoints * slots) as f64 / capacity * SECOND as f64) as Time;
    let timeout = ((mean as f64 * draw.between(4.75, 7.6)) as Time).min(1_140 * MS) / MS * MS;
    let honest = draw.count(8, 12);
    let client = |share| Client {
        share,
        patience: 1.0 / 0.95,
        says: false,
        hangs_up: true,
        one_connection: true,
    };
    let mut clients = vec![client(1.0); honest];
    clients.push(client(1e-6));
    let route = |criticality| Route {
        post: false,
        criticality,
        share: 1.0,
        timeout,
    };
    let from = 3 * SECOND;
    let until = from + draw.between(5.5, 7.5) as Time * SECOND;
    let mut world = World {
        seed,
        workers: 2,
        endpoints,
        slots,
        service: Service {
            mean,
            shape: Shape::HalfFixed,
        },
        queue: None,
        stops: false,
        checks_queue: false,
        checks_fail: false,
        failure: 503,
        routes: vec![route("critical"), route("sheddable")],
        clients,
        load: draw.between(0.3, 0.45),
        faults: vec![Fault {
            kind: Kind::Abuser(honest, 10.0),
            endpoints: Vec::new(),
            from,
            until,
        }],
        end: until + 3 * SECOND,
        config: Value::Null,
    };
    world.config = config(&world);
    world
}

/// The configuration of `make avail`, for this world.
fn config(world: &World) -> Value {
    let text = include_str!("../avail/haven.json");
    let mut config: Value = serde_json::from_str(text).unwrap();
    let timeout = world.routes[0].timeout;
    config["upstreams"]["u"] = config["upstreams"]["service"].take();
    config["upstreams"]
        .as_object_mut()
        .unwrap()
        .remove("service");
    config["upstreams"]["u"]
        .as_object_mut()
        .unwrap()
        .remove("cluster");
    config.as_object_mut().unwrap().remove("client_ip");
    let endpoints = (0..world.endpoints).map(|at| json!({"address": address(at)}));
    config["upstreams"]["u"]["endpoints"] = endpoints.collect();
    config["concurrency_limits"]["service"]["fair"] = json!([{"header": "x-client"}]);
    let routes = config["routes"].as_array_mut().unwrap();
    routes.truncate(world.routes.len());
    for (at, route) in routes.iter_mut().enumerate() {
        route["name"] = format!("r{at}").into();
        route["match"] = json!({"prefix": format!("/r{at}")});
        route["upstream"] = "u".into();
        route["timeout"] = json!({"request": format!("{}ms", timeout / MS),
            "per_try": format!("{}ms", timeout * 2 / 5 / MS)});
    }
    config
}

/// Of the others' requests at most this share fails, in percent: what comes at the very start, before
/// anything is refused, and what takes far longer than most.
const LOST: f64 = 1.2;

#[test]
fn an_abuser_takes_nothing_from_the_others() {
    let (mut useful, mut all) = (0, 0);
    for seed in seeds(WORLDS) {
        let world = draw(seed);
        let run = run(&world, Some(&world.config), 0, true);
        let span = world.span(0);
        let others = run.records.iter();
        let others = others.filter(|it| span.contains(&it.at) && !is_abuse(&world, it));
        let count = others.clone().count();
        let good = others.filter(|it| it.end == End::Useful).count();
        println!("{seed}: {good} of {count}, {}", world.describe());
        if std::env::var("HAVEN_SEED").is_ok() {
            print!("{}", timeline::text(&world, &run));
        }
        (useful, all) = (useful + good, all + count);
    }
    let share = 100.0 * useful as f64 / all as f64;
    println!("others: {share:.2} % of {all}");
    assert!(share > 100.0 - LOST, "{share}");
}
