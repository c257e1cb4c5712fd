//! `make worlds SEED=n`: one world with everything on, so that a person can see what happened.

use crate::config::Policy;
use crate::draw::MS;
use crate::fault::Fault;
use crate::record::{End, REASONS, Run};
use crate::sim::{SAMPLE, run};
use crate::verdict::Verdict;
use crate::world::{Size, World};

/// Prints a world: what it is, how each configuration does, and then a line for each 100 ms.
/// `HAVEN_WITHOUT=retry` shows the run without a policy, `HAVEN_WITHOUT=plain` plain Envoy.
pub fn show(seed: u64) {
    let size = Size::asked();
    let world = World::draw(seed, size);
    println!("world {seed}: {}", world.describe());
    println!(
        "routes {:?}\nclients {:?}\n{}",
        world.routes, world.clients, world.config
    );
    let verdict = Verdict::of(seed, size);
    println!(
        "bound {:?}, more load than capacity: {}",
        verdict.bound, verdict.full
    );
    for it in &verdict.outcomes {
        println!("{:>11} {:?} recovery {} ms", it.name, it.tally, it.recovery);
    }
    println!("not as it must be: {:?}", verdict.faults_found());
    let without = std::env::var("HAVEN_WITHOUT").unwrap_or_default();
    let policy = Policy::ALL.iter().find(|it| it.word() == without);
    let config = policy.map_or_else(
        || Some(world.config.clone()),
        |policy| policy.removed_from(&world.config),
    );
    let config = config.filter(|_| without != "plain");
    print!("{}", text(&world, &run(&world, config.as_ref(), 0, true)));
}

/// The lines: of the requests that came in each span, and how things stood at its end; `!`: a
/// fault.
pub fn text(world: &World, run: &Run) -> String {
    let mut text = format!(
        "{:>6} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} | \
         {:>5} {:>5} {:>5} {:>4} {:>4} {:>4} | {}\n",
        "ms",
        "came",
        "use",
        "late",
        "fail",
        "fallb",
        "refus",
        "tries",
        "limit",
        "fligh",
        "held",
        "epBr",
        "rtBr",
        "out",
        "haven's reasons"
    );
    let mut records = run.records.as_slice();
    for sample in &run.samples {
        let count = records.iter().take_while(|it| it.at < sample.at).count();
        let (now, later) = records.split_at(count);
        records = later;
        let of = |is: fn(End) -> bool| now.iter().filter(|it| is(it.end)).count();
        let reasons: Vec<String> = REASONS
            .iter()
            .map(|word| {
                (
                    word,
                    now.iter()
                        .filter(|it| it.end.reason() == Some(word))
                        .count(),
                )
            })
            .filter(|(_, count)| *count > 0)
            .map(|(word, count)| format!("{word} {count}"))
            .collect();
        let from = sample.at - SAMPLE;
        let is_on = |it: &Fault| from < it.until && sample.at > it.from;
        let mark = if world.faults.iter().any(is_on) {
            '!'
        } else {
            ' '
        };
        text += &format!(
            "{:>5}{mark} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} | \
             {:>5} {:>5} {:>5} {:>4} {:>4} {:>4} | {}\n",
            from / MS,
            count,
            of(|end| end == End::Useful),
            of(|end| matches!(end, End::Late | End::Gone)),
            of(|end| matches!(end, End::Failed(_))),
            of(|end| matches!(end, End::Fallback(_))),
            of(|end| matches!(end, End::Refused(_))),
            now.iter().map(|it| it.tries).sum::<u32>(),
            sample.limit,
            sample.in_flight,
            sample.held,
            sample.open_endpoints,
            sample.open_routes,
            sample.unwell,
            reasons.join(", ")
        );
    }
    text
}
