//! Keeping good responses for the fallback's stale step, while they pass.

use super::{Context, Exchange, client};
use crate::base::headers::HeaderMap;
use crate::base::ip::Ip;
use crate::base::time::Moment;
use crate::host::{Host, Stream};
use crate::policy::fallback::stale::Draft;

impl Exchange {
    /// A good response begins: it is copied if it may be kept. What another cluster answered is not
    /// this route's, and a canary's version is not for those who are not on it.
    pub(super) fn draft_response<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        headers: &HeaderMap,
        now: Moment,
    ) {
        if self.stable.is_some() || self.sent_on.is_some() {
            return;
        }
        if let (Some(store), Some(asked)) = (context.route.stale_store(), &self.facts.asked) {
            let config = &context.engine.client_ip;
            let draft = store
                .policy
                .begin(asked, headers, now, || context.host.wall());
            // Whose share of the store it takes. The address may cost a host call: only for what is
            // kept, about once a second for each response.
            let of_client = |draft: Draft| {
                let client = client::origin(config, asked.headers().into(), context.stream).address;
                let masked = |ip: Ip| ip.masked(config.ipv4_prefix, config.ipv6_prefix);
                draft.of_client(client.map(masked))
            };
            self.draft = draft.map(of_client).map(Box::new);
        }
    }

    /// Copies a piece of it; given up when it has become too long.
    pub(super) fn copy_piece<H, S: Stream>(&mut self, context: &Context<'_, H, S>, size: usize) {
        let (Some(draft), Some(store)) = (self.draft.take(), context.route.stale_store()) else {
            return;
        };
        if size == 0 {
            self.draft = Some(draft);
        } else if store.policy.has_room(&draft, size) {
            let piece = context.stream.body(size);
            let piece = piece.filter(|piece| piece.len() == size);
            self.draft = piece
                .and_then(|piece| store.policy.add(*draft, &piece))
                .map(Box::new);
        }
    }

    /// It has come to its end.
    pub(super) fn keep_response<H: Host, S>(&mut self, context: &Context<'_, H, S>) {
        let (Some(draft), Some(asked), Some(store)) = (
            self.draft.take(),
            self.facts.asked.take(),
            context.route.stale_store(),
        ) else {
            return;
        };
        let (host, random) = (context.host, context.engine.rng.bits());
        store.count(host, store.policy.keep(host, &asked, &draft, random));
    }
}
