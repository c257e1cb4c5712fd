//! Health checks over gRPC: the only requests whose bodies are read.

use super::{Action, Exchange};
use crate::engine::Engine;
use crate::host::{Host, Stream};
use crate::policy::probe::grpc::{self, ProbeCall, ProbeRequest};
use std::rc::Rc;

impl Exchange {
    pub(super) fn on_health_call<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        call: ProbeCall,
        end: bool,
        host: &H,
        stream: &S,
    ) -> Action {
        match call {
            ProbeCall::Unimplemented(side) => self.reply(stream, &grpc::unimplemented(side)),
            ProbeCall::Check(check) if end => self.check_health(engine, check, &[], host, stream),
            ProbeCall::Check(check) => {
                self.health = Some(check);
                Action::Read
            }
        }
    }

    /// A piece of the request's body is there. `end`: it was the last.
    pub fn on_request_body<H: Host, S: Stream>(
        &mut self,
        host: &H,
        stream: &S,
        end: bool,
    ) -> Action {
        let Some(check) = self.health else {
            return Action::Continue;
        };
        if self.replied {
            return Action::Stop;
        }
        // One byte more than may be: that tells what is too long from what is not.
        let body = stream
            .request_body(check.most().saturating_add(1))
            .unwrap_or_default();
        if body.len() > check.most() {
            self.health = None;
            return self.reply(stream, &check.too_long());
        }
        if !end {
            return Action::Read;
        }
        self.health = None;
        let engine = Rc::clone(&self.engine);
        self.check_health(&engine, check, &body, host, stream)
    }

    fn check_health<H: Host, S: Stream>(
        &mut self,
        engine: &Engine,
        check: ProbeRequest,
        body: &[u8],
        host: &H,
        stream: &S,
    ) -> Action {
        let reply = match check.service(body) {
            Ok(service) if check.is_outer() && engine.has_service(service) => {
                return Action::Continue;
            }
            Ok(service) => engine
                .serving(host, host.monotonic(), service)
                .map_or_else(|| check.not_found(), |serving| check.answer(serving)),
            Err(reply) => reply,
        };
        self.reply(stream, &reply)
    }
}
