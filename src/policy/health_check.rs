//! Active health checks of endpoints: one worker of the proxy checks, all use the results.
//!
//! | part | |
//! |---|---|
//! | [`schedule`] | when each endpoint is checked |
//! | [`report`], [`grpc`] | how answers are parsed |
//! | [`Sample`] | the result of one check |
//! | [`Streaks`] | the results in a row that flip an endpoint |
//! | [`HealthRecord`], [`EndpointRecord`] | the state of an endpoint, which all workers read |
//!
//! **The checker.** There is a lease for each upstream ([`super::lease`]): its holder checks, the
//! others read it again when it runs out. A newer configuration takes it over at once; the states
//! of endpoints stay.
//!
//! **The state of an endpoint.** At first it is unchecked, and used: a proxy that starts must not
//! refuse all requests until the first results are in. The first good result makes it healthy;
//! `unhealthy_threshold` bad ones in a row make it unhealthy, whatever it was, and
//! `healthy_threshold` good ones healthy again. While its last result contradicts its state, it is
//! checked more often (`interval_changing`). Only the holder of the lease counts streaks; a new
//! holder begins to count anew, from the recorded state. An endpoint that could not be checked for
//! three intervals is unchecked again.
//!
//! **What if?** The holder is lost with calls in flight: their answers are lost too, the next
//! holder checks again. The holder is held up and does not know that another has taken over: it
//! reads the lease before it checks, and uses answers only while its lease lasts; in between, for
//! the length of one tick, two may check. An answer never comes: the call counts as timed out a
//! second after its timeout. The cluster is not there (yet): no call is made, and the check is
//! tried again. A compare-and-swap that loses too often: the state is written with the next result.
//! A record that cannot be read: the endpoint is unchecked.

pub mod config;
mod endpoint_record;
mod fingerprint;
pub mod grpc;
mod record;
pub mod report;
pub mod schedule;
mod state;
mod streaks;

pub use endpoint_record::{EndpointRecord, Written};
pub use fingerprint::fingerprint;
pub use record::{HealthRecord, OTHER};
pub use state::{CheckReason, EndpointHealth, Sample};
pub use streaks::{HealthChange, Streaks, staleness};
