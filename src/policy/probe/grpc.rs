//! `grpc.health.v1.Health`, which we answer for the whole (the empty name) and for each upstream.
//!
//! A proxy turns each answer of a filter to a gRPC request into one without a message, and a health
//! check's good answer is a message. So it takes two: the outer haven, which clients reach, and an
//! inner one behind a bridge (in Envoy `grpc_http1_reverse_bridge`) that takes frame and trailers
//! off the request and puts them on the answer. The content type tells them apart.
//!
//! | | outer, `application/grpc` | inner, `application/x-protobuf` |
//! |---|---|---|
//! | `Check` of what there is | passes, to the inner one | 200 and the bare message |
//! | `Check` of what there is not | NOT_FOUND: the bridge could not say so | 404, which none gets to see |
//! | what is no request of the protocol | INTERNAL, as gRPC's own servers say | 400 |
//! | a message of more than [`MOST`] bytes | RESOURCE_EXHAUSTED | 413 |
//! | a message compressed as `grpc-encoding` says | UNIMPLEMENTED | |
//! | `Watch`, `List` and what else may come | UNIMPLEMENTED | 404 |
//!
//! `Watch` would have to tell of each change, for as long as a client likes, and `UNIMPLEMENTED` is
//! what the protocol has for servers that do not; clients then stop asking. `List` needs messages
//! that the codec has not; its answer would be what `/readyz` says.

use super::{Component, HealthStatus, is_well};
use crate::base::grpc_health::{self, CHECK, Malformed, PREFIX, SERVICE, Serving};
use crate::config;
use crate::host::Reply;
use crate::request::Request;

/// The most bytes of a message that are read. Names have at most 64.
pub const MOST: usize = 4096;

/// gRPC statuses.
const NOT_FOUND: u8 = 5;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;

/// A call of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeCall {
    /// Its message is to be read.
    Check(ProbeRequest),
    /// There is no answer but this one.
    Unimplemented(Side),
}

/// Where we stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Before the bridge: messages have frames, answers have gRPC statuses.
    Outer,
    /// Behind it.
    Inner,
}

/// A `Check` whose message is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRequest {
    side: Side,
    /// Whether the client has named an encoding for compressed messages.
    encoded: bool,
}

/// The call that the request is, if it is one of ours.
#[must_use]
pub fn call(health: &config::Health, request: &Request<'_>) -> Option<ProbeCall> {
    if !health.grpc || request.method != b"POST" || !request.path.starts_with(SERVICE.as_bytes()) {
        return None;
    }
    let side = if request.is_grpc() {
        Side::Outer
    } else if request
        .content_type
        .is_some_and(|value| value.eq_ignore_ascii_case(b"application/x-protobuf"))
    {
        Side::Inner
    } else {
        return None;
    };
    let encoded = request
        .headers
        .get("grpc-encoding")
        .is_some_and(|encoding| encoding != b"identity");
    Some(if request.path == CHECK.as_bytes() {
        ProbeCall::Check(ProbeRequest { side, encoded })
    } else {
        ProbeCall::Unimplemented(side)
    })
}

/// The answer to a call that there is none to.
#[must_use]
pub fn unimplemented(side: Side) -> Reply {
    reply(
        side,
        404,
        UNIMPLEMENTED,
        "only ProbeRequest is answered here",
    )
}

/// The state of what a check names; `None`: there is no such thing.
#[must_use]
pub fn serving(components: &[Component<'_>], service: &str) -> Option<Serving> {
    let up = if service.is_empty() {
        is_well(components)
    } else {
        components
            .iter()
            .find(|component| component.name == service)?
            .status
            == HealthStatus::Up
    };
    Some(if up {
        Serving::Serving
    } else {
        Serving::NotServing
    })
}

impl ProbeRequest {
    /// The most of a body that is worth reading: what is longer is refused, whatever it is.
    #[must_use]
    pub const fn most(self) -> usize {
        match self.side {
            Side::Outer => MOST.saturating_add(PREFIX),
            Side::Inner => MOST,
        }
    }

    /// Whether we stand before the bridge, and what there is passes.
    #[must_use]
    pub fn is_outer(self) -> bool {
        self.side == Side::Outer
    }

    /// The service that a whole body asks for.
    ///
    /// # Errors
    /// The answer to what is no request.
    pub fn service(self, body: &[u8]) -> Result<&str, Reply> {
        let message = match self.side {
            Side::Outer => grpc_health::unframe(body),
            Side::Inner => Ok(body),
        };
        message
            .and_then(grpc_health::decode_request)
            .map_err(|wrong| {
                let status = if wrong == Malformed::Compressed && self.encoded {
                    UNIMPLEMENTED
                } else {
                    INTERNAL
                };
                reply(self.side, 400, status, wrong.words())
            })
    }

    /// The answer to a body that is too long.
    #[must_use]
    pub fn too_long(self) -> Reply {
        reply(
            self.side,
            413,
            RESOURCE_EXHAUSTED,
            "the message is too long",
        )
    }

    /// The answer to a name that there is not.
    #[must_use]
    pub fn not_found(self) -> Reply {
        reply(self.side, 404, NOT_FOUND, "unknown service")
    }

    /// The answer: the bare message, for the bridge.
    #[must_use]
    pub fn answer(self, serving: Serving) -> Reply {
        let headers = vec![
            ("content-type", b"application/x-protobuf".to_vec()),
            ("cache-control", b"no-store".to_vec()),
        ];
        Reply {
            status: 200,
            headers,
            body: grpc_health::encode_response(serving).to_vec(),
            ..Reply::default()
        }
    }
}

fn reply(side: Side, status: u16, grpc_status: u8, words: &str) -> Reply {
    let body = words.as_bytes().to_vec();
    match side {
        Side::Outer => Reply {
            status: 200,
            grpc_status: Some(grpc_status),
            body,
            ..Reply::default()
        },
        Side::Inner => {
            let headers = vec![("content-type", b"text/plain".to_vec())];
            Reply {
                status,
                headers,
                body,
                ..Reply::default()
            }
        }
    }
}
