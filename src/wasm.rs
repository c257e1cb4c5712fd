//! Floor 5: the glue to a proxy-wasm host. It translates and decides nothing.
//!
//! [`exports`] are the entry points that a host calls, [`bindings`] and `calls` what haven calls,
//! [`contexts`] what stands between two entries. All three are haven's own and small. An SDK's
//! calls may panic on what they did not expect, which ends the worker's VM; these return what is
//! unexpected as absent. And an SDK exports every callback of the ABI, each of which a host then
//! calls for every request.

mod abi;
mod bindings;
mod calls;
mod contexts;
mod environment;
mod exports;
mod imports;
mod logger;
mod waiting;

use crate::base::time::Moment;
use crate::document;
use crate::engine::chain::{Action, Exchange};
use crate::engine::waiting::Line;
use crate::engine::{Engine, TICK};
use crate::host::scoped::Scoped;
use crate::host::{CallAnswer, CallId, Clock, HostKind, Platform};
use crate::policy::health_check::report;
use bindings::Proxy;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use waiting::Ticks;

/// One per configuration in each VM. A reload makes a new one beside the old, which keeps its
/// engine until its requests are done.
#[derive(Debug)]
struct Root {
    id: u32,
    /// Missing until a configuration is accepted.
    engine: RefCell<Option<Rc<Engine>>>,
    /// The proxy, with the configuration's own state.
    host: RefCell<Rc<Scoped<Proxy>>>,
    ticks: Ticks,
    /// When the engine's own tick is due: the host's may come more often, for requests that wait.
    next_look: Cell<Moment>,
}

impl Root {
    fn new(id: u32) -> Self {
        Self {
            id,
            engine: RefCell::default(),
            host: RefCell::new(Rc::new(Scoped::new(Proxy, ""))),
            ticks: Ticks::default(),
            next_look: Cell::new(Moment::ZERO),
        }
    }

    /// The host has a configuration of `size` bytes. `false`: at start the proxy exits, on an
    /// update it keeps the one that it has.
    fn on_configure(&self, size: usize) -> bool {
        if bindings::detect_host() == HostKind::Nginx && !cfg!(feature = "portable") {
            log::error!("configuration refused: nginx needs haven-portable.wasm (docs/hosts.md)");
            return false;
        }
        let json = bindings::plugin_configuration(size);
        let engine = document::parse(&json)
            .map_err(|errors| errors.to_string())
            .and_then(|config| {
                let state = config.state.clone();
                let state = state.unwrap_or_else(bindings::plugin_identity);
                let host = Rc::new(Scoped::new(Proxy, &state));
                Ok((Engine::new(config, &*host)?, host))
            });
        match engine {
            Ok((engine, host)) => {
                if let Some(former) = self.engine() {
                    former.close(&*self.host());
                }
                self.host.replace(host);
                let now = Proxy.monotonic();
                if engine.has_checks() {
                    self.ticks.want(now);
                }
                self.engine.replace(Some(Rc::new(engine)));
                self.ticks.set(now);
                true
            }
            Err(message) => {
                for line in message.lines() {
                    log::error!("configuration refused: {line}");
                }
                false
            }
        }
    }

    fn on_tick(&self) {
        let now = Proxy.monotonic();
        waiting::resume(self.id, now);
        if let Some(engine) = self.engine().filter(|_| now >= self.next_look.get()) {
            self.next_look.set(now.plus(TICK));
            engine.tick(&*self.host());
        }
        if let Some(next) = self
            .engine()
            .and_then(|engine| engine.check(&*self.host(), now))
        {
            self.ticks.want(next);
        }
        self.ticks.set(Proxy.monotonic());
    }

    fn on_http_call_response(&self, call: u32, size: usize) {
        let id = CallId::Http(call);
        let most = self.engine().map_or(0, |engine| engine.longest_answer(id));
        // Whether it is of use is the engine's to say; it cannot ask for more than is there.
        let (headers, body) = (
            bindings::call_headers(),
            bindings::call_body(size.min(most)),
        );
        let answer = CallAnswer::Http {
            headers,
            body,
            size,
        };
        self.on_call(id, &answer);
    }

    fn on_grpc_receive(&self, call: u32, size: usize) {
        let message = bindings::grpc_message(size.min(report::MAX_BYTES));
        self.on_call(CallId::Grpc(call), &CallAnswer::GrpcMessage(message));
    }

    fn on_grpc_close(&self, call: u32, status: u32) {
        self.on_call(CallId::Grpc(call), &CallAnswer::GrpcStatus(status));
    }

    fn on_call(&self, call: CallId, answer: &CallAnswer) {
        let Some(engine) = self.engine() else { return };
        let now = Proxy.monotonic();
        engine.answered(&*self.host(), call, answer, now);
        if !Proxy.kind().changes_ticks() {
            return;
        }
        // What follows from it may be due sooner than what was known before.
        if let Some(next) = engine.check(&*self.host(), now) {
            self.ticks.want(next);
            self.ticks.set(now);
        }
    }

    fn engine(&self) -> Option<Rc<Engine>> {
        self.engine.borrow().clone()
    }

    fn host(&self) -> Rc<Scoped<Proxy>> {
        Rc::clone(&self.host.borrow())
    }
}

/// A reload has put another configuration in its place, and its last stream, which holds it, has
/// ended.
impl Drop for Root {
    fn drop(&mut self) {
        if let Some(engine) = self.engine() {
            engine.close(&*self.host());
        }
    }
}

/// One per request.
#[derive(Debug)]
struct Http {
    id: u32,
    root: Rc<Root>,
    host: Rc<Scoped<Proxy>>,
    exchange: RefCell<Exchange>,
    /// Whether it waits, or has waited.
    held: Cell<bool>,
}

/// The end of a stream, however it came about: the host deletes its context, which drops it.
/// `on_done` comes a little earlier, for the price of another trip into the VM.
impl Drop for Http {
    fn drop(&mut self) {
        let exchange = self.exchange.get_mut();
        // Properties can still be read here: this is the last moment.
        exchange.on_delete(&*self.host, &Proxy);
        if exchange.is_unsettled() {
            exchange.on_cut(&*self.host, &Proxy);
        }
        exchange.on_end(&*self.host);
    }
}

impl Http {
    /// `None` without an engine (a host that goes on after a refused configuration): everything
    /// passes.
    fn new(id: u32, root: Rc<Root>) -> Option<Self> {
        let exchange = Exchange::new(root.engine()?);
        Some(Self {
            id,
            host: root.host(),
            root,
            exchange: RefCell::new(exchange),
            held: Cell::new(false),
        })
    }

    fn on_request_headers(self: &Rc<Self>, end: bool) -> Action {
        self.hold(self.with(|exchange| exchange.on_request_headers(&*self.host, &Proxy, end)))
    }

    /// Lets the request wait, if it is to.
    fn hold(self: &Rc<Self>, action: Action) -> Action {
        match action {
            Action::Wait { until, client } if waiting::hold(Line::Limit, until, client, self) => {
                Action::Stop
            }
            Action::Wait { .. } => self.with(|exchange| exchange.on_no_room(&*self.host, &Proxy)),
            Action::Read => {
                waiting::hold_reading(self);
                Action::Read
            }
            action => action,
        }
    }

    /// The moment that it waited for has come.
    fn on_resume(self: &Rc<Self>) -> Action {
        // Running already, it is not to be let go from here.
        let running = self.exchange.try_borrow_mut();
        let action = running.map_or(Action::Stop, |mut exchange| {
            exchange.on_resume(&*self.host, &Proxy)
        });
        self.hold(action)
    }

    /// It waited, and another client has its place now. No health check: all are one client's.
    fn on_displaced(self: &Rc<Self>) -> Action {
        self.with(|exchange| exchange.on_no_room(&*self.host, &Proxy))
    }

    /// Where the plugin's `allow_on_headers_stop_iteration` is set, pausing at the headers does not
    /// keep a body or trailers from pushing the request on. A client must not get past its wait by
    /// sending one.
    fn while_waiting(exchange: &Exchange) -> Action {
        if exchange.is_waiting() {
            Action::Stop
        } else {
            Action::Continue
        }
    }

    fn on_request_body(self: &Rc<Self>, end: bool) -> Action {
        let mut reads = false;
        let action = self.with(|exchange| {
            reads = exchange.is_reading();
            match exchange.on_request_body(&*self.host, &Proxy, end) {
                Action::Continue => Self::while_waiting(exchange),
                action => action,
            }
        });
        // A check whose message has come may wait at a limit now, and not for its message any more.
        let action = if reads { self.let_go(action) } else { action };
        match action {
            Action::Wait { .. } => self.hold(action),
            action => action,
        }
    }

    fn on_request_trailers(self: &Rc<Self>) -> Action {
        self.on_request_body(true)
    }

    fn on_response_headers(self: &Rc<Self>, end: bool) -> Action {
        match self.with(|exchange| exchange.on_response_headers(&*self.host, &Proxy, end)) {
            Action::Wait { until, client } if waiting::hold(Line::Answer, until, client, self) => {
                Action::Stop
            }
            Action::Wait { .. } => self.with(|exchange| exchange.on_no_room(&*self.host, &Proxy)),
            action => action,
        }
    }

    fn on_response_body(&self, size: usize, end: bool) -> Action {
        let action =
            self.with(|exchange| exchange.on_response_body(&*self.host, &Proxy, size, end));
        self.let_go(action)
    }

    fn on_response_trailers(&self) -> Action {
        self.let_go(self.with(|exchange| exchange.on_response_trailers(&*self.host, &Proxy)))
    }

    /// A message that was held goes on: it needs no tick any more.
    fn let_go(&self, action: Action) -> Action {
        if action != Action::Read && self.held.take() {
            waiting::forget(self.id);
        }
        action
    }

    fn on_log(&self) {
        self.with(|exchange| {
            exchange.on_log(&*self.host, &Proxy);
            Action::Continue
        });
    }

    fn on_report(&self) {
        self.with(|exchange| {
            exchange.on_report(&*self.host, &Proxy);
            Action::Continue
        });
    }

    /// Runs `with` on the exchange, unless it is running already: a host that calls back in from a
    /// call of haven's, about the same stream, reports nothing that the exchange does not know.
    fn with(&self, with: impl FnOnce(&mut Exchange) -> Action) -> Action {
        self.exchange
            .try_borrow_mut()
            .map_or(Action::Continue, |mut exchange| with(&mut exchange))
    }
}
