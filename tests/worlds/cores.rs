//! Worlds side by side.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// What is made of each seed, in no order; each core takes the next one.
pub fn on_all_cores<R: Send>(seeds: Range<u64>, make: impl Fn(u64) -> R + Sync) -> Vec<R> {
    let (next, all) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let made = make(seed);
                    all.lock().unwrap().push(made);
                }
            });
        }
    });
    all.into_inner().unwrap()
}
