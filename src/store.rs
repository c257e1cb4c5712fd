//! Floor 2: records in the proxy's shared data. Nothing else in haven touches shared data.
//!
//! A step is a pure function from the old bytes to an answer and, perhaps, new bytes. The store
//! runs it inside a compare-and-swap loop, so that it may run several times; a step that writes
//! nothing costs one read. The loop is bounded: when others keep winning, the caller gets
//! [`Contended`], an outcome that each policy gives a documented meaning.
//!
//! Hosts differ in how a missing key is inserted (Envoy overwrites blindly on version 0, nginx
//! requires version 0): [`insert`] works on both, and never overwrites what another worker wrote
//! first.

use crate::host::{Cas, CasMismatch, SharedData};

/// How often a step is tried before it is given up. With two workers hammering one key 2 to 4 % of
/// the writes lose once, so that sixteen losses in a row mean that something is wrong.
pub const ATTEMPTS: u32 = 16;

/// On Envoy a version that no record has: setting with it writes only if the key is missing.
const ABSENT_ON_ENVOY: Cas = Cas(u32::MAX);
/// On nginx the version that means "must not exist".
const ABSENT_ON_NGINX: Cas = Cas(0);

/// Others kept winning; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contended;

/// What is to be done after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<A> {
    /// Leave the record as it is.
    Keep(A),
    /// Write the bytes as the step has changed them.
    Write(A),
}

/// Name of a record: what it is, whose it is (a hash of names), and its number. Fixed length, made
/// without formatting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordKey([u8; 15]);

impl RecordKey {
    /// The name of record `index` of `owner`.
    #[must_use]
    pub fn new(kind: RecordKind, owner: u64, index: u32) -> Self {
        let mut key = *b"hv\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let fields = [kind as u8]
            .into_iter()
            .chain(owner.to_le_bytes())
            .chain(index.to_le_bytes());
        key.iter_mut()
            .skip(2)
            .zip(fields)
            .for_each(|(to, from)| *to = from);
        Self(key)
    }

    /// The record of this name in the state that this host's configuration has.
    fn within<H: SharedData>(&self, host: &H) -> Self {
        let mut key = *self;
        let owner = key.0.iter_mut().skip(3);
        owner
            .zip(host.scope().to_le_bytes())
            .for_each(|(to, scope)| *to ^= scope);
        key
    }

    /// The bytes that the host sees.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a record is. The letters never change their meaning: records outlive a version of the
/// filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// The secret seed of key hashes.
    Seed = b's',
    /// A set of a rate limit's key table.
    RateLimit = b'r',
    /// A circuit breaker.
    CircuitBreaker = b'c',
    /// What active checks have found of an endpoint.
    Health = b'h',
    /// Who checks an upstream's endpoints.
    HealthLease = b'l',
    /// What workers have in flight by key, for fair shares.
    FairShares = b'f',
    /// VMs' shares of gauges.
    Shares = b'g',
    /// When an upstream's endpoints were first seen.
    FirstSeen = b'e',
    /// What a set of kept responses holds.
    StaleIndex = b'i',
    /// A kept response.
    StaleSlot = b'k',
    /// How many sets of kept responses there are.
    StaleSize = b'n',
    /// A warning that was written.
    Said = b'w',
    /// Whether a bridge answers gRPC health checks.
    Bridge = b'b',
    /// The endpoints of an upstream as its source named them, and how that does.
    Source = b'd',
    /// Which version of an upstream's endpoints Envoy has, of those that haven serves.
    Held = b'v',
    /// Who asks an upstream's source.
    SourceLease = b'a',
}

/// Runs `step` on the record's bytes (empty if there is none) until its write sticks.
///
/// # Errors
/// [`Contended`] after [`ATTEMPTS`] lost races.
pub fn update<H: SharedData, A>(
    host: &H,
    key: &RecordKey,
    mut step: impl FnMut(&mut Vec<u8>) -> Step<A>,
) -> Result<A, Contended> {
    let key = &key.within(host);
    for _ in 0..ATTEMPTS {
        let (mut bytes, version) = match host.shared(key.as_bytes()) {
            Some((bytes, cas)) => (bytes, Some(cas)),
            None => (Vec::new(), None),
        };
        let answer = match step(&mut bytes) {
            Step::Keep(answer) => return Ok(answer),
            Step::Write(answer) => answer,
        };
        let written = match version {
            Some(cas) => host.set_shared(key.as_bytes(), &bytes, cas),
            None => put(host, key, &bytes),
        };
        if written.is_ok() {
            return Ok(answer);
        }
    }
    Err(Contended)
}

/// The record's bytes.
pub fn read<H: SharedData>(host: &H, key: &RecordKey) -> Option<Vec<u8>> {
    host.shared(key.within(host).as_bytes())
        .map(|(bytes, _)| bytes)
}

/// Writes the record if there is none.
///
/// # Errors
/// [`CasMismatch`] if another worker was faster.
pub fn insert<H: SharedData>(host: &H, key: &RecordKey, bytes: &[u8]) -> Result<(), CasMismatch> {
    put(host, &key.within(host), bytes)
}

fn put<H: SharedData>(host: &H, key: &RecordKey, bytes: &[u8]) -> Result<(), CasMismatch> {
    if host
        .set_shared(key.as_bytes(), bytes, ABSENT_ON_ENVOY)
        .is_ok()
    {
        return Ok(());
    }
    // Refused: the key exists, or this host spells "absent" as 0, which on Envoy would overwrite an
    // existing record blindly.
    if host.shared(key.as_bytes()).is_some() {
        return Err(CasMismatch);
    }
    host.set_shared(key.as_bytes(), bytes, ABSENT_ON_NGINX)
}
