//! How a request ended whose answer the proxy has not shown: `"outcomes": "by_exception"`.
//!
//! At a stream's end come, with nothing in between: the stream's log callback, the log callback of
//! the configuration if the proxy's access log reports the stream, the deletion of the stream. So
//! what is not reported by the time of its deletion was good.

use super::answer::Answer;
use super::classify::{Class, Cut, cut_by, retry_after};
use super::response::{Settlement, Source};
use super::{Context, Exchange};
use crate::base::headers::{HeaderMap, parse_number};
use crate::engine::exceptions::{FLAGS, GRPC, Look, TRIES};
use crate::engine::upstream::Attempts;
use crate::host::{Host, Message, Property, Stream};
use std::rc::Rc;

/// What is known of the end of a request.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// The answer was shown, as any is where nothing is left out.
    pub(super) shown: bool,
    /// It was judged at its end.
    judged: bool,
    /// The kinds of exception that it is, by haven's own reading.
    expected: u8,
    /// The access log has reported it.
    reported: bool,
}

impl Ending {
    /// Whether the access log has reported it.
    pub(super) const fn is_reported(&self) -> bool {
        self.reported
    }
}

/// A stream's answer, read at its end.
struct End {
    answer: Answer,
    /// Of a gRPC call; of others they tell nothing.
    trailers: HeaderMap,
}

impl End {
    fn read<S: Stream>(stream: &S, grpc: bool) -> Self {
        Self {
            answer: Answer::read(stream, grpc, true),
            trailers: if grpc {
                stream.headers(Message::ResponseTrailers)
            } else {
                HeaderMap::default()
            },
        }
    }

    /// Its gRPC status, which may be in the trailers.
    fn grpc_status(&self) -> Option<u64> {
        let last = self.trailers.get("grpc-status").and_then(parse_number);
        last.or(self.answer.grpc_status)
    }

    /// The kinds of exception that it is.
    fn kinds<S: Stream>(&self, stream: &S) -> u8 {
        let isnt = |property, usual: u64| {
            let number = stream.property(property);
            let number = number.and_then(|bytes| bytes.try_into().ok());
            number.is_some_and(|bytes| u64::from_le_bytes(bytes) != usual)
        };
        let is = [
            (FLAGS, isnt(Property::ResponseFlags, 0)),
            (TRIES, isnt(Property::AttemptCount, 1)),
            (GRPC, self.grpc_status().is_some_and(|it| it != 0)),
        ];
        let kinds = is.iter().filter(|(_, is)| *is).map(|(kind, _)| kind);
        kinds.sum()
    }
}

impl Exchange {
    /// The stream has ended: its log callback. Properties and all headers can be read.
    pub fn on_log<H: Host, S: Stream>(&mut self, host: &H, stream: &S) {
        let engine = Rc::clone(&self.engine);
        let Some(exceptions) = engine.exceptions.as_ref().filter(|_| !self.ending.shown) else {
            return;
        };
        if self.bridged && !self.replied {
            self.is_from_bridge(host, stream);
        }
        let look = exceptions.look(self.facts.grpc);
        if look == Look::No && !self.grants.is_any_trial() {
            return;
        }
        let end = End::read(stream, self.facts.grpc);
        self.ending.expected = end.kinds(stream);
        let Some(handles) = self.handles() else {
            return;
        };
        let context = &handles.context(host, stream);
        let took = end.answer.service_time.flatten();
        if let Some(millis) = took.filter(|_| look == Look::Sample) {
            host.record(context.route.duration, millis);
        }
        self.judge_end(context, &end);
    }

    /// The proxy's access log has reported the stream, right after [`Exchange::on_log`].
    pub fn on_report<H: Host, S: Stream>(&mut self, host: &H, stream: &S) {
        self.ending.reported = true;
        let engine = Rc::clone(&self.engine);
        let Some(exceptions) = &engine.exceptions else {
            return;
        };
        exceptions.note_report(self.ending.expected);
        if !self.ending.judged
            && self.is_open_end()
            && let Some(handles) = self.handles()
        {
            let end = End::read(stream, self.facts.grpc);
            self.judge_end(&handles.context(host, stream), &end);
        }
    }

    /// The stream goes: what no one has spoken of was good.
    pub fn on_delete<H: Host, S: Stream>(&mut self, host: &H, stream: &S) {
        let engine = Rc::clone(&self.engine);
        let Some(exceptions) = &engine.exceptions else {
            return;
        };
        let ending = &self.ending;
        if ending.expected != 0 && !ending.reported {
            exceptions.note_silence(host, ending.expected);
        }
        if ending.judged || !self.is_open_end() {
            return;
        }
        let Some(handles) = self.handles() else {
            return;
        };
        let context = &handles.context(host, stream);
        // An endpoint on trial is asked who answered, in the log callback.
        let first = self.grants.picked().first();
        let settlement = Settlement::good(first.or_else(|| self.sample_good(context)));
        let now = self.end_time(context, &settlement);
        self.grants.enter_late(host, now, engine.vm);
        self.grants.settle_retries(0, Some(true));
        self.settle(context, settlement, None, now);
    }

    /// Asks for the endpoint of a good answer at the first try, of some of those that were left to
    /// the proxy.
    fn sample_good<H: Host, S: Stream>(&mut self, context: &Context<'_, H, S>) -> Option<Attempts> {
        let upstream = &*context.route.upstream.as_ref()?.policy;
        let calls = upstream.sample(&self.grants.picked(), &context.engine.rng)?;
        let source = Source {
            class: Class::Answered,
            upstream: Some(upstream),
            matters: true,
            first: None,
            said: Some(1),
            address: context.stream.property(Property::UpstreamAddress),
            calls,
        };
        self.attempts(context, &source, Some(true))
    }

    /// Whether the end has yet to show how the request went: it is on its way to its upstream, and
    /// its answer was not shown.
    fn is_open_end(&self) -> bool {
        self.passed_on && !self.replied && !self.ending.shown && self.sent_on.is_none()
    }

    /// Judges an answer by what is known of it at its end.
    fn judge_end<H: Host, S: Stream>(&mut self, context: &Context<'_, H, S>, end: &End) {
        let (answer, trailers) = (&end.answer, &end.trailers);
        if !self.is_open_end() {
            return;
        }
        self.ending.judged = true;
        let source = self.source(context, answer);
        let began = answer.service_time.is_some() || (1..400).contains(&answer.status);
        let class = match cut_by(context.stream) {
            // There was no answer, and what has kept the proxy from one is no upstream's fault.
            _ if answer.status == 0 => return,
            Cut::Upstream if began => Class::Reset,
            // As of an answer that was shown: who reads slowly runs into the same timeout as who
            // waits for an upstream that hangs.
            Cut::Client | Cut::Time if began => return,
            _ => source.class,
        };
        if matches!(class, Class::Local | Class::Unsent(_)) {
            return;
        }
        let now = context.host.monotonic();
        self.grants.enter_late(context.host, now, context.engine.vm);
        let well = class == Class::Answered && answer.is_good();
        let attempts = self.attempts(context, &source, Some(well));
        let settlement = Settlement {
            class,
            status: answer.status,
            attempts,
            duration: None,
            retry_after: retry_after(&answer.headers),
        };
        self.settle(
            context,
            settlement.with_trailers(trailers),
            end.grpc_status(),
            now,
        );
    }
}
