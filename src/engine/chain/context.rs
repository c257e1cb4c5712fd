//! What the stages of a callback work with, in one value.

use crate::engine::Engine;
use crate::engine::route::Route;
use std::rc::Rc;

/// What the stages of a callback work with: the configuration, the request's route, and the host.
#[derive(Debug)]
pub(super) struct Context<'a, H, S> {
    pub(super) engine: &'a Engine,
    pub(super) route: &'a Route,
    pub(super) host: &'a H,
    pub(super) stream: &'a S,
}

impl<'a, H, S> Context<'a, H, S> {
    pub(super) const fn new(
        engine: &'a Engine,
        route: &'a Route,
        host: &'a H,
        stream: &'a S,
    ) -> Self {
        Self {
            engine,
            route,
            host,
            stream,
        }
    }

    /// The same for another route.
    pub(super) const fn on(&self, route: &'a Route) -> Self {
        Self::new(self.engine, route, self.host, self.stream)
    }
}

/// Keeps the engine and the route of a request alive while a callback changes the exchange.
#[derive(Debug)]
pub(super) struct Handles {
    engine: Rc<Engine>,
    route: Rc<Route>,
}

impl Handles {
    pub(super) fn new(engine: &Rc<Engine>, route: &Rc<Route>) -> Self {
        Self {
            engine: Rc::clone(engine),
            route: Rc::clone(route),
        }
    }

    pub(super) fn context<'a, H, S>(&'a self, host: &'a H, stream: &'a S) -> Context<'a, H, S> {
        Context::new(&self.engine, &self.route, host, stream)
    }
}
