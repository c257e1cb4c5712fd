//! Floor 5: the glue to a proxy-wasm host. It translates and decides nothing.
//!
//! The SDK gives us the entry points and the contexts. Its calls are not used: most of them panic on a status that they did not expect,
//! and some on what a client can send (a header value that is not UTF-8), and a panic kills the worker. [`bindings`] are our own.

mod bindings;
mod random;
mod waiting;

use crate::base::time::Nanos;
use crate::config;
use crate::engine::exchange::{Action, Exchange};
use crate::engine::{Engine, TICK};
use crate::host::{Clock, Log};
use bindings::Proxy;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{self, ContextType, LogLevel};
use std::cell::RefCell;
use std::rc::Rc;
use waiting::{Shared, Ticks};

proxy_wasm::main! {{
    // The host has the last word on levels; below its own level a call costs next to nothing.
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|id| Box::new(Root { id, engine: None, ticks: Rc::default(), next_look: Nanos::ZERO }));
}}

/// One per configuration in each VM. A reload makes a new one beside the old, which keeps its engine until its requests are done.
struct Root {
    id: u32,
    engine: Option<Rc<Engine>>,
    ticks: Rc<Ticks>,
    /// When the engine's own tick is due: the host's may come more often, for requests that wait.
    next_look: Nanos,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let json = bindings::plugin_configuration(size);
        let engine =
            config::parse(&json).map_err(|errors| errors.to_string()).and_then(|config| Engine::new(config, &Proxy));
        match engine {
            Ok(engine) => {
                self.engine = Some(Rc::new(engine));
                self.ticks.set(Proxy.monotonic());
                true
            }
            // False: at start the proxy exits, on an update it keeps the configuration that it has.
            Err(message) => {
                for line in message.lines() {
                    Proxy.log(log::Level::Error, &["configuration refused: ", line].concat());
                }
                false
            }
        }
    }

    fn on_tick(&mut self) {
        let now = Proxy.monotonic();
        waiting::resume(self.id, now);
        if let Some(engine) = self.engine.as_ref().filter(|_| now >= self.next_look) {
            self.next_look = now.plus(TICK);
            engine.tick(&Proxy);
        }
        self.ticks.set(Proxy.monotonic());
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        let exchange = self.engine.as_ref().map(|engine| Exchange::new(Rc::clone(engine)));
        Some(Box::new(Http { id, exchange, waited: None, ticks: Rc::clone(&self.ticks) }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// One per request. Without an engine (a host that goes on after a refused configuration) everything passes.
struct Http {
    id: u32,
    exchange: Option<Exchange>,
    /// The exchange of a request that waits, or has waited.
    waited: Option<Shared>,
    ticks: Rc<Ticks>,
}

impl Context for Http {}

/// The end of a stream, however it came about: the host deletes its context, and the SDK drops it. `on_log` and `on_done` would tell the
/// same a little earlier, each for the price of another trip into the VM.
impl Drop for Http {
    fn drop(&mut self) {
        if self.waited.is_some() {
            waiting::forget(self.id);
        }
        self.with(|exchange| {
            if exchange.is_unsettled() {
                let d = crate::host::Stream::property(&Proxy, crate::host::Property::ResponseCodeDetails);
                let f = crate::host::Stream::property(&Proxy, crate::host::Property::ResponseFlags);
                Proxy.log(log::Level::Warn, &format!("CUT details={:?} flags={:?}", d.map(|d| String::from_utf8_lossy(&d).into_owned()), f.and_then(|f| f.try_into().ok()).map(u64::from_le_bytes)));
                exchange.on_cut(&Proxy, &Proxy);
            }
            exchange.on_end(&Proxy);
        });
    }
}

impl HttpContext for Http {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> types::Action {
        let action = self.with(|exchange| exchange.on_request(&Proxy, &Proxy));
        let action = if let Some(Action::Wait { until }) = action { self.hold(until) } else { action };
        answer(action)
    }

    // Where the plugin's `allow_on_headers_stop_iteration` is set, pausing at the headers does not keep a body or trailers from pushing
    // the request on. A client must not get past its wait by sending one.
    fn on_http_request_body(&mut self, _: usize, _: bool) -> types::Action {
        self.while_waiting()
    }

    fn on_http_request_trailers(&mut self, _: usize) -> types::Action {
        self.while_waiting()
    }

    fn on_http_response_headers(&mut self, _: usize, end: bool) -> types::Action {
        answer(self.with(|exchange| exchange.on_response_headers(&Proxy, &Proxy, end)))
    }

    fn on_http_response_body(&mut self, size: usize, end: bool) -> types::Action {
        self.with(|exchange| exchange.on_response_body(&Proxy, &Proxy, size, end));
        types::Action::Continue
    }

    fn on_http_response_trailers(&mut self, _: usize) -> types::Action {
        self.with(|exchange| exchange.on_response_trailers(&Proxy, &Proxy));
        types::Action::Continue
    }
}

impl Http {
    fn with<R>(&mut self, run: impl FnOnce(&mut Exchange) -> R) -> Option<R> {
        match (&mut self.exchange, &self.waited) {
            (Some(exchange), _) => Some(run(exchange)),
            (None, Some(waited)) => waited.try_borrow_mut().ok().map(|mut exchange| run(&mut exchange)),
            (None, None) => None,
        }
    }

    /// Lets the request wait, or answers if there is no room.
    fn hold(&mut self, until: Nanos) -> Option<Action> {
        let shared = Rc::new(RefCell::new(self.exchange.take()?));
        let held = waiting::hold(until, self.id, &shared, &self.ticks);
        self.waited = Some(shared);
        if held { Some(Action::Stop) } else { self.with(|exchange| exchange.on_no_room(&Proxy, &Proxy)) }
    }

    fn while_waiting(&self) -> types::Action {
        let waits =
            self.waited.as_ref().and_then(|waited| waited.try_borrow().ok().map(|exchange| exchange.is_waiting()));
        if waits == Some(true) { types::Action::Pause } else { types::Action::Continue }
    }
}

fn answer(action: Option<Action>) -> types::Action {
    match action {
        Some(Action::Stop | Action::Wait { .. }) => types::Action::Pause,
        Some(Action::Continue) | None => types::Action::Continue,
    }
}
