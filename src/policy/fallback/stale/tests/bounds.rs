//! The bounds of the table: what is pushed out, and that no more is held than is allowed.

use super::*;
use crate::host::sim::Machine;
use proptest::prelude::*;
use std::collections::BTreeMap;
use table::WAYS;

#[test]
fn the_least_recently_used_goes_first() {
    let proxy = Proxy::new(config::Stale {
        max_entries: 3,
        ..config()
    });
    let asked: Vec<_> = (0..4).map(|n| proxy.get(&format!("/{n}"), &[])).collect();
    for asked in &asked[..3] {
        assert!(proxy.keep(asked, &[], b""));
        proxy.machine.advance(Nanos::from_secs(2));
    }
    assert!(
        proxy.find(&asked[0]).is_some(),
        "used, and so not the next to go"
    );
    assert!(proxy.keep(&asked[3], &[], b""));
    let left: Vec<_> = asked
        .iter()
        .map(|asked| proxy.find(asked).is_some())
        .collect();
    assert_eq!(left, [true, false, true, true]);
}

#[test]
fn variants_of_one_request_do_not_push_all_others_out() {
    let proxy = Proxy::new(config());
    let other = proxy.get("/other", &[]);
    assert!(proxy.keep(&other, &[], b""));
    for n in 0..100 {
        proxy.machine.advance(Nanos(1));
        assert!(proxy.keep(
            &proxy.get("/", &[("x-a", &n.to_string())]),
            &[("vary", "x-a")],
            b""
        ));
    }
    assert!(proxy.find(&other).is_some());
    let left = (0..100).filter(|n| {
        proxy
            .find(&proxy.get("/", &[("x-a", &n.to_string())]))
            .is_some()
    });
    assert_eq!(left.collect::<Vec<_>>(), (92..100).collect::<Vec<_>>());
}

#[test]
fn a_smaller_table_of_the_same_name_leaves_nothing_behind() {
    let proxy = Proxy::new(config::Stale {
        max_entries: 1_000,
        max_bytes: 4 << 20,
        ..config()
    });
    let worker = Worker(Rc::clone(&proxy.machine));
    assert_eq!(proxy.stale.adopt(&worker), Ok(SizeChange::default()));
    for n in 0..300 {
        assert!(proxy.keep(&proxy.get(&format!("/{n}"), &[]), &[], &[0; 64]));
    }
    let before = proxy.machine.shared_bytes();
    let small = Stale::new(
        "f",
        config::Stale {
            max_entries: 1,
            max_bytes: 1 << 17,
            ..config()
        },
        Seed(1, 2),
    );
    let change = small.adopt(&worker).unwrap();
    assert!(
        change.entries < -250 && change.bytes < -64 * 250,
        "{change:?}"
    );
    let left = before as i64 - proxy.machine.shared_bytes() as i64;
    assert!(
        left >= -change.bytes + change.entries * 10,
        "{left} {change:?}"
    );
    assert_eq!(small.adopt(&worker), Ok(SizeChange::default()));
}

/// Bytes of all slots: what the bound is about.
fn slot_bytes(machine: &Machine) -> usize {
    machine
        .records(|key| key.get(2) == Some(&b'k'))
        .iter()
        .map(Vec::len)
        .filter(|n| *n > table::SLOT_HEAD)
        .sum()
}

proptest! {
    /// Against a map: what is found is the newest that was kept for the request, and what is not
    /// found has been pushed out; and the bounds hold after each step.
    #[test]
    fn the_bounds_hold_and_nothing_is_mixed_up(
        entries in 1u32..80,
        kib in 17usize..200,
        steps in proptest::collection::vec((0u8..40, 0usize..57, 0u64..2_000), 1..200),
    ) {
        let config = config::Stale {
            max_entries: entries,
            max_bytes: kib << 10,
            ..config()
        };
        let proxy = Proxy::new(config.clone());
        let mut model: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        let filler = "f".repeat(3_000);
        let (mut count, mut bytes) = (0i64, 0i64);
        for (at, (path, size, pause)) in steps.into_iter().enumerate() {
            let asked = proxy.get(&format!("/{path}"), &[]);
            let mut body = vec![path; size];
            body.extend_from_slice(&at.to_le_bytes());
            let headers = map(
                &[
                    (":status", "200"),
                    ("transfer-encoding", "chunked"),
                    ("x-filler", &filler),
                ],
                &[],
            );
            let begun = proxy.stale.begin(&asked, &headers, proxy.machine.now(), || NOW);
            if let Ok(Some(Ok(draft))) =
                begun.map(|it| it.map(|draft| proxy.stale.add(draft, &body)))
            {
                let worker = Worker(Rc::clone(&proxy.machine));
                let change = proxy
                    .stale
                    .keep(&worker, &asked, &draft, at as u64)
                    .unwrap()
                    .unwrap();
                count += change.entries;
                bytes += change.bytes;
                model.insert(path, body);
                prop_assert_eq!(
                    proxy.body(&asked),
                    model.get(&path).cloned(),
                    "what was kept last is there"
                );
            }
            for (path, body) in &model {
                if let Some(found) = proxy.body(&proxy.get(&format!("/{path}"), &[])) {
                    prop_assert_eq!(&found, body);
                }
            }
            prop_assert!(slot_bytes(&proxy.machine) <= config.max_bytes);
            prop_assert_eq!(
                i64::try_from(slot_bytes(&proxy.machine)).unwrap(),
                bytes,
                "what is counted is there"
            );
            prop_assert!((0..=i64::from(entries)).contains(&count));
            proxy.machine.advance(Nanos::from_millis(pause));
        }
    }

    /// Any bytes in any record: nothing panics, nothing of another request is found, and what is
    /// kept next is found.
    #[test]
    fn bad_records_are_no_records(
        kind in prop_oneof![Just(b'i'), Just(b'k'), Just(b'n')],
        how in 0usize..3,
        at in 0usize..3_000,
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let proxy = Proxy::new(config());
        let worker = Worker(Rc::clone(&proxy.machine));
        let _ = proxy.stale.adopt(&worker);
        let (one, other) = (proxy.get("/1", &[]), proxy.get("/2", &[("x-a", "1")]));
        prop_assert!(proxy.keep(&one, &[("x-b", "2")], b"one"));
        prop_assert!(proxy.keep(&other, &[("vary", "x-a")], b"other"));
        for record in proxy.machine.records(|key| key.get(2) == Some(&kind)) {
            let mut bad = record.clone();
            match how {
                0 => bad = bytes.clone(),
                1 => bad.truncate(at % (record.len() + 1)),
                _ => {
                    for (i, byte) in bytes.iter().enumerate() {
                        if let Some(place) = bad.get_mut((at + i * 37) % record.len().max(1)) {
                            *place = *byte;
                        }
                    }
                }
            }
            proxy.machine.corrupt(|key| key.get(2) == Some(&kind), &bad);
            for asked in [&one, &other] {
                if let Some(found) = proxy.find(asked) {
                    prop_assert!(rules::are_sound(&found.headers));
                }
            }
            let _ = proxy.stale.adopt(&worker);
        }
        proxy.machine.advance(Nanos::from_secs(10));
        let again = proxy.get("/3", &[]);
        prop_assert!(proxy.keep(&again, &[], b"again"));
        prop_assert_eq!(proxy.body(&again).unwrap(), b"again");
    }
}

#[test]
fn a_set_has_no_more_slots_than_its_index_may_list() {
    let proxy = Proxy::new(config::Stale {
        max_entries: 65_536,
        ..config()
    });
    for n in 0..500 {
        assert!(proxy.keep(&proxy.get(&format!("/{n}"), &[]), &[], b""));
    }
    let indices = proxy.machine.records(|key| key.get(2) == Some(&b'i'));
    assert!(
        indices
            .iter()
            .all(|index| index.len() <= 8 + 48 * WAYS as usize)
    );
}

/// A client of this number.
fn client(number: u8) -> Option<Ip> {
    Ip::parse(format!("192.0.2.{number}").as_bytes())
}

#[test]
fn one_client_pushes_out_what_it_had_kept_itself() {
    let proxy = Proxy::new(config());
    let quiet: Vec<_> = (0..8)
        .map(|n| proxy.get(&format!("/quiet/{n}"), &[]))
        .collect();
    let variants: Vec<_> = (0..4)
        .map(|n| proxy.get("/varied", &[("accept-language", &format!("l{n}"))]))
        .collect();
    let by_language: Pairs<'_> = &[("vary", "accept-language")];
    for (at, asked) in quiet.iter().enumerate() {
        assert!(proxy.keep_for(client(u8::try_from(at).unwrap()), asked, &[], b""));
    }
    for (at, asked) in variants.iter().enumerate() {
        assert!(proxy.keep_for(client(u8::try_from(at).unwrap()), asked, by_language, b""));
    }
    for n in 0..1_500 {
        proxy.machine.advance(Nanos::from_millis(1));
        let junk = proxy.get(&format!("/quiet/0?junk={n}"), &[]);
        assert!(proxy.keep_for(client(99), &junk, &[], b""));
        let variant = proxy.get("/varied", &[("accept-language", &format!("junk{n}"))]);
        assert!(proxy.keep_for(client(99), &variant, by_language, b""));
        // What it asks for as well stays the first one's.
        assert!(proxy.keep_for(client(99), &quiet[7], &[], b"") || n > 0);
    }
    let all = quiet.iter().chain(&variants);
    assert!(all.clone().all(|asked| proxy.find(asked).is_some()));
}

#[test]
fn a_client_with_large_answers_leaves_the_small_ones_of_others() {
    let proxy = Proxy::new(config::Stale {
        max_body: 8_192,
        max_bytes: 64 << 10,
        ..config()
    });
    let small: Vec<_> = (0..4).map(|n| proxy.get(&format!("/{n}"), &[])).collect();
    for asked in &small {
        assert!(proxy.keep_for(client(1), asked, &[], b"s"));
    }
    for n in 0..100 {
        proxy.machine.advance(Nanos::from_millis(1));
        let large = proxy.get(&format!("/large/{n}"), &[]);
        assert!(proxy.keep_for(client(2), &large, &[], &[0; 8_192]));
    }
    assert!(small.iter().all(|asked| proxy.find(asked).is_some()));
}
