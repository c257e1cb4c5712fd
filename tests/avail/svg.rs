//! The picture of a round: for each scenario a bar for each of the three.

use std::fmt::Write as _;

/// A scenario's bars.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What stands left of them.
    pub title: String,
    /// Of each of the three: percent useful, percent answered.
    pub bars: [(f64, f64); 3],
}

const LEFT: f64 = 270.0;
const WIDTH: f64 = 470.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 74.0;
const BAR: f64 = 11.0;
const GROUP: f64 = 3.0 * BAR + 12.0;
/// A full and a pale colour for each of the three.
const COLOURS: [(&str, &str); 3] = [
    ("#8a8f98", "#d9dbdf"),
    ("#3b7dc4", "#c4d9ef"),
    ("#1f8a4c", "#bfe3cd"),
];

/// The picture, as a document of its own. `names` are of the three, in the bars' order.
pub fn picture(title: &str, names: [&str; 3], groups: &[Group]) -> String {
    let height = TOP + GROUP * groups.len() as f64 + 24.0;
    let full = LEFT + WIDTH + RIGHT;
    let mut svg = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing into a text never fails.
        let _ = writeln!(svg, "{text}");
    };
    line(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {full} {height}\" \
         width=\"{full}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#1c1e21\">"
    ));
    line(format_args!(
        "<rect width=\"{full}\" height=\"{height}\" fill=\"#ffffff\"/>"
    ));
    line(format_args!(
        "<text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>",
        escaped(title)
    ));
    for (index, (name, (colour, _))) in names.iter().zip(COLOURS).enumerate() {
        let x = LEFT + 90.0 * index as f64;
        line(format_args!(
            "<rect x=\"{x}\" y=\"38\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"48\">{}</text>",
            x + 17.0,
            escaped(name)
        ));
    }
    line(format_args!(
        "<text x=\"{}\" y=\"48\" fill=\"#5b6067\">pale: answered by fallbacks</text>",
        LEFT + 90.0 * 3.0
    ));
    for percent in [0.0, 25.0, 50.0, 75.0, 100.0] {
        let x = LEFT + WIDTH * percent / 100.0;
        line(format_args!(
            "<line x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{}\" stroke=\"#e4e6e9\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" fill=\"#5b6067\">{percent} %</text>",
            TOP - 6.0,
            height - 20.0,
            height - 6.0
        ));
    }
    for (index, group) in groups.iter().enumerate() {
        let y = TOP + GROUP * index as f64;
        line(format_args!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 10.0,
            y + 1.5 * BAR + 4.0,
            escaped(&group.title)
        ));
        for (row, ((useful, answered), (colour, pale))) in
            group.bars.iter().zip(COLOURS).enumerate()
        {
            let y = y + BAR * row as f64;
            for (percent, fill) in [(answered, pale), (useful, colour)] {
                line(format_args!(
                    "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{fill}\"/>",
                    WIDTH * bounded(*percent) / 100.0,
                    BAR - 1.0
                ));
            }
            line(format_args!(
                "<text x=\"{:.1}\" y=\"{}\" font-size=\"10\">{:.1}</text>",
                LEFT + WIDTH * bounded(answered.max(*useful)) / 100.0 + 4.0,
                y + BAR - 2.0,
                bounded(*useful)
            ));
        }
    }
    line(format_args!("</svg>"));
    svg
}

/// A percentage that can be drawn.
fn bounded(percent: f64) -> f64 {
    if percent.is_finite() {
        percent.clamp(0.0, 100.0)
    } else {
        0.0
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(groups: &[Group]) -> String {
        picture("Useful & <real>", ["a", "b", "c"], groups)
    }

    #[test]
    fn each_bar_is_as_long_as_its_share() {
        let group = Group {
            title: "all < none".to_owned(),
            bars: [(50.0, 100.0), (0.0, 0.0), (f64::NAN, 250.0)],
        };
        let svg = drawn(std::slice::from_ref(&group));
        let bars: Vec<_> = svg
            .lines()
            .filter(|line| {
                line.starts_with(&format!("<rect x=\"{LEFT}\" y=\"")) && !line.contains("y=\"38\"")
            })
            .filter_map(|line| line.split("width=\"").nth(1)?.split('"').next())
            .collect();
        assert_eq!(bars, ["470.0", "235.0", "0.0", "0.0", "470.0", "0.0"]);
        assert!(svg.contains("all &lt; none") && svg.contains("Useful &amp; &lt;real&gt;"));
    }

    #[test]
    fn every_element_is_closed_and_within_the_picture() {
        let group = Group {
            title: "x".to_owned(),
            bars: [(100.0, 100.0); 3],
        };
        let svg = drawn(&vec![group; 13]);
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        let texts = svg.matches("<text ").count();
        assert_eq!(texts, svg.matches("</text>").count());
        let rects = svg.matches("<rect ").count();
        assert_eq!(
            rects + svg.matches("<line ").count(),
            svg.matches("/>").count()
        );
        let height = TOP + GROUP * 13.0 + 24.0;
        assert!(svg.contains(&format!("height=\"{height}\"")));
        assert!(TOP + GROUP * 12.0 + 3.0 * BAR < height - 20.0);
    }
}
