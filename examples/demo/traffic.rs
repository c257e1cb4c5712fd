//! Clients that send at their own pace, whatever comes back (open loop), and the ledger of what
//! came back.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::NAMES;
use crate::support::{Client, Reply, holds_within};

/// What answers of one kind may take to come in once an act is over: more than the route's timeout
/// of 1 s.
const SETTLE: Duration = Duration::from_secs(5);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// One of several ordinary clients.
    Crowd,
    /// The client that never asks for much, and for something new each time.
    Steady,
    /// The client that asks for more than it may have.
    Noisy,
}

/// What a client saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 200 from the upstream with this index.
    Real(usize),
    /// The last good answer, from haven in place of an upstream.
    Stale,
    /// The fixed answer of `envoy.yaml`.
    Fixed,
    /// 429.
    Limited,
    /// 5xx.
    Failed,
    /// No whole answer, or one that was not to be expected.
    Error,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub act: usize,
    pub who: Who,
    pub outcome: Outcome,
    /// When it was due: a generator that falls behind does not hide what the client waited for.
    pub sent: Instant,
    pub done: Instant,
}

impl Sample {
    pub fn latency(&self) -> Duration {
        self.done.duration_since(self.sent)
    }
}

/// All requests of all acts.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    act: usize,
    samples: Vec<Sample>,
    /// Requests on their way, by act.
    pending: BTreeMap<usize, u64>,
    /// What went wrong, by act.
    wrongs: BTreeMap<(usize, String), u64>,
    /// The newest of each kind of answer that is haven's own.
    limited: Option<Reply>,
    stale: Option<Reply>,
    fixed: Option<Reply>,
    /// 429s without a `Retry-After` of at least a second.
    without_wait: u64,
}

impl Ledger {
    /// What is sent from here on belongs to the next act.
    pub fn next_act(&self) {
        self.book().act += 1;
    }

    /// The number of the act that is on; the first is 1.
    pub fn act(&self) -> usize {
        self.book().act
    }

    /// Waits until all answers of an act are in. What is missing then is counted as an error.
    pub async fn settle(&self, act: usize) {
        let left = || self.book().pending.get(&act).copied().unwrap_or(0);
        if !holds_within(SETTLE, async || left() == 0).await {
            let lost = left();
            self.book().wrongs.insert(
                (
                    act,
                    format!("no answer {} s after the act's end", SETTLE.as_secs()),
                ),
                lost,
            );
        }
    }

    pub fn of_act(&self, act: usize) -> Vec<Sample> {
        self.book()
            .samples
            .iter()
            .filter(|sample| sample.act == act)
            .copied()
            .collect()
    }

    pub fn all(&self) -> Vec<Sample> {
        self.book().samples.clone()
    }

    /// What was answered in the time up to now.
    pub fn answered_within(&self, time: Duration) -> Vec<Sample> {
        let Some(since) = Instant::now().checked_sub(time) else {
            return Vec::new();
        };
        // Newest last: nothing older than what any request may take needs a look.
        self.book()
            .samples
            .iter()
            .rev()
            .take(5_000)
            .filter(|sample| sample.done >= since)
            .copied()
            .collect()
    }

    /// Requests that never came back.
    pub fn lost(&self, act: usize) -> u64 {
        self.book().pending.get(&act).copied().unwrap_or(0)
    }

    pub fn wrongs(&self, act: usize) -> Vec<(String, u64)> {
        let book = self.book();
        let of_act = book.wrongs.iter().filter(|((a, _), _)| *a == act);
        of_act
            .map(|((_, text), count)| (text.clone(), *count))
            .collect()
    }

    pub fn a_limited(&self) -> Option<Reply> {
        self.book().limited.clone()
    }

    pub fn a_stale(&self) -> Option<Reply> {
        self.book().stale.clone()
    }

    pub fn a_fixed(&self) -> Option<Reply> {
        self.book().fixed.clone()
    }

    pub fn without_wait(&self) -> u64 {
        self.book().without_wait
    }

    /// The first answer of this kind to what was sent after `since`.
    pub fn first_after(&self, since: Instant, want: impl Fn(Outcome) -> bool) -> Option<Instant> {
        self.book()
            .samples
            .iter()
            .filter(|s| s.sent >= since && want(s.outcome))
            .map(|s| s.done)
            .min()
    }

    fn begin(&self) -> usize {
        let mut book = self.book();
        let act = book.act;
        *book.pending.entry(act).or_default() += 1;
        act
    }

    fn finish(&self, act: usize, who: Who, sent: Instant, answer: Result<Reply, String>) {
        let done = Instant::now();
        let (outcome, wrong) = judge(&answer);
        let mut book = self.book();
        if let Some(wrong) = wrong {
            *book.wrongs.entry((act, wrong)).or_default() += 1;
        }
        match (outcome, answer) {
            (Outcome::Limited, Ok(reply)) => {
                let wait: Option<u64> = reply
                    .header("retry-after")
                    .and_then(|value| value.parse().ok());
                book.without_wait += u64::from(wait.is_none_or(|seconds| seconds < 1));
                book.limited = Some(reply);
            }
            (Outcome::Stale, Ok(reply)) => book.stale = Some(reply),
            (Outcome::Fixed, Ok(reply)) => book.fixed = Some(reply),
            _ => {}
        }
        book.samples.push(Sample {
            act,
            who,
            outcome,
            sent,
            done,
        });
        if let Some(pending) = book.pending.get_mut(&act) {
            *pending = pending.saturating_sub(1);
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an answer was, and what is wrong with it.
fn judge(answer: &Result<Reply, String>) -> (Outcome, Option<String>) {
    let reply = match answer {
        Ok(reply) => reply,
        Err(error) => return (Outcome::Error, Some(error.clone())),
    };
    if let Some(cut) = &reply.cut {
        return (Outcome::Error, Some(format!("the answer was cut: {cut}")));
    }
    let by_haven = reply
        .header("proxy-status")
        .is_some_and(|value| value.starts_with("haven"));
    match reply.status {
        200 if by_haven && reply.header("age").is_some() => (Outcome::Stale, None),
        200 if by_haven => (Outcome::Fixed, None),
        200 => {
            let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            match NAMES.iter().position(|name| {
                body.get("served_by")
                    .is_some_and(|served_by| served_by == name)
            }) {
                Some(upstream) => (Outcome::Real(upstream), None),
                None => (
                    Outcome::Error,
                    Some(format!("a 200 that nobody sent: {}", reply.text())),
                ),
            }
        }
        429 => (Outcome::Limited, None),
        status @ 500..=599 => (
            Outcome::Failed,
            Some(format!("status {status}: {}", reply.text().trim())),
        ),
        status => (Outcome::Error, Some(format!("status {status}"))),
    }
}

/// A client that sends until it is dropped. What it has sent by then is still counted.
#[derive(Debug)]
pub struct Stream(JoinHandle<()>);

impl Stream {
    /// `rate` requests per second to `envoy` from the address `from`.
    pub fn start(
        ledger: &Arc<Ledger>,
        who: Who,
        envoy: SocketAddr,
        from: IpAddr,
        rate: u32,
    ) -> Self {
        let (ledger, client) = (ledger.clone(), Client::h1_from(envoy, from));
        let period = Duration::from_secs(1) / rate.max(1);
        // Each client begins at another part of the period, or all would send at once.
        let phase = match from {
            IpAddr::V4(ip) => period.mul_f64(f64::from(ip.octets()[3]) * 0.618 % 1.0),
            IpAddr::V6(_) => Duration::ZERO,
        };
        Self(tokio::spawn(async move {
            let mut ticks = tokio::time::interval_at(Instant::now() + phase, period);
            let mut number = 0_u64;
            loop {
                let due = ticks.tick().await;
                number += 1;
                let (ledger, client) = (ledger.clone(), client.clone());
                let act = ledger.begin();
                let user = if who == Who::Steady {
                    1_000 + number
                } else {
                    number % 100
                };
                tokio::spawn(async move {
                    let answer = client.get(&format!("/api/users/{user}")).await;
                    ledger.finish(act, who, due, answer);
                });
            }
        }))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.abort();
    }
}
