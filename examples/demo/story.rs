//! The seven acts.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::NAMES;
use crate::out::Look;
use crate::report::{Counts, milliseconds, seconds};
use crate::stage::{Act, CROWD, Ended, LOUD, SPEEDS, STEADY, Stage};
use crate::support::{Reply, holds_within};
use crate::traffic::{Outcome, Who};
use crate::watch::state;

/// What the noisy client asks for per second, and what `envoy.yaml` gives it.
const NOISY: u32 = 300;
const LIMIT: u64 = 100;
const BURST: u64 = 50;
/// With how many requests the route's circuit tries the upstreams: `half_open_calls`.
const TRIALS: u64 = 1;

/// How long acts without a condition last.
const SCENE: Duration = Duration::from_secs(5);

/// How long a dead or hung upstream may go unnoticed.
const NOTICE: Duration = Duration::from_secs(5);

/// Longer than any open time in `envoy.yaml`.
const PATIENCE: Duration = Duration::from_secs(25);

/// Tells the story; says whether it went as it should.
pub async fn tell(stage: &mut Stage) -> bool {
    prologue(stage);
    stage.start_traffic();
    let steady = steady(stage).await;
    noisy(stage, &steady).await;
    killed(stage).await;
    hung(stage).await;
    recovered(stage, &steady).await;
    all_fail(stage).await;
    all_recover(stage).await;
    stage.stop_traffic();
    epilogue(stage)
}

fn prologue(stage: &Stage) {
    let out = &stage.out;
    out.heading("haven in a real Envoy");
    out.plain(&format!(
        "  Envoy with 4 workers and envoy.yaml at http://{}",
        stage.envoy.addr()
    ));
    let upstreams: Vec<String> = NAMES
        .iter()
        .zip(SPEEDS)
        .map(|(name, (time, capacity))| format!("{name} ({time} ms, {capacity} at once)"))
        .collect();
    out.plain(&format!(
        "  three unequal upstreams: {}",
        upstreams.join(", ")
    ));
    let total = u32::from(CROWD.0) * CROWD.1 + STEADY;
    out.plain(&format!(
        "  traffic all the time, {total} requests/s, whatever comes back: {} clients of {}/s, a steady one of {STEADY}/s",
        CROWD.0, CROWD.1
    ));
}

async fn steady(stage: &mut Stage) -> Counts {
    let mut act = stage
        .begin(
            "steady traffic",
            &["Nothing is wrong. haven gives each upstream what it can take."],
        )
        .await;
    sleep(SCENE).await;
    let ended = stage.end(&act).await;
    let counts = ended.counts;
    all_real(&mut act, &counts);
    let [a, b, c] = counts.by_upstream;
    act.expect(
        a > b && b > c && c > 0,
        format!(
            "all upstreams served, the faster ones more: {}",
            counts.shares()
        ),
    );
    let p99 = milliseconds(counts.percentile(99));
    stage.judge(
        act,
        &format!(
            "three unequal upstreams shared {}, p99 {p99}",
            counts.shares()
        ),
    );
    counts
}

async fn noisy(stage: &mut Stage, before: &Counts) {
    let lead = format!(
        "One client more asks for {NOISY}/s. envoy.yaml gives each client {LIMIT}/s and {BURST} at once."
    );
    let mut act = stage.begin("a noisy client", &[&lead]).await;
    let noise = stage.stream(Who::Noisy, LOUD, NOISY);
    sleep(SCENE).await;
    drop(noise);
    let ended = stage.end(&act).await;
    if let Some(reply) = stage.ledger.a_limited() {
        show(
            stage,
            "a refusal",
            &reply,
            &["retry-after", "ratelimit", "proxy-status"],
        );
    }
    let (noisy, others) = (
        ended.of(|who| who == Who::Noisy),
        ended.of(|who| who != Who::Noisy),
    );
    all_real(&mut act, &others);
    let (least, most) = admissible(&ended);
    act.expect(
        (least..=most).contains(&noisy.real) && noisy.real + noisy.limited == noisy.requests,
        format!(
            "the noisy client got {} of {}: {BURST} + {LIMIT}/s allow {least} to {most}",
            noisy.real, noisy.requests
        ),
    );
    let without = stage.ledger.without_wait();
    act.expect(
        noisy.limited > 0 && without == 0,
        format!("each of {} refusals says when to come again", noisy.limited),
    );
    let counted = ended.grew("haven_decisions_total", &[("reason", "rate_limited")]);
    act.expect(
        counted == noisy.limited,
        format!("haven_decisions_total{{reason=\"rate_limited\"}} grew by {counted}"),
    );
    let p99 = |counts: &Counts| milliseconds(counts.percentile(99));
    stage.judge(
        act,
        &format!(
            "{} of {} refused; others {} of {} served, p99 {} (was {})",
            noisy.limited,
            noisy.requests,
            others.real,
            others.requests,
            p99(&others),
            p99(before)
        ),
    );
}

/// How many requests of the noisy client a token bucket must, and may, admit in the time they took.
fn admissible(ended: &Ended) -> (u64, u64) {
    let noisy = || {
        ended
            .samples
            .iter()
            .filter(|sample| sample.who == Who::Noisy)
    };
    let first = noisy().map(|sample| sample.sent).min();
    let span = |last: Option<Instant>| {
        last.zip(first)
            .map_or(Duration::ZERO, |(last, first)| last.duration_since(first))
    };
    let allowed = |span: Duration| BURST + (LIMIT as f64 * span.as_secs_f64()) as u64;
    let least = allowed(span(noisy().map(|sample| sample.sent).max()));
    // What the generator sent late, it sent late: some tokens may have run over before the burst
    // was used up.
    (
        least * 95 / 100,
        allowed(span(noisy().map(|sample| sample.done).max())) + 1,
    )
}

async fn killed(stage: &mut Stage) {
    let lead = [
        "a, which served most, is gone: its port refuses. After 4 s it is restarted. Nobody tells haven: it",
        "finds out by requests, which go to the next upstream, and tries a again when the open time is over.",
    ];
    let mut act = stage.begin("upstream a is killed", &lead).await;
    let killed = Instant::now();
    stage
        .fault(0, "upstream a is killed", |faults| faults.close = true)
        .await;
    let opened = stage
        .watch
        .until(NOTICE, |metrics| stage.watch.of_endpoint(metrics, 0) == 1)
        .await;
    let noticed = killed.elapsed();
    sleep(Duration::from_secs(4).saturating_sub(killed.elapsed())).await;
    let restarted = Instant::now();
    stage.heal(0, "upstream a is restarted").await;
    let back = first_real(stage, 0, restarted).await;
    let closed = stage
        .watch
        .until(PATIENCE, |metrics| stage.watch.of_endpoint(metrics, 0) == 0)
        .await;
    sleep(Duration::from_secs(1)).await;
    let ended = stage.end(&act).await;
    all_real(&mut act, &ended.counts);
    let retries = ended.grew("haven_retries_total", &[]);
    act.expect(
        retries > 0,
        format!("{retries} requests needed a second upstream"),
    );
    act.expect(
        opened,
        format!("a's circuit opened {} after its death", seconds(noticed)),
    );
    let meanwhile = Counts::of(
        ended
            .samples
            .iter()
            .filter(|s| s.sent > killed + noticed && s.done < restarted),
    );
    let [a, b, c] = meanwhile.by_upstream;
    act.expect(
        a == 0 && b > 0 && c > 0,
        format!(
            "meanwhile the others shared its traffic: {}",
            meanwhile.shares()
        ),
    );
    act.expect(
        back.is_some() && closed,
        format!(
            "a served again {} after its death: its open time is 10 s",
            after(killed, back)
        ),
    );
    stage.judge(
        act,
        &format!(
            "{}, {retries} retries, left alone after {}",
            failures(&ended.counts),
            seconds(noticed)
        ),
    );
}

async fn hung(stage: &mut Stage) {
    let lead = [
        "Worse than dead: a accepts requests and never answers. A try ends after 0.4 s (timeout.per_try),",
        "and the request goes to the next upstream. Only those caught before the circuit opens wait.",
    ];
    let mut act = stage.begin("upstream a hangs", &lead).await;
    let (before, caught) = (Instant::now(), received(stage, 0));
    stage
        .fault(0, "upstream a hangs", |faults| faults.hang = true)
        .await;
    let opened = stage
        .watch
        .until(NOTICE, |metrics| stage.watch.of_endpoint(metrics, 0) == 1)
        .await;
    let noticed = before.elapsed();
    // Those that had been sent to a are on their way to the others by then.
    sleep(Duration::from_secs(1)).await;
    let (clear, alone) = (Instant::now(), received(stage, 0));
    sleep(Duration::from_secs(3)).await;
    let (caught, alone) = (alone - caught, received(stage, 0) - alone);
    let ended = stage.end(&act).await;
    all_real(&mut act, &ended.counts);
    act.expect(
        opened,
        format!(
            "a's circuit opened {} after it began to hang",
            seconds(noticed)
        ),
    );
    let requests = ended.counts.requests;
    act.expect(
        caught * 20 < requests,
        format!("a caught {caught} of {requests} requests before that"),
    );
    let later = Counts::of(ended.samples.iter().filter(|sample| sample.sent > clear));
    let p99 = milliseconds(later.percentile(99));
    act.expect(
        alone == 0,
        format!(
            "{alone} of the {} requests of the last 3 s went to a: p99 {p99}",
            later.requests
        ),
    );
    stage.judge(
        act,
        &format!(
            "{}, {caught} waited 0.4 s longer, then p99 {p99}",
            failures(&ended.counts)
        ),
    );
}

async fn recovered(stage: &mut Stage, steady: &Counts) {
    let lead = [
        "a answers again. When its open time is over, haven lets five requests try it, then trusts it.",
    ];
    let mut act = stage.begin("upstream a recovers", &lead).await;
    let healed = Instant::now();
    stage.heal(0, "upstream a answers again").await;
    let back = first_real(stage, 0, healed).await;
    let closed = stage
        .watch
        .until(PATIENCE, |metrics| stage.watch.of_endpoint(metrics, 0) == 0)
        .await;
    let whole = Instant::now();
    sleep(Duration::from_secs(2)).await;
    let ended = stage.end(&act).await;
    all_real(&mut act, &ended.counts);
    act.expect(
        back.is_some() && closed,
        format!(
            "a served again after {}, and its circuit closed",
            after(healed, back)
        ),
    );
    let now = Counts::of(ended.samples.iter().filter(|sample| sample.sent > whole));
    act.expect(
        now.share(0) > steady.share(0) / 2.0,
        format!(
            "the shares are as before: {}, in act 1 {}",
            now.shares(),
            steady.shares()
        ),
    );
    stage.judge(
        act,
        &format!(
            "{}, a has {:.0} % of the traffic again",
            failures(&ended.counts),
            now.share(0)
        ),
    );
}

async fn all_fail(stage: &mut Stage) {
    let lead = [
        "a is dead, b hangs, c answers 503 to all. The fallback answers in their place: the last good answer",
        "to the request (stale), and to the steady client, which asks for something new each time, a fixed one.",
        "Once nine of ten of the last 2 s' requests have failed, the route's circuit opens: no more waiting.",
        "Each half second five requests try whether the service is back.",
    ];
    let mut act = stage.begin("all upstreams fail", &lead).await;
    let failed = Instant::now();
    stage
        .fault(0, "upstream a is killed", |faults| faults.close = true)
        .await;
    stage
        .fault(1, "upstream b hangs", |faults| faults.hang = true)
        .await;
    stage
        .fault(2, "upstream c answers 503", |faults| {
            faults.status = Some(503)
        })
        .await;
    let opened = stage
        .watch
        .until(PATIENCE, |metrics| state(metrics, "users") == 1)
        .await;
    let open_after = failed.elapsed();
    // Tries that were on their way end within the per-try timeout.
    sleep(Duration::from_millis(700)).await;
    let (rounds, quiet, asked) = (
        trial_rounds(stage).await,
        Instant::now(),
        all_received(stage),
    );
    sleep(Duration::from_millis(1800)).await;
    let asked = all_received(stage) - asked;
    // One may have been under way before.
    let rounds = trial_rounds(stage).await - rounds + 1;
    let unready = until_ready(stage, 503).await;
    if unready {
        stage.out.event("/readyz: 503");
        stage.out.wrapped(12, &stage.readyz().await.1);
    }
    let ready = stage.readyz().await.0;
    let ended = stage.end(&act).await;
    for (what, reply) in [
        ("a stale answer", stage.ledger.a_stale()),
        ("a fixed answer", stage.ledger.a_fixed()),
    ] {
        if let Some(reply) = reply {
            show(
                stage,
                what,
                &reply,
                &["age", "content-type", "proxy-status"],
            );
        }
    }
    let counts = &ended.counts;
    act.expect(
        counts.failed + counts.errors == 0 && counts.real + counts.fallback() == counts.requests,
        format!(
            "clients saw no error; {} of {} answers were the fallback's",
            counts.fallback(),
            counts.requests
        ),
    );
    let (known, new) = (
        ended.of(|who| who == Who::Crowd),
        ended.of(|who| who == Who::Steady),
    );
    act.expect(
        known.stale > 0 && known.fixed == 0 && new.stale == 0 && new.fixed > 0,
        format!(
            "{} stale ones to what had been asked before, {} fixed ones to what was new",
            known.stale, new.fixed
        ),
    );
    let told = |step| ended.grew("haven_fallbacks_total", &[("step", step)]);
    let (stale, fixed) = (told("stale"), told("respond"));
    act.expect(
        // Those of the next act's first requests may be among them.
        stale >= counts.stale && fixed >= counts.fixed,
        format!(
            "haven_fallbacks_total grew by {stale} (step=\"stale\") and {fixed} (step=\"respond\")"
        ),
    );
    let retries = ended.grew("haven_retries_total", &[]);
    act.expect(
        retries * 4 <= counts.requests,
        format!(
            "{retries} retries for {} requests: they do not help, and are no more than a fifth",
            counts.requests
        ),
    );
    act.expect(
        unready && ready == 503,
        "/readyz: 503, so that a load balancer looks elsewhere",
    );
    act.expect(
        opened,
        format!("the route's circuit opened after {}", seconds(open_after)),
    );
    let at_once = Counts::of(ended.samples.iter().filter(|sample| sample.sent > quiet));
    let waiting = Counts::of(ended.samples.iter().filter(|s| {
        s.done < failed + open_after && matches!(s.outcome, Outcome::Stale | Outcome::Fixed)
    }));
    let (p99, before) = (
        milliseconds(at_once.percentile(99)),
        milliseconds(waiting.percentile(99)),
    );
    act.expect(
        opened && asked <= rounds * TRIALS,
        format!("from then on {asked} requests reached an upstream, to try it, in {rounds} rounds of {TRIALS}; p99 {p99} (while it was closed: {before})"),
    );
    stage.judge(
        act,
        &format!(
            "{}, {} stale and {} fixed answers, then p99 {p99}",
            failures(counts),
            counts.stale,
            counts.fixed
        ),
    );
}

/// How often the route's circuit has let requests try the upstreams.
async fn trial_rounds(stage: &Stage) -> u64 {
    let labels = [("circuit_breaker", "users"), ("to", "half_open")];
    let metrics = stage.watch.now().await;
    metrics.total("haven_circuit_breaker_transitions_total", &labels) as u64
}

async fn all_recover(stage: &mut Stage) {
    let mut act = stage
        .begin(
            "recovery",
            &["All three are well again. Nobody tells haven."],
        )
        .await;
    let healed = Instant::now();
    for (at, name) in NAMES.iter().enumerate() {
        stage.heal(at, &format!("upstream {name} is well")).await;
    }
    let first = || {
        stage
            .ledger
            .first_after(healed, |outcome| matches!(outcome, Outcome::Real(_)))
    };
    holds_within(PATIENCE, async || first().is_some()).await;
    let first = first();
    stage.out.event(&format!(
        "the first real answer, after {}",
        after(healed, first)
    ));
    let ready = until_ready(stage, 200).await;
    let ready_after = healed.elapsed();
    if ready {
        stage.out.event("/readyz: 200");
    }
    let closed = stage.watch.until(PATIENCE, |metrics| {
        state(metrics, "users") == 0
            && (0..NAMES.len()).all(|upstream| stage.watch.of_endpoint(metrics, upstream) == 0)
    });
    let closed = closed.await;
    let whole = Instant::now();
    sleep(Duration::from_secs(2)).await;
    let ended = stage.end(&act).await;
    let counts = &ended.counts;
    act.expect(
        counts.failed + counts.errors == 0 && counts.real + counts.fallback() == counts.requests,
        "clients saw no error on the way back either",
    );
    act.expect(
        first.is_some(),
        format!(
            "the first real answer came {} after the end of the outage",
            after(healed, first)
        ),
    );
    act.expect(
        ready,
        format!("/readyz: 200 after {}", seconds(ready_after)),
    );
    let now = Counts::of(ended.samples.iter().filter(|sample| sample.sent > whole));
    act.expect(
        closed && now.real == now.requests && now.by_upstream.iter().all(|served| *served > 0),
        format!(
            "all circuits closed, {} of {} answers real, shares {}",
            now.real,
            now.requests,
            now.shares()
        ),
    );
    stage.judge(
        act,
        &format!(
            "first real answer after {}, ready after {}",
            after(healed, first),
            seconds(ready_after)
        ),
    );
}

/// One screen: what happened, and what it is good for.
fn epilogue(stage: &Stage) -> bool {
    let out = &stage.out;
    let all = Counts::of(&stage.ledger.all());
    let met = stage.summary.iter().all(|(met, _)| *met);
    out.plain("");
    out.heading("summary");
    out.plain(&format!(
        "  {} · {} requests: {} answered by an upstream, {} stale, {} fixed, {} refused (429), {} failed",
        seconds(stage.began.elapsed()),
        all.requests,
        all.real,
        all.stale,
        all.fixed,
        all.limited,
        all.failed + all.errors
    ));
    out.plain("");
    for (met, line) in &stage.summary {
        out.verdict(*met, line);
    }
    out.plain("");
    if !met {
        out.line(Look::Bad, "  The story did not go as it should: see ✗ above. A bug, or a machine that is very busy.");
        let log = stage.envoy.logs();
        let lines: Vec<&str> = log.lines().collect();
        out.plain("  The end of Envoy's log:");
        for line in lines.iter().skip(lines.len().saturating_sub(20)) {
            out.wrapped(4, line);
        }
        return false;
    }
    for line in [
        "What to take from it: the service had none of this built in, and nobody turned a knob.",
        "  · Who asks for too much is refused, exactly and over all workers; the others do not notice.",
        "  · An upstream that dies or hangs costs a few requests a second try. Then it is left alone, and tried",
        "    again by a handful of requests before it is trusted.",
        "  · When all are gone clients get the last good answer, or one you chose, at once, and /readyz tells",
        "    your load balancer.",
        "  · All of it is in envoy.yaml, and in haven_… on Envoy's /stats/prometheus.",
    ] {
        out.plain(&format!("  {line}"));
    }
    true
}

/// Each request was answered by an upstream.
fn all_real(act: &mut Act, counts: &Counts) {
    let what = match counts.limited + counts.fallback() + counts.failed + counts.errors {
        0 => format!("all {} requests answered by an upstream", counts.requests),
        other => format!(
            "all {} requests answered by an upstream: {other} were not",
            counts.requests
        ),
    };
    act.expect(counts.real == counts.requests && counts.requests > 0, what);
}

fn failures(counts: &Counts) -> String {
    format!(
        "{} of {} failed",
        counts.failed + counts.errors,
        counts.requests
    )
}

/// When an upstream first answered something that was sent after `since`.
async fn first_real(stage: &Stage, upstream: usize, since: Instant) -> Option<Instant> {
    let first = || {
        stage
            .ledger
            .first_after(since, |outcome| outcome == Outcome::Real(upstream))
    };
    holds_within(PATIENCE, async || first().is_some()).await;
    first()
}

fn after(since: Instant, moment: Option<Instant>) -> String {
    moment.map_or_else(
        || "never".to_owned(),
        |moment| seconds(moment.duration_since(since)),
    )
}

async fn until_ready(stage: &Stage, status: u16) -> bool {
    holds_within(PATIENCE, async || stage.readyz().await.0 == status).await
}

/// Requests that have reached an upstream so far.
fn received(stage: &Stage, upstream: usize) -> u64 {
    stage
        .upstreams
        .get(upstream)
        .map_or(0, |upstream| upstream.counters().requests)
}

fn all_received(stage: &Stage) -> u64 {
    (0..NAMES.len())
        .map(|upstream| received(stage, upstream))
        .sum()
}

/// An answer as the client saw it.
fn show(stage: &Stage, what: &str, reply: &Reply, headers: &[&str]) {
    stage
        .out
        .plain(&format!("  {what:<15} status {}", reply.status));
    for name in headers {
        if let Some(value) = reply.header(name) {
            stage.out.wrapped(18, &format!("{name}: {value}"));
        }
    }
    stage.out.wrapped(18, &reply.text());
}
