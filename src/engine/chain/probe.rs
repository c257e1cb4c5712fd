//! Probes that haven answers itself: health pages, and health checks over gRPC, the only requests
//! whose bodies are read.

use super::{Action, Exchange, once};
use crate::engine::Engine;
use crate::host::{Host, Message, Stream};
use crate::policy::probe::grpc::{self, ProbeCall, ProbeRequest};
use crate::policy::probe::{self, Probe};
use crate::request::Request;
use std::rc::Rc;

/// By this header the haven behind the bridge makes itself known to the one before it. Its value is
/// a secret of the proxy, so that no service can.
const BRIDGED: &str = "x-haven-health";

const NO_BRIDGE: &str = "gRPC health checks are not answered by haven: the proxy has no bridge for \
                         /grpc.health.v1.Health/Check (docs/probes.md), so they go where its route \
                         leads, as any other request; \"health\": {\"grpc\": false} leaves them alone";

const NO_MESSAGE: &str = "gRPC health checks: the message of a call did not come; if none does, set \
                          allow_on_headers_stop_iteration: true in the plugin's configuration \
                          (docs/probes.md)";

impl Exchange {
    /// Answers a probe; `None`: the request is none.
    pub(super) fn on_probe<H: Host, S: Stream>(
        &mut self,
        request: &Request<'_>,
        end: bool,
        host: &H,
        stream: &S,
    ) -> Option<Action> {
        let engine = Rc::clone(&self.engine);
        if let Some(probe) = probe::requested(&engine.probes, request) {
            let reply = match probe {
                Probe::Plain => probe::plain(),
                Probe::Document => engine.health_document(host, host.monotonic()),
            };
            return Some(self.reply(stream, &reply));
        }
        Some(match grpc::call(&engine.probes, request)? {
            ProbeCall::Unimplemented(side) => self.reply(stream, &grpc::unimplemented(side)),
            ProbeCall::Check(probe) if end => self.answer_probe(&engine, probe, &[], host, stream),
            ProbeCall::Check(probe) => {
                self.probe = Some(probe);
                Action::Read
            }
        })
    }

    /// Whether a piece of the request's body is waited for.
    #[must_use]
    pub const fn is_reading(&self) -> bool {
        self.probe.is_some() || self.asked.is_some()
    }

    /// A piece of the request's body is there. `end`: it was the last.
    pub fn on_request_body<H: Host, S: Stream>(
        &mut self,
        host: &H,
        stream: &S,
        end: bool,
    ) -> Action {
        if let Some(asked) = self.asked.take() {
            return self.read_version(asked, host, stream, end);
        }
        let Some(probe) = self.probe else {
            if !self.engine.kind.tells_ends() {
                // It was taken for a request without a body.
                self.facts.asked = None;
            }
            return if end {
                self.on_whole(host, stream)
            } else {
                Action::Continue
            };
        };
        if self.replied {
            return Action::Stop;
        }
        // One byte more than may be shows what is too long.
        let body = stream
            .request_body(probe.most().saturating_add(1))
            .unwrap_or_default();
        if body.len() > probe.most() {
            self.probe = None;
            return self.reply(stream, &probe.too_long());
        }
        if !end {
            return Action::Read;
        }
        self.probe = None;
        let engine = Rc::clone(&self.engine);
        self.answer_probe(&engine, probe, &body, host, stream)
    }

    fn answer_probe<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        probe: ProbeRequest,
        body: &[u8],
        host: &H,
        stream: &S,
    ) -> Action {
        let reply = match probe.service(body) {
            Ok(service) if probe.is_outer() && engine.has_service(service) => {
                return self.pass_to_bridge(engine, host, stream);
            }
            Ok(service) => {
                let serving = engine.serving(host, host.monotonic(), service);
                let mut reply =
                    serving.map_or_else(|| probe.not_found(), |serving| probe.answer(serving));
                if !probe.is_outer() {
                    reply.headers.push((BRIDGED, engine.bridge.mark().to_vec()));
                }
                reply
            }
            Err(reply) => *reply,
        };
        self.reply(stream, &reply)
    }

    /// The message of a check has not come: without the setting that lets it come, it never does.
    /// The call goes on as a request like any other.
    pub(super) fn give_up_reading<H: Host, S: Stream>(&mut self, host: &H, stream: &S) -> Action {
        once::warn(host, NO_MESSAGE);
        let headers = stream.headers(Message::Request);
        let request = Request::new(&headers);
        self.take_route(host, stream, request, true, false)
    }

    /// Where no bridge stands a check goes to the service, and it must not pass its limits. So
    /// checks are requests like any other until one was answered by a bridge: from then on they go
    /// by all limits.
    fn pass_to_bridge<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        host: &H,
        stream: &S,
    ) -> Action {
        let action = if engine.bridge.is_there(host) {
            Action::Continue
        } else {
            let headers = stream.headers(Message::Request);
            let request = Request::new(&headers);
            self.take_route(host, stream, request, true, true)
        };
        self.bridged = true;
        action
    }

    /// Whether the answer to a health check that went on comes from the haven behind the bridge. If
    /// it does not, that is said once.
    pub(super) fn is_from_bridge<H: Host, S: Stream>(&self, host: &H, stream: &S) -> bool {
        let headers = stream.headers(Message::Response);
        let bridge = &self.engine.bridge;
        let mark = headers.get(BRIDGED);
        if mark.is_some() {
            stream.remove_header(Message::Response, BRIDGED);
        }
        let there = mark == Some(bridge.mark());
        bridge.found(host, there);
        if !there {
            once::warn(host, NO_BRIDGE);
        }
        there
    }
}
