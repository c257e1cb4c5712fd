//! A fallback's answer takes a failed one's place in its own headers and body, so that it passes
//! the filters that the failed one still had to pass (cors, compressor, grpc-web, header_mutation).
//! A local reply in the response phase goes round them.
//!
//! | the failed answer | what becomes of it |
//! |---|---|
//! | has a body | its headers are kept until its body is whole; then both are the fallback's |
//! | ends with its headers | rewritten, if the fallback's has no body either (HEAD, gRPC) |
//! | the same, and the fallback has a body | a local reply: the ABI has no call that begins one |
//! | its body takes longer than [`PATIENCE`] | a local reply: no client waits for a failure's text |
//! | more of it follows than has come at once | a local reply: whoever breaks it off meanwhile has the proxy answer, unseen by filters |
//! | the upstream has broken one off within [`WARY`] | a local reply, at its headers |
//! | the host holds its body back too | a local reply, as soon as that is known: [`Bodies`] |

use super::classify::{Cut, cut_by};
use super::{Action, Context, Exchange, once};
use crate::base::headers::{HeaderMap, parse_number};
use crate::base::text::number;
use crate::base::time::Nanos;
use crate::host::{Host, Message, Reply, SharedData, Stream};
use crate::policy::deadline::least;

/// How long the body of a failed answer may take to end. Most bodies come with their headers.
pub const PATIENCE: Nanos = Nanos::from_millis(100);

/// How much sooner than the proxy's timeout haven answers: its timer may come late, and what the
/// timeout cuts off the proxy answers itself.
const MARGIN: Nanos = Nanos::from_millis(25);

/// For how long no failed body is waited for on a route whose upstream has broken one off.
pub const WARY: Nanos = Nanos::from_secs(10);

/// How many bodies in a row that have not come in time are taken for a host that keeps them.
const TRIALS: u8 = 3;

const NO_BODIES: &str = "fallbacks go round the filters that stand before haven (cors, compressor, \
                         header_mutation, grpc_web): set allow_on_headers_stop_iteration: true in \
                         the plugin's configuration (docs/fallbacks.md)";

/// What Envoy's own answers have of their own. All else on them its route has added, as to any
/// answer.
const OF_ENVOY: &[&str] = &[
    "content-encoding",
    "content-length",
    "content-type",
    "grpc-message",
    "grpc-status",
    "proxy-status",
    "retry-after",
    "transfer-encoding",
];

/// What a browser is told of the site, and not of this answer. Often Envoy's route adds these, and
/// nobody can tell who did: on an upstream's failed answer they stay, and nothing else does.
const OF_SITE: &[&str] = &[
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "alt-svc",
    "content-security-policy",
    "content-security-policy-report-only",
    "cross-origin-embedder-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "permissions-policy",
    "referrer-policy",
    "strict-transport-security",
    "timing-allow-origin",
    "x-content-type-options",
    "x-frame-options",
    "x-xss-protection",
];

/// Whether the host hands over an answer's body while haven keeps its headers: on Envoy the plugin's
/// `allow_on_headers_stop_iteration`, which a filter can't read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bodies {
    /// So many in a row have not come in time.
    Unknown(u8),
    /// One has come.
    Come,
    /// One that was there was held back.
    Held,
}

/// A failed answer that becomes the fallback's when its body is whole.
#[derive(Debug)]
pub(super) struct Replacement {
    reply: Reply,
    /// The proxy made it: its body follows at once.
    own: bool,
    /// How much of its body is still to come, where it says so.
    left: Option<u64>,
}

impl Exchange {
    /// Puts the fallback's reply in the place of a failed answer with these headers. `end`: no body
    /// follows. `own`: the proxy made it.
    pub(super) fn replace<H: Host, S: Stream>(
        &mut self,
        context: &Context<'_, H, S>,
        reply: Reply,
        failed: &HeaderMap,
        end: bool,
        own: bool,
    ) -> Action {
        let (engine, stream) = (context.engine, context.stream);
        let comes = match engine.bodies.get() {
            Bodies::Come => true,
            Bodies::Unknown(trials) => own || trials < TRIALS,
            Bodies::Held => false,
        };
        let now = context.host.monotonic();
        let torn = context.route.fallback.as_ref().and_then(|it| it.torn.get());
        let is_whole = own || torn.is_none_or(|at| !at.is_within(WARY, now));
        let left = self.left_at_proxy(now).map(|left| left.minus(MARGIN));
        let patience = least(Some(PATIENCE), left).unwrap_or(PATIENCE);
        let fits = if end {
            self.body(&reply).is_empty()
        } else {
            comes && is_whole && (own || patience > Nanos::ZERO)
        };
        // A host that does not tell where messages end (nginx) is left as it is.
        if !fits || !engine.kind.tells_ends() {
            return self.reply(stream, &reply);
        }
        self.replied = true;
        let headers = self.headers(&reply, failed, end, own);
        stream.set_headers(Message::Response, &headers);
        if end {
            return Action::Continue;
        }
        let left = failed.get("content-length").and_then(parse_number);
        self.replacement = Some(Box::new(Replacement { reply, own, left }));
        if own && engine.bodies.get() == Bodies::Come {
            return Action::Read;
        }
        Action::Wait {
            until: now.plus(if own { PATIENCE } else { patience }),
            client: self.facts.client,
        }
    }

    /// What the client gets as the body.
    fn body<'r>(&self, reply: &'r Reply) -> &'r [u8] {
        // The configuration has no status without a body, and a kept answer has 200.
        if self.facts.head || self.facts.grpc {
            &[]
        } else {
            reply.body()
        }
    }

    /// The reply's headers, with those of the failed answer that stay.
    fn headers(&self, reply: &Reply, failed: &HeaderMap, end: bool, own: bool) -> HeaderMap {
        let (status, length) = (
            number(reply.status.into()),
            number(reply.body().len() as u64),
        );
        let mut pairs: Vec<(&[u8], &[u8])> = vec![(b":status", status.as_bytes())];
        pairs.extend(reply.pairs());
        let is = |name: &[u8], known: &[&str]| {
            known
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        };
        let stays = |name: &[u8]| {
            let envoys = name.starts_with(b":") || name.starts_with(b"x-envoy-");
            if own {
                !envoys && !is(name, OF_ENVOY)
            } else {
                is(name, OF_SITE)
            }
        };
        let replies = pairs.len();
        for (name, value) in failed.iter() {
            let mut told = pairs.iter().take(replies);
            let told = if name.eq_ignore_ascii_case(b"vary") {
                // What both vary by counts.
                told.any(|pair| *pair == (name, value))
            } else {
                !stays(name) || told.any(|(its, _)| its.eq_ignore_ascii_case(name))
            };
            if !told {
                pairs.push((name, value));
            }
        }
        let of_grpc = reply.grpc_status.map(|status| number(status.into()));
        match &of_grpc {
            Some(status) => {
                pairs.push((b"content-type", b"application/grpc"));
                // Else it follows in the trailers: a status in headers that end nothing is none.
                if end {
                    pairs.push((b"grpc-status", status.as_bytes()));
                }
            }
            None => pairs.push((b"content-length", length.as_bytes())),
        }
        HeaderMap::from_pairs(&pairs)
    }

    /// A piece of the failed answer's body is there, and goes. `end`: it was the last.
    pub(super) fn replace_piece<S: Stream>(
        &mut self,
        stream: &S,
        size: usize,
        end: bool,
    ) -> Action {
        self.engine.bodies.set(Bodies::Come);
        let Some(mut it) = self.replacement.take() else {
            return Action::Continue;
        };
        if !end {
            it.left = it.left.map(|left| left.saturating_sub(size as u64));
            if it.left.is_none_or(|left| left == 0) && stream.replace_body(size, &[]) {
                self.replacement = Some(it);
                return Action::Read;
            }
            return self.reply(stream, &it.reply);
        }
        if !stream.replace_body(size, self.body(&it.reply)) {
            return self.reply(stream, &it.reply);
        }
        Self::end_with_status(stream, &it.reply);
        Action::Continue
    }

    /// The failed answer ends with trailers, which go.
    pub(super) fn replace_trailers<S: Stream>(&mut self, stream: &S) -> Action {
        let Some(it) = self.replacement.take() else {
            return Action::Continue;
        };
        // No piece came before them: there is no body to take the place of.
        let body = self.body(&it.reply);
        if !body.is_empty() && !stream.replace_body(0, body) {
            return self.reply(stream, &it.reply);
        }
        stream.set_headers(Message::ResponseTrailers, &HeaderMap::default());
        Self::end_with_status(stream, &it.reply);
        Action::Continue
    }

    /// The stream has ended while a failed answer was kept. Where its upstream broke it off, the proxy
    /// has answered itself, and no call in this phase answers instead; the next ones are not waited
    /// for. (A client that gives up in between shows nothing: it is not to take the others' answers
    /// past the filters.)
    pub(super) fn end_replacing<H: Host, S: Stream>(&mut self, host: &H, stream: &S) {
        if self.replacement.take().is_none() || !matches!(cut_by(stream), Cut::Upstream) {
            return;
        }
        let route = self.route.as_ref();
        if let Some(used) = route.and_then(|route| route.fallback.as_ref()) {
            used.torn.set(Some(host.monotonic()));
        }
    }

    fn end_with_status<S: Stream>(stream: &S, reply: &Reply) {
        if let Some(status) = reply.grpc_status {
            let status = number(status.into());
            stream.set_header(Message::ResponseTrailers, "grpc-status", status.as_bytes());
        }
    }

    /// The body of the failed answer has not come to its end in time, or there is no room to wait
    /// for it.
    pub(super) fn give_up_replacing<H: SharedData, S: Stream>(
        &mut self,
        host: &H,
        stream: &S,
        late: bool,
    ) -> Action {
        let Some(it) = self.replacement.take() else {
            return Action::Stop;
        };
        let bodies = &self.engine.bodies;
        if let Bodies::Unknown(trials) = bodies.get()
            && late
        {
            let trials = trials.saturating_add(1);
            bodies.set(if it.own {
                Bodies::Held
            } else {
                Bodies::Unknown(trials)
            });
            if it.own || trials == TRIALS {
                once::warn(host, NO_BODIES);
            }
        }
        self.reply(stream, &it.reply)
    }
}
