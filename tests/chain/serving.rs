//! haven as Envoy's endpoint discovery: who is answered what.

use super::*;
use haven::policy::discovery::record::{Known, SourceRecord, SourceStatus};
use haven::policy::discovery::serve::{self, HeldRecord};
use haven::policy::discovery::{Builder, Membership, Named, Verdict};

const PATH: &str = "/v3/discovery:endpoints";

/// What follows the version in what Envoy sends: itself.
const NODE: &str = "\"node\":{\"id\":\"n\",\"cluster\":\"c\",\"extensions\":[{\"name\":\"a\"}]}}";

fn serving() -> Proxy {
    Proxy::new(&json!({"serve_endpoints": true, "state": "haven"}))
}

fn members(addresses: &[&str]) -> Membership {
    let mut builder = Builder::default();
    for address in addresses {
        let named = Named {
            address,
            weight: 1,
            ..Named::default()
        };
        builder.add(named).unwrap();
    }
    builder.finish().unwrap()
}

/// What the source of this upstream has named.
fn name(proxy: &Proxy, upstream: &str, members: &Membership) {
    let record = SourceRecord::new(upstream);
    let named = record.update(&proxy.worker, |known| {
        let version = known.status.version + 1;
        let status = SourceStatus {
            version,
            ..known.status
        };
        let members = members.clone();
        let first_seen = Vec::new();
        (
            (),
            Some(Known {
                status,
                members,
                first_seen,
            }),
        )
    });
    named.unwrap();
}

/// A request that came in at this address, and all of it is there but the body.
fn asks(method: &str, path: &str, authority: &str, at: &str) -> SimStream {
    let stream = SimStream::request(method, path, &[("content-type", b"application/json")]);
    stream.set_header(Message::Request, ":authority", authority.as_bytes());
    stream.set_property(Property::DestinationAddress, at.as_bytes());
    stream
}

/// The answer to a request for the endpoints of `upstream` with a body in these pieces.
fn ask_in_pieces(proxy: &Proxy, upstream: &str, pieces: &[&str]) -> (u16, Value) {
    let stream = asks(
        "POST",
        PATH,
        &format!("{upstream}.haven-eds"),
        "127.0.0.1:9905",
    );
    let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
    let mut action = exchange.on_request_headers(&proxy.worker, &stream, pieces.is_empty());
    for (at, piece) in pieces.iter().enumerate() {
        if action != Action::Read {
            break;
        }
        assert!(stream.replied().is_none() && exchange.is_reading());
        stream.send(piece.as_bytes());
        action = exchange.on_request_body(&proxy.worker, &stream, at + 1 == pieces.len());
    }
    assert_eq!(action, Action::Stop);
    exchange.on_end(&proxy.worker);
    let reply = stream.replied().unwrap();
    let body = serde_json::from_slice(reply.body()).unwrap_or(Value::Null);
    (reply.status, body)
}

/// The same as Envoy sends it that has this version, or none.
fn ask(proxy: &Proxy, upstream: &str, version: Option<&str>) -> (u16, Value) {
    let version = version.map(|it| format!("\"version_info\":\"{it}\","));
    let body = format!("{{{}{NODE}", version.unwrap_or_default());
    ask_in_pieces(proxy, upstream, &[&body, &" ".repeat(1000)])
}

fn version(body: &Value) -> &str {
    body["version_info"].as_str().unwrap()
}

fn addresses(body: &Value) -> Vec<&str> {
    let groups = body["resources"][0]["endpoints"].as_array().unwrap();
    let members = groups
        .iter()
        .flat_map(|it| it["lb_endpoints"].as_array().unwrap());
    members
        .map(|it| {
            it["endpoint"]["address"]["socket_address"]["address"]
                .as_str()
                .unwrap()
        })
        .collect()
}

#[test]
fn who_has_the_endpoints_is_told_that_nothing_changed_and_who_has_not_gets_them() {
    let proxy = serving();
    name(&proxy, "users", &members(&["10.0.0.1:80", "10.0.0.2:80"]));
    let (status, first) = ask(&proxy, "users", None);
    assert_eq!(status, 200);
    assert_eq!(first["resources"][0]["cluster_name"], "users");
    assert_eq!(addresses(&first), ["10.0.0.1", "10.0.0.2"]);
    // The answer was lost, or rejected: Envoy shows what it had.
    assert_eq!(ask(&proxy, "users", None), (200, first.clone()));
    assert_eq!(ask(&proxy, "users", Some("other")), (200, first.clone()));
    for _ in 0..3 {
        assert_eq!(
            ask(&proxy, "users", Some(version(&first))),
            (304, Value::Null)
        );
    }
    // Another Envoy, or this one started anew.
    assert_eq!(ask(&proxy, "users", None), (200, first.clone()));

    name(&proxy, "users", &members(&["10.0.0.2:80"]));
    let (status, second) = ask(&proxy, "users", Some(version(&first)));
    assert_eq!((status, addresses(&second)), (200, vec!["10.0.0.2"]));
    assert_eq!(ask(&proxy, "users", Some(version(&first))).0, 200);
    assert_eq!(ask(&proxy, "users", Some(version(&second))).0, 304);
    // Back to what it was: so is the version.
    name(&proxy, "users", &members(&["10.0.0.1:80", "10.0.0.2:80"]));
    assert_eq!(ask(&proxy, "users", Some(version(&second))), (200, first));
}

#[test]
fn what_is_not_known_takes_nothing_away_and_what_is_known_to_be_empty_does() {
    let proxy = serving();
    assert_eq!(ask(&proxy, "users", None), (304, Value::Null));
    name(&proxy, "users", &Membership::default());
    let (status, body) = ask(&proxy, "users", None);
    assert_eq!((status, addresses(&body).len()), (200, 0));
    assert_eq!(ask(&proxy, "others", None), (304, Value::Null));
}

#[test]
fn one_upstream_is_not_answered_with_anothers_endpoints() {
    let proxy = serving();
    name(&proxy, "a", &members(&["10.0.0.1:80"]));
    name(&proxy, "b", &members(&["10.0.0.1:80"]));
    let (_, a) = ask(&proxy, "a", None);
    let (status, b) = ask(&proxy, "b", Some(version(&a)));
    assert_eq!(
        (status, &b["resources"][0]["cluster_name"]),
        (200, &"b".into())
    );
}

#[test]
fn the_version_is_read_whatever_pieces_the_body_comes_in() {
    let proxy = serving();
    name(&proxy, "users", &members(&["10.0.0.1:80"]));
    let (_, body) = ask(&proxy, "users", None);
    let shown = format!("{{\"version_info\":\"{}\",{NODE}", version(&body));
    for at in 0..shown.len() {
        let (one, other) = shown.split_at(at);
        assert_eq!(ask_in_pieces(&proxy, "users", &[one, other]).0, 304, "{at}");
    }
    // As short as can be.
    let short = format!("{{\"version_info\":\"{}\"}}", version(&body));
    assert_eq!(ask_in_pieces(&proxy, "users", &[&short]).0, 304);
    for nothing in [&[][..], &[""], &["", ""], &["{}"], &["[]"], &["\u{0}"]] {
        assert_eq!(
            ask_in_pieces(&proxy, "users", nothing).0,
            200,
            "{nothing:?}"
        );
    }
}

#[test]
fn what_envoy_has_is_known_to_all_of_the_state() {
    let proxy = serving();
    let held = || HeldRecord::new("users").read(&proxy.worker);
    name(&proxy, "users", &members(&["10.0.0.1:80"]));
    let (_, body) = ask(&proxy, "users", None);
    assert_eq!(held(), None, "it was sent, and may have been lost");
    ask(&proxy, "users", Some(version(&body)));
    assert!(held().is_some());
    ask(&proxy, "users", None);
    assert_eq!(held(), None, "a cluster that was made anew");
    ask(&proxy, "of nobody", Some(version(&body)));
    assert_eq!(HeldRecord::new("of nobody").read(&proxy.worker), None);
}

/// Without the plugin's setting no body ever comes: Envoy gives up, and is answered the next time.
#[test]
fn where_bodies_do_not_come_headers_are_answered_in_full() {
    for in_time in [false, true] {
        let proxy = serving();
        name(&proxy, "users", &members(&["10.0.0.1:80"]));
        let stream = asks("POST", PATH, "users.haven-eds", "127.0.0.1:9905");
        let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
        let action = exchange.on_request_headers(&proxy.worker, &stream, false);
        assert_eq!(action, Action::Read);
        if in_time {
            assert_eq!(exchange.on_resume(&proxy.worker, &stream), Action::Stop);
            assert_eq!(stream.replied().unwrap().status, 200);
        }
        exchange.on_end(&proxy.worker);
        drop(exchange);
        for _ in 0..2 {
            let stream = asks("POST", PATH, "users.haven-eds", "127.0.0.1:9905");
            let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
            let action = exchange.on_request_headers(&proxy.worker, &stream, false);
            assert_eq!(action, Action::Stop);
            assert_eq!(stream.replied().unwrap().status, 200);
        }
        let said = proxy.log_lines();
        let said: Vec<_> = said
            .iter()
            .filter(|line| line.contains("allow_on_headers_stop_iteration"))
            .collect();
        assert_eq!(said.len(), 1, "{said:?}");
    }
}

#[test]
fn nothing_else_is_answered_there() {
    let proxy = serving();
    name(&proxy, "users", &members(&["10.0.0.1:80"]));
    let here = "127.0.0.1:9905";
    let status = |method: &str, path: &str, authority: &str, at: &str| {
        let stream = asks(method, path, authority, at);
        let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
        let action = exchange.on_request_headers(&proxy.worker, &stream, true);
        exchange.on_end(&proxy.worker);
        assert_eq!(action, Action::Stop);
        let reply = stream.replied().unwrap();
        let allow = reply.pairs().any(|(name, _)| name == b"allow");
        assert_eq!(allow, reply.status == 405);
        assert!(reply.status == 200 || !String::from_utf8_lossy(reply.body()).contains("10.0"));
        reply.status
    };
    let eds = "users.haven-eds";
    assert_eq!(status("POST", PATH, eds, here), 200);
    assert_eq!(status("POST", PATH, eds, "[::1]:9905"), 200);
    assert_eq!(status("POST", PATH, eds, "127.8.9.1:9905"), 200);
    for path in [
        "/",
        "",
        "/livez",
        "/readyz",
        "/v3/discovery:clusters",
        "/v3/discovery:endpoints/",
    ] {
        assert_eq!(status("POST", path, eds, here), 404, "{path}");
        assert_eq!(status("GET", path, eds, here), 404, "{path}");
    }
    for method in ["GET", "HEAD", "PUT", "post", "", "CONNECT"] {
        assert_eq!(status(method, PATH, eds, here), 405, "{method}");
    }
    for authority in ["users", "haven-eds", "", "127.0.0.1:9905", ".haven-eds"] {
        assert_eq!(status("POST", PATH, authority, here), 404, "{authority}");
    }
    for at in [
        "10.0.0.9:9905",
        "[2001:db8::1]:9905",
        "128.0.0.1:1",
        "126.255.255.255:1",
        "[::2]:1",
        "[::]:1",
        "0.0.0.0:1",
        "",
        "localhost",
        "@",
    ] {
        for (method, path) in [("POST", PATH), ("GET", "/"), ("GET", "/readyz")] {
            assert_eq!(status(method, path, eds, at), 403, "{at}");
        }
    }
    // A header that names a loopback address makes no peer one.
    let stream = asks("POST", PATH, eds, "10.0.0.9:9905");
    stream.set_header(Message::Request, "x-forwarded-for", b"127.0.0.1");
    stream.set_property(Property::SourceAddress, b"127.0.0.1:0");
    let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
    exchange.on_request_headers(&proxy.worker, &stream, true);
    assert_eq!(stream.replied().unwrap().status, 403);
    let lines = proxy.log_lines();
    let said = lines
        .iter()
        .filter(|it| it.contains("did not come in on the loopback"));
    assert_eq!(said.count(), 1, "{lines:?}");
}

#[test]
fn a_broken_record_is_as_good_as_none() {
    let proxy = serving();
    name(&proxy, "users", &members(&["10.0.0.1:80"]));
    for bytes in [&b""[..], b"\0", b"\x01\x01rubbish"] {
        proxy
            .machine
            .corrupt(|key| key.get(2) == Some(&b'd'), bytes);
        assert_eq!(ask(&proxy, "users", None).0, 304, "{bytes:?}");
    }
}

/// The most that an upstream may have is answered whole.
#[test]
fn a_thousand_endpoints_are_answered_at_once() {
    let proxy = serving();
    let mut builder = Builder::default();
    for at in 0..1000 {
        let (address, zone) = (
            format!("10.0.{}.{}:80", at / 250, at % 250),
            format!("z{}", at % 7),
        );
        let named = Named {
            address: &address,
            weight: 1 + at % 1000,
            priority: at % 3,
            zone: &zone,
            verdict: Verdict::Healthy,
        };
        builder.add(named).unwrap();
    }
    name(&proxy, "users", &builder.finish().unwrap());
    let before = proxy.machine.calls();
    let (status, body) = ask(&proxy, "users", None);
    assert_eq!((status, addresses(&body).len()), (200, 1000));
    assert!(body.to_string().len() < 256 << 10);
    let calls = proxy.machine.calls() - before;
    assert!(calls < 10, "{calls} host calls");
    assert_eq!(ask(&proxy, "users", Some(version(&body))).0, 304);
}

/// haven knows the endpoints a moment before Envoy does, which answers 503 until then.
#[test]
fn a_proxy_is_not_ready_before_its_envoy_has_endpoints() {
    let config = |least: u8| {
        let source = json!({"etcd": {"cluster": "etcd", "prefix": "/services/users/"}});
        json!({"upstreams": {"users": {"endpoints": source, "min_healthy": least}}})
    };
    let mut proxy = Proxy::new(&config(1));
    let held = HeldRecord::new("users");
    assert_eq!(proxy.status("/readyz", &[]), 503, "none is known");
    name(&proxy, "users", &members(&["10.0.0.1:80"]));
    proxy.reload(&config(1));
    assert_eq!(
        proxy.status("/readyz", &[]),
        200,
        "something else feeds Envoy"
    );
    serve::announce(&proxy.worker).unwrap();
    let reply = proxy.request("/readyz", &[], 200).replied().unwrap();
    let body = String::from_utf8_lossy(reply.body()).into_owned();
    assert!(
        reply.status == 503 && body.contains("Envoy has none of them yet"),
        "{body}"
    );
    held.write(&proxy.worker, Some(7)).unwrap();
    assert_eq!(proxy.status("/readyz", &[]), 200);
    held.write(&proxy.worker, None).unwrap();
    assert_eq!(
        proxy.status("/readyz", &[]),
        503,
        "its cluster was made anew"
    );
    proxy.reload(&config(0));
    assert_eq!(proxy.status("/readyz", &[]), 200, "that needs no endpoint");
}
