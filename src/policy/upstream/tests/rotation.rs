use super::*;

fn sequence(entries: &[RosterEntry], rotation: &mut Rotation, n: usize) -> String {
    (0..n)
        .map(|_| {
            char::from(
                b'a' + rotation
                    .next(entries, NO_TRIAL, &Rng::new(1))
                    .first()
                    .unwrap() as u8,
            )
        })
        .collect()
}

#[test]
fn the_order_is_nginxs() {
    let vector = vector(include_str!(
        "../../../../tests/vectors/11_smooth_wrr_nginx.json"
    ));
    for it in vector["sequences"].as_array().unwrap() {
        let weights = numbers(&it["weights"]);
        let n = it["n"].as_u64().unwrap() as usize;
        let got = sequence(
            &super::weights(&weights),
            &mut Rotation::new(weights.len()),
            n,
        );
        assert_eq!(got, it["out"].as_str().unwrap(), "{weights:?}");
    }
    let counts = &vector["counts"];
    let weights = numbers(&counts["weights"]);
    let (entries, mut rotation) = (super::weights(&weights), Rotation::new(weights.len()));
    let mut got = vec![0u32; weights.len()];
    for _ in 0..counts["n"].as_u64().unwrap() {
        got[rotation
            .next(&entries, NO_TRIAL, &Rng::new(1))
            .first()
            .unwrap()] += 1;
    }
    assert_eq!(got, numbers(&counts["out"]));
    let zero = numbers(&vector["zero_weight"]["weights"]);
    assert_eq!(
        sequence(&super::weights(&zero), &mut Rotation::new(zero.len()), 4),
        "bbbb"
    );
}

#[test]
fn a_worker_starts_anywhere_in_the_same_order() {
    let entries = weights(&[5, 1, 1]);
    let whole = "aabacaa".repeat(3);
    let mut starts = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let mut rotation = Rotation::new(3);
        rotation.start(&entries, &Rng::new(seed));
        let got = sequence(&entries, &mut rotation, 14);
        assert!(whole.contains(&got), "{got}");
        starts.insert(got);
    }
    assert_eq!(starts.len(), 7);
}

#[test]
fn the_list_goes_on_with_others_and_a_trial_comes_first_or_not_at_all() {
    let entries = entries(&[
        member(Available, 5),
        member(Trial, 5),
        member(Available, 2),
        member(Available, 1),
    ]);
    let (mut rotation, rng) = (Rotation::new(4), Rng::new(1));
    let mut second = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let list = order(rotation.next(&entries, ANY_TRIAL, &rng));
        assert!(list.len() == 3 && !list[1..].contains(&1), "{list:?}");
        assert!(list[0] != list[1] && list[1] != list[2] && list[0] != list[2]);
        second.insert((list[0], list[1]));
        assert!(!order(rotation.next(&entries, NO_TRIAL, &rng)).contains(&1));
    }
    assert!(
        second.contains(&(0, 2)) && second.contains(&(0, 3)),
        "retries are spread: {second:?}"
    );
}

proptest! {
    #[test]
    fn no_endpoint_is_ahead_of_or_behind_its_share_by_more_than_the_others(
        weights in proptest::collection::vec(1u32..20, 1..12),
    ) {
        let entries = super::weights(&weights);
        let total: u32 = weights.iter().sum();
        let mut rotation = Rotation::new(weights.len());
        let mut got = vec![0u32; weights.len()];
        for n in 1..=2 * total {
            let list = rotation.next(&entries, NO_TRIAL, &Rng::new(1));
            got[list.first().unwrap()] += 1;
            prop_assert_eq!(list.iter().count(), weights.len().min(LIST));
            for (got, weight) in got.iter().zip(&weights) {
                let (has, due) = (f64::from(*got), f64::from(n * weight) / f64::from(total));
                prop_assert!(
                    (has - due).abs() <= weights.len() as f64,
                    "{} of {}",
                    has,
                    due
                );
            }
        }
        let exact: Vec<u32> = weights.iter().map(|weight| 2 * weight).collect();
        prop_assert_eq!(got, exact);
    }
}
