//! Replies that this VM has made before. Of a refusal only the time and the quota change from one
//! request to the next; the rest is made once for each policy and reason.

use super::shared::Shared;
use crate::host::ReadyReply;
use crate::request::Reason;
use crate::request::reply::{ReplyDetails, document};
use std::rc::Rc;

/// Replies remembered.
const MOST: usize = 16;

/// The replies of a VM. A policy may take over the place of another.
#[derive(Debug, Default)]
pub(super) struct ReadyReplies(Shared<[Option<Entry>; MOST]>);

#[derive(Debug)]
struct Entry {
    reason: Reason,
    policy: Box<str>,
    /// Whether it is worth trying again.
    again: bool,
    reply: Rc<ReadyReply>,
}

impl ReadyReplies {
    /// What [`document`] makes of this cause.
    pub(super) fn document(&self, cause: &ReplyDetails<'_>) -> Rc<ReadyReply> {
        let (policy, again) = (cause.policy, cause.retry_after.is_some());
        let last = policy.as_bytes().last().copied().unwrap_or(0);
        let at = policy.len() ^ usize::from(last) ^ cause.reason as usize;
        let known = self.0.with(|entries| {
            let entry = entries.get_mut(at % MOST)?;
            let known = entry.as_ref().filter(|it| {
                it.reason == cause.reason && it.again == again && *it.policy == *policy
            });
            if let Some(known) = known {
                return Some(Rc::clone(&known.reply));
            }
            let reply = Rc::new(document(cause));
            *entry = Some(Entry {
                reason: cause.reason,
                policy: policy.into(),
                again,
                reply: Rc::clone(&reply),
            });
            Some(reply)
        });
        known.unwrap_or_else(|| Rc::new(document(cause)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use crate::base::time::Nanos;

    #[test]
    fn a_reply_kept_ready_is_the_one_that_would_be_made() {
        let (ready, rng) = (ReadyReplies::default(), Rng::new(3));
        let reasons = [
            Reason::RateLimited,
            Reason::Overload,
            Reason::CircuitOpen,
            Reason::Deadline,
        ];
        let policies: Vec<_> = (0..40).map(|i| format!("policy-{i}")).collect();
        for _ in 0..5_000 {
            let cause = ReplyDetails {
                reason: reasons[rng.below(4) as usize],
                policy: &policies[rng.below(40) as usize],
                retry_after: (rng.below(2) == 0).then_some(Nanos(rng.bits())),
                received_status: None,
            };
            assert_eq!(*ready.document(&cause), document(&cause), "{cause:?}");
        }
    }
}
