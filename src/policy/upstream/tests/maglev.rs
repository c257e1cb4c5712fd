use super::*;
use crate::policy::upstream::maglev::{SIZE, has_room};

fn table(names: &[String], weights: &[u32], size: u32) -> MaglevTable {
    let named = names
        .iter()
        .zip(weights)
        .enumerate()
        .map(|(at, (name, weight))| (name.as_str(), at as u16, *weight));
    MaglevTable::new(named, size)
}

fn names(count: usize) -> Vec<String> {
    (0..count)
        .map(|n| format!("10.0.{}.{}:80", n / 250, n % 250))
        .collect()
}

fn first(table: &MaglevTable, roster: &Roster, hash: u64) -> usize {
    let pool = roster.pool(0).unwrap();
    table
        .pick(hash, roster, pool, NO_TRIAL, &|_| true)
        .first()
        .unwrap()
}

fn well(count: usize) -> Roster {
    roster(&vec![member(Available, 1); count])
}

#[test]
fn tables_are_envoys() {
    let vector = vector(include_str!(
        "../../../../tests/vectors/13_maglev_envoy.json"
    ));
    for it in vector["xxh64_check"].as_array().unwrap() {
        for seed in 0..2 {
            let want: u64 = it[format!("seed{seed}")].as_str().unwrap().parse().unwrap();
            assert_eq!(xxh64(it["in"].as_str().unwrap().as_bytes(), seed), want);
        }
    }
    for it in vector["tables"].as_array().unwrap() {
        let names: Vec<String> = it["keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key.as_str().unwrap().to_owned())
            .collect();
        let weights = it
            .get("weights")
            .or(it.get("weights_equal_localities"))
            .map(numbers)
            .unwrap();
        let size = it["M"].as_u64().unwrap() as u32;
        let (table, roster) = (table(&names, &weights, size), well(names.len()));
        let got: Vec<u32> = (0..u64::from(size))
            .map(|hash| first(&table, &roster, hash) as u32)
            .collect();
        assert_eq!(got, numbers(&it["table"]), "{names:?}");
    }
}

#[test]
fn long_names_hash_as_xxhash_says() {
    // Of xxhsum 0.8.
    assert_eq!(xxh64(b"", 0), 0xef46_db37_51d8_e999);
    assert_eq!(xxh64(b"abc", 0), 0x44bc_2cf5_ad77_0999);
    assert_eq!(
        xxh64(b"Nobody inspects the spammish repetition", 0),
        0xfbce_a83c_8a37_8bf1
    );
}

#[test]
fn slots_are_shared_by_weight() {
    let names = names(7);
    let weights = [1, 2, 3, 4, 5, 6, 0];
    let roster = roster(&weights.map(|weight| member(Available, weight)));
    let table = table(&names, &weights, SIZE);
    let mut slots = [0u32; 7];
    (0..u64::from(SIZE)).for_each(|hash| slots[first(&table, &roster, hash)] += 1);
    for (slots, weight) in slots.iter().zip(weights) {
        assert!(
            slots.abs_diff(SIZE * weight / 21) <= SIZE / 21 / 50 + 7,
            "{slots:?} of weight {weight}"
        );
    }
}

#[test]
fn few_keys_move_when_one_of_many_leaves_the_configuration() {
    // Of 100 1.6 times 1/n would: the price of a table of this size. (One that is out and still
    // configured moves only its own.)
    for count in [3usize, 10, 20] {
        let all = names(count);
        let before = table(&all, &vec![1; count], SIZE);
        let (leaves, rest) = all.split_last().unwrap();
        let after = table(rest, &vec![1; count - 1], SIZE);
        let (roster, fewer) = (well(count), well(count - 1));
        let moved = (0..u64::from(SIZE))
            .filter(|hash| first(&before, &roster, *hash) != first(&after, &fewer, *hash))
            .count();
        // 1.2 times 1/n.
        assert!(
            moved * count * 10 <= 12 * SIZE as usize,
            "{moved} moved of {SIZE} when {leaves} of {count} left"
        );
    }
}

#[test]
fn only_the_keys_of_one_that_is_out_move_and_they_spread() {
    for count in [3usize, 10, 100] {
        let table = table(&names(count), &vec![1; count], SIZE);
        let mut members = vec![member(Available, 1); count];
        let before = roster(&members);
        members[1].availability = Out;
        let after = roster(&members);
        let mut taken = BTreeMap::<usize, usize>::new();
        for hash in 0..u64::from(SIZE) {
            let (was, is) = (first(&table, &before, hash), first(&table, &after, hash));
            if was == 1 {
                *taken.entry(is).or_default() += 1;
            } else {
                assert_eq!(was, is);
            }
        }
        assert!(taken.len() * 100 >= (count - 1) * 95, "{taken:?}");
        let fair = SIZE as usize / count / (count - 1);
        assert!(
            taken.values().all(|taken| *taken <= 2 * fair + 20),
            "{taken:?}, about {fair} each"
        );
    }
}

#[test]
fn the_list_goes_on_to_the_next_owners_and_a_trial_comes_first_or_not_at_all() {
    let table = table(&names(5), &[1; 5], SIZE);
    let all = well(5);
    let mut members = vec![member(Available, 1); 5];
    members[2].availability = Trial;
    let tried = roster(&members);
    let pool = tried.pool(0).unwrap();
    for hash in 0..500u64 {
        let list = order(table.pick(hash, &all, all.pool(0).unwrap(), NO_TRIAL, &|_| true));
        assert_eq!(list.len(), LIST);
        let without: Vec<usize> = order(table.pick(hash, &tried, pool, NO_TRIAL, &|_| true));
        assert!(!without.contains(&2));
        let with = order(table.pick(hash, &tried, pool, ANY_TRIAL, &|_| true));
        assert_eq!(with.contains(&2), list[0] == 2);
        assert_eq!(with[0], list[0]);
    }
}

#[test]
fn of_very_many_that_are_out_the_few_left_are_found() {
    let table = table(&names(1_000), &[1; 1_000], SIZE);
    let mut members = vec![member(Out, 1); 1_000];
    members[777].availability = Available;
    members[13].availability = Available;
    let never = Rules {
        panic_threshold: Percent(0),
        max_ejection: Percent(10_000),
        ..rules()
    };
    let roster = roster_of(&never, &members);
    let mut hits = BTreeMap::<usize, usize>::new();
    for key in 0..2_000u64 {
        *hits
            .entry(first(&table, &roster, xxh64(&key.to_le_bytes(), 0)))
            .or_default() += 1;
    }
    assert!(
        hits.len() == 2 && hits.values().all(|hits| *hits > 700),
        "{hits:?}"
    );
}

proptest! {
    #[test]
    fn no_endpoint_carries_more_than_the_bound(
        hot in 0u64..100,
        requests in 1u64..300,
        count in 1usize..12,
        bound in 100u32..300,
    ) {
        let table = table(&names(count), &vec![1; count], SIZE);
        let roster = well(count);
        let pool = roster.pool(0).unwrap();
        let mut in_flight = vec![0u64; count];
        for request in 0..requests {
            // Nearly all of one key, and none ends.
            let key: u64 = if request % 4 == 0 { request } else { hot };
            let room = |entry: &RosterEntry| {
                has_room(
                    in_flight[entry.at],
                    request,
                    entry.weight,
                    pool.weight,
                    Percent(bound),
                )
            };
            let at = table
                .pick(xxh64(&key.to_le_bytes(), 0), &roster, pool, NO_TRIAL, &room)
                .first()
                .unwrap();
            in_flight[at] += 1;
            let most = ((request + 1) * u64::from(bound))
                .div_ceil(100 * count as u64)
                .max(2);
            prop_assert!(
                in_flight[at] <= most,
                "{} where {} may be",
                in_flight[at],
                most
            );
        }
    }
}
