//! A fallback as it is configured.

use crate::policy::fallback::stale::config::Stale;
use crate::policy::mode::Mode;
use crate::request::Reason;
use crate::request::reserved::FRAMING;
use crate::schema::template::{self, Piece};
use crate::schema::units::show_span;
use crate::schema::{
    Decode, Errors, HeaderName, HeaderValue, Int16, Json, Label, List, Map, One, Path, Schema, Set,
    choice, section,
};

/// What is answered instead of a refusal or a failure.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    /// Its name.
    pub name: String,
    /// Its own mode.
    pub mode: Option<Mode>,
    /// The reasons it answers for.
    pub on: Vec<Reason>,
    /// Tried in this order.
    pub steps: Vec<FallbackStep>,
}

/// One step of a fallback.
#[derive(Clone, Debug, PartialEq)]
pub enum FallbackStep {
    /// The last good response.
    Stale(Stale),
    /// Another of Envoy's clusters.
    Cluster(String),
    /// A fixed answer.
    Respond(Respond),
}

/// A piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// Itself.
    Literal(String),
    /// `{{request_id}}`
    RequestId,
    /// `{{retry_after}}`, whole seconds.
    RetryAfter,
    /// `{{reason}}`
    Reason,
    /// `{{route}}`
    Route,
}

section! {
    /// What is answered instead of a refusal or a failure.
    FallbackSection {
        /// Its mode.
        mode: Option<Mode> = Absent("the route's, then the top level's");
        /// The reasons it answers for; `upstream_error` is a 5xx, a reset, a refused or a cut
        /// connection.
        on: Set<FallbackReason, 1, 8> = Default(concat!(
            r#"["overload", "circuit_open", "no_endpoint", "deadline", "switched_off", "#,
            r#""upstream_error", "timeout"]"#
        ));
        /// Tried in this order.
        steps: List<One<StepSection>, 1, 8> = Required;
    }
}

choice! {
    /// The words for the reasons of a fallback.
    FallbackReason -> Reason {
        "rate_limited" => Reason::RateLimited,
        "overload" => Reason::Overload,
        "circuit_open" => Reason::CircuitOpen,
        "no_endpoint" => Reason::NoEndpoint,
        "deadline" => Reason::Deadline,
        "switched_off" => Reason::SwitchedOff,
        "upstream_error" => Reason::UpstreamError,
        "timeout" => Reason::Timeout,
    }
}

section! {
    /// One step of a fallback.
    StepSection {
        /// The last good response of this route to the same GET, for GET and HEAD. At most one such
        /// step.
        stale: Option<Stale> = Absent("");
        /// A fixed answer; it always answers, so it stands last.
        respond: Option<Respond> = Absent("");
        /// Another of Envoy's clusters, for a request that has not been sent yet; if it fails as
        /// well, the steps that follow answer. At most one such step. The routes that use it need
        /// an `upstream`, and in Envoy `cluster_header: x-haven-cluster`, which then carries the
        /// upstream's `cluster` or this one.
        cluster: Option<Label> = Absent("");
    }
}

section! {
    /// A fixed answer.
    Respond {
        /// HTTP status.
        status: Int16<200, 599> = Default("200");
        /// Headers besides `content-type`.
        headers: Map<HeaderName, HeaderValue, 64> = Default("{}");
        /// Type of the body.
        content_type: HeaderValue = Default("\"text/plain; charset=utf-8\"");
        /// The body, with `{{request_id}}`, `{{retry_after}}`, `{{reason}}` and `{{route}}`; what
        /// does not apply is empty.
        body: Template = Default("\"\"");
    }
}

/// A body of at most 64 KiB with placeholders.
#[derive(Debug)]
pub struct Template;

impl Decode for Template {
    const SCHEMA: &'static Schema =
        &Schema::Template(&["request_id", "retry_after", "reason", "route"]);

    type Value = Vec<TemplatePart>;

    fn decode(json: &Json) -> Self::Value {
        let Json::String(text) = json else {
            return Vec::new();
        };
        let part = |piece| match piece {
            Piece::Literal("") => None,
            Piece::Literal(text) => Some(TemplatePart::Literal(text.into())),
            Piece::Placeholder { name, .. } => match name? {
                "request_id" => Some(TemplatePart::RequestId),
                "retry_after" => Some(TemplatePart::RetryAfter),
                "reason" => Some(TemplatePart::Reason),
                "route" => Some(TemplatePart::Route),
                _ => None,
            },
        };
        template::pieces(text)
            .into_iter()
            .filter_map(part)
            .collect()
    }
}

impl Fallback {
    /// Whether it has a cluster step.
    pub(crate) fn sends_on(&self) -> bool {
        let is_cluster = |step: &FallbackStep| matches!(step, FallbackStep::Cluster(_));
        self.steps.iter().any(is_cluster)
    }
}

impl FallbackSection {
    /// The fallback of this name, with the errors that span its fields.
    #[inline(never)]
    pub(crate) fn compile(self, at: &Path<'_>, name: String, errors: &mut Errors) -> Fallback {
        let steps_at = at.key("steps");
        let last = self.steps.len().saturating_sub(1);
        let mut steps: Vec<FallbackStep> = Vec::new();
        for (i, step) in self.steps.into_iter().enumerate() {
            let at = steps_at.index(i);
            if let Some(stale) = step.stale {
                let at = at.key("stale");
                stale.check(&at, errors);
                if steps
                    .iter()
                    .any(|step| matches!(step, FallbackStep::Stale(_)))
                {
                    let max_age = show_span(stale.max_age);
                    errors.refuse_text(&at.key("max_age"), &max_age, "one stale step only");
                }
                steps.push(FallbackStep::Stale(stale));
            } else if let Some(cluster) = step.cluster {
                if steps
                    .iter()
                    .any(|step| matches!(step, FallbackStep::Cluster(_)))
                {
                    let want = "one cluster step only: a request is sent on once";
                    errors.refuse_text(&at.key("cluster"), &cluster, want);
                }
                steps.push(FallbackStep::Cluster(cluster));
            } else if let Some(respond) = step.respond {
                let at = at.key("respond");
                if i < last {
                    let status = u64::from(respond.status);
                    let want = "a respond step only at the end: it always answers";
                    errors.refuse_number(&at.key("status"), status, want);
                }
                respond.check(&at, errors);
                steps.push(FallbackStep::Respond(respond));
            }
        }
        Fallback {
            name,
            mode: self.mode,
            on: self.on,
            steps,
        }
    }
}

impl Respond {
    fn check(&self, at: &Path<'_>, errors: &mut Errors) {
        for (name, _) in &self.headers {
            if FRAMING.contains(&name.as_str()) {
                let want = ["a header name that is none of ", &FRAMING.join(", ")].concat();
                errors.refuse_text(&at.key("headers"), name, &want);
            }
        }
        if let (204 | 205 | 304, false) = (self.status, self.body.is_empty()) {
            let want = "a status that may have a body";
            errors.refuse_number(&at.key("status"), u64::from(self.status), want);
        }
    }
}
