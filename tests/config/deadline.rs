//! Timeouts.

use haven::base::time::Nanos;
use haven::document::{DynamicTimeout, Percent, RejectBelow, RequestTimeout, Timeout};

use crate::support::{good, refuses};

#[test]
fn timeouts_are_taken_with_their_defaults() {
    let route = |text: &str| {
        good(&format!(r#"{{"routes": [{{"name": "r"{text}}}]}}"#))
            .routes
            .remove(0)
    };
    let plain = route("");
    assert_eq!(plain.timeout, Timeout::default());
    let fixed = route(
        r#", "timeout": {"request": "1s", "per_try": "200ms", "deadline_header": "X-Left", "reject_below": "20ms"}"#,
    );
    assert_eq!(
        fixed.timeout,
        Timeout {
            request: Some(RequestTimeout::Fixed(Nanos::from_secs(1))),
            per_try: Some(Nanos::from_millis(200)),
            deadline_header: Some("x-left".into()),
            reject_below: Some(RejectBelow::Time(Nanos::from_millis(20))),
        }
    );
    let dynamic = DynamicTimeout {
        quantile: Percent(9_900),
        factor: Percent(200),
        min: Nanos::from_millis(50),
        max: Nanos::from_secs(2),
    };
    let usual = route(r#", "timeout": {"request": {"dynamic": {}}, "reject_below": "p50"}"#)
        .timeout
        .clone();
    assert_eq!(usual.request, Some(RequestTimeout::Dynamic(dynamic)));
    assert_eq!(
        usual.reject_below,
        Some(RejectBelow::Quantile(Percent(5_000)))
    );
    assert_eq!(
        [fixed.timeout.request, usual.request].map(|t| t.unwrap().longest().as_millis()),
        [1_000, 2_000]
    );
    refuses(
        r#"{"routes": [{"name": "r", @}]}"#,
        &[
            (
                r#""timeout": {"request": {"dynamic": {"min": "3s"}}}"#,
                "routes[0].timeout.request.dynamic.max: \"2s\" is not allowed, want at least the \
                 min of 3s",
            ),
            (
                r#""timeout": {"reject_below": "p100"}"#,
                "routes[0].timeout.reject_below: \"p100\" is not allowed, want a duration from \
                 1ms to 1h like \"250ms\" or \"10s\" or a quantile from \"p1\" to \"p99\"",
            ),
            (
                r#""timeout": {"deadline_header": "Content-Length"}"#,
                "routes[0].timeout.deadline_header: \"content-length\" is not allowed, want a header that says nothing else: \
                 none that frames the message, not \"host\", none of Envoy's, none that tells who a client is",
            ),
            (
                r#""timeout": {"deadline_header": "Authorization"}"#,
                "routes[0].timeout.deadline_header: \"authorization\" is not allowed, want a header that says nothing else: \
                 none that frames the message, not \"host\", none of Envoy's, none that tells who a client is",
            ),
        ],
    );
}
