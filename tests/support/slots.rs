//! What an endpoint does with work: slots, and a queue before them. Who drives it says what time it
//! is, so that simulated endpoints and real ones are the same.

use std::collections::VecDeque;

/// A moment or a span of time, in nanoseconds.
pub type Time = u64;

/// Work that an endpoint has begun or will begin.
#[derive(Clone, Copy, Debug)]
pub struct Job<O> {
    /// Whose it is.
    pub owner: O,
    /// Nanoseconds of work that are left, at full speed.
    pub left: f64,
    /// Since when `left` holds.
    since: Time,
    /// When it will be done; an event with another time is out of date.
    due: Option<Time>,
}

impl<O> Job<O> {
    /// Work of so many nanoseconds.
    pub const fn new(owner: O, work: f64) -> Self {
        Self {
            owner,
            left: work,
            since: 0,
            due: None,
        }
    }
}

/// Work that will be done at this moment, if nothing changes.
pub type Due<O> = (O, Time);

/// An endpoint's slots and queue.
#[derive(Debug)]
pub struct Slots<O> {
    slots: usize,
    places: Option<usize>,
    speed: f64,
    busy: Vec<Job<O>>,
    queue: VecDeque<Job<O>>,
}

impl<O: Copy + PartialEq> Slots<O> {
    /// An idle one; `places`: those of its queue.
    pub const fn new(slots: usize, places: Option<usize>) -> Self {
        Self {
            slots,
            places,
            speed: 1.0,
            busy: Vec::new(),
            queue: VecDeque::new(),
        }
    }

    /// Takes work, and the moments at which work will be done that has begun by it; false: its
    /// queue is full.
    pub fn offer(&mut self, now: Time, job: Job<O>, begun: &mut Vec<Due<O>>) -> bool {
        let waiting = self.queue.len();
        let full = self.busy.len() >= self.slots && self.places.is_some_and(|most| waiting >= most);
        if !full {
            self.queue.push_back(job);
            self.begin(now, begun);
        }
        !full
    }

    /// Work is done; false: the event is out of date.
    pub fn finish(&mut self, now: Time, owner: O, begun: &mut Vec<Due<O>>) -> bool {
        let is = |job: &Job<O>| job.owner == owner && job.due == Some(now);
        let Some(at) = self.busy.iter().position(is) else {
            return false;
        };
        self.busy.swap_remove(at);
        self.begin(now, begun);
        true
    }

    /// Stops work whose caller has gone.
    pub fn stop(&mut self, now: Time, owner: O, begun: &mut Vec<Due<O>>) {
        self.queue.retain(|job| job.owner != owner);
        self.busy.retain(|job| job.owner != owner);
        self.begin(now, begun);
    }

    /// Works at this speed from now on; 0 = stands still.
    pub fn set_speed(&mut self, now: Time, speed: f64, begun: &mut Vec<Due<O>>) {
        if speed == self.speed {
            return;
        }
        for job in &mut self.busy {
            job.left = (job.left - (now - job.since) as f64 * self.speed).max(0.0);
            job.since = now;
            job.due = due(job, speed);
            begun.extend(job.due.map(|at| (job.owner, at)));
        }
        self.speed = speed;
    }

    /// Dies: whose work is lost.
    pub fn kill(&mut self) -> Vec<O> {
        let lost = self.busy.drain(..).chain(self.queue.drain(..));
        lost.map(|job| job.owner).collect()
    }

    /// How many wait and are worked on.
    pub fn held(&self) -> usize {
        self.busy.len() + self.queue.len()
    }

    fn begin(&mut self, now: Time, begun: &mut Vec<Due<O>>) {
        while self.busy.len() < self.slots {
            let Some(mut job) = self.queue.pop_front() else {
                return;
            };
            job.since = now;
            job.due = due(&job, self.speed);
            begun.extend(job.due.map(|at| (job.owner, at)));
            self.busy.push(job);
        }
    }
}

fn due<O>(job: &Job<O>, speed: f64) -> Option<Time> {
    (speed > 0.0).then(|| job.since + (job.left / speed).max(1.0) as Time)
}
