//! `make worlds SEEDS=a..b`: many worlds under every configuration, in tables.
//!
//! Each world is a line in a file of results, so that a run that was broken off goes on where it
//! was. The file's name follows from the program: another build starts afresh.

use crate::config::Policy;
use crate::cores::on_all_cores;
use crate::timeline;
use crate::verdict::{MARGIN, Outcome, Verdict};
use crate::world::Size;
use haven::base::hash::xxh64;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
#[ignore = "make worlds"]
fn report() {
    if let Ok(seed) = std::env::var("HAVEN_WORLD") {
        return timeline::show(seed.parse().expect("HAVEN_WORLD is a number"));
    }
    let (from, to) = asked();
    let path = results();
    let known: Vec<Verdict> = fs::read_to_string(&path)
        .unwrap_or_default()
        .lines()
        .filter_map(Verdict::from_json)
        .filter(|it| (from..to).contains(&it.seed))
        .collect();
    println!(
        "{} of {} worlds are known: {}",
        known.len(),
        to - from,
        path.display()
    );
    let all = run_all(known, &path);
    print!("{}", tables(&all));
}

/// The seeds that are asked for.
fn asked() -> (u64, u64) {
    let seeds = std::env::var("HAVEN_WORLDS").unwrap_or_else(|_| "0..1000".into());
    let (from, to) = seeds
        .split_once("..")
        .expect("HAVEN_WORLDS is like 0..1000");
    let number = |text: &str| text.parse().expect("HAVEN_WORLDS has numbers");
    (number(from), number(to))
}

/// What is made of each seed that is asked for, in no order; says how far it is.
pub fn each_seed<R: Send>(make: impl Fn(u64) -> R + Sync) -> Vec<R> {
    let (from, to) = asked();
    let done = AtomicU64::new(0);
    on_all_cores(from..to, |seed| {
        let made = make(seed);
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(50) {
            println!("{done} of {}", to - from);
        }
        made
    })
}

/// The file of results of this very program.
fn results() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let hash = xxh64(&fs::read(&program).unwrap(), 0);
    let folder = program.parent().unwrap();
    let size = match Size::asked() {
        Size::Small => "small-",
        Size::Full => "",
    };
    let longer = crate::world::longer();
    folder.join(format!("worlds-{size}{longer}x-{hash:016x}.jsonl"))
}

fn run_all(known: Vec<Verdict>, path: &PathBuf) -> Vec<Verdict> {
    let file: Mutex<File> = Mutex::new(
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap(),
    );
    let done: BTreeSet<u64> = known.iter().map(|it| it.seed).collect();
    let fresh = each_seed(|seed| {
        (!done.contains(&seed)).then(|| {
            let verdict = Verdict::of(seed, Size::asked());
            writeln!(file.lock().unwrap(), "{}", verdict.to_json()).unwrap();
            verdict
        })
    });
    let mut all = known;
    all.extend(fresh.into_iter().flatten());
    all.sort_by_key(|it| it.seed);
    all
}

/// All tables, in Markdown.
fn tables(all: &[Verdict]) -> String {
    [summary(all), kinds(all), worst(all)].concat()
}

fn summary(all: &[Verdict]) -> String {
    let mut found: BTreeMap<String, (usize, f64)> = BTreeMap::new();
    for (by, word) in all.iter().flat_map(Verdict::faults_found) {
        let (count, most) = found.entry(word).or_default();
        *count += 1;
        *most = most.max(by);
    }
    let dominated = all.iter().filter(|it| it.lost() > MARGIN).count();
    let full = all.iter().filter(|it| it.full).count();
    let mut text = format!(
        "\n{} worlds, {full} of them with more load than capacity. In {dominated} some\n\
         configuration is better than everything on by more than {MARGIN} points.\n\n\
         | what | worlds | at worst, points |\n|---|---|---|\n",
        all.len()
    );
    for (word, (count, most)) in found {
        let what = match word.as_str() {
            "bound" => "useful below 95 % of the bound, load above capacity".into(),
            "critical" => "critical below 95 % of its bound, load above capacity".into(),
            "tries" => "above 1.25 tries a request, load above capacity (hundredths)".into(),
            "plain" => "plain Envoy is better".into(),
            "POST twice" => "a POST may have been begun twice".into(),
            policy => format!("better without `{policy}`"),
        };
        text += &format!("| {what} | {count} | {most:.1} |\n");
    }
    text
}

/// By kind of fault: what each configuration does, mean of the worlds.
fn kinds(all: &[Verdict]) -> String {
    let mut kinds: BTreeMap<&str, Vec<&Verdict>> = BTreeMap::new();
    for verdict in all {
        kinds.entry(verdict.kind()).or_default().push(verdict);
    }
    let words = Policy::ALL.map(Policy::word);
    let mut useful = Table::new(&["fault", "worlds", "dominated", "bound", "all"]);
    words
        .iter()
        .for_each(|word| useful.head(&format!("-{word}")));
    useful.head("plain");
    let mut more = Table::new(&[
        "fault",
        "critical",
        "bound",
        "better of -retry, -per_try",
        "others",
    ]);
    [
        "plain",
        "fallbacks",
        "refused",
        "tries",
        "-retry",
        "recovered",
        "-rt_breaker",
        "plain",
    ]
    .iter()
    .for_each(|word| more.head(word));
    for (kind, worlds) in kinds {
        let mean = |of: &dyn Fn(&Verdict) -> f64| {
            worlds.iter().map(|it| of(it)).sum::<f64>() / worlds.len() as f64
        };
        let of = |name: &str, of: fn(&Outcome) -> f64| mean(&|it| of(it.outcome(name)));
        let percent = |number: f64| format!("{number:.1}");
        let dominated = worlds.iter().filter(|it| it.lost() > MARGIN).count();
        let mut row = vec![
            kind.to_owned(),
            worlds.len().to_string(),
            dominated.to_string(),
        ];
        row.push(percent(mean(&|it| it.bound[0])));
        let names = ["all"].iter().chain(&words).chain(&["plain"]);
        row.extend(names.map(|name| percent(of(name, |it| it.tally.useful))));
        useful.row(&row);
        let soon = |it: &Outcome| if it.recovery <= 1_000.0 { 100.0 } else { 0.0 };
        more.row(&[
            kind.to_owned(),
            percent(of("all", |it| it.tally.critical)),
            percent(mean(&|it| it.bound[1])),
            percent(of("retry", |it| it.tally.critical).max(of("per_try", |it| it.tally.critical))),
            percent(of("all", |it| it.tally.others)),
            percent(of("plain", |it| it.tally.others)),
            percent(of("all", |it| it.tally.fallback)),
            percent(of("all", |it| it.tally.refused)),
            format!("{:.2}", of("all", |it| it.tally.tries)),
            format!("{:.2}", of("retry", |it| it.tally.tries)),
            percent(of("all", soon)),
            percent(of("rt_breaker", soon)),
            percent(of("plain", soon)),
        ]);
    }
    format!(
        "\nUseful, in percent, mean of the worlds; `-x`: without x.\n\n{}\n\
         With everything on, unless a column says otherwise. Others: clients that\n\
         abuse nothing. Recovered: the share of worlds that are within 1 s.\n\n{}",
        useful.0 + "\n",
        more.0 + "\n"
    )
}

/// A table in Markdown.
struct Table(String);

impl Table {
    fn new(heads: &[&str]) -> Self {
        let mut table = Self("|\n|".into());
        heads.iter().for_each(|head| table.head(head));
        table
    }

    fn head(&mut self, head: &str) {
        let end = self.0.find('\n').unwrap();
        self.0.insert_str(end - 1, &format!("| {head} "));
        self.0.push_str("---|");
    }

    fn row(&mut self, cells: &[String]) {
        self.0.push_str(&format!("\n| {} |", cells.join(" | ")));
    }
}

/// The worlds in which most is lost.
fn worst(all: &[Verdict]) -> String {
    let mut sorted: Vec<&Verdict> = all.iter().filter(|it| it.lost() > MARGIN).collect();
    sorted.sort_by(|a, b| b.lost().total_cmp(&a.lost()));
    let mut text = String::from(
        "\nThe worst 20: useful with everything on, and what is better.\n\n\
         | seed | faults | all | tries | bound | better without |\n|---|---|---|---|---|---|\n",
    );
    for verdict in sorted.iter().take(20) {
        let mut better: Vec<_> = verdict.outcomes[1..].iter().collect();
        better.retain(|it| it.tally.useful > verdict.all().tally.useful + MARGIN);
        better.sort_by(|a, b| b.tally.useful.total_cmp(&a.tally.useful));
        let better: Vec<String> = better
            .iter()
            .map(|it| format!("{} {:.1}", it.name, it.tally.useful))
            .collect();
        text += &format!(
            "| {} | {} | {:.1} | {:.2} | {:.1} | {} |\n",
            verdict.seed,
            verdict.faults,
            verdict.all().tally.useful,
            verdict.all().tally.tries,
            verdict.bound[0],
            better.join(", ")
        );
    }
    text
}
