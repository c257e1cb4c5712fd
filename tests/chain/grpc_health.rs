//! gRPC health checks: who is asked for what, on either side of the bridge.

use super::*;
use haven::base::grpc_health::{CHECK, Serving, encode_request, encode_response, frame};

const OUTER: &[u8] = b"application/grpc";
const INNER: &[u8] = b"application/x-protobuf";

/// All that can refuse a request does.
fn exhausted() -> Value {
    let mut config = upstream(&json!({
        "rate_limits": {"none": {"limit": 1, "period": "1h"}},
        "switches": {"s": "off"},
        "upstreams": {"v2": {"endpoints": [{"address": "10.0.1.1:80"}], "circuit_breaker": "ep", "load_balancer": {"panic_threshold": 0}},
                      "u": {"load_balancer": {"panic_threshold": 0}}}}));
    config["routes"] = json!([{"name": "r", "upstream": "u", "switch": "s", "rate_limits": ["none"]},
                              {"name": "v2", "upstream": "v2"}]);
    config
}

/// A call whose body comes in these pieces; what the last callback says, and the stream.
fn call(
    proxy: &Proxy,
    path: &str,
    headers: &[(&str, &[u8])],
    pieces: &[&[u8]],
) -> (Action, SimStream) {
    let stream = SimStream::request("POST", path, headers);
    let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
    let mut action = exchange.on_request_headers(&proxy.worker, &stream, pieces.is_empty());
    for (at, piece) in pieces.iter().enumerate() {
        if action != Action::Read {
            break;
        }
        stream.send(piece);
        action = exchange.on_request_body(&proxy.worker, &stream, at + 1 == pieces.len());
    }
    exchange.on_end(&proxy.worker);
    (action, stream)
}

fn status(proxy: &Proxy, headers: &[(&str, &[u8])], pieces: &[&[u8]]) -> Option<u8> {
    let (action, stream) = call(proxy, CHECK, headers, pieces);
    let reply = stream.replied()?;
    assert_eq!(action, Action::Stop);
    Some(reply.grpc_status.unwrap())
}

#[test]
fn the_outer_one_lets_pass_what_there_is_and_refuses_the_rest() {
    let mut proxy = Proxy::new(&json!({}));
    // What one worker has found out of the bridge holds for all, and over reloads.
    let mark = mark(&proxy);
    answered(&proxy, &[("x-haven-health", mark.as_bytes())]);
    proxy.reload(&exhausted());
    let of = |pieces: &[&[u8]]| status(&proxy, &[("content-type", OUTER)], pieces);
    for name in ["", "u", "v2"] {
        assert_eq!(
            of(&[&frame(&encode_request(name))]),
            None,
            "{name}: it goes on, whatever is exhausted"
        );
    }
    assert_eq!(of(&[&frame(&encode_request("nobody"))]), Some(5));
    assert_eq!(
        of(&[&frame(&encode_request("r"))]),
        Some(5),
        "a route is no service"
    );
    // In pieces, and with an empty last one.
    let whole = frame(&encode_request("u"));
    let pieces: Vec<&[u8]> = whole.chunks(1).chain([&[][..]]).collect();
    assert_eq!(of(&pieces), None);
    for wrong in [
        &b""[..],
        b"\0",
        b"\0\0\0\0\x02\x0a",
        b"\0\0\0\0\0\0",
        b"\x07\0\0\0\0",
        b"\0\0\0\0\x01\x0a",
        b"\0\0\0\0\x03\x0a\x01\xff",
    ] {
        assert_eq!(of(&[wrong]), Some(13), "{wrong:?}");
    }
    assert_eq!(of(&[]), Some(13), "no body at all");
    assert_eq!(
        of(&[b"\x01\0\0\0\0"]),
        Some(13),
        "compressed, with no encoding named"
    );
    let gzip: [(&str, &[u8]); 2] = [("content-type", OUTER), ("grpc-encoding", b"gzip")];
    assert_eq!(status(&proxy, &gzip, &[b"\x01\0\0\0\0"]), Some(12));
    assert_eq!(
        status(&proxy, &gzip, &[&whole]),
        None,
        "named, and not used"
    );
    // What is too long is refused as soon as it is, and not read to its end.
    let long = frame(&encode_request(&"x".repeat(4093)));
    assert_eq!(long.len(), 5 + 4096);
    assert_eq!(of(&[&long]), Some(5), "the longest");
    assert_eq!(of(&[&long, b"x"]), Some(8));
    assert_eq!(of(&[&long, b"x", b"more", b"and more"]), Some(8));
    for path in [
        "/grpc.health.v1.Health/Watch",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/",
    ] {
        let (action, stream) = call(&proxy, path, &[("content-type", OUTER)], &[b"\0\0\0\0\0"]);
        assert_eq!(
            (action, stream.replied().unwrap().grpc_status),
            (Action::Stop, Some(12)),
            "{path}"
        );
    }
}

#[test]
fn the_inner_one_answers_with_the_bare_message() {
    let mut config = exhausted();
    let proxy = Proxy::new(&config);
    let of = |proxy: &Proxy, name: &str| {
        let (action, stream) = call(
            proxy,
            CHECK,
            &[("content-type", INNER)],
            &[&encode_request(name)],
        );
        let reply = stream.replied().unwrap();
        assert_eq!((action, reply.grpc_status), (Action::Stop, None));
        if reply.status == 200 {
            assert_eq!(
                stream.response_header("content-type").as_deref(),
                Some("application/x-protobuf")
            );
        }
        (reply.status, reply.body)
    };
    let serving = (200, encode_response(Serving::Serving).to_vec());
    let not_serving = (200, encode_response(Serving::NotServing).to_vec());
    for name in ["", "u", "v2"] {
        assert_eq!(of(&proxy, name), serving, "{name}");
    }
    assert_eq!(of(&proxy, "nobody").0, 404);
    let (_, empty) = call(&proxy, CHECK, &[("content-type", INNER)], &[]);
    assert_eq!(
        empty.replied().unwrap().body,
        serving.1,
        "an empty message asks for the whole"
    );
    let (_, wrong) = call(&proxy, CHECK, &[("content-type", INNER)], &[b"\x0a"]);
    assert_eq!(wrong.replied().unwrap().status, 400);
    let (_, long) = call(&proxy, CHECK, &[("content-type", INNER)], &[&[0; 4097]]);
    assert_eq!(long.replied().unwrap().status, 413);

    // An outage of one upstream takes the whole out, and not the other.
    config["routes"] = json!([{"name": "v2", "upstream": "v2"}]);
    let proxy = Proxy::new(&config);
    for _ in 0..2 {
        proxy.request("/", &[], 500);
    }
    assert_eq!(proxy.status("/readyz", &[]), 503);
    assert_eq!(
        [of(&proxy, ""), of(&proxy, "v2"), of(&proxy, "u")],
        [not_serving.clone(), not_serving, serving]
    );
}

#[test]
fn trailers_end_a_body_as_well() {
    let proxy = Proxy::new(&exhausted());
    let stream = SimStream::request("POST", CHECK, &[("content-type", INNER)]);
    let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
    assert_eq!(
        exchange.on_request_headers(&proxy.worker, &stream, false),
        Action::Read
    );
    stream.send(&encode_request("u"));
    assert_eq!(
        exchange.on_request_body(&proxy.worker, &stream, false),
        Action::Read
    );
    // The glue takes trailers for the body's end.
    assert_eq!(
        exchange.on_request_body(&proxy.worker, &stream, true),
        Action::Stop
    );
    assert_eq!(
        stream.replied().unwrap().body,
        encode_response(Serving::Serving)
    );
}

#[test]
fn what_is_not_asked_of_us_goes_its_way() {
    let mut config = exhausted();
    let proxy = Proxy::new(&config);
    for (method, path, kind) in [
        ("POST", "/grpc.health.v1.HealthCheck/Check", OUTER),
        ("GET", CHECK, OUTER),
        ("POST", CHECK, &b"application/grpc-web"[..]),
        ("POST", CHECK, b"application/json"),
    ] {
        let stream = SimStream::request(method, path, &[("content-type", kind)]);
        proxy.begin(&stream);
        let decision = stream.decision();
        assert_eq!(
            decision.as_deref(),
            Some("switched_off s enforce"),
            "{method} {path}: the route's"
        );
    }
    config["health"] = json!({"grpc": false});
    let proxy = Proxy::new(&config);
    let (_, stream) = call(&proxy, CHECK, &[("content-type", OUTER)], &[b"\0\0\0\0\0"]);
    assert_eq!(stream.decision().as_deref(), Some("switched_off s enforce"));
}

/// By which the outer one knows the answers of the inner one.
fn mark(proxy: &Proxy) -> String {
    let inner: [(&str, &[u8]); 1] = [("content-type", INNER)];
    let (_, inner) = call(proxy, CHECK, &inner, &[&encode_request("")]);
    inner.response_header("x-haven-health").unwrap()
}

/// A check of the whole that goes on and is answered with these headers; what refused it, if it was.
fn answered(proxy: &Proxy, headers: &[(&str, &[u8])]) -> Option<u8> {
    let stream = SimStream::request("POST", CHECK, &[("content-type", OUTER)]);
    let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
    exchange.on_request_headers(&proxy.worker, &stream, false);
    stream.send(&frame(&encode_request("")));
    exchange.on_request_body(&proxy.worker, &stream, true);
    if stream.replied().is_none() {
        stream.answer(200, Some("10.9.9.9:80"), headers);
        exchange.on_response(&proxy.worker, &stream);
        assert_eq!(stream.response_header("x-haven-health"), None);
    }
    exchange.on_end(&proxy.worker);
    stream.replied().map(|reply| reply.grpc_status.unwrap())
}

#[test]
fn where_no_bridge_answers_a_check_is_a_request_like_any_other() {
    let limited = json!({"rate_limits": {"l": {"limit": 3, "period": "1h"}}, "routes": [{"name": "r", "rate_limits": ["l"]}]});
    let proxy = Proxy::new(&limited);
    // Not even a service that claims to be one.
    for forged in [&[][..], &[("x-haven-health", &b"1"[..])]] {
        answered(&proxy, forged);
    }
    let refused = (0..20).filter(|_| answered(&proxy, &[]).is_some()).count();
    assert_eq!(refused, 19, "two counted before these");
    let warned = proxy.machine.logs();
    let warned = warned.iter().filter(|(_, line)| line.contains("no bridge"));
    assert_eq!(warned.count(), 1);
}

#[test]
fn a_check_whose_message_never_comes_goes_on_as_a_request_like_any_other() {
    let limited = json!({"rate_limits": {"l": {"limit": 1, "period": "1h"}}, "routes": [{"name": "r", "rate_limits": ["l"]}]});
    let proxy = Proxy::new(&limited);
    let statuses = [0, 1].map(|_| {
        let stream = SimStream::request("POST", CHECK, &[("content-type", OUTER)]);
        let mut exchange = Exchange::new(Rc::clone(&proxy.engine));
        let action = exchange.on_request_headers(&proxy.worker, &stream, false);
        assert_eq!(action, Action::Read);
        let action = exchange.on_resume(&proxy.worker, &stream);
        exchange.on_end(&proxy.worker);
        (
            action,
            stream.replied().map(|reply| reply.grpc_status.unwrap()),
        )
    });
    assert_eq!(
        statuses,
        [(Action::Continue, None), (Action::Stop, Some(8))]
    );
}

#[test]
fn where_a_bridge_answers_no_limit_counts_a_check() {
    let limited = json!({"rate_limits": {"l": {"limit": 2, "period": "1h"}}, "routes": [{"name": "r", "rate_limits": ["l"]}]});
    let proxy = Proxy::new(&limited);
    let mark = mark(&proxy);
    for _ in 0..20 {
        assert_eq!(
            answered(&proxy, &[("x-haven-health", mark.as_bytes())]),
            None
        );
    }
    assert_eq!(
        [0, 1].map(|_| proxy.status("/", &[])),
        [200, 429],
        "only the first has counted: it has shown that there is a bridge"
    );
    // The bridge is taken away: one finds out, and from then on all count.
    answered(&proxy, &[]);
    assert_eq!(answered(&proxy, &[]), Some(8));
}
