//! A canary: which of a route's requests go to another upstream.
//!
//! A request may ask for it by a header or a cookie; otherwise a hash of its client decides. The
//! hash puts each client on one of 10,000 places in a line, and the canary takes as many places as
//! its percentage says, from the left: a higher percentage adds clients and removes none. The hash
//! has no secret, so that all proxies, and one proxy after a restart, place a client alike. A
//! client that chooses its address to get to one side could as well send the header: a canary is no
//! matter of trust.
//!
//! | checked in this order | the request goes to |
//! |---|---|
//! | headers: `stable`, then the canary's | the upstream that they name |
//! | cookies: `stable`, then the canary's | the upstream that they name |
//! | a part of the `sticky` key is absent | the route's own: such clients cannot keep a side |
//! | the key's place, or with no key a random one | the canary if it lies within its percentage |

pub mod config;

use crate::base::hash::{KeyHasher, Seed, of_names, place};
use crate::base::percent::Percent;
use crate::request::key::MissingKey;
use crate::request::{Request, key};

/// Places on the line: those of a [`Percent`].
const PLACES: u32 = 10_000;

/// Whether the request goes to the canary. `random` returns 64 random bits; they decide where
/// nothing else does.
#[must_use]
pub fn selects(
    canary: &config::Canary,
    upstream: &str,
    request: &Request<'_>,
    random: impl FnOnce() -> u64,
) -> bool {
    let (forced, stable) = (&canary.forced, &canary.stable);
    let header = |name: &str, wanted: Option<&str>| match wanted {
        None => request.values(name).next().is_some(),
        Some(wanted) => request.values(name).any(|value| value == wanted.as_bytes()),
    };
    let cookie = |name: &str, wanted: Option<&str>| {
        request
            .cookie(name)
            .is_some_and(|value| wanted.is_none_or(|wanted| value == wanted.as_bytes()))
    };
    if all(&stable.headers, header) {
        return false;
    }
    if all(&forced.headers, header) {
        return true;
    }
    if all(&stable.cookies, cookie) {
        return false;
    }
    if all(&forced.cookies, cookie) {
        return true;
    }
    // 0 % and 100 % need no key.
    match canary.percent {
        Percent(0) => return false,
        Percent(PLACES..) if canary.sticky.is_empty() => return true,
        _ => {}
    }
    let hash = if canary.sticky.is_empty() {
        random()
    } else {
        // By the canary's name: another canary gets other clients, and one on several routes gets
        // the same ones.
        let mut hasher = KeyHasher::new(Seed(of_names(&["canary", upstream]), 0));
        if !key::hash(&canary.sticky, MissingKey::Skip, request, &mut hasher) {
            return false;
        }
        hasher.finish()
    };
    place(hash, PLACES) < canary.percent.0
}

/// Whether the canary needs the request's client address.
#[must_use]
pub fn needs_client(canary: &config::Canary) -> bool {
    canary.percent.0 > 0
        && canary
            .sticky
            .contains(&crate::request::key::KeyPart::ClientIp)
}

fn all(wanted: &[(String, Option<String>)], has: impl Fn(&str, Option<&str>) -> bool) -> bool {
    !wanted.is_empty()
        && wanted
            .iter()
            .all(|(name, value)| has(name, value.as_deref()))
}

#[cfg(test)]
mod tests {
    use super::config::Marks;
    use super::*;
    use crate::base::headers::HeaderMap;
    use crate::base::ip::Ip;
    use crate::base::rng::Rng;
    use crate::request::key::KeyPart;
    use proptest::prelude::*;

    fn canary(percent: u32, sticky: &[KeyPart]) -> config::Canary {
        config::Canary {
            mode: None,
            percent: Percent(percent),
            sticky: sticky.to_vec(),
            forced: Marks::default(),
            stable: Marks::default(),
            color: None,
        }
    }

    fn of_client(canary: &config::Canary, upstream: &str, client: u128) -> bool {
        let headers = HeaderMap::from_pairs(&[(":method", "GET"), (":path", "/")]);
        let request = Request {
            client: Some(Ip(client)),
            ..Request::new(&headers)
        };
        selects(canary, upstream, &request, || 0)
    }

    fn with(canary: &config::Canary, pairs: &[(&str, &str)]) -> bool {
        selects(
            canary,
            "v2",
            &Request::new(&HeaderMap::from_pairs(pairs)),
            || 0,
        )
    }

    #[test]
    fn its_share_is_what_it_says() {
        const ALL: u32 = 40_000;
        let rng = Rng::new(1);
        let headers = HeaderMap::from_pairs(&[(":path", "/")]);
        for percent in [0, 1, 500, 2_500, 9_999, 10_000] {
            let (sticky, drawn) = (canary(percent, &[KeyPart::ClientIp]), canary(percent, &[]));
            // Six standard deviations of a draw.
            let p = f64::from(percent) / 10_000.0;
            let bound = 6.0 * (f64::from(ALL) * p * (1.0 - p)).sqrt();
            let clients = (0..ALL)
                .filter(|n| of_client(&sticky, "v2", (*n).into()))
                .count();
            let requests = (0..ALL)
                .filter(|_| selects(&drawn, "v2", &Request::new(&headers), || rng.bits()))
                .count();
            for got in [clients, requests] {
                assert!(
                    (got as f64 - f64::from(ALL) * p).abs() <= bound,
                    "{percent}: {got} of {ALL}"
                );
            }
        }
    }

    #[test]
    fn another_canary_has_other_clients() {
        let canary = canary(1_000, &[KeyPart::ClientIp]);
        let both = (0..10_000)
            .filter(|n| of_client(&canary, "a", *n) && of_client(&canary, "b", *n))
            .count();
        assert!(
            (50..200).contains(&both),
            "{both}: about a hundredth, not a tenth"
        );
    }

    #[test]
    fn places_are_the_same_in_every_build() {
        let canary = canary(5_000, &[KeyPart::ClientIp]);
        let sides: String = (0..32)
            .map(|n| {
                if of_client(&canary, "users-v2", n) {
                    '2'
                } else {
                    '1'
                }
            })
            .collect();
        assert_eq!(sides, "22111122221211211121122221112111");
    }

    #[test]
    fn headers_come_before_cookies_and_these_before_the_share() {
        let mark = |value: &str| vec![("x-canary".to_owned(), Some(value.to_owned()))];
        let mut it = canary(0, &[]);
        it.forced = Marks {
            headers: mark("true"),
            cookies: mark("true"),
        };
        it.stable = Marks {
            headers: mark("false"),
            cookies: mark("false"),
        };
        for (pairs, canary) in [
            (&[][..], false),
            (&[("x-canary", "true")], true),
            (&[("X-Canary", "true")], true),
            (&[("x-canary", "TRUE")], false),
            (&[("x-canary", "true,true")], false),
            (&[("x-canary", "0"), ("x-canary", "true")], true),
            (&[("x-canary", "true"), ("x-canary", "false")], false),
            (&[("cookie", "a=1; x-canary=true")], true),
            (&[("cookie", "x-canary=true"), ("x-canary", "false")], false),
            (&[("cookie", "x-canary=false"), ("x-canary", "true")], true),
            (&[("cookie", "x-canary=false")], false),
        ] {
            assert_eq!(with(&it, pairs), canary, "{pairs:?}");
        }
        it.percent = Percent(10_000);
        assert!(with(&it, &[]) && with(&it, &[("x-canary", "maybe")]));
        assert!(
            !with(&it, &[("x-canary", "false")]) && !with(&it, &[("cookie", "x-canary=false")])
        );
        it.forced.headers = vec![("x-a".into(), None), ("x-b".into(), Some("1".into()))];
        it.percent = Percent(0);
        assert!(
            with(&it, &[("x-a", ""), ("x-b", "1")]),
            "present is enough for the star"
        );
        assert!(
            !with(&it, &[("x-a", "1")]) && !with(&it, &[("x-b", "1")]),
            "all of them"
        );
    }

    #[test]
    fn who_lacks_a_part_of_the_key_stays() {
        let it = canary(9_999, &[KeyPart::Cookie("user".into())]);
        assert!(!with(&it, &[]));
        let users = (0..100)
            .filter(|n| with(&it, &[("cookie", &format!("user={n}"))]))
            .count();
        assert!(users >= 98, "{users}");
    }

    proptest! {
        #[test]
        fn a_higher_percentage_only_adds_clients(
            client: u128,
            low in 0..=10_000u32,
            more in 0..=10_000u32,
        ) {
            let high = low.saturating_add(more).min(10_000);
            let (low, high) = (
                canary(low, &[KeyPart::ClientIp]),
                canary(high, &[KeyPart::ClientIp]),
            );
            prop_assert!(!of_client(&low, "v2", client) || of_client(&high, "v2", client));
            prop_assert_eq!(of_client(&low, "v2", client), of_client(&low, "v2", client));
        }
    }
}
