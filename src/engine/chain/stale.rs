//! Keeping good responses for the fallback's stale step, while they pass.

use super::{Context, Exchange, client};
use crate::base::headers::HeaderMap;
use crate::base::ip::Ip;
use crate::base::time::Moment;
use crate::host::{Host, Stream};
use crate::policy::fallback::stale::Draft;
use crate::policy::fallback::stale::rules::Unkept;

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
            let begun = store
                .policy
                .begin(asked, headers, now, || context.host.wall());
            let draft = store.drafted(context.host, begun);
            // Whose share of the store it takes. The address may cost a host call: only for what is
            // kept, about once a second for each response.
            let of_client = |draft: Draft| {
                let client = client::origin(config, asked.headers().into(), context.stream).address;
                let masked = |ip: Ip| ip.masked(config.ipv4_prefix, config.ipv6_prefix);
                draft.of_client(client.map(masked))
            };
            self.draft = draft.map(of_client).map(Box::new);
        } else if let Some(store) = context.route.stale_store()
            && self.facts.get
            && headers.get(":status") == Some(b"200")
        {
            store.skip(context.host, Unkept::Request);
        }
    }

    /// Copies a piece of it; given up when it has become too long.
    pub(super) fn copy_piece<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        size: usize,
    ) {
        let (Some(draft), Some(store)) = (self.draft.take(), context.route.stale_store()) else {
            return;
        };
        if size == 0 {
            self.draft = Some(draft);
        } else {
            let added = store.policy.check_room(&draft, size).and_then(|()| {
                let piece = context.stream.body(size);
                let piece = piece.filter(|piece| piece.len() == size);
                store.policy.add(*draft, &piece.ok_or(Unkept::Cut)?)
            });
            let copy = store.drafted(context.host, added.map(Some));
            self.draft = copy.map(Box::new);
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
        if !draft.is_whole() {
            return store.skip(host, Unkept::Cut);
        }
        store.count(host, store.policy.keep(host, &asked, &draft, random));
    }

    /// The stream has ended: what was being copied then was cut.
    pub(super) fn drop_response<H: Host>(&mut self, host: &H) {
        if self.draft.take().is_some()
            && let Some(store) = self.route.as_ref().and_then(|route| route.stale_store())
        {
            store.skip(host, Unkept::Cut);
        }
    }
}
