//! What haven is to reach in each scenario, and by how much it does not.

use super::kind::Kind;
use super::stats::Measures;

/// One number of a scenario and what it is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What is measured, and its bound.
    pub text: String,
    /// What it was; none: it never came to be.
    pub got: Option<f64>,
    /// By how much it is missed; 0 if it is met.
    pub missed_by: f64,
}

impl Target {
    fn least(name: &str, bound: f64, got: f64) -> Self {
        Self {
            text: format!("{name} ≥ {}", rounded(bound)),
            got: Some(got),
            // A share of some hundred requests has no more digits than these.
            missed_by: (bound - got).max(0.0),
        }
    }

    fn most(name: &str, bound: f64, got: Option<f64>) -> Self {
        Self {
            text: format!("{name} ≤ {}", rounded(bound)),
            got,
            missed_by: got.map_or(f64::INFINITY, |got| (got - bound).max(0.0)),
        }
    }

    /// In a word or some.
    pub fn verdict(&self) -> String {
        match self.missed_by {
            0.0 => "met".to_owned(),
            by if by.is_finite() => format!("missed by {}", rounded(by).max(0.01)),
            _ => "missed".to_owned(),
        }
    }

    /// The number that came, for a table.
    pub fn got(&self) -> String {
        self.got
            .map_or_else(|| "not".to_owned(), |got| rounded(got).to_string())
    }
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// The targets of a scenario, with what plain Envoy and haven came to.
pub fn targets(kind: Kind, plain: &Measures, haven: &Measures) -> Vec<Target> {
    let useful = |bound| Target::least("useful %", bound, haven.useful);
    let tries = |bound| Target::most("tries a request", bound, Some(haven.tries));
    match kind {
        Kind::Dead
        | Kind::Hanging
        | Kind::Slow
        | Kind::Flapping
        | Kind::HalfFailing
        | Kind::RollingRestart => vec![useful(99.9)],
        // Of 33.3 that can be had.
        Kind::Overload => vec![
            useful(32.0),
            Target::least("critical useful %", 62.0, haven.critical),
        ],
        Kind::AllSlower => vec![Target::least(
            "useful % (plain less 0.5)",
            plain.useful - 0.5,
            haven.useful,
        )],
        Kind::StormWithRoom => vec![useful(70.0), tries(2.0)],
        Kind::StormWithoutRoom => vec![tries(1.25)],
        Kind::Abuser => vec![useful(99.0)],
        Kind::BadRoute => vec![useful(100.0), tries(1.02)],
        Kind::Outage => vec![
            Target::least("answered %", 100.0, haven.answered),
            Target::most("p99 of answers, ms", 20.0, haven.p99),
            Target::most("well again after, s", 1.0, haven.recovery),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_says_by_how_much_it_is_missed() {
        let haven = Measures {
            useful: 64.5,
            tries: 1.9,
            ..Measures::default()
        };
        let all = targets(Kind::StormWithRoom, &Measures::default(), &haven);
        let words: Vec<_> = all.iter().map(Target::verdict).collect();
        assert_eq!(words, ["missed by 5.5", "met"]);
        assert_eq!(all[0].text, "useful % ≥ 70");
        assert_eq!(all[0].got(), "64.5");
        let all = targets(Kind::Outage, &Measures::default(), &haven);
        let words: Vec<_> = all.iter().map(Target::verdict).collect();
        assert_eq!(words, ["missed by 100", "missed", "missed"]);
        assert_eq!(all[2].got(), "not");
    }

    #[test]
    fn each_scenario_has_a_target() {
        let all = Measures::default();
        assert!(
            Kind::ALL
                .iter()
                .all(|kind| !targets(*kind, &all, &all).is_empty())
        );
    }
}
