use super::maglev::MaglevTable;
use super::roster::{EndpointCounts, Member, Roster, RosterEntry, Rules, UNIT};
use super::rotation::Rotation;
use super::*;
use crate::base::hash::xxh64;
use crate::base::percent::Percent;
use crate::base::rng::Rng;
use crate::base::time::Moment;
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;

use Availability::{Available, Out, Trial};

mod choice;
mod maglev;
mod roster;
mod rotation;

const NO_TRIAL: &dyn Fn(usize) -> bool = &|_| false;
const ANY_TRIAL: &dyn Fn(usize) -> bool = &|_| true;

fn vector(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap() as u32)
        .collect()
}

/// An endpoint of level 0 and zone 0.
fn member(availability: Availability, weight: u32) -> Member {
    Member {
        availability,
        weight: weight * UNIT,
        ..Member::default()
    }
}

fn rules() -> Rules {
    Rules {
        panic_threshold: Percent(5_000),
        max_ejection: Percent(5_000),
        zone: None,
        zones: vec![1],
    }
}

fn roster_of(rules: &Rules, members: &[Member]) -> Roster {
    let mut roster = Roster::default();
    roster.build(rules, members.iter().copied());
    roster
}

fn roster(members: &[Member]) -> Roster {
    roster_of(&rules(), members)
}

/// The entries of all pools in use, with their shares.
fn pools(roster: &Roster) -> Vec<(u32, Vec<usize>)> {
    let mut found: Vec<(u32, Vec<usize>)> = Vec::new();
    for draw in 0..=u16::MAX {
        let pool = roster.pool(draw).unwrap();
        let entries: Vec<usize> = roster.entries(pool).iter().map(|entry| entry.at).collect();
        match found.iter_mut().find(|(_, known)| *known == entries) {
            Some((share, _)) => *share += 1,
            None => found.push((1, entries)),
        }
    }
    found
        .into_iter()
        .map(|(share, entries)| ((share * 100 + (1 << 15)) >> 16, entries))
        .collect()
}

fn entries(members: &[Member]) -> Vec<RosterEntry> {
    let roster = roster(members);
    let pool = roster.pool(0).unwrap().clone();
    roster.entries(&pool).to_vec()
}

fn weights(weights: &[u32]) -> Vec<RosterEntry> {
    entries(
        &weights
            .iter()
            .map(|weight| member(Available, *weight))
            .collect::<Vec<_>>(),
    )
}

fn order(list: EndpointList) -> Vec<usize> {
    list.iter().collect()
}
