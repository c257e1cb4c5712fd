//! The module as hosts load it: what it asks of them, and what it offers, is a known set. A new
//! name here is a decision, not an accident.

use std::collections::BTreeSet;
use wasmparser::{ExternalKind, Parser, Payload};

/// What haven calls.
const IMPORTS: &[&str] = &[
    // Configuration, environment, log, clock, chance.
    "env.proxy_get_buffer_bytes",
    "env.proxy_get_current_time_nanoseconds",
    "env.proxy_log",
    "env.proxy_set_tick_period_milliseconds",
    "wasi_snapshot_preview1.clock_time_get",
    "wasi_snapshot_preview1.environ_get",
    "wasi_snapshot_preview1.environ_sizes_get",
    "wasi_snapshot_preview1.random_get",
    // Shared state and metrics.
    "env.proxy_define_metric",
    "env.proxy_get_metric",
    "env.proxy_get_shared_data",
    "env.proxy_increment_metric",
    "env.proxy_record_metric",
    "env.proxy_set_shared_data",
    // Calls of its own: health checks.
    "env.proxy_grpc_call",
    "env.proxy_http_call",
    // The request and its answer.
    "env.proxy_add_header_map_value",
    "env.proxy_continue_stream",
    "env.proxy_get_header_map_pairs",
    "env.proxy_get_property",
    "env.proxy_remove_header_map_value",
    "env.proxy_replace_header_map_value",
    "env.proxy_send_local_response",
    "env.proxy_set_buffer_bytes",
    "env.proxy_set_effective_context",
    "env.proxy_set_header_map_pairs",
    "env.proxy_set_property",
];

/// Functions; what the linker exports beside them (two addresses and the memory) no host calls.
const EXPORTS: &[&str] = &[
    // getrandom's backend: Rust exports what has no mangled name. No host knows it.
    "__getrandom_v03_custom",
    "_initialize",
    "malloc",
    "proxy_abi_version_0_2_1",
    "proxy_on_configure",
    "proxy_on_context_create",
    "proxy_on_delete",
    "proxy_on_grpc_close",
    "proxy_on_grpc_receive",
    "proxy_on_http_call_response",
    "proxy_on_log",
    "proxy_on_request_body",
    "proxy_on_request_headers",
    "proxy_on_request_trailers",
    "proxy_on_response_body",
    "proxy_on_response_headers",
    "proxy_on_response_trailers",
    "proxy_on_tick",
    "proxy_on_vm_start",
];

fn sets() -> (BTreeSet<String>, BTreeSet<String>, usize) {
    let bytes = std::fs::read(crate::support::haven_wasm().unwrap()).unwrap();
    wasmparser::validate(&bytes).expect("the module is valid");
    let (mut imports, mut exports) = (BTreeSet::new(), BTreeSet::new());
    for payload in Parser::new(0).parse_all(&bytes) {
        match payload.unwrap() {
            Payload::ImportSection(section) => {
                imports.extend(
                    section
                        .into_iter()
                        .map(|i| i.unwrap())
                        .map(|i| format!("{}.{}", i.module, i.name)),
                );
            }
            Payload::ExportSection(section) => {
                let functions = section
                    .into_iter()
                    .map(|e| e.unwrap())
                    .filter(|e| e.kind == ExternalKind::Func);
                exports.extend(functions.map(|e| e.name.to_owned()));
            }
            _ => {}
        }
    }
    (imports, exports, bytes.len())
}

fn known(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn it_asks_hosts_for_a_known_set_of_calls() {
    assert_eq!(sets().0, known(IMPORTS));
}

#[test]
fn it_offers_only_the_callbacks_that_do_something() {
    assert_eq!(sets().1, known(EXPORTS));
}

#[test]
fn it_stays_small() {
    let size = sets().2;
    assert!(size < 800 * 1024, "{size} bytes: what came in?");
}
