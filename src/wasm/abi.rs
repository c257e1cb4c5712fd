//! The numbers of the proxy-wasm ABI 0.2.1 that haven uses. `tests/abi.rs` holds them against those
//! of the proxy-wasm SDK.

/// A call's status: done.
pub const OK: u32 = 0;

/// What a callback on headers answers: let the message go on.
pub const CONTINUE: u32 = 0;
/// What a callback on headers answers: keep it.
pub const PAUSE: u32 = 1;

/// The direction of a stream from the client.
pub const REQUEST_STREAM: u32 = 0;

/// The buffer with the request's body, as far as it has come and is kept.
pub const REQUEST_BODY: u32 = 0;
/// The buffer with a piece of the response's body.
pub const RESPONSE_BODY: u32 = 1;
/// The buffer with the body of the answer to an HTTP call.
pub const CALL_BODY: u32 = 4;
/// The buffer with the message that answers a gRPC call.
pub const GRPC_MESSAGE: u32 = 5;
/// The buffer with the plugin's configuration.
pub const PLUGIN_CONFIGURATION: u32 = 7;

/// The header map of the request.
pub const REQUEST_HEADERS: u32 = 0;
/// The header map of the response.
pub const RESPONSE_HEADERS: u32 = 2;
/// The map of the response's trailers.
pub const RESPONSE_TRAILERS: u32 = 3;
/// The headers of the answer to an HTTP call.
pub const CALL_HEADERS: u32 = 6;

/// A metric that only grows.
pub const COUNTER: u32 = 0;
/// A metric that goes up and down.
pub const GAUGE: u32 = 1;
/// A metric that collects samples.
pub const HISTOGRAM: u32 = 2;

/// The level of a log line that reports a panic; `log` has none for it.
pub const CRITICAL: u32 = 5;

/// A level of `log` as the ABI numbers it.
pub const fn log_level(level: log::Level) -> u32 {
    match level {
        log::Level::Trace => 0,
        log::Level::Debug => 1,
        log::Level::Info => 2,
        log::Level::Warn => 3,
        log::Level::Error => 4,
    }
}
