//! Where the state of an endpoint is in shared data: read by all workers, written by the one that
//! checks.

use super::config::HealthCheck;
use super::record::HealthRecord;
use super::streaks::HealthChange;
use crate::base::hash::of_names;
use crate::host::SharedData;
use crate::store::{self, Contended, RecordKey, RecordKind, Step};

/// The record of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct EndpointRecord {
    key: RecordKey,
    names: u32,
    count: usize,
}

/// A record before and after a step.
#[derive(Clone, Debug)]
pub struct Written {
    /// What it was.
    pub old: HealthRecord,
    /// What it is.
    pub new: HealthRecord,
    /// What has changed.
    pub change: HealthChange,
}

impl EndpointRecord {
    /// The record of an endpoint of this upstream, with the components of `check`.
    #[must_use]
    pub fn new(upstream: &str, endpoint: &str, check: &HealthCheck) -> Self {
        let names: Vec<&str> = check
            .components
            .iter()
            .map(|component| component.name.as_str())
            .collect();
        #[allow(clippy::cast_possible_truncation, reason = "a hash")]
        let hash = of_names(&names) as u32;
        Self {
            key: RecordKey::new(RecordKind::Health, of_names(&[upstream, endpoint]), 0),
            names: hash,
            count: names.len(),
        }
    }

    /// What is known of the endpoint.
    pub fn read<H: SharedData>(&self, host: &H) -> HealthRecord {
        self.decode(&store::read(host, &self.key).unwrap_or_default())
    }

    /// Changes the record by `step`, and returns what it was and is.
    ///
    /// # Errors
    /// [`Contended`]: nothing was written.
    pub fn update<H: SharedData>(
        &self,
        host: &H,
        step: impl Fn(&HealthRecord) -> HealthChange,
    ) -> Result<Written, Contended> {
        store::update(host, &self.key, |bytes| {
            let old = self.decode(bytes);
            let change = step(&old);
            match &change.record {
                None => Step::Keep(Written {
                    new: old.clone(),
                    old,
                    change: HealthChange::default(),
                }),
                Some(new) => {
                    new.encode(bytes);
                    Step::Write(Written {
                        new: new.clone(),
                        old,
                        change,
                    })
                }
            }
        })
    }

    fn decode(&self, bytes: &[u8]) -> HealthRecord {
        HealthRecord::decode(bytes, self.names, self.count)
    }
}
