//! Requests that wait for their moment at a leaky bucket.
//!
//! A host has no timers but ticks, and ticks for a configuration, not for a request. So each VM has
//! one queue for all its configurations, ordered by moment; whoever ticks lets go what is due. That
//! way a request that began under an old configuration is let go on hosts that tick only the new
//! one, and ends under its old engine all the same, which its [`super::chain::Exchange`] holds.
//!
//! Ticks come as soon as the next request is due, rounded up to the host's whole milliseconds, and
//! every [`TICK`] otherwise. A request goes at its moment or up to about 1 ms later, never before.
//!
//! | what happens while a request waits | what becomes of it |
//! |---|---|
//! | its client leaves, or the proxy answers | its moment is given back, unless another is behind |
//! | a new configuration | it goes at its moment, under the old one |
//! | its VM is lost | the host ends it; its moment stays unused, and the others keep theirs |
//! | a later stage refuses it | it is answered from the tick |

use super::TICK;
use crate::base::time::{Moment, Nanos};

/// The most requests that wait in one VM. Each keeps a stream, its headers and its client's
/// connection in the proxy. With a `max_wait` of 1 s this many allow for a pace of 1,024 per second
/// and worker; what comes beyond is refused.
pub const CAPACITY: usize = 1024;

/// How long the message of a health check may take to come.
pub const MESSAGE_WAIT: Nanos = Nanos::from_secs(2);

/// The most messages that are waited for: those of health checks, and the bodies of failed answers.
/// They take no place from requests that wait at a limit.
pub const MOST_MESSAGES: usize = CAPACITY / 4;

/// The shortest tick: hosts count in whole milliseconds, and take 0 for "never".
const SHORTEST: Nanos = Nanos::from_millis(1);

/// A VM's queue.
#[derive(Debug)]
pub struct Waiting<T> {
    /// Latest first, so that the next one is taken from the end.
    queue: Vec<Waiter<T>>,
}

#[derive(Debug)]
struct Waiter<T> {
    until: Moment,
    stream: u32,
    request: T,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Waiting<T> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self { queue: Vec::new() }
    }

    /// Lets `request`, which the host knows by the number `stream`, wait `until` a moment. Of two
    /// with one moment the first to come goes first.
    ///
    /// # Errors
    /// There is no room; the request is given back.
    pub fn add(&mut self, until: Moment, stream: u32, request: T) -> Result<(), T> {
        if self.queue.len() >= CAPACITY {
            return Err(request);
        }
        let at = self.queue.partition_point(|waiter| waiter.until > until);
        self.queue.insert(
            at,
            Waiter {
                until,
                stream,
                request,
            },
        );
        Ok(())
    }

    /// Takes out the request that the host knows by this number, if it waits.
    pub fn remove(&mut self, stream: u32) -> Option<T> {
        let at = self
            .queue
            .iter()
            .position(|waiter| waiter.stream == stream)?;
        Some(self.queue.remove(at).request)
    }

    /// Takes out the next request whose moment has come, and its number.
    pub fn due(&mut self, now: Moment) -> Option<(u32, T)> {
        let waiter = self.queue.pop_if(|waiter| waiter.until <= now)?;
        Some((waiter.stream, waiter.request))
    }

    /// How soon the next tick is wanted, at the latest at this moment: whole milliseconds, from 1
    /// to [`TICK`].
    #[must_use]
    pub fn tick_period(&self, now: Moment, latest: Moment) -> Nanos {
        let next = self
            .queue
            .last()
            .map_or(latest, |next| next.until.min(latest));
        Nanos::from_millis(next.since(now).0.div_ceil(1_000_000)).clamp(SHORTEST, TICK)
    }

    /// How many wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether no request waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_go_in_the_order_of_their_moments_and_not_before() {
        let mut waiting = Waiting::new();
        for (until, stream) in [(30, 1), (10, 2), (20, 3), (10, 4)] {
            waiting
                .add(Moment::from_millis(until), stream, stream)
                .unwrap();
        }
        assert_eq!(waiting.due(Moment(9_999_999)), None);
        assert_eq!(waiting.remove(3), Some(3));
        assert_eq!(waiting.remove(3), None);
        let mut at = |ms| {
            waiting
                .due(Moment::from_millis(ms))
                .map(|(stream, _)| stream)
        };
        assert_eq!(
            [at(10), at(10), at(10), at(30), at(90)],
            [Some(2), Some(4), None, Some(1), None]
        );
    }

    #[test]
    fn their_number_is_bounded() {
        let mut waiting = Waiting::new();
        for stream in 0..CAPACITY as u32 {
            waiting.add(Moment(1), stream, stream).unwrap();
        }
        assert_eq!(waiting.add(Moment(0), 9_999, 9_999), Err(9_999));
        waiting.remove(5);
        assert_eq!(waiting.add(Moment(0), 9_999, 9_999), Ok(()));
        assert_eq!(waiting.len(), CAPACITY);
    }

    #[test]
    fn ticks_come_as_soon_as_somebody_is_due() {
        let mut waiting = Waiting::new();
        assert_eq!(waiting.tick_period(Moment::ZERO, Moment::MAX), TICK);
        waiting.add(Moment::from_secs(60), 1, ()).unwrap();
        assert_eq!(
            waiting.tick_period(Moment::ZERO, Moment::MAX),
            TICK,
            "what else a tick does is done as often as ever"
        );
        waiting.add(Moment(5_000_001), 2, ()).unwrap();
        assert_eq!(
            waiting.tick_period(Moment::ZERO, Moment::MAX),
            Nanos::from_millis(6),
            "not before it is due"
        );
        assert_eq!(
            waiting.tick_period(Moment::from_secs(1), Moment::MAX),
            SHORTEST,
            "never 0"
        );
        assert_eq!(
            waiting.tick_period(Moment::ZERO, Moment(2_000_001)),
            Nanos::from_millis(3),
            "for what else is due"
        );
    }
}
