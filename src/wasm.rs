//! Floor 5: the glue to a proxy-wasm host. It translates and decides nothing.
//!
//! The SDK gives us the entry points and the contexts. Its calls are not used: most of them panic on a status that they did not expect,
//! and some on what a client can send (a header value that is not UTF-8), and a panic kills the worker. [`bindings`] are our own.

mod bindings;
mod random;

use crate::config;
use crate::engine::exchange::{Action, Exchange};
use crate::engine::{Engine, TICK};
use crate::host::Log;
use bindings::Proxy;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{self, ContextType, LogLevel};
use std::rc::Rc;

proxy_wasm::main! {{
    // The host has the last word on levels; below its own level a call costs next to nothing.
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root { engine: None }));
}}

/// One per configuration in each VM. A reload makes a new one beside the old, which keeps its engine until its requests are done.
struct Root {
    engine: Option<Rc<Engine>>,
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
                bindings::set_tick_period(TICK);
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
        if let Some(engine) = &self.engine {
            engine.tick(&Proxy);
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Http { exchange: self.engine.as_ref().map(|engine| Exchange::new(Rc::clone(engine))) }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// One per request. Without an engine (a host that goes on after a refused configuration) everything passes.
struct Http {
    exchange: Option<Exchange>,
}

impl Context for Http {}

/// The end of a stream, however it came about: the host deletes its context, and the SDK drops it. `on_log` and `on_done` would tell the
/// same a little earlier, each for the price of another trip into the VM.
impl Drop for Http {
    fn drop(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.on_end(&Proxy);
        }
    }
}

impl HttpContext for Http {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> types::Action {
        answer(self.exchange.as_mut().map(|exchange| exchange.on_request(&Proxy, &Proxy)))
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> types::Action {
        answer(self.exchange.as_mut().map(|exchange| exchange.on_response(&Proxy, &Proxy)))
    }

    fn on_http_response_trailers(&mut self, _: usize) -> types::Action {
        if let Some(exchange) = &mut self.exchange {
            exchange.on_response_trailers(&Proxy, &Proxy);
        }
        types::Action::Continue
    }
}

fn answer(action: Option<Action>) -> types::Action {
    match action {
        Some(Action::Stop) => types::Action::Pause,
        Some(Action::Continue) | None => types::Action::Continue,
    }
}
