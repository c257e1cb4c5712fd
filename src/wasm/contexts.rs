//! The contexts of a VM, by the numbers that the host gives them.
//!
//! A number that is not known is no error: nothing is done. No map is borrowed while a context
//! runs, so that the host may call in again from any call of ours.

use super::{Http, Root};
use crate::base::id_map::IdMap;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

thread_local! {
    static ROOTS: RefCell<IdMap<Rc<Root>>> = const { RefCell::new(IdMap::new()) };
    /// The stream that was logged last, until something else happens.
    static LOGGED: Cell<Option<u32>> = const { Cell::new(None) };
    static STREAMS: RefCell<IdMap<Rc<Http>>> = const { RefCell::new(IdMap::new()) };
}

/// Makes the context `id`: of a configuration if it has no parent, else of a stream.
pub fn create(id: u32, parent: u32) {
    if parent == 0 {
        ROOTS.with(|roots| insert(roots, id, Root::new(id)));
    } else if let Some(stream) = root(parent).and_then(|root| Http::new(id, root)) {
        STREAMS.with(|streams| insert(streams, id, stream));
    }
}

/// The context `id` is logged: a stream that has ended, or a root, whose proxy reports the stream
/// that was logged last. Between the two nothing comes, and a report that follows no stream of ours
/// is of a stream that haven has not seen. An Envoy before 1.39 makes the access log a root of its
/// own of the same configuration; so any of the same state will do.
pub fn log(id: u32) {
    if let Some(stream) = stream(id) {
        LOGGED.set(Some(id));
        stream.on_log();
    } else if let Some(stream) = LOGGED.take().and_then(self::stream)
        && root(id).is_some_and(|root| root.host().is_same_state(&stream.root.host()))
    {
        stream.on_report();
    }
}

/// Forgets the context `id`. What it holds goes now, or when its callback returns.
pub fn delete(id: u32) {
    LOGGED.set(None);
    if let Some(stream) = STREAMS.with(|streams| remove(streams, id)) {
        if stream.held.get() {
            super::waiting::forget(id);
        }
    } else {
        ROOTS.with(|roots| remove(roots, id));
    }
}

pub fn root(id: u32) -> Option<Rc<Root>> {
    ROOTS.with(|roots| get(roots, id))
}

pub fn stream(id: u32) -> Option<Rc<Http>> {
    STREAMS.with(|streams| get(streams, id))
}

fn get<T>(map: &RefCell<IdMap<Rc<T>>>, id: u32) -> Option<Rc<T>> {
    map.try_borrow().ok()?.get(id).cloned()
}

fn insert<T>(map: &RefCell<IdMap<Rc<T>>>, id: u32, context: T) {
    let former = map
        .try_borrow_mut()
        .ok()
        .and_then(|mut map| map.insert(id, Rc::new(context)));
    // Only here, when the map is free again: dropping a context makes host calls.
    drop(former);
}

fn remove<T>(map: &RefCell<IdMap<Rc<T>>>, id: u32) -> Option<Rc<T>> {
    map.try_borrow_mut().ok()?.remove(id)
}
