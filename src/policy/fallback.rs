//! Fallbacks: what haven answers in place of a refusal or a failure.

pub mod config;
pub mod stale;

use crate::base::text::number;
use crate::host::Reply;
use crate::request::Reason;
use crate::request::reply::Protocol;
use crate::request::reply::{ReplyDetails, RequestInfo, retry_after_seconds};
use config::{Fallback, FallbackStep, Respond, TemplatePart};
use stale::StaleResponse;

/// Name of a step's kind, in metrics.
#[must_use]
pub const fn word(step: &FallbackStep) -> &'static str {
    match step {
        FallbackStep::Stale(_) => "stale",
        FallbackStep::Cluster(_) => "cluster",
        FallbackStep::Respond(_) => "respond",
    }
}

/// Whether the fallback answers for this reason.
#[must_use]
pub fn answers(fallback: &Fallback, reason: Reason) -> bool {
    fallback.on.contains(&reason)
}

/// Whether a body needs the request's id, which must then be remembered until the response.
#[must_use]
pub fn needs_request_id(fallback: &Fallback) -> bool {
    let needs = |step: &FallbackStep| match step {
        FallbackStep::Respond(respond) => respond.body.contains(&TemplatePart::RequestId),
        FallbackStep::Stale(_) | FallbackStep::Cluster(_) => false,
    };
    fallback.steps.iter().any(needs)
}

/// The last good response as an answer, with its age.
#[must_use]
pub fn stale(found: StaleResponse, cause: ReplyDetails<'_>) -> Reply {
    Reply {
        status: 200,
        headers: vec![
            ("proxy-status", cause.proxy_status()),
            ("age", number(found.age).into_bytes()),
        ],
        kept_headers: found.headers,
        body: found.body,
        ..Reply::default()
    }
}

/// A fixed answer.
#[must_use]
pub fn respond(respond: &Respond, subject: &RequestInfo<'_>, cause: ReplyDetails<'_>) -> Reply {
    let mut reply = Reply {
        status: respond.status,
        headers: vec![("proxy-status", cause.proxy_status())],
        ..Reply::default()
    };
    // As in the refusal, if this answer is an error too.
    let own = respond
        .headers
        .iter()
        .any(|(name, _)| name == "retry-after");
    if let Some(wait) = cause
        .retry_after
        .filter(|_| subject.grpc == Protocol::Grpc || (respond.status >= 400 && !own))
    {
        reply.headers.push((
            "retry-after",
            number(retry_after_seconds(wait)).into_bytes(),
        ));
    }
    if subject.grpc == Protocol::Grpc {
        // A gRPC client reads only the status; a JSON body would break its framing.
        reply.grpc_status = Some(cause.reason.grpc_status());
        reply.status = 200;
        return reply;
    }
    reply
        .headers
        .push(("content-type", respond.content_type.clone().into_bytes()));
    reply.configured_headers.clone_from(&respond.headers);
    for part in &respond.body {
        match part {
            TemplatePart::Literal(text) => reply.body.extend_from_slice(text.as_bytes()),
            TemplatePart::RequestId => reply.body.extend_from_slice(safe_id(subject.request_id)),
            TemplatePart::RetryAfter => {
                if let Some(wait) = cause.retry_after {
                    reply
                        .body
                        .extend_from_slice(number(retry_after_seconds(wait)).as_bytes());
                }
            }
            TemplatePart::Reason => reply.body.extend_from_slice(cause.reason.word().as_bytes()),
            TemplatePart::Route => reply.body.extend_from_slice(subject.route.as_bytes()),
        }
    }
    reply
}

/// A request id that is one. A client may send anything as its id: what is not made of letters,
/// digits, `-`, `_`, `=` and `+` could break out of a JSON string or of markup, or be an address,
/// and is left out.
fn safe_id(id: &[u8]) -> &[u8] {
    let safe = id.len() <= 128
        && id
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'=' | b'+'));
    if safe { id } else { &[] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Nanos;

    fn fallback(body: Vec<TemplatePart>) -> Respond {
        Respond {
            status: 203,
            headers: vec![("x-a".into(), "b".into())],
            content_type: "text/plain".into(),
            body,
        }
    }

    fn subject<'a>(request_id: &'a [u8], grpc: bool) -> RequestInfo<'a> {
        RequestInfo {
            route: "users",
            request_id,
            grpc: if grpc { Protocol::Grpc } else { Protocol::Http },
        }
    }

    const CAUSE: ReplyDetails<'_> = ReplyDetails {
        reason: Reason::CircuitOpen,
        policy: "cb",
        retry_after: Some(Nanos(1_000_000_001)),
        received_status: None,
    };

    #[test]
    fn placeholders_are_filled_in() {
        use TemplatePart::{Literal, Reason, RequestId, RetryAfter, Route};
        let body = vec![
            Literal("系统繁忙 ".into()),
            Reason,
            Literal("/".into()),
            Route,
            Literal("/".into()),
            RetryAfter,
            Literal("/".into()),
            RequestId,
        ];
        let reply = super::respond(&fallback(body), &subject(b"id-1", false), CAUSE);
        assert_eq!(
            String::from_utf8(reply.body).unwrap(),
            "系统繁忙 circuit_open/users/2/id-1"
        );
        assert_eq!((reply.status, reply.grpc_status), (203, None));
        assert_eq!(
            reply.configured_headers,
            [("x-a".to_owned(), "b".to_owned())]
        );
    }

    #[test]
    fn values_that_do_not_apply_or_could_break_out_are_empty() {
        let body = vec![TemplatePart::RequestId, TemplatePart::RetryAfter];
        for id in [
            &b"\",\"admin\":true"[..],
            b"<script>",
            b"https://evil.example",
            b"evil.example",
            b"\xff",
            &[b'a'; 200],
        ] {
            let cause = ReplyDetails {
                retry_after: None,
                ..CAUSE
            };
            assert_eq!(
                super::respond(&fallback(body.clone()), &subject(id, false), cause).body,
                b""
            );
        }
    }

    #[test]
    fn an_error_says_when_to_come_back() {
        let retry_after_of = |status, headers: Vec<(String, String)>, retry_after, grpc| {
            let respond = Respond {
                status,
                headers,
                ..fallback(Vec::new())
            };
            let reply = super::respond(
                &respond,
                &subject(b"", grpc),
                ReplyDetails {
                    retry_after,
                    ..CAUSE
                },
            );
            reply
                .headers
                .iter()
                .find(|(name, _)| *name == "retry-after")
                .map(|(_, value)| value.clone())
        };
        for status in [429, 503] {
            assert_eq!(
                retry_after_of(status, Vec::new(), CAUSE.retry_after, false).as_deref(),
                Some(&b"2"[..])
            );
        }
        assert_eq!(
            retry_after_of(200, Vec::new(), CAUSE.retry_after, false),
            None,
            "an answer as good as any"
        );
        assert_eq!(retry_after_of(429, Vec::new(), None, false), None);
        assert_eq!(
            retry_after_of(
                429,
                vec![("retry-after".into(), "9".into())],
                CAUSE.retry_after,
                false
            ),
            None,
            "it has its own"
        );
        assert_eq!(
            retry_after_of(200, Vec::new(), CAUSE.retry_after, true).as_deref(),
            Some(&b"2"[..]),
            "gRPC's status is an error"
        );
    }

    #[test]
    fn grpc_gets_the_status_and_no_body() {
        let reply = super::respond(
            &fallback(vec![TemplatePart::Route]),
            &subject(b"", true),
            CAUSE,
        );
        assert_eq!(
            (reply.status, reply.grpc_status, reply.body.len()),
            (200, Some(14), 0)
        );
        assert!(
            reply
                .headers
                .iter()
                .all(|(name, _)| *name != "content-type")
        );
    }
}
