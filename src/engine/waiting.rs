//! Requests that wait for their moment at a leaky bucket, and messages that are waited for: those of
//! health checks, and the bodies of failed answers.
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
//! | its place goes to another client | it is refused from the next tick |
//!
//! **Whose places they are.** Each [`Line`] has a number of its own, so that many of one kind keep
//! none of another from waiting. While there is room, a line's places are anybody's. When all are
//! taken, a client with fewer of them than another gets one of that one's: of the client with most,
//! the request that would wait longest loses its place. So a client keeps others from waiting only
//! as far as it has no more places than they ask for, and what others leave it may fill. Who a
//! client is: see `chain::client`.

use super::TICK;
use crate::base::key_map::KeyMap;
use crate::base::time::{Moment, Nanos};

/// The most requests that wait in one VM. Each keeps a stream, its headers and its client's
/// connection in the proxy. With a `max_wait` of 1 s this many allow for a pace of 1,024 per second
/// and worker; what comes beyond is refused.
pub const CAPACITY: usize = 1024;

/// How long the message of a health check may take to come.
pub const MESSAGE_WAIT: Nanos = Nanos::from_secs(2);

/// The most messages of health checks, and again the most bodies of failed answers, that are waited
/// for in one VM.
pub const MOST_MESSAGES: usize = CAPACITY / 4;

/// What is waited for. Each has its own places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A request's moment, at a limit.
    Limit,
    /// The message of a health check, which its client need not send.
    Check,
    /// The body of a failed answer.
    Answer,
}

impl Line {
    const ALL: [Self; 3] = [Self::Limit, Self::Check, Self::Answer];

    /// How many places it has.
    #[must_use]
    pub const fn capacity(self) -> usize {
        match self {
            Self::Limit => CAPACITY,
            Self::Check | Self::Answer => MOST_MESSAGES,
        }
    }
}

/// The shortest tick: hosts count in whole milliseconds, and take 0 for "never".
const SHORTEST: Nanos = Nanos::from_millis(1);

/// A VM's queue.
#[derive(Debug)]
pub struct Waiting<T> {
    limit: Places<T>,
    check: Places<T>,
    answer: Places<T>,
    /// Who has lost a place to another client, and is not refused yet. A tick comes at once, so
    /// that they are few, and never more than there are places at limits.
    displaced: Vec<Waiter<T>>,
}

/// A line's places.
#[derive(Debug)]
struct Places<T> {
    /// Latest first, so that the next one is taken from the end.
    queue: Vec<Waiter<T>>,
    /// How many of them are each client's.
    of_clients: KeyMap,
}

#[derive(Debug)]
struct Waiter<T> {
    until: Moment,
    stream: u32,
    client: u32,
    request: T,
}

/// What becomes of a request that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Its moment has come.
    Goes,
    /// Another client has its place.
    Displaced,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Places<T> {
    const fn new() -> Self {
        Self {
            queue: Vec::new(),
            of_clients: KeyMap::new(),
        }
    }

    /// Takes out the one that waits longest of the client with most places, if that still has as
    /// many as `client` then.
    fn displace(&mut self, client: u32) -> Option<Waiter<T>> {
        let (greedy, most) = self.of_clients.largest()?;
        if self.of_clients.get(client).saturating_add(1) >= most {
            return None;
        }
        let latest = self.queue.iter().position(|it| it.client == greedy)?;
        Some(self.take(latest))
    }

    fn take(&mut self, at: usize) -> Waiter<T> {
        let waiter = self.queue.remove(at);
        self.of_clients.subtract(waiter.client, 1);
        waiter
    }

    fn next(&self) -> Option<Moment> {
        self.queue.last().map(|waiter| waiter.until)
    }
}

impl<T> Waiting<T> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            limit: Places::new(),
            check: Places::new(),
            answer: Places::new(),
            displaced: Vec::new(),
        }
    }

    const fn places(&self, line: Line) -> &Places<T> {
        match line {
            Line::Limit => &self.limit,
            Line::Check => &self.check,
            Line::Answer => &self.answer,
        }
    }

    const fn places_mut(&mut self, line: Line) -> &mut Places<T> {
        match line {
            Line::Limit => &mut self.limit,
            Line::Check => &mut self.check,
            Line::Answer => &mut self.answer,
        }
    }

    /// Lets `request` of this `client`, which the host knows by the number `stream`, wait in a line
    /// `until` a moment. Of two with one moment the first to come goes first.
    ///
    /// # Errors
    /// There is no room, and no client has more places than this one would have; the request is
    /// given back.
    pub fn add(
        &mut self,
        line: Line,
        until: Moment,
        stream: u32,
        client: u32,
        request: T,
    ) -> Result<(), T> {
        let displaced = self.displaced.len();
        let places = self.places_mut(line);
        let displaced = if places.queue.len() < line.capacity() {
            None
        } else if displaced < CAPACITY
            && let Some(displaced) = places.displace(client)
        {
            Some(displaced)
        } else {
            return Err(request);
        };
        let at = places.queue.partition_point(|waiter| waiter.until > until);
        places.of_clients.add(client, 1);
        places.queue.insert(
            at,
            Waiter {
                until,
                stream,
                client,
                request,
            },
        );
        self.displaced.extend(displaced);
        Ok(())
    }

    /// Takes out the request that the host knows by this number, if it waits.
    pub fn remove(&mut self, stream: u32) -> Option<T> {
        let is_it = |waiter: &Waiter<T>| waiter.stream == stream;
        if let Some(at) = self.displaced.iter().position(is_it) {
            return Some(self.displaced.swap_remove(at).request);
        }
        Line::ALL.into_iter().find_map(|line| {
            let places = self.places_mut(line);
            let at = places.queue.iter().position(is_it)?;
            Some(places.take(at).request)
        })
    }

    /// Takes out the next request whose moment has come, or that has lost its place: its number,
    /// itself, and what becomes of it.
    pub fn due(&mut self, now: Moment) -> Option<(u32, T, Turn)> {
        if let Some(waiter) = self.displaced.pop() {
            return Some((waiter.stream, waiter.request, Turn::Displaced));
        }
        let (until, line) = self.next()?;
        if until > now {
            return None;
        }
        let places = self.places_mut(line);
        let waiter = places.take(places.queue.len().checked_sub(1)?);
        Some((waiter.stream, waiter.request, Turn::Goes))
    }

    /// The moment that comes first, and its line.
    fn next(&self) -> Option<(Moment, Line)> {
        let next = |line| Some((self.places(line).next()?, line));
        Line::ALL
            .into_iter()
            .filter_map(next)
            .min_by_key(|(until, _)| *until)
    }

    /// How soon the next tick is wanted, at the latest at this moment: whole milliseconds, from 1
    /// to [`TICK`].
    #[must_use]
    pub fn tick_period(&self, now: Moment, latest: Moment) -> Nanos {
        if self.has_displaced() {
            return SHORTEST;
        }
        let next = self.next().map_or(latest, |(until, _)| until.min(latest));
        Nanos::from_millis(next.since(now).0.div_ceil(1_000_000)).clamp(SHORTEST, TICK)
    }

    /// Whether any has lost its place and is not refused yet.
    #[must_use]
    pub const fn has_displaced(&self) -> bool {
        !self.displaced.is_empty()
    }

    /// How many wait in a line.
    #[must_use]
    pub const fn len(&self, line: Line) -> usize {
        self.places(line).queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn they_go_in_the_order_of_their_moments_and_not_before() {
        let mut waiting = Waiting::new();
        for (until, stream) in [(30, 1), (10, 2), (20, 3), (10, 4)] {
            waiting
                .add(Line::Limit, Moment::from_millis(until), stream, 0, stream)
                .unwrap();
        }
        assert_eq!(waiting.due(Moment(9_999_999)), None);
        assert_eq!(waiting.remove(3), Some(3));
        assert_eq!(waiting.remove(3), None);
        let mut at = |ms| {
            waiting
                .due(Moment::from_millis(ms))
                .map(|(stream, ..)| stream)
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
            waiting
                .add(Line::Limit, Moment(1), stream, 0, stream)
                .unwrap();
        }
        assert_eq!(
            waiting.add(Line::Limit, Moment(0), 9_999, 0, 9_999),
            Err(9_999)
        );
        waiting.remove(5);
        assert_eq!(waiting.add(Line::Limit, Moment(0), 9_999, 0, 9_999), Ok(()));
        assert_eq!(waiting.len(Line::Limit), CAPACITY);
    }

    /// Whoever fills one line, at random: each other has all its places, and all go in the order of
    /// their moments.
    #[test]
    fn no_line_takes_places_of_another() {
        for seed in 0..20 {
            let rng = Rng::new(seed);
            let mut waiting = Waiting::new();
            for stream in 0..20_000u32 {
                let line = Line::ALL[usize::try_from(rng.below(3)).unwrap()];
                let has_room = waiting.len(line) < line.capacity();
                let until = Moment(1 + rng.below(1_000_000));
                // All of one client, which displaces nobody.
                let added = waiting.add(line, until, stream, 7, until);
                assert_eq!(added.is_ok(), has_room, "seed {seed}: {line:?}");
                if rng.below(64) == 0 {
                    waiting.remove(stream);
                }
            }
            let mut last = Moment::ZERO;
            for line in Line::ALL {
                assert!(waiting.len(line) + 1 >= line.capacity(), "seed {seed}");
            }
            while let Some((_, until, turn)) = waiting.due(Moment::MAX) {
                assert!(until >= last && turn == Turn::Goes, "seed {seed}");
                last = until;
            }
            assert!(Line::ALL.iter().all(|line| waiting.len(*line) == 0));
        }
    }

    #[test]
    fn who_has_most_places_gives_way_and_is_told_so() {
        let mut waiting = Waiting::new();
        for stream in 0..CAPACITY as u32 {
            let until = Moment::from_millis(stream.into());
            waiting.add(Line::Limit, until, stream, 1, stream).unwrap();
        }
        assert_eq!(waiting.tick_period(Moment::ZERO, Moment::MAX), SHORTEST);
        assert_eq!(
            waiting.add(Line::Limit, Moment(5), 5_000, 1, 0),
            Err(0),
            "the same"
        );
        assert_eq!(waiting.add(Line::Limit, Moment(5), 5_000, 2, 0), Ok(()));
        assert_eq!(waiting.len(Line::Limit), CAPACITY);
        assert_eq!(waiting.tick_period(Moment::ZERO, Moment::MAX), SHORTEST);
        let latest = CAPACITY as u32 - 1;
        let turned = waiting.due(Moment::ZERO);
        assert_eq!(turned, Some((latest, latest, Turn::Displaced)));
        assert_eq!(waiting.remove(latest), None);
        // The one that has just lost its place may go away before it is told.
        waiting.add(Line::Limit, Moment(6), 5_001, 3, 0).unwrap();
        assert_eq!(waiting.remove(latest - 1), Some(latest - 1));
        assert_eq!(waiting.due(Moment::ZERO), Some((0, 0, Turn::Goes)));
    }

    /// Clients that ask at random, one or two of them for all there is: each has, whatever the
    /// others do, what it asks for up to an equal share of the places.
    #[test]
    fn nobody_is_kept_from_an_equal_share() {
        for seed in 0..40 {
            let rng = Rng::new(seed);
            let clients = 2 + rng.below(6);
            let share = CAPACITY as u64 / clients;
            let (mut waiting, mut refused) = (Waiting::new(), 0u64);
            let mut has = [0u64; 8];
            for stream in 0..8_000u32 {
                let greedy = rng.below(4) > 0;
                let client = if greedy { 0 } else { rng.below(clients) };
                let at = usize::try_from(client).unwrap();
                let until = Moment(1 + rng.below(1_000_000));
                let asks = u32::try_from(client).unwrap();
                match waiting.add(Line::Limit, until, stream, asks, client) {
                    Ok(()) => has[at] += 1,
                    Err(_) if has[at] + 1 >= share => refused += 1,
                    Err(_) => panic!("seed {seed}: client {client} has {} of {share}", has[at]),
                }
                while waiting.has_displaced() {
                    let (_, client, _) = waiting.due(Moment::ZERO).unwrap();
                    has[usize::try_from(client).unwrap()] -= 1;
                    refused += 1;
                }
                if rng.below(8) == 0 {
                    let now = Moment(rng.below(300_000));
                    while let Some((_, client, turn)) = waiting.due(now) {
                        assert_eq!(turn, Turn::Goes);
                        has[usize::try_from(client).unwrap()] -= 1;
                    }
                }
                assert!(waiting.len(Line::Limit) <= CAPACITY);
                assert_eq!(has.iter().sum::<u64>(), waiting.len(Line::Limit) as u64);
            }
            assert!(refused > 0, "seed {seed}: the places were all taken");
        }
    }

    #[test]
    fn ticks_come_as_soon_as_somebody_is_due() {
        let mut waiting = Waiting::new();
        assert_eq!(waiting.tick_period(Moment::ZERO, Moment::MAX), TICK);
        waiting
            .add(Line::Limit, Moment::from_secs(60), 1, 0, ())
            .unwrap();
        assert_eq!(
            waiting.tick_period(Moment::ZERO, Moment::MAX),
            TICK,
            "what else a tick does is done as often as ever"
        );
        waiting
            .add(Line::Limit, Moment(5_000_001), 2, 0, ())
            .unwrap();
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
