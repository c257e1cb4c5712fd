//! What holds in every world, whatever is on and whatever goes wrong.

use crate::config::Policy;
use crate::record::{End, Run};
use crate::sim::run;
use crate::verdict::Verdict;
use crate::world::{Size, World};
use serde_json::Value;

/// Worlds of a run of the tests; `HAVEN_SEED` replays one.
const WORLDS: u64 = 500;

/// So many seeds, or the one that `HAVEN_SEED` names.
pub fn seeds(worlds: u64) -> std::ops::Range<u64> {
    match std::env::var("HAVEN_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("HAVEN_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..worlds,
    }
}

/// A world's configuration: everything on, and now and then one policy off.
fn config(world: &World) -> Value {
    let policy = Policy::ALL.get(world.seed as usize % (2 * Policy::ALL.len()));
    let without = policy.and_then(|policy| policy.removed_from(&world.config));
    without.unwrap_or_else(|| world.config.clone())
}

#[test]
fn each_request_ends_once_and_leaves_nothing_behind() {
    let (mut requests, mut faults) = (0, std::collections::BTreeSet::new());
    for seed in seeds(WORLDS) {
        let world = World::draw(seed, Size::Small);
        let Run { records, left, .. } = run(&world, Some(&config(&world)), 0, false);
        let open = records
            .iter()
            .filter(|it| it.end == End::Open || it.ended.is_none());
        assert_eq!(
            open.count(),
            0,
            "HAVEN_SEED={seed}: some requests have no end"
        );
        assert!(
            !left.is_empty() && left.iter().all(|(_, n)| *n == 0),
            "HAVEN_SEED={seed}: {left:?}"
        );
        for it in &records {
            assert!(
                !it.post || it.begun <= 1,
                "HAVEN_SEED={seed}: a POST was begun twice: {it:?}"
            );
        }
        requests += records.len();
        faults.extend(world.faults.iter().map(|fault| fault.kind.word()));
    }
    println!(
        "{} worlds, {requests} requests, {} kinds of faults",
        seeds(WORLDS).count(),
        faults.len()
    );
}

#[test]
fn a_seed_is_a_world_and_its_run() {
    for seed in 0..10 {
        let world = World::draw(seed, Size::Small);
        assert_eq!(world.describe(), World::draw(seed, Size::Small).describe());
        let once = || run(&world, Some(&world.config), 1, true);
        assert!(once() == once(), "{}", world.describe());
        assert!(
            once() != run(&world, Some(&world.config), 2, true),
            "noise is another run"
        );
    }
}

#[test]
fn configurations_meet_the_same_requests() {
    for seed in 0..10 {
        let world = World::draw(seed, Size::Small);
        let came = |config: Option<&Value>| {
            let run = run(&world, config, 0, false);
            run.records
                .iter()
                .map(|it| (it.at, it.client, it.route))
                .collect::<Vec<_>>()
        };
        assert_eq!(came(None), came(Some(&world.config)));
    }
}

#[test]
fn a_line_of_results_says_all() {
    let verdict = Verdict::of(3, Size::Small);
    let line = verdict.to_json().to_string();
    assert_eq!(Verdict::from_json(&line), Some(verdict));
    assert_eq!(Verdict::from_json(&line[..line.len() / 2]), None);
}
