//! Requests of Envoy's for the endpoints of its clusters.
//!
//! One is answered when the first piece of its body is there, which begins with the version that
//! Envoy has. What follows it, some 77 KB about Envoy itself, is not waited for.

use super::{Action, Exchange, once};
use crate::base::ip::Ip;
use crate::engine::serving::Serving;
use crate::host::{Host, Message, Property, Reply, Stream};
use crate::policy::discovery::record::SourceRecord;
use crate::policy::discovery::serve::{self, HeldRecord};
use crate::request::{Request, reply};

const NO_BODY: &str = "serve_endpoints: a request ended before its body came, so all are answered in \
                       full, which costs Envoy more; set allow_on_headers_stop_iteration: true in the \
                       plugin's configuration (docs/discovery.md)";

const FOREIGN: &str = "serve_endpoints: a request that did not come in on the loopback was refused; let \
                       its listener be at 127.0.0.1 (docs/discovery.md)";

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Asked {
    upstream: Box<str>,
    /// Whether a piece of its body was seen.
    seen: bool,
}

impl Exchange {
    /// The headers of a request are there. `end`: nothing follows.
    pub(super) fn serve<H: Host, S: Stream>(
        &mut self,
        serving: &Serving,
        host: &H,
        stream: &S,
        end: bool,
    ) -> Action {
        if !came_in_on_loopback(stream) {
            once::warn(host, FOREIGN);
            return self.turn_away(
                stream,
                403,
                "endpoints are served on the loopback only",
                None,
            );
        }
        let headers = stream.headers(Message::Request);
        let request = Request::new(&headers);
        if request.path != serve::PATH {
            return self.turn_away(stream, 404, "only /v3/discovery:endpoints is here", None);
        }
        if request.method != b"POST" {
            return self.turn_away(stream, 405, "only POST is answered", Some("POST"));
        }
        let Some(upstream) = request.authority.and_then(serve::upstream) else {
            let why = "the authority, the name of Envoy's cluster, is to be UPSTREAM.haven-eds";
            return self.turn_away(stream, 404, why, None);
        };
        if end || serving.unread.get() {
            return self.answer_endpoints(upstream, None, host, stream);
        }
        self.asked = Some(Asked {
            upstream: upstream.into(),
            seen: false,
        });
        Action::Read
    }

    /// A piece of the body of a request for endpoints is there.
    pub(super) fn read_version<H: Host, S: Stream>(
        &mut self,
        mut asked: Asked,
        host: &H,
        stream: &S,
        end: bool,
    ) -> Action {
        let head = stream.request_body(serve::HEAD).unwrap_or_default();
        if head.len() < serve::HEAD && !end {
            asked.seen |= !head.is_empty();
            self.asked = Some(asked);
            return Action::Read;
        }
        self.answer_endpoints(&asked.upstream, serve::held(&head), host, stream)
    }

    /// What it was to show did not come in time: it gets everything.
    pub(super) fn give_up_version<H: Host, S: Stream>(
        &mut self,
        asked: &Asked,
        host: &H,
        stream: &S,
    ) -> Action {
        self.miss_body(asked, host);
        self.answer_endpoints(&asked.upstream, None, host, stream)
    }

    /// A request for endpoints has ended without an answer, or is answered without its body.
    pub(super) fn miss_body<H: Host>(&self, asked: &Asked, host: &H) {
        if let Some(serving) = self.engine.serving.as_ref().filter(|_| !asked.seen) {
            serving.unread.set(true);
            once::warn(host, NO_BODY);
        }
    }

    /// Answers with the endpoints of an upstream, unless who asks has them. `held`: the version that
    /// it has.
    fn answer_endpoints<H: Host, S: Stream>(
        &mut self,
        upstream: &str,
        held: Option<u64>,
        host: &H,
        stream: &S,
    ) -> Action {
        let known = SourceRecord::new(upstream).read(host);
        if known.status.version == 0 {
            // Not even that there are none: Envoy keeps what it has. Not an error, which it would
            // log each time.
            return self.reply(stream, &unchanged());
        }
        // Contended is asked again soon.
        let _ = HeldRecord::new(upstream).write(host, held);
        let version = serve::version(upstream, &known.members);
        let reply = if held == Some(version) {
            unchanged()
        } else {
            Reply {
                status: 200,
                headers: vec![("content-type", b"application/json".to_vec())],
                body: serve::response(upstream, &known.members, version),
                ..Reply::default()
            }
        };
        self.reply(stream, &reply)
    }

    #[inline(never)]
    fn turn_away<S: Stream>(
        &mut self,
        stream: &S,
        status: u16,
        why: &str,
        allow: Option<&str>,
    ) -> Action {
        let mut reply = reply::unreadable(status, why);
        let allow = allow.map(|method| ("allow", method.as_bytes().to_vec()));
        reply.headers.extend(allow);
        self.reply(stream, &reply)
    }
}

fn unchanged() -> Reply {
    Reply {
        status: 304,
        ..Reply::default()
    }
}

/// Whether a request came in at a loopback address, which no packet from elsewhere reaches. The
/// peer's address would say less: Envoy may take it from a header.
fn came_in_on_loopback<S: Stream>(stream: &S) -> bool {
    let address = stream.property(Property::DestinationAddress);
    address
        .and_then(|it| Ip::parse(&it))
        .is_some_and(|it| it.is_in(LOOPBACK_V4, 104) || it.0 == 1)
}

/// 127.0.0.0/8, as an IPv6 network.
const LOOPBACK_V4: u128 = 0xffff_7f00_0000;
