//! What is valid and still likely to be a mistake.

use super::{Config, FallbackStep, Mode, Route};

impl Config {
    /// Lines for whoever wrote the configuration, each with a path.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for route in &self.routes {
            self.warn_of_kept_answers(route, &mut lines);
        }
        lines
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
