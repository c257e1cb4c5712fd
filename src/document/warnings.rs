//! What is valid and still likely to be a mistake.

use super::{Config, FallbackStep, Mode, RetryBudget, Route};
use crate::base::text::number;
use std::rc::Rc;

impl Config {
    /// Lines for whoever wrote the configuration, each with a path.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (at, route) in self.routes.iter().enumerate() {
            self.warn_of_kept_answers(route, &mut lines);
            let words = [per_try_of_no_use(route), retry_of_no_use(route)];
            for (field, why) in words.into_iter().flatten() {
                lines.push(
                    [
                        "routes[",
                        &number(u64::try_from(at).unwrap_or(0)),
                        "].",
                        field,
                        ": ",
                        &why,
                    ]
                    .concat(),
                );
            }
        }
        self.warn_of_unused_shares(&mut lines);
        lines
    }

    /// Fair shares of a limit that nothing uses protect nobody.
    fn warn_of_unused_shares(&self, lines: &mut Vec<String>) {
        for limit in &self.concurrency_limits {
            let is_it = |it: &Rc<_>| Rc::ptr_eq(it, limit);
            let mut of_routes = self.routes.iter().map(|it| &it.concurrency_limit);
            let mut of_upstreams = self.upstreams.iter().map(|it| &it.concurrency_limit);
            let used = of_routes.any(|it| it.as_ref().is_some_and(is_it))
                || of_upstreams.any(|it| it.as_ref().is_some_and(is_it));
            if !used && !limit.fair.is_empty() {
                let why = ".fair: does nothing: no route and no upstream names this limit";
                lines.push(["concurrency_limits.", &limit.name, why].concat());
            }
        }
    }

    /// A filter in front of haven may take away what tells clients apart, as `jwt_authn` does with
    /// `Authorization`: haven can't see that, only that nobody has said what is left.
    fn warn_of_kept_answers(&self, route: &Route, lines: &mut Vec<String>) {
        let Some(fallback) = &route.fallback else {
            return;
        };
        let mode = fallback.mode.or(route.mode).unwrap_or(self.mode);
        let said = fallback.steps.iter().all(|step| match step {
            FallbackStep::Stale(stale) => stale.public || !stale.vary.is_empty(),
            FallbackStep::Cluster(_) | FallbackStep::Respond(_) => true,
        });
        if !said && mode == Mode::Enforce {
            lines.push(
                [
                    "fallbacks.",
                    &fallback.name,
                    ".steps: route \"",
                    &route.name,
                    "\" answers with what was kept for others: name in \"vary\" the headers that \
                     tell clients apart behind your authentication filter, or say \"public\": true",
                ]
                .concat(),
            );
        }
    }
}

/// A field of a route, and why it does nothing.
type OfNoUse = Option<(&'static str, String)>;

fn per_try_of_no_use(route: &Route) -> OfNoUse {
    let (per_try, request) = (route.timeout.per_try?, route.timeout.request?);
    let why = "does nothing: it is no shorter than timeout.request";
    (per_try >= request.longest()).then(|| ("timeout.per_try", why.to_owned()))
}

fn retry_of_no_use(route: &Route) -> OfNoUse {
    let retry = route.retry.as_ref().filter(|retry| retry.attempts > 0)?;
    let none = matches!(retry.budget, RetryBudget::Share(share) if share.0 == 0);
    if none && retry.min_per_second == 0 {
        let why = "does nothing: a budget of 0 and a min_per_second of 0 allow no retry";
        return Some(("retry", why.to_owned()));
    }
    let upstream = route.upstream.as_ref()?;
    let [only] = upstream.endpoints.as_slice() else {
        return None;
    };
    let why = [
        "has no other endpoint to go to: upstream \"",
        &upstream.name,
        "\" has ",
        &only.address,
        " alone, which gets each try",
    ];
    Some(("retry", why.concat()))
}
