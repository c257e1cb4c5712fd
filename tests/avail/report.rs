//! The report: a table of the numbers, one of what the endpoints saw, and the picture.

use std::fmt::Write as _;
use std::path::Path;

use super::kind::Kind;
use super::stats::{Measures, median, medians};
use super::support::endpoint::Counts;
use super::svg::{self, Group};
use super::targets::targets;
use super::upstream::Seen;
use super::variants::Variant;
use super::world::{Action, World};

/// The lines of docs/availability.md between which a run writes.
const BEGIN: &str = "<!-- make avail: begin -->";
const END: &str = "<!-- make avail: end -->";

/// A scenario and its runs, one for each seed.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What went wrong.
    pub kind: Kind,
    /// The runs.
    pub runs: Vec<Run>,
}

/// One run of the three, in the order of [`Variant::ALL`].
#[derive(Clone, Debug)]
pub struct Run {
    /// The scenario.
    pub kind: Kind,
    /// The scenario and its seed.
    pub name: String,
    /// What was drawn.
    pub drawn: String,
    /// The numbers.
    pub measures: [Measures; 3],
    /// That the endpoints did what they were to do; `Err`: what they did instead.
    pub proof: [Result<String, String>; 3],
    /// Percent of the endpoints' work that took longer than it should have.
    pub work_late: [f64; 3],
    /// Whether the machine was too busy for the run to say anything.
    pub lagged: bool,
    /// How often it was repeated for that.
    pub repeats: u32,
    /// Processors that clients and endpoints used.
    pub own_cpu: f64,
    /// Processors that each Envoy used.
    pub envoy_cpu: [f64; 3],
    /// haven in lines of half a second.
    pub detail: String,
}

impl Run {
    /// A run of which nothing is known yet but its world.
    pub fn new(world: &World) -> Self {
        Self {
            kind: world.kind,
            name: format!("{} (seed {})", world.kind.name(), world.seed),
            drawn: drawn(world),
            measures: [Measures::default(); 3],
            proof: [const { Ok(String::new()) }; 3],
            work_late: [0.0; 3],
            lagged: false,
            repeats: 0,
            own_cpu: 0.0,
            envoy_cpu: [0.0; 3],
            detail: String::new(),
        }
    }
}

fn drawn(world: &World) -> String {
    format!(
        "{}/s of {:.0}/s; {} endpoints of {} slots, {:.0} ms; deadline {} ms; fault {:.1} s",
        world.rate.round(),
        world.capacity(),
        world.endpoints,
        world.slots,
        world.service.as_secs_f64() * 1_000.0,
        world.deadline.as_millis(),
        (world.to - world.from).as_secs_f64(),
    )
}

/// Whether the endpoints did what the world has them do, in words.
pub fn proof(world: &World, seen: &[(Seen, Counts)]) -> Result<String, String> {
    let sum = |field: fn(&Seen) -> u64| seen.iter().map(|(seen, _)| field(seen)).sum::<u64>();
    let count = |field: fn(&Counts) -> u64| seen.iter().map(|(_, it)| field(it)).sum::<u64>();
    let Some(fault) = world.faults.first() else {
        let arrivals = world.arrivals.iter();
        let sent = arrivals.filter(|a| world.in_fault(a.at)).count() as f64;
        let seconds = (world.to - world.from).as_secs_f64();
        let offered = sent / seconds / world.capacity();
        let done = sum(|seen| seen.finished) as f64 / seconds / world.capacity();
        let text = format!("offered {offered:.1} of capacity, {done:.2} worked");
        return if offered > 2.0 { Ok(text) } else { Err(text) };
    };
    let (struck, failed) = (sum(|seen| seen.struck), sum(|seen| seen.failed));
    let (text, proven) = match fault.action {
        Action::Refuse => {
            let (probes, refused) = (count(|it| it.probes), count(|it| it.refused));
            let (killed, taken) = (count(|it| it.killed), count(|it| it.taken_while_dead));
            (
                format!("refused {refused} of {probes} probes, killed {killed} at work"),
                // A request can slip in at the moment of the death.
                probes > 0 && refused == probes && taken <= 3,
            )
        }
        Action::Hang => {
            let hung = sum(|seen| seen.hung);
            (format!("never answered {hung}"), hung == struck && hung > 0)
        }
        Action::Slow(times) => {
            let slowed = sum(|seen| seen.slowed);
            (format!("{times} times slower for {slowed}"), slowed > 0)
        }
        Action::Fail { share, .. } => {
            let spread = 4.0 * (share * (1.0 - share) / struck.max(1) as f64).sqrt();
            let off = (failed as f64 / struck.max(1) as f64 - share).abs();
            let near = off <= spread + 0.01;
            (format!("failed {failed} of {struck}"), struck > 0 && near)
        }
    };
    if proven { Ok(text) } else { Err(text) }
}

/// A line about a run that is over.
pub fn progress(run: &Run) -> String {
    let of = |field: fn(&Measures) -> f64| slashed(run.measures.iter().map(|m| one(field(m))));
    let mut text = format!(
        "{}: {}\n    useful {}, answered {}, critical {}, tries {}; before the fault {}\n    \
         processors {:.2}, Envoys {}; late requests {} %, late work {} %",
        run.name,
        run.drawn,
        of(|m| m.useful),
        of(|m| m.answered),
        of(|m| m.critical),
        slashed(run.measures.iter().map(|m| format!("{:.2}", m.tries))),
        of(|m| m.before),
        run.own_cpu,
        slashed(run.envoy_cpu.iter().map(|cpu| format!("{cpu:.2}"))),
        of(|m| m.late),
        slashed(run.work_late.iter().map(|late| one(*late))),
    );
    for (variant, proof) in Variant::ALL.iter().zip(&run.proof) {
        let (word, seen) = match proof {
            Ok(seen) => ("", seen),
            Err(seen) => ("NOT PROVEN: ", seen),
        };
        let _ = write!(text, "\n    {}: {word}{seen}", variant.name());
    }
    for target in targets(run.kind, &run.measures[0], &run.measures[2]) {
        let (got, verdict) = (target.got(), target.verdict());
        let _ = write!(text, "\n    {}: {got}, {verdict}", target.text);
    }
    if run.lagged {
        text.push_str("\n    lagged");
    }
    text
}

/// The part of docs/availability.md that a run writes.
pub fn markdown(results: &[Scenario], head: &str) -> String {
    let mut text = wrapped(head);
    let medians_of = results.first().map_or(0, |result| result.runs.len());
    if medians_of > 1 {
        let _ = writeln!(text, "\nMedians of {medians_of} seeds.");
    }
    text.push_str(
        "\nEach cell: plain / native / **haven**.\n\n\
         | scenario | useful % | answered % | critical useful % | tries a request \
         | p99 of answers, ms | well again after, s |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for result in results {
        let measures = summary(result);
        let cell = |text: fn(&Measures) -> String| {
            let [plain, native, haven] = measures.each_ref().map(text);
            format!("{plain} / {native} / **{haven}**")
        };
        let _ = writeln!(
            text,
            "| {}{} | {} | {} | {} | {} | {} | {} |",
            result.kind.title(),
            if result.runs.iter().any(|run| run.lagged) {
                " †"
            } else {
                ""
            },
            cell(|m| one(m.useful)),
            cell(|m| one(m.answered)),
            cell(|m| one(m.critical)),
            cell(|m| format!("{:.2}", m.tries)),
            cell(|m| m
                .p99
                .map_or_else(|| "–".to_owned(), |ms| format!("{ms:.0}"))),
            cell(|m| m
                .recovery
                .map_or_else(|| "not".to_owned(), |s| s.to_string())),
        );
    }
    let runs = || results.iter().flat_map(|result| &result.runs);
    if runs().any(|run| run.lagged) {
        text.push_str(
            "\n† The machine was too busy in each of three runs: these figures say little.\n",
        );
    }
    text.push_str(
        "\nWhat haven is to reach:\n\n| scenario | target | haven | |\n|---|---|---|---|\n",
    );
    for result in results {
        let [plain, _, haven] = summary(result);
        for target in targets(result.kind, &plain, &haven) {
            let (title, text_of) = (result.kind.title(), &target.text);
            let (got, verdict) = (target.got(), target.verdict());
            let _ = writeln!(text, "| {title} | {text_of} | {got} | {verdict} |");
        }
    }
    let most = |each: &mut dyn Iterator<Item = f64>| each.fold(0.0, f64::max);
    let processors = format!(
        "Processors used at most: {:.2} by clients and endpoints of all three together, {:.2} by \
         an Envoy. Runs repeated for lag: {}.",
        most(&mut runs().map(|run| run.own_cpu)),
        most(&mut runs().flat_map(|run| run.envoy_cpu)),
        runs().map(|run| run.repeats).sum::<u32>(),
    );
    let _ = writeln!(text, "\n{}", wrapped(&processors).trim_end());
    text.push_str(
        "\nWhat was drawn, and what the endpoints did while the fault lasted, \
         by their own counts:\n\n\
         | scenario | load, service, fault | with plain | with native | with haven |\n\
         |---|---|---|---|---|\n",
    );
    for run in runs() {
        let [plain, native, haven] = run.proof.each_ref().map(|proof| match proof {
            Ok(seen) => seen.clone(),
            Err(seen) => format!("**not as drawn:** {seen}"),
        });
        let _ = writeln!(
            text,
            "| {} | {} | {plain} | {native} | {haven} |",
            run.name, run.drawn
        );
    }
    for run in runs() {
        for (variant, measures) in Variant::ALL.iter().zip(&run.measures) {
            if measures.before < 98.0 {
                let _ = writeln!(
                    text,
                    "\nBefore the fault, {} was useful to {} % only: {}.",
                    variant.name(),
                    one(measures.before),
                    run.name
                );
            }
        }
    }
    text
}

/// The rows for the README's results, of the scenarios that were run.
pub fn headline(results: &[Scenario]) -> String {
    let mut text = String::new();
    for (kind, question) in [
        (
            Kind::Overload,
            "three times the capacity, half of it critical: useful, of 33.3 % that can be",
        ),
        (
            Kind::StormWithRoom,
            "60 % of all answers fail, the upstream has room: useful",
        ),
        (
            Kind::Abuser,
            "one client sends ten times what all others do: useful to the others",
        ),
        (Kind::Outage, "all endpoints are dead: answered"),
    ] {
        let Some(result) = results.iter().find(|result| result.kind == kind) else {
            continue;
        };
        let [plain, native, haven] = summary(result);
        let of = |it: &Measures| match kind {
            Kind::Outage => it.answered,
            _ => it.useful,
        };
        let more = match kind {
            Kind::Overload => format!(" and {} % of the critical", one(haven.critical)),
            Kind::StormWithRoom => format!(" with {:.2} tries a request", haven.tries),
            _ => String::new(),
        };
        let _ = writeln!(
            text,
            "| {question} | haven {} %{more}; plain Envoy {} %, its own filters {} % \
             | [availability](docs/availability.md#what-was-seen) |",
            one(of(&haven)),
            one(of(&plain)),
            one(of(&native)),
        );
    }
    text
}

/// The medians over a scenario's runs, for each of the three.
fn summary(result: &Scenario) -> [Measures; 3] {
    std::array::from_fn(|index| {
        let runs: Vec<_> = result.runs.iter().map(|run| run.measures[index]).collect();
        medians(&runs)
    })
}

/// The picture of the useful and the answered.
pub fn picture(results: &[Scenario]) -> String {
    let groups: Vec<_> = results
        .iter()
        .map(|result| Group {
            title: result.kind.title().to_owned(),
            bars: summary(result).map(|measures| (measures.useful, measures.answered)),
        })
        .collect();
    svg::picture(
        "Useful answers within the deadline, % of requests while the fault lasts",
        Variant::ALL.map(Variant::name),
        &groups,
    )
}

/// Puts the report between its marks in `availability.md`, and the picture beside it.
pub fn write(text: &str, picture: &str, docs: &Path) {
    let path = docs.join("availability.md");
    let old = std::fs::read_to_string(&path).expect("docs/availability.md is there");
    std::fs::write(&path, replaced(&old, text)).expect("docs/availability.md is written");
    std::fs::write(docs.join("availability.svg"), picture).expect("the picture is written");
}

/// The document with another text between its marks. Panics when it has lost them.
fn replaced(document: &str, text: &str) -> String {
    let (before, rest) = document.split_once(BEGIN).expect("the beginning's mark");
    let (_, after) = rest.split_once(END).expect("the end's mark");
    format!("{before}{BEGIN}\n{}\n{END}{after}", text.trim_end())
}

/// Prose in lines of at most 96 columns.
fn wrapped(text: &str) -> String {
    let (mut lines, mut column) = (String::new(), 0);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 {
            let breaks = column + 1 + length > 96;
            lines.push(if breaks { '\n' } else { ' ' });
            column = if breaks { 0 } else { column + 1 };
        }
        lines.push_str(word);
        column += length;
    }
    lines.push('\n');
    lines
}

fn one(percent: f64) -> String {
    if percent.is_nan() {
        return "–".to_owned();
    }
    // 99.96 is not all of them.
    let shown = if percent < 100.0 {
        (percent * 10.0).floor() / 10.0
    } else {
        percent
    };
    format!("{shown:.1}")
}

fn slashed(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(useful: &[f64]) -> Scenario {
        let runs = useful.iter().enumerate().map(|(seed, useful)| {
            let mut run = Run::new(&World::draw(Kind::Dead, seed as u64));
            run.measures[2] = Measures {
                useful: *useful,
                answered: 100.0,
                recovery: Some(0.25),
                before: 100.0,
                ..Measures::default()
            };
            run
        });
        Scenario {
            kind: Kind::Dead,
            runs: runs.collect(),
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_scenario_and_medians_of_seeds() {
        let text = markdown(&[result(&[90.0, 99.96, 95.0])], "Seen.");
        assert!(text.starts_with("Seen.\n\nMedians of 3 seeds."));
        let row = text
            .lines()
            .find(|line| line.starts_with("| one endpoint dead"));
        assert!(row.unwrap().contains("0.0 / 0.0 / **95.0**"), "{row:?}");
        assert!(
            row.unwrap().contains("not / **0.25**")
                || row.unwrap().contains("not / not / **0.25**")
        );
        assert_eq!(text.matches("| one-dead (seed ").count(), 3);
        assert!(
            text.lines()
                .all(|l| l.starts_with('|') || l.chars().count() <= 100)
        );
        assert_eq!(one(99.96), "99.9");
        assert_eq!(median([Some(1.0)].into_iter()), Some(1.0));
    }

    #[test]
    fn the_readme_has_rows_of_what_was_run() {
        let mut of = result(&[32.54, 33.0, 32.0]);
        assert_eq!(headline(&[of.clone()]), "");
        of.kind = Kind::Overload;
        let row = headline(&[of]);
        assert!(
            row.contains("haven 32.5 % and 0.0 % of the critical; plain"),
            "{row}"
        );
    }

    #[test]
    fn the_report_goes_between_its_marks_again_and_again() {
        let document = format!("# T\n\n{BEGIN}\nold\n{END}\n\nAfter.\n");
        let once = replaced(&document, "new\n");
        assert_eq!(once, format!("# T\n\n{BEGIN}\nnew\n{END}\n\nAfter.\n"));
        assert_eq!(replaced(&once, "new\n"), once);
        let kept = include_str!("../../docs/availability.md");
        assert!(kept.contains(BEGIN) && kept.contains(END));
    }

    #[test]
    fn a_fault_is_proven_by_what_the_endpoints_count() {
        let world = World::draw(Kind::HalfFailing, 1);
        let of = |struck, failed| {
            let seen = Seen {
                struck,
                failed,
                ..Seen::default()
            };
            (seen, Counts::default())
        };
        assert!(proof(&world, &[of(100, 52)]).is_ok());
        assert!(proof(&world, &[of(100, 90)]).is_err());
        assert!(proof(&world, &[of(0, 0)]).is_err());
        let world = World::draw(Kind::Dead, 1);
        let dead = |refused| {
            let counts = Counts {
                probes: 9,
                refused,
                ..Counts::default()
            };
            [(Seen::default(), counts)]
        };
        assert!(proof(&world, &dead(9)).is_ok());
        assert!(proof(&world, &dead(8)).is_err());
    }
}
