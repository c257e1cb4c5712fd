//! Which endpoint gets the request: an ordered list of at most three, best first. A retry goes to
//! the next.
//!
//! [`roster`] decides which endpoints are in rotation, and with what weight: levels, zones, panic,
//! ejection. It is rebuilt when something changes, so that the cost of a request does not depend on
//! the number of endpoints. Among the endpoints in rotation a policy picks:
//!
//! | policy | picks | state |
//! |---|---|---|
//! | `round_robin` | nginx's smooth weighted order: [`rotation`] | the worker's |
//! | `least_request` | the fewest requests in flight for its weight | a gauge per endpoint |
//! | `peak_ewma` | the least latency times requests in flight: [`peak_ewma`] | two such gauges |
//! | `consistent_hash` | the owner of the request's key: [`maglev`] | a table per level |
//! | `random` | a draw by weight | none |
//! | `first` | the first of the list | none |
//!
//! An endpoint's weight is the configured one, times the ramp of [`slow_start`], times its free
//! capacity by [`orca`] reports.

pub mod choice;
pub mod config;
pub mod maglev;
pub mod orca;
pub mod peak_ewma;
pub mod roster;
pub mod rotation;
pub mod slow_start;

/// Endpoints compared for one request.
pub const SAMPLE: usize = 8;

/// Endpoints on the list.
pub const LIST: usize = 3;

/// Whether an endpoint may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Availability {
    /// It is healthy.
    #[default]
    Available,
    /// It failed before and may be tried again, by a call that holds a permit.
    Trial,
    /// It gets no requests.
    Out,
}

/// The endpoints picked, best first, by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointList {
    items: [Option<usize>; LIST],
}

impl EndpointList {
    /// The indices in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.items.iter().flatten().copied()
    }

    /// The best.
    #[must_use]
    pub fn first(&self) -> Option<usize> {
        self.iter().next()
    }

    /// Whether the list is full.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self.items, [_, _, Some(_)])
    }

    /// Adds an endpoint at the end, if there is room and it is not listed yet.
    pub fn push(&mut self, item: usize) {
        for place in &mut self.items {
            match place {
                None => return *place = Some(item),
                Some(known) if *known == item => return,
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
