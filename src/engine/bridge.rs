//! What is known of the bridge through which gRPC health checks reach the haven behind it.
//!
//! That it is there is proven by an answer with a secret mark, and holds for all workers and over
//! reloads: it stands in a record of shared data. Until then, and from the first answer of someone
//! else on, checks are requests like any other.

use crate::base::hash::{Seed, once_more};
use crate::base::text::number;
use crate::host::SharedData;
use crate::store::{self, RecordKey, RecordKind, Step};
use std::cell::Cell;

/// What is known of the bridge.
#[derive(Debug)]
pub(super) struct Bridge {
    /// Whether it is there; `None`: the record was not read yet.
    there: Cell<Option<bool>>,
    mark: Vec<u8>,
}

impl Bridge {
    /// Nothing is known yet. `seed`: a secret of the proxy.
    pub(super) fn new(seed: Seed) -> Self {
        Self {
            there: Cell::new(None),
            mark: number(once_more(0, seed)).into_bytes(),
        }
    }

    /// By which the answer of a haven behind the bridge is known.
    pub(super) fn mark(&self) -> &[u8] {
        &self.mark
    }

    /// Whether it has answered. The record is read once, by the first check, and again by each
    /// while it is not there: another worker may have found out.
    pub(super) fn is_there<H: SharedData>(&self, host: &H) -> bool {
        if self.there.get() == Some(true) {
            return true;
        }
        // Contended is not known.
        let read = store::update(host, &Self::record(), |bytes| {
            Step::Keep(bytes.first() == Some(&1))
        });
        let there = read.unwrap_or(false);
        self.there.set(Some(there));
        there
    }

    /// It has answered a check, or someone else has.
    pub(super) fn found<H: SharedData>(&self, host: &H, there: bool) {
        if self.there.replace(Some(there)) == Some(there) {
            return;
        }
        // A lost write costs the next worker what it has cost this one.
        let _ = store::update(host, &Self::record(), |bytes| {
            if bytes.as_slice() == [u8::from(there)] {
                return Step::Keep(());
            }
            bytes.clear();
            bytes.push(there.into());
            Step::Write(())
        });
    }

    fn record() -> RecordKey {
        RecordKey::new(RecordKind::Bridge, 0, 0)
    }
}
