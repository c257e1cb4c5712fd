//! A scenario looked at closely: haven in lines of half a second, and its metrics at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::stats::percent;
use super::support::Envoy;
use super::support::open_loop::Outcome;
use super::world::{Path, World};

const STEP: Duration = Duration::from_millis(500);

/// haven's gauges at the end of each step.
pub async fn watch(envoy: &Envoy, world: &World, begin: Instant) -> Vec<BTreeMap<String, u64>> {
    let mut all = Vec::new();
    let mut next = begin + STEP;
    while next < begin + world.end {
        sleep_until(next).await;
        all.push(metrics(envoy).await);
        next += STEP;
    }
    all
}

/// haven's counters and gauges that are not zero.
async fn metrics(envoy: &Envoy) -> BTreeMap<String, u64> {
    let page = envoy.admin_get("/stats?filter=haven_&type=All").await;
    let lines = page.lines().filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let name = name.strip_prefix("wasmcustom.").unwrap_or(name);
        let value = value.parse().ok().filter(|value| *value != 0)?;
        let is_told = !name.contains("haven_internal") && !name.contains("_timestamp_");
        is_told.then(|| (name.to_owned(), value))
    });
    lines.collect()
}

/// The lines; `!`: the fault lasts.
pub fn lines(
    world: &World,
    outcomes: &[Outcome],
    tries: &[u32],
    watched: &[BTreeMap<String, u64>],
) -> String {
    let mut text = format!(
        "{:>7} {:>5} {:>7} {:>8} {:>8} {:>5} | {:>5} {:>6} {:>5} {:>5} | in flight at endpoints\n",
        "ms", "sent", "useful", "critical", "answered", "tries", "limit", "flight", "epBr", "rtBr"
    );
    let mut from = Duration::ZERO;
    let nothing = BTreeMap::new();
    for step in 0.. {
        if from >= world.end {
            break;
        }
        let to = from + STEP;
        let sent = || {
            let all = world.arrivals.iter().zip(outcomes).zip(tries);
            all.filter(|((arrival, _), _)| arrival.counted && (from..to).contains(&arrival.at))
        };
        let useful = percent(sent().map(|((_, it), _)| it.useful()), f64::NAN);
        let critical = sent().filter(|((arrival, _), _)| arrival.path == Path::Critical);
        let critical = percent(critical.map(|((_, it), _)| it.useful()), f64::NAN);
        let answered = percent(sent().map(|((_, it), _)| it.answered()), f64::NAN);
        let reached: u32 = sent().map(|(_, tries)| tries).sum();
        let gauges = watched.get(step).unwrap_or(&nothing);
        let of = |name: &str, part: &str| {
            let all = gauges.iter();
            let all = all.filter(|(it, _)| it.starts_with(name) && it.contains(part));
            all.map(|(_, value)| *value).collect::<Vec<u64>>()
        };
        let sum = |name| of(name, "").iter().sum::<u64>();
        let open = |scope| of("haven_circuit_breaker_state", scope).len();
        let _ = writeln!(
            text,
            "{:>6}{} {:>5} {useful:>7.1} {critical:>8.1} {answered:>8.1} {:>5.2} | {:>5} {:>6} \
             {:>5} {:>5} | {:?}",
            from.as_millis(),
            if world.in_fault(from) { '!' } else { ' ' },
            sent().count(),
            f64::from(reached) / sent().count().max(1) as f64,
            sum("haven_concurrency_limit"),
            sum("haven_concurrency_in_flight"),
            open("per-endpoint"),
            open("per-route"),
            of("haven_endpoint_in_flight", ""),
        );
        from = to;
    }
    for (name, value) in watched.last().unwrap_or(&nothing) {
        let _ = writeln!(text, "    {name} {value}");
    }
    text
}
