//! The whole never hurts: with everything on no less is useful than with one policy off, or with
//! plain Envoy. Of the worlds of a kind of fault on average; single ones may lose, and are
//! printed.

use crate::config::Policy;
use crate::cores::on_all_cores;
use crate::invariants::seeds;
use crate::record::is_critical;
use crate::sim::run;
use crate::verdict::{MARGIN, MOST_TRIES, Verdict};
use crate::world::{Size, World};
use std::collections::BTreeMap;

/// Worlds of a run of the tests: of each kind of fault a dozen.
const WORLDS: u64 = 200;

/// Worlds of a kind that are enough for an average.
const ENOUGH: usize = 8;

/// What is not met yet, on average of a kind: the fault, what is better than everything on, and the
/// points that it may be better by, a little more than it is. `docs/worlds.md` says why.
const NOT_YET: [(&str, &str, f64); 11] = [
    ("all slow", "limit", 9.0),
    ("all slow", "plain", 10.0),
    ("all slow", "rt_breaker", 2.5),
    ("unreachable", "limit", 15.0),
    ("slow", "limit", 5.0),
    ("outage", "rt_breaker", 5.0),
    ("outage", "plain", 6.0),
    ("overload", "per_try", 3.0),
    ("restart", "ep_breaker", 4.0),
    ("bad route", "rt_breaker", 2.5),
    ("(two faults)", "rt_breaker", 2.5),
];

/// So many of 100 worlds may lose more than [`MARGIN`] against some configuration.
const DOMINATED: usize = 40;

/// Where there is no room, tries a request on average, and in a single world.
const WORST_TRIES: f64 = 1.75;

fn replay(seed: u64) -> String {
    format!("make worlds SIZE=small SEED={seed}")
}

/// All worlds, under all configurations.
fn verdicts() -> Vec<Verdict> {
    let mut all = on_all_cores(seeds(WORLDS), |seed| Verdict::of(seed, Size::Small));
    all.sort_by_key(|it| it.seed);
    all
}

fn mean(worlds: &[&Verdict], of: impl Fn(&Verdict) -> f64) -> f64 {
    worlds.iter().map(|it| of(it)).sum::<f64>() / worlds.len().max(1) as f64
}

/// Per kind of fault: no configuration is better on average.
fn check_kinds(all: &[Verdict], found: &mut Vec<String>) {
    let mut kinds: BTreeMap<&str, Vec<&Verdict>> = BTreeMap::new();
    for verdict in all {
        kinds.entry(verdict.kind()).or_default().push(verdict);
    }
    kinds.insert("(all)", all.iter().collect());
    let others = Policy::ALL.map(Policy::word).into_iter().chain(["plain"]);
    let others: Vec<&str> = others.collect();
    for (kind, worlds) in kinds.iter().filter(|(_, worlds)| worlds.len() >= ENOUGH) {
        for other in &others {
            let lost = |it: &Verdict| it.outcome(other).tally.useful - it.all().tally.useful;
            let by = mean(worlds, lost);
            let allowed = NOT_YET.iter().find(|it| it.0 == *kind && it.1 == *other);
            if by > allowed.map_or(MARGIN, |it| it.2) {
                let worst = worlds.iter().max_by(|a, b| lost(a).total_cmp(&lost(b)));
                let seed = worst.map_or(0, |it| it.seed);
                found.push(format!(
                    "{kind}, {} worlds: {other} is better by {by:.1} points; most in {}",
                    worlds.len(),
                    replay(seed)
                ));
            }
        }
    }
}

/// Per world: what is not as it must be.
fn check_worlds(all: &[Verdict], found: &mut Vec<String>) {
    let most = |of_100: usize| (all.len() * of_100).div_ceil(100);
    let mut dominated: Vec<&Verdict> = all.iter().filter(|it| it.lost() > MARGIN).collect();
    dominated.sort_by(|a, b| b.lost().total_cmp(&a.lost()));
    println!(
        "{} worlds, {} with more load than capacity; in {} some configuration is better by more \
         than {MARGIN} points:",
        all.len(),
        all.iter().filter(|it| it.full).count(),
        dominated.len()
    );
    for it in dominated.iter().take(20) {
        println!(
            "  {:5.1} points, {}: {}",
            it.lost(),
            it.faults,
            replay(it.seed)
        );
    }
    let every: Vec<&Verdict> = all.iter().collect();
    println!(
        "useful on average: {:.2} of {:.2}, plain {:.2}; lost {:.2}",
        mean(&every, |it| it.all().tally.useful),
        mean(&every, |it| it.bound[0]),
        mean(&every, |it| it.outcome("plain").tally.useful),
        mean(&every, Verdict::lost)
    );
    if dominated.len() > most(DOMINATED) {
        found.push(format!("{} worlds are dominated", dominated.len()));
    }
    let full: Vec<&Verdict> = all.iter().filter(|it| it.full).collect();
    let tries = |it: &Verdict| it.all().tally.tries;
    if mean(&full, tries) > MOST_TRIES {
        found.push(format!(
            "{:.2} tries where there is no room",
            mean(&full, tries)
        ));
    }
    for it in all {
        if it.full && tries(it) > WORST_TRIES {
            found.push(format!(
                "{:.2} tries a request: {}",
                tries(it),
                replay(it.seed)
            ));
        }
        if it.outcomes.iter().any(|it| it.tally.twice > 0) {
            found.push(format!("a POST was begun twice: {}", replay(it.seed)));
        }
    }
}

#[test]
fn the_whole_never_hurts() {
    let all = verdicts();
    let mut found = Vec::new();
    check_worlds(&all, &mut found);
    if all.len() as u64 == WORLDS {
        check_kinds(&all, &mut found);
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Where a limit has to refuse, the critical are served first: of the worlds in which both are
/// there and more comes than can be done, a greater part of the critical ones is useful.
#[test]
fn the_critical_come_first() {
    let (mut critical, mut others, mut worlds) = (0.0, 0.0, 0);
    for seed in seeds(WORLDS) {
        let world = World::draw(seed, Size::Small);
        let is_overload = world.faults.iter().all(|it| it.kind.word() == "overload");
        let kinds = world
            .routes
            .iter()
            .map(|it| it.criticality.starts_with("critical"));
        let mixed = kinds.clone().any(|it| it) && kinds.clone().any(|it| !it);
        if !is_overload || !mixed {
            continue;
        }
        let run = run(&world, Some(&world.config), 0, false);
        // The deadline after the start shows what was let in before anything was refused.
        let span = world.span(0);
        let of = |is: bool| {
            run.tally(&world, &span, |it| is_critical(&world, it) == is)
                .useful
        };
        critical += of(true);
        others += of(false);
        worlds += 1;
    }
    println!("{worlds} overloads: {critical:.0} of the critical, {others:.0} of the others");
    assert!(worlds == 0 || critical >= others, "{critical} {others}");
}
