use super::*;
use crate::base::rng::Rng;
use crate::policy::concurrency::config::Criticality::{Critical, Sheddable};
use crate::policy::concurrency::has_room_of;
use proptest::prelude::*;

fn ms(n: u64) -> Moment {
    Moment::from_millis(n)
}

/// Whether a key has more than a share, where no other has asked.
fn is_over(shares: &mut KeyCounts, key: u32) -> bool {
    shares.standing(key, ms(0)) > Standing::Within
}

/// Workers that exchange their counts at `now`.
fn exchange(workers: &mut [KeyCounts], record: &mut FairRecord, now: Moment) {
    // Twice: the first to write has not seen those that came after it.
    for _ in 0..2 {
        for (vm, worker) in (1..).zip(workers.iter_mut()) {
            worker.sync(record, now, vm);
        }
    }
}

#[test]
fn an_equal_share_is_what_is_in_flight_by_keys() {
    let mut shares = KeyCounts::default();
    assert!(
        !is_over(&mut shares, 1),
        "one request is always within a share"
    );
    for _ in 0..9 {
        shares.enter(1);
    }
    assert!(!is_over(&mut shares, 1), "alone it may have all");
    shares.enter(2);
    // 10 in flight of two keys: five each.
    assert!(is_over(&mut shares, 1) && !is_over(&mut shares, 2) && !is_over(&mut shares, 3));
    for _ in 0..4 {
        shares.leave(1);
    }
    assert!(is_over(&mut shares, 1));
    for _ in 0..4 {
        shares.enter(2);
    }
    assert!(
        !is_over(&mut shares, 2),
        "5 + 1 of 11 is not more than a half and a half"
    );
}

#[test]
fn with_more_keys_than_requests_each_may_have_one() {
    let mut shares = KeyCounts::default();
    (0..100).for_each(|key| shares.enter(key));
    assert!(!is_over(&mut shares, 1_000));
    shares.enter(5);
    assert!(
        is_over(&mut shares, 5) && !is_over(&mut shares, 6),
        "two, where others have one"
    );
}

#[test]
fn it_is_in_force_while_something_is_refused_and_a_second_after() {
    let mut shares = KeyCounts::default();
    assert!(!shares.is_active(ms(5_000)));
    shares.refused(ms(5_000), Standing::Over);
    assert!(shares.is_active(ms(5_000)) && shares.is_active(ms(5_999)));
    assert!(!shares.is_active(ms(6_000)));
    assert!(!shares.is_active(ms(4_000)), "the clock has stepped back");
}

#[test]
fn counts_are_exchanged_when_the_limit_is_nearly_full_and_not_more_often_than_stated() {
    let mut shares = KeyCounts::default();
    assert!(!shares.is_due(ms(0), false) && shares.is_due(ms(0), true));
    shares.sync(&mut FairRecord::default(), ms(100), 1);
    assert!(!shares.is_due(ms(119), true) && shares.is_due(ms(120), true));
    assert!(shares.is_due(ms(99), true), "the clock has stepped back");
}

#[test]
fn a_key_is_counted_over_all_workers() {
    let (mut workers, mut record) = (
        [const { None }; 3].map(|_: Option<()>| KeyCounts::default()),
        FairRecord::default(),
    );
    for worker in &mut workers {
        (0..4).for_each(|_| worker.enter(7));
    }
    workers[0].enter(8);
    exchange(&mut workers, &mut record, ms(10));
    for worker in &mut workers {
        // 12 and 1 in flight.
        assert!(is_over(worker, 7) && !is_over(worker, 8) && !is_over(worker, 9));
    }
    for _ in 0..4 {
        workers[1].leave(7);
        workers[2].leave(7);
    }
    exchange(&mut workers, &mut record, ms(40));
    assert!(
        is_over(&mut workers[2], 7),
        "4 of 5 in flight, by another worker alone"
    );
}

#[test]
fn what_one_worker_refuses_puts_the_rule_in_force_in_all() {
    let (mut workers, mut record) = (
        [KeyCounts::default(), KeyCounts::default()],
        FairRecord::default(),
    );
    workers[0].refused(ms(1_000), Standing::Over);
    exchange(&mut workers, &mut record, ms(1_010));
    assert!(workers[1].is_active(ms(1_900)) && !workers[1].is_active(ms(2_100)));
}

#[test]
fn a_lost_worker_and_a_clock_that_steps_back_are_forgotten() {
    let (mut workers, mut record) = (
        [KeyCounts::default(), KeyCounts::default()],
        FairRecord::default(),
    );
    (0..9).for_each(|_| workers[0].enter(1));
    workers[1].enter(2);
    exchange(&mut workers, &mut record, ms(10_000));
    assert!(is_over(&mut workers[1], 1));
    workers[1].sync(&mut record, ms(12_000), 2);
    assert!(!is_over(&mut workers[1], 1), "lost");
    workers[0].sync(&mut record, ms(12_000), 1);
    workers[1].sync(&mut record, ms(3_000), 2);
    assert!(!is_over(&mut workers[1], 1), "written at a time to come");
}

#[test]
fn a_worker_writes_its_largest_keys_and_a_sum() {
    let (mut shares, mut record) = (KeyCounts::default(), FairRecord::default());
    for key in 0..1_000 {
        (0..=key / 100).for_each(|_| shares.enter(key));
    }
    shares.sync(&mut record, ms(1), 1);
    let part = &record.parts[0];
    assert_eq!(part.listed.len(), LISTED);
    assert!(part.listed.iter().all(|(_, count)| *count == 10));
    let all: u32 = part.listed.iter().map(|(_, count)| count).sum();
    assert_eq!(all + part.rest, 5_500);
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    assert!(bytes.len() < 600, "{}", bytes.len());
}

#[test]
fn who_has_twice_what_others_have_is_far_above() {
    let mut shares = KeyCounts::default();
    let of = |shares: &mut KeyCounts, key| shares.standing(key, ms(5_000));
    shares.enter(1);
    shares.enter(2);
    shares.enter(1);
    assert_eq!(of(&mut shares, 1), Standing::Over, "twice as much");
    shares.enter(1);
    assert_eq!(of(&mut shares, 1), Standing::FarOver { among: 4 });
    shares.enter(2);
    assert_eq!(
        [of(&mut shares, 1), of(&mut shares, 2)],
        [Standing::Over, Standing::Within]
    );
}

#[test]
fn after_the_clock_has_stepped_back_nobody_is_said_to_ask_for_ever() {
    let (mut shares, mut record) = (KeyCounts::default(), FairRecord::default());
    shares.asks(1, ms(50_000));
    shares.sync(&mut record, ms(10_000), 1);
    assert!(record.parts[0].listed.is_empty());
}

#[test]
fn what_others_asked_for_stays_free_for_them_for_half_a_second_at_least() {
    let mut shares = KeyCounts::default();
    (0..9).for_each(|_| shares.enter(1));
    (2..5).for_each(|key| shares.enter(key));
    let among = |shares: &mut KeyCounts, at| match shares.standing(1, ms(at)) {
        Standing::FarOver { among } => among,
        other => panic!("{other:?}"),
    };
    assert_eq!(among(&mut shares, 10_000), 12);
    (2..4).for_each(|key| shares.leave(key));
    assert_eq!(among(&mut shares, 10_400), 12, "9 and 3");
    shares.refused(ms(10_450), Standing::Within);
    shares.refused(ms(10_450), Standing::Over);
    assert_eq!(among(&mut shares, 10_600), 13, "one was missed");
    assert_eq!(among(&mut shares, 11_100), 10, "forgotten: 9 and 1");
    shares.refused(ms(11_100), Standing::Within);
    assert_eq!(among(&mut shares, 11_100), 11);
    assert_eq!(among(&mut shares, 3_000), 10, "the clock has stepped back");
}

#[test]
fn an_adaptive_limit_keeps_some_more_free_for_others() {
    let mut shares = KeyCounts {
        headroom: HEADROOM,
        ..KeyCounts::default()
    };
    (0..20).for_each(|_| shares.enter(1));
    (2..11).for_each(|key| shares.enter(key));
    let far = Standing::FarOver { among: 20 + 9 + 6 };
    assert_eq!(shares.standing(1, ms(10_000)), far, "of 9 twice the root");
}

#[test]
fn who_has_all_is_above_a_share_while_others_ask_and_not_while_it_is_alone() {
    let (mut workers, mut record) = (
        [KeyCounts::default(), KeyCounts::default()],
        FairRecord::default(),
    );
    (0..9).for_each(|_| workers[0].enter(1));
    workers[0].asks(1, ms(1_000));
    assert_eq!(
        workers[0].standing(1, ms(1_000)),
        Standing::Within,
        "it may be all clients"
    );
    // Refused by the other worker, it has nothing in flight.
    workers[1].asks(2, ms(1_100));
    exchange(&mut workers, &mut record, ms(1_110));
    for at in [1_110, 2_000] {
        workers[0].asks(1, ms(at));
        assert_eq!(
            workers[0].standing(1, ms(at)),
            Standing::FarOver { among: 9 }
        );
        assert_eq!(workers[0].standing(2, ms(at)), Standing::Within);
    }
    assert_eq!(workers[0].standing(1, ms(2_200)), Standing::Within);
    workers[0].asks(2, ms(3_000));
    assert_eq!(
        workers[0].standing(1, ms(2_500)),
        Standing::Within,
        "the clock has stepped back"
    );
}

#[test]
fn who_is_far_above_comes_after_all_others() {
    let places = |standing, limit, of| {
        (0..)
            .take_while(|others| has_room_of(standing, *others, limit, of))
            .count()
    };
    let far = |among| Standing::FarOver { among };
    for (limit, usual, over, least) in [(1, 1, 1, 1), (10, 10, 9, 7), (40, 38, 35, 28)] {
        let of = |standing| places(standing, limit, Critical);
        assert_eq!(
            [Standing::Within, Standing::Over, far(0)].map(of),
            [usual, over, least],
            "{limit}"
        );
        assert_eq!(places(far(0), limit, Sheddable), least);
        assert_eq!(of(far(least as u64)), 0);
    }
    assert!(!has_room_of(far(u64::MAX), 0, u64::MAX, Critical));
}

/// A limit over workers: the parts that are admitted of honest clients, which ask once in 20 ms
/// each and at random, and of an abusive one that asks ten times in 1 ms. Half of all is critical; a
/// request stays for 20 ms on average, as long as a worker's counts are old at the most.
fn shares_under_abuse(workers: usize, clients: u32, limit: u64) -> (f64, f64) {
    let mut shares: Vec<KeyCounts> = (0..workers).map(|_| KeyCounts::default()).collect();
    let (mut record, mut flights) = (FairRecord::default(), Vec::<(u64, usize, u32)>::new());
    let (mut asked, mut got) = ([0u64; 2], [0u64; 2]);
    let rng = Rng::new(u64::from(clients) ^ limit);
    for at in 0..5_000u64 {
        let now = ms(10_000 + at);
        flights.retain(|(until, worker, key)| {
            let stays = *until > at;
            if !stays {
                shares[*worker].leave(*key);
            }
            stays
        });
        let honest: Vec<u32> = (1..=clients).filter(|_| rng.below(20) == 0).collect();
        for key in honest.into_iter().chain([0; 10]) {
            let worker = usize::try_from(rng.below(workers as u64)).unwrap();
            let criticality = [Critical, Sheddable][usize::from(rng.below(2) == 0)];
            let others = flights.len() as u64;
            let mine = &mut shares[worker];
            if mine.is_due(now, others * 100 >= limit * 70) {
                mine.sync(&mut record, now, worker as u64 + 1);
            }
            mine.asks(key, now);
            let standing = if mine.is_active(now) {
                mine.standing(key, now)
            } else {
                Standing::Within
            };
            asked[usize::from(key == 0)] += 1;
            if has_room_of(standing, others, limit, criticality) {
                mine.enter(key);
                flights.push((at + 1 + rng.below(40), worker, key));
                got[usize::from(key == 0)] += 1;
            } else {
                mine.refused(now, standing);
            }
        }
    }
    let part = |who: usize| got[who] as f64 / asked[who] as f64;
    (part(0), part(1))
}

#[test]
fn honest_clients_are_served_beside_an_abusive_one_and_the_limit_stays_used() {
    for (workers, clients, limit) in [
        (1, 4, 20),
        (1, 8, 30),
        (1, 10, 40),
        (2, 12, 40),
        (2, 20, 60),
        (4, 20, 60),
        (8, 40, 120),
    ] {
        let (honest, abusive) = shares_under_abuse(workers, clients, limit);
        assert!(honest > 0.965, "{workers} workers, {limit}: {honest}");
        // What the honest leave of seven tenths, at their peak.
        let peak = f64::from(clients) + 3.0 * f64::from(clients).sqrt();
        let room = (limit as f64 * 0.7 - peak).max(2.0) / (10.0 * 20.0);
        assert!(
            abusive > room * 0.8,
            "{workers} workers, {limit}: {abusive} of {room}"
        );
    }
}

proptest! {
    /// The record is read as it was written, and anything else is read as something.
    #[test]
    fn records_are_read_as_written(
        keys in prop::collection::vec((any::<u32>(), 1u32..4), 0..200),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (mut shares, mut record) = (KeyCounts::default(), FairRecord::default());
        for (key, count) in keys {
            (0..count).for_each(|_| shares.enter(key));
        }
        shares.sync(&mut record, ms(5), 3);
        let mut written = Vec::new();
        record.encode(&mut written);
        prop_assert_eq!(FairRecord::decode(&written), record);
        let mut other = FairRecord::decode(&bytes);
        KeyCounts::default().sync(&mut other, ms(5), 3);
    }

    /// The count of keys and requests is that of a plain model, whatever comes and goes.
    #[test]
    fn counts_are_those_of_a_plain_model(events in prop::collection::vec((any::<bool>(), 0u32..6, 0usize..3), 0..200)) {
        let mut workers = [KeyCounts::default(), KeyCounts::default(), KeyCounts::default()];
        let (mut record, mut model) = (FairRecord::default(), vec![vec![0u32; 6]; 3]);
        for (comes, key, worker) in events {
            if comes {
                workers[worker].enter(key);
                model[worker][key as usize] += 1;
            } else if model[worker][key as usize] > 0 {
                workers[worker].leave(key);
                model[worker][key as usize] -= 1;
            }
        }
        exchange(&mut workers, &mut record, ms(7));
        let of = |key: usize| model.iter().map(|counts| u64::from(counts[key])).sum::<u64>();
        let (total, keys) = ((0..6).map(of).sum::<u64>(), (0..6).filter(|key| of(*key) > 0).count() as u64);
        for worker in &mut workers {
            for key in 0..6 {
                prop_assert_eq!(is_over(worker, key as u32), of(key) * keys > total);
            }
        }
    }
}
