use super::*;
use crate::base::headers::HeaderMap;
use proptest::collection::vec;
use proptest::prelude::*;

/// Few words, so that routes overlap and requests hit.
fn word() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b"), Just("api"), Just("api2"), Just("")]
}

fn path() -> impl Strategy<Value = PathMatch> {
    let segments = || vec(word(), 0..4).prop_map(|words| format!("/{}", words.join("/")));
    prop_oneof![
        Just(PathMatch::Any),
        segments().prop_map(PathMatch::Exact),
        segments().prop_map(|path| PathMatch::Prefix(path.trim_end_matches('/').into())),
        vec(proptest::option::of(word()), 1..4).prop_map(|segments| {
            PathMatch::Pattern(segments.into_iter().map(|it| it.map(Into::into)).collect())
        }),
    ]
}

fn name() -> impl Strategy<Value = String> {
    vec(prop_oneof![Just("a"), Just("b"), Just("example")], 1..4).prop_map(|it| it.join("."))
}

fn host() -> impl Strategy<Value = HostMatch> {
    prop_oneof![
        3 => name().prop_map(HostMatch::Exact),
        2 => name().prop_map(|name| HostMatch::Suffix(format!(".{name}"))),
        1 => Just(HostMatch::Suffix(String::new())),
    ]
}

fn matcher() -> impl Strategy<Value = Match> {
    let methods = prop_oneof![4 => Just(vec![]), 1 => Just(vec!["GET".to_owned()])];
    let headers = prop_oneof![
        4 => Just(vec![]),
        1 => Just(vec![("x-a".to_owned(), Some("1".to_owned()))])
    ];
    (path(), methods, vec(host(), 0..3), headers).prop_map(|(path, methods, hosts, headers)| {
        Match {
            path,
            methods,
            hosts,
            headers,
        }
    })
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => vec(word(), 0..5).prop_map(|words| format!("/{}", words.join("/"))),
        1 => Just("*".to_owned()),
        1 => Just(String::new()),
        1 => "[/ab]{0,90}",
    ]
}

fn authority() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        1 => Just(None),
        6 => name().prop_map(Some),
        1 => name().prop_map(|name| Some(name.to_uppercase() + ".:80")),
        // More domains than are looked up.
        1 => "(a\\.|b\\.|example\\.){0,30}a".prop_map(Some),
        1 => "[.ab]{0,5}".prop_map(Some),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn the_first_route_of_all_that_match_is_found(
        routes in vec(matcher(), 0..12),
        requests in vec((target(), authority(), any::<bool>(), any::<bool>()), 1..8),
    ) {
        let index = RouteIndex::new(routes.iter());
        for (target, authority, get, marked) in requests {
            let mut pairs = vec![(":method", if get { "GET" } else { "PUT" }), (":path", &target)];
            pairs.extend(authority.as_deref().map(|it| (":authority", it)));
            pairs.extend(marked.then_some(("X-A", "1")));
            let headers = HeaderMap::from_pairs(&pairs);
            let request = Request::new(&headers);
            let path = request.plain_path();
            let subject = Subject { request: &request, path: &path, host: request.host() };
            let plain = routes.iter().position(|route| matches(route, &subject));
            prop_assert_eq!(index.find(&request, &path, |at| routes.get(at)), plain);
        }
    }
}

/// Routes looked at for a request.
fn looked_at(routes: &[Match], path: &str, authority: &str) -> (Option<usize>, usize) {
    let headers = HeaderMap::from_pairs(&[(":path", path), (":authority", authority)]);
    let looks = std::cell::Cell::new(0);
    let found =
        RouteIndex::new(routes.iter()).find(&Request::new(&headers), path.as_bytes(), |at| {
            looks.set(looks.get() + 1);
            routes.get(at)
        });
    (found, looks.get())
}

#[test]
fn of_many_routes_few_are_looked_at() {
    let by_path: Vec<_> = (0..500)
        .map(|i| Match {
            path: PathMatch::Prefix(format!("/api/v1/service{i}")),
            ..Match::default()
        })
        .collect();
    let by_host: Vec<_> = (0..500)
        .map(|i| Match {
            hosts: vec![if i % 2 == 0 {
                HostMatch::Exact(format!("host{i}.example.com"))
            } else {
                HostMatch::Suffix(format!(".host{i}.example.com"))
            }],
            ..Match::default()
        })
        .collect();
    for (routes, path, authority, found) in [
        (&by_path, "/api/v1/service499/x", "a", Some(499)),
        (&by_path, "/api/v1/other", "a", None),
        (&by_host, "/", "host498.example.com:80", Some(498)),
        (&by_host, "/", "a.host499.example.com", Some(499)),
        (&by_host, "/", "other.example.com", None),
    ] {
        let (got, looks) = looked_at(routes, path, authority);
        assert_eq!(got, found, "{path} {authority}");
        assert!(looks <= 1, "{path} {authority}: {looks}");
    }
}
