//! Concurrency limits, and what is shed first.

use std::rc::Rc;

use haven::document::{ConcurrencyAlgorithm, Criticality, Mode};

use crate::support::{good, refused};

#[test]
fn concurrency_limits_are_read_with_their_bounds() {
    let config = good(
        r#"{"concurrency_limits": {"usual": {}, "small": {"max_limit": 10}, "large": {"algorithm": "adaptive", "min_limit": 50},
                                   "given": {"algorithm": "fixed", "limit": 7, "mode": "shadow"}},
            "upstreams": {"u": {"concurrency_limit": "given"}},
            "routes": [{"name": "r", "concurrency_limit": "usual", "criticality": "sheddable"}, {"name": "s", "upstream": "u"}]}"#,
    );
    let adaptive = |min, max, initial| ConcurrencyAlgorithm::Adaptive { min, max, initial };
    assert_eq!(
        config
            .concurrency_limits
            .iter()
            .map(|c| (c.name.as_str(), c.mode, c.algorithm))
            .collect::<Vec<_>>(),
        [
            ("usual", None, adaptive(3, 1000, 20)),
            ("small", None, adaptive(3, 10, 10)),
            ("large", None, adaptive(50, 1000, 50)),
            (
                "given",
                Some(Mode::Shadow),
                ConcurrencyAlgorithm::Fixed { limit: 7 }
            ),
        ]
    );
    let limits = &config.concurrency_limits;
    let used = config.upstreams[0].concurrency_limit.as_ref().unwrap();
    assert!(Rc::ptr_eq(used, &limits[3]));
    let used = config.routes[0].concurrency_limit.as_ref().unwrap();
    assert!(Rc::ptr_eq(used, &limits[0]));
    assert_eq!(
        config
            .routes
            .iter()
            .map(|r| r.criticality)
            .collect::<Vec<_>>(),
        [Criticality::Sheddable, Criticality::Critical]
    );
    refused(
        r#"{"concurrency_limits": {"a": {"initial_limit": 2}, "b": {"max_limit": 10, "initial_limit": 11}, "c": {"limit": 0}}}"#,
        &[
            "concurrency_limits.a.initial_limit: 2 is not allowed, want an integer from the \
             min_limit of 3 to the max_limit of 1000",
            "concurrency_limits.b.initial_limit: 11 is not allowed, want an integer from the \
             min_limit of 3 to the max_limit of 10",
            "concurrency_limits.c.limit: 0 is not allowed, want an integer from 1 to 1000000",
        ],
    );
}
