//! The results in a row that flip an endpoint or a component, and the record that follows from them.
//! Pure.

use super::record::HealthRecord;
use super::state::{EndpointHealth, Sample};
use crate::base::time::Nanos;
use crate::config::HealthCheck;

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
mod tests;
