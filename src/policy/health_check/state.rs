//! What an endpoint is, from the answers to its checks: the record that all workers read, and the
//! rows of answers that its checker counts. Pure.

use crate::base::time::Nanos;
use crate::config::HealthCheck;

/// A state, of an endpoint or of a component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum EndpointHealth {
    /// Nobody has asked yet, or could ask lately. An endpoint is used.
    #[default]
    Unchecked = 0,
    /// Well.
    Up = 1,
    /// Not well.
    Down = 2,
    /// Alive, but not to be used.
    OutOfService = 3,
    /// It was asked, and what it says of itself is UNKNOWN or too old. An endpoint is not used.
    Inconclusive = 4,
}

impl EndpointHealth {
    const ALL: [Self; 5] = [
        Self::Unchecked,
        Self::Up,
        Self::Down,
        Self::OutOfService,
        Self::Inconclusive,
    ];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|status| *status as u8 == byte)
    }

    /// Whether an endpoint in this state gets requests.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Unchecked | Self::Up)
    }

    /// Whether it is known not to work.
    #[must_use]
    pub const fn is_down(self) -> bool {
        matches!(self, Self::Down | Self::OutOfService)
    }

    /// The word in health documents and logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Down => "DOWN",
            Self::OutOfService => "OUT_OF_SERVICE",
            Self::Unchecked | Self::Inconclusive => "UNKNOWN",
        }
    }
}

/// Why an endpoint is in its state. The numbers are those of the metric, and never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum CheckReason {
    /// Nobody has asked, or could ask lately.
    #[default]
    Unchecked = 0,
    /// Its answers are good.
    Passed = 1,
    /// It cannot be reached, or hangs up.
    Unreachable = 2,
    /// It does not answer in time.
    Timeout = 3,
    /// It answers with another status than expected.
    HttpStatus = 4,
    /// The gRPC call fails.
    GrpcStatus = 5,
    /// It answers, and says that it is not to be used.
    Report = 6,
    /// A critical component is not UP.
    Component = 7,
    /// What it says is too old.
    Stale = 8,
}

impl CheckReason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Unchecked,
        Self::Passed,
        Self::Unreachable,
        Self::Timeout,
        Self::HttpStatus,
        Self::GrpcStatus,
        Self::Report,
        Self::Component,
        Self::Stale,
    ];

    /// The word in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unchecked => "not_asked",
            Self::Passed => "ok",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::HttpStatus => "http_status",
            Self::GrpcStatus => "grpc_status",
            Self::Report => "report",
            Self::Component => "component",
            Self::Stale => "stale",
        }
    }

    /// In words, for people. `detail` as in [`HealthRecord::detail`].
    #[must_use]
    pub fn text(self, detail: u16, check: &HealthCheck) -> String {
        let number = || crate::base::text::number(detail.into());
        match self {
            Self::Unchecked => "not asked".to_owned(),
            Self::Passed => "answers well".to_owned(),
            Self::Unreachable => "cannot be reached".to_owned(),
            Self::Timeout => "no answer in time".to_owned(),
            Self::HttpStatus => ["answers with status ", &number()].concat(),
            Self::GrpcStatus => ["the call fails with gRPC status ", &number()].concat(),
            Self::Report => "says so".to_owned(),
            Self::Component => match check.components.get(usize::from(detail)) {
                Some(component) => ["its ", &component.name, " is not UP"].concat(),
                None => "a component is not UP that the configuration does not name".to_owned(),
            },
            Self::Stale => "what it says is too old".to_owned(),
        }
    }
}

const VERSION: u8 = 1;
const HEAD: usize = 25;

/// What all workers know of an endpoint. Written when its status, its reason or a component's
/// status changes, and not for each answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthRecord {
    /// What it is.
    pub status: EndpointHealth,
    /// Why.
    pub reason: CheckReason,
    /// The status of the answer, or the index of the component ([`OTHER`] = none of the
    /// configuration's).
    pub detail: u16,
    /// Since when, on the monotonic clock.
    pub since: Nanos,
    /// The same as Unix time in seconds: for people.
    pub since_unix: u64,
    /// Tells by what names the components are meant, so that another configuration does not take
    /// one for the other.
    pub names: u32,
    /// What its components are, in the configuration's order.
    pub components: Vec<EndpointHealth>,
}

/// A component that the configuration does not name, in [`HealthRecord::detail`].
pub const OTHER: u16 = u16::MAX;

impl HealthRecord {
    /// Its bytes.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.extend_from_slice(&[VERSION, self.status as u8, self.reason as u8]);
        bytes.extend_from_slice(&self.detail.to_le_bytes());
        bytes.extend_from_slice(&self.since.0.to_le_bytes());
        bytes.extend_from_slice(&self.since_unix.to_le_bytes());
        bytes.extend_from_slice(&self.names.to_le_bytes());
        bytes.extend(self.components.iter().map(|status| *status as u8));
    }

    /// The record of these bytes, with the components as `names` means them; what cannot be read
    /// says nothing.
    #[must_use]
    pub fn decode(bytes: &[u8], names: u32, count: usize) -> Self {
        let known = || {
            let (head, components) = bytes.split_first_chunk::<HEAD>()?;
            let ([version, status, reason], rest) = head.split_first_chunk::<3>()?;
            let (detail, rest) = rest.split_first_chunk()?;
            let (since, rest) = rest.split_first_chunk()?;
            let (since_unix, rest) = rest.split_first_chunk()?;
            let (known_names, _) = rest.split_first_chunk()?;
            if *version != VERSION {
                return None;
            }
            let reason = CheckReason::ALL
                .into_iter()
                .find(|known| *known as u8 == *reason)?;
            let status = EndpointHealth::of(*status)?;
            let same = u32::from_le_bytes(*known_names) == names && components.len() == count;
            let components = if same {
                components
                    .iter()
                    .map(|byte| EndpointHealth::of(*byte).unwrap_or_default())
                    .collect()
            } else {
                vec![EndpointHealth::Unchecked; count]
            };
            // A component's index means something else there.
            let detail = u16::from_le_bytes(*detail);
            let detail = if reason == CheckReason::Component && !same {
                OTHER
            } else {
                detail
            };
            Some(Self {
                status,
                reason,
                detail,
                since: Nanos(u64::from_le_bytes(*since)),
                since_unix: u64::from_le_bytes(*since_unix),
                names,
                components,
            })
        };
        known().unwrap_or_else(|| Self {
            names,
            components: vec![EndpointHealth::Unchecked; count],
            ..Self::default()
        })
    }
}

/// What one answer says, or its absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Of the endpoint.
    pub status: EndpointHealth,
    /// Why.
    pub reason: CheckReason,
    /// As [`HealthRecord::detail`].
    pub detail: u16,
    /// Of each component of the configuration, in its order; empty if the answer says nothing of
    /// them.
    pub components: Vec<Option<EndpointHealth>>,
}

impl Sample {
    /// An answer without a report.
    #[must_use]
    pub const fn new(status: EndpointHealth, reason: CheckReason, detail: u16) -> Self {
        Self {
            status,
            reason,
            detail,
            components: Vec::new(),
        }
    }

    /// A good answer.
    pub const GOOD: Self = Self::new(EndpointHealth::Up, CheckReason::Passed, 0);
}

/// What its checker remembers of an endpoint between two answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streaks {
    good: u32,
    bad: u32,
    components: Vec<ComponentStreak>,
}

/// The same of a component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ComponentStreak {
    good: u32,
    bad: u32,
    /// When something was last said of it.
    seen: Nanos,
}

/// What changes with an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChange {
    /// The record to write.
    pub record: Option<HealthRecord>,
    /// Whether what the endpoint is has changed, and not only why.
    pub is_new_state: bool,
    /// Whether the status of a component has changed.
    pub is_new_component: bool,
}

impl Streaks {
    /// Counts an answer in, once: what follows from it for a record is [`Streaks::judge`]'s.
    pub fn count(&mut self, sample: &Sample, check: &HealthCheck, now: Nanos) {
        if sample.status == EndpointHealth::Up {
            (self.good, self.bad) = (self.good.saturating_add(1), 0);
        } else {
            (self.good, self.bad) = (0, self.bad.saturating_add(1));
        }
        self.components.resize(
            check.components.len(),
            ComponentStreak {
                seen: now,
                ..ComponentStreak::default()
            },
        );
        for (rows, status) in self.components.iter_mut().zip(&sample.components) {
            match status {
                None | Some(EndpointHealth::Unchecked | EndpointHealth::Inconclusive) => {
                    (rows.good, rows.bad) = (0, 0)
                }
                Some(EndpointHealth::Up) => {
                    *rows = ComponentStreak {
                        good: rows.good.saturating_add(1),
                        bad: 0,
                        seen: now,
                    };
                }
                Some(EndpointHealth::Down | EndpointHealth::OutOfService) => {
                    *rows = ComponentStreak {
                        good: 0,
                        bad: rows.bad.saturating_add(1),
                        seen: now,
                    };
                }
            }
        }
    }

    /// What the rows, which end with this sample, make of a record.
    #[must_use]
    pub fn judge(
        &self,
        record: &HealthRecord,
        sample: &Sample,
        check: &HealthCheck,
        now: Nanos,
        unix: u64,
    ) -> HealthChange {
        let mut new = record.clone();
        let good = sample.status == EndpointHealth::Up;
        let flips = if good {
            record.status == EndpointHealth::Unchecked
                || (record.status != EndpointHealth::Up && self.good >= check.healthy_threshold)
        } else {
            record.status.is_usable() && self.bad >= check.unhealthy_threshold
        };
        // Out already, for another reason by now.
        let new_reason = !good
            && !record.status.is_usable()
            && (record.status, record.reason, record.detail)
                != (sample.status, sample.reason, sample.detail);
        if flips || new_reason {
            (new.status, new.reason, new.detail) = (sample.status, sample.reason, sample.detail);
        }
        if flips {
            (new.since, new.since_unix) = (now, unix);
        }
        let mut is_new_component = false;
        for (at, (known, component)) in new.components.iter_mut().zip(&check.components).enumerate()
        {
            let Some(rows) = self.components.get(at) else {
                continue;
            };
            let said = sample.components.get(at).copied().flatten();
            let status = match said {
                Some(EndpointHealth::Up)
                    if *known == EndpointHealth::Unchecked
                        || rows.good >= check.healthy_threshold =>
                {
                    EndpointHealth::Up
                }
                Some(said) if said.is_down() && rows.bad >= check.unhealthy_threshold => said,
                // Nothing, or nothing of use, was said for too long.
                _ if now.since(rows.seen) > staleness(component.period) => {
                    EndpointHealth::Unchecked
                }
                _ => *known,
            };
            is_new_component |= status != *known;
            *known = status;
        }
        let changed = flips || new_reason || is_new_component;
        HealthChange {
            record: changed.then_some(new),
            is_new_state: flips,
            is_new_component,
        }
    }

    /// Whether it is not clear yet what the endpoint, or one of its components, is: its last
    /// answers do not fit the record.
    #[must_use]
    pub fn are_unsettled(&self, record: &HealthRecord, check: &HealthCheck) -> bool {
        let component = |(rows, known): (&ComponentStreak, &EndpointHealth)| match known {
            EndpointHealth::Down | EndpointHealth::OutOfService => rows.good > 0,
            _ => rows.bad > 0 && rows.bad < check.unhealthy_threshold,
        };
        let own = match record.status {
            EndpointHealth::Unchecked => true,
            EndpointHealth::Up => self.bad > 0,
            _ => self.good > 0,
        };
        own || self
            .components
            .iter()
            .zip(&record.components)
            .any(component)
    }
}

/// After what time something that comes at this interval is too old: three times that, and a second
/// for clocks that differ, and for times that are written in whole seconds.
#[must_use]
pub const fn staleness(interval: Nanos) -> Nanos {
    interval.times(3).plus(Nanos::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(healthy: u32, unhealthy: u32, components: &str) -> HealthCheck {
        let config = format!(
            r#"{{"upstreams": {{"u": {{"health_check": {{"report": true, "interval": "1s", "healthy_threshold": {healthy},
                "unhealthy_threshold": {unhealthy}, "components": {components}}}}}}}}}"#
        );
        crate::config::parse(config.as_bytes()).unwrap().upstreams[0]
            .health_check
            .clone()
            .unwrap()
    }

    /// An endpoint and its checker.
    struct Endpoint {
        check: HealthCheck,
        rows: Streaks,
        record: HealthRecord,
        now: Nanos,
        writes: u32,
    }

    impl Endpoint {
        fn new(check: HealthCheck) -> Self {
            let record = HealthRecord::decode(&[], 7, check.components.len());
            Self {
                check,
                rows: Streaks::default(),
                record,
                now: Nanos::from_secs(10),
                writes: 0,
            }
        }

        fn tell(&mut self, sample: &Sample) -> EndpointHealth {
            self.now = self.now.plus(Nanos::from_secs(1));
            self.rows.count(sample, &self.check, self.now);
            let change = self.rows.judge(
                &self.record,
                sample,
                &self.check,
                self.now,
                self.now.as_secs(),
            );
            if let Some(record) = change.record {
                self.record = record;
                self.writes += 1;
            }
            self.record.status
        }

        fn unsettled(&self) -> bool {
            self.rows.are_unsettled(&self.record, &self.check)
        }
    }

    const BAD: Sample = Sample::new(EndpointHealth::Down, CheckReason::Timeout, 0);

    #[test]
    fn it_takes_rows_to_flip_and_one_good_answer_to_be_known() {
        let mut endpoint = Endpoint::new(check(2, 3, "{}"));
        assert!(endpoint.unsettled(), "asked often until something is known");
        assert_eq!(endpoint.tell(&Sample::GOOD), EndpointHealth::Up);
        assert!(!endpoint.unsettled());
        for sample in [&BAD, &BAD, &Sample::GOOD, &BAD, &BAD] {
            assert_eq!(endpoint.tell(sample), EndpointHealth::Up);
        }
        assert!(endpoint.unsettled());
        assert_eq!(endpoint.tell(&BAD), EndpointHealth::Down);
        assert_eq!(
            (endpoint.record.reason, endpoint.record.since),
            (CheckReason::Timeout, endpoint.now)
        );
        assert!(!endpoint.unsettled());
        assert_eq!(endpoint.tell(&Sample::GOOD), EndpointHealth::Down);
        assert!(endpoint.unsettled());
        assert_eq!(endpoint.tell(&BAD), EndpointHealth::Down);
        endpoint.tell(&Sample::GOOD);
        assert_eq!(endpoint.tell(&Sample::GOOD), EndpointHealth::Up);
        assert_eq!(
            endpoint.writes, 3,
            "written when it changes, not for each answer"
        );
    }

    #[test]
    fn nothing_known_is_usable_and_one_failure_does_not_change_that() {
        let mut endpoint = Endpoint::new(check(2, 3, "{}"));
        assert!(endpoint.record.status.is_usable());
        assert_eq!(endpoint.tell(&BAD), EndpointHealth::Unchecked);
        assert_eq!(endpoint.tell(&BAD), EndpointHealth::Unchecked);
        assert_eq!(endpoint.tell(&BAD), EndpointHealth::Down);
    }

    #[test]
    fn out_for_another_reason_is_out_since_the_first() {
        let mut endpoint = Endpoint::new(check(1, 1, "{}"));
        endpoint.tell(&BAD);
        let since = endpoint.record.since;
        endpoint.tell(&Sample::new(
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
    fn a_component_flips_by_rows_too_and_is_forgotten_when_nothing_is_said_of_it() {
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
        endpoint.tell(&up);
        assert_eq!(component(&endpoint), EndpointHealth::Up);
        endpoint.tell(&down);
        assert_eq!(component(&endpoint), EndpointHealth::Up);
        assert!(endpoint.unsettled());
        endpoint.tell(&down);
        assert_eq!(
            (component(&endpoint), endpoint.record.status),
            (EndpointHealth::Down, EndpointHealth::Up)
        );
        assert!(!endpoint.unsettled());
        endpoint.tell(&up);
        assert_eq!(component(&endpoint), EndpointHealth::Down);
        endpoint.tell(&up);
        assert_eq!(component(&endpoint), EndpointHealth::Up);
        // Three periods of 2 s, and 1 s: what was said last holds so long.
        for second in 1..=8 {
            endpoint.tell(&Sample::GOOD);
            assert_eq!(
                component(&endpoint) == EndpointHealth::Up,
                second <= 7,
                "{second}"
            );
        }
        assert_eq!(component(&endpoint), EndpointHealth::Unchecked);
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let record = HealthRecord {
            status: EndpointHealth::OutOfService,
            reason: CheckReason::Component,
            detail: 1,
            since: Nanos(5),
            since_unix: 6,
            names: 7,
            components: vec![EndpointHealth::Up, EndpointHealth::Down],
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(HealthRecord::decode(&bytes, 7, 2), record);
        // Another configuration: what is said of the endpoint holds, of its components nothing
        // does.
        let other = HealthRecord::decode(&bytes, 8, 3);
        assert_eq!(
            (other.status, other.detail, other.components),
            (
                EndpointHealth::OutOfService,
                OTHER,
                vec![EndpointHealth::Unchecked; 3]
            )
        );
        for end in 0..HEAD {
            assert_eq!(
                HealthRecord::decode(&bytes[..end], 7, 2).status,
                EndpointHealth::Unchecked
            );
        }
        for (at, byte) in [(0, 2), (1, 9), (2, 99)] {
            let mut broken = bytes.clone();
            broken[at] = byte;
            assert_eq!(
                HealthRecord::decode(&broken, 7, 2).status,
                EndpointHealth::Unchecked
            );
        }
    }

    proptest! {
        /// Against the words of the contract: out after so many bad answers in a row, in again
        /// after so many good ones.
        #[test]
        fn it_is_what_the_rows_say(answers in proptest::collection::vec(any::<bool>(), 0..60), up in 1u32..5, down in 1u32..5) {
            let mut endpoint = Endpoint::new(check(up, down, "{}"));
            let mut out = false;
            for (at, good) in answers.iter().enumerate() {
                let sample = if *good { Sample::GOOD } else { BAD };
                let status = endpoint.tell(&sample);
                let row = answers[..=at].iter().rev().take_while(|it| *it == good).count() as u32;
                out = match (out, good) {
                    (false, false) => row >= down,
                    (true, true) => row < up,
                    (known, _) => known,
                };
                prop_assert_eq!(status.is_usable(), !out);
            }
        }

        #[test]
        fn any_bytes_are_a_record(bytes in proptest::collection::vec(any::<u8>(), 0..80), count in 0usize..40) {
            let record = HealthRecord::decode(&bytes, 1, count);
            prop_assert_eq!(record.components.len(), count);
        }
    }
}
