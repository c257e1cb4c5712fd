//! How the upstream answered, or why it did not.

use crate::base::headers::{HeaderMap, parse_number};
use crate::base::http_date;
use crate::base::time::Nanos;
use crate::document::FailureOn;
use crate::host::{Message, Property, Stream};
use crate::request::Reason;

/// How the upstream answered, or why it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// By itself.
    Answered,
    /// Not in time.
    Timeout,
    /// Reset, refused or cut.
    Reset,
    /// The proxy sent it to nobody, for this reason, or who got it has not begun it: no upstream is
    /// to blame.
    Unsent(Reason),
    /// The proxy answered, and no upstream was to blame.
    Local,
}

/// gRPC statuses by which a server says that it failed: those that a breaker counts by default, and
/// RESOURCE_EXHAUSTED.
const GRPC_FAILURES: [u64; 6] = [2, 4, 8, 13, 14, 15];

/// Separates an upstream's answer from what the proxy made up. `sure`: the answer shows by itself
/// that an upstream gave it, and is good: nothing is read. `suspect`: it has the looks of a failure.
/// What has not is read too, since the proxy may be told to dress a failure as anything
/// (`local_reply_config`). `status`: the answer's.
///
/// docs/troubleshooting.md has these details as a table.
pub(super) fn classify<S: Stream>(
    sure: bool,
    suspect: bool,
    reached: bool,
    status: u16,
    stream: &S,
) -> Class {
    let usual = |reached| {
        if reached {
            Class::Answered
        } else {
            Class::Local
        }
    };
    if sure {
        return usual(reached);
    }
    let Some(details) = stream.property(Property::ResponseCodeDetails) else {
        // A host without details (nginx): an upstream that was reached has answered.
        return if suspect && !reached {
            Class::Reset
        } else {
            usual(reached)
        };
    };
    let starts = |prefix: &str| details.starts_with(prefix.as_bytes());
    let holds = |part: &str| {
        details
            .windows(part.len())
            .any(|window| window == part.as_bytes())
    };
    if starts("haven{") {
        // Another haven, behind this one, has refused it: its words are names of policies.
        Class::Local
    } else if starts("via_upstream") {
        // Without an address a redirect, which is the proxy's own.
        usual(suspect || reached)
    } else if starts("maintenance_mode") || holds("overflow") {
        // Envoy's own limits: of requests, of connections, of the cluster as a whole.
        Class::Unsent(Reason::Overload)
    } else if starts("no_healthy_upstream") || starts("cluster_not_found") {
        Class::Unsent(Reason::NoEndpoint)
    } else if holds("remote_refused_stream_reset") {
        // The endpoint goes (GOAWAY), or has as many streams as it takes: it has not begun.
        Class::Unsent(Reason::UpstreamError)
    } else if starts("response_timeout")
        || starts("upstream_per_try")
        || starts("upstream_response_timeout")
        || starts("upstream_max_stream_duration")
    {
        Class::Timeout
    } else if starts("stream_idle_timeout") || starts("max_duration_timeout") {
        // Timers of the stream: the client's fault as long as it has not sent its request whole,
        // which Envoy answers with 408.
        if reached && status != 408 {
            Class::Timeout
        } else {
            Class::Local
        }
    } else if starts("upstream_") {
        Class::Reset
    } else {
        Class::Local
    }
}

/// What cut an answer off in its middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Upstream,
    Client,
    /// It took too long.
    Time,
    /// It was not cut: the host has not shown its end.
    Unknown,
}

/// Bits of Envoy's response flags: UT, LR, UR, UF, UC, UMSDR, DT and UPE; the client's are DC and
/// DR.
const TIMEOUTS: u64 = 1 << 2 | 1 << 19 | 1 << 22;

const RESETS: u64 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 23;

const CLIENTS: u64 = 1 << 14 | 1 << 18 | 1 << 28;

pub(super) fn cut_by<S: Stream>(stream: &S) -> Cut {
    // A host without details (nginx): as the headers had it.
    let Some(details) = stream.property(Property::ResponseCodeDetails) else {
        return Cut::Unknown;
    };
    let flags = stream
        .property(Property::ResponseFlags)
        .and_then(|bytes| bytes.try_into().ok());
    let flags = flags.map_or(0, u64::from_le_bytes);
    if flags & TIMEOUTS != 0 {
        Cut::Time
    } else if flags & RESETS != 0 || details.starts_with(b"upstream_reset") {
        Cut::Upstream
    } else if flags & CLIENTS != 0 || !details.starts_with(b"via_upstream") {
        Cut::Client
    } else {
        Cut::Unknown
    }
}

pub(super) fn fails(on: &FailureOn, class: Class, status: u16, grpc_status: Option<u64>) -> bool {
    match class {
        Class::Timeout => on.timeout,
        Class::Reset => on.reset,
        Class::Unsent(_) | Class::Local => false,
        Class::Answered => {
            on.status
                .iter()
                .any(|(from, to)| (*from..=*to).contains(&status))
                || grpc_status
                    .is_some_and(|status| on.grpc_status.iter().any(|s| u64::from(*s) == status))
        }
    }
}

/// What a gRPC client makes of a failure that has no grpc-status of its own: something between it
/// and its server speaks plain HTTP. Not of other answers: a service that does not speak gRPC gives
/// these to any client that claims to, and no client is to open a breaker.
pub(super) const fn grpc_failure(status: u16) -> Option<u64> {
    match status {
        502..=504 => Some(14),
        500.. => Some(2),
        _ => None,
    }
}

/// The wait that an upstream asks for: `grpc-retry-pushback-ms`, or `Retry-After` in seconds or as a
/// date. A date counts from the answer's own `Date`, which is of the same clock; without one it is
/// left alone, for it would need a clock that agrees with the upstream's.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Nanos> {
    let number = |value: &[u8]| parse_number(value.trim_ascii());
    let pushed_back = headers.get("grpc-retry-pushback-ms").and_then(number);
    if let Some(millis) = pushed_back {
        return Some(Nanos::from_millis(millis));
    }
    let after = headers.get("retry-after")?;
    let until = || {
        let (until, now) = (http_date::parse(after)?, headers.get("date")?);
        // What lies in the past asks for no wait.
        let now = http_date::parse(now)?;
        until.as_secs().checked_sub(now.as_secs())
    };
    number(after).or_else(until).map(Nanos::from_secs)
}

/// Whether a gRPC server says by this status that it failed.
pub(super) fn is_grpc_failure(status: u64) -> bool {
    GRPC_FAILURES.contains(&status)
}

/// Removes what only haven may say to clients: an upstream's own `x-haven-` headers, and a
/// `Proxy-Status` in haven's name.
pub(super) fn remove_claims<S: Stream>(stream: &S, headers: &HeaderMap) {
    const OWN: &[u8] = b"x-haven-";
    const STATUS: &str = "proxy-status";
    let begins = |value: &[u8], with: &[u8]| {
        value
            .get(..with.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    for (name, _) in headers.iter().filter(|(name, _)| begins(name, OWN)) {
        if let Ok(name) = std::str::from_utf8(name) {
            stream.remove_header(Message::Response, name);
        }
    }
    let is_ours = |line: &[u8]| {
        let mut members = line.split(|b| *b == b',').map(<[u8]>::trim_ascii);
        members.any(|member| begins(member, b"haven"))
    };
    if headers.all(STATUS).any(is_ours) {
        stream.remove_header(Message::Response, STATUS);
        for line in headers.all(STATUS).filter(|line| !is_ours(line)) {
            stream.add_header(Message::Response, STATUS, line);
        }
    }
}
