//! The entry points: the callbacks of the proxy-wasm ABI 0.2.1 that haven implements, and no
//! others.
//!
//! A host calls each callback that a module exports, for each request, at 2,000 to 3,000
//! instructions a call. One that is not exported costs nothing, and the host goes on as if it had
//! returned at once. That is why `proxy_on_done` is only there for nginx, by the feature `portable`:
//! it calls every one of its own without looking whether it is there.
//!
//! To add one: a function here with the ABI's parameters, which hands over to a method of
//! [`super::Root`] or [`super::Http`]; and its name in `tests/envoy/module.rs`.

use super::abi::{CONTINUE, CRITICAL, PAUSE};
use super::bindings;
use super::contexts;
use super::logger;
use super::{Http, Root};
use crate::engine::chain::Action;
use std::rc::Rc;

/// Its name is the version.
#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

/// Runs first in every VM.
#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    logger::install();
    // A panic ends in a trap, of which a host only reports that it happened.
    std::panic::set_hook(Box::new(|panic| {
        bindings::log(CRITICAL, &panic.to_string());
    }));
}

/// Memory for what a host hands to us, and [`bindings::SLACK`]. [`bindings`] take it over as a `Vec`
/// of that capacity.
#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut u8 {
    let whole = size.saturating_add(bindings::SLACK);
    Box::into_raw(Box::<[u8]>::new_uninit_slice(whole)).cast()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(context: u32, parent: u32) {
    contexts::create(context, parent);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(context: u32) {
    contexts::delete(context);
}

/// nginx requires it.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_vm_start(_root: u32, _size: usize) -> u32 {
    1
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(root: u32, size: usize) -> u32 {
    on_root(root, |root| root.on_configure(size))
        .unwrap_or(false)
        .into()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_tick(root: u32) {
    on_root(root, Root::on_tick);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(stream: u32, _count: usize, end: u32) -> u32 {
    on_stream(stream, |stream| stream.on_request_headers(end != 0))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_body(stream: u32, _size: usize, end: u32) -> u32 {
    on_stream(stream, |stream| stream.on_request_body(end != 0))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_trailers(stream: u32, _count: usize) -> u32 {
    on_stream(stream, |stream| stream.on_request_trailers())
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_headers(stream: u32, _count: usize, end: u32) -> u32 {
    on_stream(stream, |stream| stream.on_response_headers(end != 0))
}

/// The end of a stream, for the stream; and for a root, if an access log of the proxy is a plugin
/// with the root's configuration and reports the stream. Envoy runs both through this one export.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_log(context: u32) {
    contexts::log(context);
}

/// The stream may be done.
#[cfg(feature = "portable")]
#[unsafe(no_mangle)]
extern "C" fn proxy_on_done(_context: u32) -> u32 {
    1
}

/// For each piece of a body. Here the filter sees whether an answer is whole or was cut, and copies
/// what fallbacks store.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_body(stream: u32, size: usize, end: u32) -> u32 {
    on_stream(stream, |stream| stream.on_response_body(size, end != 0))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_trailers(stream: u32, _count: usize) -> u32 {
    on_stream(stream, |stream| stream.on_response_trailers())
}

/// The answer to a call of haven's, or that there is none. Requests do not pay for it.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_http_call_response(
    root: u32,
    call: u32,
    _headers: u32,
    size: usize,
    _trailers: u32,
) {
    on_root(root, |root| root.on_http_call_response(call, size));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_receive(root: u32, call: u32, size: usize) {
    on_root(root, |root| root.on_grpc_receive(call, size));
}

/// The end of a gRPC call that has no message.
#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_close(root: u32, call: u32, status: u32) {
    on_root(root, |root| root.on_grpc_close(call, status));
}

fn on_root<R>(root: u32, callback: impl FnOnce(&Root) -> R) -> Option<R> {
    contexts::root(root).map(|root| callback(&root))
}

fn on_stream(stream: u32, callback: impl FnOnce(&Rc<Http>) -> Action) -> u32 {
    match contexts::stream(stream).map(|stream| callback(&stream)) {
        Some(Action::Stop | Action::Read | Action::Wait { .. }) => PAUSE,
        Some(Action::Continue) | None => CONTINUE,
    }
}
