//! The results in a row that flip an endpoint or a component, and the record that follows. Pure.

use super::record::HealthRecord;
use super::state::{EndpointHealth, Sample};
use crate::base::time::{Moment, Nanos};
use crate::policy::health_check::config::HealthCheck;

/// The good or bad results in a row of an endpoint and its components, as its checker counts them.
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
    /// When a report last had its status.
    seen: Moment,
}

/// What changes with a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChange {
    /// The record to write.
    pub record: Option<HealthRecord>,
    /// Whether the endpoint's state has flipped, not only its reason.
    pub is_new_state: bool,
    /// Whether the status of a component has changed.
    pub is_new_component: bool,
}

impl Streaks {
    /// Counts a result, once. [`Streaks::judge`] decides what follows from it.
    pub fn count(&mut self, sample: &Sample, check: &HealthCheck, now: Moment) {
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
        for (streak, status) in self.components.iter_mut().zip(&sample.components) {
            match status {
                None | Some(EndpointHealth::Unchecked | EndpointHealth::Inconclusive) => {
                    (streak.good, streak.bad) = (0, 0)
                }
                Some(EndpointHealth::Up) => {
                    *streak = ComponentStreak {
                        good: streak.good.saturating_add(1),
                        bad: 0,
                        seen: now,
                    };
                }
                Some(EndpointHealth::Down | EndpointHealth::OutOfService) => {
                    *streak = ComponentStreak {
                        good: 0,
                        bad: streak.bad.saturating_add(1),
                        seen: now,
                    };
                }
            }
        }
    }

    /// The change to `record` after these streaks, which end with `sample`.
    #[must_use]
    pub fn judge(
        &self,
        record: &HealthRecord,
        sample: &Sample,
        check: &HealthCheck,
        now: Moment,
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
        // It is out already, now for another reason.
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
            let Some(streak) = self.components.get(at) else {
                continue;
            };
            let reported = sample.components.get(at).copied().flatten();
            let status = match reported {
                Some(EndpointHealth::Up)
                    if *known == EndpointHealth::Unchecked
                        || streak.good >= check.healthy_threshold =>
                {
                    EndpointHealth::Up
                }
                Some(reported) if reported.is_down() && streak.bad >= check.unhealthy_threshold => {
                    reported
                }
                // It was not reported UP or DOWN for too long.
                _ if now.since(streak.seen) > staleness(component.period) => {
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

    /// Whether the last results of the endpoint, or of one of its components, contradict the
    /// record.
    #[must_use]
    pub fn are_unsettled(&self, record: &HealthRecord, check: &HealthCheck) -> bool {
        let component = |(streak, known): (&ComponentStreak, &EndpointHealth)| match known {
            EndpointHealth::Down | EndpointHealth::OutOfService => streak.good > 0,
            _ => streak.bad > 0 && streak.bad < check.unhealthy_threshold,
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

/// The age at which a report that comes at this interval is too old: three intervals, and a second
/// because clocks differ and times are written in whole seconds.
#[must_use]
pub const fn staleness(interval: Nanos) -> Nanos {
    interval.times(3).plus(Nanos::from_secs(1))
}

#[cfg(test)]
mod tests;
