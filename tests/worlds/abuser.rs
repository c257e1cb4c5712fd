//! A client that sends ten times what all others do, under the one configuration of `make avail`:
//! the others keep their answers.

use crate::config::address;
use crate::draw::{Draw, MS, SECOND, Service, Shape, Time};
use crate::fault::{Fault, Kind};
use crate::invariants::seeds;
use crate::record::{End, Record, is_abuse, is_critical};
use crate::sim::run;
use crate::timeline;
use crate::world::{Client, Route, World};
use serde_json::{Value, json};

/// Worlds of a run of the tests.
const WORLDS: u64 = 30;

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
    config["upstreams"].as_object_mut().unwrap().remove("service");
    config["upstreams"]["u"].as_object_mut().unwrap().remove("cluster");
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

#[test]
fn an_abuser_takes_nothing_from_the_others() {
    let mut all = [(0, 0); 2];
    let mut why: std::collections::BTreeMap<String, usize> = Default::default();
    let mut busy = 0.0;
    let show = std::env::var("HAVEN_SHOW").is_ok();
    for seed in seeds(WORLDS) {
        let world = draw(seed);
        let run = run(&world, Some(&world.config), 0, true);
        let span = world.span(0);
        let honest: Vec<&Record> = run
            .records
            .iter()
            .filter(|it| span.contains(&it.at) && !is_abuse(&world, it))
            .collect();
        let mut shares = Vec::new();
        for (critical, sum) in [false, true].into_iter().zip(&mut all) {
            let of = honest.iter().filter(|it| is_critical(&world, it) == critical);
            let useful = of.clone().filter(|it| it.end == End::Useful).count();
            let count = of.count();
            sum.0 += useful;
            sum.1 += count;
            shares.push(format!("{:5.1}", 100.0 * useful as f64 / count as f64));
        }
        let done = run.records.iter().filter(|it| span.contains(&it.at) && it.end == End::Useful).count();
        busy += done as f64 / (world.capacity() * ((span.end - span.start) as f64 / SECOND as f64));
        for it in honest.iter().filter(|it| it.end != End::Useful) {
            let late = if it.at < span.start + SECOND / 2 { "first" } else if it.at < span.start + SECOND { "second"} else { "later" };
            *why.entry(format!("{late} {} {:?}", it.route, it.end)).or_default() += 1;
        }
        println!("{seed} {} {}", shares.join(" "), world.describe());
        if show {
            for it in &honest {
                if it.end != End::Useful {
                    println!("{} client {} route {} {:?} tries {} took {:?}", it.at / MS, it.client, it.route, it.end, it.tries, it.ended.map(|e| (e - it.at) / MS));
                }
            }
            print!("{}", timeline::text(&world, &run));
        }
    }
    println!("others, not busy {:.3}", busy / WORLDS as f64);
    for (what, count) in &why { println!("why {count} {what}"); }
    let share = |(useful, count): (usize, usize)| 100.0 * useful as f64 / count as f64;
    println!("others, not critical and critical: {:.1} {:.1}", share(all[0]), share(all[1]));
    assert!(share(all[0]) > 97.0 && share(all[1]) > 99.0);
}
