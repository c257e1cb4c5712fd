//! The sections whose entries have names: what references may name.

use crate::schema::NamedSection;

macro_rules! named_sections {
    ($( $type:ident = $name:literal; )*) => { $(
        #[doc = concat!("`", $name, "`")]
        #[derive(Debug)]
        pub struct $type;

        impl NamedSection for $type {
            const SECTION: &'static str = $name;
        }
    )* };
}

named_sections! {
    Upstreams = "upstreams";
    RateLimits = "rate_limits";
    CircuitBreakers = "circuit_breakers";
    ConcurrencyLimits = "concurrency_limits";
    Fallbacks = "fallbacks";
    Switches = "switches";
    Components = "components";
}
