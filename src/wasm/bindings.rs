//! The calls of the proxy-wasm ABI 0.2.1 that haven makes, each a thin wrapper that never panics.
//!
//! What the host refuses counts as absent: on the request path an error has no receiver, and every
//! absence has a safe meaning.

use super::abi::{
    CALL_BODY, CALL_HEADERS, COUNTER, GAUGE, GRPC_MESSAGE, HISTOGRAM, OK, PLUGIN_CONFIGURATION,
    REQUEST_BODY, REQUEST_HEADERS, REQUEST_STREAM, RESPONSE_BODY, RESPONSE_HEADERS,
    RESPONSE_TRAILERS,
};
use super::imports::{
    clock_time_get, proxy_add_header_map_value, proxy_continue_stream, proxy_define_metric,
    proxy_get_buffer_bytes, proxy_get_current_time_nanoseconds, proxy_get_header_map_pairs,
    proxy_get_metric, proxy_get_property, proxy_get_shared_data, proxy_increment_metric, proxy_log,
    proxy_record_metric, proxy_remove_header_map_value, proxy_replace_header_map_value,
    proxy_send_local_response, proxy_set_buffer_bytes, proxy_set_effective_context,
    proxy_set_header_map_pairs, proxy_set_property, proxy_set_shared_data,
    proxy_set_tick_period_milliseconds, random_get,
};
use crate::base::headers::HeaderMap;
use crate::base::text;
use crate::base::time::{Moment, Nanos, UnixTime};
use crate::host::{
    Cas, CasMismatch, Clock, HostKind, Message, MetricId, MetricKind, Metrics, Platform, Property,
    Random, Reply, SharedCounter, SharedCounters, SharedData, Stream,
};
use std::cell::Cell;
use std::ptr::{null, null_mut};

/// The host, and the stream whose callback is running.
#[derive(Debug)]
pub struct Proxy;

/// How much more `malloc` allocates than it is asked for. What nginx writes there may be longer than
/// it has announced, by less than a buffer of a request's line: 8 KiB.
pub const SLACK: usize = if cfg!(feature = "portable") {
    9 * 1024
} else {
    0
};

const WASI_MONOTONIC: u32 = 1;
const WASI_OK: u16 = 0;

/// Writes a line to the proxy's log, at a level of the ABI. The host has the last word on levels.
pub fn log(level: u32, message: &str) {
    // SAFETY: the message lives through the call.
    unsafe { proxy_log(level, message.as_ptr(), message.len()) };
}

/// The plugin's configuration.
pub fn plugin_configuration(size: usize) -> Vec<u8> {
    // SAFETY: the out pointers live through the call.
    owned(|data, length| unsafe {
        proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, data, length)
    })
    .unwrap_or_default()
}

/// The plugin's root id, or its name if that is empty; nothing on nginx, whose worker does not
/// survive the question.
pub fn plugin_identity() -> String {
    if Proxy.kind().is_nginx() {
        return String::new();
    }
    let named = |path: &str| property(path).filter(|value| !value.is_empty());
    let name = named("plugin_root_id").or_else(|| named("plugin_name"));
    String::from_utf8_lossy(&name.unwrap_or_default()).into_owned()
}

thread_local! {
    static KIND: Cell<HostKind> = const { Cell::new(HostKind::Envoy) };
}

/// Finds out which proxy this is, by what it does: nginx adds any offset to a counter, and Envoy
/// refuses one that is not above 0. Both survive it, and it changes nothing. (A property would not
/// do: nginx does not survive some in a root context, and logs an error for the others.)
pub fn detect_host() -> HostKind {
    let probe = define_metric(COUNTER, "haven_internal_host");
    // SAFETY: takes numbers.
    let adds = probe.is_some_and(|probe| unsafe { proxy_increment_metric(probe, 0) == OK });
    let kind = if adds {
        HostKind::Nginx
    } else {
        HostKind::Envoy
    };
    KIND.set(kind);
    kind
}

impl Platform for Proxy {
    fn kind(&self) -> HostKind {
        KIND.get()
    }
}

fn property(path: &str) -> Option<Vec<u8>> {
    // SAFETY: path and out pointers live through the call.
    owned(|data, size| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, size) })
}

/// Asks for a tick every so often.
pub fn set_tick_period(period: Nanos) {
    // SAFETY: takes a number.
    unsafe {
        proxy_set_tick_period_milliseconds(u32::try_from(period.as_millis()).unwrap_or(u32::MAX))
    };
}

/// Makes the calls that follow in this callback those of another context. `false`: there is none of
/// this number.
pub fn set_effective_context(context: u32) -> bool {
    // SAFETY: takes a number.
    unsafe { proxy_set_effective_context(context) == OK }
}

/// Lets the paused request of the effective context go on. `false`: the host refused.
pub fn continue_request() -> bool {
    // SAFETY: takes a number.
    unsafe { proxy_continue_stream(REQUEST_STREAM) == OK }
}

/// The headers of the answer to a call; only in its callback.
pub fn call_headers() -> HeaderMap {
    // SAFETY: the out pointers live through the call.
    HeaderMap::from_host(
        owned(|data, size| unsafe { proxy_get_header_map_pairs(CALL_HEADERS, data, size) })
            .unwrap_or_default(),
    )
}

/// At most `size` bytes of the body of the answer to a call; only in its callback.
pub fn call_body(size: usize) -> Vec<u8> {
    // SAFETY: the out pointers live through the call.
    owned(|data, length| unsafe { proxy_get_buffer_bytes(CALL_BODY, 0, size, data, length) })
        .unwrap_or_default()
}

/// At most `size` bytes of the message that answers a gRPC call; only in its callback.
pub fn grpc_message(size: usize) -> Vec<u8> {
    // SAFETY: the out pointers live through the call.
    owned(|data, length| unsafe { proxy_get_buffer_bytes(GRPC_MESSAGE, 0, size, data, length) })
        .unwrap_or_default()
}

impl Clock for Proxy {
    fn monotonic(&self) -> Moment {
        let mut time = 0;
        // SAFETY: the out pointer lives through the call.
        if unsafe { clock_time_get(WASI_MONOTONIC, 0, &raw mut time) } == WASI_OK {
            Moment(time)
        } else {
            // Better than none: a host without the call still moves time on.
            Moment(self.wall().0)
        }
    }

    fn wall(&self) -> UnixTime {
        let mut time = 0;
        // SAFETY: the out pointer lives through the call.
        unsafe { proxy_get_current_time_nanoseconds(&raw mut time) };
        UnixTime(time)
    }
}

impl SharedData for Proxy {
    fn shared(&self, key: &[u8]) -> Option<(Vec<u8>, Cas)> {
        let mut cas = 0;
        // SAFETY: key and out pointers live through the call.
        let value = owned(|data, size| unsafe {
            proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &raw mut cas)
        })?;
        Some((value, Cas(cas)))
    }

    fn set_shared(&self, key: &[u8], value: &[u8], expected: Cas) -> Result<(), CasMismatch> {
        // SAFETY: key and value live through the call.
        let status = unsafe {
            proxy_set_shared_data(
                key.as_ptr(),
                key.len(),
                value.as_ptr(),
                value.len(),
                expected.0,
            )
        };
        if status == OK {
            Ok(())
        } else {
            Err(CasMismatch)
        }
    }
}

impl SharedCounters for Proxy {
    fn define_shared(&self, name: &str) -> SharedCounter {
        SharedCounter(self.define(MetricKind::UpDownCounter, name).0)
    }

    fn define_stored(&self, name: &str) -> SharedCounter {
        SharedCounter(self.define(MetricKind::Gauge, name).0)
    }

    fn increment(&self, counter: SharedCounter, offset: i64) {
        self.add(MetricId(counter.0), offset);
    }

    fn store(&self, counter: SharedCounter, number: u64) {
        self.record(MetricId(counter.0), number);
    }

    fn load(&self, counter: SharedCounter) -> u64 {
        self.value(MetricId(counter.0))
    }
}

impl Metrics for Proxy {
    fn define(&self, kind: MetricKind, name: &str) -> MetricId {
        let kind = match self.kind().metric(kind) {
            MetricKind::Counter => COUNTER,
            MetricKind::UpDownCounter | MetricKind::Gauge => GAUGE,
            MetricKind::Histogram => HISTOGRAM,
        };
        define_metric(kind, name).map_or(MetricId::NONE, MetricId)
    }

    fn add(&self, id: MetricId, offset: i64) {
        if id != MetricId::NONE {
            // SAFETY: takes numbers.
            unsafe { proxy_increment_metric(id.0, offset) };
        }
    }

    fn record(&self, id: MetricId, value: u64) {
        if id != MetricId::NONE {
            // SAFETY: takes numbers.
            unsafe { proxy_record_metric(id.0, value) };
        }
    }

    fn value(&self, id: MetricId) -> u64 {
        let mut value = 0;
        if id != MetricId::NONE {
            // SAFETY: the out pointer lives through the call.
            unsafe { proxy_get_metric(id.0, &raw mut value) };
        }
        value
    }
}

impl Random for Proxy {
    fn entropy(&self) -> u64 {
        // Without entropy the clock has to do: hashing stays correct, and can be guessed.
        getrandom::u64().unwrap_or_else(|_| self.wall().0.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// Where getrandom takes entropy from on this target, for us and for any dependency: from the
/// proxy.
#[unsafe(no_mangle)]
unsafe extern "Rust" fn __getrandom_v03_custom(
    buffer: *mut u8,
    length: usize,
) -> Result<(), getrandom::Error> {
    // SAFETY: the caller gives a buffer of this length for the time of the call.
    if unsafe { random_get(buffer, length) } == WASI_OK {
        Ok(())
    } else {
        Err(getrandom::Error::UNSUPPORTED)
    }
}

impl Stream for Proxy {
    fn headers(&self, of: Message) -> HeaderMap {
        // SAFETY: the out pointers live through the call.
        HeaderMap::from_host(
            owned(|data, size| unsafe { proxy_get_header_map_pairs(map(of), data, size) })
                .unwrap_or_default(),
        )
    }

    fn set_headers(&self, of: Message, headers: &HeaderMap) {
        let headers = headers.as_bytes();
        // No bytes at all would be no map.
        let none = 0u32.to_le_bytes();
        let headers = if headers.is_empty() { &none } else { headers };
        // SAFETY: the headers live through the call.
        unsafe { proxy_set_header_map_pairs(map(of), headers.as_ptr(), headers.len()) };
    }

    fn set_header(&self, of: Message, name: &str, value: &[u8]) {
        // SAFETY: name and value live through the call.
        unsafe {
            proxy_replace_header_map_value(
                map(of),
                name.as_ptr(),
                name.len(),
                value.as_ptr(),
                value.len(),
            )
        };
    }

    fn add_header(&self, of: Message, name: &str, value: &[u8]) {
        // The one that was emptied has this name.
        if of == Message::Request && self.kind().is_nginx() {
            return self.set_header(of, name, value);
        }
        // SAFETY: name and value live through the call.
        unsafe {
            proxy_add_header_map_value(
                map(of),
                name.as_ptr(),
                name.len(),
                value.as_ptr(),
                value.len(),
            )
        };
    }

    /// nginx hides a request's header from the filter and sends it on. Nothing takes its place.
    fn remove_header(&self, of: Message, name: &str) {
        if of == Message::Request && self.kind().is_nginx() {
            return self.set_header(of, name, b"");
        }
        // SAFETY: the name lives through the call.
        unsafe { proxy_remove_header_map_value(map(of), name.as_ptr(), name.len()) };
    }

    fn body(&self, size: usize) -> Option<Vec<u8>> {
        // SAFETY: the out pointers live through the call.
        owned(|data, length| unsafe {
            proxy_get_buffer_bytes(RESPONSE_BODY, 0, size, data, length)
        })
    }

    fn replace_body(&self, size: usize, by: &[u8]) -> bool {
        // SAFETY: the bytes live through the call.
        let status =
            unsafe { proxy_set_buffer_bytes(RESPONSE_BODY, 0, size, by.as_ptr(), by.len()) };
        status == OK
    }

    fn request_body(&self, size: usize) -> Option<Vec<u8>> {
        // SAFETY: the out pointers live through the call.
        owned(|data, length| unsafe { proxy_get_buffer_bytes(REQUEST_BODY, 0, size, data, length) })
    }

    fn property(&self, property: Property) -> Option<Vec<u8>> {
        if self.kind().tells(property) {
            self::property(property.path())
        } else {
            None
        }
    }

    /// In nginx's variable of this name, if the configuration has one.
    fn set_state(&self, name: &str, value: &[u8]) {
        let variable;
        let name = if self.kind().is_nginx() {
            variable = ["ngx.", &name.replace('.', "_")].concat();
            &variable
        } else {
            name
        };
        // SAFETY: path and value live through the call.
        unsafe { proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) };
    }

    fn reply(&self, reply: &Reply) {
        if self.kind().is_nginx() {
            return reply_on_nginx(reply);
        }
        let headers = HeaderMap::of(reply.pairs());
        let (headers, body) = (headers.as_bytes(), reply.body());
        // SAFETY: details, body and headers live through the call.
        unsafe {
            proxy_send_local_response(
                reply.status.into(),
                reply.details.as_ptr(),
                reply.details.len(),
                body.as_ptr(),
                body.len(),
                headers.as_ptr(),
                headers.len(),
                reply.grpc_status.map_or(-1, i32::from),
            );
        }
    }
}

/// Answers without what nginx does not know: details, which it would show to the client, and a gRPC
/// status, for which it has no reply.
#[cold]
#[inline(never)]
fn reply_on_nginx(reply: &Reply) {
    let grpc = reply.grpc_status.map(|status| text::number(status.into()));
    let mut pairs: Vec<_> = reply.pairs().collect();
    let (mut status, mut body) = (reply.status, reply.body());
    if let Some(grpc) = &grpc {
        pairs.push((b"content-type", b"application/grpc"));
        pairs.push((b"grpc-status", grpc.as_bytes()));
        pairs.push((b"grpc-message", body));
        (status, body) = (200, &[]);
    }
    let headers = HeaderMap::from_pairs(&pairs);
    let headers = headers.as_bytes();
    // SAFETY: body and headers live through the call.
    unsafe {
        proxy_send_local_response(
            status.into(),
            null(),
            0,
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            -1,
        );
    }
}

/// The number of a metric; `None` if the host refuses it.
fn define_metric(kind: u32, name: &str) -> Option<u32> {
    let mut id = 0;
    // SAFETY: name and out pointer live through the call.
    let status = unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &raw mut id) };
    (status == OK).then_some(id)
}

const fn map(of: Message) -> u32 {
    match of {
        Message::Request => REQUEST_HEADERS,
        Message::Response => RESPONSE_HEADERS,
        Message::ResponseTrailers => RESPONSE_TRAILERS,
    }
}

/// Runs a call that returns data: the host asks our allocator for memory, copies, and hands it
/// over. A status that is not OK, or no data, is `None`; data of length zero is empty.
fn owned(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Option<Vec<u8>> {
    let (mut data, mut size) = (null_mut(), 0);
    if call(&raw mut data, &raw mut size) != OK {
        return None;
    }
    if data.is_null() {
        return Some(Vec::new());
    }
    let whole = size.saturating_add(SLACK);
    // SAFETY: our `malloc` export allocated exactly `whole` bytes as a boxed slice, and the host
    // gave it up to us.
    let mut bytes = unsafe { Vec::from_raw_parts(data, whole, whole) };
    bytes.truncate(size);
    Some(bytes)
}
