//! A seeded scheduler of simulated workers: each task is a coroutine, each host call a point at
//! which another may go on.

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use haven::base::rng::Rng;
use haven::base::time::{Moment, Nanos};
use haven::host::sim::Machine;
use std::cell::Cell;
use std::rc::Rc;

thread_local! {
    /// The running task's way back to the scheduler.
    static CURRENT: Cell<*const Yielder<(), ()>> = const { Cell::new(std::ptr::null()) };
}

/// What may go wrong during a schedule, each in parts per thousand at every switch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A worker's VM is lost, with all its tasks' state.
    pub lost_vm: u64,
    /// Time passes, up to `pause`.
    pub pause: u64,
    /// The longest pause.
    pub longest: Nanos,
    /// The clock steps back, up to `longest`.
    pub step_back: u64,
}

/// Runs all tasks to their end, in an order that the seed decides. Returns how many were lost.
pub fn run(machine: &Machine, rng: &Rng, faults: Faults, tasks: Vec<Box<dyn FnOnce()>>) -> usize {
    machine.on_call(Rc::new(|| {
        let yielder = CURRENT.get();
        if !yielder.is_null() {
            // SAFETY: set by the task that is running now; a Yielder lives as long as its
            // coroutine.
            unsafe { (*yielder).suspend(()) };
            CURRENT.set(yielder);
        }
    }));
    let mut live: Vec<Coroutine<(), (), ()>> = tasks.into_iter().map(coroutine).collect();
    let mut lost = 0;
    // Bounded: a schedule that does not come to an end is a livelock, and a finding.
    let mut switches = 0u32;
    while !live.is_empty() {
        switches += 1;
        assert!(switches < 1_000_000, "livelock");
        let draw = |parts: u64| rng.below(1_000) < parts;
        if draw(faults.pause) {
            machine.advance(Nanos(rng.below(faults.longest.0 + 1)));
        }
        if draw(faults.step_back) {
            machine.set_clock(Moment(
                machine.now().0 - rng.below(faults.longest.0.min(machine.now().0)),
            ));
        }
        let at = rng.below(live.len() as u64) as usize;
        if draw(faults.lost_vm) && live[at].started() {
            // Dropping unwinds the task: haven does nothing on drop, so that this is as good as a
            // VM that vanishes.
            drop(live.swap_remove(at));
            CURRENT.set(std::ptr::null());
            lost += 1;
            continue;
        }
        let result = live[at].resume(());
        CURRENT.set(std::ptr::null());
        if let CoroutineResult::Return(()) = result {
            live.swap_remove(at);
        }
    }
    machine.on_call(Rc::new(|| {}));
    lost
}

fn coroutine(task: Box<dyn FnOnce()>) -> Coroutine<(), (), ()> {
    let stack = DefaultStack::new(128 * 1024).expect("a stack");
    Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
        CURRENT.set(yielder);
        task();
        CURRENT.set(std::ptr::null());
    })
}

/// Runs `check` for many seeds; on failure prints the seed, and how to run it alone.
///
/// `HAVEN_SCHEDULES` multiplies the number, `HAVEN_SEED` runs one.
pub fn for_each_seed(name: &str, schedules: u64, check: impl Fn(u64)) {
    if let Some(seed) = number("HAVEN_SEED") {
        return check(seed);
    }
    let schedules = schedules * number("HAVEN_SCHEDULES").unwrap_or(1);
    for seed in 0..schedules {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(seed)));
        if let Err(panic) = outcome {
            eprintln!(
                "failed with seed {seed}; \
             replay: HAVEN_SEED={seed} cargo test --test workers {name}"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text}: want a whole number")),
    )
}
