//! Keyed hashing of what clients send, and of names.
//!
//! SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012): with a secret key
//! a client cannot aim for collisions. Both uses are stored or shared between VMs, so the algorithm
//! must be the same in every version and build.

use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// XXH64 (Collet, "xxHash fast digest algorithm", 0.1.1), which Envoy hashes endpoints with. It is
/// not for what clients could aim at.
pub use xxhash_rust::xxh64::xxh64;

/// The secret that all workers of a proxy hash clients' keys with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seed(pub u64, pub u64);

/// The upper half of a hash: a key where 32 bits are enough to tell a few hundred apart.
#[allow(clippy::cast_possible_truncation, reason = "half of the number")]
#[must_use]
pub const fn high_half(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// Hashes a sequence of parts. Each is preceded by its length, so that ("ab", "c") and ("a", "bc")
/// differ.
#[derive(Debug)]
pub struct KeyHasher(SipHasher13);

impl KeyHasher {
    /// Starts a hash under `seed`.
    #[must_use]
    pub fn new(seed: Seed) -> Self {
        Self(SipHasher13::new_with_keys(seed.0, seed.1))
    }

    /// Adds a part.
    pub fn part(&mut self, bytes: &[u8]) {
        self.0
            .write_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.write(bytes);
    }

    /// Adds the absence of a part, which no present part equals.
    pub fn absent(&mut self) {
        self.0.write_u32(u32::MAX);
    }

    /// The hash.
    #[must_use]
    pub fn finish(self) -> u64 {
        self.0.finish()
    }
}

/// A hash of a hash, under the same secret: as distinct as the first, which it does not disclose.
#[must_use]
pub fn once_more(hash: u64, seed: Seed) -> u64 {
    // Under a key of its own, so that it is not the hash of some client's key.
    let mut hasher = SipHasher13::new_with_keys(!seed.0, seed.1);
    hasher.write_u64(hash);
    hasher.finish()
}

/// A hash of names from the configuration, the same in every build: it names records in shared
/// data.
#[must_use]
pub fn of_names(names: &[&str]) -> u64 {
    let mut hasher = KeyHasher::new(Seed::default());
    for name in names {
        hasher.part(name.as_bytes());
    }
    hasher.finish()
}

/// Maps a hash to one of `n` places evenly, without a division (Lemire, "Fast random integer
/// generation in an interval", 2019). `n` = 0 gives 0.
#[must_use]
pub fn place(hash: u64, n: u32) -> u32 {
    let scaled = u128::from(hash).wrapping_mul(u128::from(n)) >> 64;
    u32::try_from(scaled).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES_HASH: u64 = 5_780_167_904_523_750_881;

    fn hash(parts: &[&str]) -> u64 {
        let mut hasher = KeyHasher::new(Seed(1, 2));
        parts.iter().for_each(|p| hasher.part(p.as_bytes()));
        hasher.finish()
    }

    #[test]
    fn parts_never_run_together() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_ne!(hash(&["", "a"]), hash(&["a", ""]));
        assert_ne!(hash(&["a"]), hash(&["a", ""]));
    }

    #[test]
    fn absence_is_not_emptiness() {
        let mut hasher = KeyHasher::new(Seed(1, 2));
        hasher.absent();
        assert_ne!(hasher.finish(), hash(&[""]));
    }

    #[test]
    fn a_hash_of_a_hash_is_another_and_the_secrets_own() {
        let seed = Seed(1, 2);
        let all = [
            once_more(1, seed),
            once_more(2, seed),
            once_more(1, Seed(1, 3)),
            1,
            hash(&["\u{1}\0\0\0\0\0\0\0"]),
        ];
        assert!(
            (0..all.len()).all(|i| !all[..i].contains(&all[i])),
            "{all:?}"
        );
        assert_eq!(once_more(1, seed), all[0]);
    }

    #[test]
    fn names_hash_the_same_in_every_build() {
        // A record that one version of the filter wrote to shared data must be found again by the
        // next.
        assert_eq!(of_names(&["per-client", "users"]), NAMES_HASH);
    }

    #[test]
    fn places_stay_in_range_and_spread() {
        let mut seen = [0u32; 7];
        for i in 0..70_000u64 {
            let mut hasher = KeyHasher::new(Seed(3, 4));
            hasher.part(&i.to_le_bytes());
            seen[place(hasher.finish(), 7) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (9_500..10_500).contains(n)), "{seen:?}");
        assert_eq!(place(u64::MAX, 0), 0);
    }
}
