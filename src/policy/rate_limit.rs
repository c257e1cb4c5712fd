//! Rate limits: a token bucket per key, exact over all workers.
//!
//! Parts: [`gcra`] is the algorithm, [`key`] finds out whose bucket a request draws from, [`table`] keeps the buckets of all keys in
//! shared data of bounded size. [`RateLimit`] joins them.
//!
//! A bucket admits at most burst + rate·t requests in any interval of length t, over all workers, at every instant: each take is one
//! compare-and-swap on the set of slots that holds the key. A refusal writes nothing and costs nothing.
//!
//! When the compare-and-swap loses [`crate::store::ATTEMPTS`] times in a row, `on_contention` decides: `allow` (the default) admits
//! the request uncounted, `deny` refuses it. Both count in `haven_store_contention_total`.

pub mod gcra;
pub mod key;
pub mod lease;
pub mod quota_headers;
pub mod table;

use crate::base::hash::{KeyHasher, Seed};
use crate::base::headers::parse_number;
use crate::base::ip::Ip;
use crate::base::time::Nanos;
use crate::config;
use crate::host::Host;
use crate::policy::request::Request;
use crate::store::Contended;
use gcra::{Gcra, Take, Verdict};
use lease::{Leases, Undo};
use table::{Placement, Table, Taking};

/// A rate limit, ready to be asked.
#[derive(Debug)]
pub struct RateLimit {
    /// Its configuration.
    pub config: config::RateLimit,
    seed: Seed,
    table: Table,
    leases: Leases,
    bucket: Gcra,
    /// Buckets of exact keys, sorted by the key's hash.
    overrides: Vec<(u64, Gcra)>,
}

/// What a limit says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The limit does not apply: exempt, or a part of the key is missing.
    NotApplicable,
    /// Admitted; `taken` gives the tokens back if a later limit refuses.
    Admitted {
        /// What is left for this key.
        quota: KeyQuota,
        /// What was taken.
        taken: Taken,
        /// Whether the key is new to the table, or pushed a debtor out of it.
        placement: Placement,
    },
    /// Refused.
    Refused {
        /// What is left for this key.
        quota: KeyQuota,
        /// The exact time after which the same request would be admitted; `None` = never, it costs more than the burst.
        wait: Option<Nanos>,
    },
    /// Nothing is known: others kept winning the race for the record.
    Contended,
}

/// State of a key's quota, for headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyQuota {
    /// Capacity in tokens.
    pub burst: u64,
    /// The quota's period.
    pub period: Nanos,
    /// Whole tokens left.
    pub remaining: u64,
    /// Time until the bucket is full again.
    pub reset: Nanos,
}

/// Tokens taken from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
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
    /// Compiles a limit. `namespace` keeps the buckets of shadow uses apart from those of enforced ones; `alone` says that no route asks
    /// another limit beside it, so that nothing is ever refunded.
    #[must_use]
    pub fn new(
        config: config::RateLimit,
        prefixes: &config::ClientIp,
        namespace: &str,
        alone: bool,
        seed: Seed,
    ) -> Self {
        let max_keys = if config.key.is_empty() { 1 } else { config.max_keys };
        let table = Table::new(&config.name, namespace, max_keys);
        let leases = Leases::new(max_keys, alone);
        let mut overrides: Vec<_> = config
            .overrides
            .iter()
            .map(|(values, quota)| (key::of_override(&config.key, values, prefixes, seed), Gcra::new(quota)))
            .collect();
        overrides.sort_by_key(|(hash, _)| *hash);
        let bucket = Gcra::new(&config.quota);
        Self { seed, table, leases, bucket, overrides, config }
    }

    /// Whether a request's client address must be known.
    #[must_use]
    pub fn needs_client(&self) -> bool {
        self.config.key.contains(&config::KeyPart::ClientIp) || !self.config.exempt.is_empty()
    }

    /// Takes the request's cost from its key's bucket, or refuses and takes nothing.
    pub fn take<H: Host>(&self, host: &H, request: &Request<'_>, now: Nanos) -> Answer {
        if self.is_exempt(request.client) {
            return Answer::NotApplicable;
        }
        let mut hasher = KeyHasher::new(self.seed);
        if !key::hash(&self.config.key, self.config.missing_key, request, &mut hasher) {
            return Answer::NotApplicable;
        }
        let hash = hasher.finish();
        let (bucket, cost) = (self.bucket_of(hash), self.cost(request));
        let quota = |remaining, reset| KeyQuota { burst: bucket.burst(), period: bucket.period(), remaining, reset };
        let (verdict, tokens, placement) = match self.leases.known(hash, bucket, now, cost) {
            Some((verdict, undo)) => (verdict, Tokens::Leased(undo), Placement::Known),
            None => {
                let wanted = self.leases.wanted(hash, bucket, now);
                let Ok(Taking { verdict, take, extra, placement }) =
                    self.table.take(host, hash, bucket, now, cost, wanted)
                else {
                    return Answer::Contended;
                };
                let undo = match verdict {
                    Verdict::Admitted { .. } if cost > 0 => {
                        self.leases.grant(hash, bucket, now, cost, extra, take.after)
                    }
                    Verdict::Admitted { .. } => None,
                    Verdict::Refused { .. } => {
                        self.leases.refuse(hash, now, cost, verdict);
                        None
                    }
                };
                (verdict, undo.map_or(Tokens::Shared(take), Tokens::Leased), placement)
            }
        };
        match verdict {
            Verdict::Admitted { remaining, reset } => {
                Answer::Admitted { quota: quota(remaining, reset), taken: Taken { hash, tokens }, placement }
            }
            Verdict::Refused { remaining, reset, wait } => Answer::Refused { quota: quota(remaining, reset), wait },
        }
    }

    /// Gives back what [`RateLimit::take`] took at `then`, in the same callback. Never gives more than that: see [`Table::refund`].
    ///
    /// # Errors
    /// [`Contended`]: the tokens stay spent, which errs on the side of the limit.
    pub fn refund<H: Host>(&self, host: &H, taken: Taken, then: Nanos) -> Result<(), Contended> {
        match taken.tokens {
            Tokens::Shared(take) => self.table.refund(host, taken.hash, take, then),
            Tokens::Leased(undo) => {
                self.leases.undo(taken.hash, undo);
                Ok(())
            }
        }
    }

    fn is_exempt(&self, client: Option<Ip>) -> bool {
        client.is_some_and(|ip| self.config.exempt.iter().any(|network| ip.is_in(network.address, network.prefix)))
    }

    fn bucket_of(&self, hash: u64) -> &Gcra {
        match self.overrides.binary_search_by_key(&hash, |(h, _)| *h) {
            Ok(at) => self.overrides.get(at).map_or(&self.bucket, |(_, bucket)| bucket),
            Err(_) => &self.bucket,
        }
    }

    fn cost(&self, request: &Request<'_>) -> u64 {
        match &self.config.cost {
            config::Cost::Fixed(cost) => *cost,
            config::Cost::Header { name, default, max } => {
                let value = request.headers.get(name).map(<[u8]>::trim_ascii);
                match value {
                    // All digits but too long for a u64 is a large number, not a malformed one.
                    Some(digits) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
                        parse_number(digits).unwrap_or(u64::MAX).min(*max)
                    }
                    _ => *default,
                }
            }
        }
    }
}
