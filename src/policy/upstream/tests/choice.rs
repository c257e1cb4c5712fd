use super::*;
use crate::policy::upstream::choice::{Cost, cheapest, first, random};

fn least(members: &[Member], in_flight: &[u64], rng: &Rng) -> Vec<usize> {
    order(cheapest(
        &entries(members),
        ANY_TRIAL,
        &|at| Cost::of(in_flight[at]),
        rng,
    ))
}

#[test]
fn the_least_loaded_for_its_weight_comes_first() {
    let all = [
        member(Available, 1),
        member(Available, 3),
        member(Available, 4),
    ];
    // 3/3 < 2/1 < 9/4
    assert_eq!(least(&all, &[2, 3, 9], &Rng::new(1)), [1, 0, 2]);
}

#[test]
fn equals_are_drawn_by_weight() {
    let (rng, all) = (Rng::new(2), [member(Available, 3), member(Available, 1)]);
    let hits = (0..40_000)
        .filter(|_| least(&all, &[0, 0], &rng)[0] == 0)
        .count();
    assert!((29_400..30_600).contains(&hits), "{hits}");
    let entries = entries(&all);
    let hits = (0..40_000)
        .filter(|_| random(&entries, NO_TRIAL, &rng).first() == Some(0))
        .count();
    assert!((29_400..30_600).contains(&hits), "{hits}");
}

#[test]
fn a_trial_comes_first_or_not_at_all() {
    let rng = Rng::new(4);
    let all = [member(Available, 1), member(Trial, 1), member(Available, 1)];
    assert_eq!(least(&all, &[1, 0, 2], &rng), [1, 0, 2]);
    assert_eq!(least(&all, &[1, 5, 2], &rng), [0, 2]);
    let entries = entries(&all);
    assert_eq!(
        order(cheapest(&entries, NO_TRIAL, &|_| Cost::of(0), &rng)).len(),
        2
    );
    for _ in 0..100 {
        let list = order(random(&entries, ANY_TRIAL, &rng));
        assert!(
            list.len() == 3 && list[0] == 1 || list.len() == 2 && !list.contains(&1),
            "{list:?}"
        );
        assert_eq!(order(random(&entries, NO_TRIAL, &rng)).len(), 2);
    }
    assert_eq!(order(first(entries.iter(), ANY_TRIAL)), [0, 2]);
    assert_eq!(order(first(entries[1..].iter(), ANY_TRIAL)), [1, 2]);
    assert_eq!(order(first(entries[1..].iter(), NO_TRIAL)), [2]);
}

#[test]
fn many_endpoints_share_evenly() {
    let rng = Rng::new(6);
    for count in [9usize, 10, 100, 1_000] {
        let entries = weights(&vec![1; count]);
        let draw = |kind: usize| match kind {
            0 => order(cheapest(&entries, NO_TRIAL, &|_| Cost::of(0), &rng)),
            _ => order(random(&entries, NO_TRIAL, &rng)),
        };
        for kind in 0..2 {
            let mut hits = vec![0u32; count];
            for _ in 0..count * 200 {
                let list = draw(kind);
                assert!(
                    list.len() == LIST
                        && list[0] != list[1]
                        && list[1] != list[2]
                        && list[0] != list[2]
                );
                hits[list[0]] += 1;
            }
            assert!(
                hits.iter().all(|hits| (120..280).contains(hits)),
                "{count}: {hits:?}"
            );
        }
    }
}

#[test]
fn a_heavy_endpoint_does_not_keep_others_off_the_list() {
    let entries = weights(&[1_000, 1, 1]);
    for seed in 0..100 {
        assert_eq!(order(random(&entries, NO_TRIAL, &Rng::new(seed))).len(), 3);
    }
}

#[test]
fn what_costs_up_to_twice_as_much_costs_the_same() {
    let (rng, all) = (Rng::new(3), entries(&[member(Available, 1); 3]));
    let first = |each: [u64; 3], count: [u64; 3]| {
        let cost = |at: usize| Cost {
            each: each[at],
            count: count[at],
        };
        let draws = (0..100).map(|_| order(cheapest(&all, NO_TRIAL, &cost, &rng))[0]);
        draws
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    };
    assert_eq!(first([5, 9, 200], [1; 3]), [0, 1]);
    assert_eq!(
        first([5, 9, 200], [2, 1, 1]),
        [1],
        "the one with less to do"
    );
    assert_eq!(first([5, 11, 200], [2, 1, 1]), [0]);
    assert_eq!(first([5, 9, 0], [1; 3]), [2], "what is not known is tried");
    assert_eq!(first([0; 3], [1; 3]), [0, 1, 2]);
}
