//! Rate limits: a quota per key, exact over all workers.
//!
//! Parts: [`algorithm`] joins the algorithms ([`gcra`], [`warm_up`], [`leaky_bucket`],
//! [`sliding_window`], [`fixed_window`]), [`crate::request::key`] hashes a request's key, [`table`]
//! keeps the states of all keys in shared data of bounded size. [`RateLimit`] joins them.
//!
//! Each algorithm keeps its bound (see [`algorithm`]) over all workers, at every instant: each take
//! is one compare-and-swap on the set of slots that holds the key. A refusal writes nothing and
//! costs nothing.
//!
//! A reload keeps the state of a limit whose parameters change: it is found by the limit's name,
//! `max_keys` and algorithm. Another algorithm starts afresh, and so does a token bucket whose
//! `warm_up` is switched on or off.
//!
//! When the compare-and-swap loses [`crate::store::ATTEMPTS`] times in a row, `on_contention`
//! decides: `allow` (the default) admits the request uncounted, `deny` refuses it. Both count in
//! `haven_store_contention_total`.

pub mod algorithm;
pub mod config;
pub mod fixed_window;
pub mod gcra;
pub mod leaky_bucket;
pub mod lease;
pub mod quota_headers;
pub mod sliding_window;
pub mod table;
pub mod take;
pub mod warm_up;

use crate::base::hash::{KeyHasher, Seed, once_more};
use crate::base::headers::parse_number;
use crate::base::ip::Ip;
use crate::base::sort;
use crate::base::time::{Moment, Nanos};
use crate::host::{Clock, SharedData};
use crate::request::client_ip::ClientIp;
use crate::request::key::KeyPart;
use crate::request::{Request, key};
use crate::store::Contended;
use algorithm::Algorithm;
use lease::{Leases, Undo};
use table::{BucketTable, Placement, TakeResult};
use take::{Take, Verdict};

/// A compiled rate limit.
#[derive(Debug)]
pub struct RateLimit {
    /// Its configuration.
    pub config: config::RateLimit,
    seed: Seed,
    /// The hash of a key without parts.
    of_all: u64,
    table: BucketTable,
    leases: Leases,
    algorithm: Algorithm,
    /// Quotas of exact keys, sorted by the key's hash.
    overrides: Vec<(u64, Algorithm)>,
    shows_partition: bool,
}

/// The decision of a limit on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitDecision {
    /// The limit does not apply: exempt, or a part of the key is missing.
    NotApplicable,
    /// Admitted; `taken` gives the tokens back if a later limit refuses.
    Admitted {
        /// What is left for this key.
        quota: KeyQuota,
        /// What was taken.
        taken: TakenTokens,
        /// Whether the key is new to the table, or evicted one that still owed something.
        placement: Placement,
        /// How long the request has to wait; above zero only with a leaky bucket.
        delay: Nanos,
    },
    /// Refused.
    Refused {
        /// What is left for this key.
        quota: KeyQuota,
        /// The exact time after which the same request would be admitted; `None` = never, it costs
        /// more than the burst.
        wait: Option<Nanos>,
    },
    /// No decision: other workers won every compare-and-swap on the record.
    Contended,
}

/// State of a key's quota, for headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyQuota {
    /// Capacity in tokens: the burst, or a window's limit.
    pub burst: u64,
    /// The quota's period.
    pub period: Nanos,
    /// Whole tokens left.
    pub remaining: u64,
    /// Time until nothing is owed any more; of a refusal, until the same request is admitted.
    pub reset: Nanos,
    /// Identifies the key without revealing it; `None`: all requests share one quota, or no header
    /// shows it.
    pub partition: Option<u64>,
}

impl KeyQuota {
    /// As a refusal's headers have it: the reset in `RateLimit` must not be later than
    /// `Retry-After` (the draft's section on the two).
    #[must_use]
    pub fn for_refusal(self, wait: Option<Nanos>) -> Self {
        Self {
            reset: wait.map_or(self.reset, |wait| self.reset.min(wait)),
            ..self
        }
    }
}

/// Tokens taken from a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenTokens {
    hash: u64,
    tokens: Tokens,
}

/// Where tokens came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tokens {
    Shared(Take),
    Leased(Undo),
}

impl RateLimit {
    /// Compiles a limit. `namespace` keeps the buckets of shadow uses apart from those of enforced
    /// ones; `alone`: no route has another limit beside it, so that nothing is ever refunded.
    #[must_use]
    pub fn new(
        config: config::RateLimit,
        prefixes: &ClientIp,
        namespace: &str,
        alone: bool,
        seed: Seed,
    ) -> Self {
        let algorithm = Algorithm::new(config.algorithm, &config.quota);
        let max_keys = if config.key.is_empty() {
            1
        } else {
            config.max_keys
        };
        let table = BucketTable::new(&config.name, namespace, &algorithm, max_keys);
        let leases = Leases::new(max_keys, alone);
        let mut overrides: Vec<_> = config
            .overrides
            .iter()
            .map(|(values, quota)| {
                (
                    key::of_override(&config.key, values, prefixes, seed),
                    Algorithm::new(config.algorithm, quota),
                )
            })
            .collect();
        sort::by_key(&mut overrides, |(hash, _)| *hash);
        let ietf = matches!(
            config.headers,
            config::QuotaHeaders::Ietf | config::QuotaHeaders::Both
        );
        let shows_partition = ietf && !config.key.is_empty();
        Self {
            seed,
            of_all: KeyHasher::new(seed).finish(),
            table,
            leases,
            algorithm,
            overrides,
            shows_partition,
            config,
        }
    }

    /// Whether the limit needs a request's client address.
    #[must_use]
    pub fn needs_client(&self) -> bool {
        self.config.key.contains(&KeyPart::ClientIp) || !self.config.exempt.is_empty()
    }

    /// Whether the limit may delay requests.
    #[must_use]
    pub const fn delays(&self) -> bool {
        matches!(self.algorithm, Algorithm::LeakyBucket(_))
    }

    /// Takes the request's cost from its key's quota, or refuses and takes nothing.
    pub fn take<H: SharedData>(
        &self,
        host: &H,
        request: &Request<'_>,
        now: Moment,
    ) -> LimitDecision {
        let Some((hash, algorithm, cost)) = self.applies(request) else {
            return LimitDecision::NotApplicable;
        };
        let (verdict, tokens, placement) =
            match self.leases.known(hash, algorithm.bucket(), now, cost) {
                Some((verdict, undo)) => (verdict, Tokens::Leased(undo), Placement::Known),
                None => {
                    let wish = self.leases.wish(hash, now, cost);
                    let Ok(TakeResult {
                        verdict,
                        take,
                        extra,
                        placement,
                    }) = self.table.take(host, hash, algorithm, now, cost, wish)
                    else {
                        return LimitDecision::Contended;
                    };
                    let undo = match (verdict, algorithm.bucket()) {
                        (Verdict::Admitted { .. }, Some(bucket)) if cost > 0 => {
                            self.leases
                                .grant(hash, bucket, now, cost, extra, take.after.until)
                        }
                        // Not remembered with delays: a client that leaves while it waits may give
                        // its place back.
                        (Verdict::Refused { .. }, _) if !self.delays() => {
                            self.leases.refuse(hash, now, cost, verdict);
                            None
                        }
                        _ => None,
                    };
                    (
                        verdict,
                        undo.map_or(Tokens::Shared(take), Tokens::Leased),
                        placement,
                    )
                }
            };
        let quota = |remaining, reset| self.key_quota(hash, algorithm, remaining, reset);
        let admitted = |quota, delay| LimitDecision::Admitted {
            quota,
            taken: TakenTokens { hash, tokens },
            placement,
            delay,
        };
        match verdict {
            Verdict::Admitted { remaining, reset } => {
                admitted(quota(remaining, reset), Nanos::ZERO)
            }
            Verdict::Delayed {
                remaining,
                reset,
                delay,
            } => admitted(quota(remaining, reset), delay),
            Verdict::Refused {
                remaining,
                reset,
                wait,
            } => LimitDecision::Refused {
                quota: quota(remaining, reset),
                wait,
            },
        }
    }

    /// Gives back what [`RateLimit::take`] took at `then`, in the same callback, and never more:
    /// see [`BucketTable::refund`].
    ///
    /// # Errors
    /// [`Contended`]: the tokens stay spent, which errs on the side of the limit.
    pub fn refund<H: SharedData + Clock>(
        &self,
        host: &H,
        taken: TakenTokens,
        then: Moment,
    ) -> Result<(), Contended> {
        match taken.tokens {
            Tokens::Shared(take) => {
                self.table
                    .refund(host, taken.hash, self.algorithm_of(taken.hash), take, then)
            }
            Tokens::Leased(undo) => {
                self.leases.undo(taken.hash, undo);
                Ok(())
            }
        }
    }

    /// What [`LimitDecision::Refused`] would hold if the limit refused the request now; `None`: it
    /// would not. Takes nothing.
    pub fn peek<H: SharedData>(
        &self,
        host: &H,
        request: &Request<'_>,
        now: Moment,
    ) -> Option<(KeyQuota, Option<Nanos>)> {
        let (hash, algorithm, cost) = self.applies(request)?;
        if algorithm
            .bucket()
            .is_some_and(|bucket| self.leases.holds(hash, bucket, now, cost))
        {
            return None;
        }
        let Verdict::Refused {
            remaining,
            reset,
            wait,
        } = self.table.peek(host, hash, algorithm, now, cost)
        else {
            return None;
        };
        Some((self.key_quota(hash, algorithm, remaining, reset), wait))
    }

    /// The key's hash, its algorithm and the request's cost; `None`: the limit does not apply.
    fn applies(&self, request: &Request<'_>) -> Option<(u64, &Algorithm, u64)> {
        if self.is_exempt(request.address) {
            return None;
        }
        let parts = &self.config.key;
        let hash = if parts.is_empty() {
            self.of_all
        } else {
            let mut hasher = KeyHasher::new(self.seed);
            key::hash(parts, self.config.missing_key, request, &mut hasher).then_some(())?;
            hasher.finish()
        };
        Some((hash, self.algorithm_of(hash), self.cost(request)))
    }

    fn key_quota(
        &self,
        hash: u64,
        algorithm: &Algorithm,
        remaining: u64,
        reset: Nanos,
    ) -> KeyQuota {
        let (burst, period) = (algorithm.quota().burst, algorithm.quota().period);
        // Hashed once more: the hash itself gives the place of the key's slot, and a client that
        // knew it could look for keys that evict others.
        let partition = self.shows_partition.then(|| once_more(hash, self.seed));
        KeyQuota {
            burst,
            period,
            remaining,
            reset,
            partition,
        }
    }

    /// By the whole address, not by the prefix that identifies a client: an exempt host is not its
    /// whole network.
    fn is_exempt(&self, address: Option<Ip>) -> bool {
        address.is_some_and(|ip| {
            self.config
                .exempt
                .iter()
                .any(|network| ip.is_in(network.address, network.prefix))
        })
    }

    fn algorithm_of(&self, hash: u64) -> &Algorithm {
        match self.overrides.binary_search_by_key(&hash, |(h, _)| *h) {
            Ok(at) => self
                .overrides
                .get(at)
                .map_or(&self.algorithm, |(_, algorithm)| algorithm),
            Err(_) => &self.algorithm,
        }
    }

    fn cost(&self, request: &Request<'_>) -> u64 {
        match &self.config.cost {
            config::Cost::Fixed(cost) => *cost,
            config::Cost::Header {
                name,
                default,
                min,
                max,
            } => {
                let value = request.headers.get(name).map(<[u8]>::trim_ascii);
                match value {
                    // Digits that do not fit into a u64 are a large number, not a malformed one.
                    Some(digits) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
                        // Not `clamp`, which panics where `min` is above `max`.
                        parse_number(digits).unwrap_or(u64::MAX).max(*min).min(*max)
                    }
                    _ => *default,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
