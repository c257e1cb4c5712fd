//! The numbers of the ABI, held against those of the proxy-wasm SDK for Rust.
//!
//! The filter itself does without the SDK, see `src/wasm.rs`: what both must agree on is here.
#![cfg(not(target_arch = "wasm32"))]
#![allow(dead_code, reason = "the filter uses what is compared here")]

#[path = "../src/wasm/abi.rs"]
mod abi;

use proxy_wasm::types::{Action, BufferType, LogLevel, MapType, MetricType, Status, StreamType};

#[test]
fn our_numbers_are_the_sdks() {
    let pairs = [
        (abi::OK, Status::Ok as u32),
        (abi::CONTINUE, Action::Continue as u32),
        (abi::PAUSE, Action::Pause as u32),
        (abi::REQUEST_STREAM, StreamType::HttpRequest as u32),
        (abi::REQUEST_BODY, BufferType::HttpRequestBody as u32),
        (abi::RESPONSE_BODY, BufferType::HttpResponseBody as u32),
        (abi::CALL_BODY, BufferType::HttpCallResponseBody as u32),
        (abi::GRPC_MESSAGE, BufferType::GrpcReceiveBuffer as u32),
        (
            abi::PLUGIN_CONFIGURATION,
            BufferType::PluginConfiguration as u32,
        ),
        (abi::REQUEST_HEADERS, MapType::HttpRequestHeaders as u32),
        (abi::RESPONSE_HEADERS, MapType::HttpResponseHeaders as u32),
        (abi::RESPONSE_TRAILERS, MapType::HttpResponseTrailers as u32),
        (abi::CALL_HEADERS, MapType::HttpCallResponseHeaders as u32),
        (abi::COUNTER, MetricType::Counter as u32),
        (abi::GAUGE, MetricType::Gauge as u32),
        (abi::HISTOGRAM, MetricType::Histogram as u32),
        (abi::log_level(log::Level::Trace), LogLevel::Trace as u32),
        (abi::log_level(log::Level::Debug), LogLevel::Debug as u32),
        (abi::log_level(log::Level::Info), LogLevel::Info as u32),
        (abi::log_level(log::Level::Warn), LogLevel::Warn as u32),
        (abi::log_level(log::Level::Error), LogLevel::Error as u32),
        (abi::CRITICAL, LogLevel::Critical as u32),
    ];
    for (place, (ours, theirs)) in pairs.into_iter().enumerate() {
        assert_eq!(ours, theirs, "line {place} of the table");
    }
}

#[test]
fn the_table_leaves_no_number_out() {
    let compared = include_str!("abi.rs");
    let names: Vec<_> = include_str!("../src/wasm/abi.rs")
        .split("pub const ")
        .skip(1)
        .filter_map(|rest| rest.split([':', '(']).next())
        .map(|name| name.trim_start_matches("fn "))
        .collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(compared.contains(&format!("abi::{name}")), "{name}");
    }
}
