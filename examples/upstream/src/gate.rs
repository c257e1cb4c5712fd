//! A capacity that can change while requests wait for it: first come, first served.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Admits a number at once; the others wait in line.
#[derive(Debug, Default)]
pub struct Gate {
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    limit: Option<u32>,
    inside: u32,
    waiting: VecDeque<oneshot::Sender<Permit>>,
}

impl Line {
    fn has_room(&self) -> bool {
        self.limit.is_none_or(|limit| self.inside < limit)
    }
}

/// A place inside; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Option<Arc<Gate>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.lock().inside -= 1;
            gate.admit();
        }
    }
}

impl Gate {
    /// Waits for a place. Who stops waiting loses nothing but its place in the line.
    pub async fn enter(self: &Arc<Self>) -> Permit {
        let turn = {
            let mut line = self.lock();
            if line.waiting.is_empty() && line.has_room() {
                line.inside += 1;
                return self.permit();
            }
            let (sender, turn) = oneshot::channel();
            line.waiting.push_back(sender);
            turn
        };
        match turn.await {
            Ok(permit) => permit,
            // Senders only leave the line when a permit is sent.
            Err(_) => Permit { gate: None },
        }
    }

    /// Changes the capacity; `None` = no bound. Who is inside stays.
    pub fn resize(self: &Arc<Self>, limit: Option<u32>) {
        self.lock().limit = limit;
        self.admit();
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.lock()
            .waiting
            .iter()
            .filter(|sender| !sender.is_closed())
            .count()
    }

    fn admit(self: &Arc<Self>) {
        loop {
            let next = {
                let mut line = self.lock();
                if !line.has_room() {
                    return;
                }
                let Some(next) = line.waiting.pop_front() else {
                    return;
                };
                line.inside += 1;
                next
            };
            // Outside of the lock: a permit that is not taken comes back here. It must not be
            // dropped, or a long line of those who left would end in as deep a recursion.
            if let Err(mut unwanted) = next.send(self.permit()) {
                unwanted.gate = None;
                self.lock().inside -= 1;
            }
        }
    }

    fn permit(self: &Arc<Self>) -> Permit {
        Permit {
            gate: Some(self.clone()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
