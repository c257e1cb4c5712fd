//! haven in the proxy: the one file that calls the engine. Envoy's own part is in `envoy`.

use crate::config::address;
use crate::draw::Time;
use haven::base::headers::HeaderMap;
use haven::base::time::{Moment, Nanos};
use haven::engine::chain::{Action, Exchange};
use haven::engine::{Engine, TICK};
use haven::host::sim::{HostKind, Machine, Outgoing, SimStream, Worker};
use haven::host::{CallAnswer, Message, Property, Stream};
use serde_json::Value;
use std::rc::Rc;

/// A proxy with some workers, and a VM more that ticks and sees no request.
pub struct Haven {
    machine: Rc<Machine>,
    start: Moment,
    vms: Vec<(Worker, Rc<Engine>)>,
    endpoints: Vec<String>,
}

/// A request in haven's hands.
pub struct Held {
    vm: usize,
    begun: Moment,
    exchange: Exchange,
    stream: SimStream,
}

/// What Envoy's router is told of a request.
#[derive(Clone, Debug, Default)]
pub struct Steer {
    /// Endpoints in their order.
    pub list: Vec<usize>,
    /// Time for the whole; `None`: as the route has it.
    pub timeout: Option<Time>,
    /// Time for each try.
    pub per_try: Option<Time>,
    /// Retries, if they are allowed.
    pub retries: u32,
    /// What is tried again.
    pub on: String,
}

/// What the chain says to a request.
pub enum Verdict {
    /// It goes on.
    Send(Steer),
    /// It is answered.
    Reply(Reply),
}

/// An answer of haven's own.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// The reason, in haven's word.
    pub reason: String,
}

/// What Envoy shows the filter when there is an answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Envoy's `response.code_details`.
    pub details: &'static str,
    /// Envoy's `response.flags`.
    pub flags: u64,
    /// The endpoint that was tried last, if it was reached.
    pub endpoint: Option<usize>,
    /// How many tries there were.
    pub tries: u32,
}

/// `response.code_details` of an endpoint's own answer.
pub const VIA_UPSTREAM: &str = "via_upstream";

impl Haven {
    /// A proxy with this configuration.
    pub fn new(config: &Value, workers: usize, endpoints: usize, seed: u64) -> Self {
        let machine = Machine::new(HostKind::Envoy, seed);
        let vms = (0..=workers).map(|_| {
            let worker = Worker(Rc::clone(&machine));
            let config = haven::document::parse(config.to_string().as_bytes())
                .unwrap_or_else(|errors| panic!("{errors} {config}"));
            let engine = Engine::new(config, &worker).unwrap();
            (worker, Rc::new(engine))
        });
        Self {
            vms: vms.collect(),
            start: machine.now(),
            machine,
            endpoints: (0..endpoints).map(address).collect(),
        }
    }

    /// How many VMs there are: the workers', and one more.
    pub fn vms(&self) -> usize {
        self.vms.len()
    }

    /// Sets the clock.
    pub fn set_clock(&self, now: Time) {
        let to = self.start.plus(Nanos(now));
        self.machine.advance(to.since(self.machine.now()));
    }

    /// A request comes to a worker: the chain.
    pub fn request(
        &self,
        vm: usize,
        post: bool,
        path: &str,
        client: usize,
        left: Option<Time>,
    ) -> (Held, Verdict) {
        let client = client.to_string();
        let left = left.map(|left| Nanos(left).as_millis().to_string());
        let left = left.iter().map(|left| ("x-deadline", left.as_bytes()));
        let client = [("x-client", client.as_bytes())];
        let headers: Vec<(&str, &[u8])> = client.into_iter().chain(left).collect();
        let stream = SimStream::request(if post { "POST" } else { "GET" }, path, &headers);
        let (worker, engine) = &self.vms[vm];
        let mut exchange = Exchange::new(Rc::clone(engine));
        let action = exchange.on_request_headers(worker, &stream, !post);
        let mut held = Held {
            vm,
            begun: self.machine.now(),
            exchange,
            stream,
        };
        let verdict = match action {
            Action::Continue => {
                if post {
                    held.exchange.on_request_body(worker, &held.stream, true);
                }
                Verdict::Send(self.steer(&held.stream))
            }
            Action::Stop => {
                // The proxy shows the filter its own answer too.
                held.exchange
                    .on_response_headers(worker, &held.stream, true);
                Verdict::Reply(reply(&held.stream).unwrap())
            }
            other => panic!("no policy here lets a request wait: {other:?}"),
        };
        (held, verdict)
    }

    fn steer(&self, stream: &SimStream) -> Steer {
        let text = |name: &str| stream.request_header(name);
        let number = |name: &str| Some(text(name)?.parse::<u64>().unwrap());
        let millis = |name: &str| Some(Nanos::from_millis(number(name)?).0);
        let list = text("x-haven-upstream").unwrap_or_default();
        let listed = list
            .split(',')
            .filter_map(|address| self.endpoints.iter().position(|known| known == address));
        Steer {
            list: listed.collect(),
            timeout: millis("x-envoy-upstream-rq-timeout-ms"),
            per_try: millis("x-envoy-upstream-rq-per-try-timeout-ms"),
            retries: number("x-envoy-max-retries").unwrap_or(0) as u32,
            on: text("x-envoy-retry-on").unwrap_or_default(),
        }
    }

    /// There is an answer to a request, and that is its end; haven's own if it takes its place.
    pub fn answer(&self, held: &mut Held, answer: &Answer) -> Option<Reply> {
        let stream = &held.stream;
        let address = answer.endpoint.map(|at| self.endpoints[at].as_str());
        stream.fail(answer.status, answer.details, address, answer.tries.into());
        let header = |name, value: &str| {
            stream.add_header(Message::Response, name, value.as_bytes());
        };
        header("x-envoy-attempt-count", &answer.tries.to_string());
        header("content-type", "application/json");
        if answer.details == VIA_UPSTREAM {
            let took = self.machine.now().since(held.begun).as_millis();
            header("x-envoy-upstream-service-time", &took.to_string());
        }
        stream.set_property(Property::ResponseFlags, &answer.flags.to_le_bytes());
        let (worker, _) = &self.vms[held.vm];
        held.exchange.on_response_headers(worker, stream, false);
        let reply = reply(stream);
        if reply.is_none() {
            stream.piece(b"{}");
            held.exchange.on_response_body(worker, stream, 2, true);
        }
        reply
    }

    /// The stream has ended, however.
    pub fn end(&self, mut held: Held) {
        let (worker, _) = &self.vms[held.vm];
        if held.exchange.is_unsettled() {
            held.exchange.on_cut(worker, &held.stream);
        }
        held.exchange.on_end(worker);
    }

    /// A VM's periodic look; when it wants the next one.
    pub fn tick(&self, vm: usize) -> Time {
        let (worker, engine) = &self.vms[vm];
        engine.tick(worker);
        TICK.0
    }

    /// A VM looks whether checks are due: what it asks, and when it wants to look again.
    pub fn check(&self, vm: usize) -> (Vec<Outgoing>, Option<Time>) {
        let (worker, engine) = &self.vms[vm];
        let next = engine.check(worker, self.machine.now());
        (
            self.machine.take_outgoing(),
            next.map(|at| at.since(self.start).0),
        )
    }

    /// The endpoint that a call is for.
    pub fn called(&self, call: &Outgoing) -> usize {
        let address = call.header("x-haven-upstream").unwrap();
        self.endpoints.iter().position(|it| it == address).unwrap()
    }

    /// A check is answered with this status, by the endpoint or by the proxy.
    pub fn checked(&self, vm: usize, call: &Outgoing, status: u16, own: bool) {
        let mut headers = vec![(":status", status.to_string())];
        if own {
            headers.push(("x-envoy-upstream-service-time", "1".into()));
        }
        let answer = CallAnswer::Http {
            headers: HeaderMap::from_pairs(&headers),
            body: Vec::new(),
            size: 0,
        };
        let (worker, engine) = &self.vms[vm];
        engine.answered(worker, call.id, &answer, self.machine.now());
    }

    /// The values of all metrics whose names begin so.
    pub fn metrics(&self, prefix: &str) -> Vec<(String, u64)> {
        self.machine.metrics_of(prefix)
    }
}

/// The answer that haven has given, with the last reason that it has decided for.
fn reply(stream: &SimStream) -> Option<Reply> {
    let status = stream.replied()?.status;
    let decisions = stream.decision().unwrap_or_default();
    let last = decisions.rsplit(',').next().unwrap_or_default();
    Some(Reply {
        status,
        reason: last.split(' ').next().unwrap_or_default().to_owned(),
    })
}
