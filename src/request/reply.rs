//! The replies that haven gives itself: problem documents (RFC 9457) with a `Proxy-Status` (RFC
//! 9209).
//!
//! Names of policies and routes are restricted by the configuration to characters that need no
//! escaping in JSON, in a quoted string or in a metric's name, so that this module escapes nothing.
//! It never puts in what a client sent.

use super::reason::Reason;
use crate::base::text::{number, push_all, push_number};
use crate::base::time::Nanos;
use crate::host::{ReadyReply, Reply};
use std::rc::Rc;

/// The request that a reply answers.
#[derive(Clone, Copy, Debug)]
pub struct RequestInfo<'a> {
    /// Name of its route.
    pub route: &'a str,
    /// Its `x-request-id`, as sent.
    pub request_id: &'a [u8],
    /// What its client speaks.
    pub grpc: Protocol,
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Plain HTTP.
    Http,
    /// gRPC: errors travel in `grpc-status`.
    Grpc,
    /// Nobody has looked. An answer has to do for both.
    Unknown,
}

/// Why we reply.
#[derive(Clone, Copy, Debug)]
pub struct ReplyDetails<'a> {
    /// The reason.
    pub reason: Reason,
    /// Name of the policy that decided.
    pub policy: &'a str,
    /// When it is worth trying again.
    pub retry_after: Option<Nanos>,
    /// Status of the upstream's answer that is replaced.
    pub received_status: Option<u16>,
}

impl ReplyDetails<'_> {
    /// The `Proxy-Status` header's value.
    #[must_use]
    pub fn proxy_status(&self) -> Vec<u8> {
        let mut value = String::with_capacity(128);
        push_all(&mut value, &["haven; error=", self.reason.proxy_error()]);
        if let Some(status) = self.received_status {
            value.push_str("; received-status=");
            push_number(&mut value, status.into());
        }
        push_all(
            &mut value,
            &["; details=\"", self.reason.word(), " ", self.policy, "\""],
        );
        value.into_bytes()
    }
}

/// Whole seconds of a wait, rounded up, at least 1: what `Retry-After` says.
#[must_use]
pub fn retry_after_seconds(wait: Nanos) -> u64 {
    wait.as_secs_ceil().max(1)
}

/// The refusal itself, where no fallback answers; `ready` is its [`document`], which gRPC has not.
#[must_use]
pub fn refusal(
    subject: &RequestInfo<'_>,
    cause: ReplyDetails<'_>,
    ready: impl FnOnce(&ReplyDetails<'_>) -> Rc<ReadyReply>,
) -> Reply {
    // Room for all headers that follow, those of a quota included.
    let mut reply = Reply {
        status: cause.reason.status(),
        headers: Vec::with_capacity(8),
        ..Reply::default()
    };
    if let Some(wait) = cause.retry_after {
        let seconds = number(retry_after_seconds(wait));
        reply.headers.push(("retry-after", seconds.into_bytes()));
    }
    // The proxy takes it for gRPC requests alone.
    if subject.grpc != Protocol::Http {
        reply.grpc_status = Some(cause.reason.grpc_status());
    }
    if subject.grpc == Protocol::Grpc {
        reply.headers.push(("proxy-status", cause.proxy_status()));
        let (word, detail) = (cause.reason.word(), detail(&cause));
        reply.body = [detail, " (", word, " ", cause.policy, ")"]
            .concat()
            .into_bytes();
    } else {
        reply.ready = Some(ready(&cause));
    }
    reply
}

/// The answer to a request that haven can't read as its upstream would.
#[must_use]
pub fn unreadable(status: u16, detail: &str) -> Reply {
    let mut body = String::from("{\"type\":\"about:blank\",\"status\":");
    push_number(&mut body, status.into());
    push_all(&mut body, &[",\"detail\":\"", detail, "\"}"]);
    Reply {
        status,
        headers: vec![("content-type", b"application/problem+json".to_vec())],
        body: body.into_bytes(),
        ..Reply::default()
    }
}

/// The problem document of a refusal, with all headers that do not change.
#[must_use]
pub fn document(cause: &ReplyDetails<'_>) -> ReadyReply {
    let headers = vec![
        ("proxy-status", cause.proxy_status()),
        ("content-type", b"application/problem+json".to_vec()),
    ];
    let (kind, title) = problem_type(cause.reason);
    let mut body = String::with_capacity(448);
    push_all(
        &mut body,
        &[
            "{\"type\":\"",
            kind,
            "\",\"title\":\"",
            title,
            "\",\"status\":",
        ],
    );
    push_number(&mut body, cause.reason.status().into());
    push_all(
        &mut body,
        &[
            ",\"detail\":\"",
            detail(cause),
            "\",\"reason\":\"",
            cause.reason.word(),
            "\",\"policy\":\"",
            cause.policy,
            "\"",
        ],
    );
    if cause.reason == Reason::RateLimited {
        push_all(
            &mut body,
            &[",\"violated-policies\":[\"", cause.policy, "\"]"],
        );
    }
    body.push_str("}\n");
    ReadyReply {
        headers,
        body: body.into_bytes(),
    }
}

/// Type and title. The first two types are those of draft-ietf-httpapi-ratelimit-headers;
/// `about:blank` stands for the status itself (RFC 9457, 4.2.1).
const fn problem_type(reason: Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::RateLimited => (
            "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "Request cannot be satisfied as assigned quota has been exceeded",
        ),
        Reason::CircuitOpen | Reason::Overload => (
            "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
            "Request cannot be satisfied due to temporary server capacity constraints",
        ),
        Reason::NoEndpoint | Reason::SwitchedOff | Reason::UpstreamError => {
            ("about:blank", "Service Unavailable")
        }
        Reason::Deadline | Reason::Timeout => ("about:blank", "Gateway Timeout"),
    }
}

const fn detail(cause: &ReplyDetails<'_>) -> &'static str {
    match cause.reason {
        Reason::RateLimited if cause.retry_after.is_none() => {
            "The request costs more than its rate limit ever has at hand; it will not be \
             admitted later either."
        }
        Reason::RateLimited => {
            "The rate limit is exhausted; try again after the time that Retry-After says."
        }
        Reason::CircuitOpen => "The upstream fails at present and is given time to recover.",
        Reason::NoEndpoint => "No endpoint of the upstream is available.",
        Reason::Overload => "The service has as many requests as it can answer in time.",
        Reason::Deadline => "Too little is left of the time that the request may take.",
        Reason::SwitchedOff => "This part of the service is switched off.",
        Reason::UpstreamError => "The upstream failed.",
        Reason::Timeout => "The upstream did not answer in time.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAUSE: ReplyDetails<'_> = ReplyDetails {
        reason: Reason::RateLimited,
        policy: "per-client",
        retry_after: Some(Nanos(1)),
        received_status: None,
    };

    fn refused(subject: &RequestInfo<'_>, cause: ReplyDetails<'_>) -> Reply {
        refusal(subject, cause, |cause| Rc::new(document(cause)))
    }

    fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
        reply
            .pairs()
            .find(|(n, _)| *n == name.as_bytes())
            .map(|(_, v)| std::str::from_utf8(v).unwrap())
    }

    #[test]
    fn a_refusal_is_a_problem_document() {
        let reply = refused(
            &RequestInfo {
                route: "users",
                request_id: b"",
                grpc: Protocol::Http,
            },
            CAUSE,
        );
        let body: serde_json::Value = serde_json::from_slice(reply.body()).unwrap();
        assert_eq!(
            body["type"],
            "https://iana.org/assignments/http-problem-types#quota-exceeded"
        );
        assert_eq!(
            (&body["status"], &body["reason"], &body["policy"]),
            (&429.into(), &"rate_limited".into(), &"per-client".into())
        );
        assert_eq!(body["violated-policies"], serde_json::json!(["per-client"]));
        assert_eq!(header(&reply, "retry-after"), Some("1"), "never 0");
        assert!(body["detail"].as_str().unwrap().contains("try again"));
        let never = ReplyDetails {
            retry_after: None,
            ..CAUSE
        };
        let reply = refused(
            &RequestInfo {
                route: "users",
                request_id: b"",
                grpc: Protocol::Http,
            },
            never,
        );
        let body: serde_json::Value = serde_json::from_slice(reply.body()).unwrap();
        assert!(
            !body["detail"].as_str().unwrap().contains("try again"),
            "there is no use"
        );
        assert_eq!(
            header(&reply, "proxy-status"),
            Some("haven; error=http_request_denied; details=\"rate_limited per-client\"")
        );
    }

    #[test]
    fn every_reason_makes_a_whole_document() {
        for reason in [
            Reason::RateLimited,
            Reason::CircuitOpen,
            Reason::NoEndpoint,
            Reason::Overload,
            Reason::Deadline,
            Reason::SwitchedOff,
            Reason::UpstreamError,
            Reason::Timeout,
        ] {
            let reply = refused(
                &RequestInfo {
                    route: "r",
                    request_id: b"",
                    grpc: Protocol::Http,
                },
                ReplyDetails { reason, ..CAUSE },
            );
            let body: serde_json::Value = serde_json::from_slice(reply.body()).unwrap();
            for field in ["type", "title", "status", "detail", "reason", "policy"] {
                assert!(!body[field].is_null(), "{reason:?} {field}");
            }
        }
    }

    #[test]
    fn an_answer_to_nobody_knows_what_does_for_both() {
        let subject = RequestInfo {
            route: "users",
            request_id: b"",
            grpc: Protocol::Unknown,
        };
        let reply = refused(&subject, CAUSE);
        assert_eq!((reply.status, reply.grpc_status), (429, Some(8)));
        assert!(reply.body().starts_with(b"{"));
    }

    #[test]
    fn grpc_gets_a_status_and_a_message() {
        let reply = refused(
            &RequestInfo {
                route: "users",
                request_id: b"",
                grpc: Protocol::Grpc,
            },
            CAUSE,
        );
        assert_eq!(reply.grpc_status, Some(8));
        assert!(
            String::from_utf8(reply.body)
                .unwrap()
                .ends_with("(rate_limited per-client)")
        );
    }
}
