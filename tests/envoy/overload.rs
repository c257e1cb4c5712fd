//! Rate limits under overload in a real Envoy with four workers: what they admit, held against wall
//! time.
//!
//! Both bounds are exact; neither has a tolerance for a slow or busy machine:
//!
//! - **The most.** A request is decided between the moment before it was sent and the moment after
//!   it was answered. So in an interval of length t at most burst + rate·t may have been admitted,
//!   for the whole run and for each part of it: see [`peak`].
//! - **The least.** A bucket that is full does not fill further, so a load that pauses loses
//!   tokens, whoever keeps the bucket. How many at most is known from the answers: see [`Least`].
//!   What is left of burst + rate·t must have been admitted, less the 1 % that leases may cost. On
//!   a machine that keeps the load up nothing is lost, and this is 99 % of the bound.
//!
//! `HAVEN_OVERLOAD_SECONDS` sets the time of the flood (8).

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::filter::{assert_sound, counted};
use crate::support::config::{LABELS, label_regex, socket_address};
use crate::support::{Envoy, EnvoyConfig, haven_wasm, run_alone};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// The share of what the load left to admit that must have been admitted.
const LEAST_SHARE: f64 = 0.99;

/// How the requests travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    H1,
    H2,
}

/// A token bucket that is flooded.
#[derive(Clone, Debug)]
struct Lane {
    name: String,
    path: String,
    /// `x-client`, if any.
    client: Option<String>,
    rate: f64,
    burst: f64,
}

/// A connection and its load: rounds of requests that are sent at once, each when all of the round
/// before are answered.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// The lane of the n-th request.
    lane: fn(u64) -> usize,
    /// Requests of a round.
    at_once: usize,
    /// Time between rounds, in ms.
    pause: u64,
}

/// A request that was answered. Times are in seconds since the flood began.
#[derive(Clone, Copy, Debug)]
struct Answer {
    /// Before it was sent.
    sent: f64,
    /// After it was answered.
    answered: f64,
    admitted: bool,
}

#[test]
fn http1_overload_is_cut_to_the_rate() {
    // Two requests at once are the most that Envoy takes on a connection of HTTP/1.1.
    let load = |lane, at_once, pause, connections| {
        vec![
            Load {
                lane,
                at_once,
                pause
            };
            connections
        ]
    };
    run_alone(overload(
        Wire::H1,
        &[
            load(|_| 0, 1, 10, 2),
            load(|_| 0, 1, 50, 3),
            load(|_| 1, 2, 1, 9),
            load(|_| 1, 1, 20, 3),
            load(|_| 2, 2, 0, 14),
            load(|_| 2, 1, 0, 3),
            load(|_| 2, 1, 2, 5),
            load(|_| 3, 2, 1, 9),
            load(|_| 3, 1, 20, 3),
        ]
        .concat(),
    ));
}

#[test]
fn http2_overload_is_cut_to_the_rate() {
    // Three connections carry nearly all: at least one of the four workers has none of them.
    let load = |lane, at_once, pause, connections| {
        vec![
            Load {
                lane,
                at_once,
                pause
            };
            connections
        ]
    };
    run_alone(overload(
        Wire::H2,
        &[
            load(|_| 0, 2, 10, 2),
            load(|_| 0, 1, 50, 3),
            load(|_| 1, 10, 1, 6),
            load(|_| 1, 1, 20, 3),
            load(|_| 2, 100, 0, 3),
            load(|_| 2, 4, 2, 3),
            load(|_| 2, 1, 10, 3),
            load(|_| 3, 10, 1, 6),
            load(|_| 3, 1, 20, 3),
        ]
        .concat(),
    ));
}

/// Limits from low to high and Envoy's own, all at once.
async fn overload(wire: Wire, loads: &[Load]) {
    let time = Duration::from_secs(
        std::env::var("HAVEN_OVERLOAD_SECONDS").map_or(8, |text| text.parse().unwrap()),
    );
    let lanes: Vec<Lane> = [
        ("5-per-s", 5.0, 5.0),
        ("100-per-s", 100.0, 100.0),
        ("20000-per-s", 20_000.0, 2_000.0),
        ("envoy", 100.0, 100.0),
    ]
    .map(|(name, rate, burst)| Lane {
        name: name.to_owned(),
        path: format!("/{name}"),
        client: None,
        rate,
        burst,
    })
    .into();
    let (ours, envoys) = lanes.split_at(3);
    let limits: Value = ours
        .iter()
        .map(|lane| (lane.name.clone(), limit(lane)))
        .collect();
    let routes: Value = ours
        .iter()
        .map(|lane| json!({"name": lane.name, "match": {"prefix": lane.path}, "rate_limits": [lane.name]}))
        .collect();
    let filter = json!({"rate_limits": limits, "routes": routes});
    let mut envoy = Envoy::start(envoy_with(&filter, &envoys[0])).await;
    let answers = flood(envoy.addr(), wire, &lanes, loads, time).await;

    println!(
        "\n{wire:?}, {time:?}, connections of the workers: {}",
        connections(&envoy).await
    );
    let results: Vec<Outcome> = lanes
        .iter()
        .zip(answers)
        .map(|(lane, answers)| Outcome::new(lane, answers))
        .collect();
    println!("{}", table(&results));
    for (lane, result) in ours.iter().zip(&results) {
        let labels = [
            ("route", &*lane.name),
            ("policy", &*lane.name),
            ("reason", "rate_limited"),
            ("mode", "enforce"),
        ];
        assert_eq!(
            counted(&envoy, &labels).await,
            result.offered - result.admitted,
            "{}",
            lane.name
        );
        result.assert_exact();
        // The unpaced load is as much as the machine gives: the table says how much that was. The
        // bounds hold for any.
        assert!(
            lane.rate > 100.0 || result.factor() >= 10.0,
            "{}: that was no overload",
            lane.name
        );
    }
    // Admitted uncounted would be over the bound.
    assert_eq!(
        envoy
            .metrics()
            .await
            .total("haven_store_contention_total", &[]),
        0.0
    );
    assert_sound(&mut envoy).await;
}

/// Clients with a bucket each.
const CLIENTS: usize = 50;

#[test]
fn each_of_fifty_clients_has_its_rate_under_skewed_load() {
    run_alone(async {
        let lanes: Vec<Lane> = (0..CLIENTS)
            .map(|number| Lane {
                name: format!("client-{number}"),
                path: "/".to_owned(),
                client: Some(format!("client-{number}")),
                rate: 100.0,
                burst: 100.0,
            })
            .collect();
        // A quarter of all requests is of the first client, 1 in 150 of the last.
        let skewed = |number: u64| {
            let uniform = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11;
            let uniform = uniform as f64 / (1_u64 << 53) as f64;
            (uniform.powi(3) * CLIENTS as f64) as usize
        };
        let load = |at_once, pause, connections| {
            vec![
                Load {
                    lane: skewed,
                    at_once,
                    pause
                };
                connections
            ]
        };
        let mut per_client = limit(&lanes[0]);
        per_client["key"] = json!([{"header": "x-client"}]);
        let filter = json!({
            "rate_limits": {"per-client": per_client},
            "routes": [{"name": "all", "rate_limits": ["per-client"]}],
        });
        let mut envoy = Envoy::start(envoy_with(&filter, &lanes[0])).await;
        let loads = [load(50, 0, 3), load(8, 1, 4), load(1, 5, 5)].concat();
        let answers = flood(
            envoy.addr(),
            Wire::H2,
            &lanes,
            &loads,
            Duration::from_secs(4),
        )
        .await;

        println!(
            "\n{CLIENTS} clients, connections of the workers: {}",
            connections(&envoy).await
        );
        let results: Vec<Outcome> = lanes
            .iter()
            .zip(answers)
            .map(|(lane, answers)| Outcome::new(lane, answers))
            .collect();
        println!("{}", table(&results[..3]) + &table(&results[CLIENTS - 2..]));
        let refused: u64 = results
            .iter()
            .map(|result| result.offered - result.admitted)
            .sum();
        assert_eq!(counted(&envoy, &[]).await, refused);
        for result in &results {
            result.assert_exact();
        }
        let metrics = envoy.metrics().await;
        assert_eq!(metrics.total("haven_store_contention_total", &[]), 0.0);
        assert_eq!(metrics.total("haven_rate_limit_keys", &[]), CLIENTS as f64);
        assert_sound(&mut envoy).await;
    });
}

/// A limit's configuration.
fn limit(lane: &Lane) -> Value {
    json!({"limit": lane.rate as u64, "burst": lane.burst as u64, "headers": "none"})
}

/// An Envoy with haven and, on one path, Envoy's own limit. It writes no access log: that would
/// cost more than the limits.
fn envoy_with(filter: &Value, own: &Lane) -> EnvoyConfig {
    let local_ratelimit = |more: &Value| {
        let mut config = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "local",
        });
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        config
    };
    let always = json!({"default_value": {"numerator": 100, "denominator": "HUNDRED"}});
    let own_limit = local_ratelimit(&json!({
        // Envoy refills continuously, whatever the interval. Whole numbers, written as such: an Envoy
        // before 1.37 takes no other.
        "token_bucket": {"max_tokens": own.burst as u32, "tokens_per_fill": own.rate as u32, "fill_interval": "1s"},
        "filter_enabled": always,
        "filter_enforced": always,
    }));
    let wasm = haven_wasm().unwrap_or_else(|error| panic!("{error}"));
    let ok = json!({"status": 200, "body": {"inline_string": "ok"}});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "http_filters": [
            {"name": "haven", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "config": {
                    "name": "haven",
                    "root_id": "haven",
                    "failure_policy": "FAIL_RELOAD",
                    "allow_on_headers_stop_iteration": true,
                    "vm_config": {
                        "vm_id": "haven", "runtime": "envoy.wasm.runtime.v8", "code": {"local": {"filename": wasm}},
                    },
                    "configuration": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue", "value": filter.to_string(),
                    },
                },
            }},
            {"name": "local_ratelimit", "typed_config": local_ratelimit(&json!({}))},
            {"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            }},
        ],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/envoy"}, "direct_response": ok, "typed_per_filter_config": {"local_ratelimit": own_limit}},
            {"match": {"prefix": "/"}, "direct_response": ok},
        ]}]},
    });
    let address = socket_address(SocketAddr::from(([127, 0, 0, 1], 0)));
    let tags: Value = LABELS
        .iter()
        .map(|label| json!({"tag_name": label, "regex": label_regex(label)}))
        .collect();
    let bootstrap = json!({
        "admin": {"address": address},
        "stats_config": {"stats_tags": tags},
        "static_resources": {"listeners": [{
            "name": "overload",
            "address": address,
            "filter_chains": [{"filters": [
                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
            ]}],
        }]},
    });
    EnvoyConfig::text(bootstrap.to_string())
}

/// How many connections each worker has got.
async fn connections(envoy: &Envoy) -> String {
    let page = envoy
        .admin_get("/stats?filter=^listener\\..*worker_.*downstream_cx_total")
        .await;
    page.lines()
        .filter_map(|line| line.rsplit(": ").next())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Sends all loads for `time`, and says what came back, by lane.
async fn flood(
    addr: SocketAddr,
    wire: Wire,
    lanes: &[Lane],
    loads: &[Load],
    time: Duration,
) -> Vec<Vec<Answer>> {
    let requests: Arc<[Vec<u8>]> = lanes.iter().map(|lane| request(wire, lane)).collect();
    let mut connections = Vec::new();
    for load in loads {
        connections.push((*load, Connection::open(addr, wire).await));
    }
    let (begun, count) = (Instant::now(), lanes.len());
    let mut senders = JoinSet::new();
    for (number, (load, connection)) in (0_u64..).zip(connections) {
        let requests = requests.clone();
        // Each begins elsewhere in its sequence.
        let sender = send(connection, load, requests, number << 32, begun, time);
        senders.spawn(timeout(time + crate::support::PATIENCE, sender));
    }
    let mut answers = vec![Vec::new(); count];
    while let Some(part) = senders.join_next().await {
        for (lane, answer) in part.unwrap().expect("an answer in time") {
            answers[lane].push(answer);
        }
    }
    answers
}

/// Sends one connection's load.
async fn send(
    mut connection: Connection,
    load: Load,
    requests: Arc<[Vec<u8>]>,
    mut number: u64,
    begun: Instant,
    time: Duration,
) -> Vec<(usize, Answer)> {
    let mut answers = Vec::new();
    let mut round: VecDeque<(usize, Answer)> = VecDeque::new();
    while begun.elapsed() < time {
        let sent = begun.elapsed().as_secs_f64();
        for _ in 0..load.at_once {
            let lane = (load.lane)(number);
            number = number.wrapping_add(1);
            connection.put(&requests[lane]);
            round.push_back((
                lane,
                Answer {
                    sent,
                    answered: 0.0,
                    admitted: false,
                },
            ));
        }
        connection.send().await;
        let first = answers.len();
        answers.extend(round.drain(..));
        let mut missing = load.at_once;
        while missing > 0 {
            connection.receive().await;
            let answered = begun.elapsed().as_secs_f64();
            while let Some((index, status)) = connection.next() {
                assert!(
                    status == 200 || status == 429,
                    "an answer of status {status}"
                );
                let answer = &mut answers[first + index].1;
                (answer.answered, answer.admitted) = (answered, status == 200);
                missing -= 1;
            }
        }
        if load.pause > 0 {
            sleep(Duration::from_millis(load.pause)).await;
        }
    }
    answers
}

/// A request as bytes: of HTTP/2, its block of headers.
fn request(wire: Wire, lane: &Lane) -> Vec<u8> {
    let client = lane.client.as_deref();
    match wire {
        Wire::H1 => {
            let client = client.map_or(String::new(), |name| format!("x-client: {name}\r\n"));
            format!("GET {} HTTP/1.1\r\nhost: x\r\n{client}\r\n", lane.path).into()
        }
        Wire::H2 => {
            // HPACK without Huffman and the dynamic table. GET, http, then a path, an authority and
            // a header of any name.
            let text =
                |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            let client = client.map_or(vec![], |name| {
                [vec![0], text("x-client"), text(name)].concat()
            });
            [
                vec![0x82, 0x86, 0x04],
                text(&lane.path),
                vec![0x01],
                text("x"),
                client,
            ]
            .concat()
        }
    }
}

/// A connection of the cheapest client there is: on two cores a full one would take more of them
/// than Envoy. It knows of HTTP what Envoy's answers to [`request`] need.
struct Connection {
    stream: TcpStream,
    wire: Wire,
    out: Vec<u8>,
    received: Vec<u8>,
    /// Bytes of `received` that are used up.
    used: usize,
    /// HTTP/2: the streams of the round, and its answers' statuses.
    next_stream: u32,
    first_stream: u32,
    statuses: Vec<u16>,
    /// HTTP/1.1: answers of the round so far.
    answered: usize,
}

impl Connection {
    async fn open(addr: SocketAddr, wire: Wire) -> Self {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        if wire == Wire::H2 {
            let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            // No dynamic table for answers, and no flow control worth the name.
            frame(&mut hello, 4, 0, 0, &[0, 1, 0, 0, 0, 0]);
            frame(
                &mut hello,
                8,
                0,
                0,
                &(i32::MAX as u32 - 65_535).to_be_bytes(),
            );
            stream.write_all(&hello).await.unwrap();
        }
        let (out, received) = (Vec::new(), Vec::with_capacity(1 << 16));
        Self {
            stream,
            wire,
            out,
            received,
            used: 0,
            next_stream: 1,
            first_stream: 1,
            statuses: vec![],
            answered: 0,
        }
    }

    /// Adds a request to the next round.
    fn put(&mut self, request: &[u8]) {
        match self.wire {
            Wire::H1 => self.out.extend_from_slice(request),
            Wire::H2 => {
                // END_STREAM and END_HEADERS.
                frame(&mut self.out, 1, 0x5, self.next_stream, request);
                self.next_stream += 2;
            }
        }
    }

    /// Sends the round. All of the one before must have been answered.
    async fn send(&mut self) {
        self.stream
            .write_all(&self.out)
            .await
            .expect("Envoy takes requests");
        self.out.clear();
        self.answered = 0;
        let streams = (self.next_stream - self.first_stream) as usize / 2;
        self.statuses.clear();
        self.statuses.resize(streams, 0);
    }

    /// Waits for bytes.
    async fn receive(&mut self) {
        self.received.drain(..self.used);
        self.used = 0;
        assert!(
            self.stream.read_buf(&mut self.received).await.unwrap() > 0,
            "Envoy has hung up"
        );
    }

    /// An answer that has come whole, if there is one: its place in the round, and its status.
    fn next(&mut self) -> Option<(usize, u16)> {
        match self.wire {
            Wire::H1 => {
                let bytes = &self.received[self.used..];
                let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
                let length = b"\r\ncontent-length: ";
                let at = bytes[..end]
                    .windows(length.len())
                    .position(|part| part == length)
                    .expect("a length");
                let digits = bytes[at + length.len()..]
                    .iter()
                    .take_while(|byte| byte.is_ascii_digit());
                let whole = end + number(digits);
                if bytes.len() < whole {
                    return None;
                }
                let status = number(bytes[9..12].iter());
                self.used += whole;
                self.answered += 1;
                Some((self.answered - 1, status as u16))
            }
            Wire::H2 => loop {
                let bytes = &self.received[self.used..];
                let head = bytes.first_chunk::<9>()?;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let (kind, flags) = (head[3], head[4]);
                let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                let payload = bytes.get(9..9 + length)?;
                self.used += 9 + length;
                let index = (stream.wrapping_sub(self.first_stream) / 2) as usize;
                match kind {
                    0 => {}
                    1 => self.statuses[index] = status(payload),
                    // Its settings bind whom they concern; they are acknowledged with the next
                    // round.
                    4 if flags == 0 => frame(&mut self.out, 4, 1, 0, &[]),
                    4 | 8 => {}
                    _ => panic!("a frame of type {kind}: {payload:?}"),
                }
                if kind <= 1 && flags & 1 == 1 {
                    self.answered += 1;
                    if self.answered == self.statuses.len() {
                        self.first_stream = self.next_stream;
                    }
                    return Some((index, self.statuses[index]));
                }
            },
        }
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn number<'a>(digits: impl Iterator<Item = &'a u8>) -> usize {
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

/// `:status`, the first header of an answer: 200 has an index of its own, others are literals under
/// the same name.
fn status(block: &[u8]) -> u16 {
    // A change of the table's size may precede it.
    let block = if block[0] & 0xe0 == 0x20 {
        &block[1..]
    } else {
        block
    };
    match block {
        [0x88, ..] => 200,
        [0x08 | 0x18 | 0x48, 3, digits @ ..] => number(digits[..3].iter()) as u16,
        [0x08 | 0x18 | 0x48, 0x83, digits @ ..] if digits[..3] == HUFFMAN_429 => 429,
        _ => panic!("headers that begin with {block:x?}"),
    }
}

/// 4 = 011010, 2 = 00010, 9 = 011111, and ones to the end.
const HUFFMAN_429: [u8; 3] = [0b0110_1000, 0b0100_1111, 0b1111_1111];

/// What a flood came to for one lane.
#[derive(Debug)]
struct Outcome {
    lane: Lane,
    offered: u64,
    admitted: u64,
    /// From before the first was sent until after the last was answered.
    elapsed: f64,
    /// Burst + rate × `elapsed`.
    most: f64,
    /// Of all intervals: what was admitted in one beyond rate × its length.
    peak: f64,
    least: Least,
    /// The load of the weakest second, in multiples of the rate.
    weakest: f64,
}

impl Outcome {
    fn new(lane: &Lane, mut answers: Vec<Answer>) -> Self {
        answers.sort_unstable_by(|a, b| a.answered.total_cmp(&b.answered));
        let begin = answers
            .iter()
            .map(|answer| answer.sent)
            .fold(f64::INFINITY, f64::min);
        let elapsed = answers.last().expect("answers").answered - begin;
        let mut seconds = vec![0_u64; (elapsed as usize).max(1)];
        for answer in &answers {
            if let Some(second) = seconds.get_mut((answer.sent - begin) as usize) {
                *second += 1;
            }
        }
        Self {
            offered: answers.len() as u64,
            admitted: answers.iter().filter(|answer| answer.admitted).count() as u64,
            elapsed,
            most: lane.rate.mul_add(elapsed, lane.burst),
            peak: peak(lane.rate, &answers),
            least: Least::of(lane.rate, lane.burst, &answers),
            weakest: seconds.into_iter().min().unwrap_or(0) as f64 / lane.rate,
            lane: lane.clone(),
        }
    }

    /// Offered, in multiples of the rate.
    fn factor(&self) -> f64 {
        self.offered as f64 / (self.lane.rate * self.elapsed)
    }

    fn assert_exact(&self) {
        let Self {
            lane: Lane { name, burst, .. },
            admitted,
            most,
            peak,
            ..
        } = self;
        assert!(
            *admitted as f64 <= *most,
            "{name}: {admitted} were admitted, at most {most:.1} may\n{self:?}"
        );
        // Sums of a million fractions: a thousandth of a token is far more than they are off, and
        // far less than a token.
        assert!(
            *peak <= burst + 0.001,
            "{name}: a burst of {peak:.3}, at most {burst} may be\n{self:?}"
        );
        let least = self.least.tokens();
        // What is admitted is whole.
        let demanded = (LEAST_SHARE * least).floor();
        assert!(
            *admitted as f64 >= demanded,
            "{name}: {admitted} were admitted, at least {demanded} must\n{self:?}"
        );
    }
}

/// The results in columns.
fn table(results: &[Outcome]) -> String {
    let mut text = format!(
        "{:<12} {:>8} {:>7} {:>8} {:>9} {:>10} {:>9} {:>8} {:>10} {:>9}\n",
        "limit",
        "offered",
        "x rate",
        "weakest",
        "admitted",
        "bound",
        "of bound",
        "peak",
        "least",
        "of least"
    );
    for result in results {
        let Outcome {
            lane,
            offered,
            admitted,
            most,
            peak,
            least,
            weakest,
            ..
        } = result;
        let share = |of: f64| 100.0 * *admitted as f64 / of;
        // A token that is not whole admits no request.
        let whole = most.floor();
        writeln!(
            text,
            "{:<12} {offered:>8} {:>7.1} {weakest:>8.1} {admitted:>9} {whole:>10} {:>8.2}% {peak:>8.1} {:>10.1} {:>8.2}%",
            lane.name,
            result.factor(),
            share(whole),
            least.tokens(),
            share(least.tokens()),
        )
        .unwrap();
    }
    text
}

/// The most that was certainly admitted in any interval beyond what its length allows; it may not
/// exceed the burst.
///
/// Of an interval from s to t: who was answered by t, less who was sent before s, were admitted in
/// it. (`answers` are sorted by when they were answered.)
fn peak(rate: f64, answers: &[Answer]) -> f64 {
    let admitted = || answers.iter().filter(|answer| answer.admitted);
    let mut sent: Vec<f64> = admitted().map(|answer| answer.sent).collect();
    sent.sort_unstable_by(f64::total_cmp);
    let mut begins = sent.iter().zip(0_u64..).peekable();
    let (mut best, mut peak) = (f64::NEG_INFINITY, 0.0_f64);
    for (answer, answered) in admitted().zip(1_u64..) {
        while let Some((begin, before)) = begins.next_if(|(begin, _)| **begin <= answer.answered) {
            best = best.max(rate * begin - before as f64);
        }
        peak = peak.max(answered as f64 - rate * answer.answered + best);
    }
    peak
}

/// The least that a token bucket must have admitted, whenever the requests really reached it.
///
/// A bucket is full when its first request comes. From then on what it admits is burst + rate ×
/// time, less what flowed over while it was full, less what it holds at the end. Here a level is
/// kept that is never below the bucket's: it is full at the first answer, when the bucket may have
/// been drawn from for a while; it rises at the rate; an admission lowers it when its answer is
/// there, which is later than in the bucket; and a refusal says that the bucket held less than one
/// token when it was decided, which was after it was sent. (An admission that may have come before
/// such a refusal, having been sent before its answer, does not lower the level: it is known
/// already.) So what flows over here, and what is left here, is at least what it was in the bucket.
#[derive(Clone, Copy, Debug, Default)]
struct Least {
    /// Burst + rate × the time from the first answer to the last.
    all: f64,
    /// The most that flowed over, for want of requests.
    lost: f64,
    /// The most that were left at the end.
    left: f64,
}

impl Least {
    fn of(rate: f64, burst: f64, answers: &[Answer]) -> Self {
        let Some(first) = answers.first() else {
            return Self::default();
        };
        let (mut level, mut now, mut lost, mut known_at) = (burst, first.answered, 0.0, 0.0);
        for answer in answers {
            let risen = rate.mul_add(answer.answered - now, level);
            lost += (risen - burst).max(0.0);
            (level, now) = (risen.min(burst), answer.answered);
            if answer.admitted {
                level -= if answer.sent >= known_at { 1.0 } else { 0.0 };
            } else {
                let held = rate.mul_add(answer.answered - answer.sent, 1.0);
                if held < level {
                    (level, known_at) = (held, answer.answered);
                }
            }
        }
        Self {
            all: rate.mul_add(now - first.answered, burst),
            lost,
            left: level,
        }
    }

    /// The number.
    fn tokens(&self) -> f64 {
        self.all - self.lost - self.left
    }
}

/// The yardstick itself: a perfect bucket is never found wanting, however late its answers, and one
/// that is wrong is found out.
#[test]
fn the_bounds_hold_for_a_perfect_bucket_and_for_no_other() {
    let mut random = 1_u64;
    let mut uniform = move || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 11) as f64 / (1_u64 << 53) as f64
    };
    // The bucket's rate, of what it should be; requests per token; their delay, of the time in
    // which the bucket fills.
    for real in [1.0, 0.98, 1.02] {
        for (load, delay) in [
            (0.5, 0.1),
            (0.9, 0.3),
            (1.1, 2.0),
            (1.6, 0.1),
            (10.0, 0.05),
            (10.0, 1.5),
        ] {
            let (rate, burst, time) = (1_000.0, 50.0, 20.0);
            let mut due: Vec<f64> = (0..(rate * load * time) as u64)
                .map(|_| uniform() * time)
                .collect();
            // A pause now and then.
            due.retain(|time| time % 1.0 < 0.9);
            due.sort_unstable_by(f64::total_cmp);
            let (mut level, mut now) = (burst, 0.0);
            let mut answers: Vec<Answer> = due
                .into_iter()
                .map(|at| {
                    level = (rate * real).mul_add(at - now, level).min(burst);
                    now = at;
                    let admitted = level >= 1.0;
                    level -= if admitted { 1.0 } else { 0.0 };
                    let mut late = || uniform().powi(4) * delay * burst / rate;
                    Answer {
                        sent: at - late(),
                        answered: at + late(),
                        admitted,
                    }
                })
                .collect();
            answers.sort_unstable_by(|a, b| a.answered.total_cmp(&b.answered));
            let admitted = answers.iter().filter(|answer| answer.admitted).count() as f64;
            let least = Least::of(rate, burst, &answers);
            let peak = peak(rate, &answers);
            let said = format!("{real} {load} {delay}: {admitted}, {least:?}, peak {peak}");
            if real <= 1.0 {
                assert!(peak <= burst + 0.001, "{said}");
            }
            if real == 1.0 {
                assert!(admitted >= least.tokens(), "{said}");
                // And with much load and short delays it says nearly all.
                assert!(
                    load < 10.0 || delay > 0.1 || least.tokens() > 0.995 * admitted,
                    "{said}"
                );
            }
            if load == 10.0 && delay < 0.1 {
                assert!(
                    real >= 1.0 || admitted < LEAST_SHARE * least.tokens(),
                    "{said}"
                );
                assert!(real <= 1.0 || peak > burst + 0.001, "{said}");
            }
        }
    }
}
