//! Headers with the state of a client's quota: `RateLimit-Policy` and `RateLimit`
//! (draft-ietf-httpapi-ratelimit-headers-10), and the older `X-RateLimit-*`.
//!
//! The partition key `pk` identifies the quota, if the limit has a key: a byte sequence (RFC 9651,
//! 3.3.5) of 8 bytes. It is a hash under a secret of the proxy: equal for the same client, and not
//! to be traced back to an address or a token. It changes when the proxy restarts.

use super::KeyQuota;
use crate::base::base64;
use crate::base::sort;
use crate::base::text::{number, push_number};
use crate::policy::rate_limit::config::QuotaHeaders;
use std::cmp::Reverse;

/// How much of the older headers' quota is left.
pub const REMAINING: &str = "x-ratelimit-remaining";

/// The headers for these limits. `RateLimit` lists the tightest first: the one with the least share
/// of its burst left.
#[must_use]
pub fn all<'a>(
    limits: impl Iterator<Item = (&'a str, QuotaHeaders, KeyQuota)>,
) -> Vec<(&'static str, Vec<u8>)> {
    let mut limits: Vec<_> = limits
        .filter(|(_, headers, _)| *headers != QuotaHeaders::None)
        .enumerate()
        .collect();
    if limits.is_empty() {
        return Vec::new();
    }
    if limits.len() > 1 {
        sort::by_key(&mut limits, |(place, (_, _, q))| {
            let left = u128::from(q.remaining)
                .saturating_mul(1 << 32)
                .checked_div(q.burst.into())
                .unwrap_or(0);
            (left, Reverse(q.reset), *place)
        });
    }
    let limits = || limits.iter().map(|(_, limit)| limit);
    let mut headers = Vec::with_capacity(5);
    let ietf = |h: QuotaHeaders| matches!(h, QuotaHeaders::Ietf | QuotaHeaders::Both);
    if limits().any(|(_, h, _)| ietf(*h)) {
        // Room for all items: growing step by step would cost more than all the rest.
        let room = limits()
            .map(|(name, ..)| name.len().saturating_add(ITEM))
            .sum();
        let (mut policy, mut state) = (String::with_capacity(room), String::with_capacity(room));
        for (name, _, quota) in limits().filter(|(_, h, _)| ietf(*h)) {
            let window = quota.period.as_secs_ceil().max(1);
            // The 8 bytes of the key's hash, the highest first.
            let key = quota
                .partition
                .map(|key| base64::encode(&key.to_be_bytes()));
            let key = key.as_deref();
            item(
                &mut policy,
                name,
                [(";q=", quota.burst), (";w=", window)],
                key,
            );
            item(
                &mut state,
                name,
                [
                    (";r=", quota.remaining),
                    (";t=", quota.reset.as_secs_ceil()),
                ],
                key,
            );
        }
        headers.push(("ratelimit-policy", policy.into_bytes()));
        headers.push(("ratelimit", state.into_bytes()));
    }
    if let Some((_, _, quota)) =
        limits().find(|(_, h, _)| matches!(h, QuotaHeaders::X | QuotaHeaders::Both))
    {
        let number = |n: u64| number(n).into_bytes();
        headers.push(("x-ratelimit-limit", number(quota.burst)));
        headers.push((REMAINING, number(quota.remaining)));
        headers.push(("x-ratelimit-reset", number(quota.reset.as_secs_ceil())));
    }
    headers
}

/// What an item needs beside its name: two numbers of 20 digits, the partition key, and what stands
/// around them.
const ITEM: usize = 72;

/// Adds an item of a structured list (RFC 9651, 3.1): a string with integer parameters, and the
/// partition key. Names need no escaping.
fn item(list: &mut String, name: &str, parameters: [(&str, u64); 2], partition: Option<&str>) {
    list.push_str(if list.is_empty() { "\"" } else { ", \"" });
    list.push_str(name);
    list.push('"');
    for (key, value) in parameters {
        list.push_str(key);
        push_number(list, value);
    }
    if let Some(partition) = partition {
        list.push_str(";pk=:");
        list.push_str(partition);
        list.push(':');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Nanos;

    fn quota(remaining: u64, reset_ms: u64) -> KeyQuota {
        KeyQuota {
            burst: 5,
            period: Nanos::from_secs(5),
            remaining,
            reset: Nanos::from_millis(reset_ms),
            partition: None,
        }
    }

    fn text(limits: &[(&'static str, QuotaHeaders, KeyQuota)]) -> Vec<(&'static str, String)> {
        all(limits.iter().copied())
            .into_iter()
            .map(|(n, v)| (n, String::from_utf8(v).unwrap()))
            .collect()
    }

    #[test]
    fn both_families() {
        let expected = [
            ("ratelimit-policy", "\"p\";q=5;w=5"),
            ("ratelimit", "\"p\";r=2;t=4"),
            ("x-ratelimit-limit", "5"),
            ("x-ratelimit-remaining", "2"),
            ("x-ratelimit-reset", "4"),
        ];
        let given = text(&[("p", QuotaHeaders::Both, quota(2, 3_900))]);
        assert_eq!(given, expected.map(|(n, v)| (n, v.to_owned())));
    }

    #[test]
    fn the_partition_key_is_a_byte_sequence() {
        // The form of the draft's example, whose own padding is wrong: `:cHsdsRa894==:`.
        let partition = Some(u64::from_be_bytes(*b"\x70\x7b\x1d\xb1\x16\xbc\xf7\x80"));
        let given = text(&[(
            "peruser",
            QuotaHeaders::Ietf,
            KeyQuota {
                partition,
                ..quota(2, 3_900)
            },
        )]);
        assert_eq!(given[0].1, "\"peruser\";q=5;w=5;pk=:cHsdsRa894A=:");
        assert_eq!(given[1].1, "\"peruser\";r=2;t=4;pk=:cHsdsRa894A=:");
    }

    #[test]
    fn the_tightest_comes_first() {
        let given = text(&[
            ("wide", QuotaHeaders::Ietf, quota(4, 1_000)),
            ("tight", QuotaHeaders::Ietf, quota(1, 4_000)),
            ("quiet", QuotaHeaders::None, quota(0, 1)),
        ]);
        assert_eq!(given[1].1, "\"tight\";r=1;t=4, \"wide\";r=4;t=1");
        assert_eq!(given.len(), 2);
        assert!(text(&[("quiet", QuotaHeaders::None, quota(0, 1))]).is_empty());
    }
}
