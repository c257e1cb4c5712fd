//! What references name. The checker has made sure that it is there.

use std::marker::PhantomData;
use std::rc::Rc;

use crate::schema::{DeclaredNames, NamedSection};

/// The entries of section `S`, for the references to them.
pub(crate) struct Entries<'a, S, T> {
    names: &'a DeclaredNames,
    /// In the document's order.
    entries: &'a [T],
    section: PhantomData<S>,
}

impl<'a, S: NamedSection, T> Entries<'a, S, T> {
    pub(crate) const fn new(names: &'a DeclaredNames, entries: &'a [T]) -> Self {
        Self {
            names,
            entries,
            section: PhantomData,
        }
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'a, T> {
        self.entries.iter()
    }

    /// The entry of this name.
    pub(crate) fn named(&self, name: &str) -> Option<&'a T> {
        self.entries.get(self.names.find(S::SECTION, name)?)
    }
}

impl<S: NamedSection, T> Entries<'_, S, Rc<T>> {
    /// A handle of the entry that a field names, if it names one.
    pub(crate) fn get(&self, name: Option<&String>) -> Option<Rc<T>> {
        self.named(name?).map(Rc::clone)
    }
}
