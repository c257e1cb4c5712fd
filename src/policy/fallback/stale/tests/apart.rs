//! What tells kept responses apart without a `Vary`, and what is left out.

use super::*;

#[test]
fn who_comes_with_another_identity_gets_nothing_of_it_unless_it_is_public() {
    for name in [
        "X-API-Key",
        "x-auth-token",
        "proxy-authorization",
        "x-forwarded-client-cert",
        "x-sub",
        "x-user-id",
        // Behind Google's, Cloudflare's, Azure's and Kong's gateways, and oauth2-proxy.
        "x-goog-iap-jwt-assertion",
        "cf-access-jwt-assertion",
        "x-ms-client-principal",
        "x-consumer-id",
        "x-forwarded-access-token",
    ] {
        let proxy = Proxy::new(config());
        let (a, b) = (&[(name, "a")][..], &[(name, "b")][..]);
        assert!(proxy.keep(&proxy.get("/", a), &[], b"a's"));
        assert_eq!(proxy.body(&proxy.get("/", b)), None, "{name}");
        assert_eq!(proxy.body(&proxy.get("/", &[])), None, "{name}");
        assert_eq!(proxy.body(&proxy.get("/", a)).unwrap(), b"a's", "{name}");
        let proxy = Proxy::new(config::Stale {
            public: true,
            ..config()
        });
        assert!(proxy.keep(&proxy.get("/", a), &[], b"all"));
        assert_eq!(proxy.body(&proxy.get("/", b)).unwrap(), b"all", "{name}");
        assert!(
            proxy
                .request("GET", "/", &[("authorization", "x")])
                .is_none(),
            "left out all the same"
        );
    }
}

#[test]
fn what_a_client_steers_the_service_with_is_no_ones_else() {
    for public in [false, true] {
        let proxy = Proxy::new(config::Stale { public, ..config() });
        for name in [
            "X-Forwarded-Host",
            "x-original-url",
            "forwarded",
            "x-http-method-override",
        ] {
            let odd = proxy.get("/", &[(name, "evil.example")]);
            assert!(proxy.keep(&odd, &[], b"links to evil"));
            assert_eq!(proxy.body(&proxy.get("/", &[])), None, "{name}");
        }
    }
}

#[test]
fn a_request_with_a_body_is_neither_kept_nor_answered() {
    let proxy = Proxy::new(config());
    let headers = map(
        &[(":method", "GET"), (":authority", "a"), (":path", "/")],
        &[],
    );
    assert!(proxy.stale.ask(&Request::new(&headers), true).is_some());
    assert!(proxy.stale.ask(&Request::new(&headers), false).is_none());
}

#[test]
fn an_encoding_is_for_those_who_asked_for_it() {
    let proxy = Proxy::new(config());
    let zipped = proxy.get("/", &[("accept-encoding", "gzip")]);
    assert!(proxy.keep(&zipped, &[("content-encoding", "gzip")], b"zz"));
    assert_eq!(proxy.body(&proxy.get("/", &[])), None);
    assert_eq!(proxy.body(&zipped).unwrap(), b"zz");
}

#[test]
fn a_body_that_ends_with_its_connection_may_have_been_cut() {
    let proxy = Proxy::new(config());
    let asked = proxy.get("/", &[]);
    let begin = || {
        let headers = map(&[(":status", "200")], &[]);
        proxy
            .stale
            .begin(&asked, &headers, Moment::ZERO, || NOW)
            .unwrap()
            .unwrap()
    };
    let added = proxy.stale.add(begin(), b"half");
    assert_eq!(added.err(), Some(rules::Unkept::NoEnd));
    let worker = Worker(Rc::clone(&proxy.machine));
    let whole = proxy.stale.keep(&worker, &asked, &begin(), 1).unwrap();
    assert!(whole.is_some(), "it has none");
}

#[test]
fn long_lists_are_not_worth_the_work() {
    let proxy = Proxy::new(config());
    let asked = proxy.get("/", &[]);
    let names: Vec<_> = (0..9_000).map(|n| format!("x-{n}")).collect();
    assert!(!proxy.keep(&asked, &[("vary", &names.join(","))], b""));
    assert!(proxy.keep(&asked, &[("vary", &names[..30].join(","))], b""));
    let directives = "max-age=1,".repeat(9_000);
    assert!(!proxy.keep(&asked, &[("cache-control", &directives)], b""));
}
