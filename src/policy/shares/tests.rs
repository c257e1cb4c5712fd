use super::*;
use proptest::prelude::*;

const TICK: Nanos = Nanos::from_secs(1);

impl Shares {
    /// Of a single gauge.
    fn report_one(&mut self, now: Moment, vm: u64, own: u64, gauge: u64) -> i64 {
        let mut correction = 0;
        self.report(now, vm, true, &[(7, own, gauge)], |_, by| correction = by);
        correction
    }
}

#[test]
fn what_a_lost_vm_left_is_taken_out() {
    let (mut shares, mut gauge, mut now) = (Shares::default(), 12i64, Moment::from_secs(100));
    // VM 2 reports once, with 5 in flight, and is lost.
    assert_eq!(shares.report_one(now, 2, 5, 12), 0);
    for second in 0..40 {
        now = now.plus(TICK);
        gauge += shares.report_one(now, 1, 7, gauge as u64);
        assert!(
            gauge == 12 || second >= 19,
            "not before it is proven: {second}"
        );
    }
    assert_eq!(gauge, 7);
}

#[test]
fn a_gauge_that_is_too_low_is_put_right_too() {
    let (mut shares, mut gauge, mut now) = (Shares::default(), -3i64, Moment::from_secs(100));
    for _ in 0..30 {
        now = now.plus(TICK);
        gauge = gauge.wrapping_add(shares.report_one(now, 1, 4, gauge as u64));
    }
    assert_eq!(gauge, 4);
}

#[test]
fn one_look_that_agrees_starts_anew() {
    let (mut shares, mut now) = (Shares::default(), Moment::from_secs(100));
    // One is lost that held nothing.
    shares.announce(now, 2);
    for second in 0..100u64 {
        now = now.plus(TICK);
        // Mostly above, but never for long.
        let gauge = if second % 9 == 8 { 4 } else { 7 };
        assert_eq!(shares.report_one(now, 1, 4, gauge), 0);
    }
}

#[test]
fn a_clock_that_steps_back_proves_nothing() {
    let mut shares = Shares::default();
    shares.report_one(Moment::from_secs(1_000), 2, 5, 6);
    assert_eq!(shares.report_one(Moment::from_secs(10), 1, 1, 2), 0);
    assert_eq!(shares.report_one(Moment::from_secs(15), 1, 1, 2), 0);
    assert_eq!(
        shares.report_one(Moment::from_secs(20), 1, 1, 2),
        -1,
        "counted from the step on"
    );
}

#[test]
fn a_difference_proves_nothing_where_no_vm_was_lost() {
    let (mut shares, mut now) = (Shares::default(), Moment::from_secs(100));
    shares.announce(now, 2);
    for _ in 0..100 {
        now = now.plus(TICK);
        // A request of VM 2 is always seen, and never there when VM 2 reports.
        assert_eq!(shares.report_one(now, 1, 0, 1), 0);
        assert_eq!(shares.report_one(now, 2, 0, 0), 0);
    }
    // VM 2 has nothing to do any more, and says so.
    shares.report(now, 2, false, &[(7, 0, 0)], |_, _| {
        panic!("nothing is proven")
    });
    for _ in 0..100 {
        now = now.plus(TICK);
        assert_eq!(shares.report_one(now, 1, 4, 6), 0, "load that came since");
    }
}

#[test]
fn a_vm_is_missed_that_was_lost_before_its_first_report() {
    let (mut shares, mut gauge, mut now) = (Shares::default(), 3i64, Moment::from_secs(100));
    shares.announce(now, 2);
    for _ in 0..25 {
        now = now.plus(TICK);
        gauge += shares.report_one(now, 1, 0, gauge as u64);
    }
    assert_eq!(gauge, 0);
}

proptest! {
    #[test]
    fn a_record_is_read_as_it_was_written(
        disturbed: u64,
        drifts in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<i64>()), 0..5),
        vms in proptest::collection::vec(
            (
                any::<u64>(),
                any::<u64>(),
                proptest::collection::vec((any::<u64>(), any::<u64>()), 0..5),
            ),
            0..5,
        ),
    ) {
        let drifts = drifts.into_iter().map(|(gauge, since, least)| Drift {
            gauge,
            since: Moment(since),
            least,
        });
        let vms = vms.into_iter().map(|(vm, reported, own)| Share {
            vm,
            reported: Moment(reported),
            own,
        });
        let shares = Shares {
            disturbed: Moment(disturbed),
            drifts: drifts.collect(),
            vms: vms.collect(),
        };
        let mut bytes = Vec::new();
        shares.encode(&mut bytes);
        prop_assert_eq!(Shares::decode(&bytes), shares);
    }

    #[test]
    fn any_bytes_and_numbers_are_taken_sanely(bytes: Vec<u8>, now: u64, own: u64, gauge: u64) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        let mut shares = Shares::decode(&bytes);
        shares.report_one(Moment(now), 1, own, gauge);
        prop_assert!(shares.vms.len() <= MOST);
    }
}

#[test]
fn each_gauge_is_judged_by_itself() {
    let (mut shares, mut gauges, mut now) =
        (Shares::default(), [9i64, 4, 0], Moment::from_secs(100));
    // VM 2 held two at the first gauge and one at the third, which VM 1 does not have.
    shares.report(now, 2, true, &[(1, 2, 9), (3, 1, 1)], |_, _| {
        panic!("nothing is proven")
    });
    for _ in 0..40 {
        now = now.plus(TICK);
        let reported: Vec<_> = [(1, 7), (2, 4), (4, 0)]
            .into_iter()
            .zip(gauges)
            .map(|((id, own), gauge)| (id, own, gauge as u64))
            .collect();
        shares.report(now, 1, true, &reported, |place, by| gauges[place] += by);
    }
    assert_eq!(gauges, [7, 4, 0]);
}

#[test]
fn a_gauge_below_zero_is_empty() {
    assert_eq!([0, 7, u64::MAX, u64::MAX - 3].map(in_flight), [0, 7, 0, 0]);
}
