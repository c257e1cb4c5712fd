//! A round: each scenario with the three side by side, a run with lag again.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::clients::Clients;
use super::detail;
use super::kind::Kind;
use super::report::{self, Run, Scenario};
use super::stats::{LAG, measure};
use super::support::endpoint::{Counts, Endpoint};
use super::support::open_loop::Outcome;
use super::support::{Envoy, EnvoyConfig, checkout, run_alone};
use super::upstream::{Part, Seen};
use super::variants::{Variant, bootstrap};
use super::world::World;

/// How often a run with lag is repeated.
const REPEATS: u32 = 2;
/// Envoy's workers.
const WORKERS: u32 = 2;
/// From the clients' first answers to the world's beginning: health checks have found all well.
const SETTLE: Duration = Duration::from_millis(1_500);

/// What to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The seeds; of more than one the report gives medians.
    pub seeds: Vec<u64>,
    /// The scenarios.
    pub kinds: Vec<Kind>,
}

impl Options {
    /// From `HAVEN_SEED` (a number, or several with commas; 1 if not given) and `HAVEN_SCENARIOS`
    /// (an extended regular expression; all if not given).
    pub fn from_env() -> Result<Self, String> {
        let seeds = std::env::var("HAVEN_SEED").unwrap_or_else(|_| "1".to_owned());
        let seeds: Vec<u64> = seeds
            .split(',')
            .map(|seed| seed.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("HAVEN_SEED={seeds}: {error}"))?;
        let pattern = std::env::var("HAVEN_SCENARIOS").unwrap_or_default();
        let kinds = matching(&pattern)?;
        if kinds.is_empty() {
            let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            return Err(format!(
                "HAVEN_SCENARIOS={pattern} matches none of {}",
                names.join(", ")
            ));
        }
        Ok(Self { seeds, kinds })
    }
}

/// The scenarios whose names match; grep knows regular expressions, we do not.
fn matching(pattern: &str) -> Result<Vec<Kind>, String> {
    let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let mut grep = Command::new("grep")
        .args(["-E", "-e", pattern])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("grep: {error}"))?;
    let mut stdin = grep.stdin.take().ok_or("grep takes no input")?;
    stdin
        .write_all(names.join("\n").as_bytes())
        .map_err(|error| format!("grep: {error}"))?;
    drop(stdin);
    let output = grep.wait_with_output().map_err(|error| error.to_string())?;
    let hits = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = Kind::ALL.into_iter();
    Ok(all
        .filter(|kind| hits.lines().any(|name| name == kind.name()))
        .collect())
}

/// Runs them all, prints the report, and writes it into docs/ if no scenario is left out.
pub fn run(options: &Options) {
    let begun = Instant::now();
    let mut results = Vec::new();
    for kind in &options.kinds {
        let runs = options.seeds.iter().map(|seed| quiet_run(*kind, *seed));
        results.push(Scenario {
            kind: *kind,
            runs: runs.collect(),
        });
    }
    if let [Scenario { runs, .. }] = &results[..]
        && let [run] = &runs[..]
    {
        println!("{}", run.detail);
    }
    let text = report::markdown(&results, &head(options, begun.elapsed()));
    println!("{text}");
    println!("For the README:\n\n{}", report::headline(&results));
    if options.kinds.len() == Kind::ALL.len() {
        report::write(&text, &report::picture(&results), &checkout("docs"));
        eprintln!("written: docs/availability.md, docs/availability.svg");
    }
}

fn head(options: &Options, took: Duration) -> String {
    let seeds: Vec<_> = options.seeds.iter().map(u64::to_string).collect();
    let envoy = super::support::envoy_binary().unwrap_or_else(|error| panic!("{error}"));
    let version = output(&envoy.display().to_string(), &["--version"]);
    let version = version.rsplit('/').nth(3).unwrap_or_default().to_owned();
    format!(
        "`make avail SEED={}`, {}: haven {} at {}, Envoy {version} with {WORKERS} workers, \
         {} processors, {} s.",
        seeds.join(","),
        output("date", &["-u", "+%F"]),
        env!("CARGO_PKG_VERSION"),
        output("git", &["rev-parse", "--short", "HEAD"]),
        std::thread::available_parallelism().map_or(0, usize::from),
        took.as_secs(),
    )
}

/// What a command prints; empty if it cannot.
fn output(command: &str, args: &[&str]) -> String {
    let output = Command::new(command)
        .args(args)
        .current_dir(checkout(""))
        .output();
    let bytes = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// A run without lag, or the last of some with it.
fn quiet_run(kind: Kind, seed: u64) -> Run {
    let mut repeats = 0;
    loop {
        let mut run = run_alone(once(kind, seed));
        run.repeats = repeats;
        eprintln!("{}", report::progress(&run));
        if !run.lagged || repeats == REPEATS {
            return run;
        }
        repeats += 1;
    }
}

/// One of the three with a service of its own.
struct Side {
    endpoints: Vec<(Endpoint, Arc<Part>)>,
    envoy: Envoy,
    clients: Clients,
}

impl Side {
    async fn start(variant: Variant, world: &Arc<World>) -> Self {
        let mut endpoints = Vec::new();
        for index in 0..world.endpoints {
            let part = Arc::new(Part::new(world, index));
            let endpoint = Endpoint::start(part.clone()).await;
            endpoints.push((endpoint.expect("an endpoint starts"), part));
        }
        let addresses: Vec<_> = endpoints.iter().map(|(it, _)| it.addr()).collect();
        let text = bootstrap(variant, world, &addresses);
        let envoy = Envoy::start(EnvoyConfig::text(text).concurrency(WORKERS)).await;
        let clients = Clients::connect(world, envoy.addr()).await;
        Self {
            endpoints,
            envoy,
            clients,
        }
    }

    async fn send(&self, world: &Arc<World>, begin: Instant) -> Vec<Outcome> {
        for (endpoint, _) in &self.endpoints {
            endpoint.begin(begin);
        }
        self.clients.send(world, begin).await
    }

    fn seen(&self) -> Vec<(Seen, Counts)> {
        let seen = |(endpoint, part): &(Endpoint, Arc<Part>)| {
            let counts = endpoint.counts();
            (part.seen().clone(), counts)
        };
        self.endpoints.iter().map(seen).collect()
    }
}

/// A scenario once, with the three side by side.
async fn once(kind: Kind, seed: u64) -> Run {
    let world = Arc::new(World::draw(kind, seed));
    let (a, b, c) = tokio::join!(
        Side::start(Variant::ALL[0], &world),
        Side::start(Variant::ALL[1], &world),
        Side::start(Variant::ALL[2], &world),
    );
    sleep(SETTLE).await;
    let sides = [a, b, c];
    let pids = sides.each_ref().map(|side| side.envoy.pid().to_string());
    let before = (cpu("self"), pids.each_ref().map(|pid| cpu(pid)));
    let begin = Instant::now() + Duration::from_millis(50);
    let [a, b, c] = &sides;
    let (a, b, haven, watched) = tokio::join!(
        a.send(&world, begin),
        b.send(&world, begin),
        c.send(&world, begin),
        detail::watch(&c.envoy, &world, begin),
    );
    let seconds = begin.elapsed().as_secs_f64();
    let used = |now: f64, then: f64| (now - then) / seconds;
    let mut run = Run::new(&world);
    run.own_cpu = used(cpu("self"), before.0);
    for (index, outcomes) in [a, b, haven].iter().enumerate() {
        run.envoy_cpu[index] = used(cpu(&pids[index]), before.1[index]);
        let seen = sides[index].seen();
        let mut tries = vec![0_u32; outcomes.len()];
        for number in seen.iter().flat_map(|(seen, _)| &seen.tries) {
            tries[*number] += 1;
        }
        run.measures[index] = measure(&world, outcomes, &tries);
        if Variant::ALL[index] == Variant::Haven {
            run.detail = detail::lines(&world, outcomes, &tries, &watched);
        }
        let worked: u64 = seen.iter().map(|(_, counts)| counts.worked).sum();
        let late: u64 = seen.iter().map(|(_, counts)| counts.late).sum();
        run.lagged |= run.measures[index].late > LAG * 100.0;
        run.lagged |= late as f64 > LAG * worked as f64;
        run.work_late[index] = 100.0 * late as f64 / worked.max(1) as f64;
        run.proof[index] = report::proof(&world, &seen);
    }
    run
}

/// Seconds of processor time that a process has used.
fn cpu(pid: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold spaces; user and system time are fields 14 and 15.
    let rest = text.rsplit(") ").next().unwrap_or_default();
    let ticks = rest.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_an_expression() {
        assert_eq!(matching("").unwrap(), Kind::ALL);
        let storms = [Kind::StormWithRoom, Kind::StormWithoutRoom];
        assert_eq!(matching("^storm").unwrap(), storms);
        let two = [Kind::Dead, Kind::Overload];
        assert_eq!(matching("one-dead|overload").unwrap(), two);
        assert_eq!(matching("nothing").unwrap(), []);
    }

    #[test]
    fn processor_time_is_read() {
        assert!(cpu("self").is_finite());
        assert_eq!(cpu("none"), 0.0);
    }
}
