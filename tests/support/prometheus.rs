//! Envoy's Prometheus page, parsed.

use std::collections::BTreeMap;

/// A line of the page.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// All lines of the page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// In the page's order.
    pub series: Vec<Series>,
}

impl Metrics {
    /// Parses a page; panics on a line that is none of the format.
    pub fn parse(page: &str) -> Self {
        let lines = page
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| {
            parse_line(line).unwrap_or_else(|| panic!("no line of Prometheus: {line:?}"))
        });
        Self {
            series: series.collect(),
        }
    }

    /// The series of a metric that carry all of `labels`.
    pub fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| {
            series.name == name
                && labels
                    .iter()
                    .all(|(k, v)| series.labels.get(*k).is_some_and(|have| have == v))
        })
    }

    /// The sum over the series of a metric that carry all of `labels`; `None` if there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.matching(name, labels)
            .map(|series| series.value)
            .reduce(|a, b| a + b)
    }

    /// As [`Metrics::metric`], a missing one being 0.
    pub fn total(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metric(name, labels).unwrap_or(0.0)
    }
}

fn parse_line(line: &str) -> Option<Series> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches(',');
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            rest = after;
        }
    }
    // A time stamp may follow the value.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Series {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// A label's value up to its closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_parsed_with_its_odd_values() {
        let page = "# TYPE a counter\na{} 1\na{l=\"x,y={}\"} 2\n\na{l=\"q\\\"\\\\\\n\",m=\"10.0.0.1:80\"} 4 1700000000\nb +Inf\n";
        let metrics = Metrics::parse(page);
        assert_eq!(metrics.metric("a", &[]), Some(7.0));
        assert_eq!(metrics.metric("a", &[("l", "x,y={}")]), Some(2.0));
        assert_eq!(
            metrics.metric("a", &[("l", "q\"\\\n"), ("m", "10.0.0.1:80")]),
            Some(4.0)
        );
        assert_eq!(metrics.metric("b", &[]), Some(f64::INFINITY));
        assert_eq!(metrics.metric("c", &[]), None);
        assert_eq!(metrics.total("c", &[]), 0.0);
    }
}
