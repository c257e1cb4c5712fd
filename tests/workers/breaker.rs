//! A breaker over all workers equals one breaker that counts all outcomes in order.

use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::rng::Rng;
use haven::base::time::{Moment, Nanos};
use haven::host::sim::{HostKind, Machine, Worker};
use haven::host::{Cas, CasMismatch, Clock, Platform, SharedCounter, SharedCounters, SharedData};
use haven::policy::Outcome;
use haven::policy::circuit_breaker::window::{Window, weight};
use haven::policy::circuit_breaker::{Admission, BreakerSettings, BreakerState, CallResult, Phase};
use haven::policy::circuit_breaker::{CircuitBreaker, Meters, VERSION_HOLDS};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const HALF_OPEN_CALLS: u32 = 2;
const OPEN: u64 = 500;
const MAX_WAIT: u64 = 2_000;

const MINIMUM: usize = 4;

/// Windows: so long that nothing leaves them, a short one, and one that counts calls.
const LONG: &str = r#"{"type": "time", "size": "1h"}"#;
const SHORT: &str = r#"{"type": "time", "size": "1s"}"#;
const BUCKET: Nanos = Nanos::from_millis(100);
const COUNT: (&str, usize) = (r#"{"type": "count", "size": 6}"#, 6);

/// A call that took no time and ended so.
const fn quick(outcome: Outcome) -> CallResult {
    CallResult {
        outcome,
        duration: Nanos::ZERO,
        retry_after: None,
        begun: false,
    }
}

fn settings_with(window: &str) -> BreakerSettings {
    let json = format!(
        r#"{{"circuit_breakers": {{"b": {{"minimum_calls": {MINIMUM}, "failure_rate_threshold": 50, "window": {window},
            "open_duration": "500ms", "half_open_calls": {HALF_OPEN_CALLS}, "half_open_max_wait": "2s"}}}}}}"#
    );
    BreakerSettings::new(
        haven::document::parse(json.as_bytes())
            .unwrap()
            .circuit_breakers[0]
            .as_ref()
            .clone(),
    )
}

fn settings() -> BreakerSettings {
    settings_with(LONG)
}

fn breaker() -> CircuitBreaker {
    CircuitBreaker::new("b", &["route", "r"], "")
}

fn meters(worker: &Worker) -> Meters {
    Meters {
        version: worker.define_shared("version"),
        tally: worker.define_shared("tally"),
        consecutive: SharedCounter::NONE,
    }
}

/// What happened, in the order in which it took effect.
#[derive(Clone, Copy, Debug)]
enum Event {
    Admitted {
        epoch: u32,
        at: Moment,
    },
    Refused {
        at: Moment,
    },
    Ended {
        epoch: u32,
        at: Moment,
        outcome: Outcome,
    },
}

/// The breaker, as plain lists.
#[derive(Default)]
struct Reference {
    epoch: u32,
    phase: Option<(Phase, Moment)>,
    /// Failures of the calls that count in this epoch.
    calls: Vec<bool>,
    /// How many of them do, if not all.
    last: Option<usize>,
    /// Admitted in this half-open epoch and not given back.
    permits: u32,
}

impl Reference {
    fn phase(&self) -> Phase {
        self.phase.map_or(Phase::Closed, |(phase, _)| phase)
    }

    fn enter(&mut self, phase: Phase, at: Moment) {
        *self = Self {
            epoch: self.epoch + 1,
            phase: Some((phase, at)),
            last: self.last,
            ..Self::default()
        };
    }

    fn acquire(&mut self, at: Moment) -> Option<u32> {
        let since = self.phase.map_or(Moment::ZERO, |(_, since)| since);
        match self.phase() {
            Phase::Closed => return Some(self.epoch),
            Phase::Open if at < since.plus(Nanos::from_millis(OPEN)) => return None,
            Phase::Open => self.enter(Phase::HalfOpen, at),
            Phase::HalfOpen if at >= since.plus(Nanos::from_millis(MAX_WAIT)) => {
                self.enter(Phase::Open, at);
                return None;
            }
            Phase::HalfOpen => {}
        }
        if self.permits >= HALF_OPEN_CALLS {
            return None;
        }
        self.permits += 1;
        Some(self.epoch)
    }

    fn end(&mut self, epoch: u32, at: Moment, outcome: Outcome) {
        if epoch != self.epoch || self.phase() == Phase::Open {
            return;
        }
        let half_open = self.phase() == Phase::HalfOpen;
        let failed = match outcome {
            Outcome::Ignore => {
                self.permits -= u32::from(half_open);
                return;
            }
            Outcome::Success => false,
            Outcome::Failure => true,
        };
        self.calls.push(failed);
        let minimum = if half_open {
            HALF_OPEN_CALLS as usize
        } else {
            MINIMUM
        };
        let counted = &self.calls[self
            .calls
            .len()
            .saturating_sub(self.last.unwrap_or(usize::MAX))..];
        let failures = counted.iter().filter(|f| **f).count();
        if counted.len() >= minimum && failures * 2 >= counted.len() {
            self.enter(Phase::Open, at);
        } else if half_open && counted.len() >= minimum {
            self.enter(Phase::Closed, at);
        }
    }
}

/// Where each outcome is written by itself: on a host without metrics, and in a count window.
#[test]
fn all_workers_together_are_one_breaker() {
    for_each_seed("all_workers_together_are_one_breaker", 30_000, |seed| {
        let (window, last) = if seed % 3 == 0 {
            (COUNT.0, Some(COUNT.1))
        } else {
            (LONG, None)
        };
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(
            if seed % 2 == 0 {
                HostKind::Envoy
            } else {
                HostKind::Nginx
            },
            seed,
        );
        machine.cas_failures.set([0, 10][rng.below(2) as usize]);
        let failing = [10, 50, 90][rng.below(3) as usize];
        let events = Rc::new(RefCell::new(Vec::new()));
        let tasks = (0..2 + rng.below(7)).map(|_| {
            let (worker, events, rng) = (
                Worker(Rc::clone(&machine)),
                Rc::clone(&events),
                Rc::clone(&rng),
            );
            Box::new(move || {
                let (breaker, settings) = (breaker(), settings_with(window));
                for _ in 0..1 + rng.below(12) {
                    let at = worker.monotonic();
                    // Nothing yields between the write that decides and the note of it: notes are
                    // in order of effect.
                    let Ok((admission, _)) = breaker.acquire(&worker, &settings, at) else {
                        continue;
                    };
                    let Admission::Admitted { epoch, .. } = admission else {
                        events.borrow_mut().push(Event::Refused { at });
                        continue;
                    };
                    events.borrow_mut().push(Event::Admitted { epoch, at });
                    let outcome = match rng.below(100) {
                        n if n < failing => Outcome::Failure,
                        n if n < 93 => Outcome::Success,
                        _ => Outcome::Ignore,
                    };
                    let at = worker.monotonic();
                    let call = quick(outcome);
                    if breaker
                        .end(&worker, &settings, at, epoch, call, &rng)
                        .is_ok()
                    {
                        events
                            .borrow_mut()
                            .push(Event::Ended { epoch, at, outcome });
                    }
                }
            }) as Box<dyn FnOnce()>
        });
        let faults = Faults {
            pause: 20,
            longest: Nanos::from_millis(300),
            lost_vm: 3,
            step_back: 0,
        };
        run(&machine, &rng, faults, tasks.collect());

        let mut reference = Reference {
            last,
            ..Reference::default()
        };
        for event in events.borrow().iter() {
            match *event {
                Event::Admitted { epoch, at } => {
                    assert_eq!(reference.acquire(at), Some(epoch), "{event:?}")
                }
                Event::Refused { at } => assert_eq!(reference.acquire(at), None, "{event:?}"),
                Event::Ended { epoch, at, outcome } => reference.end(epoch, at, outcome),
            }
        }
        let worker = Worker(Rc::clone(&machine));
        let state = breaker().peek(&worker);
        assert_eq!(
            (state.phase, state.epoch),
            (reference.phase(), reference.epoch)
        );
        is_not_stuck(&machine, &breaker());
    });
}

/// Whatever was lost on the way: two waits later a call passes.
fn is_not_stuck(machine: &Rc<Machine>, breaker: &CircuitBreaker) {
    let worker = Worker(Rc::clone(machine));
    breaker.refresh(&worker, &settings(), None);
    machine.cas_failures.set(0);
    let admitted = (0..3).any(|_| {
        machine.advance(Nanos::from_millis(MAX_WAIT));
        matches!(
            breaker.acquire(&worker, &settings(), worker.monotonic()),
            Ok((Admission::Admitted { .. }, _))
        )
    });
    assert!(admitted, "stuck: {:?}", breaker.peek(&worker));
}

#[test]
fn clocks_that_step_do_not_stick_it() {
    for_each_seed("clocks_that_step_do_not_stick_it", 5_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(HostKind::Envoy, seed);
        let tasks = (0..2 + rng.below(4)).map(|_| {
            let (worker, rng) = (Worker(Rc::clone(&machine)), Rc::clone(&rng));
            Box::new(move || {
                let settings = settings();
                let breaker = breaker().metered(meters(&worker), &settings);
                for _ in 0..4 {
                    if let Ok((Admission::Admitted { epoch, .. }, _)) =
                        breaker.acquire(&worker, &settings, worker.monotonic())
                    {
                        let call = quick(Outcome::Failure);
                        let _ =
                            breaker.end(&worker, &settings, worker.monotonic(), epoch, call, &rng);
                    }
                }
            }) as Box<dyn FnOnce()>
        });
        let faults = Faults {
            pause: 50,
            longest: Nanos::from_secs(1_000),
            lost_vm: 5,
            step_back: 50,
        };
        run(&machine, &rng, faults, tasks.collect());
        let breaker = breaker().metered(meters(&Worker(Rc::clone(&machine))), &settings());
        is_not_stuck(&machine, &breaker);
    });
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug)]
enum Doing {
    Acquire {
        at: Moment,
    },
    End {
        at: Moment,
        epoch: u32,
        outcome: Outcome,
    },
}

/// The breaker where outcomes are tallied, as plain lists: of the tally in the order in which
/// outcomes were added to it, and of the record in the order of its writes.
#[derive(Default)]
struct Tallied {
    phase: Phase,
    epoch: u32,
    since: Moment,
    permits: u32,
    /// Half-Open: failures of the round.
    trial: Vec<bool>,
    /// Closed: each outcome, and the newest bucket of the record when it was added.
    outcomes: Vec<(u64, bool)>,
    head: u64,
    /// Phases and epochs that there were.
    history: Vec<(Phase, u32)>,
    /// When their number was told, and what it was.
    seen: Vec<(Moment, usize)>,
    /// An outcome of an older epoch may have got in: its worker was stopped for too long, or knew
    /// too little.
    stray: bool,
    /// By worker.
    doing: Vec<Option<Doing>>,
    added: Vec<bool>,
    due: Vec<bool>,
    tripping: Vec<bool>,
}

impl Tallied {
    fn new(workers: usize) -> Self {
        Self {
            history: vec![(Phase::Closed, 0)],
            doing: vec![None; workers],
            added: vec![false; workers],
            due: vec![false; workers],
            tripping: vec![false; workers],
            ..Self::default()
        }
    }

    /// Whether the window that ends with this bucket says that it is time to open.
    fn trips(&self, head: u64, buckets: u64) -> bool {
        let inside = self
            .outcomes
            .iter()
            .filter(|(bucket, _)| bucket + buckets > head);
        let (calls, failures) = inside.fold((0, 0), |(n, f), (_, failed)| {
            (n + 1, f + usize::from(*failed))
        });
        calls >= MINIMUM && failures * 2 >= calls
    }

    fn enter(&mut self, phase: Phase, at: Moment) {
        (self.phase, self.epoch, self.since, self.permits) = (phase, self.epoch + 1, at, 0);
        self.history.push((phase, self.epoch));
        self.trial.clear();
        self.outcomes.clear();
        // What strays in while it is Open or Half-Open is there when the next window begins, or
        // slips in beside its beginning.
        self.stray &= phase != Phase::Open;
    }

    fn added(&mut self, worker: usize, failed: bool, bucket: Nanos) {
        self.added[worker] = true;
        match self.doing[worker] {
            Some(Doing::End { at, epoch, .. })
                if epoch == self.epoch && self.phase == Phase::Closed =>
            {
                assert!(
                    self.head >= at.0 / bucket.0,
                    "counted in a bucket that was over"
                );
                self.outcomes.push((self.head, failed));
            }
            _ => self.stray |= self.phase != Phase::Open,
        }
    }

    /// A worker has read the tally, to judge by it if it has added to it.
    fn read(&mut self, worker: usize, bucket: Nanos, buckets: u64) {
        let Some(Doing::End { at, epoch, .. }) = self.doing[worker].filter(|_| self.added[worker])
        else {
            return;
        };
        if (epoch, self.phase) != (self.epoch, Phase::Closed)
            || self.due[worker]
            || self.tripping[worker]
        {
            return;
        }
        // Its window ends with a bucket between that of its clock and that of the record.
        let own = (at.0 / bucket.0).min(self.head);
        self.due[worker] = (own..=self.head).all(|head| self.trips(head, buckets));
        self.tripping[worker] = (own..=self.head).any(|head| self.trips(head, buckets));
    }

    /// A worker has written the record.
    fn wrote(&mut self, worker: usize, state: &BreakerState) {
        let doing = self.doing[worker].expect("no write without a reason");
        match (self.phase, doing) {
            (Phase::Closed, Doing::End { at, .. }) if state.phase == Phase::Open => {
                assert!(
                    self.tripping[worker] || self.stray,
                    "opened without need: {:?}",
                    self.outcomes
                );
                self.enter(Phase::Open, at);
            }
            (Phase::Closed, Doing::End { .. }) => {}
            (Phase::Open, Doing::Acquire { at }) => {
                assert!(
                    at >= self.since.plus(Nanos::from_millis(OPEN)),
                    "tried too early"
                );
                self.enter(Phase::HalfOpen, at);
                self.permits = 1;
            }
            (Phase::HalfOpen, Doing::Acquire { at })
                if at >= self.since.plus(Nanos::from_millis(MAX_WAIT)) =>
            {
                self.enter(Phase::Open, at);
            }
            (Phase::HalfOpen, Doing::Acquire { .. }) => self.permits += 1,
            (
                Phase::HalfOpen,
                Doing::End {
                    outcome: Outcome::Ignore,
                    ..
                },
            ) => self.permits -= 1,
            (Phase::HalfOpen, Doing::End { at, epoch, outcome }) => {
                assert_eq!(epoch, self.epoch, "a straggler is no trial");
                self.trial.push(outcome == Outcome::Failure);
                let failures = self.trial.iter().filter(|failed| **failed).count();
                if self.trial.len() >= HALF_OPEN_CALLS as usize {
                    self.enter(
                        if failures * 2 >= self.trial.len() {
                            Phase::Open
                        } else {
                            Phase::Closed
                        },
                        at,
                    );
                }
            }
            (Phase::Closed, Doing::Acquire { .. }) | (Phase::Open, Doing::End { .. }) => {
                panic!("nothing to write: {:?}, {doing:?}", self.phase)
            }
        }
        assert_eq!(
            (state.phase, state.epoch, state.permits),
            (self.phase, self.epoch, self.permits),
            "{doing:?}"
        );
        assert!(state.permits <= HALF_OPEN_CALLS);
        if let Window::Time(ring) = state.window {
            self.head = ring.head;
        }
    }

    /// A worker has its answer, in the phase that there was, or one of those since all could know
    /// it.
    fn answered(&self, from: usize, admission: Admission) {
        let known = &self.history[from..];
        let found = match admission {
            Admission::Admitted { epoch, .. } => known
                .iter()
                .any(|(phase, known)| *known == epoch && *phase != Phase::Open),
            Admission::Refused { .. } => known.iter().any(|(phase, _)| *phase != Phase::Closed),
        };
        assert!(found, "{admission:?}, but there was {known:?}");
    }

    /// What all workers know of at this moment: a version is believed for a while.
    fn known(&self, now: Moment) -> usize {
        let mut known = self.seen.iter().rev();
        let held = |at: &Moment| at.is_within(VERSION_HOLDS, now);
        known.find(|(at, _)| !held(at)).map_or(0, |(_, it)| *it)
    }

    /// A worker has reported an outcome.
    fn reported(&mut self, worker: usize) {
        if let (Some(Doing::End { epoch, .. }), true, false) =
            (self.doing[worker], self.due[worker], self.stray)
        {
            assert!(
                epoch != self.epoch,
                "the window said that it was time to open, and it did not"
            );
        }
    }
}

/// A worker whose calls to the host are passed to the reference, in the order in which they took
/// effect.
struct Spy {
    worker: Worker,
    at: usize,
    meters: Meters,
    bucket: Nanos,
    reference: Rc<RefCell<Tallied>>,
}

impl SharedData for Spy {
    fn shared(&self, key: &[u8]) -> Option<(Vec<u8>, Cas)> {
        self.worker.shared(key)
    }

    fn set_shared(&self, key: &[u8], value: &[u8], expected: Cas) -> Result<(), CasMismatch> {
        self.worker.set_shared(key, value, expected)?;
        self.reference
            .borrow_mut()
            .wrote(self.at, &BreakerState::decode(value));
        Ok(())
    }
}

impl Platform for Spy {
    fn kind(&self) -> HostKind {
        self.worker.kind()
    }
}

impl SharedCounters for Spy {
    fn define_shared(&self, name: &str) -> SharedCounter {
        self.worker.define_shared(name)
    }

    fn define_stored(&self, name: &str) -> SharedCounter {
        self.worker.define_stored(name)
    }

    fn increment(&self, id: SharedCounter, offset: i64) {
        self.worker.increment(id, offset);
        let mut reference = self.reference.borrow_mut();
        if id == self.meters.tally {
            reference.added(self.at, offset >> 21 & 1 == 1, self.bucket);
        } else if id == self.meters.version {
            let change = (self.worker.0.now(), reference.history.len() - 1);
            reference.seen.push(change);
        }
    }

    fn store(&self, id: SharedCounter, number: u64) {
        self.worker.store(id, number);
    }

    fn load(&self, id: SharedCounter) -> u64 {
        let value = self.worker.load(id);
        if id == self.meters.tally {
            self.reference.borrow_mut().read(self.at, self.bucket, 10);
        }
        value
    }
}

/// Where outcomes are tallied: the breaker's phases are those of a sequential one that gets the
/// outcomes in the order of their counting, and judges them when a worker looks.
#[test]
fn tallied_outcomes_make_the_same_breaker() {
    for_each_seed("tallied_outcomes_make_the_same_breaker", 30_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(
            if seed % 2 == 0 {
                HostKind::Envoy
            } else {
                HostKind::Nginx
            },
            seed,
        );
        machine.cas_failures.set([0, 10][rng.below(2) as usize]);
        let (window, bucket) =
            [(LONG, Nanos::from_secs(360)), (SHORT, BUCKET)][rng.below(2) as usize];
        let failing = [10, 50, 90][rng.below(3) as usize];
        let losses = [0, 0, 3][rng.below(3) as usize];
        let workers = 2 + rng.below(7) as usize;
        let reference = Rc::new(RefCell::new(Tallied::new(workers)));
        let busy = Rc::new(Cell::new(0u32));
        // The tally of a former configuration is where it was.
        let first = Worker(Rc::clone(&machine));
        first.increment(meters(&first).tally, rng.below(1 << 50) as i64);
        let tasks = (0..workers).map(|at| {
            let (worker, reference) = (Worker(Rc::clone(&machine)), Rc::clone(&reference));
            let (rng, busy) = (Rc::clone(&rng), Rc::clone(&busy));
            Box::new(move || {
                let (settings, meters) = (settings_with(window), meters(&worker));
                let spy = Spy {
                    worker: worker.clone(),
                    at,
                    meters,
                    bucket,
                    reference: Rc::clone(&reference),
                };
                let mut cell = breaker().metered(meters, &settings);
                let does = |doing: Option<Doing>| {
                    let mut reference = reference.borrow_mut();
                    reference.doing[at] = doing;
                    (
                        reference.added[at],
                        reference.due[at],
                        reference.tripping[at],
                    ) = (false, false, false);
                    busy.set(if doing.is_some() {
                        busy.get() + 1
                    } else {
                        busy.get() - 1
                    });
                };
                for _ in 0..1 + rng.below(12) {
                    match rng.below(12) {
                        // A reload: nothing is known.
                        0 => cell = breaker().metered(meters, &settings),
                        1 => drop(cell.refresh(&worker, &settings, None)),
                        // Time passes between callbacks; within one it is a matter of microseconds.
                        2..5 if busy.get() == 0 => {
                            worker.0.advance(Nanos::from_millis(rng.below(2 * OPEN)))
                        }
                        _ => {}
                    }
                    let now = worker.monotonic();
                    does(Some(Doing::Acquire { at: now }));
                    let from = reference.borrow().known(now);
                    let answer = cell.acquire(&spy, &settings, now);
                    does(None);
                    let Ok((admission, _)) = answer else { continue };
                    reference.borrow().answered(from, admission);
                    let Admission::Admitted { epoch, .. } = admission else {
                        continue;
                    };
                    worker.monotonic();
                    let outcome = match rng.below(100) {
                        n if n < failing => Outcome::Failure,
                        n if n < 93 => Outcome::Success,
                        _ => Outcome::Ignore,
                    };
                    let now = worker.monotonic();
                    does(Some(Doing::End {
                        at: now,
                        epoch,
                        outcome,
                    }));
                    let call = quick(outcome);
                    if cell.end(&spy, &settings, now, epoch, call, &rng).is_ok() {
                        reference.borrow_mut().reported(at);
                    }
                    does(None);
                }
            }) as Box<dyn FnOnce()>
        });
        let faults = Faults {
            pause: 20,
            longest: Nanos::from_millis(1),
            lost_vm: losses,
            step_back: 0,
        };
        let lost = run(&machine, &rng, faults, tasks.collect());

        let reference = reference.borrow();
        let state = breaker().peek(&first);
        assert_eq!(
            (state.phase, state.epoch),
            (reference.phase, reference.epoch)
        );
        if lost == 0 && machine.cas_failures.get() == 0 {
            assert!(!reference.stray, "a call of an older epoch was counted");
            let held = if state.phase == Phase::HalfOpen {
                state.permits - state.trial.calls
            } else {
                0
            };
            assert_eq!(held, 0, "a permit was not given back");
        }
        let cell = breaker().metered(meters(&first), &settings());
        is_not_stuck(&machine, &cell);
    });
}

/// A tally that is set back, by an operator or with a part of the host, costs what it held and no
/// more.
#[test]
fn a_tally_that_is_set_back_opens_nothing_and_is_used_again() {
    for reset in [0, 1, 1 << 40, u64::MAX] {
        let machine = Machine::new(HostKind::Envoy, 1);
        let (worker, settings, rng) = (Worker(Rc::clone(&machine)), settings(), Rng::new(1));
        let (cell, meters) = (
            breaker().metered(meters(&worker), &settings),
            meters(&worker),
        );
        let call = |outcome| {
            let (Admission::Admitted { epoch, .. }, _) = cell
                .acquire(&worker, &settings, worker.monotonic())
                .unwrap()
            else {
                panic!("refused")
            };
            let call = quick(outcome);
            cell.end(&worker, &settings, worker.monotonic(), epoch, call, &rng)
                .unwrap()
        };
        for outcome in [Outcome::Failure, Outcome::Success, Outcome::Success] {
            assert_eq!(call(outcome), None);
        }
        worker.store(meters.tally, reset);
        for _ in 0..20 {
            assert_eq!(call(Outcome::Success), None, "{reset}");
        }
        let opened = (0..60).filter_map(|_| {
            (cell.peek(&worker).phase == Phase::Closed).then(|| call(Outcome::Failure))?
        });
        assert_eq!(
            opened.count(),
            1,
            "{reset}: and failures are counted as ever"
        );
    }
}

/// A window of an hour may see more calls in one bucket than a tally's field holds.
#[test]
fn a_bucket_of_millions_of_calls_is_counted_right() {
    let machine = Machine::new(HostKind::Envoy, 1);
    let (worker, settings, rng) = (Worker(Rc::clone(&machine)), settings(), Rng::new(1));
    let (cell, meters) = (
        breaker().metered(meters(&worker), &settings),
        meters(&worker),
    );
    let half = 1 << 19;
    let rounds = |failed: bool| {
        let call = quick(if failed {
            Outcome::Failure
        } else {
            Outcome::Success
        });
        // Each round half a million calls by other workers, and one of ours.
        (1..=20).find(|_| {
            machine.advance(Nanos::from_millis(10));
            let Ok((Admission::Admitted { epoch, .. }, _)) =
                cell.acquire(&worker, &settings, worker.monotonic())
            else {
                panic!("refused")
            };
            worker.increment(meters.tally, weight(failed, false) * half);
            cell.end(&worker, &settings, worker.monotonic(), epoch, call, &rng)
                .unwrap()
                .is_some()
        })
    };
    // The ring begins with the first call, and what was tallied before that is not its own.
    let first = quick(Outcome::Success);
    assert_eq!(
        cell.end(&worker, &settings, worker.monotonic(), 0, first, &rng),
        Ok(None)
    );
    assert_eq!(rounds(false), None);
    assert_eq!(
        cell.peek(&worker).window.sum().calls,
        20 * (half as u32 + 1) + 1
    );
    // After ten million good ones, ten million bad ones and one more call.
    assert_eq!(rounds(true), None);
    assert_eq!(rounds(true), Some(1));
}

/// Good outcomes that wait in their workers: none is lost and none counts twice, a breaker opens as
/// soon as it would without, and where it opens sooner, no more was missing than may wait.
#[test]
fn good_outcomes_that_wait_hide_no_failure() {
    const WINDOW: &str = r#"{"type": "time", "size": "10s"}"#;
    for_each_seed("good_outcomes_that_wait_hide_no_failure", 400, |seed| {
        let rng = Rng::new(seed);
        let machine = Machine::new(HostKind::Envoy, seed);
        let worker = Worker(Rc::clone(&machine));
        let (settings, meters) = (settings_with(WINDOW), meters(&worker));
        let workers = 1 + rng.below(6);
        let cells: Vec<_> = (0..workers)
            .map(|_| breaker().metered(meters, &settings))
            .collect();
        let failing = [2, 30, 45, 49, 51, 60][rng.below(6) as usize];
        let bucket = |now: Moment| now.0 / Nanos::from_secs(1).0;
        let start = worker.load(meters.tally);
        // Each outcome with its bucket.
        let mut outcomes: Vec<(u64, bool)> = Vec::new();
        for n in 0..3_000 {
            // Pauses, and bursts of many within a millisecond.
            let pause = [0, 100_000, 1_000_000, 20_000_000][rng.below(4) as usize];
            machine.advance(Nanos(rng.below(pause + 1)));
            let cell = &cells[rng.below(workers) as usize];
            let now = worker.monotonic();
            if rng.below(200) == 0 {
                cell.flush(&worker, &settings, now);
            }
            let failed = n > 600 && rng.below(100) < failing;
            let call = quick(if failed {
                Outcome::Failure
            } else {
                Outcome::Success
            });
            outcomes.push((bucket(now), failed));
            let change = cell.end(&worker, &settings, now, 0, call, &rng).unwrap();
            // Those in the window, but for the oldest bucket, of which late ones may be left.
            let counts = |buckets: u64| {
                let inside = outcomes.iter().filter(|(at, _)| at + buckets > bucket(now));
                inside.fold((0, 0), |(n, f), (_, failed)| {
                    (n + 1, f + usize::from(*failed))
                })
            };
            let due = |(calls, failures): (usize, usize)| calls >= MINIMUM && failures * 2 >= calls;
            if let Some(change) = change {
                assert_eq!(change.to, Phase::Open);
                let open = |buckets| {
                    let (calls, failures) = counts(buckets);
                    let waiting = (calls / 128).min(16) * workers as usize;
                    due((calls.saturating_sub(waiting), failures))
                };
                assert!(open(10) || open(9) || open(11), "opened without need");
                return;
            }
            assert!(
                !(failed && due(counts(10)) && due(counts(9)) && due(counts(11))),
                "not opened after {n}: {:?}",
                counts(10)
            );
        }
        for cell in &cells {
            cell.flush(&worker, &settings, worker.monotonic());
        }
        let told = worker.load(meters.tally).wrapping_sub(start);
        let failures = outcomes.iter().filter(|(_, failed)| *failed).count() as i64;
        let good = outcomes.len() as i64 - failures;
        let all = weight(true, false) * failures + weight(false, false) * good;
        assert_eq!(told.cast_signed(), all);
    });
}
