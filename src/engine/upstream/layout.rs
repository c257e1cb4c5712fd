//! How the levels and zones of an upstream lie.

use crate::base::sort;
use crate::document;
use crate::policy::upstream::roster::Rules;

/// An endpoint in a list: what decides where it lies.
#[derive(Clone, Copy)]
pub(super) struct Listed<'e> {
    pub(super) weight: u32,
    pub(super) priority: u32,
    pub(super) zone: Option<&'e String>,
}

/// How levels and zones lie: the rules, and level and zone of each endpoint.
pub(super) fn layout(
    config: &document::Upstream,
    endpoints: &[Listed<'_>],
) -> (Rules, Vec<(u16, u16)>) {
    let mut priorities: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.priority).collect();
    sort::by_key(&mut priorities, |priority| *priority);
    priorities.dedup();
    let mut zones: Vec<Option<&String>> = endpoints.iter().map(|endpoint| endpoint.zone).collect();
    zones.push(config.zone.as_ref());
    sort::by_key(&mut zones, |zone| *zone);
    zones.dedup();
    let place = |found: Result<usize, usize>| {
        found
            .ok()
            .and_then(|at| u16::try_from(at).ok())
            .unwrap_or(u16::MAX)
    };
    let zone_of = |zone: Option<&String>| place(zones.binary_search(&zone));
    let places: Vec<(u16, u16)> = endpoints
        .iter()
        .map(|it| {
            (
                place(priorities.binary_search(&it.priority)),
                zone_of(it.zone),
            )
        })
        .collect();
    let mut present: Vec<_> = endpoints
        .iter()
        .zip(&places)
        .filter(|(it, _)| it.weight > 0)
        .map(|(_, place)| *place)
        .collect();
    sort::by_key(&mut present, |present| *present);
    present.dedup();
    let of_level = |level: usize| {
        present
            .iter()
            .filter(|(of, _)| usize::from(*of) == level)
            .count()
    };
    let rules = Rules {
        panic_threshold: config.panic_threshold,
        max_ejection: config.max_ejection,
        zone: config.zone.as_ref().map(|zone| zone_of(Some(zone))),
        zones: (0..priorities.len())
            .map(|level| u32::try_from(of_level(level)).unwrap_or(u32::MAX))
            .collect(),
    };
    (rules, places)
}
