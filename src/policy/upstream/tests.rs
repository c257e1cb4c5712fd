use super::maglev::MaglevTable;
use super::roster::{EndpointCounts, Member, Roster, RosterEntry, Rules, UNIT};
use super::rotation::Rotation;
use super::*;
use crate::base::hash::xxh64;
use crate::base::rng::Rng;
use crate::base::time::Nanos;
use crate::config::Percent;
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;

use Availability::{Available, Out, Trial};

const NOBODY: &dyn Fn(usize) -> bool = &|_| false;
const ANYBODY: &dyn Fn(usize) -> bool = &|_| true;

fn vector(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap() as u32)
        .collect()
}

/// An endpoint of level 0 and zone 0.
fn member(availability: Availability, weight: u32) -> Member {
    Member {
        availability,
        weight: weight * UNIT,
        ..Member::default()
    }
}

fn rules() -> Rules {
    Rules {
        panic_threshold: Percent(5_000),
        max_ejection: Percent(5_000),
        zone: None,
        zones: vec![1],
    }
}

fn roster_of(rules: &Rules, members: &[Member]) -> Roster {
    let mut roster = Roster::default();
    roster.build(rules, members.iter().copied());
    roster
}

fn roster(members: &[Member]) -> Roster {
    roster_of(&rules(), members)
}

/// The entries of all pools in use, with their shares.
fn pools(roster: &Roster) -> Vec<(u32, Vec<usize>)> {
    let mut found: Vec<(u32, Vec<usize>)> = Vec::new();
    for draw in 0..=u16::MAX {
        let pool = roster.pool(draw).unwrap();
        let entries: Vec<usize> = roster.entries(pool).iter().map(|entry| entry.at).collect();
        match found.iter_mut().find(|(_, known)| *known == entries) {
            Some((share, _)) => *share += 1,
            None => found.push((1, entries)),
        }
    }
    found
        .into_iter()
        .map(|(share, entries)| ((share * 100 + (1 << 15)) >> 16, entries))
        .collect()
}

fn entries(members: &[Member]) -> Vec<RosterEntry> {
    let roster = roster(members);
    let pool = roster.pool(0).unwrap().clone();
    roster.entries(&pool).to_vec()
}

fn weights(weights: &[u32]) -> Vec<RosterEntry> {
    entries(
        &weights
            .iter()
            .map(|weight| member(Available, *weight))
            .collect::<Vec<_>>(),
    )
}

fn order(list: EndpointList) -> Vec<usize> {
    list.iter().collect()
}

mod rotation_ {
    use super::*;

    fn sequence(entries: &[RosterEntry], rotation: &mut Rotation, n: usize) -> String {
        (0..n)
            .map(|_| {
                char::from(
                    b'a' + rotation
                        .next(entries, NOBODY, &Rng::new(1))
                        .first()
                        .unwrap() as u8,
                )
            })
            .collect()
    }

    #[test]
    fn the_order_is_nginxs() {
        let vector = vector(include_str!(
            "../../../tests/vectors/11_smooth_wrr_nginx.json"
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
                .next(&entries, NOBODY, &Rng::new(1))
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
            let list = order(rotation.next(&entries, ANYBODY, &rng));
            assert!(list.len() == 3 && !list[1..].contains(&1), "{list:?}");
            assert!(list[0] != list[1] && list[1] != list[2] && list[0] != list[2]);
            second.insert((list[0], list[1]));
            assert!(!order(rotation.next(&entries, NOBODY, &rng)).contains(&1));
        }
        assert!(
            second.contains(&(0, 2)) && second.contains(&(0, 3)),
            "retries are spread: {second:?}"
        );
    }

    proptest! {
        #[test]
        fn nobody_is_ahead_of_or_behind_its_share_by_more_than_the_others(weights in proptest::collection::vec(1u32..20, 1..12)) {
            let entries = super::weights(&weights);
            let total: u32 = weights.iter().sum();
            let mut rotation = Rotation::new(weights.len());
            let mut got = vec![0u32; weights.len()];
            for n in 1..=2 * total {
                let list = rotation.next(&entries, NOBODY, &Rng::new(1));
                got[list.first().unwrap()] += 1;
                prop_assert_eq!(list.iter().count(), weights.len().min(LIST));
                for (got, weight) in got.iter().zip(&weights) {
                    let (has, due) = (f64::from(*got), f64::from(n * weight) / f64::from(total));
                    prop_assert!((has - due).abs() <= weights.len() as f64, "{} of {}", has, due);
                }
            }
            let exact: Vec<u32> = weights.iter().map(|weight| 2 * weight).collect();
            prop_assert_eq!(got, exact);
        }
    }
}

mod choice_ {
    use super::choice::{cheapest, first, random};
    use super::*;

    fn least(members: &[Member], in_flight: &[u64], rng: &Rng) -> Vec<usize> {
        order(cheapest(
            &entries(members),
            ANYBODY,
            &|at| in_flight[at],
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
            .filter(|_| random(&entries, NOBODY, &rng).first() == Some(0))
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
        assert_eq!(order(cheapest(&entries, NOBODY, &|_| 0, &rng)).len(), 2);
        for _ in 0..100 {
            let list = order(random(&entries, ANYBODY, &rng));
            assert!(
                list.len() == 3 && list[0] == 1 || list.len() == 2 && !list.contains(&1),
                "{list:?}"
            );
            assert_eq!(order(random(&entries, NOBODY, &rng)).len(), 2);
        }
        assert_eq!(order(first(&entries, ANYBODY)), [0, 2]);
        assert_eq!(order(first(&entries[1..], ANYBODY)), [1, 2]);
        assert_eq!(order(first(&entries[1..], NOBODY)), [2]);
    }

    #[test]
    fn many_endpoints_share_evenly() {
        let rng = Rng::new(6);
        for count in [9usize, 10, 100, 1_000] {
            let entries = weights(&vec![1; count]);
            let draw = |kind: usize| match kind {
                0 => order(cheapest(&entries, NOBODY, &|_| 0, &rng)),
                _ => order(random(&entries, NOBODY, &rng)),
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
            assert_eq!(order(random(&entries, NOBODY, &Rng::new(seed))).len(), 3);
        }
    }
}

mod roster_ {
    use super::*;

    fn at_level(level: u16, availability: Availability) -> Member {
        Member {
            level,
            ..member(availability, 1)
        }
    }

    fn levels(count: usize) -> Rules {
        Rules {
            zones: vec![1; count],
            ..rules()
        }
    }

    #[test]
    fn what_is_out_or_drained_is_not_in_rotation() {
        let roster = roster(&[
            member(Available, 0),
            member(Out, 1),
            member(Available, 1),
            member(Trial, 1),
            member(Available, 1),
        ]);
        assert_eq!(
            roster.counts,
            EndpointCounts {
                members: 4,
                available: 2,
                trial: 1
            }
        );
        assert_eq!(pools(&roster), [(100, vec![2, 3, 4])]);
        assert!(super::roster(&[member(Available, 0)]).pool(0).is_none());
        assert!(super::roster(&[]).pool(0).is_none());
    }

    #[test]
    fn below_the_threshold_all_but_the_drained_are_used() {
        let all = [
            member(Out, 1),
            member(Out, 1),
            member(Available, 1),
            member(Available, 0),
        ];
        let panic = roster(&all);
        assert!(panic.panic);
        assert_eq!(pools(&panic), [(100, vec![0, 1, 2])]);
        assert!(
            !roster(&all[1..]).panic,
            "exactly the threshold is no panic"
        );
        let never = Rules {
            panic_threshold: Percent(0),
            max_ejection: Percent(10_000),
            ..rules()
        };
        assert_eq!(pools(&roster_of(&never, &all)), [(100, vec![2])]);
        assert!(
            roster_of(&never, &all[..2]).pool(0).is_none(),
            "nobody is left"
        );
        assert_eq!(
            pools(&roster_of(&never, &[member(Out, 1), member(Trial, 1)])),
            [(100, vec![1])]
        );
    }

    #[test]
    fn a_lower_level_is_used_only_for_what_the_higher_ones_lack() {
        let of = |first: &[Availability], second: &[Availability]| {
            let all: Vec<Member> = first
                .iter()
                .map(|a| at_level(0, *a))
                .chain(second.iter().map(|a| at_level(1, *a)))
                .collect();
            roster_of(&levels(2), &all)
        };
        let well = [Available; 3];
        assert_eq!(pools(&of(&well, &well)), [(100, vec![0, 1, 2])]);
        assert_eq!(
            pools(&of(&[Available, Available, Out], &well)),
            [(100, vec![0, 1])],
            "two thirds are enough"
        );
        // A third of the endpoints is two thirds of the threshold.
        assert_eq!(
            pools(&of(&[Available, Out, Out], &well)),
            [(67, vec![0]), (33, vec![3, 4, 5])]
        );
        assert_eq!(pools(&of(&[Out; 3], &well)), [(100, vec![3, 4, 5])]);
        // A trial of the level that was left is made all the same; none of a level that is not
        // reached.
        assert_eq!(
            pools(&of(&[Out, Trial, Out], &well)),
            [(100, vec![1, 3, 4, 5])]
        );
        assert_eq!(pools(&of(&well, &[Trial; 3])), [(100, vec![0, 1, 2])]);
        // Nowhere enough: all, by number.
        let panic = of(&[Out], &[Available, Out, Out]);
        assert!(panic.panic);
        assert_eq!(pools(&panic), [(25, vec![0]), (75, vec![1, 2, 3])]);
    }

    #[test]
    fn two_sites_and_a_cold_one() {
        // Both active sites are level 0, the cold one level 1: losing one site moves nothing there,
        // losing both everything.
        let of = |a: Availability, b: Availability| {
            let sites = [
                (0, a),
                (0, a),
                (0, b),
                (0, b),
                (1, Available),
                (1, Available),
            ];
            roster_of(
                &levels(2),
                &sites.map(|(level, availability)| at_level(level, availability)),
            )
        };
        assert_eq!(pools(&of(Available, Available)), [(100, vec![0, 1, 2, 3])]);
        assert_eq!(pools(&of(Out, Available)), [(100, vec![2, 3])]);
        assert_eq!(pools(&of(Out, Out)), [(100, vec![4, 5])]);
    }

    #[test]
    fn the_own_zone_comes_first_and_gives_what_it_cannot_carry() {
        let rules = Rules {
            zone: Some(1),
            zones: vec![2],
            ..rules()
        };
        let of = |all: &[(u16, Availability)]| {
            let all: Vec<_> = all
                .iter()
                .map(|(zone, a)| Member {
                    zone: *zone,
                    ..member(*a, 1)
                })
                .collect();
            let roster = roster_of(&rules, &all);
            pools(&roster)
        };
        assert_eq!(
            of(&[
                (1, Available),
                (1, Available),
                (2, Available),
                (2, Available)
            ]),
            [(100, vec![0, 1])]
        );
        // One of three is left: two thirds of what two zones of equal load would be.
        assert_eq!(
            of(&[(1, Available), (1, Out), (2, Available), (2, Available)]),
            [(67, vec![0]), (33, vec![2, 3])]
        );
        assert_eq!(
            of(&[(1, Out), (1, Out), (2, Available), (2, Available)]),
            [(100, vec![2, 3])]
        );
        assert_eq!(
            of(&[(1, Available), (1, Available), (2, Out), (2, Out)]),
            [(100, vec![0, 1])]
        );
        assert_eq!(
            of(&[(1, Available), (1, Available), (2, Available), (2, Trial)]),
            [(100, vec![0, 1, 3])]
        );
        // No endpoint has a zone: nothing is preferred.
        assert_eq!(of(&[(0, Available), (0, Available)]), [(100, vec![0, 1])]);
    }

    #[test]
    fn a_list_is_filled_from_other_zones_of_the_level() {
        let rules = Rules {
            zone: Some(1),
            zones: vec![2, 2],
            ..rules()
        };
        let zoned = |level, zone| Member {
            level,
            zone,
            ..member(Available, 1)
        };
        let roster = roster_of(&rules, &[zoned(0, 1), zoned(0, 2), zoned(1, 1)]);
        let pool = roster.pool(0).unwrap();
        assert_eq!(
            roster.others(pool, &Rng::new(1)).collect::<Vec<_>>(),
            [1],
            "not from another level"
        );
    }

    #[test]
    fn breakers_take_no_more_than_their_part_and_the_first_to_open_goes() {
        let out = |second| Member {
            out_since: Nanos::from_secs(second),
            ..member(Out, 1)
        };
        let well = member(Available, 1);
        let rules = Rules {
            max_ejection: Percent(3_000),
            ..rules()
        };
        let all = [
            out(9),
            well,
            out(5),
            well,
            out(7),
            well,
            well,
            well,
            out(6),
            well,
        ];
        let roster = roster_of(&rules, &all);
        // Three of ten may go: those of 5, 6 and 7 s.
        assert_eq!(pools(&roster), [(100, vec![0, 1, 3, 5, 6, 7, 9])]);
        assert_eq!(roster.counts.available, 6, "it is not well for all that");
        let one = roster_of(&rules, &[well, out(1)]);
        assert_eq!(pools(&one), [(100, vec![0])], "one may always go");
        let none = Rules {
            max_ejection: Percent(0),
            ..rules
        };
        assert_eq!(
            pools(&roster_of(&none, &[well, out(1)])),
            [(100, vec![0, 1])]
        );
    }

    fn any_member() -> impl Strategy<Value = Member> {
        (
            prop_oneof![3 => Just(Available), 1 => Just(Trial), 2 => Just(Out)],
            0u32..4,
            0u16..3,
            0u16..3,
            0u64..5,
        )
            .prop_map(|(availability, weight, level, zone, since)| Member {
                level,
                zone,
                out_since: Nanos::from_secs(since),
                ..member(availability, weight)
            })
    }

    proptest! {
        #[test]
        fn the_contract_holds_for_any_endpoints(
            members in proptest::collection::vec(any_member(), 0..20),
            panic_threshold in prop_oneof![Just(0u32), Just(3_000), Just(5_000), Just(10_000)],
            max_ejection in prop_oneof![Just(0u32), Just(2_000), Just(5_000), Just(10_000)],
            zone in proptest::option::of(0u16..3),
        ) {
            let zones_of = |level| {
                let found: std::collections::BTreeSet<u16> = members.iter().filter(|m| m.weight > 0 && m.level == level).map(|m| m.zone).collect();
                found.len() as u32
            };
            let rules = Rules {
                panic_threshold: Percent(panic_threshold), max_ejection: Percent(max_ejection), zone, zones: (0..3).map(zones_of).collect(),
            };
            let roster = roster_of(&rules, &members);
            let alive: Vec<&Member> = members.iter().filter(|m| m.weight > 0).collect();
            let of = |level, what| alive.iter().filter(|m| m.level == level && m.availability == what).count() as u32;
            let size = |level| alive.iter().filter(|m| m.level == level).count() as u32;
            let Some(_) = roster.pool(0) else {
                prop_assert!(alive.iter().all(|m| m.availability == Out), "there was one to use");
                return Ok(());
            };
            let used = pools(&roster);
            let ejected = alive.iter().filter(|m| m.availability != Available).count() as u32;
            let most = if max_ejection == 0 { 0 } else { (alive.len() as u32 * max_ejection / 10_000).max(1) };
            for (_, entries) in &used {
                for at in entries {
                    let member = &members[*at];
                    prop_assert!(member.weight > 0, "drained");
                    prop_assert!(member.availability != Out || roster.panic || ejected > most, "one that is out");
                }
                let mut sorted = entries.clone();
                sorted.sort_unstable();
                prop_assert_eq!(&sorted, entries, "in the configuration's order");
            }
            let all: Vec<usize> = used.iter().flat_map(|(_, entries)| entries.iter().copied()).collect();
            let distinct: std::collections::BTreeSet<usize> = all.iter().copied().collect();
            prop_assert_eq!(distinct.len(), all.len(), "in one pool only");
            if !roster.panic {
                let enough = |level| size(level) > 0 && of(level, Available) > 0 && of(level, Available) * 10_000 >= size(level) * panic_threshold;
                if let Some(last) = (0..3).find(|level| enough(*level)) {
                    prop_assert!(all.iter().all(|at| members[*at].level <= last), "overflow without need");
                }
                // What breakers take out never exceeds its part, within the levels that are in use.
                let missing = alive.iter().filter(|m| m.availability == Out && size(0) == alive.len() as u32).count();
                let out = members.iter().enumerate().filter(|(at, m)| m.weight > 0 && m.availability == Out && !distinct.contains(at)).count();
                prop_assert!(missing == 0 || zone.is_some() || out as u32 <= most || of(0, Available) == 0, "{} of {} are out", out, most);
            }
            let shares: u32 = used.iter().map(|(share, _)| share).sum();
            prop_assert!((98..=102).contains(&shares), "{:?}", used);
        }
    }
}

mod maglev_ {
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
            .pick(hash, roster, pool, NOBODY, &|_| true)
            .first()
            .unwrap()
    }

    fn well(count: usize) -> Roster {
        roster(&vec![member(Available, 1); count])
    }

    #[test]
    fn tables_are_envoys() {
        let vector = vector(include_str!("../../../tests/vectors/13_maglev_envoy.json"));
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
            let list = order(table.pick(hash, &all, all.pool(0).unwrap(), NOBODY, &|_| true));
            assert_eq!(list.len(), LIST);
            let without: Vec<usize> = order(table.pick(hash, &tried, pool, NOBODY, &|_| true));
            assert!(!without.contains(&2));
            let with = order(table.pick(hash, &tried, pool, ANYBODY, &|_| true));
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
        fn nobody_carries_more_than_the_bound(hot in 0u64..100, requests in 1u64..300, count in 1usize..12, bound in 100u32..300) {
            let table = table(&names(count), &vec![1; count], SIZE);
            let roster = well(count);
            let pool = roster.pool(0).unwrap();
            let mut in_flight = vec![0u64; count];
            for request in 0..requests {
                // Nearly all of one key, and nobody ends.
                let key: u64 = if request % 4 == 0 { request } else { hot };
                let room = |entry: &RosterEntry| has_room(in_flight[entry.at], request, entry.weight, pool.weight, Percent(bound));
                let at = table.pick(xxh64(&key.to_le_bytes(), 0), &roster, pool, NOBODY, &room).first().unwrap();
                in_flight[at] += 1;
                let most = ((request + 1) * u64::from(bound)).div_ceil(100 * count as u64).max(2);
                prop_assert!(in_flight[at] <= most, "{} where {} may be", in_flight[at], most);
            }
        }
    }
}
