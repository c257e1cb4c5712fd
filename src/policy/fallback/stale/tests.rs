use super::table::WAYS;
use super::*;
use crate::host::sim::{CasRules, Machine, Worker};
use proptest::prelude::*;
use std::collections::BTreeMap;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn config() -> config::Stale {
    config::Stale {
        max_age: Nanos::from_secs(300),
        max_body: 64,
        vary: vec![],
        max_entries: 64,
        max_bytes: 1 << 20,
    }
}

fn map(first: Pairs<'_>, more: Pairs<'_>) -> HeaderMap {
    HeaderMap::from_pairs(&[first, more].concat())
}

/// A proxy with one fallback.
struct Proxy {
    machine: Rc<Machine>,
    stale: Stale,
    tickets: Cell<u64>,
}

impl Proxy {
    fn new(config: config::Stale) -> Self {
        let machine = Machine::new(CasRules::Envoy, 1);
        Self {
            machine,
            stale: Stale::new("f", config, Seed(1, 2)),
            tickets: Cell::new(1),
        }
    }

    fn ask(&self, method: &str, path: &str, headers: Pairs<'_>) -> Option<StaleRequest> {
        let first = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "A.example:80"),
            (":path", path),
        ];
        let headers = map(&first, headers);
        let mut request = Request::new(&headers);
        request.route = "r";
        self.stale.ask(&request)
    }

    fn get(&self, path: &str, headers: Pairs<'_>) -> StaleRequest {
        self.ask("GET", path, headers)
            .expect("a request that may be answered from here")
    }

    /// Whether the response was kept.
    fn keep(&self, asked: &StaleRequest, response: Pairs<'_>, body: &[u8]) -> bool {
        let headers = map(&[(":status", "200")], response);
        let Some(draft) = self.stale.begin(asked, &headers, self.machine.now()) else {
            return false;
        };
        let Some(draft) = self.stale.add(draft, body) else {
            return false;
        };
        let ticket = self.tickets.replace(self.tickets.get() + 1);
        self.stale
            .keep(&Worker(Rc::clone(&self.machine)), asked, &draft, ticket)
            .unwrap()
            .is_some()
    }

    fn find(&self, asked: &StaleRequest) -> Option<StaleResponse> {
        self.stale
            .find(&Worker(Rc::clone(&self.machine)), asked, self.machine.now())
    }

    fn body(&self, asked: &StaleRequest) -> Option<Vec<u8>> {
        self.find(asked).map(|found| found.body)
    }
}

#[test]
fn what_may_be_kept() {
    let cases: &[(Pairs<'_>, Pairs<'_>, bool)] = &[
        (&[], &[], true),
        (&[], &[("cache-control", "no-store")], false),
        (&[], &[("Cache-Control", "max-age=60, No-Store")], false),
        (
            &[],
            &[
                ("cache-control", "max-age=60"),
                ("cache-control", "private"),
            ],
            false,
        ),
        (
            &[],
            &[("cache-control", "private=\"x-a, x-b\", max-age=60")],
            false,
        ),
        (&[], &[("cache-control", "no-cache")], false),
        (&[], &[("cache-control", "no-cache=\"set-cookie\"")], false),
        (
            &[],
            &[("cache-control", "x=\"no-store, private\", max-age=60")],
            true,
        ),
        (&[], &[("cache-control", "x=\"no-store")], false),
        (&[], &[("cache-control", "x-no-store, privately")], true),
        (&[], &[("cache-control", "max-age=0")], true),
        (
            &[],
            &[("cache-control", "max-age=0, must-revalidate")],
            false,
        ),
        (
            &[],
            &[("cache-control", "must-revalidate, max-age=60")],
            true,
        ),
        (&[], &[("cache-control", "proxy-revalidate")], false),
        (&[], &[("cache-control", "s-maxage=0")], false),
        (
            &[],
            &[("cache-control", "max-age=0, stale-if-error=60")],
            true,
        ),
        (
            &[],
            &[("cache-control", "max-age=0, stale-if-error=0")],
            false,
        ),
        (
            &[],
            &[
                ("cache-control", "max-age=60, stale-if-error=600"),
                ("age", "700"),
            ],
            false,
        ),
        (&[], &[("set-cookie", "a=b")], false),
        (&[], &[("vary", "*")], false),
        (&[], &[("vary", "accept, *")], false),
        (&[], &[("vary", "Accept-Encoding,,  x-b")], true),
        (&[], &[("vary", "not a name")], false),
        (&[], &[("content-range", "bytes 0-1/2")], false),
        (&[], &[("content-length", "65")], false),
        (&[], &[("content-length", "x")], false),
        (
            &[("authorization", "Basic x")],
            &[("cache-control", "public")],
            false,
        ),
        (&[("cache-control", "no-store")], &[], false),
        (&[("cache-control", "no-cache")], &[], true),
        (&[("cookie", "a=b")], &[], false),
        (&[("cookie", "a=b")], &[("vary", "accept, Cookie")], true),
        (&[("cookie", "a=b")], &[("cache-control", "public")], true),
        (
            &[("cookie", "a=b")],
            &[("cache-control", "s-maxage=9")],
            true,
        ),
    ];
    for (request, response, kept) in cases {
        let proxy = Proxy::new(config());
        let asked = proxy.ask("GET", "/", request);
        let is_kept = asked.is_some_and(|asked| proxy.keep(&asked, response, b""));
        assert_eq!(is_kept, *kept, "{request:?} {response:?}");
    }
    let proxy = Proxy::new(config());
    for status in ["201", "203", "204", "206", "301", "304", "404", "500", ""] {
        let headers = map(&[(":status", status)], &[]);
        assert!(
            proxy
                .stale
                .begin(&proxy.get("/", &[]), &headers, Nanos::ZERO)
                .is_none(),
            "{status}"
        );
    }
    let by_cookie = Proxy::new(config::Stale {
        vary: vec!["cookie".into()],
        ..config()
    });
    assert!(by_cookie.keep(&by_cookie.get("/", &[("cookie", "a=b")]), &[], b""));
}

#[test]
fn only_get_is_kept_and_head_is_answered_from_it() {
    let proxy = Proxy::new(config());
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "get", ""] {
        assert!(proxy.ask(method, "/", &[]).is_none(), "{method}");
    }
    let head = proxy.ask("HEAD", "/", &[]).unwrap();
    assert!(!proxy.keep(&head, &[], b""));
    assert!(proxy.keep(&proxy.get("/", &[]), &[], b"body"));
    assert_eq!(proxy.body(&head).as_deref(), Some(&b"body"[..]));
    assert!(
        proxy
            .ask("GET", "/", &[("content-type", "application/grpc")])
            .is_none()
    );
    assert!(
        proxy.ask("GET", "/", &[("authorization", "x")]).is_none(),
        "nor is who shows himself answered"
    );
}

#[test]
fn route_scheme_host_path_and_query_tell_responses_apart() {
    let request = |route: &str, scheme: &str, host: &str, path: &str| {
        let headers = map(
            &[
                (":method", "GET"),
                (":scheme", scheme),
                (":authority", host),
                (":path", path),
            ],
            &[],
        );
        let proxy = Proxy::new(config());
        let mut request = Request::new(&headers);
        request.route = route;
        proxy.stale.ask(&request).unwrap().key
    };
    let one = request("r", "http", "a.example", "/p?q=1");
    assert_eq!(one, request("r", "http", "A.Example", "/p?q=1#fragment"));
    for other in [
        request("s", "http", "a.example", "/p?q=1"),
        request("r", "https", "a.example", "/p?q=1"),
        request("r", "http", "a.example:8080", "/p?q=1"),
        request("r", "http", "a.example", "/P?q=1"),
        request("r", "http", "a.example", "/p?q=2"),
        request("r", "http", "a.example", "/p"),
    ] {
        assert_ne!(one, other);
    }
}

#[test]
fn the_configurations_and_the_responses_vary_both_apply() {
    let proxy = Proxy::new(config::Stale {
        vary: vec!["x-tenant".into()],
        ..config()
    });
    let get = |tenant: &str, language: Pairs<'_>| {
        proxy.get("/", &[&[("x-tenant", tenant)], language].concat())
    };
    let (german, french) = (&[("accept-language", "de")], &[("Accept-Language", "fr")]);
    let vary = &[("vary", "Accept-Language")];
    assert!(proxy.keep(&get("a", german), vary, b"a de"));
    assert!(proxy.keep(&get("a", french), vary, b"a fr"));
    assert!(proxy.keep(&get("b", &[]), vary, b"b none"));
    assert_eq!(proxy.body(&get("a", german)).unwrap(), b"a de");
    assert_eq!(proxy.body(&get("a", french)).unwrap(), b"a fr");
    assert_eq!(
        proxy.body(&get("a", &[])),
        None,
        "a missing header is a value of its own"
    );
    assert_eq!(proxy.body(&get("b", &[])).unwrap(), b"b none");
    assert_eq!(proxy.body(&get("b", &[("accept-language", "")])), None);
    assert_eq!(proxy.body(&get("c", &[])), None);
    assert_eq!(proxy.body(&proxy.get("/", german)), None);
    // What does not vary any more is newer, and for all.
    proxy.machine.advance(Nanos(1));
    assert!(proxy.keep(&get("a", &[]), &[], b"a any"));
    assert_eq!(proxy.body(&get("a", german)).unwrap(), b"a any");
    let twice = &[("accept-language", "de"), ("accept-language", "fr")];
    assert!(proxy.keep(&get("d", twice), vary, b"two lines"));
    assert_eq!(
        proxy
            .body(&get("d", &[("accept-language", "de, fr")]))
            .unwrap(),
        b"two lines"
    );
}

#[test]
fn age_counts_what_it_had_and_ends_where_anybody_says() {
    for (response, last) in [
        (&[][..], 300),
        (&[("age", "100")], 200),
        (&[("age", "x")], 300),
        (&[("cache-control", "max-age=9")], 300),
        (&[("cache-control", "max-age=9, must-revalidate")], 9),
        (&[("cache-control", "s-maxage=9, max-age=99")], 9),
        (&[("cache-control", "max-age=9, stale-if-error=20")], 29),
        (
            &[("cache-control", "stale-if-error=99999999999999999999")],
            300,
        ),
    ] {
        let proxy = Proxy::new(config());
        let asked = proxy.get("/", &[]);
        assert!(proxy.keep(&asked, response, b""));
        let before = proxy.find(&asked).unwrap().age;
        proxy.machine.advance(Nanos::from_secs(last));
        assert_eq!(
            proxy.find(&asked).unwrap().age,
            before + last,
            "{response:?}"
        );
        proxy.machine.advance(Nanos(1));
        assert!(proxy.find(&asked).is_none(), "{response:?}");
    }
}

#[test]
fn headers_of_the_connection_and_of_the_exchange_are_left_out() {
    let proxy = Proxy::new(config());
    let asked = proxy.get("/", &[]);
    let response = &[
        ("content-type", "text/html"),
        ("Content-Encoding", "gzip"),
        ("etag", "\"1\""),
        ("link", "<a>"),
        ("link", "<b>"),
        ("Connection", "close, X-Hop"),
        ("x-hop", "1"),
        ("Keep-Alive", "5"),
        ("transfer-encoding", "chunked"),
        ("content-length", "2"),
        ("age", "3"),
        ("x-envoy-upstream-service-time", "7"),
        ("x-request-id", "1"),
        ("X-RateLimit-Limit", "1"),
        ("RateLimit", "x"),
        ("proxy-status", "other"),
        ("trailer", "x"),
        ("upgrade", "h2c"),
    ];
    assert!(proxy.keep(&asked, response, b"zz"));
    let found = proxy.find(&asked).unwrap();
    let names: Vec<_> = found
        .headers
        .iter()
        .map(|(n, _)| String::from_utf8_lossy(n).into_owned())
        .collect();
    assert_eq!(
        names,
        ["content-type", "Content-Encoding", "etag", "link", "link"]
    );
}

#[test]
fn what_is_cut_or_too_large_is_not_kept() {
    let proxy = Proxy::new(config());
    let asked = proxy.get("/", &[]);
    assert!(!proxy.keep(&asked, &[("content-length", "3")], b"12"));
    assert!(!proxy.keep(&asked, &[("content-length", "3")], b"1234"));
    assert!(!proxy.keep(&asked, &[], &[0; 65]));
    assert!(!proxy.keep(&asked, &[("x-long", &"a".repeat(config::Stale::HEAD))], b""));
    let many: Vec<_> = (0..101).map(|_| ("x-a", "1")).collect();
    assert!(!proxy.keep(&asked, &many, b""));
    assert!(proxy.find(&asked).is_none());
    assert!(proxy.keep(&asked, &[("content-length", "64")], &[0; 64]));
    assert!(
        proxy
            .ask("GET", &"/".repeat(config::Stale::HEAD), &[])
            .is_none()
    );
    assert_eq!(proxy.stale.passing.get(), 0);
}

#[test]
fn what_is_asked_for_seldom_is_the_very_last_and_what_often_a_second_old() {
    let proxy = Proxy::new(config());
    let asked = proxy.get("/", &[]);
    let kept = |n: u8| proxy.keep(&asked, &[], &[n]);
    assert_eq!((0..20).filter(|n| kept(*n)).count() as u64, AT_ONCE);
    for _ in 0..10 {
        proxy.machine.advance(Nanos::from_millis(500));
        assert!(!kept(1));
        proxy.machine.advance(Nanos::from_millis(500));
        assert!(kept(2));
    }
    assert!(proxy.keep(&proxy.get("/other", &[]), &[], b""));
    let short = Proxy::new(config::Stale {
        max_age: Nanos::from_secs(1),
        ..config()
    });
    let asked = short.get("/", &[]);
    let mut kept = 0;
    for _ in 0..1_000 {
        kept += u32::from(short.keep(&asked, &[], b""));
        short.machine.advance(Nanos::from_millis(1));
    }
    assert!((16..=16 + 8).contains(&kept), "{kept}");
}

#[test]
fn the_least_recently_used_goes_first() {
    let proxy = Proxy::new(config::Stale {
        max_entries: 3,
        ..config()
    });
    let asked: Vec<_> = (0..4).map(|n| proxy.get(&format!("/{n}"), &[])).collect();
    for asked in &asked[..3] {
        assert!(proxy.keep(asked, &[], b""));
        proxy.machine.advance(Nanos::from_secs(2));
    }
    assert!(
        proxy.find(&asked[0]).is_some(),
        "used, and so not the next to go"
    );
    assert!(proxy.keep(&asked[3], &[], b""));
    let left: Vec<_> = asked
        .iter()
        .map(|asked| proxy.find(asked).is_some())
        .collect();
    assert_eq!(left, [true, false, true, true]);
}

#[test]
fn variants_of_one_request_do_not_push_all_others_out() {
    let proxy = Proxy::new(config());
    let other = proxy.get("/other", &[]);
    assert!(proxy.keep(&other, &[], b""));
    for n in 0..100 {
        proxy.machine.advance(Nanos(1));
        assert!(proxy.keep(
            &proxy.get("/", &[("x-a", &n.to_string())]),
            &[("vary", "x-a")],
            b""
        ));
    }
    assert!(proxy.find(&other).is_some());
    let left = (0..100).filter(|n| {
        proxy
            .find(&proxy.get("/", &[("x-a", &n.to_string())]))
            .is_some()
    });
    assert_eq!(left.collect::<Vec<_>>(), (92..100).collect::<Vec<_>>());
}

#[test]
fn a_smaller_table_of_the_same_name_leaves_nothing_behind() {
    let proxy = Proxy::new(config::Stale {
        max_entries: 1_000,
        max_bytes: 4 << 20,
        ..config()
    });
    let worker = Worker(Rc::clone(&proxy.machine));
    assert_eq!(proxy.stale.adopt(&worker), Ok(SizeChange::default()));
    for n in 0..300 {
        assert!(proxy.keep(&proxy.get(&format!("/{n}"), &[]), &[], &[0; 64]));
    }
    let before = proxy.machine.shared_bytes();
    let small = Stale::new(
        "f",
        config::Stale {
            max_entries: 1,
            max_bytes: 1 << 17,
            ..config()
        },
        Seed(1, 2),
    );
    let change = small.adopt(&worker).unwrap();
    assert!(
        change.entries < -250 && change.bytes < -64 * 250,
        "{change:?}"
    );
    let left = before as i64 - proxy.machine.shared_bytes() as i64;
    assert!(
        left >= -change.bytes + change.entries * 10,
        "{left} {change:?}"
    );
    assert_eq!(small.adopt(&worker), Ok(SizeChange::default()));
}

/// Bytes of all slots: what the bound is about.
fn slot_bytes(machine: &Machine) -> usize {
    machine
        .records(|key| key.get(2) == Some(&b'k'))
        .iter()
        .map(Vec::len)
        .filter(|n| *n > table::SLOT_HEAD)
        .sum()
}

proptest! {
    /// Against a map: what is found is the newest that was kept for the request, and what is not
    /// found has been pushed out; and the bounds hold after each step.
    #[test]
    fn the_bounds_hold_and_nothing_is_mixed_up(
        entries in 1u32..80, kib in 17usize..200, steps in proptest::collection::vec((0u8..40, 0usize..57, 0u64..2_000), 1..200),
    ) {
        let config = config::Stale { max_entries: entries, max_bytes: kib << 10, ..config() };
        let proxy = Proxy::new(config.clone());
        let mut model: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        let filler = "f".repeat(3_000);
        let (mut count, mut bytes) = (0i64, 0i64);
        for (at, (path, size, pause)) in steps.into_iter().enumerate() {
            let asked = proxy.get(&format!("/{path}"), &[]);
            let mut body = vec![path; size];
            body.extend_from_slice(&at.to_le_bytes());
            let headers = map(&[(":status", "200"), ("x-filler", &filler)], &[]);
            if let Some(draft) = proxy.stale.begin(&asked, &headers, proxy.machine.now())
                .and_then(|draft| proxy.stale.add(draft, &body))
            {
                let worker = Worker(Rc::clone(&proxy.machine));
                let change = proxy.stale.keep(&worker, &asked, &draft, at as u64).unwrap().unwrap();
                count += change.entries;
                bytes += change.bytes;
                model.insert(path, body);
                prop_assert_eq!(proxy.body(&asked), model.get(&path).cloned(), "what was kept last is there");
            }
            for (path, body) in &model {
                if let Some(found) = proxy.body(&proxy.get(&format!("/{path}"), &[])) {
                    prop_assert_eq!(&found, body);
                }
            }
            prop_assert!(slot_bytes(&proxy.machine) <= config.max_bytes);
            prop_assert_eq!(i64::try_from(slot_bytes(&proxy.machine)).unwrap(), bytes, "what is counted is there");
            prop_assert!((0..=i64::from(entries)).contains(&count));
            proxy.machine.advance(Nanos::from_millis(pause));
        }
    }

    /// Any bytes in any record: nothing panics, nothing of another request is found, and what is
    /// kept next is found.
    #[test]
    fn bad_records_are_no_records(
        kind in prop_oneof![Just(b'i'), Just(b'k'), Just(b'n')],
        how in 0usize..3, at in 0usize..3_000, bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let proxy = Proxy::new(config());
        let worker = Worker(Rc::clone(&proxy.machine));
        let _ = proxy.stale.adopt(&worker);
        let (one, other) = (proxy.get("/1", &[]), proxy.get("/2", &[("x-a", "1")]));
        prop_assert!(proxy.keep(&one, &[("x-b", "2")], b"one"));
        prop_assert!(proxy.keep(&other, &[("vary", "x-a")], b"other"));
        for record in proxy.machine.records(|key| key.get(2) == Some(&kind)) {
            let mut bad = record.clone();
            match how {
                0 => bad = bytes.clone(),
                1 => bad.truncate(at % (record.len() + 1)),
                _ => {
                    for (i, byte) in bytes.iter().enumerate() {
                        if let Some(place) = bad.get_mut((at + i * 37) % record.len().max(1)) {
                            *place = *byte;
                        }
                    }
                }
            }
            proxy.machine.corrupt(|key| key.get(2) == Some(&kind), &bad);
            for asked in [&one, &other] {
                if let Some(found) = proxy.find(asked) {
                    prop_assert!(rules::are_sound(&found.headers));
                }
            }
            let _ = proxy.stale.adopt(&worker);
        }
        proxy.machine.advance(Nanos::from_secs(10));
        let again = proxy.get("/3", &[]);
        prop_assert!(proxy.keep(&again, &[], b"again"));
        prop_assert_eq!(proxy.body(&again).unwrap(), b"again");
    }
}

#[test]
fn a_set_has_no_more_slots_than_its_index_may_list() {
    let proxy = Proxy::new(config::Stale {
        max_entries: 65_536,
        ..config()
    });
    for n in 0..500 {
        assert!(proxy.keep(&proxy.get(&format!("/{n}"), &[]), &[], b""));
    }
    let indices = proxy.machine.records(|key| key.get(2) == Some(&b'i'));
    assert!(
        indices
            .iter()
            .all(|index| index.len() <= 8 + 48 * WAYS as usize)
    );
}
