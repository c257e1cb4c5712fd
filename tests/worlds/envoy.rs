//! Envoy's own part: its router takes a request to endpoints, and tries again, as Envoy 1.40 was
//! seen to do.
//!
//! - The timeout for the whole begins with the request; that of a try when its connection is there.
//! - Try n goes to the nth endpoint of the override list; behind its end, and without a list, round
//!   robin of the worker's own, which leaves out those that were tried (`previous_hosts`, five
//!   draws).
//! - Before a retry is a pause: at random below 5 ms, then below 10, then 20 ms, as envoy.yaml has
//!   it.
//! - A request that is cut off closes its connection (HTTP/1.1).

use crate::draw::{Draw, MS, Time};
use crate::fault::Reach;
use crate::proxy::{Answer, Held, Steer, VIA_UPSTREAM};
use crate::record::End;
use crate::sim::{Event, HOP, Owner, Sim};
use crate::support::slots::Job;
use crate::world::{CONNECT_TIMEOUT, Fate};

/// Requests under way in Envoy's cluster, beyond which it answers by itself: `max_requests` and
/// `max_pending_requests`.
const MOST_SENT: usize = 4_096 + 1_024;

/// Bits of Envoy's response flags: UT, UF, UC, UO.
const TIMEOUT: u64 = 1 << 2;
const CONNECT_FAILURE: u64 = 1 << 5;
const TERMINATION: u64 = 1 << 6;
const OVERFLOW: u64 = 1 << 7;

/// The bounds of the first pause before a retry and of the last: `retry_back_off`.
pub const PAUSES: [Time; 2] = [5 * MS, 20 * MS];

/// A request on its way.
pub struct Flight {
    /// The worker that has it.
    pub worker: usize,
    /// What haven holds of it.
    pub held: Option<Held>,
    /// Tries so far.
    pub tries: u32,
    /// Endpoints that were tried.
    pub tried: Vec<usize>,
    /// It has ended.
    pub over: bool,
    steer: Steer,
    retries_left: u32,
    /// The try that is under way.
    live: Option<u32>,
    /// Whether the last try had its connection, or failed to have it.
    reached: bool,
}

/// What went wrong with a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Connect,
    Reset,
    Timeout,
    Status(u16),
}

impl Flight {
    /// A request that has just come to this worker.
    pub fn new(worker: usize) -> Self {
        Self {
            worker,
            held: None,
            tries: 0,
            tried: Vec::new(),
            over: false,
            steer: Steer::default(),
            retries_left: 0,
            live: None,
            reached: false,
        }
    }

    /// Whether Envoy's `retry_on` has a word for this failure.
    fn retries(&self, failure: Failure) -> bool {
        self.steer.on.split(',').any(|word| match (word, failure) {
            ("5xx", Failure::Status(status)) => status >= 500,
            ("gateway-error", Failure::Status(status)) => (502..=504).contains(&status),
            ("connect-failure" | "reset-before-request", Failure::Connect) => true,
            ("5xx" | "gateway-error" | "reset", failure) => !matches!(failure, Failure::Status(_)),
            _ => false,
        })
    }
}

impl Sim<'_> {
    /// The router gets a request.
    pub fn send(&mut self, id: usize, steer: Steer) {
        if let Some(timeout) = steer.timeout {
            self.after(timeout, Event::Whole(id));
        }
        self.flights[id].retries_left = steer.retries;
        self.flights[id].steer = steer;
        self.sent += 1;
        self.attempt(id);
    }

    fn attempt(&mut self, id: usize) {
        let endpoint = self.choose(id);
        let flight = &mut self.flights[id];
        flight.tries += 1;
        flight.tried.push(endpoint);
        if self.sent > MOST_SENT {
            let details = "upstream_reset_before_response_started{overflow}";
            return self.respond(id, 503, details, OVERFLOW);
        }
        let of = flight.tries;
        flight.live = Some(of);
        flight.reached = false;
        if self.idle[endpoint] > 0 {
            self.idle[endpoint] -= 1;
            return self.connected(id, of, true);
        }
        match self.states[endpoint].reach {
            Reach::Up => self.after(2 * HOP, Event::Connected(id, of, true)),
            Reach::Dead => self.after(2 * HOP, Event::Connected(id, of, false)),
            Reach::Lost => self.after(CONNECT_TIMEOUT, Event::Connected(id, of, false)),
        }
    }

    /// The endpoint of the next try.
    fn choose(&mut self, id: usize) -> usize {
        let flight = &self.flights[id];
        if let Some(listed) = flight.steer.list.get(flight.tries as usize) {
            return *listed;
        }
        let next = &mut self.rotation[flight.worker];
        for _ in 0..=5 {
            *next = (*next + 1) % self.servers.len();
            if !flight.tried.contains(next) {
                break;
            }
        }
        *next
    }

    /// Whether this try is the one under way.
    fn is_live(&self, id: usize, of: u32) -> bool {
        self.flights[id].live == Some(of)
    }

    /// A try has its connection: its time begins, and the endpoint gets the request.
    pub fn connected(&mut self, id: usize, of: u32, well: bool) {
        if !self.is_live(id, of) {
            return;
        }
        self.flights[id].reached = true;
        if !well {
            return self.failed(id, Failure::Connect);
        }
        if let Some(time) = self.flights[id].steer.per_try {
            self.after(time, Event::PerTry(id, of));
        }
        let endpoint = *self.flights[id].tried.last().unwrap();
        let state = self.states[endpoint];
        match state.reach {
            Reach::Lost => return,
            // It has died since the connection was made.
            Reach::Dead => return self.after(HOP, Event::Reset(id, of)),
            Reach::Up => {}
        }
        self.run.records[id].begun += 1;
        let draw = Draw::of(&[self.world.seed, self.noise, id as u64, of.into(), 2]);
        let route = self.run.records[id].route;
        let Fate::Works(work) = self.world.fate(&state, route, self.now, &draw) else {
            return self.after(2 * HOP, Event::Answered(id, of, self.world.failure));
        };
        let job = Job::new(Owner::Try(id, of), work);
        let mut begun = Vec::new();
        let room = self.servers[endpoint].offer(self.now, job, &mut begun);
        self.begun(endpoint, &begun);
        if !room {
            self.after(2 * HOP, Event::Answered(id, of, 503));
        }
    }

    /// An endpoint's answer has come.
    pub fn answered(&mut self, id: usize, of: u32, status: u16) {
        if !self.is_live(id, of) {
            return;
        }
        let endpoint = *self.flights[id].tried.last().unwrap();
        self.flights[id].live = None;
        if self.states[endpoint].reach != Reach::Dead {
            self.idle[endpoint] += 1;
        }
        self.failed(id, Failure::Status(status));
    }

    /// The endpoint of a try has gone away.
    pub fn reset(&mut self, id: usize, of: u32) {
        if self.is_live(id, of) {
            self.failed(id, Failure::Reset);
        }
    }

    /// A try has had its time.
    pub fn try_is_over(&mut self, id: usize, of: u32) {
        if self.is_live(id, of) {
            self.cut(id);
            self.failed(id, Failure::Timeout);
        }
    }

    /// A request has had its time.
    pub fn time_is_over(&mut self, id: usize) {
        if !self.flights[id].over {
            self.cut(id);
            self.respond(id, 504, "response_timeout", TIMEOUT);
        }
    }

    /// A client hangs up.
    pub fn hang_up(&mut self, id: usize) {
        if !self.flights[id].over {
            self.cut(id);
            self.end(id, End::Gone);
        }
    }

    /// Cuts off the try that is under way.
    fn cut(&mut self, id: usize) {
        let Some(of) = self.flights[id].live.take() else {
            return;
        };
        if self.world.stops {
            let endpoint = *self.flights[id].tried.last().unwrap();
            let mut begun = Vec::new();
            self.servers[endpoint].stop(self.now, Owner::Try(id, of), &mut begun);
            self.begun(endpoint, &begun);
        }
    }

    /// A try is over: there is another one, or this is the answer.
    fn failed(&mut self, id: usize, failure: Failure) {
        let flight = &mut self.flights[id];
        flight.live = None;
        if flight.retries_left > 0 && flight.retries(failure) {
            flight.retries_left -= 1;
            let of = flight.tries;
            let [first, most] = PAUSES;
            let pause = (first << (of - 1).min(8)).min(most);
            let draw = Draw::of(&[self.world.seed, self.noise, id as u64, of.into(), 5]);
            let pause = (draw.unit() * (pause / MS) as f64) as Time * MS;
            return self.after(pause, Event::Again(id, of));
        }
        match failure {
            Failure::Connect => {
                let details = "upstream_reset_before_response_started{remote_connection_failure}";
                self.respond(id, 503, details, CONNECT_FAILURE);
            }
            Failure::Reset => {
                let details = "upstream_reset_before_response_started{connection_termination}";
                self.respond(id, 503, details, TERMINATION);
            }
            Failure::Timeout => self.respond(id, 504, "upstream_per_try_timeout", TIMEOUT),
            Failure::Status(status) => self.respond(id, status, VIA_UPSTREAM, 0),
        }
    }

    /// The pause after a try is over.
    pub fn again(&mut self, id: usize, of: u32) {
        let flight = &self.flights[id];
        if !flight.over && flight.tries == of {
            self.attempt(id);
        }
    }

    /// There is an answer: haven sees it, and the client gets it, or haven's own.
    fn respond(&mut self, id: usize, status: u16, details: &'static str, flags: u64) {
        let flight = &mut self.flights[id];
        let answer = Answer {
            status,
            details,
            flags,
            endpoint: flight.tried.last().copied().filter(|_| flight.reached),
            tries: flight.tries,
        };
        let own = self
            .haven
            .as_ref()
            .zip(flight.held.as_mut())
            .and_then(|(haven, held)| haven.answer(held, &answer));
        let end = match own {
            Some(reply) => End::of_reply(&reply),
            None if status < 300 => End::Useful,
            None => End::Failed(status),
        };
        self.end(id, end);
    }
}
