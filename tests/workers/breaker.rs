//! A breaker over all workers is the same as one breaker that is told everything in order.

use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::rng::Rng;
use haven::base::time::Nanos;
use haven::host::Clock;
use haven::host::sim::{CasRules, Machine, Worker};
use haven::policy::Outcome;
use haven::policy::circuit_breaker::CircuitBreaker;
use haven::policy::circuit_breaker::state::{Admission, Call, Phase, Settings};
use std::cell::RefCell;
use std::rc::Rc;

const HALF_OPEN_CALLS: u32 = 2;
const OPEN: u64 = 500;
const MAX_WAIT: u64 = 2_000;

fn settings() -> Settings {
    let json = br#"{"circuit_breakers": {"b": {"minimum_calls": 4, "failure_rate_threshold": 50, "window": {"type": "time", "size": "1h"},
                    "open_duration": "500ms", "half_open_calls": 2, "half_open_max_wait": "2s"}}, "routes": [{"name": "r", "circuit_breaker": "b"}]}"#;
    Settings::new(haven::config::parse(json).unwrap().circuit_breakers[0].clone())
}

/// What happened, in the order in which it took effect.
#[derive(Clone, Copy, Debug)]
enum Event {
    Admitted { epoch: u32, at: Nanos },
    Refused { at: Nanos },
    Ended { epoch: u32, at: Nanos, outcome: Outcome },
}

/// The breaker told by plain lists.
#[derive(Default)]
struct Reference {
    epoch: u32,
    phase: Option<(Phase, Nanos)>,
    /// Failures of the calls that count in this epoch.
    calls: Vec<bool>,
    /// Admitted in this half-open epoch and not given back.
    permits: u32,
}

impl Reference {
    fn phase(&self) -> Phase {
        self.phase.map_or(Phase::Closed, |(phase, _)| phase)
    }

    fn enter(&mut self, phase: Phase, at: Nanos) {
        *self = Self { epoch: self.epoch + 1, phase: Some((phase, at)), ..Self::default() };
    }

    fn acquire(&mut self, at: Nanos) -> Option<u32> {
        let since = self.phase.map_or(Nanos::ZERO, |(_, since)| since);
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

    fn end(&mut self, epoch: u32, at: Nanos, outcome: Outcome) {
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
        let minimum = if half_open { HALF_OPEN_CALLS as usize } else { 4 };
        let failures = self.calls.iter().filter(|f| **f).count();
        if self.calls.len() >= minimum && failures * 2 >= self.calls.len() {
            self.enter(Phase::Open, at);
        } else if half_open && self.calls.len() >= minimum {
            self.enter(Phase::Closed, at);
        }
    }
}

#[test]
fn all_workers_together_are_one_breaker() {
    for_each_seed("all_workers_together_are_one_breaker", 30_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(if seed % 2 == 0 { CasRules::Envoy } else { CasRules::Nginx }, seed);
        machine.cas_failures.set([0, 10][rng.below(2) as usize]);
        let failing = [10, 50, 90][rng.below(3) as usize];
        let events = Rc::new(RefCell::new(Vec::new()));
        let tasks = (0..2 + rng.below(7)).map(|_| {
            let (worker, events, rng) = (Worker(Rc::clone(&machine)), Rc::clone(&events), Rc::clone(&rng));
            Box::new(move || {
                let (breaker, settings) = (CircuitBreaker::new("b", &["route", "r"], ""), settings());
                for _ in 0..1 + rng.below(12) {
                    let at = worker.monotonic();
                    // Nothing yields between the write that decides and the note of it: notes are in order of effect.
                    let Ok((admission, _)) = breaker.acquire(&worker, &settings, at) else { continue };
                    let Admission::Admitted { epoch } = admission else {
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
                    let call = Call { outcome, duration: Nanos::ZERO, retry_after: None };
                    if breaker.end(&worker, &settings, at, epoch, call, &rng).is_ok() {
                        events.borrow_mut().push(Event::Ended { epoch, at, outcome });
                    }
                }
            }) as Box<dyn FnOnce()>
        });
        let faults = Faults { pause: 20, longest: Nanos::from_millis(300), lost_vm: 3, step_back: 0 };
        run(&machine, &rng, faults, tasks.collect());

        let mut reference = Reference::default();
        for event in events.borrow().iter() {
            match *event {
                Event::Admitted { epoch, at } => assert_eq!(reference.acquire(at), Some(epoch), "{event:?}"),
                Event::Refused { at } => assert_eq!(reference.acquire(at), None, "{event:?}"),
                Event::Ended { epoch, at, outcome } => reference.end(epoch, at, outcome),
            }
        }
        let worker = Worker(Rc::clone(&machine));
        let state = CircuitBreaker::new("b", &["route", "r"], "").look(&worker);
        assert_eq!((state.phase, state.epoch), (reference.phase(), reference.epoch));
        is_not_stuck(&machine);
    });
}

/// Whatever was lost on the way: two waits later a call passes.
fn is_not_stuck(machine: &Rc<Machine>) {
    let (worker, breaker) = (Worker(Rc::clone(machine)), CircuitBreaker::new("b", &["route", "r"], ""));
    machine.cas_failures.set(0);
    let admitted = (0..3).any(|_| {
        machine.advance(Nanos::from_millis(MAX_WAIT));
        matches!(breaker.acquire(&worker, &settings(), worker.monotonic()), Ok((Admission::Admitted { .. }, _)))
    });
    assert!(admitted, "stuck: {:?}", breaker.look(&worker));
}

#[test]
fn clocks_that_step_do_not_stick_it() {
    for_each_seed("clocks_that_step_do_not_stick_it", 5_000, |seed| {
        let rng = Rc::new(Rng::new(seed));
        let machine = Machine::new(CasRules::Envoy, seed);
        let tasks = (0..2 + rng.below(4)).map(|_| {
            let (worker, rng) = (Worker(Rc::clone(&machine)), Rc::clone(&rng));
            Box::new(move || {
                let (breaker, settings) = (CircuitBreaker::new("b", &["route", "r"], ""), settings());
                for _ in 0..4 {
                    if let Ok((Admission::Admitted { epoch }, _)) =
                        breaker.acquire(&worker, &settings, worker.monotonic())
                    {
                        let call = Call { outcome: Outcome::Failure, duration: Nanos::ZERO, retry_after: None };
                        let _ = breaker.end(&worker, &settings, worker.monotonic(), epoch, call, &rng);
                    }
                }
            }) as Box<dyn FnOnce()>
        });
        let faults = Faults { pause: 50, longest: Nanos::from_secs(1_000), lost_vm: 5, step_back: 50 };
        run(&machine, &rng, faults, tasks.collect());
        is_not_stuck(&machine);
    });
}
