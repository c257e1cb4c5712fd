//! Retries.

use haven::document::{Retry, RetryBudget};

use crate::support::{good, refuses};

#[test]
fn retries_are_taken_with_their_defaults() {
    let route = |text: &str| {
        good(&format!(r#"{{"routes": [{{"name": "r"{text}}}]}}"#))
            .routes
            .remove(0)
    };
    assert_eq!(route("").retry, None);
    let retry = route(r#", "retry": {}"#).retry.clone().unwrap();
    assert_eq!(
        retry,
        Retry {
            attempts: 1,
            on: "connect-failure,reset,gateway-error".into(),
            grpc_on: String::new(),
            methods: ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]
                .map(str::to_owned)
                .into(),
            budget: RetryBudget::Auto,
            min_per_second: 3,
        }
    );
    let retry = route(r#", "retry": {"on": ["unavailable", "5xx", "internal"], "attempts": 0}"#)
        .retry
        .clone()
        .unwrap();
    assert_eq!(
        (retry.on.as_str(), retry.grpc_on.as_str(), retry.attempts),
        ("5xx", "unavailable,internal", 0)
    );
    refuses(
        r#"{"routes": [{"name": "r", @}]}"#,
        &[(
            r#""retry": {"methods": []}"#,
            "routes[0].retry.methods: [] is not allowed, want a list of 1 to 32 items, each an \
             HTTP method",
        )],
    );
}
