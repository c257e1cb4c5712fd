//! Which route a request takes: the first that matches.

pub mod config;
pub mod index;

use crate::request::Request;
use config::{HostMatch, Match, PathMatch};

/// What of a request decides which route it takes.
#[derive(Clone, Copy, Debug)]
struct Subject<'a> {
    request: &'a Request<'a>,
    /// Its path in its plain spelling.
    path: &'a [u8],
    /// Its host; `None` if it has none.
    host: Option<&'a [u8]>,
}

/// Whether all conditions of `matcher` hold.
fn matches(matcher: &Match, subject: &Subject<'_>) -> bool {
    let request = subject.request;
    path_matches(&matcher.path, subject.path)
        && (matcher.methods.is_empty()
            || matcher
                .methods
                .iter()
                .any(|m| m.as_bytes() == request.method))
        && (matcher.hosts.is_empty()
            || subject
                .host
                .is_some_and(|host| matcher.hosts.iter().any(|m| host_matches(m, host))))
        && matcher.headers.iter().all(|(name, wanted)| match wanted {
            None => request.values(name).next().is_some(),
            Some(wanted) => request.values(name).any(|value| value == wanted.as_bytes()),
        })
}

fn path_matches(matcher: &PathMatch, given: &[u8]) -> bool {
    match matcher {
        PathMatch::Any => true,
        PathMatch::Exact(path) => path.as_bytes() == given,
        PathMatch::Prefix(prefix) => given
            .strip_prefix(prefix.as_bytes())
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'/'))),
        PathMatch::Pattern(segments) => {
            let Some(path) = given.strip_prefix(b"/") else {
                return false;
            };
            let mut given = path.split(|b| *b == b'/');
            segments.iter().all(|wanted| match (wanted, given.next()) {
                (Some(wanted), Some(given)) => wanted.as_bytes() == given,
                (None, Some(given)) => !given.is_empty(),
                (_, None) => false,
            }) && given.next().is_none()
        }
    }
}

fn host_matches(matcher: &HostMatch, host: &[u8]) -> bool {
    match matcher {
        HostMatch::Exact(name) => host.eq_ignore_ascii_case(name.as_bytes()),
        HostMatch::Suffix(suffix) => {
            // At least one character must stand for the star.
            host.len() > suffix.len()
                && host
                    .len()
                    .checked_sub(suffix.len())
                    .and_then(|at| host.get(at..))
                    .is_some_and(|end| end.eq_ignore_ascii_case(suffix.as_bytes()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::headers::HeaderMap;

    fn hit(matcher: &Match, method: &str, path: &str, more: &[(&str, &str)]) -> bool {
        let mut pairs = vec![
            (":method", method),
            (":path", path),
            (":authority", "Api.Example.com:8080"),
        ];
        pairs.extend_from_slice(more);
        let headers = HeaderMap::from_pairs(&pairs);
        let request = Request::new(&headers);
        let (path, host) = (&*request.plain_path(), request.host());
        let subject = Subject {
            request: &request,
            path,
            host,
        };
        matches(matcher, &subject)
    }

    fn path(path: PathMatch) -> Match {
        Match {
            path,
            ..Match::default()
        }
    }

    #[test]
    fn prefixes_end_at_a_segment() {
        let users = path(PathMatch::Prefix("/api/users".into()));
        for (given, expected) in [
            ("/api/users", true),
            ("/api/users/", true),
            ("/api/users/7?x=1", true),
            ("/api/users?x", true),
            ("/%61pi/%75sers/7", true),
            ("/api%2Fusers", false),
            ("/api/users2", false),
            ("/api", false),
            ("", false),
        ] {
            assert_eq!(hit(&users, "GET", given, &[]), expected, "{given}");
        }
        assert!(hit(
            &path(PathMatch::Prefix(String::new())),
            "GET",
            "/anything",
            &[]
        ));
    }

    #[test]
    fn patterns_match_segment_by_segment() {
        let orders = path(PathMatch::Pattern(vec![
            Some("users".into()),
            None,
            Some("orders".into()),
        ]));
        for (given, expected) in [
            ("/users/7/orders", true),
            ("/users/7/orders?p=1", true),
            ("/users//orders", false),
            ("/users/7/orders/1", false),
            ("/users/7", false),
            ("/users/7/orders/", false),
        ] {
            assert_eq!(hit(&orders, "GET", given, &[]), expected, "{given}");
        }
    }

    #[test]
    fn exact_paths_ignore_the_query() {
        let exact = path(PathMatch::Exact("/a".into()));
        assert!(hit(&exact, "GET", "/a?b", &[]) && !hit(&exact, "GET", "/a/", &[]));
    }

    #[test]
    fn a_complete_name_is_the_same_host() {
        let hosts = |host: HostMatch| Match {
            hosts: vec![host],
            ..Match::default()
        };
        for authority in [
            "api.example.com.",
            "API.example.com.:443",
            "api.example.com",
        ] {
            let headers = HeaderMap::from_pairs(&[(":path", "/"), (":authority", authority)]);
            let request = Request::new(&headers);
            let subject = Subject {
                request: &request,
                path: b"/",
                host: request.host(),
            };
            for host in [
                HostMatch::Exact("api.example.com".into()),
                HostMatch::Suffix(".example.com".into()),
            ] {
                assert!(matches(&hosts(host), &subject), "{authority}");
            }
        }
    }

    #[test]
    fn methods_hosts_and_headers_must_all_hold() {
        let matcher = Match {
            path: PathMatch::Any,
            methods: vec!["GET".into(), "PUT".into()],
            hosts: vec![HostMatch::Suffix(".example.com".into())],
            headers: vec![("x-a".into(), Some("1".into())), ("x-b".into(), None)],
        };
        let all = &[("x-a", "0"), ("X-A", "1"), ("x-b", "")];
        assert!(hit(&matcher, "PUT", "/", all));
        assert!(!hit(&matcher, "POST", "/", all));
        assert!(!hit(&matcher, "PUT", "/", &[("x-a", "1")]));
        assert!(!hit(&matcher, "PUT", "/", &[("x-a", "2"), ("x-b", "")]));
        let exact = |host: &str| Match {
            hosts: vec![HostMatch::Exact(host.into())],
            ..Match::default()
        };
        assert!(
            hit(&exact("api.example.com"), "GET", "/", &[])
                && !hit(&exact("example.com"), "GET", "/", &[])
        );
        let bare = Match {
            hosts: vec![HostMatch::Suffix("api.example.com".into())],
            ..Match::default()
        };
        assert!(
            !hit(&bare, "GET", "/", &[]),
            "the star stands for at least one character"
        );
    }
}
