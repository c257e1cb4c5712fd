//! `grpc.health.v1.Health`, as haven answers it: for the whole (the empty name) and for each
//! upstream.
//!
//! A proxy sends a filter's reply to a gRPC request without a message, but the good answer to a
//! health check is a message. So it takes two: the outer haven, which clients reach, and an inner
//! one behind a bridge (in Envoy `grpc_http1_reverse_bridge`), which removes the frame from the
//! request and adds frame and trailers to the answer. Each recognises its side by the content type.
//!
//! | | outer, `application/grpc` | inner, `application/x-protobuf` |
//! |---|---|---|
//! | `Check` of a known service | passes, to the inner one | 200 and the bare message |
//! | `Check` of an unknown service | NOT_FOUND: the bridge cannot send it | 404, not used |
//! | not a request of the protocol | INTERNAL, as gRPC's own servers answer | 400 |
//! | a message of more than [`MOST`] bytes | RESOURCE_EXHAUSTED | 413 |
//! | a message compressed as `grpc-encoding` says | UNIMPLEMENTED | |
//! | `Watch`, `List` and any other method | UNIMPLEMENTED | 404 |
//!
//! `Watch` would have to report each change for as long as a client stays. The protocol lets
//! servers without it answer `UNIMPLEMENTED`; clients then stop calling it. `List` needs messages
//! that the codec does not have; `/readyz` has the same information.

use super::config;
use super::{Component, HealthStatus, is_well};
use crate::base::grpc_health::{self, CHECK, Malformed, PREFIX, SERVICE, Serving};
use crate::host::Reply;
use crate::request::Request;

/// The longest message that is read. Names have at most 64 bytes.
pub const MOST: usize = 4096;

/// gRPC statuses.
const NOT_FOUND: u8 = 5;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;

/// A call of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeCall {
    /// A `Check`, whose message has to be read.
    Check(ProbeRequest),
    /// A method that haven does not implement.
    Unimplemented(Side),
}

/// On which side of the bridge this haven is.
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
    /// Whether the request names an encoding for compressed messages.
    encoded: bool,
}

/// The call of this service that the request is, if it is one.
#[must_use]
pub fn call(health: &config::Probes, request: &Request<'_>) -> Option<ProbeCall> {
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

/// The answer to a method that haven does not implement.
#[must_use]
pub fn unimplemented(side: Side) -> Reply {
    reply(
        side,
        404,
        UNIMPLEMENTED,
        "only ProbeRequest is answered here",
    )
}

/// The state of the service that a check names; `None`: there is no such service.
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
    /// The longest body that is read; longer ones are refused.
    #[must_use]
    pub const fn most(self) -> usize {
        match self.side {
            Side::Outer => MOST.saturating_add(PREFIX),
            Side::Inner => MOST,
        }
    }

    /// Whether this is the outer haven, where checks of known services pass.
    #[must_use]
    pub fn is_outer(self) -> bool {
        self.side == Side::Outer
    }

    /// The service named in a complete body.
    ///
    /// # Errors
    /// The answer to a body that is no request.
    pub fn service(self, body: &[u8]) -> Result<&str, Box<Reply>> {
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
                Box::new(reply(self.side, 400, status, wrong.words()))
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

    /// The answer to an unknown service.
    #[must_use]
    pub fn not_found(self) -> Reply {
        reply(self.side, 404, NOT_FOUND, "unknown service")
    }

    /// The answer to a check: the bare message, for the bridge.
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
