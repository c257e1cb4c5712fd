//! `make worlds BEST=1 SEEDS=a..b`: how near to the bound any limit comes. Where more comes than can
//! be done, each world is run with fixed limits of several sizes too, and the best one is taken
//! afterwards: a limit that knows the capacity, and the world.

use crate::bound;
use crate::draw::SECOND;
use crate::report::each_seed;
use crate::sim::run;
use crate::verdict::{MARGIN, OF_BOUND};
use crate::world::{Size, World};
use serde_json::{Value, json};

/// The limits, as shares of what is answered within the timeout.
const SHARES: [f64; 7] = [0.15, 0.25, 0.4, 0.6, 0.8, 1.0, 1.5];

/// Useful answers of a world, in percent: the bound, everything on, the best of the fixed limits,
/// and plain Envoy.
fn compare(seed: u64) -> Option<[f64; 4]> {
    let world = World::draw(seed, Size::asked());
    let span = world.span(2 * SECOND);
    let plain = run(&world, None, 0, false);
    if !bound::is_full(&world, &plain.records, &span) {
        return None;
    }
    let useful = |config: &Value| {
        run(&world, Some(config), 0, false)
            .tally(&world, &span, |_| true)
            .useful
    };
    let in_time = world.capacity() * world.routes[0].timeout as f64 / SECOND as f64;
    let fixed = SHARES.map(|share| {
        let limit = (in_time * share).ceil().max(1.0) as u64;
        let mut config = world.config.clone();
        config["concurrency_limits"]["limit"] = json!({"algorithm": "fixed", "limit": limit,
            "fair": [{"header": "x-client"}]});
        useful(&config)
    });
    Some([
        bound::bound(&world, &plain.records, &span),
        useful(&world.config),
        fixed.into_iter().fold(0.0, f64::max),
        plain.tally(&world, &span, |_| true).useful,
    ])
}

#[test]
#[ignore = "make worlds BEST=1"]
fn best() {
    let all: Vec<[f64; 4]> = each_seed(compare).into_iter().flatten().collect();
    let count = |of: &dyn Fn(&[f64; 4]) -> bool| all.iter().filter(|it| of(it)).count();
    println!("{} worlds with more load than capacity", all.len());
    println!(
        "| | useful, mean | below 95 % of the bound | worse than the best fixed limit by over {MARGIN} points |"
    );
    println!("|---|---|---|---|");
    for (at, name) in [
        "the bound",
        "everything on",
        "the best fixed limit",
        "plain",
    ]
    .iter()
    .enumerate()
    {
        println!(
            "| {name} | {:.1} | {} | {} |",
            all.iter().map(|it| it[at]).sum::<f64>() / all.len().max(1) as f64,
            count(&|it| it[at] < it[0] * OF_BOUND),
            count(&|it| it[at] < it[2] - MARGIN),
        );
    }
}
