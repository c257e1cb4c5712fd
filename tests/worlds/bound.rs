//! What the best proxy could make of a world: as much as the endpoints can do in time.
//!
//! A fluid model in steps of 50 ms. An endpoint that can be reached does its slots' worth of work;
//! of that counts what ends within the deadline, and what is lost with endpoints that fail answers
//! at once costs no slot. Work waits for at most its deadline. Where endpoints fail a share of
//! their answers, a request has as many tries as the configuration allows.

use crate::draw::{MS, Time};
use crate::fault::{Kind, Reach, State, state};
use crate::record::Record;
use crate::world::World;
use std::collections::VecDeque;
use std::ops::Range;

const STEP: Time = 50 * MS;

/// The most of these requests that can be useful, in percent of those that come in the span.
pub fn bound(world: &World, records: &[Record], span: &Range<Time>) -> f64 {
    let spread = world.service.spread();
    let deadline = world.routes[0].timeout as f64;
    let retries = world.config["routes"][0]["retry"]["attempts"].as_f64();
    // What has failed may have been begun: a POST has one try.
    let tries = [1.0 + retries.unwrap_or(0.0), 1.0];
    let steps: Vec<Time> = (span.start..span.end + deadline as Time)
        .step_by(STEP as usize)
        .collect();
    // With enough tries it is enough if one endpoint gives a good answer in time, now or later.
    let best = |now: &Time| {
        let states = states(world, *now);
        tries.map(|tries| {
            let shares = states.iter().map(|it| share(it, &spread, deadline, tries));
            shares.fold(0.0, f64::max)
        })
    };
    let best: Vec<[f64; 2]> = steps.iter().map(best).collect();
    let places = world.queue.map_or(f64::INFINITY, |places| {
        (world.endpoints * (world.slots + places)) as f64
    });
    let patience = (deadline as usize).div_ceil(STEP as usize);
    let mut queue: VecDeque<(Time, f64)> = VecDeque::new();
    let (mut done, mut next) = (0.0, 0);
    let offered = records.iter().filter(|it| span.contains(&it.at)).count();
    for (step, now) in steps.iter().enumerate() {
        let soon = &best[step..(step + patience).min(best.len())];
        let soon = [0, 1].map(|post| soon.iter().map(|it| it[post]).fold(0.0, f64::max));
        let mut fresh = 0.0;
        for record in records[next..].iter().take_while(|it| it.at < now + STEP) {
            next += 1;
            if span.contains(&record.at) && !is_lost(world, record) {
                fresh += soon[usize::from(record.post)];
            }
        }
        let each = |it: &State| room(world, it, &spread, deadline) * STEP as f64;
        let mut room: f64 = states(world, *now).iter().map(each).sum();
        // Endpoints hold no more than their slots and places; nothing waits elsewhere.
        let waiting: f64 = queue.iter().map(|(_, waiting)| waiting).sum();
        let fits = (places + room - waiting).max(0.0);
        queue.push_back((*now, fresh.min(fits)));
        while let Some((at, waiting)) = queue.front_mut() {
            if *at + (deadline as Time) < *now {
                queue.pop_front();
                continue;
            }
            let taken = room.min(*waiting);
            room -= taken;
            *waiting -= taken;
            done += taken;
            if *waiting > 0.0 {
                break;
            }
            queue.pop_front();
        }
    }
    if offered == 0 {
        return 100.0;
    }
    done * 100.0 / offered as f64
}

fn states(world: &World, now: Time) -> Vec<State> {
    (0..world.endpoints)
        .map(|at| state(&world.faults, at, now))
        .collect()
}

/// Whether nothing can be done for a request: its route is broken.
fn is_lost(world: &World, record: &Record) -> bool {
    let mut faults = world
        .faults
        .iter()
        .filter(|it| (it.from..it.until).contains(&record.at));
    faults.any(|it| it.kind == Kind::BadRoute(record.route))
}

/// The share of requests that this endpoint answers well and in time.
fn share(state: &State, spread: &[f64], deadline: f64, tries: f64) -> f64 {
    if state.reach != Reach::Up || state.speed == 0.0 {
        return 0.0;
    }
    let in_time = spread
        .iter()
        .filter(|time| **time / state.speed <= deadline)
        .count();
    (1.0 - state.failing.powf(tries)) * in_time as f64 / spread.len() as f64
}

/// Useful answers a nanosecond that this endpoint can give.
fn room(world: &World, state: &State, spread: &[f64], deadline: f64) -> f64 {
    if state.reach != Reach::Up || state.speed == 0.0 || state.failing >= 1.0 {
        return 0.0;
    }
    let (mut work, mut good) = (0.0, 0.0);
    for time in spread {
        let takes = time / state.speed;
        let late = takes > deadline;
        work += if late && world.stops { deadline } else { takes };
        good += if late { 0.0 } else { 1.0 };
    }
    world.slots as f64 * good / work
}

/// Whether more comes in this span than the endpoints can do.
pub fn is_full(world: &World, records: &[Record], span: &Range<Time>) -> bool {
    let spread = world.service.spread();
    let deadline = world.routes[0].timeout as f64;
    let steps = (span.start..span.end).step_by(STEP as usize);
    let all: f64 = steps
        .map(|now| {
            let all = states(world, now);
            all.iter()
                .map(|it| room(world, it, &spread, deadline))
                .sum::<f64>()
                * STEP as f64
        })
        .sum();
    let offered = records.iter().filter(|it| span.contains(&it.at)).count();
    offered as f64 > all
}
