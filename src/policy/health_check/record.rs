//! The state of an endpoint: a record in shared data, read by all workers.

use super::state::{CheckReason, EndpointHealth};
use crate::base::time::Moment;

const VERSION: u8 = 1;
const HEAD: usize = 25;

/// The state of an endpoint. The checker writes it when its status, its reason or a component's
/// status changes, not for each result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthRecord {
    /// Its status.
    pub status: EndpointHealth,
    /// The reason for it.
    pub reason: CheckReason,
    /// The answer's HTTP or gRPC status, or the index of the component ([`OTHER`]: the
    /// configuration does not name it).
    pub detail: u16,
    /// Since when, on the monotonic clock.
    pub since: Moment,
    /// The same as Unix time in seconds: for people.
    pub since_unix: u64,
    /// A hash of the names of the components, so that another configuration does not confuse them.
    pub names: u32,
    /// The status of each component, in the configuration's order.
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

    /// The record of these bytes, for components with the names whose hash is `names`. Bytes that
    /// cannot be read are the record of an unchecked endpoint.
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
            // The index was that of another configuration's component.
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
                since: Moment(u64::from_le_bytes(*since)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let record = HealthRecord {
            status: EndpointHealth::OutOfService,
            reason: CheckReason::Component,
            detail: 1,
            since: Moment(5),
            since_unix: 6,
            names: 7,
            components: vec![EndpointHealth::Up, EndpointHealth::Down],
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(HealthRecord::decode(&bytes, 7, 2), record);
        // Another configuration: the status of the endpoint stays, those of its components do not.
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
        #[test]
        fn any_bytes_are_a_record(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            count in 0usize..40,
        ) {
            let record = HealthRecord::decode(&bytes, 1, count);
            prop_assert_eq!(record.components.len(), count);
        }
    }
}
