//! What is answered in place of a refusal or a failure.

use super::Reason;
use super::reply::{Cause, Subject, retry_after_seconds};
use crate::base::text::number;
use crate::config::{Fallback, FallbackStep, Respond, TemplatePart};
use crate::host::Reply;

/// Name of the step kind that a fixed answer is, in metrics.
pub const RESPOND: &str = "respond";

/// Whether the fallback answers for this reason.
#[must_use]
pub const fn answers(fallback: &Fallback, reason: Reason) -> bool {
    let on = &fallback.on;
    match reason {
        Reason::RateLimited => on.rate_limited,
        Reason::CircuitOpen => on.circuit_open,
        Reason::NoEndpoint => on.no_endpoint,
        Reason::Overload => on.overload,
        Reason::Deadline => on.deadline,
        Reason::SwitchedOff => on.switched_off,
        Reason::UpstreamError => on.upstream_error,
        Reason::Timeout => on.timeout,
    }
}

/// Whether a body needs the request's id, which must then be remembered until the response.
#[must_use]
pub fn needs_request_id(fallback: &Fallback) -> bool {
    fallback.steps.iter().any(|FallbackStep::Respond(respond)| respond.body.contains(&TemplatePart::RequestId))
}

/// The answer of the first step that has one.
#[must_use]
pub fn reply(fallback: &Fallback, subject: &Subject<'_>, cause: Cause<'_>) -> Option<Reply> {
    fallback.steps.iter().map(|FallbackStep::Respond(respond)| respond_reply(respond, subject, cause)).next()
}

fn respond_reply(respond: &Respond, subject: &Subject<'_>, cause: Cause<'_>) -> Reply {
    let mut reply =
        Reply { status: respond.status, headers: vec![("proxy-status", cause.proxy_status())], ..Reply::default() };
    if subject.grpc {
        // A gRPC client reads the status alone; a JSON body would only break its framing.
        reply.grpc_status = Some(cause.reason.grpc_status());
        reply.status = 200;
        return reply;
    }
    reply.headers.push(("content-type", respond.content_type.clone().into_bytes()));
    reply.configured_headers.clone_from(&respond.headers);
    for part in &respond.body {
        match part {
            TemplatePart::Literal(text) => reply.body.extend_from_slice(text.as_bytes()),
            TemplatePart::RequestId => reply.body.extend_from_slice(safe_id(subject.request_id)),
            TemplatePart::RetryAfter => {
                if let Some(wait) = cause.retry_after {
                    reply.body.extend_from_slice(number(retry_after_seconds(wait)).as_bytes());
                }
            }
            TemplatePart::Reason => reply.body.extend_from_slice(cause.reason.word().as_bytes()),
            TemplatePart::Route => reply.body.extend_from_slice(subject.route.as_bytes()),
        }
    }
    reply
}

/// A request id that can stand in any body. A client may send anything as its id: what could break out of a JSON string or of
/// markup is left out as a whole.
fn safe_id(id: &[u8]) -> &[u8] {
    let safe = id.len() <= 128
        && id.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/' | b'=' | b'+'));
    if safe { id } else { &[] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Nanos;
    use crate::config::FallbackOn;

    fn fallback(body: Vec<TemplatePart>) -> Fallback {
        let on = FallbackOn {
            rate_limited: false,
            overload: true,
            circuit_open: true,
            no_endpoint: true,
            deadline: true,
            switched_off: true,
            upstream_error: true,
            timeout: true,
        };
        let respond =
            Respond { status: 203, headers: vec![("x-a".into(), "b".into())], content_type: "text/plain".into(), body };
        Fallback { name: "f".into(), mode: None, on, steps: vec![FallbackStep::Respond(respond)] }
    }

    fn subject<'a>(request_id: &'a [u8], grpc: bool) -> Subject<'a> {
        Subject { route: "users", request_id, grpc }
    }

    const CAUSE: Cause<'_> = Cause {
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
        let reply = super::reply(&fallback(body), &subject(b"id-1", false), CAUSE).unwrap();
        assert_eq!(String::from_utf8(reply.body).unwrap(), "系统繁忙 circuit_open/users/2/id-1");
        assert_eq!((reply.status, reply.grpc_status), (203, None));
        assert_eq!(reply.configured_headers, [("x-a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn values_that_do_not_apply_or_could_break_out_are_empty() {
        let body = vec![TemplatePart::RequestId, TemplatePart::RetryAfter];
        for id in [&b"\",\"admin\":true"[..], b"<script>", b"\xff", &[b'a'; 200]] {
            let cause = Cause { retry_after: None, ..CAUSE };
            assert_eq!(super::reply(&fallback(body.clone()), &subject(id, false), cause).unwrap().body, b"");
        }
    }

    #[test]
    fn grpc_gets_the_status_and_no_body() {
        let reply = super::reply(&fallback(vec![TemplatePart::Route]), &subject(b"", true), CAUSE).unwrap();
        assert_eq!((reply.status, reply.grpc_status, reply.body.len()), (200, Some(14), 0));
        assert!(reply.headers.iter().all(|(name, _)| *name != "content-type"));
    }
}
