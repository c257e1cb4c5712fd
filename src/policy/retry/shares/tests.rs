use super::super::{Budget, GrantRequest, Totals};
use super::Shares;
use crate::base::percent::Percent;
use crate::base::rng::Rng;
use crate::base::time::{Moment, Nanos};
use crate::policy::retry::config::{Retry, RetryBudget};

/// A client of the world, and how it sends.
#[derive(Clone, Copy)]
struct Sender {
    client: u32,
    per_second: u64,
    /// How many of 100 tries fail.
    failing: u64,
    latency: Nanos,
}

/// A route's budget in a world of such clients: of the honest ones' requests that failed at first,
/// how many had no retry; of how many requests. `told_apart`: whether the budget knows whose a
/// request is.
struct World {
    budgets: Vec<Budget>,
    /// What each of them knows: it reads shared totals, but its own counts first.
    totals: Totals,
    in_flight: Vec<(Moment, usize, Sender, u32)>,
    unaided: u64,
    honest: u64,
    told_apart: bool,
}

const HOSTILE: u32 = 1_000;

/// One retry each, of a fifth of the requests and so many a second.
fn a_fifth(min_per_second: u32) -> Retry {
    Retry {
        attempts: 1,
        on: "5xx".into(),
        grpc_on: String::new(),
        methods: vec!["GET".into()],
        budget: RetryBudget::Share(Percent(2_000)),
        min_per_second,
    }
}

impl World {
    fn new(workers: usize, floor: u32, told_apart: bool) -> Self {
        let config = a_fifth(floor);
        Self {
            budgets: vec![Budget::new(&config); workers],
            totals: Totals::default(),
            in_flight: Vec::new(),
            unaided: 0,
            honest: 0,
            told_apart,
        }
    }

    /// Runs for so long, by steps of a millisecond.
    fn run(&mut self, from: u64, millis: u64, senders: &[Sender], rng: &Rng) {
        for at in from..from + millis {
            let now = Moment::from_millis(at);
            self.end_due(now, rng);
            for sender in senders {
                let chance = sender.per_second / 1_000;
                let more = rng.below(1_000) < sender.per_second % 1_000;
                (0..chance + u64::from(more)).for_each(|_| self.begin(now, *sender, rng));
            }
        }
    }

    fn begin(&mut self, now: Moment, sender: Sender, rng: &Rng) {
        let worker = usize::try_from(rng.below(self.budgets.len() as u64)).unwrap();
        let request = GrantRequest {
            wanted: 1,
            spare: false,
            client: if self.told_apart { sender.client } else { 0 },
        };
        let granted = self.budgets[worker].grant(now, self.totals, request);
        self.totals.requests += 1;
        let end = now.plus(sender.latency);
        self.in_flight.push((end, worker, sender, granted));
    }

    fn end_due(&mut self, now: Moment, rng: &Rng) {
        let (due, rest) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .partition(|(end, ..)| *end <= now);
        self.in_flight = rest;
        let due: Vec<(Moment, usize, Sender, u32)> = due;
        for (_, worker, sender, granted) in due {
            let failed = rng.below(100) < sender.failing;
            let is_honest = sender.client != HOSTILE;
            self.honest += u64::from(is_honest);
            self.unaided += u64::from(is_honest && failed && granted == 0);
            let spent = u64::from(failed && granted > 0);
            self.totals.retries += spent;
            if granted > 0 {
                let client = if self.told_apart { sender.client } else { 0 };
                let well = Some(rng.below(100) >= sender.failing);
                self.budgets[worker].settle(client, granted, spent, well);
            }
        }
    }
}

/// Honest clients of which 6 % fails by chance, and one whose requests all do, at any rate, at once
/// or slowly. Unaided honest failures per 1,000 honest requests: without the hostile one, with it,
/// and with it where nobody is told apart.
fn worlds(seed: u64) -> ([u64; 3], String) {
    let draw = Rng::new(seed);
    let workers = usize::try_from(1 + draw.below(4)).unwrap();
    let floor = u32::try_from(draw.below(2) * 10).unwrap();
    let latency = Nanos::from_millis(5 + draw.below(60));
    let count = 3 + draw.below(8);
    let mut senders: Vec<_> = (0..count)
        .map(|client| Sender {
            client: u32::try_from(client).unwrap(),
            per_second: 20 + draw.below(100),
            failing: 6,
            latency,
        })
        .collect();
    let hostile = Sender {
        client: HOSTILE,
        per_second: 100 + draw.below(1_000),
        failing: 100,
        latency: Nanos::from_millis(1 + draw.below(1_000)),
    };
    let mut result = |hostile: Option<Sender>, told_apart| {
        let rng = Rng::new(seed);
        let mut world = World::new(workers, floor, told_apart);
        world.run(10_000, 2_000, &senders, &rng);
        let (unaided, honest) = (world.unaided, world.honest);
        senders.extend(hostile);
        world.run(12_000, 6_000, &senders, &rng);
        senders.retain(|sender| sender.client != HOSTILE);
        (world.unaided - unaided) * 1_000 / (world.honest - honest)
    };
    let all = [
        result(None, true),
        result(Some(hostile), true),
        result(Some(hostile), false),
    ];
    let case = format!(
        "seed {seed}: {workers} workers, floor {floor}, {count} clients, {latency:?}; hostile: {}/s, {:?}; {all:?}",
        hostile.per_second, hostile.latency
    );
    (all, case)
}

#[test]
fn one_client_uses_up_nobody_elses_retries() {
    let mut all = [0; 3];
    for seed in 0..60 {
        let (unaided, case) = worlds(seed);
        // Of 60 in 1,000 that fail.
        assert!(unaided[1] <= unaided[0] + 12, "{case}");
        all.iter_mut().zip(unaided).for_each(|(sum, of)| *sum += of);
    }
    let [without, with, not_told_apart] = all.map(|sum| sum / 60);
    assert!(with <= without + 3, "{without} without, {with} with");
    assert!(not_told_apart > 30, "it would: {not_told_apart}");
}

#[test]
fn a_client_whose_requests_fail_of_themselves_does_not_show_that_retries_help_nobody() {
    let mut shares = Shares::default();
    let mut now = Moment::from_secs(5);
    let mut stood_out = [0, 0];
    for n in 0..4_000u32 {
        now = now.plus(Nanos::from_millis(1));
        // One in five is the hostile one's, all retried; of the others one in twenty is.
        let client = if n % 5 == 0 { HOSTILE } else { n % 7 };
        shares.ask(now, client);
        if client == HOSTILE || n % 20 == 3 {
            shares.settle(client, 0, 1);
        }
        let at = usize::from(client != HOSTILE);
        stood_out[at] += u32::from(n > 500 && shares.stands_out(client));
    }
    assert!(stood_out[0] > 650, "{stood_out:?} of 700");
    assert_eq!(stood_out[1], 0);

    // The only client, and one of equals of which all fail, do not.
    for clients in [1, 8] {
        let mut shares = Shares::default();
        for n in 0..2_000u32 {
            now = now.plus(Nanos::from_millis(1));
            shares.ask(now, n % clients);
            shares.settle(n % clients, 0, 1);
            assert!(!shares.stands_out(n % clients), "{clients} clients, {n}");
        }
    }
}

#[test]
fn what_is_over_is_forgotten_whichever_way_the_clock_goes() {
    let mut shares = Shares::default();
    let spend = |shares: &mut Shares, now| {
        shares.ask(now, 1);
        (0..100).for_each(|_| shares.settle(1, 0, 1));
        assert!(shares.has_spent_its_part(1, 50, 1));
    };
    spend(&mut shares, Moment::from_secs(50));
    shares.ask(Moment::from_secs(60), 1);
    assert!(!shares.has_spent_its_part(1, 50, 1));
    spend(&mut shares, Moment::from_secs(60));
    shares.ask(Moment::from_secs(2), 1);
    assert!(!shares.has_spent_its_part(1, 50, 1), "stepped back");
}

/// Clients that hang up, and those that run into their own deadline, show nothing: in the storm that
/// follows no more is granted at once than without them.
#[test]
fn cancels_make_no_grant_look_unlikely_to_be_used() {
    let open = |cancels: bool| {
        let config = a_fifth(0);
        let (mut budget, mut totals) = (Budget::new(&config), Totals::default());
        let mut granted_at_once = 0;
        for n in 0..6_000u64 {
            let now = Moment::from_millis(10_000 + n);
            let mut ask = |client| {
                let granted = budget.grant(
                    now,
                    totals,
                    GrantRequest {
                        wanted: 1,
                        spare: false,
                        client,
                    },
                );
                totals.requests += 1;
                (client, granted)
            };
            let (client, granted) = ask(u32::try_from(n % 16).unwrap());
            let (other, cancelled) = if cancels { ask(HOSTILE) } else { (HOSTILE, 0) };
            if n < 5_000 {
                // All of them fail; the other one hangs up.
                budget.settle(client, granted, granted.into(), Some(false));
                totals.retries += u64::from(granted);
                budget.settle(other, cancelled, 0, None);
            } else {
                granted_at_once += granted;
            }
        }
        granted_at_once
    };
    let [with, without] = [open(true), open(false)];
    // With its requests the budget is twice as large.
    assert!(
        with <= without * 2 + 20,
        "{with} open grants, {without} without"
    );
}
