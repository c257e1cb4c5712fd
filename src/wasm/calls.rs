//! Calls out: HTTP and gRPC.

use super::abi::OK;
use super::bindings::Proxy;
use super::imports::{proxy_grpc_call, proxy_http_call};
use crate::base::grpc_health::first_field;
use crate::base::headers::HeaderMap;
use crate::base::time::Nanos;
use crate::host::{Call, CallId, Calls, NoCall};

impl Calls for Proxy {
    fn call(&self, call: &Call<'_>) -> Result<CallId, NoCall> {
        // 0 would be "no timeout", and a callback that may never come.
        let millis = |timeout: Nanos| {
            u32::try_from(timeout.as_millis())
                .unwrap_or(u32::MAX)
                .max(1)
        };
        let mut token = 0;
        match *call {
            Call::Http {
                cluster,
                headers,
                body,
                timeout,
            } => {
                let headers = HeaderMap::from_pairs(headers);
                let headers = headers.as_bytes();
                // No trailers: none is a map of none.
                let trailers = 0u32.to_le_bytes();
                // SAFETY: all of them live through the call.
                let status = unsafe {
                    proxy_http_call(
                        cluster.as_ptr(),
                        cluster.len(),
                        headers.as_ptr(),
                        headers.len(),
                        body.as_ptr(),
                        body.len(),
                        trailers.as_ptr(),
                        trailers.len(),
                        millis(timeout),
                        &raw mut token,
                    )
                };
                if status == OK {
                    Ok(CallId::Http(token))
                } else {
                    Err(NoCall)
                }
            }
            Call::Grpc {
                cluster,
                service,
                method,
                metadata,
                message,
                timeout,
            } => {
                // Envoy takes a GrpcService of its API. It takes a cluster's name too, but some
                // names can be read as a message.
                let upstream = first_field(&first_field(cluster.as_bytes()));
                let metadata = HeaderMap::from_pairs(metadata);
                let metadata = metadata.as_bytes();
                // SAFETY: all of them live through the call.
                let status = unsafe {
                    proxy_grpc_call(
                        upstream.as_ptr(),
                        upstream.len(),
                        service.as_ptr(),
                        service.len(),
                        method.as_ptr(),
                        method.len(),
                        metadata.as_ptr(),
                        metadata.len(),
                        message.as_ptr(),
                        message.len(),
                        millis(timeout),
                        &raw mut token,
                    )
                };
                if status == OK {
                    Ok(CallId::Grpc(token))
                } else {
                    Err(NoCall)
                }
            }
        }
    }
}
