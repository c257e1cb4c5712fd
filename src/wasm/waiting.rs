//! The glue of [`crate::engine::waiting`]: one queue for each VM, whatever configuration ticks.

use super::Http;
use super::bindings::{self, Proxy};
use crate::base::time::{Moment, Nanos};
use crate::engine::chain::{Action, UNKNOWN_CLIENT};
use crate::engine::waiting::{Line, MESSAGE_WAIT, Turn, Waiting};
use crate::host::{Clock, Platform};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

thread_local! {
    static WAITING: RefCell<Waiting<Rc<Http>>> = const { RefCell::new(Waiting::new()) };
}

/// The period of ticks where it can't be changed: the least time between two checks of an endpoint.
const SHORTEST_CHECK: Nanos = Nanos::from_millis(100);

/// Runs `with` on the queue; `None` if it is in use, which it never is between two callbacks.
fn queue<R>(with: impl FnOnce(&mut Waiting<Rc<Http>>) -> R) -> Option<R> {
    WAITING.with(|waiting| {
        waiting
            .try_borrow_mut()
            .ok()
            .map(|mut waiting| with(&mut waiting))
    })
}

/// The ticks of a root context, which its streams share with it.
#[derive(Debug, Default)]
pub struct Ticks {
    period: Cell<Nanos>,
    next: Cell<Moment>,
    /// When a tick is wanted for other reasons than the queue's.
    wanted: Cell<Option<Moment>>,
}

impl Ticks {
    /// Sets the moment at which the next tick is due, whether or not requests wait.
    pub fn want(&self, at: Moment) {
        self.wanted.set(Some(at));
    }

    /// Sets the period to what the queue needs, or to what is needed sooner. Only in a callback of the
    /// root context, or of one of its streams.
    pub fn set(&self, now: Moment) {
        if !Proxy.kind().changes_ticks() {
            // Once, and often enough for all: each tick looks first what is due.
            if self.period.replace(SHORTEST_CHECK) == Nanos::ZERO {
                bindings::set_tick_period(SHORTEST_CHECK);
            }
            self.next.set(now.plus(SHORTEST_CHECK));
            return;
        }
        let until = self.wanted.get().map_or(Moment::MAX, |wanted| wanted);
        let period =
            queue(|waiting| waiting.tick_period(now, until)).unwrap_or(crate::engine::TICK);
        if self.period.replace(period) != period {
            bindings::set_tick_period(period);
        }
        self.next.set(now.plus(period));
    }
}

/// Lets the current stream, which is of this client, wait in a line. `false`: there is no room.
pub fn hold(line: Line, until: Moment, client: u32, stream: &Rc<Http>) -> bool {
    let added = queue(|waiting| {
        let added = waiting.add(line, until, stream.id, client, Rc::clone(stream));
        added.ok().map(|()| waiting.has_displaced())
    });
    let added = added.flatten();
    if let Some(displaces) = added {
        stream.held.set(true);
        if displaces || until < stream.root.ticks.next.get() {
            stream.root.ticks.set(Proxy.monotonic());
        }
    }
    added.is_some()
}

/// Has the current stream looked at again, should its message not come. Without room it is not.
pub fn hold_reading(stream: &Rc<Http>) {
    let until = Proxy.monotonic().plus(MESSAGE_WAIT);
    hold(Line::Check, until, UNKNOWN_CLIENT, stream);
}

/// Removes the stream from the queue: it has ended.
pub fn forget(stream: u32) {
    queue(|waiting| waiting.remove(stream));
}

/// Continues all requests whose moment has come, and refuses those that have lost their place. Call
/// it in a tick of the context `root`.
pub fn resume(root: u32, now: Moment) {
    let mut away = false;
    while let Some((id, stream, turn)) = queue(|waiting| waiting.due(now)).flatten() {
        // It has ended: its own callbacks have released what it held.
        if !bindings::set_effective_context(id) {
            continue;
        }
        away = true;
        let action = match turn {
            Turn::Goes => stream.on_resume(),
            Turn::Displaced => stream.on_displaced(),
        };
        if action == Action::Continue {
            bindings::continue_request();
        }
    }
    if away {
        bindings::set_effective_context(root);
    }
}
