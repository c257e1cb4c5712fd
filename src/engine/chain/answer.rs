//! An answer's headers, and what each answer is asked for.

use crate::base::headers::{HeaderMap, is_name, parse_number};
use crate::host::{Message, Stream};

/// How long the upstream took, by Envoy's router.
const SERVICE_TIME: &[u8] = b"x-envoy-upstream-service-time";

/// An answer's headers.
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) status: u16,
    pub(super) grpc_status: Option<u64>,
    /// How many milliseconds the upstream took, by Envoy's router; of the proxy's own answers there
    /// is none, and what is no number tells nothing.
    pub(super) service_time: Option<Option<u64>>,
    /// No body follows.
    pub(super) end: bool,
}

impl Answer {
    pub(super) fn read<S: Stream>(stream: &S, grpc: bool, end: bool) -> Self {
        let headers = stream.headers(Message::Response);
        let (mut status, mut service_time) = (None, None);
        // One walk for what every answer is asked for.
        for (name, value) in headers.iter() {
            if status.is_none() && is_name(name, b":status") {
                status = Some(parse_number(value));
            } else if service_time.is_none() && is_name(name, SERVICE_TIME) {
                service_time = Some(parse_number(value));
            }
        }
        let status = status.flatten().and_then(|s| u16::try_from(s).ok());
        let status = status.unwrap_or(0);
        let grpc_status = if grpc {
            headers.get("grpc-status").and_then(parse_number)
        } else {
            None
        };
        Self {
            headers,
            status,
            grpc_status,
            service_time,
            end,
        }
    }

    /// Whether it may be a failure, or the proxy's own: on gRPC its errors have status 200 too.
    pub(super) fn is_suspect(&self) -> bool {
        self.status >= 500 || self.grpc_status.is_some_and(|s| s != 0)
    }

    /// Whether it shows how long the upstream takes: a refusal is soon made.
    pub(super) fn is_good(&self) -> bool {
        !self.is_suspect() && self.status != 429
    }
}
