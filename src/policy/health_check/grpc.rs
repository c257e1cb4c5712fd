//! gRPC health checks: the request, and the result of an answer. The codec is
//! [`crate::base::grpc_health`]. See
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use super::state::EndpointHealth;
use crate::base::grpc_health::{Serving, decode_response, encode_request};

/// The service.
pub const SERVICE: &str = "grpc.health.v1.Health";

/// Its method.
pub const METHOD: &str = "Check";

/// The request message for a service; empty = the whole server.
#[must_use]
pub fn request(service: &str) -> Vec<u8> {
    encode_request(service)
}

/// The state in a `HealthCheckResponse`; `None` if the message is none.
#[must_use]
pub fn response(message: &[u8]) -> Option<EndpointHealth> {
    Some(match decode_response(message).ok()? {
        Serving::Serving => EndpointHealth::Up,
        Serving::NotServing => EndpointHealth::OutOfService,
        // Not SERVING.
        Serving::Unknown | Serving::ServiceUnknown => EndpointHealth::Inconclusive,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn messages_are_those_of_grpc() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/15_grpc_health.json"))
                .unwrap();
        for case in vectors["request_hex"].as_array().unwrap() {
            let message = request(case["service"].as_str().unwrap());
            assert_eq!(message, hex(case["msg"].as_str().unwrap()), "{case}");
        }
        for case in vectors["response_hex"].as_array().unwrap() {
            let want = match case["status"].as_str().unwrap() {
                "SERVING" => EndpointHealth::Up,
                "NOT_SERVING" => EndpointHealth::OutOfService,
                _ => EndpointHealth::Inconclusive,
            };
            assert_eq!(
                response(&hex(case["msg"].as_str().unwrap())),
                Some(want),
                "{case}"
            );
        }
        assert_eq!(vectors["path_check"], format!("/{SERVICE}/{METHOD}"));
    }

    #[test]
    fn what_is_no_message_says_nothing() {
        for (message, want) in [
            (&b"\x12\x03abc\x08\x01"[..], Some(EndpointHealth::Up)),
            (b"\x08\x02\x08\x01", Some(EndpointHealth::Up)),
            (b"\x08", None),
            (b"\x12\x7fabc", None),
        ] {
            assert_eq!(response(message), want, "{message:?}");
        }
    }
}
