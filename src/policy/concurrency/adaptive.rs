//! A limit that finds itself: haven admits as many requests as will be answered before the
//! deadline.
//!
//! **The law.** Where requests queue at the upstream, one that comes to N others is answered after
//! N / capacity (Little, "A proof for the queuing formula L = λW", 1961). So each worker notes of
//! each request how many were in flight when it came, and how long it took: N · target / time is
//! the number in flight at which it would have been answered just in time. The limit is that, over
//! the sums of many requests. Both numbers are of the same request, so that a ramp does not
//! deceive: the number in flight *now*, over the time of the requests that end now, would be far
//! too high while a queue grows.
//!
//! **Two states.** Below capacity N · target / time shows only the present load, not the capacity.
//! So there are two states:
//!
//! | | calm | pressed |
//! |---|---|---|
//! | when | otherwise | any of the three signs below |
//! | it rises to | twice the present load; to that load, while half of the limit is in flight | what is answered within 75 % of the deadline; a little more at a time while answers take less than that |
//! | it falls | slowly, not below `initial_limit` | to the same, see below |
//!
//! A limit is pressed if half of it is in flight for ¼ of the deadline, if a request was refused in
//! the last two deadlines, or if answers take 85 % of the deadline. A pressed limit falls at once
//! if answers take 85 % of the deadline, and by quarters of the way if they take 75 to 85 %. A calm
//! one falls by 1/60 of the way per second and worker.
//!
//! In both states it falls at once, though not below `initial_limit`, if more requests are in
//! flight than are answered within the deadline: so a sudden load meets a limit before the first
//! late answer. It at most doubles in an eighth of the deadline (at most 500 ms): of the answers to
//! a burst the fast ones come first, and promise too much.
//!
//! A limit never falls because answers are slow, only because they come too late: it stays where it
//! is when an upstream turns slower and still answers in time. Nor does it fall for errors, which
//! are a breaker's matter: only answers count, and calls that end in any way after 75 % of the
//! deadline.
//!
//! | | |
//! |---|---|
//! | first start | `initial_limit` until eight answers have come; then it doubles step by step |
//! | idle | it stays; old observations are forgotten |
//! | an upstream that hangs | falls to `min_limit`; good answers then outweigh the older ones |
//! | a clock that steps back | observations are forgotten, the limit stays |
//! | few requests | it moves rarely: a worker needs at least eight calls for a step, but two for the double, see `early` |
//!
//! **Sources.** From Breakwater (OSDI 2020) and DAGOR (SoCC 2018): admission follows the time spent
//! queueing, and priorities compare with a threshold on it. From CoDel (2012): a standing queue is
//! bad, a short one is not. From BBR (2016): each request is paired with the number in flight when
//! it began. Not used: Vegas and Gradient2 (Netflix concurrency-limits), nor Envoy's
//! adaptive_concurrency, which aim at the latency of the idle upstream, so that one that turns five
//! times slower is cut to a fifth of its load though it would serve it in time. Nor a success rate
//! (Envoy's admission_control): it refuses requests that would be answered in time.
//!
//! **Workers.** The limit is one gauge for all workers; each worker moves it by its own
//! observations. They all sample the same upstream, so that they agree apart from noise, and none
//! waits for another: there is no leader and no record. A worker with too few observations moves
//! nothing.
//!
//! Not for upstreams that take more than 85 % of the deadline when idle: they look overloaded at
//! any load, and get `min_limit`.

mod spell;
mod totals;

use super::Answer;
use crate::base::time::{Moment, Nanos};
use spell::Spell;
use totals::CallTotals;

/// Bounds and aim of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptiveSettings {
    /// The least that is found, at least 1.
    pub min: u64,
    /// The most.
    pub max: u64,
    /// Where it begins.
    pub initial: u64,
    /// Answers after this are of no use: above zero.
    pub deadline: Nanos,
    /// The share of the limit, in percent, that the most critical of its requests may fill.
    pub share: u64,
}

/// The deadline of a route without one: Envoy's own default.
pub const DEFAULT_DEADLINE: Nanos = Nanos::from_secs(15);

/// How often a probe's step doubles: from a sixteenth to a half.
const MOST_GAIN: u32 = 3;

/// Fewer calls than this prove nothing.
const SAMPLES: u64 = 8;

/// Fewer than this prove nothing either, where only a rise is looked for.
const FEW: u64 = 2;

/// In how many steps the quickest mean would forget what it was.
const SETTLE: u64 = 32;

/// The time in which a calm limit would fall to the usual load at its initial speed. Each of
/// several workers contributes its part.
const FALL: Nanos = Nanos::from_secs(60);

impl AdaptiveSettings {
    /// The limit in force, by its gauge: 0 is a gauge that no worker has set yet.
    #[must_use]
    pub fn limit(&self, gauge: u64) -> u64 {
        if gauge == 0 {
            self.initial
        } else {
            gauge.max(self.min).min(self.max)
        }
    }

    /// The time between two steps: short enough for several steps within a deadline.
    fn period(&self) -> Nanos {
        Nanos(self.deadline.0 / 16).clamp(Nanos::from_millis(5), Nanos::from_millis(100))
    }

    /// How long half of the limit must be in flight for it to be pressed.
    fn pressed_after(&self) -> Nanos {
        Nanos(self.deadline.0 / 4).clamp(Nanos::from_millis(20), Nanos::from_secs(1))
    }

    /// The time in which admitted requests should be answered: the rest of the deadline is for the
    /// way.
    const fn target(&self) -> u64 {
        (self.deadline.0 / 4).saturating_mul(3)
    }

    /// Answers that take longer are close to the target: nine tenths of it.
    const fn near_target(&self) -> u64 {
        (self.target() / 10).saturating_mul(9)
    }

    /// Answers that take as long are about to be late.
    const fn late(&self) -> u64 {
        (self.deadline.0 / 20).saturating_mul(17)
    }

    /// The limit of which its most critical requests fill so many: only a part of it is theirs, so
    /// that a limit of what is answered in time would leave the rest of the time unused. (Bug
    /// avoided: where all routes are `sheddable`, a limit of 20 has 14 in flight, from which it
    /// finds about 20 again.)
    fn filled_by(&self, in_flight: u64) -> u64 {
        in_flight
            .saturating_mul(100)
            .checked_div(self.share)
            .unwrap_or(in_flight)
    }

    /// Whether a call of this length counts though it failed.
    #[must_use]
    pub const fn is_late(&self, elapsed: Nanos) -> bool {
        elapsed.0 >= self.target()
    }
}

/// A worker's recent observations of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observations {
    /// When the last step was.
    since: Moment,
    /// When less than half of the limit was in flight.
    calm_at: Moment,
    /// When the limit last fell while calm, or had no need to.
    fell_at: Moment,
    /// Requests are refused, for whatever reason.
    refusing: Spell,
    /// They are refused because the limit is full.
    full: Spell,
    /// Calls since then.
    new: CallTotals,
    /// The least that was in flight since then.
    least: u64,
    /// A limit that was in force, and when: it at most doubles from there.
    base: u64,
    base_at: Moment,
    /// When the limit last rose, when it rose by a fifth or by a probe, and what it was at the last
    /// step of this worker.
    risen_at: Moment,
    probed_at: Moment,
    probed: u64,
    /// How long answers took at the last probe, and how often the step has doubled since they last
    /// took longer.
    probed_mean: u64,
    gain: u32,
    /// The least that answers have taken on average; it rises slowly.
    quickest: u64,
    /// Calls since the limit last rose by much.
    few: CallTotals,
    all: CallTotals,
    /// Those that came when half of the limit was in flight.
    pressed: CallTotals,
}

impl Observations {
    /// A request came; with it `in_flight` are in flight.
    pub fn arrived(
        &mut self,
        settings: &AdaptiveSettings,
        now: Moment,
        in_flight: u64,
        limit: u64,
        answer: Answer,
    ) {
        self.keep_up(settings, now);
        self.note(now, in_flight, limit);
        if answer != Answer::Room {
            self.refusing.goes_on(settings.deadline, now);
        }
        if answer == Answer::Full {
            self.full.goes_on(settings.deadline, now);
        }
    }

    /// Another worker refuses requests.
    pub fn refused_elsewhere(&mut self, settings: &AdaptiveSettings, now: Moment) {
        self.refusing.goes_on(settings.deadline, now);
    }

    /// A call ended that came when `admitted_at` were in flight; `in_flight` are now. It was
    /// answered, or is late.
    pub fn ended(
        &mut self,
        settings: &AdaptiveSettings,
        now: Moment,
        admitted_at: u64,
        elapsed: Nanos,
        in_flight: u64,
        limit: u64,
    ) {
        self.keep_up(settings, now);
        self.note(now, in_flight, limit);
        self.new.add(admitted_at, elapsed);
        self.few.add(admitted_at, elapsed);
        self.all.add(admitted_at, elapsed);
        if admitted_at.saturating_mul(2) >= limit {
            self.pressed.add(admitted_at, elapsed);
        }
    }

    /// The new limit, if a step is due and there are enough observations.
    pub fn next_limit(
        &mut self,
        settings: &AdaptiveSettings,
        now: Moment,
        limit: u64,
    ) -> Option<u64> {
        if now.since(self.since) < settings.period() {
            return None;
        }
        if self.new.count() < SAMPLES {
            return self.early(settings, now, limit);
        }
        if self.new.mean() < self.all.mean() / 4 {
            // The upstream has recovered: the older calls would hold the limit down for long.
            (self.all, self.pressed) = (self.new, self.new);
        }
        self.note_quickest(settings, now);
        let hopeless = self.least > self.all.within(settings.deadline.0).max(settings.initial);
        let found = if hopeless || self.is_pressed(settings, now) {
            let calls = if self.new.mean() > settings.late() {
                self.new
            } else if self.pressed.count() >= SAMPLES {
                self.pressed
            } else {
                self.all
            };
            let (found, mean) = (
                settings.filled_by(calls.within(settings.target())),
                calls.mean(),
            );
            let probe = self.probe(settings, now, limit, mean);
            if found > limit {
                let found = if mean > settings.near_target() {
                    limit.saturating_add(found.saturating_sub(limit).div_ceil(2))
                } else {
                    found
                };
                found.max(probe).min(self.doubled(settings, now, limit))
            } else if mean > settings.late() {
                found
            } else if hopeless {
                found.max(settings.initial)
            } else if mean > settings.target() {
                limit.saturating_sub(limit.saturating_sub(found) / 4)
            } else {
                probe
            }
        } else {
            // Where half of it is in flight just now, the answers that there are tell of less: the
            // law is enough until this is pressed.
            let times = if self.calm_at < now { 1 } else { 2 };
            let done = self.all.within(settings.target()).saturating_mul(times);
            let usual = done
                .max(settings.initial)
                .min(self.doubled(settings, now, limit));
            let step = fall(limit.saturating_sub(usual), now.since(self.fell_at));
            if step > 0 || usual >= limit {
                self.fell_at = now;
            }
            limit.saturating_sub(step).max(usual)
        };
        *self = Self {
            since: now,
            new: CallTotals::default(),
            least: u64::MAX,
            all: self.all.aged(),
            pressed: self.pressed.aged(),
            ..*self
        };
        let found = found.max(settings.min).min(settings.max);
        (found != limit).then_some(found)
    }

    /// How long a request takes that comes when so many are in flight, where they queue; zero while
    /// nothing is known.
    #[must_use]
    pub fn expected(&self, in_flight: u64) -> Nanos {
        Nanos(self.all.each().saturating_mul(in_flight))
    }

    fn is_pressed(&self, settings: &AdaptiveSettings, now: Moment) -> bool {
        self.all.mean() > settings.late()
            || self.new.mean() > settings.late()
            || self.refusing.is_recent(settings.deadline.times(2), now)
            || now.since(self.calm_at) >= settings.pressed_after()
    }

    /// A higher limit, while requests are refused and answers come in time: at most once in the
    /// time that an answer takes, so that each step shows what it does before the next one.
    ///
    /// The law knows only what has been in flight together. Where it holds, a queue, it has the
    /// answer already; where more at once would not take longer it never finds out, since the limit
    /// itself keeps it from being tried. (Bug avoided: a service that takes half of its deadline
    /// when idle, under requests that are refused from 70 % of the limit on, stayed at
    /// `initial_limit` for ever.)
    ///
    /// While answers take little longer than they ever did, nothing queues, and the step is what
    /// would be in time even if all that is more had to queue: a quarter at least, all at most.
    /// Otherwise it is careful: only after a deadline of refusals, so that it is no sudden load
    /// whose answers are still to come, and a sixteenth, which doubles, up to a half, while answers
    /// do not take longer for it.
    fn probe(&mut self, settings: &AdaptiveSettings, now: Moment, limit: u64, mean: u64) -> u64 {
        let refusing_for = self.refusing.lasts(settings.deadline, now);
        let full_for = self.full.lasts(settings.deadline, now);
        let older = self.all.mean();
        // Newer ones take longer: a queue grows, and what it comes to is still to be seen.
        let grows = self.new.mean() > older.saturating_add(older / 4);
        if refusing_for.is_none() || grows || now.since(self.probed_at) < Nanos(mean) {
            return limit;
        }
        let least = limit.saturating_add((limit / 4).max(1));
        self.probed = if self.is_quick(settings, limit, mean) && refusing_for >= Some(Nanos(mean)) {
            let in_time = u128::from(limit)
                .saturating_mul(settings.target().into())
                .checked_div(mean.max(1).into());
            let in_time = in_time.and_then(|it| u64::try_from(it).ok());
            in_time
                .unwrap_or(u64::MAX)
                .min(limit.saturating_mul(2))
                .max(least)
        } else if mean.max(self.new.mean()) > (settings.target() / 5).saturating_mul(4) {
            // Closer to the target the law has its answer: what queues takes as long.
            self.gain = 0;
            return limit;
        } else if full_for < Some(settings.deadline) || now.since(self.risen_at) < Nanos(mean) {
            return limit;
        } else {
            let longer = mean > self.probed_mean.saturating_add(self.probed_mean / 32);
            self.gain = match self.gain {
                // The first one: that the limit is far too low is more likely than that it is
                // right.
                _ if self.probed_mean == 0 => 2,
                _ if longer => 0,
                gain => gain.saturating_add(1).min(MOST_GAIN),
            };
            let part = 16u64.checked_shr(self.gain).unwrap_or(1).max(1);
            limit.saturating_add(limit.checked_div(part).unwrap_or(0).max(1))
        };
        self.probed_mean = mean;
        self.rise(now);
        self.probed
    }

    /// The double, for a worker that sees too few calls to know what they take: while it refuses
    /// requests, and the few that came where it was nearly full were answered in half of the target,
    /// so that the double is in time even if all of it had to queue. (Bug avoided: eight
    /// workers that share a limit of 20 and a service of a second have three calls a second each,
    /// and stayed at 20 for seconds.)
    fn early(&mut self, settings: &AdaptiveSettings, now: Moment, limit: u64) -> Option<u64> {
        let few = self.few;
        let among = few.among()?;
        // The first answers to a burst are the quick ones.
        let wait = Nanos(few.mean()).max(settings.pressed_after());
        // Who has seen more has the law.
        let shown = self.all.count() < SAMPLES
            && few.count() >= FEW
            && settings.filled_by(among).saturating_mul(2) >= limit
            && few.mean() <= settings.target() / 2
            && self.full.is_recent(settings.deadline, now)
            && now.since(self.probed_at) >= wait;
        let found = limit.saturating_mul(2).min(settings.max);
        if !shown || found <= limit {
            return None;
        }
        self.probed = found;
        self.rise(now);
        Some(found)
    }

    /// The limit has risen by much: what is seen from now on shows what that does.
    const fn rise(&mut self, now: Moment) {
        self.probed_at = now;
        self.few = CallTotals::ZERO;
    }

    /// Keeps the least that answers have taken. What they take while requests are refused may be a
    /// queue's doing, and does not count as what they take anyway.
    fn note_quickest(&mut self, settings: &AdaptiveSettings, now: Moment) {
        let mean = self.all.mean();
        let rise = mean.saturating_sub(self.quickest) / SETTLE;
        self.quickest = match self.quickest {
            0 => mean,
            known if self.refusing.is_recent(settings.deadline, now) => known.min(mean),
            known => known.saturating_add(rise).min(mean),
        };
    }

    /// Whether answers take little longer than they ever did though the limit has been as good as
    /// full: the newest ones, so that a queue that grows is not overlooked.
    fn is_quick(&self, settings: &AdaptiveSettings, limit: u64, mean: u64) -> bool {
        let mean = mean.max(self.new.mean());
        let among = self.new.among().unwrap_or(0);
        mean < settings.near_target()
            && mean <= self.quickest.saturating_add(self.quickest / 2)
            && settings.filled_by(among).saturating_mul(2) >= limit
    }

    /// The most that the limit may rise to: the first answers to many requests are the fast ones,
    /// and promise too much.
    fn doubled(&mut self, settings: &AdaptiveSettings, now: Moment, limit: u64) -> u64 {
        if self.base == 0
            || limit < self.base
            || now.since(self.base_at) >= Nanos(settings.pressed_after().0 / 2)
        {
            (self.base, self.base_at) = (limit, now);
        }
        self.base.saturating_mul(2).max(limit)
    }

    fn note(&mut self, now: Moment, in_flight: u64, limit: u64) {
        // By another worker's step, or by the law, which is to show what it does first.
        if limit > self.probed {
            self.risen_at = now;
        }
        if limit > self.probed.saturating_add(self.probed / 5) {
            self.rise(now);
        }
        self.probed = limit;
        self.least = self.least.min(in_flight);
        if in_flight.saturating_mul(2) < limit {
            self.calm_at = now;
        }
    }

    /// Forgets observations that are old or from the future (the clock has stepped back).
    fn keep_up(&mut self, settings: &AdaptiveSettings, now: Moment) {
        let oldest = settings.deadline.times(8).plus(Nanos::from_secs(1));
        if now < self.since || now < self.calm_at || now.since(self.since) > oldest {
            *self = Self {
                since: now,
                calm_at: now,
                fell_at: now,
                base_at: now,
                probed_at: now,
                risen_at: now,
                least: u64::MAX,
                ..Self::default()
            };
        }
    }
}

/// How far a calm limit falls in this time, of the way to what is usual.
fn fall(way: u64, time: Nanos) -> u64 {
    let step = u128::from(way)
        .saturating_mul(time.0.into())
        .checked_div(FALL.0.into())
        .unwrap_or(0);
    u64::try_from(step).unwrap_or(u64::MAX).min(way)
}

#[cfg(test)]
mod tests;
