//! What the proxy did, read and not inferred: which endpoints it tried, and whether it did what haven
//! asked it for. Where it did not, that is counted, logged, and blamed on nobody.

use super::classify::Class;
use super::response::Source;
use super::{Context, Exchange};
use crate::document::FallbackStep;
use crate::engine::upstream::{Attempts, Pick, Tried, Upstream};
use crate::host::{Host, Property, Stream};

/// What the proxy was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum NotFollowed {
    /// An endpoint, by the override header.
    Endpoint = 1,
    /// A cluster, by [`CLUSTER_HEADER`](super::CLUSTER_HEADER).
    Cluster = 2,
    /// None in particular, but one that is in use.
    Choice = 4,
}

impl<'a> Source<'a> {
    /// Of a proxy that does not tell: the endpoint was asked that haven picked first, and answered.
    pub(super) fn assumed(upstream: Option<&'a Upstream>, pick: &Pick) -> Self {
        Self {
            class: Class::Answered,
            upstream,
            matters: upstream.is_some(),
            first: pick.first(),
            said: None,
            address: None,
            calls: 1,
        }
    }
}

impl Exchange {
    /// Whether the request went to another cluster than it was to: the canary's, or a fallback's.
    /// Only these are asked, for the answer of the host costs as much as a header map; the others'
    /// own cluster is where the proxy's route leads without a header.
    pub(super) fn has_strayed<H: Host, S: Stream>(&self, context: &Context<'_, H, S>) -> bool {
        let route = context.route;
        let wanted = if let Some(next) = self.sent_on {
            let used = route.fallback.as_ref();
            let step = used.and_then(|used| used.policy.config.steps.get(next.checked_sub(1)?));
            match step {
                Some(FallbackStep::Cluster(cluster)) => Some(cluster),
                _ => None,
            }
        } else {
            self.stable.as_ref().and(route.cluster.as_ref())
        };
        let Some(wanted) = wanted else { return false };
        let Some(cluster) = context.stream.property(Property::ClusterName) else {
            return false;
        };
        let strayed = cluster != wanted.as_bytes();
        if strayed {
            Self::note_not_followed(context, NotFollowed::Cluster, || {
                [
                    String::from_utf8_lossy(&cluster).into_owned(),
                    wanted.clone(),
                ]
            });
        }
        strayed
    }

    /// Counts it, and logs it once for each route, with who answered in whose place, and what is
    /// missing.
    pub(super) fn note_not_followed<H: Host, S>(
        context: &Context<'_, H, S>,
        what: NotFollowed,
        places: impl FnOnce() -> [String; 2],
    ) {
        let route = context.route;
        context.host.add(route.not_followed, 1);
        let told = route.told.get();
        if told & what as u8 != 0 {
            return;
        }
        route.told.set(told | what as u8);
        let [answered, asked] = places();
        let missing = match what {
            NotFollowed::Endpoint => {
                "Envoy's cluster lacks override_host with this upstream's header, or the endpoint"
            }
            NotFollowed::Cluster => {
                "Envoy's route lacks cluster_header: x-haven-cluster, or another filter sets the route"
            }
            NotFollowed::Choice => {
                "where Envoy chooses, its cluster has an endpoint that the upstream lacks, or lacks its \
                 priorities; haven picks for every request now"
            }
        };
        context
            .engine
            .logs
            .write(context.host, log::Level::Warn, || {
                [
                    "route ",
                    &route.config.name,
                    ": ",
                    &answered,
                    " answered where ",
                    &asked,
                    " was asked for: ",
                    missing,
                ]
                .concat()
            });
    }

    /// The endpoints that the proxy tried; counts the tries beyond the first.
    pub(super) fn attempts<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        source: &Source<'_>,
        well: Option<bool>,
    ) -> Option<Attempts> {
        if source.first.is_some() {
            self.grants.settle_retries(0, Some(true));
            return source.first;
        }
        let granted = self.grants.retries();
        if !source.matters && granted == 0 && source.address.is_none() {
            return None;
        }
        let stream = context.stream;
        let count = || {
            let bytes = stream.property(Property::AttemptCount)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let pick = self.grants.picked();
        let address = source.address.as_deref();
        // The place on the list shows how many tries there were, unless they may have run beyond
        // its end, and back to its beginning.
        let beyond = usize::try_from(granted).is_ok_and(|granted| granted >= pick.listed().max(1));
        let tried = match source.upstream {
            Some(upstream) => upstream.tried(&pick, address, beyond, source.said, count),
            None => Tried {
                attempts: None,
                retries: if granted > 0 {
                    count().unwrap_or(0).saturating_sub(1)
                } else {
                    0
                },
                strayed: false,
            },
        };
        let now = context.engine.newest.get();
        if let (true, Some(upstream)) = (tried.strayed, source.upstream)
            && upstream.strays_for_good(&pick, now)
        {
            upstream.note_stray(context.host, &pick);
            let what = if upstream.is_left(&pick) {
                NotFollowed::Choice
            } else {
                NotFollowed::Endpoint
            };
            Self::note_not_followed(context, what, || {
                [
                    String::from_utf8_lossy(address.unwrap_or_default()).into_owned(),
                    upstream.first_address(&pick),
                ]
            });
        }
        if tried.retries > 0 {
            let retries = i64::try_from(tried.retries).unwrap_or(0);
            context.host.add(context.route.retries, retries);
            // Who has failed before is only known of those that are steered.
            if let Some(upstream) = source.upstream {
                upstream.watch();
            }
        }
        self.grants.settle_retries(tried.retries, well);
        let calls = source.calls;
        tried.attempts.map(|it| Attempts { calls, ..it })
    }
}
