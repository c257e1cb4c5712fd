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
        "no endpoint is left"
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
        out_since: Moment::from_secs(second),
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
            out_since: Moment::from_secs(since),
            ..member(availability, weight)
        })
}

proptest! {
    #[test]
    fn the_documented_rules_hold_for_any_endpoints(
        members in proptest::collection::vec(any_member(), 0..20),
        panic_threshold in prop_oneof![Just(0u32), Just(3_000), Just(5_000), Just(10_000)],
        max_ejection in prop_oneof![Just(0u32), Just(2_000), Just(5_000), Just(10_000)],
        zone in proptest::option::of(0u16..3),
    ) {
        let zones_of = |level| {
            let found: std::collections::BTreeSet<u16> = members
                .iter()
                .filter(|m| m.weight > 0 && m.level == level)
                .map(|m| m.zone)
                .collect();
            found.len() as u32
        };
        let rules = Rules {
            panic_threshold: Percent(panic_threshold),
            max_ejection: Percent(max_ejection),
            zone,
            zones: (0..3).map(zones_of).collect(),
        };
        let roster = roster_of(&rules, &members);
        let alive: Vec<&Member> = members.iter().filter(|m| m.weight > 0).collect();
        let of = |level, what| {
            alive
                .iter()
                .filter(|m| m.level == level && m.availability == what)
                .count() as u32
        };
        let size = |level| alive.iter().filter(|m| m.level == level).count() as u32;
        let Some(_) = roster.pool(0) else {
            prop_assert!(
                alive.iter().all(|m| m.availability == Out),
                "there was one to use"
            );
            return Ok(());
        };
        let used = pools(&roster);
        let ejected = alive.iter().filter(|m| m.availability != Available).count() as u32;
        let most = if max_ejection == 0 {
            0
        } else {
            (alive.len() as u32 * max_ejection / 10_000).max(1)
        };
        for (_, entries) in &used {
            for at in entries {
                let member = &members[*at];
                prop_assert!(member.weight > 0, "drained");
                prop_assert!(
                    member.availability != Out || roster.panic || ejected > most,
                    "one that is out"
                );
            }
            let mut sorted = entries.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, entries, "in the configuration's order");
        }
        let all: Vec<usize> = used
            .iter()
            .flat_map(|(_, entries)| entries.iter().copied())
            .collect();
        let distinct: std::collections::BTreeSet<usize> = all.iter().copied().collect();
        prop_assert_eq!(distinct.len(), all.len(), "in one pool only");
        if !roster.panic {
            let enough = |level| {
                size(level) > 0
                    && of(level, Available) > 0
                    && of(level, Available) * 10_000 >= size(level) * panic_threshold
            };
            if let Some(last) = (0..3).find(|level| enough(*level)) {
                prop_assert!(
                    all.iter().all(|at| members[*at].level <= last),
                    "overflow without need"
                );
            }
            // What breakers take out never exceeds its part, within the levels that are in use.
            let missing = alive
                .iter()
                .filter(|m| m.availability == Out && size(0) == alive.len() as u32)
                .count();
            let out = members
                .iter()
                .enumerate()
                .filter(|(at, m)| m.weight > 0 && m.availability == Out && !distinct.contains(at))
                .count();
            prop_assert!(
                missing == 0 || zone.is_some() || out as u32 <= most || of(0, Available) == 0,
                "{} of {} are out",
                out,
                most
            );
        }
        let shares: u32 = used.iter().map(|(share, _)| share).sum();
        prop_assert!((98..=102).contains(&shares), "{:?}", used);
    }
}
