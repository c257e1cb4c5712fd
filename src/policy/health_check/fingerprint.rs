//! Tells configurations apart that would check differently.

use super::config::{Ask, HealthCheck};
use crate::base::hash::of_names;
use crate::base::text::number;

/// A hash of what an upstream's configuration says of its checks, `endpoints` by their addresses:
/// contexts with the same one share a lease.
#[must_use]
pub fn fingerprint<'a>(
    cluster: &str,
    override_header: &str,
    check: &HealthCheck,
    endpoints: impl Iterator<Item = &'a str>,
) -> u64 {
    let mut parts: Vec<String> = vec![cluster.to_owned(), override_header.to_owned()];
    match &check.ask {
        Ask::Http {
            path,
            host,
            expected,
        } => {
            parts.extend([path.clone(), host.clone().unwrap_or_default()]);
            parts.extend(
                expected
                    .iter()
                    .flat_map(|(low, high)| [number((*low).into()), number((*high).into())]),
            );
        }
        Ask::Grpc { service } => parts.extend(["grpc".to_owned(), service.clone()]),
    }
    let numbers: [u64; 8] = [
        check.interval.0,
        check.interval_changing.0,
        check.initial_delay.0,
        check.timeout.0,
        check.jitter.0.into(),
        check.healthy_threshold.into(),
        check.unhealthy_threshold.into(),
        check.report.into(),
    ];
    parts.extend(numbers.iter().map(|it| number(*it)));
    for it in &check.components {
        let rate = it.max_error_rate.map_or(u64::MAX, |rate| rate.0.into());
        parts.extend([
            it.name.clone(),
            number(it.critical.into()),
            number(it.period.0),
            number(rate),
        ]);
    }
    parts.extend(endpoints.map(str::to_owned));
    of_names(&parts.iter().map(String::as_str).collect::<Vec<_>>())
}
