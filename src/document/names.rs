//! What references refer to, by the place of its name. The checker has made sure that it is there.

use crate::policy::circuit_breaker::config::BreakerScope;
use crate::schema::{DeclaredNames, NamedSection};

/// The names of a document, and what is asked of what they name.
pub(crate) struct References<'a> {
    pub(crate) names: &'a DeclaredNames,
    /// By upstream: the components of its health check.
    pub(crate) components: Vec<Vec<String>>,
    /// By breaker.
    pub(crate) scopes: Vec<BreakerScope>,
    /// By upstream.
    pub(crate) override_headers: Vec<String>,
    /// By fallback: whether it has a cluster step.
    pub(crate) sends_on: Vec<bool>,
}

impl References<'_> {
    pub(crate) fn find<S: NamedSection>(&self, name: Option<&String>) -> Option<usize> {
        self.names.find(S::SECTION, name?)
    }

    pub(crate) fn components(&self, upstream: usize) -> &[String] {
        self.components.get(upstream).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn breaker_scope(&self, breaker: usize) -> BreakerScope {
        self.scopes.get(breaker).copied().unwrap_or_default()
    }

    pub(crate) fn sends_on(&self, fallback: usize) -> bool {
        self.sends_on.get(fallback) == Some(&true)
    }
}
