//! One world under every configuration, and what of it is not as it must be.

use crate::bound;
use crate::config::Policy;
use crate::draw::{MS, SECOND};
use crate::record::{Record, Run, Tally, is_critical};
use crate::sim::run;
use crate::world::{Size, World};
use serde_json::{Value, json};

/// With everything on, no configuration may be better than this, in points.
pub const MARGIN: f64 = 1.5;

/// Where load exceeds capacity, at least this share of the bound is useful.
pub const OF_BOUND: f64 = 0.95;

/// Where there is no room, at most so many tries a request.
pub const MOST_TRIES: f64 = 1.25;

/// Repetitions of a world in which something is better than everything on.
const REPEATS: u64 = 3;

/// A configuration of a world, and what came of it, on average over its repetitions.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// `all`, `plain`, or the policy that is off.
    pub name: String,
    /// What was counted in the span.
    pub tally: Tally,
    /// Time to recover, in milliseconds; what is longer than the run counts as a minute.
    pub recovery: f64,
}

/// A world, compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The world's seed.
    pub seed: u64,
    /// Its faults.
    pub faults: String,
    /// The most that could be useful, in percent, and of that the critical.
    pub bound: [f64; 2],
    /// More comes than the endpoints can do.
    pub full: bool,
    /// First `all`, last `plain`.
    pub outcomes: Vec<Outcome>,
}

impl Verdict {
    /// Runs a world under every configuration.
    pub fn of(seed: u64, size: Size) -> Self {
        let world = World::draw(seed, size);
        let mut configs = vec![("all", Some(world.config.clone()))];
        for policy in Policy::ALL {
            if let Some(without) = policy.removed_from(&world.config) {
                configs.push((policy.word(), Some(without)));
            }
        }
        configs.push(("plain", None));
        let span = world.span(2 * SECOND);
        let arrivals = run(&world, None, 0, false).records;
        let of = |which: &dyn Fn(&Record) -> bool| {
            let some: Vec<Record> = arrivals.iter().copied().filter(|it| which(it)).collect();
            bound::bound(&world, &some, &span)
        };
        let mut verdict = Self {
            seed,
            faults: world
                .faults
                .iter()
                .map(|it| it.kind.word())
                .collect::<Vec<_>>()
                .join(" + "),
            bound: [of(&|_| true), of(&|it| is_critical(&world, it))].map(rounded),
            full: bound::is_full(&world, &arrivals, &span),
            outcomes: Vec::new(),
        };
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); configs.len()];
        for noise in 0..REPEATS {
            for ((_, config), runs) in configs.iter().zip(&mut runs) {
                runs.push(run(&world, config.as_ref(), noise, false));
            }
            let outcomes = configs.iter().zip(&runs);
            verdict.outcomes = outcomes
                .map(|((name, _), runs)| mean(&world, name, runs))
                .collect();
            // Chance may have it so once: with more repetitions it is true, or gone.
            if verdict.lost() <= MARGIN {
                break;
            }
        }
        verdict
    }

    /// The kind of its fault, one word for all pairs of faults.
    pub fn kind(&self) -> &str {
        if self.faults.contains(" + ") {
            "(two faults)"
        } else {
            &self.faults
        }
    }

    /// What came of it with everything on.
    pub fn all(&self) -> &Outcome {
        &self.outcomes[0]
    }

    /// What came of it under this name; with everything on where a world lacks the policy.
    pub fn outcome(&self, name: &str) -> &Outcome {
        let found = self.outcomes.iter().find(|it| it.name == name);
        found.unwrap_or(self.all())
    }

    /// What is not as it must be: by how many points (or tries, times 100), and in a word.
    pub fn faults_found(&self) -> Vec<(f64, String)> {
        let all = self.all().tally;
        let mut found = Vec::new();
        for other in &self.outcomes[1..] {
            let lost = other.tally.useful - all.useful;
            if lost > MARGIN {
                found.push((lost, other.name.clone()));
            }
        }
        if self.full {
            let [bound, critical] = self.bound;
            for (bound, useful, word) in [
                (bound, all.useful, "bound"),
                (critical, all.critical, "critical"),
            ] {
                if useful < bound * OF_BOUND {
                    found.push((bound - useful, word.into()));
                }
            }
            if all.tries > MOST_TRIES {
                found.push(((all.tries - MOST_TRIES) * 100.0, "tries".into()));
            }
        }
        if all.twice > 0 {
            found.push((100.0, "POST twice".into()));
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        found
    }

    /// By how much the worst configuration is better than everything on.
    pub fn lost(&self) -> f64 {
        let all = self.all().tally.useful;
        let others = self.outcomes[1..].iter().map(|it| it.tally.useful - all);
        others.fold(0.0, f64::max)
    }

    /// As a line of the file of results.
    pub fn to_json(&self) -> Value {
        let outcomes = self.outcomes.iter().map(|it| {
            let t = it.tally;
            json!([
                it.name,
                t.offered,
                t.useful,
                t.critical,
                t.others,
                t.fallback,
                t.refused,
                t.tries,
                t.twice,
                it.recovery
            ])
        });
        json!({"seed": self.seed, "faults": self.faults, "bound": self.bound, "full": self.full,
            "outcomes": outcomes.collect::<Vec<_>>()})
    }

    /// From a line of the file of results; `None`: it was not written to its end.
    pub fn from_json(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let outcomes = value["outcomes"].as_array()?.iter().map(|it| {
            let number = |at: usize| it[at].as_f64().unwrap_or(0.0);
            Outcome {
                name: it[0].as_str().unwrap_or_default().to_owned(),
                tally: Tally {
                    offered: number(1) as u64,
                    useful: number(2),
                    critical: number(3),
                    others: number(4),
                    fallback: number(5),
                    refused: number(6),
                    tries: number(7),
                    twice: number(8) as u64,
                },
                recovery: number(9),
            }
        });
        Some(Self {
            seed: value["seed"].as_u64()?,
            faults: value["faults"].as_str()?.to_owned(),
            bound: [value["bound"][0].as_f64()?, value["bound"][1].as_f64()?],
            full: value["full"].as_bool()?,
            outcomes: outcomes.collect(),
        })
    }
}

/// To a thousandth, so that a line of results reads back as it was.
fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

fn mean(world: &World, name: &str, runs: &[Run]) -> Outcome {
    let span = world.span(2 * SECOND);
    let tallies: Vec<Tally> = runs
        .iter()
        .map(|run| run.tally(world, &span, |_| true))
        .collect();
    let mean =
        |of: fn(&Tally) -> f64| rounded(tallies.iter().map(of).sum::<f64>() / runs.len() as f64);
    let recovery = runs.iter().map(|run| {
        run.recovery(world)
            .map_or(60_000.0, |time| (time / MS) as f64)
    });
    Outcome {
        name: name.to_owned(),
        tally: Tally {
            offered: tallies.iter().map(|it| it.offered).sum(),
            useful: mean(|it| it.useful),
            critical: mean(|it| it.critical),
            others: mean(|it| it.others),
            fallback: mean(|it| it.fallback),
            refused: mean(|it| it.refused),
            tries: mean(|it| it.tries),
            twice: tallies.iter().map(|it| it.twice).sum(),
        },
        recovery: rounded(recovery.sum::<f64>() / runs.len() as f64),
    }
}
