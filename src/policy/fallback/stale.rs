//! The last good copy of a response, for when the upstream has no good answer.
//!
//! haven copies a good response to a GET piece by piece while it passes, and keeps the copy when it
//! is complete; it delays nothing. The copy belongs to the route, scheme, host, path and query of
//! its request, the identity that the request came with, the request headers that the configuration
//! names, and those that its own `Vary` names. All of them are compared, so that no collision of hashes shows a client another's
//! response. [`rules`] decides what may be kept at all, [`table`] keeps it.
//!
//! Writing a response costs more than passing it. So each worker keeps a response up to [`AT_ONCE`]
//! times at once, and then at most once a second (or once per sixteenth of `max_age`, if that is
//! shorter). The copy of a rarely requested response is always the last one, that of a busy one is
//! about a second old at most.

pub mod config;
pub mod rules;
pub mod table;

use crate::base::hash::{KeyHasher, Seed};
use crate::base::headers::{HeaderMap, NameSet, parse_number};
use crate::base::ip::Ip;
use crate::base::time::{Moment, Nanos, UnixTime};
use crate::host::SharedData;
use crate::request::Request;
use crate::store::Contended;
use rules::{Terms, Unkept};
use std::cell::Cell;
use std::rc::Rc;
use table::{Place, SizeChange, StaleTable};

/// How often a worker keeps the same response without a pause.
pub const AT_ONCE: u64 = 8;
/// The longest pause after that.
const SPACING: Nanos = Nanos::from_secs(1);
/// Responses for which a worker remembers when it last kept them.
const REMEMBERED: usize = 512;
/// How far a record may be ahead of a worker's reading of the clock.
const CLOCK_SLACK: Nanos = Nanos::from_secs(1);

const RECORD_HEAD: usize = 28;

/// The kept responses of a fallback.
#[derive(Debug)]
pub struct Stale {
    config: config::Stale,
    table: StaleTable,
    seed: Seed,
    /// Headers that no `Vary` needs to name.
    telling: NameSet,
    /// When this worker may keep each again.
    recent: Vec<Cell<(u64, Moment)>>,
    /// Bytes of the copies that this worker is making.
    passing: Rc<Cell<usize>>,
}

/// A request whose response may be kept, or that a kept one may answer.
#[derive(Clone, Debug)]
pub struct StaleRequest {
    key: Vec<u8>,
    tag: u64,
    headers: HeaderMap,
    /// A GET: its response may be kept.
    get: bool,
}

impl StaleRequest {
    /// The request's headers.
    #[must_use]
    pub const fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

/// The copy of a response that is passing.
#[derive(Debug)]
pub struct Draft {
    terms: Terms,
    received: Moment,
    varied: Vec<u8>,
    head: HeaderMap,
    body: Vec<u8>,
    /// Its `content-length`.
    length: Option<usize>,
    /// Its end can be told from its upstream's.
    framed: bool,
    client: Option<Ip>,
    passing: Passing,
}

impl Draft {
    /// The same, as what this client has had kept.
    #[must_use]
    pub fn of_client(self, client: Option<Ip>) -> Self {
        Self { client, ..self }
    }

    /// Whether all of the body is there that its response has announced.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.length.is_none_or(|length| length == self.body.len())
    }
}

/// The port that a URL of this scheme need not name.
fn usual_port(scheme: &[u8]) -> &'static [u8] {
    if scheme == b"https" { b"443" } else { b"80" }
}

/// A draft's part of the worker's memory.
#[derive(Debug)]
struct Passing(Rc<Cell<usize>>, usize);

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(self.1));
    }
}

/// A kept response.
#[derive(Clone, Debug)]
pub struct StaleResponse {
    /// Its age in whole seconds.
    pub age: u64,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl Stale {
    /// The responses of the fallback `name`. `seed` is shared by all workers.
    #[must_use]
    pub fn new(name: &str, config: config::Stale, seed: Seed) -> Self {
        let largest = config.max_body.saturating_add(config::Stale::HEAD);
        Self {
            table: StaleTable::new(name, config.max_entries, config.max_bytes, largest),
            seed,
            telling: rules::telling(config.public),
            recent: vec![Cell::new((0, Moment::ZERO)); REMEMBERED],
            passing: Rc::default(),
            config,
        }
    }

    /// The engine calls this once, when it starts; see [`StaleTable::adopt`].
    ///
    /// # Errors
    /// As there.
    pub fn adopt<H: SharedData>(&self, host: &H) -> Result<SizeChange, Contended> {
        self.table.adopt(host)
    }

    /// What has to be remembered of this request; `None`: its response may neither be kept nor come
    /// from the table. `end`: no body follows; with one it asks for something that no key has.
    #[must_use]
    pub fn ask(&self, request: &Request<'_>, end: bool) -> Option<StaleRequest> {
        let get = request.method == b"GET";
        if !(get || request.method == b"HEAD")
            || !end
            || request.is_grpc()
            || !rules::lets_keep(request.headers.map())
        {
            return None;
        }
        let headers = request.headers.map();
        let scheme = headers.get(":scheme").unwrap_or_default();
        let mut authority = request.host()?.to_ascii_lowercase();
        if let Some(port) = request.port().filter(|port| *port != usual_port(scheme)) {
            authority.push(b':');
            authority.extend_from_slice(port);
        }
        let target = headers.get(":path")?;
        let target = target.split(|b| *b == b'#').next().unwrap_or(target);
        let mut key = Vec::with_capacity(256);
        for part in [request.route.as_bytes(), scheme, &authority, target] {
            push_part(&mut key, part);
        }
        push_values(&mut key, &self.config.vary, headers);
        // One pass, over what is there: few requests have any of them.
        for (name, value) in headers.iter() {
            if let Some(name) = self.telling.find(name) {
                push_part(&mut key, name.as_bytes());
                push_part(&mut key, value);
            }
        }
        if key.len() > config::Stale::HEAD {
            return None;
        }
        Some(StaleRequest {
            tag: self.hash(&key),
            key,
            headers: headers.clone(),
            get,
        })
    }

    /// Begins a copy of this response, if it is due. `wall`: what time it is; read only then. `None`:
    /// it is not due, or none that anybody would want kept.
    ///
    /// # Errors
    /// Why it may not be kept.
    pub fn begin(
        &self,
        asked: &StaleRequest,
        response: &HeaderMap,
        now: Moment,
        wall: impl FnOnce() -> UnixTime,
    ) -> Result<Option<Draft>, Unkept> {
        if !asked.get || response.get(":status") != Some(b"200") {
            return Ok(None);
        }
        let length = match response.get("content-length") {
            Some(length) => {
                let length = parse_number(length).ok_or(Unkept::Headers)?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length > self.config.max_body {
                    return Err(Unkept::TooLarge);
                }
                Some(length)
            }
            None => None,
        };
        let by_cookie = self.config.vary.iter().any(|name| name == "cookie");
        let names = rules::varied(response).ok_or(Unkept::Vary)?;
        let terms = rules::terms(&asked.headers, response, &names, by_cookie)?;
        let mut varied = Vec::new();
        push_values(&mut varied, &names, &asked.headers);
        // Before the headers are copied: most responses to a busy request end here.
        if !self.is_due(asked.tag ^ self.hash(&varied).rotate_left(1), now) {
            return Ok(None);
        }
        let terms = terms.aged(rules::apparent_age(response, wall()));
        let terms = terms
            .filter(|terms| Nanos::from_secs(terms.age.into()) <= self.config.max_age)
            .ok_or(Unkept::Expired)?;
        let head = rules::kept(response).ok_or(Unkept::Headers)?;
        let size = [
            asked.key.len(),
            varied.len(),
            head.as_bytes().len(),
            RECORD_HEAD,
            table::SLOT_HEAD,
        ];
        if size.into_iter().fold(0, usize::saturating_add) > config::Stale::HEAD {
            return Err(Unkept::Headers);
        }
        let passing = Passing(Rc::clone(&self.passing), 0);
        Ok(Some(Draft {
            terms,
            received: now,
            varied,
            head,
            body: Vec::new(),
            framed: length.is_some() || rules::is_chunked(response),
            length,
            client: None,
            passing,
        }))
    }

    /// Adds a piece of the body.
    ///
    /// # Errors
    /// The copy has become too long, or ends with its upstream's connection, and is dropped: a server
    /// that dies would have cut it unseen.
    pub fn add(&self, mut draft: Draft, piece: &[u8]) -> Result<Draft, Unkept> {
        self.check_room(&draft, piece.len())?;
        draft.body.extend_from_slice(piece);
        draft.passing.1 = draft.passing.1.saturating_add(piece.len());
        self.passing
            .set(self.passing.get().saturating_add(piece.len()));
        Ok(draft)
    }

    /// Whether a piece of this length may still be added.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check_room(&self, draft: &Draft, piece: usize) -> Result<(), Unkept> {
        if !draft.framed {
            Err(Unkept::NoEnd)
        } else if draft.body.len().saturating_add(piece) > self.config.max_body {
            Err(Unkept::TooLarge)
        } else if self.passing.get().saturating_add(piece) > self.config.max_bytes {
            Err(Unkept::NoRoom)
        } else {
            Ok(())
        }
    }

    /// Keeps a copy that is complete. `ticket` is random. Returns what changed; `None`: another
    /// worker was faster, or the copy is not complete (see [`Draft::is_whole`]).
    ///
    /// # Errors
    /// [`Contended`]: it was not kept.
    pub fn keep<H: SharedData>(
        &self,
        host: &H,
        asked: &StaleRequest,
        draft: &Draft,
        ticket: u64,
    ) -> Result<Option<SizeChange>, Contended> {
        if !draft.is_whole() {
            return Ok(None);
        }
        let Some(record) = record(asked, draft) else {
            return Ok(None);
        };
        self.table.put(
            host,
            Place {
                tag: asked.tag,
                variant: self.hash(&draft.varied),
                client: draft
                    .client
                    .map_or(0, |client| self.hash(&client.0.to_be_bytes())),
            },
            &record,
            ticket,
            draft.received,
        )
    }

    /// The kept response to this request, if it may be used now.
    pub fn find<H: SharedData>(
        &self,
        host: &H,
        asked: &StaleRequest,
        now: Moment,
    ) -> Option<StaleResponse> {
        self.table
            .find(host, asked.tag, now, |record| self.read(record, asked, now))
    }

    fn read(&self, record: &[u8], asked: &StaleRequest, now: Moment) -> Option<StaleResponse> {
        let (numbers, rest) = record.split_first_chunk::<RECORD_HEAD>()?;
        let (kept, lengths) = numbers.split_first_chunk::<8>()?;
        let kept = Moment(u64::from_le_bytes(*kept));
        let (lengths, _) = lengths.as_chunks::<4>();
        let mut lengths = lengths.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let mut next = || lengths.next().unwrap_or(0);
        let (age, limit) = (next(), next());
        let mut size = || usize::try_from(next()).unwrap_or(usize::MAX);
        let (key, varied, head) = (size(), size(), size());
        let (key, rest) = rest.split_at_checked(key)?;
        let (varied, rest) = rest.split_at_checked(varied)?;
        let (head, body) = rest.split_at_checked(head)?;
        if key != asked.key || !has_values(varied, &asked.headers) || kept > now.plus(CLOCK_SLACK) {
            return None;
        }
        let age = now.since(kept).plus(Nanos::from_secs(age.into()));
        let limit = if limit == u32::MAX {
            Nanos::MAX
        } else {
            Nanos::from_secs(limit.into())
        };
        if age > limit.min(self.config.max_age) {
            return None;
        }
        let headers = HeaderMap::from_host(head.to_vec());
        let body = body.to_vec();
        rules::are_sound(&headers).then_some(StaleResponse {
            age: age.as_secs(),
            headers,
            body,
        })
    }

    /// Whether this worker may keep the response again: a rate limit per response, by the virtual
    /// scheduling of GCRA.
    fn is_due(&self, id: u64, now: Moment) -> bool {
        let spacing = Nanos(self.config.max_age.0 / 16).min(SPACING);
        let place = usize::try_from(id)
            .unwrap_or(usize::MAX)
            .checked_rem(self.recent.len());
        let Some(cell) = place.and_then(|at| self.recent.get(at)) else {
            return true;
        };
        let (known, next) = cell.get();
        let next = if known == id { next.max(now) } else { now };
        if next.since(now) > spacing.times(AT_ONCE.saturating_sub(1)) {
            return false;
        }
        cell.set((id, next.plus(spacing)));
        true
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        let mut hasher = KeyHasher::new(self.seed);
        hasher.part(bytes);
        hasher.finish()
    }
}

/// The record: when the response came, its age then, the age up to which it may be used, the
/// lengths of key, varied values and headers, then these three and the body.
fn record(asked: &StaleRequest, draft: &Draft) -> Option<Vec<u8>> {
    let head = draft.head.as_bytes();
    let mut record = Vec::with_capacity(draft.body.len().saturating_add(config::Stale::HEAD));
    record.extend_from_slice(&draft.received.0.to_le_bytes());
    record.extend_from_slice(&draft.terms.age.to_le_bytes());
    record.extend_from_slice(&draft.terms.limit.to_le_bytes());
    let parts = [asked.key.as_slice(), &draft.varied, head];
    for part in parts {
        record.extend_from_slice(&u32::try_from(part.len()).ok()?.to_le_bytes());
    }
    for part in parts {
        record.extend_from_slice(part);
    }
    record.extend_from_slice(&draft.body);
    Some(record)
}

fn push_part(to: &mut Vec<u8>, part: &[u8]) {
    to.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
    to.extend_from_slice(part);
}

/// Adds each name, and its values in the request as one list; a missing header is not an empty one.
fn push_values(to: &mut Vec<u8>, names: &[String], request: &HeaderMap) {
    for name in names {
        push_part(to, name.as_bytes());
        push_value(to, name, request);
    }
}

fn push_value(to: &mut Vec<u8>, name: &str, request: &HeaderMap) {
    let values: Vec<&[u8]> = request.all(name).collect();
    if values.is_empty() {
        to.extend_from_slice(&u32::MAX.to_le_bytes());
    } else {
        push_part(to, &values.join(&b", "[..]));
    }
}

/// Whether the request has the values in `varied`.
fn has_values(mut varied: &[u8], request: &HeaderMap) -> bool {
    let mut own = Vec::new();
    while !varied.is_empty() {
        let Some((length, rest)) = varied.split_first_chunk::<4>() else {
            return false;
        };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let Some((name, rest)) = rest.split_at_checked(length) else {
            return false;
        };
        let Ok(name) = std::str::from_utf8(name) else {
            return false;
        };
        own.clear();
        push_value(&mut own, name, request);
        let Some(rest) = rest.strip_prefix(own.as_slice()) else {
            return false;
        };
        varied = rest;
    }
    true
}

#[cfg(test)]
mod tests;
