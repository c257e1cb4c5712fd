//! Kept responses over all workers: never more bytes than allowed, at any moment, and no request
//! gets what is another's.

use crate::scheduler::{Faults, for_each_seed, run};
use haven::base::hash::Seed;
use haven::base::headers::HeaderMap;
use haven::base::rng::Rng;
use haven::base::time::Nanos;
use haven::document;
use haven::host::Clock;
use haven::host::sim::{HostKind, Machine, Worker};
use haven::policy::fallback::stale::table::SLOT_HEAD;
use haven::policy::fallback::stale::{Stale, StaleRequest};
use haven::request::Request;
use std::cell::Cell;
use std::rc::Rc;

/// Bytes of kept responses, and their number.
fn held(machine: &Machine) -> (usize, usize) {
    let slots = machine.records(|key| key.get(2) == Some(&b'k'));
    let filled: Vec<usize> = slots
        .iter()
        .map(Vec::len)
        .filter(|n| *n > SLOT_HEAD)
        .collect();
    (filled.iter().sum(), filled.len())
}

fn ask(stale: &Stale, path: u64, variant: u64) -> StaleRequest {
    let (path, variant) = (format!("/{path}"), variant.to_string());
    let headers = [
        (":method", "GET"),
        (":authority", "a"),
        (":path", &path),
        ("x-v", &variant),
    ];
    stale
        .ask(&Request::new(&HeaderMap::from_pairs(&headers)), true)
        .unwrap()
}

#[test]
fn never_more_than_allowed_and_nothing_of_another() {
    for_each_seed(
        "never_more_than_allowed_and_nothing_of_another",
        4_000,
        |seed| {
            let rng = Rc::new(Rng::new(seed));
            let machine = Machine::new(
                if seed.is_multiple_of(2) {
                    HostKind::Envoy
                } else {
                    HostKind::Nginx
                },
                seed,
            );
            machine.cas_failures.set([0, 0, 20][rng.below(3) as usize]);
            let max_bytes = document::Stale::HEAD + 600 + rng.below(2_000) as usize;
            let config = document::Stale {
                max_age: Nanos::from_secs(1 + rng.below(100)),
                max_body: 600,
                vary: vec![],
                public: false,
                max_entries: 1 + rng.below(6) as u32,
                max_bytes,
            };
            let entries = config.max_entries as usize;
            let bounded = move |machine: &Machine| {
                let (bytes, number) = held(machine);
                assert!(
                    bytes <= max_bytes && number <= entries,
                    "{number} responses of {bytes} bytes"
                );
            };
            let (counted, found) = (Rc::new(Cell::new((0i64, 0i64))), Rc::new(Cell::new(0)));
            let tasks = (0..2 + rng.below(7)).map(|_| {
                let (worker, rng) = (Worker(Rc::clone(&machine)), Rc::clone(&rng));
                let (counted, found) = (Rc::clone(&counted), Rc::clone(&found));
                let stale = Stale::new("f", config.clone(), Seed(3, 4));
                Box::new(move || {
                    for _ in 0..1 + rng.below(6) {
                        let (path, variant, now) = (rng.below(8), rng.below(3), worker.monotonic());
                        let asked = ask(&stale, path, variant);
                        if rng.below(3) == 0 {
                            if let Some(response) = stale.find(&worker, &asked, now) {
                                let start = [path as u8, variant as u8];
                                assert_eq!(response.body[..2], start, "another's response");
                                found.set(found.get() + 1);
                            }
                        } else {
                            let filler = "x".repeat(rng.below(8_000) as usize);
                            let response = HeaderMap::from_pairs(&[
                                (":status", "200"),
                                ("transfer-encoding", "chunked"),
                                ("vary", "x-v"),
                                ("x-f", &filler),
                            ]);
                            let begun = stale.begin(&asked, &response, now, || worker.wall());
                            let Some(draft) = begun.unwrap_or_default() else {
                                continue;
                            };
                            let mut body = vec![path as u8, variant as u8];
                            body.resize(2 + rng.below(590) as usize, 7);
                            let draft = stale.add(draft, &body).expect("room");
                            if let Ok(Some(change)) =
                                stale.keep(&worker, &asked, &draft, rng.bits())
                            {
                                let (entries, bytes) = counted.get();
                                counted.set((entries + change.entries, bytes + change.bytes));
                            }
                        }
                        bounded(&worker.0);
                    }
                }) as Box<dyn FnOnce()>
            });
            let tasks: Vec<_> = tasks.collect();
            let faults = Faults {
                pause: 100,
                longest: Nanos::from_secs(2),
                lost_vm: 5 * rng.below(2),
                step_back: 2,
            };
            let lost = run(&machine, &rng, faults, tasks);
            bounded(&machine);
            // A worker that came too late to write its bytes has counted them all the same.
            let (bytes, number) = held(&machine);
            if lost == 0 && machine.cas_failures.get() == 0 {
                let counted = counted.get();
                assert!(
                    counted.0 >= number as i64 && counted.1 >= bytes as i64,
                    "{counted:?} {number} {bytes}"
                );
            }
        },
    );
}
