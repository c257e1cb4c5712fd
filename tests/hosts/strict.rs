//! A proxy in this process that runs the module as it is shipped: guests over one store, one for
//! each worker. It is as strict as nginx with ngx_wasm_module, whose rules were read in its source
//! and seen: a call that ends a worker there is an error of the callback here. Or it is Envoy.

use haven::base::headers::HeaderMap;
use haven::host::HostKind;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use wasmi::{
    Caller, Engine, Error, Instance, Linker, Memory, Module, Store, WasmParams, WasmResults,
};

const OK: u32 = 0;
const NOT_FOUND: u32 = 1;
const BAD_ARGUMENT: u32 = 2;
const CAS_MISMATCH: u32 = 8;
const COUNTER: u32 = 0;
const GAUGE: u32 = 1;
const HISTOGRAM: u32 = 2;
const REQUEST_HEADERS: u32 = 0;
const RESPONSE_HEADERS: u32 = 2;
const PLUGIN_CONFIGURATION: u32 = 7;

/// How many headers nginx shows.
const MOST_HEADERS: usize = 100;

/// A metric: its kind, its name, and of each worker its number and when that was set.
type Metric = (u32, String, Vec<(u64, u64)>);

/// What all workers of the proxy share.
#[derive(Default)]
pub struct Shared {
    data: BTreeMap<Vec<u8>, (Vec<u8>, u32)>,
    cas: u32,
    metrics: Vec<Metric>,
    /// Nanoseconds.
    pub now: u64,
    /// Calls that set a metric or read the clock: what orders them.
    turn: u64,
    entropy: u64,
    /// Lines of all workers, with their levels.
    pub log: Vec<(u32, String)>,
    /// How many calls out there were.
    calls: u32,
    /// Host calls of all workers by name.
    pub counts: BTreeMap<&'static str, u64>,
}

/// The callback that runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Start,
    Tick,
    RequestHeaders,
    RequestBody,
    ResponseHeaders,
    ResponseBody,
    Log,
    Done,
    CallResponse,
}

/// A header line. Hidden: nginx has removed it from what a filter sees, and sends it on.
#[derive(Clone, Debug)]
pub struct Line {
    name: String,
    value: Vec<u8>,
    hidden: bool,
}

/// A request on its way.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    request: Vec<Line>,
    response: Vec<Line>,
    /// The filter's own answer.
    pub reply: Option<(u32, HeaderMap, Vec<u8>)>,
    body: Vec<u8>,
}

impl Exchange {
    /// What the upstream gets of a request header.
    pub fn sent_on(&self, name: &str) -> Vec<String> {
        let lines = self.request.iter().filter(|line| line.name == name);
        lines
            .map(|line| String::from_utf8_lossy(&line.value).into_owned())
            .collect()
    }

    /// What the client gets of a header of the upstream's answer.
    pub fn answered(&self, name: &str) -> Option<String> {
        let mut lines = self.response.iter();
        let line = lines.find(|line| line.name == name && !line.hidden)?;
        Some(String::from_utf8_lossy(&line.value).into_owned())
    }
}

struct State {
    kind: HostKind,
    worker: usize,
    shared: Rc<RefCell<Shared>>,
    config: Vec<u8>,
    step: Step,
    exchange: Exchange,
    ticks: u32,
    /// The call out that is open: its number, and to whom.
    open: Vec<(u32, String)>,
    call: (Vec<Line>, Vec<u8>),
}

impl State {
    /// What nginx ends a worker over.
    fn dies(&self, does: bool, what: &str) -> Result<(), Error> {
        if does && self.kind == HostKind::Nginx {
            return Err(Error::new(format!("nginx, in {:?}: {what}", self.step)));
        }
        Ok(())
    }

    /// Whose number of a metric is its own: on nginx each worker has one, on Envoy there is one.
    fn numbers(&self) -> usize {
        match self.kind {
            HostKind::Nginx => self.worker,
            HostKind::Envoy => 0,
        }
    }

    fn in_root(&self) -> bool {
        matches!(self.step, Step::Start | Step::Tick | Step::CallResponse)
    }

    fn lines(&mut self, map: u32) -> Option<&mut Vec<Line>> {
        match map {
            REQUEST_HEADERS => Some(&mut self.exchange.request),
            RESPONSE_HEADERS => Some(&mut self.exchange.response),
            _ => None,
        }
    }

    /// Whether headers of a map may be changed now.
    fn may_set(&self, map: u32) -> Result<(), Error> {
        let request = matches!(self.step, Step::RequestHeaders | Step::RequestBody);
        let late = match map {
            REQUEST_HEADERS => !request,
            _ => !request && self.step != Step::ResponseHeaders,
        };
        self.dies(late, "headers are set too late")
    }

    /// Sets a header as nginx does it: with a second line of its name both are gone from sight, and
    /// both are sent on.
    fn set(&mut self, map: u32, name: &str, value: &[u8]) {
        let nginx = self.kind == HostKind::Nginx;
        let Some(lines) = self.lines(map) else { return };
        let same = |line: &&mut Line| line.name.eq_ignore_ascii_case(name) && !line.hidden;
        let mut found: Vec<_> = lines.iter_mut().filter(same).collect();
        if let Some(first) = found.first_mut() {
            first.value = value.to_vec();
            let repeated = found.len() > 1;
            for (at, line) in found.into_iter().enumerate() {
                line.hidden = repeated && (nginx || at > 0);
            }
            if !nginx {
                lines.retain(|line| !line.hidden);
            }
            return;
        }
        self.add(map, name, value);
    }

    fn add(&mut self, map: u32, name: &str, value: &[u8]) {
        if let Some(lines) = self.lines(map) {
            lines.push(Line {
                name: name.to_ascii_lowercase(),
                value: value.to_vec(),
                hidden: false,
            });
        }
    }

    fn remove(&mut self, map: u32, name: &str) {
        // A response's header that is hidden is not sent. An upstream never sees Envoy's either.
        let nginx = self.kind == HostKind::Nginx;
        let Some(lines) = self.lines(map) else { return };
        for line in lines.iter_mut().filter(|line| line.name == name) {
            line.hidden = true;
        }
        if !nginx {
            lines.retain(|line| !line.hidden);
        }
    }
}

type Call<'a> = Caller<'a, State>;

fn memory(caller: &Call<'_>) -> Memory {
    caller.get_export("memory").unwrap().into_memory().unwrap()
}

fn read(caller: &Call<'_>, at: u32, size: u32) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    memory(caller)
        .read(caller, at as usize, &mut bytes)
        .unwrap();
    bytes
}

fn text(caller: &Call<'_>, at: u32, size: u32) -> String {
    String::from_utf8(read(caller, at, size)).unwrap()
}

fn write(caller: &mut Call<'_>, at: u32, bytes: &[u8]) {
    memory(caller).write(caller, at as usize, bytes).unwrap();
}

/// Hands data over in memory that the guest allocates.
fn give(caller: &mut Call<'_>, bytes: &[u8], data: u32, size: u32) -> Result<(), Error> {
    if bytes.is_empty() {
        return Ok(());
    }
    let malloc = caller.get_export("malloc").unwrap().into_func().unwrap();
    let malloc = malloc.typed::<u32, u32>(&*caller)?;
    let at = malloc.call(&mut *caller, bytes.len() as u32)?;
    write(caller, at, bytes);
    write(caller, data, &at.to_le_bytes());
    write(caller, size, &(bytes.len() as u32).to_le_bytes());
    Ok(())
}

fn count(caller: &Call<'_>, name: &'static str) {
    let mut shared = caller.data().shared.borrow_mut();
    *shared.counts.entry(name).or_default() += 1;
}

/// The lines of a serialised map.
fn pairs(bytes: Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let map = HeaderMap::from_host(bytes);
    let pair =
        |(name, value): (&[u8], &[u8])| (String::from_utf8(name.to_vec()).unwrap(), value.to_vec());
    map.iter().map(pair).collect()
}

/// What haven imports, and nothing else.
#[allow(clippy::too_many_lines, reason = "a function for each import")]
fn imports(linker: &mut Linker<State>) -> Result<(), wasmi::errors::LinkerError> {
    linker.func_wrap(
        "env",
        "proxy_log",
        |c: Call<'_>, level: u32, at: u32, size: u32| {
            let line = String::from_utf8_lossy(&read(&c, at, size)).into_owned();
            c.data().shared.borrow_mut().log.push((level, line));
            OK
        },
    )?;
    let time = |mut c: Call<'_>, at: u32| {
        let now = c.data().shared.borrow().now + 1_800_000_000_000_000_000;
        write(&mut c, at, &now.to_le_bytes());
        OK
    };
    linker.func_wrap("env", "proxy_get_current_time_nanoseconds", time)?;
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "clock_time_get",
        |mut c: Call<'_>, clock: u32, _: u64, at: u32| {
            assert_eq!(clock, 1, "the clock that does not step");
            let now = c.data().shared.borrow().now;
            write(&mut c, at, &now.to_le_bytes());
            0u32
        },
    )?;
    // It gives the plugin no variables. Only the module for Envoy asks.
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "environ_sizes_get",
        |mut c: Call<'_>, count: u32, size: u32| {
            write(&mut c, count, &[0; 4]);
            write(&mut c, size, &[0; 4]);
            0u32
        },
    )?;
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "environ_get",
        |_: Call<'_>, _: u32, _: u32| 0u32,
    )?;
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "random_get",
        |mut c: Call<'_>, at: u32, size: u32| {
            let mut bytes = Vec::new();
            while bytes.len() < size as usize {
                let mut shared = c.data().shared.borrow_mut();
                shared.entropy = shared.entropy.wrapping_mul(6_364_136_223_846_793_005) | 1;
                shared.entropy = shared.entropy.rotate_left(23);
                bytes.extend(shared.entropy.to_le_bytes());
            }
            write(&mut c, at, &bytes[..size as usize]);
            0u32
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_tick_period_milliseconds",
        |mut c: Call<'_>, period: u32| -> Result<u32, Error> {
            let state = c.data();
            state.dies(!state.in_root(), "the tick's period is set by a stream")?;
            state.dies(state.ticks != 0, "the tick's period is set twice")?;
            c.data_mut().ticks = period;
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_effective_context",
        |c: Call<'_>, _: u32| -> Result<u32, Error> {
            // nginx answers that all is well, and does nothing: what follows is of the wrong one.
            c.data()
                .dies(true, "another context is taken for effective")?;
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_continue_stream",
        |c: Call<'_>, _: u32| -> Result<u32, Error> {
            c.data().dies(true, "a stream is to go on")?;
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_buffer_bytes",
        |mut c: Call<'_>, buffer: u32, start: u32, most: u32, data: u32, size: u32| {
            let state = c.data();
            let (bytes, step) = match buffer {
                PLUGIN_CONFIGURATION => (state.config.clone(), Step::Start),
                0 => (Vec::new(), Step::RequestBody),
                1 => (state.exchange.body.clone(), Step::ResponseBody),
                4 => (state.call.1.clone(), Step::CallResponse),
                _ => return Ok(BAD_ARGUMENT),
            };
            state.dies(step != state.step, "a buffer is read at the wrong time")?;
            let bytes: Vec<_> = bytes.into_iter().skip(start as usize).collect();
            let most = bytes.len().min(most as usize);
            give(&mut c, &bytes[..most], data, size)?;
            Ok::<_, Error>(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_buffer_bytes",
        |c: Call<'_>, buffer: u32, _: u32, _: u32, _: u32, _: u32| -> Result<u32, Error> {
            let state = c.data();
            let late = buffer != 1 || state.step != Step::ResponseBody;
            state.dies(late, "a buffer is set at the wrong time")?;
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_header_map_pairs",
        |mut c: Call<'_>, map: u32, data: u32, size: u32| -> Result<u32, Error> {
            count(&c, "proxy_get_header_map_pairs");
            let state = c.data_mut();
            let nginx = state.kind == HostKind::Nginx;
            let step = state.step;
            let lines = match map {
                6 => state.call.0.clone(),
                _ => state.lines(map).cloned().unwrap_or_default(),
            };
            state.dies(map == 6 && step != Step::CallResponse, "no call's headers")?;
            state.dies(![0, 2, 6].contains(&map), "trailers are not there")?;
            let seen = lines.iter().filter(|line| !line.hidden);
            let most = if nginx { MOST_HEADERS } else { usize::MAX };
            let seen: Vec<_> = seen
                .map(|line| (line.name.as_bytes(), line.value.as_slice()))
                .take(most)
                .collect();
            give(&mut c, HeaderMap::from_pairs(&seen).as_bytes(), data, size)?;
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_header_map_pairs",
        |c: Call<'_>, _: u32, _: u32, _: u32| -> Result<u32, Error> {
            // It hides a request's headers, and sends them on beside the new ones.
            c.data().dies(true, "all headers are set")?;
            Ok(OK)
        },
    )?;
    let change = |add: bool| {
        move |mut c: Call<'_>, map: u32, n: u32, n_size: u32, v: u32, v_size: u32| {
            c.data().may_set(map)?;
            let (name, value) = (text(&c, n, n_size), read(&c, v, v_size));
            let state = c.data_mut();
            if add {
                state.add(map, &name, &value);
            } else {
                state.set(map, &name, &value);
            }
            Ok::<_, Error>(OK)
        }
    };
    linker.func_wrap("env", "proxy_add_header_map_value", change(true))?;
    linker.func_wrap("env", "proxy_replace_header_map_value", change(false))?;
    linker.func_wrap(
        "env",
        "proxy_remove_header_map_value",
        |mut c: Call<'_>, map: u32, n: u32, n_size: u32| -> Result<u32, Error> {
            c.data().may_set(map)?;
            let is_request = map == REQUEST_HEADERS;
            c.data()
                .dies(is_request, "a header is removed that is sent on")?;
            let name = text(&c, n, n_size);
            c.data_mut().remove(map, &name);
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_property",
        |mut c: Call<'_>, at: u32, n: u32, data: u32, size: u32| -> Result<u32, Error> {
            count(&c, "proxy_get_property");
            let path = text(&c, at, n).replace('\0', ".");
            let state = c.data();
            state.dies(state.in_root(), "a property of no request")?;
            let value: &[u8] = match (state.kind, path.as_str()) {
                (HostKind::Nginx, "source.address") => b"192.0.2.1",
                (HostKind::Envoy, "source.address") => b"192.0.2.1:40000",
                (HostKind::Envoy, "response.code_details") => b"via_upstream",
                (HostKind::Envoy, _) => return Ok(NOT_FOUND),
                // An error in the log for each answer, or the end of the worker.
                (HostKind::Nginx, _) => {
                    state.dies(true, &path)?;
                    return Ok(NOT_FOUND);
                }
            };
            give(&mut c, value, data, size)?;
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_property",
        |c: Call<'_>, at: u32, n: u32, _: u32, _: u32| -> Result<u32, Error> {
            let path = text(&c, at, n);
            let state = c.data();
            state.dies(!path.starts_with("ngx."), "a property that nobody can read")?;
            state.dies(state.in_root(), "a property of no request")?;
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_shared_data",
        |mut c: Call<'_>, at: u32, n: u32, data: u32, size: u32, cas: u32| {
            count(&c, "proxy_get_shared_data");
            let key = read(&c, at, n);
            let found = c.data().shared.borrow().data.get(&key).cloned();
            let Some((value, version)) = found else {
                return Ok(NOT_FOUND);
            };
            give(&mut c, &value, data, size)?;
            write(&mut c, cas, &version.to_le_bytes());
            Ok::<_, Error>(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_shared_data",
        |c: Call<'_>, at: u32, n: u32, v: u32, v_size: u32, cas: u32| {
            count(&c, "proxy_set_shared_data");
            let (key, value) = (read(&c, at, n), read(&c, v, v_size));
            let state = c.data();
            let mut shared = state.shared.borrow_mut();
            let version = shared.data.get(&key).map(|(_, version)| *version);
            let allowed = match (version, state.kind) {
                (Some(version), HostKind::Envoy) => cas == 0 || cas == version,
                (Some(version), HostKind::Nginx) => cas == version,
                (None, HostKind::Envoy) => true,
                (None, HostKind::Nginx) => cas == 0,
            };
            if !allowed {
                return CAS_MISMATCH;
            }
            shared.cas += 1;
            let version = shared.cas;
            shared.data.insert(key, (value, version));
            OK
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_define_metric",
        |mut c: Call<'_>, kind: u32, at: u32, n: u32, id: u32| -> Result<u32, Error> {
            let name = text(&c, at, n);
            let state = c.data();
            // 256 with the module's name and what nginx puts around it.
            state.dies(name.len() + "pw:haven:".len() > 256, "a metric's name")?;
            let mut shared = state.shared.borrow_mut();
            let nginx = state.kind == HostKind::Nginx;
            // One name is one metric on nginx, whatever kind it has.
            let same = |m: &Metric| m.1 == name && (nginx || m.0 == kind);
            let known = shared.metrics.iter().position(same);
            let at = known.unwrap_or_else(|| {
                shared.metrics.push((kind, name.clone(), vec![(0, 0); 8]));
                shared.metrics.len() - 1
            });
            let other = shared.metrics[at].0 != kind;
            drop(shared);
            c.data()
                .dies(other, "a metric of another kind has this name")?;
            write(&mut c, id, &(at as u32).to_le_bytes());
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_increment_metric",
        |c: Call<'_>, id: u32, offset: i64| -> Result<u32, Error> {
            let state = c.data();
            let mut shared = state.shared.borrow_mut();
            let (kind, name, values) = &mut shared.metrics[id as usize];
            state.dies(*kind != COUNTER, &format!("{name} is no counter"))?;
            if state.kind == HostKind::Envoy && *kind == COUNTER && offset <= 0 {
                return Ok(BAD_ARGUMENT);
            }
            let worker = state.numbers();
            let value = &mut values[worker].0;
            *value = value.wrapping_add_signed(offset);
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_record_metric",
        |c: Call<'_>, id: u32, value: u64| -> Result<u32, Error> {
            let state = c.data();
            let mut shared = state.shared.borrow_mut();
            shared.turn += 1;
            let turn = shared.turn;
            let (kind, name, values) = &mut shared.metrics[id as usize];
            state.dies(*kind == COUNTER, &format!("{name} is a counter"))?;
            let worker = state.numbers();
            values[worker] = match *kind {
                HISTOGRAM => (values[worker].0 + 1, 0),
                _ => (value, turn),
            };
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_metric",
        |mut c: Call<'_>, id: u32, at: u32| -> Result<u32, Error> {
            let state = c.data();
            let shared = state.shared.borrow();
            let (kind, name, _) = &shared.metrics[id as usize];
            state.dies(*kind == HISTOGRAM, &format!("{name} is a histogram"))?;
            let value = value_of(&shared.metrics[id as usize]);
            drop(shared);
            write(&mut c, at, &value.to_le_bytes());
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_http_call",
        |mut c: Call<'_>,
         to: u32,
         to_size: u32,
         h: u32,
         h_size: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         timeout: u32,
         id: u32|
         -> Result<u32, Error> {
            let to = text(&c, to, to_size);
            let headers = pairs(read(&c, h, h_size));
            let state = c.data();
            let late = state.step != Step::Tick;
            state.dies(late, "a call out of a callback that makes none")?;
            let is_address = to.parse::<std::net::SocketAddr>().is_ok();
            state.dies(!is_address, "a call to no address")?;
            assert!(timeout > 0 && headers.iter().any(|(name, _)| name == ":path"));
            state.dies(!state.open.is_empty(), "a second call out at once")?;
            let mut shared = state.shared.borrow_mut();
            shared.calls += 1;
            let number = shared.calls;
            drop(shared);
            c.data_mut().open.push((number, to));
            write(&mut c, id, &number.to_le_bytes());
            Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_grpc_call",
        |c: Call<'_>,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u32,
         _: u32|
         -> Result<u32, Error> {
            c.data().dies(true, "a gRPC call")?;
            Ok(BAD_ARGUMENT)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_send_local_response",
        |mut c: Call<'_>,
         status: u32,
         _: u32,
         details: u32,
         b: u32,
         b_size: u32,
         h: u32,
         h_size: u32,
         grpc: i32|
         -> Result<u32, Error> {
            let (body, headers) = (read(&c, b, b_size), read(&c, h, h_size));
            let state = c.data();
            state.dies(state.exchange.reply.is_some(), "a second reply")?;
            let request = matches!(state.step, Step::RequestHeaders | Step::RequestBody);
            state.dies(!request, "a reply in place of an answer keeps its headers")?;
            state.dies(details > 0, "details are shown to the client")?;
            state.dies(grpc != -1, "a gRPC status")?;
            c.data_mut().exchange.reply = Some((status, HeaderMap::from_host(headers), body));
            Ok(OK)
        },
    )?;
    Ok(())
}

/// The number of a metric over all workers.
fn value_of((kind, _, values): &Metric) -> u64 {
    // The last that was set; of none, the first worker's.
    let last = |a: (u64, u64), b: &(u64, u64)| if b.1 > a.1 { *b } else { a };
    match *kind {
        GAUGE => values.iter().fold(values[0], last).0,
        _ => values.iter().fold(0, |sum, (n, _)| sum.wrapping_add(*n)),
    }
}

/// The proxy.
pub struct Proxy {
    kind: HostKind,
    engine: Engine,
    module: Module,
    linker: Linker<State>,
    /// What its workers share.
    pub shared: Rc<RefCell<Shared>>,
    workers: usize,
}

impl Proxy {
    /// A proxy that has just started, with this module.
    pub fn new(kind: HostKind, module: &[u8]) -> Self {
        let engine = Engine::default();
        let module = Module::new(&engine, module).unwrap();
        let mut linker = Linker::new(&engine);
        imports(&mut linker).unwrap();
        let shared = Shared {
            now: 3_600_000_000_000,
            entropy: 12_345,
            ..Shared::default()
        };
        Self {
            kind,
            engine,
            module,
            linker,
            shared: Rc::new(RefCell::new(shared)),
            workers: 0,
        }
    }

    /// Lets time pass.
    pub fn advance(&self, millis: u64) {
        self.shared.borrow_mut().now += millis * 1_000_000;
    }

    /// The names of metrics that begin so, with their numbers.
    pub fn metrics(&self, begin: &str) -> Vec<(String, u64)> {
        let shared = self.shared.borrow();
        let metrics = shared.metrics.iter().filter(|it| it.1.starts_with(begin));
        metrics.map(|it| (it.1.clone(), value_of(it))).collect()
    }

    /// A worker with this configuration; the errors in the log if it refuses.
    pub fn worker(&mut self, config: &str) -> Result<Guest, String> {
        let state = State {
            kind: self.kind,
            worker: self.workers,
            shared: Rc::clone(&self.shared),
            config: config.as_bytes().to_vec(),
            step: Step::Start,
            exchange: Exchange::default(),
            ticks: 0,
            open: Vec::new(),
            call: Default::default(),
        };
        self.workers += 1;
        let mut store = Store::new(&self.engine, state);
        let linked = self.linker.instantiate_and_start(&mut store, &self.module);
        let mut guest = Guest {
            instance: linked.unwrap(),
            store,
            next: 1,
        };
        let before = self.shared.borrow().log.len();
        guest.call::<(), ()>("_initialize", (), Step::Start)?;
        guest.call::<_, ()>("proxy_on_context_create", (ROOT, 0), Step::Start)?;
        let started: u32 = guest.call("proxy_on_vm_start", (ROOT, 0), Step::Start)?;
        assert_eq!(started, 1);
        let size = config.len() as u32;
        let accepted: u32 = guest.call("proxy_on_configure", (ROOT, size), Step::Start)?;
        if accepted == 1 {
            return Ok(guest);
        }
        let shared = self.shared.borrow();
        let lines = shared.log[before..].iter().filter(|(level, _)| *level == 4);
        Err(lines
            .map(|(_, line)| line.as_str())
            .collect::<Vec<_>>()
            .join("\n"))
    }
}

/// The number of the root context: on nginx any but 0.
const ROOT: u32 = 0x7fff_0001;

/// A worker.
pub struct Guest {
    instance: Instance,
    store: Store<State>,
    next: u32,
}

/// A request that is at its upstream, or answered by the filter.
pub struct Open {
    context: u32,
    /// What became of it.
    pub exchange: Exchange,
}

impl Guest {
    fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        name: &str,
        params: P,
        step: Step,
    ) -> Result<R, String> {
        self.store.data_mut().step = step;
        let function = self.instance.get_typed_func::<P, R>(&self.store, name);
        let function = function.map_err(|error| format!("{name}: {error}"))?;
        let result = function.call(&mut self.store, params);
        result.map_err(|error| format!("{name}: {error}"))
    }

    fn within<R: WasmResults>(
        &mut self,
        open: &mut Open,
        name: &str,
        params: impl WasmParams,
        step: Step,
    ) -> R {
        std::mem::swap(&mut self.store.data_mut().exchange, &mut open.exchange);
        let result = self.call(name, params, step);
        std::mem::swap(&mut self.store.data_mut().exchange, &mut open.exchange);
        result.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The period of its ticks.
    pub fn tick_period(&self) -> u32 {
        self.store.data().ticks
    }

    /// A tick.
    pub fn tick(&mut self) {
        self.call::<_, ()>("proxy_on_tick", ROOT, Step::Tick)
            .unwrap();
    }

    /// To whom its call out goes that is open.
    pub fn called(&self) -> Option<String> {
        let open = &self.store.data().open;
        open.first().map(|(_, to)| to.clone())
    }

    /// Answers its call out, if one is open; `None`: nobody was reached.
    pub fn answer_call(&mut self, status: Option<u16>) {
        let open = &mut self.store.data_mut().open;
        let Some(id) = open.first().map(|(id, _)| *id) else {
            return;
        };
        let line = |status: u16| Line {
            name: ":status".to_owned(),
            value: status.to_string().into_bytes(),
            hidden: false,
        };
        self.store.data_mut().call = (status.map(line).into_iter().collect(), Vec::new());
        let params = (ROOT, id, 1u32, 0u32, 0u32);
        self.call::<_, ()>("proxy_on_http_call_response", params, Step::CallResponse)
            .unwrap();
        self.store.data_mut().open.remove(0);
    }

    /// A request with these headers comes.
    pub fn request(&mut self, headers: &[(&str, &[u8])], body: bool) -> Open {
        let context = self.next;
        self.next += 1;
        let line = |(name, value): &(&str, &[u8])| Line {
            name: (*name).to_owned(),
            value: value.to_vec(),
            hidden: false,
        };
        let exchange = Exchange {
            request: headers.iter().map(line).collect(),
            ..Exchange::default()
        };
        let mut open = Open { context, exchange };
        let step = Step::RequestHeaders;
        self.within::<()>(&mut open, "proxy_on_context_create", (context, ROOT), step);
        // nginx never says that nothing follows.
        let end = u32::from(self.store.data().kind == HostKind::Envoy && !body);
        let params = (context, headers.len() as u32, end);
        let action: u32 = self.within(&mut open, "proxy_on_request_headers", params, step);
        let replied = open.exchange.reply.is_some();
        assert_eq!(
            action == 1,
            replied,
            "it pauses what it answers, and nothing else"
        );
        if body && !replied {
            let params = (context, 3u32, 1u32);
            let step = Step::RequestBody;
            let action: u32 = self.within(&mut open, "proxy_on_request_body", params, step);
            assert_eq!(action, 0);
        }
        open
    }

    /// Its answer comes, in `pieces`; `cut`: not to its end.
    pub fn answer(&mut self, open: &mut Open, status: u16, pieces: u32, cut: bool) {
        let status = status.to_string();
        let own = open.exchange.reply.as_ref().map(|it| it.0.to_string());
        open.exchange.response = [
            (":status", own.unwrap_or(status)),
            ("x-haven-own", "a".into()),
        ]
        .map(|(name, value)| Line {
            name: name.to_owned(),
            value: value.into_bytes(),
            hidden: false,
        })
        .to_vec();
        let context = open.context;
        let step = Step::ResponseHeaders;
        let params = (context, 1u32, 0u32);
        let action: u32 = self.within(open, "proxy_on_response_headers", params, step);
        assert_eq!(action, 0, "nginx can't hold an answer back");
        for piece in 1..=pieces {
            open.exchange.body = b"piece".to_vec();
            let end = u32::from(piece == pieces && !cut);
            let (params, step) = ((context, 5u32, end), Step::ResponseBody);
            let action: u32 = self.within(open, "proxy_on_response_body", params, step);
            assert_eq!(action, 0);
        }
    }

    /// It is over, answered or not.
    pub fn end(&mut self, mut open: Open) -> Exchange {
        let context = open.context;
        // Called, whether or not they are there.
        let _: u32 = self.within(&mut open, "proxy_on_done", context, Step::Log);
        self.within::<()>(&mut open, "proxy_on_log", context, Step::Log);
        self.within::<()>(&mut open, "proxy_on_delete", context, Step::Done);
        open.exchange
    }
}
