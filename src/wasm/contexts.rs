//! The contexts of a VM, by the numbers that the host gives them.
//!
//! A number that is not known is no error: nothing is done. No map is borrowed while a context runs, so that the host may call in again
//! from any call of ours.

use super::{Http, Root};
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

type Map<T> = RefCell<HashMap<u32, Rc<T>, BuildHasherDefault<Spread>>>;

thread_local! {
    static ROOTS: Map<Root> = RefCell::default();
    static STREAMS: Map<Http> = RefCell::default();
}

/// Makes the context `id`: of a configuration if it has no parent, else of a stream.
pub fn create(id: u32, parent: u32) {
    if parent == 0 {
        ROOTS.with(|roots| insert(roots, id, Root::new(id)));
    } else if let Some(stream) = root(parent).and_then(|root| Http::new(id, root)) {
        STREAMS.with(|streams| insert(streams, id, stream));
    }
}

/// Forgets the context `id`. What it holds goes now, or when its callback returns.
pub fn delete(id: u32) {
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

fn get<T>(map: &Map<T>, id: u32) -> Option<Rc<T>> {
    map.try_borrow().ok()?.get(&id).cloned()
}

fn insert<T>(map: &Map<T>, id: u32, context: T) {
    let former = map.try_borrow_mut().ok().and_then(|mut map| map.insert(id, Rc::new(context)));
    // Only here, when the map is free again: dropping a context makes host calls.
    drop(former);
}

fn remove<T>(map: &Map<T>, id: u32) -> Option<Rc<T>> {
    map.try_borrow_mut().ok()?.remove(&id)
}

/// Spreads numbers that the host counts up: no client chooses them, so nothing stronger is needed.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write_u32(&mut self, number: u32) {
        self.0 = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
