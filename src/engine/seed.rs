//! The secret of key hashes, in shared data.

use crate::base::hash::Seed;
use crate::host::{Random, SharedData};
use crate::store::{self, Contended, RecordKey, RecordKind, Step};

/// The seed, made by the first worker and shared by all.
///
/// # Errors
/// [`Contended`]: it could be neither read nor written.
pub(super) fn shared_seed<H: SharedData + Random>(host: &H) -> Result<Seed, Contended> {
    let key = RecordKey::new(RecordKind::Seed, 0, 0);
    store::update(host, &key, |bytes| {
        if let Ok(known) = <[u8; 16]>::try_from(bytes.as_slice()) {
            return Step::Keep(u128::from_le_bytes(known));
        }
        let fresh = u128::from(host.entropy()) << 64 | u128::from(host.entropy());
        bytes.clear();
        bytes.extend_from_slice(&fresh.to_le_bytes());
        Step::Write(fresh)
    })
    .map(|seed| {
        #[allow(clippy::cast_possible_truncation, reason = "the halves of the seed")]
        Seed((seed >> 64) as u64, seed as u64)
    })
}
