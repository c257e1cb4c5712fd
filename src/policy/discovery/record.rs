//! What all workers know of an upstream's endpoints: a record, found by the upstream's name alone.
//!
//! The one worker that asks writes it with each answer; the others read it when the upstream's
//! changes have moved, and with their ticks, and take the endpoints out of it when their version
//! has moved. It has a fixed layout with a version byte, and is read as nothing if it is anything
//! else.

use super::{MAX_MEMBERS, MAX_PRIORITY, MAX_WEIGHT, Member, Membership, Verdict};
use crate::base::hash::of_names;
use crate::base::ip::canonical_endpoint;
use crate::base::time::Moment;
use crate::host::SharedData;
use crate::store::{self, Contended, RecordKey, RecordKind, Step};

const VERSION: u8 = 1;

/// The longest text of a failure that is kept, in bytes.
const MAX_TEXT: usize = 240;

/// How the last answer of a source was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// There was none yet.
    #[default]
    Unasked,
    /// It counted.
    Ok,
    /// It lacks so many endpoints that the next one has to say it again.
    Held,
    /// It could not be used.
    Refused,
    /// There was none, or it was an error.
    Error,
}

impl SourceState {
    const ALL: [Self; 5] = [
        Self::Unasked,
        Self::Ok,
        Self::Held,
        Self::Refused,
        Self::Error,
    ];

    /// What health documents and log lines call it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unasked => "unasked",
            Self::Ok => "ok",
            Self::Held => "held",
            Self::Refused => "refused",
            Self::Error => "error",
        }
    }
}

/// How the source of an upstream's endpoints does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Moves up with each change of the endpoints; 0: none are known yet. A record that was lost and
    /// written anew has no version that was there before.
    pub version: u64,
    /// How its last answer was.
    pub state: SourceState,
    /// When that was asked for.
    pub asked: Moment,
    /// When the last answer that counted was asked for: the endpoints were so then. Zero: never.
    pub confirmed: Moment,
    /// Since when the state is what it is, as Unix time in seconds.
    pub since_unix: u64,
    /// Where the source is in its own count of changes; 0 if it has none.
    pub cursor: u64,
    /// When the last answer came that was held, and hashes of the addresses that it lacks, in order.
    pub held: Option<(Moment, Vec<u64>)>,
    /// Why the last answer did not count; empty if it did.
    pub reason: String,
}

/// What is known of an upstream's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// How the source does.
    pub status: SourceStatus,
    /// The endpoints.
    pub members: Membership,
    /// When each was first seen, in their order; zero: the first list had it.
    pub first_seen: Vec<Moment>,
}

impl Known {
    /// With these endpoints from `now` on: those that are known keep their time.
    #[must_use]
    pub fn with(self, members: &Membership, now: Moment) -> Self {
        let is_first = self.status.version == 0;
        let first_seen = members.members().iter().map(|it| {
            let seen = self.first_seen.get(self.members.place(&it.address)?);
            seen.copied()
        });
        let new = if is_first { Moment::ZERO } else { now };
        Self {
            first_seen: first_seen.map(|seen| seen.unwrap_or(new)).collect(),
            status: SourceStatus {
                version: self.status.version.saturating_add(1).max(now.0),
                ..self.status
            },
            members: members.clone(),
        }
    }

    /// Its bytes.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.clear();
        self.status.encode(bytes);
        let never = std::iter::repeat(&Moment::ZERO);
        let first_seen = self.first_seen.iter().chain(never);
        for (member, seen) in self.members.members().iter().zip(first_seen) {
            let weight = u16::try_from(member.weight).unwrap_or(u16::MAX);
            let priority = u8::try_from(member.priority).unwrap_or(u8::MAX);
            bytes.extend_from_slice(&[member.verdict.code(), priority]);
            bytes.extend_from_slice(&weight.to_le_bytes());
            bytes.extend_from_slice(&seen.0.to_le_bytes());
            put_text(bytes, &member.address);
            put_text(bytes, member.zone.as_deref().unwrap_or_default());
        }
    }

    /// The record of these bytes; that of a source that was never asked if they are anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        Self::read(bytes).unwrap_or_default()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (status, mut rest) = SourceStatus::read(bytes)?;
        let (mut members, mut first_seen): (Vec<Member>, _) = (Vec::new(), Vec::new());
        while !rest.0.is_empty() {
            let [code, priority, low, high] = rest.take::<4>()?;
            first_seen.push(Moment(rest.number()?));
            let member = Member {
                verdict: Verdict::of(code)?,
                priority: priority.into(),
                weight: u16::from_le_bytes([low, high]).into(),
                address: rest.text()?.to_owned(),
                zone: Some(rest.text()?.to_owned()).filter(|zone| !zone.is_empty()),
            };
            let sound = u64::from(member.weight) <= MAX_WEIGHT
                && u64::from(member.priority) <= MAX_PRIORITY
                && members.len() < MAX_MEMBERS
                && members
                    .last()
                    .is_none_or(|last| last.address < member.address)
                && canonical_endpoint(&member.address).as_ref() == Some(&member.address);
            members.push(sound.then_some(member)?);
        }
        Some(Self {
            status,
            members: Membership(members),
            first_seen,
        })
    }
}

impl SourceStatus {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&[VERSION, self.state as u8]);
        let held = self.held.iter();
        let mut numbers = vec![
            self.version,
            self.asked.0,
            self.confirmed.0,
            self.since_unix,
            self.cursor,
            held.clone().count() as u64,
        ];
        for (at, missing) in held {
            numbers.extend([at.0, missing.len() as u64]);
            numbers.extend_from_slice(missing);
        }
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        put_text(bytes, shortened(&self.reason));
    }

    /// The status in the record of these bytes; that of a source that was never asked if they are
    /// anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        Self::read(bytes)
            .map(|(status, _)| status)
            .unwrap_or_default()
    }

    /// It, and what follows.
    fn read(bytes: &[u8]) -> Option<(Self, Fields<'_>)> {
        let mut rest = Fields::new(bytes)?;
        let [state] = rest.take::<1>()?;
        let mut status = Self {
            state: *SourceState::ALL.get(usize::from(state))?,
            version: rest.number()?,
            asked: Moment(rest.number()?),
            confirmed: Moment(rest.number()?),
            since_unix: rest.number()?,
            cursor: rest.number()?,
            ..Self::default()
        };
        if rest.number()? == 1 {
            let (at, count) = (Moment(rest.number()?), rest.number()?);
            let count = usize::try_from(count).ok()?;
            (count <= MAX_MEMBERS).then_some(())?;
            let mut missing = Vec::with_capacity(count);
            for _ in 0..count {
                missing.push(rest.number()?);
            }
            status.held = missing.is_sorted().then_some((at, missing));
        }
        status.reason = rest.text()?.to_owned();
        Some((status, rest))
    }
}

/// Adds a text behind its length.
fn put_text(bytes: &mut Vec<u8>, text: &str) {
    // All are short enough: an address, a zone, a reason that was shortened.
    let length = u8::try_from(text.len()).unwrap_or(0);
    bytes.push(length);
    bytes.extend_from_slice(text.as_bytes().get(..length.into()).unwrap_or_default());
}

/// At most [`MAX_TEXT`] bytes of a text.
fn shortened(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

/// What is left of a record's bytes.
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    /// The fields of a record of this version.
    fn new(bytes: &'b [u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&VERSION, rest) => Some(Self(rest)),
            _ => None,
        }
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        self.take::<8>().map(u64::from_le_bytes)
    }

    /// A text behind its length.
    fn text(&mut self) -> Option<&'b str> {
        let [length] = self.take::<1>()?;
        let (text, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }
}

/// The record of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRecord(RecordKey);

impl SourceRecord {
    /// The record of the upstream of this name.
    #[must_use]
    pub fn new(upstream: &str) -> Self {
        let owner = of_names(&[upstream]);
        Self(RecordKey::new(RecordKind::Source, owner, 0))
    }

    /// Its bytes, for [`SourceStatus::decode`] and [`Known::decode`].
    pub fn bytes<H: SharedData>(&self, host: &H) -> Vec<u8> {
        store::read(host, &self.0).unwrap_or_default()
    }

    /// What is known.
    pub fn read<H: SharedData>(&self, host: &H) -> Known {
        Known::decode(&self.bytes(host))
    }

    /// Changes what is known by `step`, which returns an answer and what is known from now on;
    /// `None` leaves it.
    ///
    /// # Errors
    /// [`Contended`]: nothing was written.
    pub fn update<H: SharedData, A>(
        &self,
        host: &H,
        step: impl Fn(Known) -> (A, Option<Known>),
    ) -> Result<A, Contended> {
        store::update(host, &self.0, |bytes| {
            let (answer, new) = step(Known::decode(bytes));
            match new {
                None => Step::Keep(answer),
                Some(new) => {
                    new.encode(bytes);
                    Step::Write(answer)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{any_membership, membership};
    use super::super::{Builder, Named};
    use super::*;
    use proptest::prelude::*;

    fn any_status() -> impl Strategy<Value = SourceStatus> {
        let held = proptest::option::of((
            any::<u64>().prop_map(Moment),
            proptest::collection::btree_set(any::<u64>(), 0..20)
                .prop_map(|ids| ids.into_iter().collect::<Vec<_>>()),
        ));
        (any::<[u64; 5]>(), 0usize..5, held, "[a-zé]{0,60}").prop_map(
            |([version, asked, confirmed, since_unix, cursor], state, held, reason)| SourceStatus {
                version,
                state: SourceState::ALL[state],
                asked: Moment(asked),
                confirmed: Moment(confirmed),
                since_unix,
                cursor,
                held,
                reason,
            },
        )
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(
            members in any_membership(),
            status in any_status(),
            cut in 0usize..2_000,
        ) {
            let first_seen = (0..members.len()).map(|n| Moment(n as u64)).collect();
            let known = Known { status, members, first_seen };
            let mut bytes = vec![9];
            known.encode(&mut bytes);
            prop_assert_eq!(SourceStatus::decode(&bytes), known.status.clone());
            prop_assert_eq!(Known::decode(&bytes), known.clone());
            // A part of it is none, or one with fewer endpoints: never one with others.
            let part = Known::decode(&bytes[..cut.min(bytes.len())]);
            let all = known.members.members();
            prop_assert!(all.starts_with(part.members.members()));
        }

        #[test]
        fn any_bytes_are_read_sanely(mut bytes: Vec<u8>) {
            let _ = (Known::decode(&bytes), SourceStatus::decode(&bytes));
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = (Known::decode(&bytes), SourceStatus::decode(&bytes));
        }

        /// One byte is wrong: what is read keeps the rules all the same.
        #[test]
        fn a_broken_record_names_no_impossible_endpoint(
            members in any_membership(), at: usize, byte: u8,
        ) {
            let mut bytes = Vec::new();
            Known { members, ..Known::default() }.encode(&mut bytes);
            let at = at % bytes.len();
            bytes[at] = byte;
            let mut builder = Builder::default();
            for it in Known::decode(&bytes).members.members() {
                let named = Named {
                    address: &it.address,
                    weight: it.weight.into(),
                    priority: it.priority.into(),
                    // May be any text.
                    zone: "",
                    verdict: it.verdict,
                };
                prop_assert!(builder.add(named).is_ok());
            }
            prop_assert!(builder.finish().is_ok());
        }
    }

    #[test]
    fn the_largest_record_is_small() {
        let status = SourceStatus {
            held: Some((Moment(1), vec![7; 1_000])),
            reason: "é".repeat(1_000),
            ..SourceStatus::default()
        };
        let members = membership(0..1_000);
        let mut bytes = Vec::new();
        Known {
            status,
            members,
            ..Known::default()
        }
        .encode(&mut bytes);
        assert!(bytes.len() < 40 << 10, "{}", bytes.len());
        let read = Known::decode(&bytes);
        assert_eq!(read.status.reason, "é".repeat(120));
        assert_eq!(read.members.len(), 1_000);
    }
}
