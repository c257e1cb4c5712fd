//! haven as Envoy's endpoint discovery: what the requests of an engine have in common, and what
//! health documents have to know of it.

use crate::document::{Percent, Registry, Upstream};
use crate::host::{Host, SharedData};
use crate::policy::discovery::serve::{self, HeldRecord};
use std::cell::Cell;

/// Of an engine that serves endpoints.
#[derive(Debug, Default)]
pub(super) struct Serving {
    /// A request ended before a piece of its body came. If none ever does, each is to be answered
    /// by its headers alone, and in full: better often too much than nothing.
    pub(super) unread: Cell<bool>,
}

impl Serving {
    /// Says to all of this state that endpoints are served.
    pub(super) fn new<H: Host>(host: &H) -> Self {
        // Contended: a proxy may then be taken for ready a moment too soon.
        let _ = serve::announce(host);
        Self::default()
    }
}

/// Whether Envoy is to have an upstream's endpoints from haven, and has not shown yet that it has
/// any: until then it answers each request with 503.
pub(super) fn awaits_envoy<H: SharedData>(upstream: &Upstream, host: &H) -> bool {
    let source = upstream.source.as_ref();
    source.is_some_and(|it| !matches!(it.registry, Registry::Envoy { .. }))
        && upstream.min_healthy != Some(Percent(0))
        && serve::is_announced(host)
        && HeldRecord::new(&upstream.name).read(host).is_none()
}
