//! What a host charges for being asked: a module that makes haven's callbacks and calls, and does
//! nothing else.
//!
//! The plugin's configuration is a list of words, each a call (or calls) in a callback, the
//! request's if nothing else is said: see [`WORDS`]. Memory is one arena that each call of the host
//! overwrites, so that next to nothing is the module's own. What `make bench ARGS=--floors` shows
//! for it is what no filter of this ABI can go below, whatever it is written in.

#![no_std]

use core::cell::UnsafeCell;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The words, by their bit.
const WORDS: [&[u8]; 12] = [
    b"clock",   // read the monotonic clock
    b"map",     // fetch all headers of the request
    b"remove",  // remove eleven headers that are not there
    b"shared",  // read a record of 24 bytes of shared data, and write it back by compare-and-swap
    b"state",   // store 33 bytes of filter state for the access log
    b"bare",    // answer 429, without headers and body
    b"full",    // answer 429, with the headers and the body of haven's
    b"set",     // set a request header that is not there, `x-haven-upstream`, to an endpoint
    b"add",     // add it
    b"answer",  // fetch all headers of the response, in its callback
    b"address", // ask for the endpoint that answered, in the same
    b"gauges",  // add to ten metrics, and read ten
];
const CLOCK: u32 = 1;
const MAP: u32 = 2;
const REMOVE: u32 = 4;
const SHARED: u32 = 8;
const STATE: u32 = 16;
const BARE: u32 = 32;
const FULL: u32 = 64;
const SET: u32 = 128;
const ADD: u32 = 256;
const ANSWER: u32 = 512;
const ADDRESS: u32 = 1024;
const GAUGES: u32 = 2048;

const PAUSE: u32 = 1;
const MONOTONIC: u32 = 1;
const REQUEST_HEADERS: u32 = 0;
const RESPONSE_HEADERS: u32 = 2;
const GAUGE: u32 = 1;
const PLUGIN_CONFIGURATION: u32 = 7;
const RECORD: &[u8] = b"floor";
const BODY: &[u8] = br#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,"detail":"The rate limit is exhausted; try again after the time that Retry-After says.","reason":"rate_limited","policy":"per-client","violated-policies":["per-client"]}
"#;
const HEADERS: &[u8] = b"\x03\0\0\0\
    \x0c\0\0\0\x43\0\0\0\x0b\0\0\0\x04\0\0\0\x0c\0\0\0\x18\0\0\0\
    proxy-status\0haven; error=http_request_denied; details=\"rate_limited per-client\"\0\
    retry-after\x003600\0\
    content-type\0application/problem+json\0";
const RESERVED: [&str; 11] = [
    "x-haven-cluster",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-max-retries",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
];

static CALLS: AtomicU32 = AtomicU32::new(0);
static METRIC: AtomicU32 = AtomicU32::new(0);
static ARENA: Arena = Arena(UnsafeCell::new([0; 65_536]));

struct Arena(UnsafeCell<[u8; 65_536]>);

// SAFETY: a wasm module of this ABI has one thread.
unsafe impl Sync for Arena {}

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_remove_header_map_value(map: u32, name: *const u8, size: usize) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        size: usize,
        cas: u32,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        name: *const u8,
        size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_add_header_map_value(
        map: u32,
        name: *const u8,
        size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_get_property(
        path: *const u8,
        path_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
    fn proxy_get_metric(id: u32, value: *mut u64) -> u32;
    fn proxy_set_property(path: *const u8, path_size: usize, value: *const u8, size: usize) -> u32;
    #[allow(clippy::too_many_arguments, reason = "the ABI's")]
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut u8 {
    if size > 65_536 {
        null_mut()
    } else {
        ARENA.0.get().cast()
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(_root: u32, size: usize) -> u32 {
    let (mut data, mut length) = (null_mut(), 0);
    // SAFETY: the out pointers live through the call, and what it returns is in the arena.
    let words = unsafe {
        if proxy_get_buffer_bytes(
            PLUGIN_CONFIGURATION,
            0,
            size,
            &raw mut data,
            &raw mut length,
        ) != 0
            || data.is_null()
        {
            return 1;
        }
        core::slice::from_raw_parts(data.cast_const(), length)
    };
    let calls = words
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty())
        .try_fold(0, |calls, word| {
            Some(calls | 1 << WORDS.iter().position(|known| *known == word)?)
        });
    CALLS.store(calls.unwrap_or(0), Relaxed);
    let mut metric = 0;
    // SAFETY: name and out pointer live through the call.
    unsafe { proxy_define_metric(GAUGE, RECORD.as_ptr(), RECORD.len(), &raw mut metric) };
    METRIC.store(metric, Relaxed);
    // SAFETY: key and value live through the call.
    unsafe { proxy_set_shared_data(RECORD.as_ptr(), RECORD.len(), [0; 24].as_ptr(), 24, 0) };
    calls.is_some().into()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(_context: u32, _parent: u32) {}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(_context: u32) {}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_headers(_stream: u32, _count: usize, _end: u32) -> u32 {
    let calls = CALLS.load(Relaxed);
    let (mut data, mut size) = (null_mut(), 0);
    // SAFETY: all that is pointed to lives through the calls.
    unsafe {
        if calls & ANSWER != 0 {
            proxy_get_header_map_pairs(RESPONSE_HEADERS, &raw mut data, &raw mut size);
        }
        if calls & ADDRESS != 0 {
            let path = "upstream\0address";
            proxy_get_property(path.as_ptr(), path.len(), &raw mut data, &raw mut size);
        }
    }
    0
}

#[cfg(feature = "body")]
#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_body(_stream: u32, _size: usize, _end: u32) -> u32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(_stream: u32, _count: usize, _end: u32) -> u32 {
    let calls = CALLS.load(Relaxed);
    let (mut data, mut size, mut cas, mut time) = (null_mut(), 0, 0, 0);
    // SAFETY: all that is pointed to lives through the calls.
    unsafe {
        if calls & MAP != 0 {
            proxy_get_header_map_pairs(REQUEST_HEADERS, &raw mut data, &raw mut size);
        }
        if calls & CLOCK != 0 {
            clock_time_get(MONOTONIC, 0, &raw mut time);
        }
        if calls & REMOVE != 0 {
            for name in RESERVED {
                proxy_remove_header_map_value(REQUEST_HEADERS, name.as_ptr(), name.len());
            }
        }
        if calls & SHARED != 0 {
            proxy_get_shared_data(
                RECORD.as_ptr(),
                RECORD.len(),
                &raw mut data,
                &raw mut size,
                &raw mut cas,
            );
            proxy_set_shared_data(RECORD.as_ptr(), RECORD.len(), data, size, cas);
        }
        if calls & GAUGES != 0 {
            let (metric, mut value) = (METRIC.load(Relaxed), 0);
            for _ in 0..10 {
                proxy_increment_metric(metric, 1);
                proxy_get_metric(metric, &raw mut value);
            }
        }
        let (name, value) = (
            "x-haven-upstream",
            "127.0.0.1:18081,127.0.0.1:18082,127.0.0.1:18083",
        );
        if calls & SET != 0 {
            proxy_replace_header_map_value(
                REQUEST_HEADERS,
                name.as_ptr(),
                name.len(),
                value.as_ptr(),
                value.len(),
            );
        }
        if calls & ADD != 0 {
            proxy_add_header_map_value(
                REQUEST_HEADERS,
                name.as_ptr(),
                name.len(),
                value.as_ptr(),
                value.len(),
            );
        }
        if calls & STATE != 0 {
            let (path, value) = ("haven.decision", "rate_limited per-client enforce");
            proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len());
        }
        let (headers, body) = match calls & (BARE | FULL) {
            0 => return 0,
            FULL => (HEADERS, BODY),
            _ => (&[][..], &[][..]),
        };
        proxy_send_local_response(
            429,
            null(),
            0,
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            -1,
        );
    }
    PAUSE
}
