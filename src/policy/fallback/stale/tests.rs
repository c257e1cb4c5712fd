use super::*;
use crate::host::Clock;
use crate::host::sim::{HostKind, Machine, Worker};

mod ages;
mod apart;
mod bounds;

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// What the clocks of a new machine say: Fri, 15 Jan 2027 08:00:00 GMT.
const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn config() -> config::Stale {
    config::Stale {
        max_age: Nanos::from_secs(300),
        max_body: 64,
        vary: vec![],
        public: false,
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
        let machine = Machine::new(HostKind::Envoy, 1);
        Self {
            machine,
            stale: Stale::new("f", config, Seed(1, 2)),
            tickets: Cell::new(1),
        }
    }

    fn request(&self, method: &str, path: &str, headers: Pairs<'_>) -> Option<StaleRequest> {
        let first = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "A.example:80"),
            (":path", path),
        ];
        let headers = map(&first, headers);
        let mut request = Request::new(&headers);
        request.route = "r";
        self.stale.ask(&request, true)
    }

    fn get(&self, path: &str, headers: Pairs<'_>) -> StaleRequest {
        self.request("GET", path, headers)
            .expect("a request that may be answered from here")
    }

    /// Whether the response was kept.
    fn keep(&self, asked: &StaleRequest, response: Pairs<'_>, body: &[u8]) -> bool {
        self.keep_for(None, asked, response, body)
    }

    fn keep_for(
        &self,
        client: Option<Ip>,
        asked: &StaleRequest,
        response: Pairs<'_>,
        body: &[u8],
    ) -> bool {
        let headers = map(
            &[(":status", "200"), ("transfer-encoding", "chunked")],
            response,
        );
        let wall = || Worker(Rc::clone(&self.machine)).wall();
        let begun = self.stale.begin(asked, &headers, self.machine.now(), wall);
        let Ok(Some(draft)) = begun else {
            return false;
        };
        let draft = draft.of_client(client);
        let Ok(draft) = self.stale.add(draft, body) else {
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
        (&[], &[("cache-control", "private; max-age=60")], false),
        (&[], &[("cache-control", "max-age=60;no-store")], false),
        (&[], &[("pragma", "no-cache")], false),
        (
            &[],
            &[("pragma", "no-cache"), ("cache-control", "max-age=60")],
            true,
        ),
        (&[], &[("expires", "0")], false),
        (
            &[],
            &[("expires", "-1"), ("cache-control", "public")],
            false,
        ),
        (
            &[],
            &[("expires", "0"), ("cache-control", "max-age=60")],
            true,
        ),
        (
            &[],
            &[
                ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                ("expires", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ],
            false,
        ),
        (
            &[],
            &[
                ("date", "Fri, 15 Jan 2027 07:59:59 GMT"),
                ("expires", "Fri, 15 Jan 2027 08:00:00 GMT"),
            ],
            true,
        ),
        // As old as 33 years, whoever kept it so long.
        (&[], &[("date", "Sun, 06 Nov 1994 08:49:37 GMT")], false),
        // The proxy's clock says 08:00.
        (&[], &[("date", "Fri, 15 Jan 2027 07:55:01 GMT")], true),
        (&[], &[("date", "Fri, 15 Jan 2027 07:54:59 GMT")], false),
        (&[], &[("date", "Fri, 15 Jan 2100 08:00:00 GMT")], true),
        (&[], &[("date", "yesterday")], true),
        // Nothing to count from.
        (&[], &[("expires", "Fri, 15 Jan 2100 08:00:00 GMT")], false),
        (
            &[],
            &[
                ("date", "yesterday"),
                ("expires", "Fri, 15 Jan 2100 08:00:00 GMT"),
            ],
            false,
        ),
        (
            &[],
            &[
                ("date", "Fri, 15 Jan 2027 07:59:50 GMT"),
                ("expires", "Fri, 15 Jan 2027 08:00:00 GMT"),
                ("cache-control", "must-revalidate"),
            ],
            false,
        ),
        (&[], &[("cdn-cache-control", "no-store")], false),
        (
            &[],
            &[("surrogate-control", "content=\"ESI/1.0\", no-store")],
            false,
        ),
        (&[], &[("cdn-cache-control", "max-age=60")], true),
        (&[], &[("cloudflare-cdn-cache-control", "private")], false),
        (&[], &[("x-accel-expires", "0")], false),
        (&[], &[("x-accel-expires", "60")], true),
        (&[], &[("authentication-info", "nextnonce=\"x\"")], false),
        (&[], &[("x-auth-token", "t")], false),
        (&[], &[("x-csrf-token", "t")], false),
        (&[], &[("x-id-token", "t")], false),
        (&[], &[("access-token", "t")], false),
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
        let asked = proxy.request("GET", "/", request);
        let is_kept = asked.is_some_and(|asked| proxy.keep(&asked, response, b""));
        assert_eq!(is_kept, *kept, "{request:?} {response:?}");
    }
    let proxy = Proxy::new(config());
    for status in ["201", "203", "204", "206", "301", "304", "404", "500", ""] {
        let headers = map(&[(":status", status)], &[]);
        assert!(
            proxy
                .stale
                .begin(&proxy.get("/", &[]), &headers, Moment::ZERO, || NOW)
                .unwrap()
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
        assert!(proxy.request(method, "/", &[]).is_none(), "{method}");
    }
    let head = proxy.request("HEAD", "/", &[]).unwrap();
    assert!(!proxy.keep(&head, &[], b""));
    assert!(proxy.keep(&proxy.get("/", &[]), &[], b"body"));
    assert_eq!(proxy.body(&head).as_deref(), Some(&b"body"[..]));
    assert!(
        proxy
            .request("GET", "/", &[("content-type", "application/grpc")])
            .is_none()
    );
    assert!(
        proxy
            .request("GET", "/", &[("authorization", "x")])
            .is_none(),
        "nor is who shows himself answered"
    );
}

#[test]
fn route_scheme_host_path_and_query_separate_responses() {
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
        proxy.stale.ask(&request, true).unwrap().key
    };
    let one = request("r", "http", "a.example", "/p?q=1");
    assert_eq!(one, request("r", "http", "A.Example", "/p?q=1#fragment"));
    assert_eq!(one, request("r", "http", "a.example.:80", "/p?q=1"));
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
            .request("GET", &"/".repeat(config::Stale::HEAD), &[])
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
