//! What active checks do to a request, and to the health document.

use super::{Proxy, merge};
use haven::base::headers::HeaderMap;
use haven::base::time::Nanos;
use haven::host::CallAnswer;
use serde_json::{Value, json};

const ENDPOINTS: [&str; 2] = ["10.0.0.1:80", "10.0.0.2:80"];

fn config(extra: &Value) -> Value {
    let mut config = json!({
        "upstreams": {"u": {"endpoints": [{"address": ENDPOINTS[0]}, {"address": ENDPOINTS[1]}],
            "load_balancer": {"panic_threshold": 0},
            "health_check": {"interval": "1s", "interval_changing": "1s", "jitter": 0, "report": true,
                "components": {"db": {}, "search": {"critical": false}}}}},
        "fallbacks": {"f": {"steps": [{"respond": {"body": "{{reason}}"}}]}},
        "routes": [
            {"name": "s", "match": {"prefix": "/search"}, "upstream": "u", "depends_on": ["search"], "fallback": "f"},
            {"name": "b", "match": {"prefix": "/bare"}, "upstream": "u", "depends_on": ["search"]},
            {"name": "r", "upstream": "u"}]});
    merge(&mut config, extra);
    config
}

impl Proxy {
    /// Lets one round of checks be answered: by status and body, or not at all.
    fn round(&self, answers: [Option<(u16, &str)>; 2]) {
        self.machine.advance(Nanos::from_secs(1));
        // Two ticks, for the first asks are a little apart.
        for _ in 0..2 {
            self.engine.check(&self.worker, self.machine.now());
            for call in self.machine.take_outgoing() {
                let at = ENDPOINTS
                    .iter()
                    .position(|it| call.header("x-haven-upstream") == Some(it))
                    .unwrap();
                let answer = match answers[at] {
                    Some((status, body)) => CallAnswer::Http {
                        headers: HeaderMap::from_pairs(&[
                            (":status", status.to_string().as_str()),
                            ("x-envoy-upstream-service-time", "1"),
                        ]),
                        body: body.as_bytes().to_vec(),
                        size: body.len(),
                    },
                    // Envoy's own answer when a connection is refused.
                    None => CallAnswer::Http {
                        headers: HeaderMap::from_pairs(&[(":status", "503")]),
                        body: Vec::new(),
                        size: 0,
                    },
                };
                self.engine
                    .answered(&self.worker, call.id, &answer, self.machine.now());
            }
            self.machine.advance(Nanos::from_millis(60));
        }
    }

    fn rounds(&self, count: usize, answers: [Option<(u16, &str)>; 2]) {
        (0..count).for_each(|_| self.round(answers));
    }

    fn ready(&self) -> (u16, Value) {
        let reply = self.request("/readyz", &[], 200).replied().unwrap();
        let document: Value = serde_json::from_slice(&reply.body).unwrap();
        (reply.status, document["details"]["u"].clone())
    }

    /// Endpoints that requests go to.
    fn used(&self) -> [bool; 2] {
        let mut used = [false; 2];
        for _ in 0..40 {
            let list = self
                .request("/", &[], 200)
                .request_header("x-haven-upstream")
                .unwrap_or_default();
            (0..2).for_each(|at| used[at] |= list.contains(ENDPOINTS[at]));
        }
        used
    }
}

const UP: Option<(u16, &str)> = Some((
    200,
    r#"{"status": "UP", "details": {"db": "UP", "search": "UP"}}"#,
));
const NO_DB: Option<(u16, &str)> = Some((
    503,
    r#"{"status": "OUT_OF_SERVICE", "details": {"db": {"status": "DOWN", "error": "x"}, "search": "UP"}}"#,
));
const NO_SEARCH: Option<(u16, &str)> = Some((
    503,
    r#"{"status": "OUT_OF_SERVICE", "details": {"db": "UP", "search": "DOWN"}}"#,
));

#[test]
fn nothing_known_is_as_good_as_well_and_a_reload_keeps_what_is_known() {
    let proxy = Proxy::new(&config(&json!({})));
    assert_eq!(proxy.ready().0, 200);
    assert_eq!(proxy.used(), [true, true]);
    proxy.round([UP, None]);
    assert_eq!(
        proxy.ready().0,
        200,
        "one is well, of the other nothing is known yet"
    );
    assert_eq!(proxy.used(), [true, true]);
    proxy.rounds(2, [UP, None]);
    assert_eq!(proxy.used(), [true, false]);
    let (status, users) = proxy.ready();
    assert_eq!(
        (status, &users["status"], &users["critical"]),
        (200, &"UP".into(), &true.into())
    );
    assert_eq!(users.get("error"), None);
    // A configuration that changes nothing of this keeps it.
    let mut proxy = proxy;
    proxy.reload(&config(&json!({"service": "other"})));
    assert_eq!((proxy.ready().0, proxy.used()), (200, [true, false]));
}

#[test]
fn the_document_says_what_is_wrong_and_how_much_must_be_well() {
    let proxy = Proxy::new(&config(&json!({"upstreams": {"u": {"min_healthy": 60}}})));
    proxy.rounds(3, [UP, NO_DB]);
    let (status, users) = proxy.ready();
    assert_eq!((status, &users["status"]), (503, &"OUT_OF_SERVICE".into()));
    assert_eq!(
        users["error"],
        "1 of 2 endpoints available; OUT_OF_SERVICE, its db is not UP"
    );
    assert_eq!(proxy.used(), [true, false]);
    proxy.rounds(3, [None, NO_DB]);
    let (status, users) = proxy.ready();
    assert_eq!(
        (status, &users["status"]),
        (503, &"DOWN".into()),
        "the worst of them"
    );
    assert_eq!(
        users["error"],
        "0 of 2 endpoints available; DOWN, cannot be reached"
    );
    assert_eq!(proxy.request("/", &[], 200).replied().unwrap().status, 503);
    let healthy = |at: usize| {
        proxy.machine.metric(&format!(
            "haven_endpoint_healthy;upstream=u;endpoint={}",
            ENDPOINTS[at]
        ))
    };
    proxy.engine.tick(&proxy.worker);
    assert_eq!((healthy(0), healthy(1)), (0, 0));
    proxy.rounds(2, [UP, UP]);
    assert_eq!(proxy.ready().0, 200);
    proxy.engine.tick(&proxy.worker);
    assert_eq!((healthy(0), healthy(1)), (1, 1));
}

#[test]
fn a_route_is_refused_while_its_component_is_down_everywhere() {
    let proxy = Proxy::new(&config(&json!({})));
    proxy.rounds(3, [UP, NO_SEARCH]);
    assert_eq!(proxy.status("/bare", &[]), 200, "one endpoint has it");
    proxy.rounds(3, [NO_SEARCH, NO_SEARCH]);
    let refused = proxy.request("/bare", &[], 200);
    let reply = refused.replied().unwrap();
    let problem: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(
        (reply.status, &problem["reason"], &problem["policy"]),
        (503, &"no_endpoint".into(), &"search".into())
    );
    assert_eq!(
        refused.decision().as_deref(),
        Some("no_endpoint search enforce")
    );
    let calm = proxy.request("/search/x", &[], 200).replied().unwrap();
    assert_eq!(
        (calm.status, calm.body.as_slice()),
        (200, b"no_endpoint".as_slice())
    );
    assert_eq!(
        (proxy.status("/", &[]), proxy.used()),
        (200, [true, true]),
        "others go on"
    );
    assert_eq!(proxy.ready().0, 200);
    // One of them is gone: of its component nothing is known any more, and all that report are
    // without it.
    proxy.rounds(5, [None, NO_SEARCH]);
    assert_eq!(proxy.status("/bare", &[]), 503);
    proxy.rounds(2, [UP, NO_SEARCH]);
    assert_eq!(proxy.status("/bare", &[]), 200);
}

#[test]
fn a_shadow_route_only_counts_what_it_depends_on() {
    let proxy = Proxy::new(&config(&json!({"mode": "shadow"})));
    proxy.rounds(3, [NO_SEARCH, NO_SEARCH]);
    let passed = proxy.request("/bare", &[], 200);
    assert_eq!(passed.replied(), None);
    assert_eq!(
        passed.decision().as_deref(),
        Some("no_endpoint search shadow")
    );
}

#[test]
fn an_upstream_that_is_off_is_not_checked() {
    let proxy = Proxy::new(&config(&json!({"upstreams": {"u": {"mode": "off"}}})));
    assert_eq!(proxy.engine.check(&proxy.worker, proxy.machine.now()), None);
    assert_eq!(proxy.ready().0, 200);
}
