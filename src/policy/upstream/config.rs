//! The endpoints of an upstream and how one is picked, as it is configured.

use crate::base::percent::Percent;
use crate::request::key::{KeyPart, SomeKeyParts};
use crate::request::reserved::{RESERVED, is_taken};
use crate::schema::names::Distinct;
use crate::schema::units::{HOUR, MS, hundredths, show_span};
use crate::schema::{
    Address, Centi, Errors, HeaderName, Int, Label, Path, Pct, Span, choice, section,
};

section! {
    /// One instance of an upstream.
    Endpoint {
        /// IP address and port.
        address: Address = Required;
        /// Its share relative to the others; 0 = drained.
        weight: Int<0, 1000> = Default("1");
        /// Its level. Endpoints of a higher number are used when those of the lower ones are out:
        /// while at least `panic_threshold` percent of a level are available it gets all requests,
        /// below it keeps as much as its share is of the threshold, and the next level gets the
        /// rest.
        priority: Int<0, 127> = Default("0");
        /// Its zone.
        zone: Option<Label> = Absent("none");
    }
}

/// How an endpoint is picked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BalancePolicy {
    /// In turn, by weight.
    RoundRobin,
    /// Least requests in flight for its weight.
    LeastRequest,
    /// Least latency times requests in flight, for its weight.
    PeakEwma,
    /// The owner of the request's key.
    ConsistentHash {
        /// What is hashed.
        key: Vec<KeyPart>,
        /// The most requests in flight of an endpoint, in hundredths of its share of them all.
        bounded_load: Option<Percent>,
    },
    /// A draw by weight.
    Random,
    /// The first that may be used.
    First,
}

choice! {
    /// What takes failing endpoints out of rotation where nothing else is said.
    enum Outlier {
        /// A breaker with defaults of its own.
        Default = "default",
        /// Nothing.
        Off = "off",
    }
}

choice! {
    /// For which requests haven picks the endpoint.
    enum Steer {
        /// For all.
        Always = "always",
        /// Where the proxy's own choice will not do.
        ByException = "by_exception",
    }
}

choice! {
    /// Which reports of endpoints count.
    enum LoadReport {
        /// None.
        None = "none",
        /// The header `endpoint-load-metrics`.
        Orca = "orca",
    }
}

section! {
    /// How an endpoint is picked.
    LoadBalancer {
        /// The algorithm. `round_robin`: in turn, nginx's smooth weighted order. `least_request`:
        /// the fewest requests in flight over all workers, for its weight. `peak_ewma`: the least
        /// latency times requests in flight, over all workers, for its weight. `consistent_hash`:
        /// the endpoint that owns the request's `hash_key`. `random`: a draw by weight. `first`:
        /// the first of the list that may be used. Where more than 8 are in rotation,
        /// `least_request` and `peak_ewma` compare 8 drawn at random.
        policy: PolicyName = Default("\"least_request\"");
        /// Time over which an endpoint that is new, or whose breaker has closed again, gets its
        /// full share: its weight grows in a straight line from a tenth. Endpoints that were there
        /// when the proxy started are not new. With `consistent_hash` its keys come gradually. Not
        /// for `first`.
        slow_start: Option<Span<MS, HOUR>> = Absent("off");
        /// Below this percentage of available endpoints, in all levels of `priority` together, all
        /// are used again; 0 = never.
        panic_threshold: Pct = Default("50");
        /// What `consistent_hash` hashes: parts as in a rate limit's `key`. A request that lacks
        /// one goes to any endpoint.
        hash_key: Option<SomeKeyParts> = Absent("`[\"client_ip\"]`");
        /// With `consistent_hash`: the most requests in flight of an endpoint, as a multiple of its
        /// share of them all; a key whose endpoint has as many goes to the next one. Two are always
        /// allowed. For hot keys: it takes requests away from the endpoint of their key.
        bounded_load: Option<Centi<100, 1_000>> = Absent("no bound");
        /// The proxy's own zone: its endpoints are preferred. When they have less than 1/zones of
        /// the available weight, the part of the requests that they lack goes to the other zones.
        /// Every zone is taken to have as many clients.
        zone: Option<Label> = Absent("none");
    }
}

choice! {
    /// How an endpoint is picked.
    enum PolicyName {
        LeastRequest = "least_request",
        RoundRobin = "round_robin",
        PeakEwma = "peak_ewma",
        ConsistentHash = "consistent_hash",
        Random = "random",
        First = "first",
    }
}

section! {
    /// How the pick reaches the proxy.
    Override {
        /// Request header with the picked endpoints, in Envoy's `override_host` policy; always
        /// stripped from clients. Starts with `x-`.
        header: HeaderName = Default("\"x-haven-upstream\"");
        /// Whether `x-envoy-attempt-count` in answers is this proxy's own:
        /// `include_attempt_count_in_response: true` on the virtual host. Then the first try's
        /// answers are known by it, which spares a host call of about 12,000 instructions for each.
        /// Without that option the header is whatever the endpoint sends, and must not be believed.
        attempt_count: bool = Default("false");
    }
}

impl LoadBalancer {
    /// Reports the errors that span fields.
    pub(crate) fn check(&self, at: &Path<'_>, errors: &mut Errors) {
        let hashes = self.policy == PolicyName::ConsistentHash;
        if let (Some(key), false) = (&self.hash_key, hashes) {
            let shown = ["a list of ", &key.len().to_string()].concat();
            let want = "none: only consistent_hash has a key";
            errors.refuse_shown(&at.key("hash_key"), &shown, want);
        }
        if let (Some(bound), false) = (self.bounded_load, hashes) {
            let want = "none: only consistent_hash bounds load";
            errors.refuse_shown(&at.key("bounded_load"), &hundredths(bound.0), want);
        }
        if let (Some(span), PolicyName::First) = (self.slow_start, self.policy) {
            let want = "none: with first there are no shares";
            errors.refuse_text(&at.key("slow_start"), &show_span(span), want);
        }
    }

    /// How an endpoint is picked.
    pub(crate) fn compile(self) -> BalancePolicy {
        match self.policy {
            PolicyName::LeastRequest => BalancePolicy::LeastRequest,
            PolicyName::RoundRobin => BalancePolicy::RoundRobin,
            PolicyName::PeakEwma => BalancePolicy::PeakEwma,
            PolicyName::Random => BalancePolicy::Random,
            PolicyName::First => BalancePolicy::First,
            PolicyName::ConsistentHash => BalancePolicy::ConsistentHash {
                key: self.hash_key.unwrap_or_else(|| vec![KeyPart::ClientIp]),
                bounded_load: self.bounded_load,
            },
        }
    }

    /// Refuses load reports where endpoints have no shares.
    pub(crate) fn check_report(&self, at: &Path<'_>, report: LoadReport, errors: &mut Errors) {
        if let (LoadReport::Orca, PolicyName::ConsistentHash | PolicyName::First) =
            (report, self.policy)
        {
            let want = "\"none\": with consistent_hash and first there are no shares";
            errors.refuse_text(at, "orca", want);
        }
    }
}

impl Override {
    /// Reports a header that means something else.
    pub(crate) fn check(&self, at: &Path<'_>, errors: &mut Errors) {
        let header = self.header.as_str();
        if !header.is_empty() && (!header.starts_with("x-") || is_taken(header)) {
            let want = [
                "a header name that starts with \"x-\", none of Envoy's, none that tells who a \
                 client is, and none of ",
                &RESERVED.join(", "),
            ];
            errors.refuse_text(&at.key("header"), header, &want.concat());
        }
    }
}

/// Why the proxy's own least_request cannot stand in for haven's pick; `None`: it can.
pub(crate) fn own_choice_lacks(
    balancer: &LoadBalancer,
    report: LoadReport,
    endpoints: &[Endpoint],
) -> Option<&'static str> {
    let mut weights = endpoints.iter().map(|it| it.weight).filter(|it| *it > 0);
    let first = weights.next();
    if first.is_none() {
        Some("endpoints of which haven could pick one")
    } else if balancer.policy != PolicyName::LeastRequest {
        Some("\"policy\": \"least_request\"")
    } else if balancer.zone.is_some() {
        Some("no zone")
    } else if report != LoadReport::None {
        Some("no load_report")
    } else if weights.any(|it| Some(it) != first) {
        Some("one weight for all endpoints, but 0")
    } else {
        None
    }
}

/// Reports addresses that stand twice; `at` is the list.
pub(crate) fn check_endpoints(at: &Path<'_>, endpoints: &[Endpoint], errors: &mut Errors) {
    let mut seen = Distinct::default();
    for (i, Endpoint { address, .. }) in endpoints.iter().enumerate() {
        if !address.is_empty() && !seen.add(address) {
            let at = at.index(i);
            errors.refuse_text(&at.key("address"), address, "each address only once");
        }
    }
}
