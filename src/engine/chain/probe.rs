//! Probes that haven answers itself: health pages, and health checks over gRPC, the only requests
//! whose bodies are read.

use super::{Action, Exchange};
use crate::engine::Engine;
use crate::host::{Host, Stream};
use crate::policy::probe::grpc::{self, ProbeCall, ProbeRequest};
use crate::policy::probe::{self, Probe};
use crate::request::Request;
use std::rc::Rc;

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

    /// A piece of the request's body is there. `end`: it was the last.
    pub fn on_request_body<H: Host, S: Stream>(
        &mut self,
        host: &H,
        stream: &S,
        end: bool,
    ) -> Action {
        let Some(probe) = self.probe else {
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
                return Action::Continue;
            }
            Ok(service) => engine
                .serving(host, host.monotonic(), service)
                .map_or_else(|| probe.not_found(), |serving| probe.answer(serving)),
            Err(reply) => reply,
        };
        self.reply(stream, &reply)
    }
}
