use super::*;
use crate::policy::health_check::CheckReason;
use proptest::prelude::*;

fn check(healthy: u32, unhealthy: u32, components: &str) -> HealthCheck {
    let config = format!(
        r#"{{"upstreams": {{"u": {{"health_check": {{
                "report": true, "interval": "1s", "healthy_threshold": {healthy},
            "unhealthy_threshold": {unhealthy}, "components": {components}}}}}}}}}"#
    );
    crate::document::parse(config.as_bytes()).unwrap().upstreams[0]
        .health_check
        .clone()
        .unwrap()
}

/// An endpoint and its checker.
struct Endpoint {
    check: HealthCheck,
    streaks: Streaks,
    record: HealthRecord,
    now: Moment,
    writes: u32,
}

impl Endpoint {
    fn new(check: HealthCheck) -> Self {
        let record = HealthRecord::decode(&[], 7, check.components.len());
        Self {
            check,
            streaks: Streaks::default(),
            record,
            now: Moment::from_secs(10),
            writes: 0,
        }
    }

    fn apply(&mut self, sample: &Sample) -> EndpointHealth {
        self.now = self.now.plus(Nanos::from_secs(1));
        self.streaks.count(sample, &self.check, self.now);
        let change = self.streaks.judge(
            &self.record,
            sample,
            &self.check,
            self.now,
            self.now.as_millis() / 1_000,
        );
        if let Some(record) = change.record {
            self.record = record;
            self.writes += 1;
        }
        self.record.status
    }

    fn unsettled(&self) -> bool {
        self.streaks.are_unsettled(&self.record, &self.check)
    }
}

const BAD: Sample = Sample::new(EndpointHealth::Down, CheckReason::Timeout, 0);

#[test]
fn it_takes_rows_to_flip_and_one_good_answer_to_be_known() {
    let mut endpoint = Endpoint::new(check(2, 3, "{}"));
    assert!(
        endpoint.unsettled(),
        "checked often until there is a result"
    );
    assert_eq!(endpoint.apply(&Sample::GOOD), EndpointHealth::Up);
    assert!(!endpoint.unsettled());
    for sample in [&BAD, &BAD, &Sample::GOOD, &BAD, &BAD] {
        assert_eq!(endpoint.apply(sample), EndpointHealth::Up);
    }
    assert!(endpoint.unsettled());
    assert_eq!(endpoint.apply(&BAD), EndpointHealth::Down);
    assert_eq!(
        (endpoint.record.reason, endpoint.record.since),
        (CheckReason::Timeout, endpoint.now)
    );
    assert!(!endpoint.unsettled());
    assert_eq!(endpoint.apply(&Sample::GOOD), EndpointHealth::Down);
    assert!(endpoint.unsettled());
    assert_eq!(endpoint.apply(&BAD), EndpointHealth::Down);
    endpoint.apply(&Sample::GOOD);
    assert_eq!(endpoint.apply(&Sample::GOOD), EndpointHealth::Up);
    assert_eq!(
        endpoint.writes, 3,
        "written when it changes, not for each answer"
    );
}

#[test]
fn nothing_known_is_usable_and_one_failure_does_not_change_that() {
    let mut endpoint = Endpoint::new(check(2, 3, "{}"));
    assert!(endpoint.record.status.is_usable());
    assert_eq!(endpoint.apply(&BAD), EndpointHealth::Unchecked);
    assert_eq!(endpoint.apply(&BAD), EndpointHealth::Unchecked);
    assert_eq!(endpoint.apply(&BAD), EndpointHealth::Down);
}

#[test]
fn out_for_another_reason_is_out_since_the_first() {
    let mut endpoint = Endpoint::new(check(1, 1, "{}"));
    endpoint.apply(&BAD);
    let since = endpoint.record.since;
    endpoint.apply(&Sample::new(
        EndpointHealth::OutOfService,
        CheckReason::HttpStatus,
        503,
    ));
    assert_eq!(
        (endpoint.record.status, endpoint.record.detail),
        (EndpointHealth::OutOfService, 503)
    );
    assert_eq!(endpoint.record.since, since);
}

fn reported(status: EndpointHealth, component: Option<EndpointHealth>) -> Sample {
    Sample {
        components: vec![component],
        ..Sample::new(status, CheckReason::Report, 0)
    }
}

#[test]
fn a_component_flips_by_rows_too_and_is_forgotten_when_no_report_has_it() {
    let mut endpoint = Endpoint::new(check(
        2,
        2,
        r#"{"redis": {"critical": false, "period": "2s"}}"#,
    ));
    let (up, down) = (
        reported(EndpointHealth::Up, Some(EndpointHealth::Up)),
        reported(EndpointHealth::Up, Some(EndpointHealth::Down)),
    );
    let component = |endpoint: &Endpoint| endpoint.record.components[0];
    endpoint.apply(&up);
    assert_eq!(component(&endpoint), EndpointHealth::Up);
    endpoint.apply(&down);
    assert_eq!(component(&endpoint), EndpointHealth::Up);
    assert!(endpoint.unsettled());
    endpoint.apply(&down);
    assert_eq!(
        (component(&endpoint), endpoint.record.status),
        (EndpointHealth::Down, EndpointHealth::Up)
    );
    assert!(!endpoint.unsettled());
    endpoint.apply(&up);
    assert_eq!(component(&endpoint), EndpointHealth::Down);
    endpoint.apply(&up);
    assert_eq!(component(&endpoint), EndpointHealth::Up);
    // Three periods of 2 s, and 1 s: what was said last holds so long.
    for second in 1..=8 {
        endpoint.apply(&Sample::GOOD);
        assert_eq!(
            component(&endpoint) == EndpointHealth::Up,
            second <= 7,
            "{second}"
        );
    }
    assert_eq!(component(&endpoint), EndpointHealth::Unchecked);
}

proptest! {
    /// Against the documented rule: out after that many bad results in a row, in again after that
    /// many good ones.
    #[test]
    fn it_is_what_the_rows_say(
        answers in proptest::collection::vec(any::<bool>(), 0..60),
        up in 1u32..5,
        down in 1u32..5,
    ) {
        let mut endpoint = Endpoint::new(check(up, down, "{}"));
        let mut out = false;
        for (at, good) in answers.iter().enumerate() {
            let sample = if *good { Sample::GOOD } else { BAD };
            let status = endpoint.apply(&sample);
            let row = answers[..=at]
                .iter()
                .rev()
                .take_while(|it| *it == good)
                .count() as u32;
            out = match (out, good) {
                (false, false) => row >= down,
                (true, true) => row < up,
                (known, _) => known,
            };
            prop_assert_eq!(status.is_usable(), !out);
        }
    }
}
