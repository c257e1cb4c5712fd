//! Reports that endpoints make on their load at the end of an answer.

use super::{Context, Exchange};
use crate::base::headers::HeaderMap;
use crate::base::time::Moment;
use crate::engine::upstream::Attempts;
use crate::host::{Host, Message, Stream};

impl Exchange {
    /// Takes the report on the endpoint's load that gRPC's servers send in the trailers.
    pub(super) fn read_report<H: Host, S: Stream>(
        context: &Context<'_, H, S>,
        attempts: Option<Attempts>,
        trailers: &HeaderMap,
        now: Moment,
    ) {
        let used = context.route.upstream.as_ref();
        let upstream = used.map(|used| &used.policy);
        if let Some((upstream, attempts)) = upstream.zip(attempts)
            && upstream.has_reports()
            && let Some(header) = upstream.report(context.host, now, attempts.last, trailers)
        {
            let trailers = Message::ResponseTrailers;
            context.stream.remove_header(trailers, header);
        }
    }
}
