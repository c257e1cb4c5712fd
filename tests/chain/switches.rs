//! Kill switches.

use super::*;

fn switched(state: &str, more: &Value) -> Value {
    let mut route =
        json!({"name": "r", "match": {"prefix": "/api"}, "switch": "s", "rate_limits": ["l"]});
    route
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    json!({
        "switches": {"s": state},
        "rate_limits": {"l": {"limit": 1, "period": "1h"}},
        "fallbacks": {"f": {"steps": [{"respond": {"body": "{{reason}}"}}]}},
        "routes": [route, {"name": "other", "rate_limits": []}]
    })
}

#[test]
fn off_answers_at_once_and_spends_nothing() {
    let mut proxy = Proxy::new(&switched("off", &json!({})));
    for _ in 0..3 {
        let refused = proxy.request("/api", &[], 200);
        let reply = refused.replied().unwrap();
        assert_eq!(
            (reply.status, refused.decision().as_deref()),
            (503, Some("switched_off s enforce"))
        );
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(
            (&body["reason"], &body["policy"]),
            (&"switched_off".into(), &"s".into())
        );
        assert!(
            reply.headers.iter().all(|(name, _)| *name != "retry-after"),
            "it is unknown when it is on again"
        );
    }
    assert_eq!(
        proxy
            .machine
            .metric("haven_decisions_total;route=r;policy=s;reason=switched_off;mode=enforce"),
        3
    );
    assert_eq!(proxy.machine.metric("haven_switch_on;switch=s"), 0);
    assert_eq!(proxy.status("/elsewhere", &[]), 200, "other routes stay");
    proxy.reload(&switched("on", &json!({})));
    assert_eq!(proxy.machine.metric("haven_switch_on;switch=s"), 1);
    assert_eq!(
        proxy.status("/api", &[]),
        200,
        "the limit's only token is still there"
    );
    assert_eq!(proxy.status("/api", &[]), 429);
}

#[test]
fn off_is_answered_by_the_fallback_and_on_grpc_by_a_status() {
    let proxy = Proxy::new(&switched("off", &json!({"fallback": "f"})));
    let reply = proxy.request("/api", &[], 200).replied().unwrap();
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (200, &b"switched_off"[..])
    );
    let proxy = Proxy::new(&switched("off", &json!({})));
    let reply = proxy
        .request("/api", &[("content-type", b"application/grpc")], 200)
        .replied()
        .unwrap();
    assert_eq!(reply.grpc_status, Some(14));
}

#[test]
fn a_shadow_route_only_tells_and_a_route_that_is_off_does_not_look() {
    let proxy = Proxy::new(&switched("off", &json!({"mode": "shadow"})));
    let passed = proxy.request("/api", &[], 200);
    assert!(passed.replied().is_none());
    assert!(
        passed
            .decision()
            .unwrap()
            .starts_with("switched_off s shadow")
    );
    let proxy = Proxy::new(&switched("off", &json!({"mode": "off"})));
    let passed = proxy.request("/api", &[], 200);
    assert_eq!(
        (passed.replied().is_none(), passed.decision()),
        (true, None)
    );
}
