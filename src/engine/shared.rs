//! What the requests of a VM share in its own memory.

use std::cell::RefCell;

/// What requests of a VM share. It is never held over a host call, so that it is always free; if it
/// were not, nothing would happen.
#[derive(Debug, Default)]
pub(super) struct Shared<T>(RefCell<T>);

impl<T> Shared<T> {
    pub(super) const fn new(it: T) -> Self {
        Self(RefCell::new(it))
    }

    pub(super) fn with<R: Default>(&self, run: impl FnOnce(&mut T) -> R) -> R {
        self.0
            .try_borrow_mut()
            .map(|mut it| run(&mut it))
            .unwrap_or_default()
    }
}
