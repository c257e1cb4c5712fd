//! haven as Envoy's endpoint discovery: what the requests of an engine have in common, and what
//! health documents have to know of it.

use crate::host::Host;
use crate::policy::discovery::serve;
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
