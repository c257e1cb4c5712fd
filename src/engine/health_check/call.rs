//! What a check sends to an endpoint, and how its answer is judged.

use super::checker::Checker;
use super::target::Target;
use crate::base::headers::{HeaderMap, parse_number};
use crate::base::time::Nanos;
use crate::document::Ask;
use crate::host::{Call, CallAnswer, CallId, Calls, Host, Platform};
use crate::policy::health_check::{CheckReason, EndpointHealth, Sample};
use crate::policy::health_check::{grpc, report};

impl Checker {
    /// Sends a check to an endpoint.
    pub(super) fn ask<H: Calls + Platform>(&self, target: &Target, host: &H) -> Option<CallId> {
        let timeout = self.check.timeout;
        let chosen = (
            self.upstream.config.override_header.as_str(),
            target.address.as_str(),
        );
        let call = match &self.check.ask {
            Ask::Http {
                path,
                host: authority,
                ..
            } => {
                let authority = authority.as_deref().unwrap_or(&target.address);
                let headers = [
                    (":method", "GET"),
                    (":scheme", "http"),
                    (":path", path),
                    (":authority", authority),
                    ("accept", "application/json, */*;q=0.5"),
                    ("user-agent", "haven-health-check"),
                    chosen,
                ];
                let by_name = host.kind().has_clusters();
                host.call(&Call::Http {
                    cluster: if by_name {
                        &self.upstream.config.cluster
                    } else {
                        &target.address
                    },
                    headers: &headers,
                    body: &[],
                    timeout,
                })
            }
            Ask::Grpc { service } => host.call(&Call::Grpc {
                cluster: &self.upstream.config.cluster,
                service: grpc::SERVICE,
                method: grpc::METHOD,
                metadata: &[chosen],
                message: &grpc::request(service),
                timeout,
            }),
        };
        call.ok()
    }

    /// The result that an answer makes.
    pub(super) fn sample<H: Host>(&self, answer: &CallAnswer, took: Nanos, host: &H) -> Sample {
        let late = took >= self.check.timeout;
        match (answer, &self.check.ask) {
            (
                CallAnswer::Http {
                    headers,
                    body,
                    size,
                },
                Ask::Http { expected, .. },
            ) => {
                let Some(status) = headers
                    .get(":status")
                    .and_then(parse_number)
                    .and_then(|s| u16::try_from(s).ok())
                else {
                    return failed(late);
                };
                if host.kind().tells_sources() && is_local_reply(headers, status) {
                    return failed(late || status == 504);
                }
                let good = expected
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&status));
                let report = (self.check.report && *size <= report::MAX_BYTES)
                    .then(|| report::judge(body, good, status, &self.check, host.wall()))
                    .flatten();
                report.unwrap_or_else(|| {
                    if good {
                        Sample::GOOD
                    } else {
                        Sample::new(EndpointHealth::Down, CheckReason::HttpStatus, status)
                    }
                })
            }
            (CallAnswer::GrpcMessage(message), Ask::Grpc { .. }) => match grpc::response(message) {
                Some(EndpointHealth::Up) => Sample::GOOD,
                Some(status) => Sample::new(status, CheckReason::Report, 0),
                None => Sample::new(EndpointHealth::Down, CheckReason::Report, 0),
            },
            // DEADLINE_EXCEEDED; UNAVAILABLE.
            (CallAnswer::GrpcStatus(4), Ask::Grpc { .. }) => failed(true),
            (CallAnswer::GrpcStatus(14), Ask::Grpc { .. }) => failed(late),
            (CallAnswer::GrpcStatus(status), Ask::Grpc { .. }) => Sample::new(
                EndpointHealth::Down,
                CheckReason::GrpcStatus,
                u16::try_from(*status).unwrap_or(u16::MAX),
            ),
            _ => failed(late),
        }
    }
}

/// Whether the proxy's own limits (a cluster's circuit breakers) have kept the check from being
/// sent. Of a gRPC check the host shows only UNAVAILABLE.
pub(super) fn was_refused(answer: &CallAnswer) -> bool {
    let CallAnswer::Http { headers, .. } = answer else {
        return false;
    };
    headers.get("x-envoy-overloaded").is_some()
        && headers.get("x-envoy-upstream-service-time").is_none()
}

/// No answer came.
const fn failed(late: bool) -> Sample {
    Sample::new(
        EndpointHealth::Down,
        if late {
            CheckReason::Timeout
        } else {
            CheckReason::Unreachable
        },
        0,
    )
}

/// Whether the proxy has answered in place of an endpoint. Envoy's router says how long an endpoint
/// took in each answer that is an endpoint's, and in no other.
fn is_local_reply(headers: &HeaderMap, status: u16) -> bool {
    matches!(status, 503 | 504) && headers.get("x-envoy-upstream-service-time").is_none()
}
