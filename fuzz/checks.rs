//! What must hold of any input, one check for each fuzz target. A check panics if it does not hold.
//!
//! Two programs run them: the targets beside this file, for as long as one likes, and
//! `tests/replay.rs` in every `make test`, over the kept corpus and some mutations of it. They go
//! through whole engines on the simulated host wherever they can, so that they speak of what a
//! client gets and not of how it is done.

use haven::base::hash::{KeyHasher, Seed};
use haven::base::headers::HeaderMap;
use haven::base::ip::Ip;
use haven::base::time::{Moment, Nanos, UnixTime};
use haven::document::{self, ClientIp, Config, KeyPart, MissingKey};
use haven::engine::Engine;
use haven::engine::chain::{Action, Exchange};
use haven::host::sim::{HostKind, Machine, SimStream, Worker};
use haven::host::{CallAnswer, MetricKind, Metrics, Property, SharedData};
use haven::policy::circuit_breaker::CircuitBreaker;
use haven::policy::circuit_breaker::Phase;
use haven::policy::concurrency::fair::{self, FairRecord};
use haven::policy::discovery::record::{SourceRecord, SourceState};
use haven::policy::discovery::{Builder, Membership, Named, consul, envoy};
use haven::policy::health_check::EndpointHealth;
use haven::policy::health_check::{grpc, report};
use haven::request::Request;
use haven::request::key;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

/// A value that each thread makes once: a configuration has handles that stay in their thread.
macro_rules! once_per_thread {
    ($type:ty, $make:expr) => {{
        thread_local! {
            static MADE: &'static $type = Box::leak(Box::new($make()));
        }
        MADE.with(|made| *made)
    }};
}

/// A proxy with one worker.
struct Proxy {
    machine: Rc<Machine>,
    worker: Worker,
    engine: Rc<Engine>,
}

/// The configuration without what it has by default and nginx lacks.
fn fit(config: &Config, kind: HostKind) -> Config {
    let mut config = config.clone();
    config.health.grpc &= kind == HostKind::Envoy;
    config
}

impl Proxy {
    fn new(config: &Config, rules: HostKind) -> Self {
        // What nginx lacks is left to Envoy.
        let config = fit(config, rules);
        let rules = match config.check_host(rules) {
            Ok(()) => rules,
            Err(_) => HostKind::Envoy,
        };
        let config = &config;
        let machine = Machine::new(rules, 7);
        let worker = Worker(Rc::clone(&machine));
        let engine = Rc::new(
            Engine::new(config.clone(), &worker).expect("a valid configuration becomes an engine"),
        );
        Self {
            machine,
            worker,
            engine,
        }
    }

    /// Another worker of it.
    fn beside(&self, config: &Config) -> Self {
        let (machine, worker) = (Rc::clone(&self.machine), Worker(Rc::clone(&self.machine)));
        let engine = Rc::new(
            Engine::new(fit(config, machine.kind()), &worker)
                .expect("what was accepted once is accepted again"),
        );
        Self {
            machine,
            worker,
            engine,
        }
    }

    /// Sends a request as far as the router.
    fn begin(&self, stream: &SimStream) -> Exchange {
        let mut exchange = Exchange::new(Rc::clone(&self.engine));
        let action = exchange.on_request(&self.worker, stream);
        assert_eq!(
            action == Action::Stop,
            stream.replied().is_some(),
            "what is stopped is answered, and nothing else"
        );
        exchange
    }

    /// A whole request that its upstream answers with 200. The status is that which the client
    /// sees.
    fn status(&self, headers: &[(&str, &[u8])]) -> u16 {
        self.ask(headers, 200).1
    }

    fn ask(&self, headers: &[(&str, &[u8])], answer: u16) -> (SimStream, u16) {
        let stream = SimStream::request("GET", "/", headers).on(self.machine.kind());
        let mut exchange = self.begin(&stream);
        if stream.replied().is_none() {
            stream.answer(answer, Some(ENDPOINT), &[]);
            exchange.on_response(&self.worker, &stream);
        }
        exchange.on_end(&self.worker);
        let status = stream.replied().map_or(answer, |reply| reply.status);
        (stream, status)
    }

    /// No request is in flight.
    fn assert_idle(&self) {
        for (name, value) in self.machine.metrics_of("haven_endpoint_in_flight") {
            assert_eq!(value, 0, "{name}: given back not at all, or twice");
        }
    }
}

const ENDPOINT: &str = "10.0.0.1:80";

fn parsed(json: &str) -> Config {
    document::parse(json.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// A document is refused with a reason, or becomes an engine that serves requests; the same each
/// time, on a reload as well.
pub fn check_config(data: &[u8]) {
    let config = match document::parse(data) {
        Ok(config) => config,
        Err(errors) => {
            assert!(!errors.to_string().is_empty(), "a refusal says why");
            return;
        }
    };
    assert_eq!(
        document::parse(data).as_ref().ok(),
        Some(&config),
        "the same bytes mean the same"
    );
    let mut proxy = Proxy::new(&config, HostKind::Envoy);
    for _ in 0..2 {
        for (method, target) in [
            ("GET", "/"),
            ("POST", "/users/7/orders?q=1"),
            ("GET", "/health"),
            ("GET", "/readyz"),
        ] {
            let stream = SimStream::request(
                method,
                target,
                &[
                    ("x-key", b"k"),
                    ("x-forwarded-for", b"10.1.2.3"),
                    ("x-request-id", b"\"<>"),
                    ("cookie", b"sid=1"),
                ],
            );
            let mut exchange = proxy.begin(&stream);
            if stream.replied().is_none() {
                stream.answer(503, Some(ENDPOINT), &[("retry-after", b"1")]);
                exchange.on_response(&proxy.worker, &stream);
            }
            exchange.on_end(&proxy.worker);
            assert_sound(&stream);
        }
        proxy.machine.advance(Nanos::from_secs(1));
        proxy.engine.tick(&proxy.worker);
        proxy.assert_idle();
        let engine = Engine::new(fit(&config, proxy.machine.kind()), &proxy.worker)
            .expect("what was accepted once is accepted on a reload");
        proxy.engine = Rc::new(engine);
    }
}

/// The parts of a request, its key and its hash are those of a plain model; the same parts have the
/// same hash, however the header map is written, and an override finds the key that it spells out.
///
/// The bytes are taken as a host's header map, and once more as lines of `name: value`.
pub fn check_request_key(data: &[u8]) {
    check_map(&HeaderMap::from_host(data.to_vec()));
    check_map(&HeaderMap::from_pairs(&lines(data)));
}

/// Name and value.
type Pair = (Vec<u8>, Vec<u8>);

fn lines(data: &[u8]) -> Vec<Pair> {
    let pair = |line: &[u8]| {
        // A colon at the start belongs to the name.
        let at = line
            .iter()
            .skip(1)
            .position(|b| *b == b':')
            .map_or(line.len(), |at| at + 1);
        (
            line[..at].to_vec(),
            line.get(at + 1..)
                .unwrap_or(&[])
                .trim_ascii_start()
                .to_vec(),
        )
    };
    data.split(|b| *b == b'\n').map(pair).collect()
}

const SEED: Seed = Seed(3, 5);

fn parts() -> Vec<KeyPart> {
    let mut parts = vec![
        KeyPart::ClientIp,
        KeyPart::Method,
        KeyPart::Path,
        KeyPart::Host,
        KeyPart::Route,
    ];
    parts.extend([
        KeyPart::Header("x-key".into()),
        KeyPart::Cookie("sid".into()),
        KeyPart::Query("q".into()),
    ]);
    parts.extend([0, 1, 255].map(KeyPart::PathSegment));
    parts
}

/// The hash of each part alone, and of all together; `None` where a part is missing.
fn hashes(headers: &HeaderMap) -> Vec<Option<u64>> {
    let request = request(headers);
    let parts = parts();
    let hash = |parts: &[KeyPart]| {
        let mut hasher = KeyHasher::new(SEED);
        key::hash(parts, MissingKey::Skip, &request, &mut hasher).then(|| hasher.finish())
    };
    let mut all: Vec<_> = parts
        .iter()
        .map(|part| hash(std::slice::from_ref(part)))
        .collect();
    all.push(hash(&parts));
    let mut shared = KeyHasher::new(SEED);
    assert!(
        key::hash(&parts, MissingKey::Share, &request, &mut shared),
        "where missing keys share, there is always one"
    );
    all.push(Some(shared.finish()));
    all
}

fn request(headers: &HeaderMap) -> Request<'_> {
    let prefixes = ClientIp::default();
    let client = headers.get("x-ip").and_then(Ip::parse);
    Request {
        client: client.map(|ip| ip.masked(prefixes.ipv4_prefix, prefixes.ipv6_prefix)),
        route: "r",
        ..Request::new(headers)
    }
}

fn check_map(headers: &HeaderMap) {
    let pairs: Vec<Pair> = headers
        .iter()
        .map(|(n, v)| (n.to_vec(), v.to_vec()))
        .collect();
    // From the end malformed bytes may read otherwise; they must not panic.
    let _ = headers.iter().rev().count();
    let found = hashes(headers);
    let same = |changed: &[Pair], why: &str| {
        assert_eq!(hashes(&HeaderMap::from_pairs(changed)), found, "{why}");
    };
    same(&pairs, "what was read, written anew");
    let change = |with: &dyn Fn(&[u8], &[u8]) -> Pair| -> Vec<Pair> {
        pairs.iter().map(|(n, v)| with(n, v)).collect()
    };
    let is_host =
        |n: &[u8]| n.eq_ignore_ascii_case(b":authority") || n.eq_ignore_ascii_case(b"host");
    // Names of pseudo-headers come from the proxy, always in lower case.
    let upper = |n: &[u8], v: &[u8]| {
        (
            if n.starts_with(b":") {
                n.to_vec()
            } else {
                n.to_ascii_uppercase()
            },
            v.to_vec(),
        )
    };
    same(&change(&upper), "the case of names means nothing");
    let loud = |n: &[u8], v: &[u8]| {
        (
            n.to_vec(),
            if is_host(n) {
                v.to_ascii_uppercase()
            } else {
                v.to_vec()
            },
        )
    };
    same(&change(&loud), "nor does that of hosts");
    let ported = |n: &[u8], v: &[u8]| {
        let bare = is_host(n) && (!v.contains(&b':') || v.ends_with(b"]"));
        (
            n.to_vec(),
            if bare {
                [v, b":8443"].concat()
            } else {
                v.to_vec()
            },
        )
    };
    same(&change(&ported), "nor does the port");
    let mut more = pairs.clone();
    more.insert(0, (b"zz-other".to_vec(), b"1".to_vec()));
    more.push((b"x-key2".to_vec(), b"2".to_vec()));
    same(&more, "nor do other headers");

    let request = request(headers);
    let Some(values) = model(&pairs, &request) else {
        return;
    };
    let parts = parts();
    for ((part, value), hash) in parts.iter().zip(&values).zip(&found) {
        let mut hasher = KeyHasher::new(SEED);
        let expected = match value {
            Given::Nothing => None,
            Given::One(value) => {
                hasher.part(value);
                Some(hasher.finish())
            }
            Given::Several => {
                hasher.absent();
                hasher.absent();
                Some(hasher.finish())
            }
        };
        assert_eq!(*hash, expected, "{part:?}: {value:?}");
    }
    let texts: Option<Vec<String>> = parts
        .iter()
        .zip(&values)
        .map(|(part, value)| match part {
            KeyPart::ClientIp => request
                .client
                .map(|ip| Ipv6Addr::from_bits(ip.0).to_string()),
            _ => {
                let Given::One(value) = value else {
                    return None;
                };
                let text = String::from_utf8(value.clone()).ok()?;
                // Spelt so that what it means is this value.
                Some(match part {
                    KeyPart::Path | KeyPart::PathSegment(_) => text.replace('%', "%25"),
                    KeyPart::Cookie(_) => format!("\"{text}\""),
                    KeyPart::Host if !text.is_empty() => format!("{text}."),
                    _ => text,
                })
            }
        })
        .collect();
    if let Some(texts) = texts {
        let spelt = key::of_override(&parts, &texts, &ClientIp::default(), SEED);
        assert_eq!(
            Some(spelt),
            found[parts.len()],
            "an override finds its key: {texts:?}"
        );
    }
}

/// What a request has of a part of a key.
#[derive(Clone, Debug, PartialEq)]
enum Given {
    Nothing,
    One(Vec<u8>),
    Several,
}

impl From<Option<Vec<u8>>> for Given {
    fn from(value: Option<Vec<u8>>) -> Self {
        value.map_or(Self::Nothing, Self::One)
    }
}

/// The one value of those, if all are alike.
fn one_of(values: &[Vec<u8>]) -> Given {
    match values {
        [] => Given::Nothing,
        [first, rest @ ..] if rest.iter().all(|it| it == first) => Given::One(first.clone()),
        _ => Given::Several,
    }
}

/// Percent decoding; what is no encoding stays.
fn decoded(bytes: &[u8], plus: bool) -> Vec<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let digits = (bytes.get(at + 1), bytes.get(at + 2));
        let byte = match (bytes[at], digits) {
            (b'%', (Some(high), Some(low))) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match byte {
            Some((high, low)) => out.push(high << 4 | low),
            None if plus && bytes[at] == b'+' => out.push(b' '),
            None => out.push(bytes[at]),
        }
        at += if byte.is_some() { 3 } else { 1 };
    }
    out
}

/// The values of [`parts`], found the slow way; `None` for a map that no proxy makes.
fn model(pairs: &[Pair], request: &Request<'_>) -> Option<Vec<Given>> {
    let all = |name: &str| -> Vec<&Vec<u8>> {
        pairs
            .iter()
            .filter(|(n, _)| n.to_ascii_lowercase() == name.as_bytes())
            .map(|(_, v)| v)
            .collect()
    };
    let first = |name: &str| all(name).first().map(|value| value.to_vec());
    let before = |bytes: &[u8], end: u8| {
        bytes
            .split(|b| *b == end)
            .next()
            .unwrap_or_default()
            .to_vec()
    };
    let (methods, paths) = (all(":method"), all(":path"));
    if methods.len() > 1
        || paths.len() > 1
        || pairs
            .iter()
            .any(|(n, _)| n.starts_with(b":") && *n != n.to_ascii_lowercase())
    {
        return None;
    }
    let target = before(&first(":path").unwrap_or_default(), b'#');
    let path = before(&target, b'?');
    let query = target.get(path.len() + 1..).unwrap_or_default().to_vec();
    let host = first(":authority")
        .or_else(|| first("host"))
        .map(|mut host| {
            if let Some(colon) = host.iter().rposition(|b| *b == b':')
                && !host[colon..].contains(&b']')
            {
                host.truncate(colon);
            }
            if host.len() > 1 && host.ends_with(b".") {
                host.pop();
            }
            host.to_ascii_lowercase()
        });
    let cookie = all("cookie")
        .iter()
        .flat_map(|line| line.split(|b| *b == b';'))
        .find_map(|pair| {
            let pair = pair.trim_ascii();
            let value = pair.strip_prefix(b"sid=")?;
            let quoted = value.len() > 1 && value.starts_with(b"\"") && value.ends_with(b"\"");
            Some(value[usize::from(quoted)..value.len() - usize::from(quoted)].to_vec())
        });
    let parameters: Vec<_> = query
        .split(|b| *b == b'&')
        .filter_map(|pair| {
            let name = before(pair, b'=');
            let value = pair.get(name.len() + 1..).unwrap_or_default();
            (decoded(&name, true) == b"q").then(|| decoded(value, true))
        })
        .collect();
    let keys: Vec<_> = all("x-key").into_iter().cloned().collect();
    let mut segments: Vec<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
    if segments.len() > 1 && segments[0].is_empty() {
        segments.remove(0);
    }
    let segment = |at: usize| {
        segments
            .get(at)
            .filter(|segment| !segment.is_empty())
            .map(|segment| decoded(segment, false))
    };
    let client = request.client.map(|ip| ip.0.to_be_bytes().to_vec());
    let mut values = vec![
        client.into(),
        Given::One(first(":method").unwrap_or_default()),
        Given::One(decoded(&path, false)),
        host.into(),
        Given::One(b"r".to_vec()),
    ];
    values.extend([one_of(&keys), cookie.into(), one_of(&parameters)]);
    values.extend([0, 1, 255].map(|at| segment(at).into()));
    Some(values)
}

/// Whose bucket a request draws from is decided by the trusted entry alone: what a client writes
/// left of it changes nothing, all spellings of an address are one client, and without an address
/// there it is the connection's.
///
/// The first byte says what is trusted: `1`, `2` or `3` hops of `X-Forwarded-For`, anything else
/// for `X-Real-IP`. Each line that follows is the value of one header.
pub fn check_client_ip(data: &[u8]) {
    let configs = once_per_thread!(Vec<Config>, || {
        let sources = [
            ("x-forwarded-for", 1),
            ("x-forwarded-for", 2),
            ("x-forwarded-for", 3),
            ("x-real-ip", 1),
        ];
        let config = |(source, hops)| {
            parsed(&format!(
                r#"{{"client_ip": {{"source": "{source}", "trusted_hops": {hops}}},
                    "rate_limits": {{"l": {{"limit": 1, "period": "1h", "key": ["client_ip"], "headers": "none"}}}},
                    "routes": [{{"name": "r", "rate_limits": ["l"]}}]}}"#
            ))
        };
        sources.map(config).into()
    });
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let hops = match first {
        b'1'..=b'3' => usize::from(first - b'0'),
        _ => 0,
    };
    let config = &configs[hops.checked_sub(1).unwrap_or(3)];
    let name = if hops == 0 {
        "x-real-ip"
    } else {
        "x-forwarded-for"
    };
    let values: Vec<&[u8]> = rest.split(|b| *b == b'\n').collect();
    let proxy = Proxy::new(config, HostKind::Envoy);
    let ask = |values: &[&[u8]]| {
        let headers: Vec<(&str, &[u8])> = values.iter().map(|value| (name, *value)).collect();
        proxy.status(&headers)
    };
    assert_eq!(
        ask(&values),
        200,
        "every client has a bucket of its own, and this is the first to come"
    );

    let joined = values.join(&b',');
    let entries: Vec<&[u8]> = joined.split(|b| *b == b',').collect();
    let trusted = match hops {
        // Repeated lines are one value, which is no address.
        0 => values.first().copied().filter(|_| values.len() == 1),
        _ => entries.len().checked_sub(hops).map(|at| entries[at]),
    };
    if let Some(at) = entries.len().checked_sub(hops).filter(|_| hops > 0) {
        let kept = entries[at..].join(&b',');
        let forged = [b"6.6.6.6, unknown,,[::1]:9,\xff," as &[u8], &kept].concat();
        for values in [
            &[kept.as_slice()][..],
            &[forged.as_slice()],
            &[b"8.8.8.8", b"", &kept],
        ] {
            assert_eq!(
                ask(values),
                429,
                "the client is the same, whatever stands left of the trusted entry"
            );
        }
    }

    let parsed = trusted.and_then(Ip::parse);
    if let Some(text) = trusted.and_then(|bytes| std::str::from_utf8(bytes.trim_ascii()).ok()) {
        assert_parses_as_in_std(text);
    }
    let client = parsed
        .unwrap_or(Ip(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().to_bits()))
        .masked(32, 64);
    let repeated = |text: &str| vec![text; hops.max(1)].join(",");
    for spelling in spellings(client) {
        assert_eq!(
            ask(&[repeated(&spelling).as_bytes()]),
            429,
            "{spelling} is the same client"
        );
    }
    let neighbour = Ip(client.0 ^ if client.is_v4() { 1 } else { 1 << 64 });
    for (spelling, status) in spellings(neighbour).iter().zip([200, 429]) {
        assert_eq!(
            ask(&[repeated(spelling).as_bytes()]),
            status,
            "{spelling} is another client, and only one"
        );
    }
}

/// What the standard library takes for an address is that address.
fn assert_parses_as_in_std(text: &str) {
    let known = text
        .parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    // A zone names an interface of another machine: not an address to us.
    if let Some(ip) = known.filter(|_| !text.contains('%')) {
        let bits = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        assert_eq!(Ip::parse(text.as_bytes()), Some(Ip(bits)), "{text}");
    }
}

fn spellings(ip: Ip) -> Vec<String> {
    let v6 = Ipv6Addr::from_bits(ip.0);
    let groups = v6.segments().map(|group| format!("{group:04X}")).join(":");
    let mut all = vec![
        groups.clone(),
        v6.to_string(),
        format!("[{v6}]"),
        format!(" [{groups}]:65536\t"),
    ];
    match v6.to_ipv4_mapped() {
        Some(v4) => all.extend([v4.to_string(), format!("{v4}:0")]),
        // The interface's half does not tell clients apart.
        None => all.push(Ipv6Addr::from_bits(ip.0 | 0xffff).to_string()),
    }
    all
}

/// A request costs what its header says, at least 1, cut to `max`, or else the default: digits alone say
/// anything, however many. A cost above the burst is refused without a promise, and costs nothing.
///
/// The first byte chooses one of four limits, the rest is the header's value.
pub fn check_cost(data: &[u8]) {
    /// Default, max and burst.
    const CASES: [(u64, u64, u64); 4] = [
        (1, 100, 1_000),
        (5, 1_000_000_000, 1_000_000),
        (0, 1, 10),
        (7, 7, 7),
    ];
    let configs = once_per_thread!(Vec<Config>, || {
        let config = |(default, max, burst)| {
            parsed(&format!(
                r#"{{"rate_limits": {{"l": {{"limit": {burst}, "cost": {{"header": "x-cost", "default": {default}, "max": {max}}}}}}},
                    "routes": [{{"name": "r", "rate_limits": ["l"]}}]}}"#
            ))
        };
        CASES.map(config).into()
    });
    let Some((first, value)) = data.split_first() else {
        return;
    };
    let case = usize::from(first % 4);
    let (default, max, burst) = CASES[case];
    let digits = value.trim_ascii();
    let cost = if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        default
    } else {
        digits
            .iter()
            .fold(0, |n: u64, digit| {
                n.saturating_mul(10)
                    .saturating_add(u64::from(digit - b'0'))
                    .min(max)
            })
            .max(1)
    };
    assert!(cost <= max);
    let proxy = Proxy::new(&configs[case], HostKind::Envoy);
    let (stream, status) = proxy.ask(&[("x-cost", value)], 200);
    let left = stream.response_header("ratelimit").and_then(|state| {
        let (_, rest) = state.split_once(";r=")?;
        rest.split(';').next()?.parse::<u64>().ok()
    });
    let value = value.escape_ascii();
    if cost > burst {
        assert_eq!(
            (status, left),
            (429, Some(burst)),
            "{value}: refused for ever, and nothing spent"
        );
        assert_eq!(
            stream.response_header("retry-after"),
            None,
            "{value}: no time makes it pass"
        );
    } else {
        assert_eq!((status, left), (200, Some(burst - cost)), "{value}");
    }
}

/// Shared records may hold anything: another version, half a write, noise. Nothing panics, no limit
/// admits more than its burst at once (and what workers had leased before), no breaker more than
/// its trial calls, the moments that a leaky bucket gives out are spaced, a promised wait holds;
/// and after one request and the time that a full bucket, or an open breaker, takes at most, all is
/// as ever.
///
/// The first byte chooses limits and breaker, the second the clock and the host; the third is the
/// place of the remaining bytes in the record that was there, or 255: they replace it, or 254: they
/// are numbers to be added to those of its first slot.
pub fn check_records(data: &[u8]) {
    let [which, how, place, bytes @ ..] = data else {
        return;
    };
    check_bucket_record(*which, *how, *place, bytes);
    check_queue_record(*which, *how, *place, bytes);
    check_leased_record(*which, *how, *place, bytes);
    check_breaker_record(*which, *how, *place, bytes);
    check_stale_record(*which, *how, *place, bytes);
    check_fair_record(*how, *place, bytes);
}

/// Of fair shares: who has nothing in flight finds the room that a share leaves, the limit holds,
/// and what no worker writes again is soon forgotten.
fn check_fair_record(how: u8, place: u8, bytes: &[u8]) {
    let config = once_per_thread!(Config, || {
        parsed(
            r#"{"concurrency_limits": {"c": {"algorithm": "fixed", "limit": 10, "fair": [{"header": "x-tenant"}]}},
                "routes": [{"name": "r", "concurrency_limit": "c", "criticality": "critical_plus"}]}"#,
        )
    });
    /// Eleven requests at once of one tenant. Returns how many were admitted.
    fn admitted(proxy: &Proxy, tenant: &[u8]) -> usize {
        let mut flights: Vec<_> = (0..11)
            .map(|_| {
                let stream = SimStream::request("GET", "/", &[("x-tenant", tenant)]);
                let exchange = proxy.begin(&stream);
                assert_sound(&stream);
                (stream, exchange)
            })
            .collect();
        for (_, exchange) in &mut flights {
            exchange.on_end(&proxy.worker);
        }
        let passed = flights.iter().filter(|(it, _)| it.replied().is_none());
        passed.count()
    }
    let first = |proxy: &Proxy| assert_eq!(admitted(proxy, b"a"), 10);
    let proxy = corrupted(config, how, place, bytes, b'f', first);
    for record in proxy.machine.records(|key| key.get(2) == Some(&b'f')) {
        let (read, mut written) = (FairRecord::decode(&record), Vec::new());
        read.encode(&mut written);
        assert_eq!(FairRecord::decode(&written), read);
    }
    proxy.machine.advance(fair::SYNC);
    // Another has just asked, and a record may say that others ask for all there is: two places are
    // anyone's.
    let found = admitted(&proxy, b"b");
    assert!((2..=10).contains(&found), "{found}");
    proxy.machine.advance(fair::LOST);
    assert_eq!(admitted(&proxy, b"c"), 10, "forgotten");
    let gauge = "haven_concurrency_in_flight;policy=c;key=r";
    assert_eq!(proxy.machine.metric(gauge), 0);
}

/// Of kept responses: what cannot be read is not there, what is found can be sent, and what is kept
/// next is found.
fn check_stale_record(which: u8, how: u8, place: u8, bytes: &[u8]) {
    let config = once_per_thread!(Config, || {
        parsed(
            r#"{"fallbacks": {"f": {"steps": [{"stale": {"max_entries": 4, "vary": ["x-v"]}}, {"respond": {"status": 203}}]}},
                "routes": [{"name": "r", "fallback": "f"}]}"#,
        )
    });
    let keep = |proxy: &Proxy, path: &str, body: &[u8]| {
        let stream = SimStream::request("GET", path, &[("x-v", b"1")]);
        let mut exchange = proxy.begin(&stream);
        let length = body.len().to_string();
        let headers: [(&str, &[u8]); 3] = [
            ("etag", b"1"),
            ("vary", b"accept"),
            ("content-length", length.as_bytes()),
        ];
        stream.answer(200, Some(ENDPOINT), &headers);
        exchange.on_response_headers(&proxy.worker, &stream, false);
        stream.piece(body);
        exchange.on_response_body(&proxy.worker, &stream, body.len(), true);
        exchange.on_end(&proxy.worker);
    };
    let failing = |proxy: &Proxy, path: &str| {
        let stream = SimStream::request("GET", path, &[("x-v", b"1")]);
        let mut exchange = proxy.begin(&stream);
        stream.answer(500, Some(ENDPOINT), &[]);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        assert_sound(&stream);
        stream.sent()
    };
    let kind = [b'i', b'k', b'n'][usize::from(which) % 3];
    let proxy = corrupted(config, how, place, bytes, kind, |proxy| {
        keep(proxy, "/a", b"first")
    });
    let (status, _) = failing(&proxy, "/a");
    if is_of_no_version(place, bytes) && kind != b'n' {
        assert_eq!(status, 203, "what cannot be read is not there");
    }
    assert_eq!(failing(&proxy, "/b").0, 203, "nobody else's is found");
    for (path, body) in [("/a", b"again"), ("/b", b"other")] {
        keep(&proxy, path, body);
        let found = failing(&proxy, path);
        // A record that says it is a second newer than it is has its way until then.
        assert!(
            found.0 == 203 || path == "/a" || found.1 == body,
            "what is kept is found"
        );
    }
    proxy.machine.advance(Nanos::from_secs(1_000_000));
    keep(&proxy, "/c", b"third");
    assert_eq!(failing(&proxy, "/c"), (200, b"third".to_vec()));
}

/// A proxy whose records of this kind were overwritten after `first` was asked for, and whose clock
/// may have moved since.
fn corrupted(
    config: &Config,
    how: u8,
    place: u8,
    bytes: &[u8],
    kind: u8,
    first: impl Fn(&Proxy),
) -> Proxy {
    let proxy = Proxy::new(config, rules_of(how));
    first(&proxy);
    corrupt(&proxy, how, place, bytes, kind);
    proxy
}

fn rules_of(how: u8) -> HostKind {
    if how & 1 == 0 {
        HostKind::Envoy
    } else {
        HostKind::Nginx
    }
}

fn corrupt(proxy: &Proxy, how: u8, place: u8, bytes: &[u8], kind: u8) {
    let keys = std::cell::RefCell::new(Vec::new());
    let is_kind = |key: &[u8]| key.get(2) == Some(&kind);
    proxy.machine.corrupt(
        |key| {
            keys.borrow_mut().extend(is_kind(key).then(|| key.to_vec()));
            false
        },
        b"",
    );
    let keys = keys.into_inner();
    assert!(
        !keys.is_empty(),
        "the records of kind {:?} were found",
        char::from(kind)
    );
    for key in keys {
        let mut record = proxy
            .worker
            .shared(&key)
            .map_or_else(Vec::new, |(bytes, _)| bytes);
        match place {
            255 => record = bytes.to_vec(),
            254 => {
                // Behind the header and the slot's tag. What is near to the truth is found more
                // easily so.
                let (numbers, _) = record.get_mut(16..).unwrap_or(&mut []).as_chunks_mut::<8>();
                for (number, change) in numbers.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    let sum = u64::from_le_bytes(*number).wrapping_add(u64::from_le_bytes(*change));
                    *number = sum.to_le_bytes();
                }
            }
            _ => {
                let end = usize::from(place) + bytes.len();
                record.resize(record.len().max(end), 0);
                record[usize::from(place)..end].copy_from_slice(bytes);
            }
        }
        proxy.machine.corrupt(|other| other == key, &record);
    }
    match how >> 1 & 3 {
        1 => proxy.machine.set_clock(Moment::from_secs(1)),
        2 => proxy.machine.advance(Nanos::from_secs(30 * 86_400)),
        3 => proxy
            .machine
            .set_clock(Moment(proxy.machine.now().0 - 500_000_000)),
        _ => {}
    }
    // Workers look at endpoints' records once a second.
    proxy.engine.tick(&proxy.worker);
}

/// Whether these bytes in this place give the record a version that there is not: they count up
/// from 1, and will not get that far.
fn is_of_no_version(place: u8, bytes: &[u8]) -> bool {
    match bytes.first() {
        None => place == 255,
        Some(version) => matches!(place, 0 | 255) && matches!(version, 0 | 0xf0..),
    }
}

/// What a client is asked to wait, in whole seconds.
fn promised(stream: &SimStream) -> Option<Nanos> {
    stream
        .response_header("retry-after")?
        .parse()
        .ok()
        .map(Nanos::from_secs)
}

/// Debts of up to a minute beyond the bucket are not taken for errors.
const MINUTE: Nanos = Nanos::from_secs(60);

/// Limits as a configuration each, in one route.
fn limited<const N: usize>(limits: [&str; N]) -> Vec<Config> {
    let config = |limit| {
        parsed(&format!(
            r#"{{"rate_limits": {{"l": {limit}}}, "routes": [{{"name": "r", "rate_limits": ["l"]}}]}}"#
        ))
    };
    limits.map(config).into()
}

fn check_bucket_record(which: u8, how: u8, place: u8, bytes: &[u8]) {
    const DAY: u64 = 86_400;
    /// Burst, time to owe nothing at worst, and the limit.
    const LIMITS: [(usize, Nanos, &str); 12] = [
        (5, Nanos(1_666_666_667), r#"{"limit": 3, "burst": 5}"#),
        (
            1,
            Nanos::from_secs(366 * DAY),
            r#"{"limit": 1, "period": "366d"}"#,
        ),
        (
            4,
            Nanos::from_secs(40),
            r#"{"limit": 1, "period": "10s", "burst": 4, "key": [{"header": "x-key"}], "max_keys": 40}"#,
        ),
        (
            8,
            Nanos(8),
            r#"{"limit": 1000000, "period": "1ms", "burst": 8, "key": ["client_ip"], "max_keys": 2}"#,
        ),
        (
            3,
            Nanos::from_secs(20),
            r#"{"algorithm": "sliding_window", "limit": 3, "period": "10s", "key": ["path"]}"#,
        ),
        (
            3,
            Nanos::from_secs(10),
            r#"{"algorithm": "fixed_window", "limit": 3, "period": "10s"}"#,
        ),
        (
            6,
            Nanos::from_secs(9),
            r#"{"limit": 2, "burst": 6, "warm_up": "1m", "key": ["path"], "max_keys": 3}"#,
        ),
        (
            5,
            Nanos::from_secs(5),
            r#"{"algorithm": "sliding_window", "limit": 5, "period": "1ms", "max_keys": 9, "key": ["host"]}"#,
        ),
        (
            4,
            Nanos::from_millis(1),
            r#"{"algorithm": "fixed_window", "limit": 4, "period": "1ms", "key": [{"header": "x-key"}], "max_keys": 20}"#,
        ),
        // A window may be said to begin a period from now.
        (
            7,
            Nanos::from_secs(2 * 366 * DAY),
            r#"{"algorithm": "fixed_window", "limit": 7, "period": "366d"}"#,
        ),
        (
            2,
            Nanos::from_secs(3 * 366 * DAY),
            r#"{"algorithm": "sliding_window", "limit": 2, "period": "366d"}"#,
        ),
        (
            9,
            Nanos(5_400_000_000),
            r#"{"limit": 5, "burst": 9, "warm_up": "1h"}"#,
        ),
    ];
    let configs = once_per_thread!(Vec<Config>, || limited(LIMITS.map(|(_, _, limit)| limit)));
    let at = usize::from((which & 3) | (which >> 2 & 12)) % LIMITS.len();
    let (burst, fill, _) = LIMITS[at];
    let ask = |proxy: &Proxy| proxy.ask(&[("x-key", b"k")], 200);
    let first = |proxy: &Proxy| assert_eq!(ask(proxy).1, 200);
    let proxy = corrupted(&configs[at], how, place, bytes, b'r', first);
    let admitted = || (0..burst + 2).filter(|_| ask(&proxy).1 == 200).count();
    // Cold, it gives a third.
    let least = if LIMITS[at].2.contains("warm_up") {
        burst / 3
    } else {
        burst
    };
    let full = least..=burst;
    // A token's time is rounded up, by less than a nanosecond.
    let fill = fill.plus(Nanos(burst as u64));
    let at_once = admitted();
    assert!(at_once <= burst, "never more than the burst");
    if is_of_no_version(place, bytes) {
        assert!(
            full.contains(&at_once),
            "what cannot be read is an unused bucket"
        );
    }
    let (refused, status) = ask(&proxy);
    assert_eq!(status, 429, "no time has passed");
    let wait = promised(&refused).expect("a wait is promised");
    assert!(
        wait.0 <= fill.plus(MINUTE).0 + 1_000_000_000,
        "{wait:?} is no wait"
    );
    proxy.machine.advance(wait);
    assert_eq!(
        ask(&proxy.beside(&configs[at])).1,
        200,
        "the promise holds at another worker too"
    );
    proxy.machine.advance(fill.plus(MINUTE));
    assert!(
        full.contains(&admitted()),
        "a bucket that has had the time is full"
    );
    proxy.machine.advance(fill);
    assert!(full.contains(&admitted()), "and is again");
}

fn check_queue_record(which: u8, how: u8, place: u8, bytes: &[u8]) {
    /// How many may come at once, the pace, the furthest moment, the greatest cost, and the limit.
    const LIMITS: [(usize, Nanos, Nanos, u64, &str); 4] = [
        (
            4,
            Nanos::from_millis(500),
            Nanos::from_millis(1_500),
            3,
            r#"{"algorithm": "leaky_bucket", "limit": 2, "burst": 3, "max_wait": "1m"}"#,
        ),
        (
            1,
            Nanos::from_secs(10),
            Nanos::ZERO,
            4,
            r#"{"algorithm": "leaky_bucket", "limit": 1, "period": "10s", "burst": 4, "max_wait": "0s", "key": [{"header": "x-key"}], "max_keys": 40}"#,
        ),
        (
            4,
            Nanos(333_333),
            Nanos(1_000_001),
            8,
            r#"{"algorithm": "leaky_bucket", "limit": 3, "period": "1ms", "burst": 8, "max_wait": "1ms", "key": ["client_ip"], "max_keys": 2}"#,
        ),
        (
            2,
            Nanos::from_secs(3_600),
            Nanos::from_secs(3_600),
            2,
            r#"{"algorithm": "leaky_bucket", "limit": 1, "period": "1h", "burst": 2, "max_wait": "1h"}"#,
        ),
    ];
    let configs = once_per_thread!(Vec<Config>, || limited(
        LIMITS.map(|(_, _, _, _, limit)| limit)
    ));
    let at = usize::from(which >> 4 & 3);
    let (at_once, pace, furthest, greatest, _) = LIMITS[at];
    let config = &configs[at];
    let ask = |proxy: &Proxy| Queued::new(proxy);
    let first = |proxy: &Proxy| ask(proxy).go(proxy);
    let proxy = corrupted(config, how, place, bytes, b'r', first);
    let now = || proxy.machine.now();
    // As many as are let in, and the first that is not.
    let all = || {
        let mut queue: Vec<Queued> = (0..at_once + 2).map(|_| ask(&proxy)).collect();
        let refused = queue.pop().expect("more were asked for than may come");
        assert!(refused.until.is_none(), "the queue is full");
        queue.retain(|queued| queued.until.is_some());
        let moments: Vec<_> = queue.iter().filter_map(|queued| queued.until).collect();
        assert!(
            moments
                .windows(2)
                .all(|pair| pair[1].since(pair[0]) >= pace),
            "{moments:?}: closer than {pace:?}"
        );
        assert!(
            moments.iter().all(|until| until.since(now()) <= furthest),
            "{moments:?} from {:?}",
            now()
        );
        assert!(queue.len() <= at_once, "never more than may wait");
        (queue, refused)
    };
    let (queue, refused) = all();
    if is_of_no_version(place, bytes) {
        assert_eq!(
            queue.len(),
            at_once,
            "what cannot be read is an empty queue"
        );
    }
    let wait = promised(&refused.stream).expect("a wait is promised");
    // A reading of the clock, and what a request of the greatest cost keeps the others waiting.
    let drained = furthest
        .plus(pace.times(greatest))
        .plus(Nanos::from_secs(1));
    assert!(wait <= drained.plus(MINUTE), "{wait:?} is no wait");
    proxy.machine.advance(wait);
    let other = proxy.beside(config);
    let kept = ask(&other);
    assert!(
        kept.until.is_some(),
        "the promise holds at another worker too"
    );
    queue.into_iter().for_each(|queued| queued.go(&proxy));
    kept.go(&other);
    for _ in 0..2 {
        proxy.machine.advance(drained.plus(MINUTE));
        let (queue, _) = all();
        assert_eq!(
            queue.len(),
            at_once,
            "a queue that has had the time is empty"
        );
        queue.into_iter().for_each(|queued| queued.go(&proxy));
    }
}

/// A request to a leaky bucket.
struct Queued {
    stream: SimStream,
    exchange: Exchange,
    /// When it may go; `None`: it was refused.
    until: Option<Moment>,
}

impl Queued {
    fn new(proxy: &Proxy) -> Self {
        let stream = SimStream::request("GET", "/", &[("x-key", b"k")]);
        let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
        let until = match exchange.on_request(&proxy.worker, &stream) {
            Action::Continue => Some(proxy.machine.now()),
            Action::Wait { until, .. } => Some(until),
            Action::Stop | Action::Read => None,
        };
        assert_eq!(
            until.is_none(),
            stream.replied().is_some(),
            "what is stopped is answered, and nothing else"
        );
        Self {
            stream,
            exchange,
            until,
        }
    }

    /// Lets it go as soon as it may, and end.
    fn go(mut self, proxy: &Proxy) {
        if self.exchange.is_waiting() {
            proxy
                .machine
                .advance(self.until.unwrap_or_default().since(proxy.machine.now()));
            assert_eq!(
                self.exchange.on_resume(&proxy.worker, &self.stream),
                Action::Continue
            );
        }
        self.stream.answer(200, Some(ENDPOINT), &[]);
        self.exchange.on_response(&proxy.worker, &self.stream);
        self.exchange.on_end(&proxy.worker);
    }
}

/// Workers hold leases of a bucket whose record is then overwritten: what they hold may be admitted
/// beside a whole bucket, not more.
fn check_leased_record(which: u8, how: u8, place: u8, bytes: &[u8]) {
    const WORKERS: usize = 3;
    /// Burst, cost of a request, time to fill, between two requests so that there are leases, and
    /// the limit.
    const LIMITS: [(usize, usize, Nanos, Nanos, &str); 4] = [
        (
            64,
            1,
            Nanos::from_millis(32),
            Nanos::from_millis(1),
            r#"{"limit": 2000, "burst": 64}"#,
        ),
        (
            96,
            1,
            Nanos::from_millis(5),
            Nanos(50_000),
            r#"{"limit": 20000, "burst": 96, "key": [{"header": "x-key"}], "max_keys": 40}"#,
        ),
        (
            48,
            1,
            Nanos(48),
            Nanos(1),
            r#"{"limit": 1000000000, "burst": 48, "key": ["client_ip"], "max_keys": 1}"#,
        ),
        (
            128,
            3,
            Nanos(25_600_000),
            Nanos::from_millis(1),
            r#"{"limit": 5000, "burst": 128, "cost": 3}"#,
        ),
    ];
    let configs = once_per_thread!(Vec<Config>, || limited(
        LIMITS.map(|(_, _, _, _, limit)| limit)
    ));
    let at = usize::from(which >> 6);
    let (burst, cost, fill, pause, _) = LIMITS[at];
    let mut workers = vec![Proxy::new(&configs[at], rules_of(how))];
    workers.extend(
        (1..WORKERS)
            .map(|_| workers[0].beside(&configs[at]))
            .collect::<Vec<_>>(),
    );
    let ask = |worker: &Proxy| worker.status(&[("x-key", b"k")]) == 200;
    let machine = &workers[0].machine;
    for worker in workers.iter().cycle().take(WORKERS * 3) {
        assert!(ask(worker), "the bucket is all but full");
        machine.advance(pause.times((how >> 3 & 7).into()));
    }
    corrupt(&workers[0], how, place, bytes, b'r');
    // In turn, until none gets any more: what one is refused another may still hold.
    let admitted = || {
        let mut sum = 0;
        while let got @ 1.. = workers.iter().filter(|worker| ask(worker)).count() {
            sum += got * cost;
            assert!(sum <= 2 * burst, "there is an end");
        }
        sum
    };
    let at_once = admitted();
    let held = WORKERS * (burst / 16);
    assert!(
        at_once <= burst + held,
        "{at_once}: never more than the burst and what was leased"
    );
    // What is left of a lease may be too little for a request.
    let full = burst - (WORKERS + 1) * (cost - 1)..=burst;
    if is_of_no_version(place, bytes) {
        assert!(
            at_once >= *full.start(),
            "what cannot be read is an unused bucket"
        );
    }
    let fill = fill.plus(Nanos(burst as u64));
    machine.advance(fill.plus(MINUTE));
    for _ in 0..2 {
        let again = admitted();
        assert!(
            full.contains(&again),
            "{again}: a bucket that has had the time is full"
        );
        machine.advance(fill);
    }
}

fn check_breaker_record(which: u8, how: u8, place: u8, bytes: &[u8]) {
    /// Trial calls, the longest that it stays open or undecided, and the breaker.
    const BREAKERS: [(usize, Nanos, &str); 3] = [
        (
            2,
            Nanos::from_secs(2),
            r#""minimum_calls": 3, "open_duration": "100ms", "max_open_duration": "1s", "backoff_multiplier": 2,
               "half_open_calls": 2, "half_open_max_wait": "1s""#,
        ),
        (
            1,
            Nanos::from_secs(2 * 86_400),
            r#""open_duration": "1d", "jitter": 100, "backoff_multiplier": 100, "half_open_calls": 1, "half_open_max_wait": "1d""#,
        ),
        (
            3,
            Nanos::from_secs(2),
            r#""window": {"type": "count", "size": 70}, "minimum_calls": 3, "open_duration": "1s", "half_open_calls": 3, "half_open_max_wait": "1s",
               "max_open_duration": "1s""#,
        ),
    ];
    /// On a route, and on an endpoint.
    const USES: [&str; 2] = [
        r#""routes": [{"name": "r", "circuit_breaker": "b"}]"#,
        r#""routes": [{"name": "r", "upstream": "u"}],
           "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}], "circuit_breaker": "b", "load_balancer": {"panic_threshold": 0}}}"#,
    ];
    let configs = once_per_thread!(Vec<Config>, || {
        let config = |(i, used)| {
            let (_, _, breaker) = BREAKERS[i];
            parsed(&format!(
                r#"{{"circuit_breakers": {{"b": {{"consecutive_failures": 1, {breaker}}}}}, {used}}}"#
            ))
        };
        [
            (0, USES[0]),
            (1, USES[0]),
            (0, USES[1]),
            (1, USES[1]),
            (2, USES[0]),
            (2, USES[1]),
        ]
        .map(config)
        .into()
    });
    let at = usize::from(which >> 2) % configs.len();
    let (trials, longest, _) = BREAKERS[if at < 4 { at % 2 } else { 2 }];
    // An outcome has to be there before there is a record.
    let first = |proxy: &Proxy| assert_eq!(proxy.status(&[]), 200);
    let proxy = corrupted(&configs[at], how, place, bytes, b'c', first);
    if how & 8 != 0 {
        // What workers add to may hold anything as well: it outlives its record, and operators may
        // set it back.
        let noise = bytes
            .iter()
            .fold(0u64, |noise, byte| noise.rotate_left(8) ^ u64::from(*byte));
        for (name, _) in proxy.machine.metrics_of("haven_circuit_breaker_tally") {
            proxy
                .worker
                .record(proxy.worker.define(MetricKind::Gauge, &name), noise);
        }
    }
    let pause = |proxy: &Proxy| {
        proxy.machine.advance(longest.plus(Nanos::from_secs(2)));
        proxy.engine.tick(&proxy.worker);
    };
    if is_of_no_version(place, bytes) {
        assert_eq!(
            proxy.status(&[]),
            200,
            "what cannot be read is a closed breaker"
        );
    }
    // At worst: half-open, undecided; opens again; half-open.
    let passed = (0..4).any(|_| {
        let passed = proxy.ask(&[], 500).1 == 500;
        if !passed {
            pause(&proxy);
        }
        passed
    });
    assert!(passed, "no breaker is stuck");
    assert_eq!(proxy.status(&[]), 503, "one failure opened it");
    pause(&proxy);
    let calls: Vec<_> = (0..trials + 3)
        .map(|_| {
            let stream = SimStream::request("GET", "/", &[]);
            let exchange = proxy.begin(&stream);
            (stream, exchange)
        })
        .filter(|(stream, _)| stream.replied().is_none())
        .collect();
    assert_eq!(calls.len(), trials, "half-open, as many as it allows");
    for (stream, mut exchange) in calls {
        stream.answer(200, Some(ENDPOINT), &[]);
        exchange.on_response(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
    }
    assert!(
        (0..10).all(|_| proxy.status(&[]) == 200),
        "and closed again"
    );
    proxy.assert_idle();
}

/// Any sequence of requests, answers, failures, ends, pauses, clock steps, ticks and reloads over
/// an engine with all its parts. Nothing panics, what a client sees is well formed, what it wrote
/// into headers of ours does not reach the upstream, and when all requests have ended nothing stays
/// granted: none is in flight, and no permit is held.
///
/// A script of lines. `> METHOD TARGET` begins a request; `< STATUS [ENDPOINT]` answers it, `!
/// STATUS DETAILS` lets the proxy answer, `{` answers it with a body that follows, `& TEXT` a piece
/// of it and `} TEXT` the last, `| FLAGS DETAILS` cuts it and ends it, `=` brings trailers, each
/// with the lines of `name: value` that follow it as headers; `.` ends the newest request, `,` the
/// oldest (answers go to the newest too, `/` makes the oldest the newest); `^` lets the newest go
/// on if it waits, `$` has no room for it; `+ MS` and `- MS` move the clock; `*` ticks; `~`
/// reloads; `@ N` is the number of tries, `% ADDRESS` the connection's peer for what follows.
pub fn check_exchange(data: &[u8]) {
    let configs = once_per_thread!([Config; 2], || {
        let second = EVERYTHING
            .replace(r#""half_open_calls": 2"#, r#""half_open_calls": 1"#)
            .replace(r#", {"address": "10.0.0.3:80"}"#, "");
        [parsed(EVERYTHING), parsed(&second)]
    });
    let mut script = Script {
        proxy: Proxy::new(&configs[0], HostKind::Envoy),
        open: Vec::new(),
        peer: b"192.0.2.1:40000".to_vec(),
        attempts: 1,
        reloads: 0,
    };
    let text = String::from_utf8_lossy(data);
    let mut steps: Vec<Step<'_>> = Vec::new();
    for line in text.lines() {
        let mut chars = line.chars();
        match (chars.next(), steps.last_mut()) {
            (Some(op), _) if "><!=.,/+-*~@%{&}|^$".contains(op) => {
                steps.push((op, chars.as_str().trim_start(), Vec::new()))
            }
            (Some(_), Some((_, _, headers))) if headers.len() < 32 => {
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                headers.push((name, value.trim_start().as_bytes()));
            }
            _ => {}
        }
    }
    let mut former = Vec::new();
    for (op, argument, headers) in steps.iter().take(128) {
        match op {
            '~' => {
                script.reloads += 1;
                let config = fit(&configs[script.reloads % 2], script.proxy.machine.kind());
                let engine = Engine::new(config, &script.proxy.worker);
                let engine = Rc::new(engine.expect("a valid configuration becomes an engine"));
                former.push(std::mem::replace(&mut script.proxy.engine, engine));
            }
            _ => script.step(*op, argument, headers),
        }
    }
    for (stream, mut exchange) in script.open.drain(..) {
        exchange.on_end(&script.proxy.worker);
        assert_sound_json(&stream);
    }
    former.iter().for_each(|it| it.close(&script.proxy.worker));
    script.assert_nothing_granted();
}

const EVERYTHING: &str = r#"{
    "client_ip": {"source": "x-forwarded-for", "trusted_hops": 2},
    "upstreams": {
        "u": {"endpoints": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}, {"address": "10.0.0.3:80"}],
              "circuit_breaker": "e", "load_balancer": {"panic_threshold": 0}, "min_healthy": 50, "concurrency_limit": "found"},
        "p": {"endpoints": [{"address": "10.0.1.1:80"}, {"address": "[2001:db8::1]:80", "weight": 3}], "circuit_breaker": "e",
              "override": {"header": "x-pick"}}},
    "rate_limits": {
        "client": {"limit": 10, "burst": 20, "key": ["client_ip"], "exempt": ["10.9.0.0/16"], "headers": "both", "max_keys": 3},
        "cost": {"limit": 50, "key": [{"header": "x-key"}], "cost": {"header": "x-cost", "max": 100}, "missing_key": "share",
                 "overrides": [{"key": ["vip"], "limit": 500}]},
        "pace": {"algorithm": "leaky_bucket", "limit": 2, "burst": 3, "max_wait": "1m"},
        "parts": {"limit": 5, "key": ["method", "path", "host", "route", {"cookie": "sid"}, {"query": "q"}, {"path_segment": 1}]}},
    "circuit_breakers": {
        "e": {"consecutive_failures": 1, "open_duration": "1s", "half_open_calls": 2, "half_open_max_wait": "5s"},
        "r": {"minimum_calls": 3, "open_duration": "1s", "half_open_calls": 2, "slow_call_duration": "1s", "jitter": 50},
        "s": {"consecutive_failures": 2, "scope": "upstream", "half_open_calls": 2, "window": {"type": "count", "size": 5}}},
    "concurrency_limits": {"few": {"algorithm": "fixed", "limit": 3}, "found": {"min_limit": 1, "max_limit": 6, "initial_limit": 4}},
    "switches": {"d": "off"},
    "fallbacks": {
        "f": {"on": ["rate_limited", "circuit_open", "no_endpoint", "upstream_error", "timeout", "overload", "deadline", "switched_off"],
              "steps": [{"stale": {"max_age": "10s", "max_body": "16B", "max_entries": 3}}, {"respond": {"status": 203, "content_type": "application/json", "headers": {"x-f": "1"},
                "body": "{\"id\": \"{{request_id}}\", \"wait\": \"{{retry_after}}\", \"why\": \"{{reason}} {{route}}\"}"}}]},
        "on": {"steps": [{"cluster": "spare"}, {"stale": {"vary": ["x-key"]}}]},
        "quiet": {"mode": "shadow", "steps": [{"respond": {}}]}},
    "routes": [
        {"name": "a", "match": {"prefix": "/a"}, "upstream": "u", "rate_limits": ["client", "cost"], "circuit_breaker": "r", "fallback": "f",
         "concurrency_limit": "few", "criticality": "critical_plus", "retry": {"attempts": 2, "on": ["5xx", "reset", "unavailable"]},
         "timeout": {"request": {"dynamic": {"max": "2s"}}, "per_try": "1s", "reject_below": "p50", "deadline_header": "x-left"}},
        {"name": "b", "match": {"prefix": "/b"}, "upstream": "p", "rate_limits": ["parts"], "circuit_breaker": "s", "fallback": "on",
         "concurrency_limit": "few", "criticality": "sheddable", "timeout": {"request": "3s", "reject_below": "20ms"}},
        {"name": "d", "match": {"prefix": "/d"}, "switch": "d", "upstream": "p", "fallback": "on"},
        {"name": "w", "match": {"prefix": "/w"}, "upstream": "u", "rate_limits": ["client", "pace"], "concurrency_limit": "few",
         "retry": {"budget": 100}, "timeout": {"request": "1s"}},
        {"name": "c", "match": {"prefix": "/c", "methods": ["POST"], "headers": {"x-a": "1", "x-b": "*"}}, "upstream": "p", "fallback": "f",
         "circuit_breaker": "s"},
        {"name": "shadow", "mode": "shadow", "match": {"pattern": "/s/{id}"}, "upstream": "u", "rate_limits": ["client", "parts"],
         "circuit_breaker": "r", "fallback": "f"},
        {"name": "off", "mode": "off", "match": {"prefix": "/off"}, "rate_limits": ["client"]},
        {"name": "plain", "match": {"hosts": ["api.example", "*.example"]}, "circuit_breaker": "r", "fallback": "quiet"}]
}"#;

/// The endpoints of [`EVERYTHING`], by upstream.
const ENDPOINTS: [(&str, &str); 5] = [
    ("u", "10.0.0.1:80"),
    ("u", "10.0.0.2:80"),
    ("u", "10.0.0.3:80"),
    ("p", "10.0.1.1:80"),
    ("p", "[2001:db8::1]:80"),
];

/// A letter, what follows it, and headers.
type Step<'a> = (char, &'a str, Vec<(&'a str, &'a [u8])>);

/// A run of [`check_exchange`].
struct Script {
    proxy: Proxy,
    open: Vec<(SimStream, Exchange)>,
    peer: Vec<u8>,
    attempts: u64,
    reloads: usize,
}

impl Script {
    fn step(&mut self, op: char, argument: &str, headers: &[(&str, &[u8])]) {
        let (first, second) = argument.split_once(' ').unwrap_or((argument, ""));
        let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
        let time = Nanos::from_millis(number(argument).min(1_000_000_000));
        let machine = Rc::clone(&self.proxy.machine);
        match op {
            '>' => self.begin(first, second, headers),
            '<' | '!' | '=' | '{' => {
                let Some((stream, exchange)) = self.open.last_mut() else {
                    return;
                };
                let status = u16::try_from(number(first)).unwrap_or(0);
                match op {
                    '=' => {
                        stream.trail(headers);
                        exchange.on_response_trailers(&self.proxy.worker, stream);
                        return;
                    }
                    '<' | '{' => {
                        stream.answer(
                            status,
                            Some(second).filter(|address| !address.is_empty()),
                            headers,
                        );
                        stream.set_property(Property::AttemptCount, &self.attempts.to_le_bytes());
                    }
                    _ => stream.fail(status, second, None, self.attempts),
                }
                let action = exchange.on_response_headers(&self.proxy.worker, stream, op != '{');
                assert!(
                    action == Action::Continue
                        || stream.replied().is_some()
                        || exchange.is_replacing(),
                    "what is stopped is answered"
                );
                assert_sound_json(stream);
            }
            '&' | '}' => {
                let Some((stream, exchange)) = self.open.last_mut() else {
                    return;
                };
                stream.piece(argument.as_bytes());
                exchange.on_response_body(&self.proxy.worker, stream, argument.len(), op == '}');
            }
            '|' => {
                let Some((stream, _)) = self.open.last() else {
                    return;
                };
                stream.set_property(Property::ResponseCodeDetails, second.as_bytes());
                stream.set_property(Property::ResponseFlags, &number(first).to_le_bytes());
                self.end(self.open.len().wrapping_sub(1));
            }
            '^' | '$' => {
                let Some((stream, exchange)) = self
                    .open
                    .last_mut()
                    .filter(|(_, exchange)| exchange.is_waiting() || exchange.is_replacing())
                else {
                    return;
                };
                let action = if op == '^' {
                    exchange.on_resume(&self.proxy.worker, stream)
                } else {
                    exchange.on_no_room(&self.proxy.worker, stream)
                };
                assert_eq!(
                    action == Action::Stop,
                    stream.replied().is_some(),
                    "what is stopped is answered"
                );
                assert!(!exchange.is_waiting(), "it waits once");
            }
            '.' => self.end(self.open.len().wrapping_sub(1)),
            ',' => self.end(0),
            '/' if !self.open.is_empty() => self.open.rotate_left(1),
            '+' => machine.advance(time),
            '-' => machine.set_clock(machine.now().minus(time)),
            '*' => self.proxy.engine.tick(&self.proxy.worker),
            '@' => self.attempts = number(argument),
            '%' => self.peer = argument.as_bytes().to_vec(),
            _ => {}
        }
    }

    fn begin(&mut self, method: &str, target: &str, headers: &[(&str, &[u8])]) {
        let stream = SimStream::request(method, target, headers);
        stream.set_property(Property::SourceAddress, &self.peer);
        let exchange = self.proxy.begin(&stream);
        if stream.replied().is_none() {
            let cluster = stream.request_header("x-haven-cluster");
            assert!(
                cluster.is_none_or(|cluster| cluster == "p" || cluster == "spare"),
                "clients do not choose clusters"
            );
            let retries = stream.request_header("x-envoy-max-retries");
            assert!(
                retries.is_none_or(|n| matches!(n.as_str(), "0" | "1" | "2")),
                "nor steer retries"
            );
            assert_eq!(
                stream.request_header("x-envoy-retriable-status-codes"),
                None,
                "nor steer retries"
            );
            for name in ["x-haven-upstream", "x-pick"] {
                let list = stream.request_header(name).unwrap_or_default();
                let ours =
                    |address: &str| ENDPOINTS.iter().any(|(_, endpoint)| *endpoint == address);
                assert!(
                    list.is_empty() || list.split(',').all(ours),
                    "nor endpoints: {list}"
                );
            }
        }
        assert_sound_json(&stream);
        self.open.push((stream, exchange));
    }

    /// Ends a request, and once more: hosts do.
    fn end(&mut self, at: usize) {
        if at < self.open.len() {
            let (stream, mut exchange) = self.open.remove(at);
            if exchange.is_unsettled() {
                exchange.on_cut(&self.proxy.worker, &stream);
            }
            exchange.on_end(&self.proxy.worker);
            exchange.on_end(&self.proxy.worker);
            assert_sound_json(&stream);
        }
    }

    fn assert_nothing_granted(&self) {
        let places = || {
            let gauges = ["haven_concurrency_in_flight", "haven_endpoint_in_flight"];
            gauges
                .map(|gauges| self.proxy.machine.metrics_of(gauges))
                .concat()
        };
        // After a leap of the clock, or a tick of the new configuration alone, what is in flight
        // may have been taken for lost: that comes right.
        for _ in 0..4 {
            if places().iter().any(|(_, n)| *n != 0) {
                self.proxy.machine.advance(Nanos::from_secs(11));
                self.proxy.engine.tick(&self.proxy.worker);
            }
        }
        assert!(places().iter().all(|(_, n)| *n == 0), "{:?}", places());
        let mut breakers: Vec<_> = ENDPOINTS
            .iter()
            .map(|(upstream, endpoint)| ("e", vec!["endpoint", *upstream, *endpoint]))
            .collect();
        breakers.extend(["a", "shadow", "plain"].map(|route| ("r", vec!["route", route])));
        breakers.push(("s", vec!["upstream", "p"]));
        for (name, subject) in breakers {
            for namespace in ["", "shadow"] {
                let state = CircuitBreaker::new(name, &subject, namespace).peek(&self.proxy.worker);
                // A permit of a call that was judged stays with its verdict until the round is
                // over.
                let held = if state.phase == Phase::HalfOpen {
                    state.permits.saturating_sub(state.trial.calls)
                } else {
                    0
                };
                assert_eq!(
                    held, 0,
                    "{name} of {subject:?}: a permit was not given back"
                );
            }
        }
    }
}

/// An answer of ours is well formed whatever a client sent: a status, and headers that are one line
/// each.
fn assert_sound(stream: &SimStream) {
    let Some(reply) = stream.replied() else {
        return;
    };
    assert!((200..=599).contains(&reply.status), "{reply:?}");
    let one_line = |value: &[u8]| !value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0));
    assert!(
        reply.headers.iter().all(|(_, value)| one_line(value)),
        "{reply:?}"
    );
    assert!(
        reply
            .kept_headers
            .iter()
            .all(|(name, value)| one_line(name) && one_line(value)),
        "{reply:?}"
    );
    assert!(
        reply
            .configured_headers
            .iter()
            .all(|(_, value)| one_line(value.as_bytes())),
        "{reply:?}"
    );
}

/// And JSON where it says so; only of a configuration that says so rightly.
fn assert_sound_json(stream: &SimStream) {
    assert_sound(stream);
    let Some(reply) = stream.replied() else {
        return;
    };
    let says_json =
        |(name, value): &(&str, Vec<u8>)| *name == "content-type" && value.ends_with(b"json");
    if reply.headers.iter().any(says_json) {
        let json: Result<serde_json::Value, _> = serde_json::from_slice(&reply.body);
        assert!(json.is_ok(), "{}", reply.body.escape_ascii());
    }
}

const REPORTS: &[u8] = br#"{"upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}], "health_check": {"report": true,
    "unhealthy_threshold": 1, "healthy_threshold": 1, "components": {"db": {}, "redis": {"critical": false, "max_error_rate": 5}}}}},
    "routes": [{"name": "r", "upstream": "u", "depends_on": ["redis"]}]}"#;

/// A health report, after a byte that says whether its HTTP status is good: whatever an endpoint
/// sends, the check has an outcome, the health document can be read, and no answer that says it is
/// not well makes it so.
///
/// # Panics
/// If that does not hold.
pub fn check_report(input: &[u8]) {
    let config = once_per_thread!(Config, || document::parse(REPORTS).expect("valid"));
    let Some((first, body)) = input.split_first() else {
        return;
    };
    let (good, status) = if first % 2 == 0 {
        (true, 200)
    } else {
        (false, 503)
    };
    let check = config.upstreams[0]
        .health_check
        .as_ref()
        .expect("it is there");
    let judged = report::judge(
        body,
        good,
        status,
        check,
        UnixTime::from_secs(1_800_000_000),
    );
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let details = json.as_ref().and_then(|json| json["details"].as_object());
    match &judged {
        None => {}
        Some(sample) => {
            assert_eq!(sample.components.len(), 2);
            assert!(
                json.as_ref().is_some_and(|json| json["status"].is_string()),
                "judged by what it does not say"
            );
            if sample.status == EndpointHealth::Up && !good {
                assert!(
                    details.is_some_and(|all| all.contains_key("redis")),
                    "well in spite of its status, and no excuse"
                );
            }
        }
    }
    let proxy = Proxy::new(config, HostKind::Envoy);
    proxy.engine.check(&proxy.worker, proxy.machine.now());
    let calls = proxy.machine.take_outgoing();
    assert_eq!(calls.len(), 1);
    let headers = HeaderMap::from_pairs(&[
        (":status", if good { "200" } else { "503" }),
        ("x-envoy-upstream-service-time", "1"),
    ]);
    let kept = body.get(..report::MAX_BYTES).unwrap_or(body).to_vec();
    let answer = CallAnswer::Http {
        headers,
        body: kept,
        size: body.len(),
    };
    proxy
        .engine
        .answered(&proxy.worker, calls[0].id, &answer, proxy.machine.now());
    let well = judged.map_or(good, |sample| sample.status == EndpointHealth::Up);
    let stream = SimStream::request("GET", "/readyz", &[]);
    let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
    exchange.on_request(&proxy.worker, &stream);
    exchange.on_end(&proxy.worker);
    let reply = stream.replied().expect("it is a probe");
    assert_eq!(
        reply.status == 200,
        well,
        "{}",
        String::from_utf8_lossy(&reply.body)
    );
    serde_json::from_slice::<serde_json::Value>(&reply.body).expect("a document");
}

/// A `HealthCheckResponse`: it is one or it is none, and protobuf's rule holds that of a field
/// which comes twice the last counts.
///
/// # Panics
/// If that does not hold.
pub fn check_grpc_health(input: &[u8]) {
    let message = grpc::response(input);
    let well = grpc::response(&[input, b"\x08\x01"].concat());
    if message.is_some() {
        assert_eq!(
            well,
            Some(EndpointHealth::Up),
            "what follows is read as well"
        );
    }
    // What we ask with can be read as a message of the same shape: a field of bytes, passed over.
    let service = String::from_utf8_lossy(input);
    assert_eq!(
        grpc::response(&grpc::request(&service)),
        Some(EndpointHealth::Inconclusive)
    );
}

/// What an honest client gets: status, body, and haven's decisions.
type Got = (u16, Vec<u8>, Option<String>);

/// Honest clients, and between their requests whatever hostile ones think of. What the honest ones
/// get is the same as without them: all that a hostile client controls here (its deadline, its
/// cancel, its body's end, what it sends twice, its spelling, its claims) decides nothing for others.
///
/// Nor does it open a way past the hostile ones' own limits.
///
/// Each byte is an act of a hostile client; three fit between two requests.
pub fn check_hostile(data: &[u8]) {
    let config = once_per_thread!(Config, || {
        parsed(
            r#"{"client_ip": {"source": "x-forwarded-for"},
            "upstreams": {"u": {"endpoints": [{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}, {"address": "10.0.0.3:80"}],
                "circuit_breaker": "endpoints"}},
            "circuit_breakers": {"endpoints": {"consecutive_failures": 5, "open_duration": "1h", "max_open_duration": "1h"},
                "route": {"failure_rate_threshold": 50, "minimum_calls": 10, "open_duration": "1h", "max_open_duration": "1h"}},
            "rate_limits": {"client": {"limit": 40, "period": "1h", "key": ["client_ip"], "cost": {"header": "x-cost"}},
                "key": {"limit": 40, "period": "1h", "key": [{"header": "x-api-key"}]}},
            "fallbacks": {"f": {"steps": [{"stale": {}}, {"respond": {"status": 203, "body": "fixed"}}]}},
            "routes": [{"name": "r", "match": {"prefix": "/api"}, "upstream": "u", "rate_limits": ["client", "key"],
                "circuit_breaker": "route", "fallback": "f", "timeout": {"request": "1s", "reject_below": "p50"}}]}"#,
        )
    });
    let without = honest_world(config, &[]);
    assert_eq!(honest_world(config, data), without);
}

/// What the honest clients get in turn.
fn honest_world(config: &Config, hostile: &[u8]) -> Vec<Got> {
    const STEPS: u64 = 60;
    let proxy = Proxy::new(config, HostKind::Envoy);
    let begin = proxy.machine.now();
    let (mut acts, mut open, mut passed) = (hostile.iter(), Vec::new(), [0; 16]);
    let mut got = Vec::new();
    for step in 0..STEPS {
        for act in acts.by_ref().take(3) {
            let stream = hostile_act(&proxy, *act, step, &mut open);
            let limited = stream.replied().is_some_and(|reply| reply.status == 429);
            let passed = &mut passed[usize::from(act >> 4)];
            *passed += u32::from(!limited);
            assert!(*passed <= 40, "{act}: past the limit of its address");
        }
        let due = begin.plus(Nanos::from_millis(200 * (step + 1)));
        proxy.machine.advance(due.since(proxy.machine.now()));
        let client = step % 3;
        let (address, key) = (format!("192.0.2.{client}"), format!("key-{client}"));
        let path = format!("/api/{}", step % 4);
        let headers: [(&str, &[u8]); 3] = [
            ("x-forwarded-for", address.as_bytes()),
            ("x-api-key", key.as_bytes()),
            ("x-envoy-expected-rq-timeout-ms", b"500"),
        ];
        let stream = SimStream::request("GET", &path, &headers);
        let mut exchange = proxy.begin(&stream);
        let body = [key.as_bytes(), path.as_bytes()].concat();
        let status = if step % 13 == 12 { 500 } else { 200 };
        if stream.replied().is_none() {
            proxy.machine.advance(Nanos::from_millis(50));
            answer(&proxy, &mut exchange, &stream, status, &body);
        }
        exchange.on_end(&proxy.worker);
        let (seen, body) = stream.sent();
        got.push((seen, body, stream.decision()));
    }
    drop(open);
    got
}

/// The upstream answers, whole.
fn answer(proxy: &Proxy, exchange: &mut Exchange, stream: &SimStream, status: u16, body: &[u8]) {
    let list = stream.request_header("x-haven-upstream");
    let first = list.as_deref().and_then(|list| list.split(',').next());
    let chunked: &[(&str, &[u8])] = &[("transfer-encoding", b"chunked")];
    stream.answer(status, first, chunked);
    exchange.on_response_headers(&proxy.worker, stream, false);
    if stream.replied().is_none() {
        stream.piece(body);
        exchange.on_response_body(&proxy.worker, stream, body.len(), true);
    }
}

/// One act of a hostile client. What it leaves open stays so.
fn hostile_act(proxy: &Proxy, act: u8, step: u64, open: &mut Vec<Exchange>) -> SimStream {
    let client = format!("192.0.2.1, 198.51.100.{}", act >> 4);
    let mut headers: Vec<(&str, &[u8])> = vec![("x-forwarded-for", client.as_bytes())];
    let mut path = format!("/api/{}", step % 4);
    match act % 16 {
        0..=3 => headers.push(("grpc-timeout", b"10m")),
        4 => headers.push(("grpc-timeout", b"0m")),
        7 => headers.extend([("x-api-key", &b"key-1"[..]), ("x-api-key", b"evil")]),
        8 => headers.extend([("x-forwarded-host", &b"evil"[..]), ("x-cost", b"0")]),
        9 => headers.extend([
            ("x-haven-upstream", &b"6.6.6.6:1"[..]),
            ("x-haven-cluster", b"evil"),
        ]),
        10 => path = format!("/api/{};x?{act}", step % 4),
        11 => path = format!("/api/{}?junk={step}", step % 4),
        12 => headers.push(("cookie", b"sid=evil; sid=other")),
        _ => {}
    }
    if act % 16 == 3 {
        headers.push(("content-type", b"application/grpc"));
    }
    let stream = SimStream::request("GET", &path, &headers);
    let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
    let whole = act % 16 != 6;
    exchange.on_request_headers(&proxy.worker, &stream, whole);
    let list = stream
        .request_header("x-haven-upstream")
        .unwrap_or_default();
    assert!(!list.contains("6.6.6.6"), "a client names no endpoint");
    if stream.replied().is_none() {
        let first = list.split(',').next();
        proxy.machine.advance(Nanos::from_millis(10));
        match act % 16 {
            0 => {
                stream.fail(504, "response_timeout", first, 1);
                exchange.on_response(&proxy.worker, &stream);
            }
            1 => answer(proxy, &mut exchange, &stream, 504, b"too late"),
            2 => {
                stream.answer(200, first, &[]);
                exchange.on_response_headers(&proxy.worker, &stream, false);
                stream.set_property(Property::ResponseCodeDetails, b"response_timeout");
                stream.set_property(Property::ResponseFlags, &(1u64 << 2).to_le_bytes());
                exchange.on_cut(&proxy.worker, &stream);
            }
            3 => {
                stream.answer(200, first, &[]);
                exchange.on_response_headers(&proxy.worker, &stream, false);
                stream.trail(&[("grpc-status", b"4")]);
                exchange.on_response_trailers(&proxy.worker, &stream);
            }
            // It hangs up, before an answer and in the middle of one.
            5 => {}
            13 => {
                stream.answer(200, first, &[]);
                exchange.on_response_headers(&proxy.worker, &stream, false);
                stream.set_property(
                    Property::ResponseCodeDetails,
                    b"downstream_remote_disconnect",
                );
                exchange.on_cut(&proxy.worker, &stream);
            }
            6 => {
                open.push(exchange);
                return stream;
            }
            _ => answer(proxy, &mut exchange, &stream, 200, b"evil"),
        }
    }
    exchange.on_end(&proxy.worker);
    stream
}

/// Two requests, one kept and one that fails: the second gets the answer of the first only if a
/// plain model takes them for the same.
///
/// The input: `path`, then a header in each line, and after a byte of zero the same for the second.
pub fn check_stale_key(data: &[u8]) {
    let config = once_per_thread!(Config, || {
        parsed(
            r#"{"fallbacks": {"f": {"steps": [{"stale": {"vary": ["x-who"]}}, {"respond": {"status": 203}}]}},
                "routes": [{"name": "r", "fallback": "f"}]}"#,
        )
    });
    let mut parts = data.splitn(2, |b| *b == 0);
    let (one, other) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let (one, other) = (AskedFor::read(one), AskedFor::read(other));
    let proxy = Proxy::new(config, HostKind::Envoy);
    let send = |asked: &AskedFor, status: u16| {
        let headers: Vec<_> = asked
            .headers
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_slice()))
            .collect();
        let stream = SimStream::request("GET", &asked.path, &headers);
        let mut exchange = proxy.begin(&stream);
        if stream.replied().is_none() {
            let body: &[u8] = if status == 200 {
                b"the first's"
            } else {
                b"failed"
            };
            answer(&proxy, &mut exchange, &stream, status, body);
        }
        exchange.on_end(&proxy.worker);
        stream.sent().1
    };
    send(&one, 200);
    if send(&other, 500) == b"the first's" {
        assert_eq!(one.model(), other.model());
        assert_eq!(one.of("authorization"), None::<Vec<u8>>);
        assert_eq!(other.of("authorization"), None::<Vec<u8>>);
    }
}

/// What a request of [`check_stale_key`] asks for.
struct AskedFor {
    path: String,
    headers: Vec<(String, Vec<u8>)>,
}

impl AskedFor {
    fn read(data: &[u8]) -> Self {
        let mut lines = data.split(|b| *b == b'\n');
        let path = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let header = |line: &[u8]| {
            let at = line.iter().position(|b| *b == b':')?;
            let name = std::str::from_utf8(line.get(..at)?)
                .ok()?
                .to_ascii_lowercase();
            let plain =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            plain.then(|| (name, line.get(at + 1..).unwrap_or_default().to_vec()))
        };
        Self {
            path,
            headers: lines.filter_map(header).collect(),
        }
    }

    fn of(&self, name: &str) -> Option<Vec<u8>> {
        let its: Vec<&[u8]> = self
            .headers
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, value)| value.as_slice())
            .collect();
        (!its.is_empty()).then(|| its.join(&b", "[..]))
    }

    /// All that may tell its answer from another's.
    fn model(&self) -> (String, Vec<Option<Vec<u8>>>) {
        let path = self.path.split('#').next().unwrap_or_default().to_owned();
        let telling = [
            "x-who",
            "x-api-key",
            "x-auth-token",
            "x-forwarded-client-cert",
            "x-forwarded-host",
            "x-http-method-override",
            "x-original-url",
            "x-user-id",
        ];
        (path, telling.map(|name| self.of(name)).into())
    }
}

/// What Envoy's admin interface may answer: see [`check_source`].
pub fn check_envoy_hosts(data: &[u8]) {
    let good = br#"{"cluster_statuses": [{"name": "u", "host_statuses": [
        {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}, "weight": 1}]}]}"#;
    check_source(r#"{"envoy": {}}"#, data, good);
    if let Ok(hosts) = envoy::parse(data, "u") {
        assert_sound_members(&hosts.members);
    }
}

/// What Consul may answer: see [`check_source`].
pub fn check_consul(data: &[u8]) {
    let good = br#"[{"Service": {"Address": "10.0.0.1", "Port": 80}}]"#;
    check_source(
        r#"{"consul": {"cluster": "c", "service": "s"}}"#,
        data,
        good,
    );
    if let Ok(members) = consul::parse(data) {
        assert_sound_members(&members);
    }
}

/// What etcd may answer: see [`check_source`]. Bytes of zero are between pages.
pub fn check_etcd(data: &[u8]) {
    // "10.0.0.1:80" at the key "u".
    let good = br#"{"kvs": [{"key": "dQ==", "value": "MTAuMC4wLjE6ODA="}]}"#;
    let etcd = r#"{"etcd": {"cluster": "c", "prefix": "/u/"}}"#;
    check_source(etcd, data, good);
    let user =
        r#"{"etcd": {"cluster": "c", "prefix": "/u/", "username": "n", "password_env": "P"}}"#;
    check_source(user, data, good);
}

fn assert_sound_members(members: &Membership) {
    let mut builder = Builder::default();
    for it in members.members() {
        let named = Named {
            address: &it.address,
            weight: it.weight.into(),
            priority: it.priority.into(),
            zone: it.zone.as_deref().unwrap_or_default(),
            verdict: it.verdict,
        };
        assert_eq!(builder.add(named), Ok(()));
    }
    assert_eq!(builder.finish().as_ref(), Ok(members), "sound as it is");
}

/// Any bytes in answers, piece by piece, for as long as there are some, and then good answers: none
/// takes away what is known without a second one that says so, each failure has one short line with
/// a reason and no secret, and the good answers count again.
fn check_source(source: &str, data: &[u8], good: &[u8]) {
    let config = format!(
        r#"{{"discovery": {{"envoy_admin": "a"}}, "upstreams": {{"u": {{"endpoints": {source}}}}}}}"#
    );
    let machine = Machine::new(HostKind::Envoy, 7);
    let secret = ("P".to_owned(), "s3cret".to_owned());
    machine.variables.borrow_mut().insert(secret.0, secret.1);
    let worker = Worker(Rc::clone(&machine));
    let engine = Engine::new(parsed(&config), &worker).expect("a valid configuration");
    let round = |pieces: &mut dyn Iterator<Item = &[u8]>, status: &str| {
        machine.advance(Nanos::from_secs(10));
        engine.check(&worker, machine.now());
        let mut calls = 0;
        while let Some(call) = machine.take_outgoing().into_iter().next() {
            calls += 1;
            assert!(calls < 40, "a question ends");
            let path = call.header(":path").unwrap_or_default();
            let token = br#"{"token": "t"}"#;
            let body = match pieces.next() {
                Some(piece) => piece,
                None if path.ends_with("authenticate") => token,
                None => good,
            };
            let answer = CallAnswer::Http {
                headers: HeaderMap::from_pairs(&[(":status", status), ("x-consul-index", "7")]),
                body: body.to_vec(),
                size: body.len(),
            };
            engine.answered(&worker, call.id, &answer, machine.now());
            engine.check(&worker, machine.now());
        }
        SourceRecord::new("u").read(&worker)
    };
    let known = round(&mut std::iter::empty(), "200");
    assert_eq!(known.members.len(), 1, "{:?}", known.status);
    for status in ["200", "401", "500"] {
        let mut pieces = data.split(|byte| *byte == 0);
        let after = round(&mut pieces, status);
        let reason = &after.status.reason;
        let is_line = reason.len() <= 240 && !reason.chars().any(char::is_control);
        assert!(is_line && !reason.contains("s3cret"), "{reason:?}");
        let stays = after.members.find("10.0.0.1:80").is_some();
        assert!(stays, "one answer takes nothing away: {:?}", after.members);
        let mut last = round(&mut std::iter::empty(), "200");
        for _ in 0..2 {
            last = round(&mut std::iter::empty(), "200");
        }
        assert_eq!(last.status.state, SourceState::Ok, "{:?}", last.status);
        assert_eq!(last.members, known.members);
    }
}
