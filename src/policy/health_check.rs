//! Active checks of endpoints: one worker asks, all heed.
//!
//! | part | |
//! |---|---|
//! | [`lease`] | who asks: one root context of all workers, for each upstream |
//! | [`schedule`] | when which endpoint is asked |
//! | [`report`], [`grpc`] | what an answer says |
//! | [`Sample`] | what one answer says |
//! | [`Streaks`] | the results in a row that flip an endpoint |
//! | [`HealthRecord`] | what an endpoint is: the record that all workers read |
//!
//! **Who asks.** Every VM ticks, the main thread's too, and after a reload the old configuration's
//! root contexts go on ticking beside the new ones. So for each upstream there is a lease: its
//! holder asks, the others look at it again when it runs out. It lasts [`lease::LEASE`] and is
//! renewed long before; a holder that dies, or is held up for longer, is replaced within that time.
//! A newer configuration takes it over at once; the states of endpoints stay. Contexts whose
//! upstream and check are the same share one lease, whatever else their configurations say.
//!
//! **What an endpoint is.** Nothing is known of it at first, and it is used: a proxy that starts
//! must not refuse everybody until the first answers are in. The first good answer makes it
//! healthy; `unhealthy_threshold` bad ones in a row make it unhealthy, whatever it was, and
//! `healthy_threshold` good ones healthy again. While its last answer does not fit what it is held
//! to be, it is asked more often (`interval_changing`). Rows are counted by the holder of the lease
//! alone; a new one begins to count anew, from the state that is recorded. An endpoint that nobody
//! could ask for three intervals is unknown again.
//!
//! **What if?** The holder is lost with calls under way: their answers are lost too, the next
//! holder asks again. It is held up and does not know that another has taken over: it looks before
//! it asks, and the answers that it gets are judged only while its lease lasts; between the two,
//! for the length of one tick, two may ask. The answer never comes: the call is given up a second
//! after its time. The cluster is not there (yet): nothing is asked, and tried again. A
//! compare-and-swap that is lost too often: the state is written with the next answer. A record
//! that cannot be read: nothing is known.

pub mod grpc;
pub mod lease;
mod record;
pub mod report;
pub mod schedule;
mod state;
mod streaks;

pub use record::{HealthRecord, OTHER};
pub use state::{CheckReason, EndpointHealth, Sample};
pub use streaks::{HealthChange, Streaks, staleness};
