//! Whether the proxy did what haven asked it for: it is noticed, counted and logged where it did
//! not, and blamed on nobody.

use super::{Context, Exchange};
use crate::document::FallbackStep;
use crate::host::{Host, Property, Stream};

/// What the proxy was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum NotFollowed {
    /// An endpoint, by the override header.
    Endpoint = 1,
    /// A cluster, by [`CLUSTER_HEADER`](super::CLUSTER_HEADER).
    Cluster = 2,
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
}
