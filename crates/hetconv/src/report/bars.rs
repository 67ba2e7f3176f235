//! Two quantities for each of many things, as bars: what layers cost before and after.

use std::fmt::Write;

use super::Drawing;
use super::html::escape;
use super::svg::{LINE, rect, text, width_of};
use crate::units;

/// Width of a drawing in its own units.
const WIDTH: f64 = 480.0;
const BAR: f64 = 8.0;
const ROW: f64 = 2.0 * BAR + 6.0;

/// Pairs of bars, one pair below the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// What is shown.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// What the first and the second bar of each pair are.
    pub names: [String; 2],
    /// Name of each pair, and its two counts.
    pub rows: Vec<(String, [u64; 2])>,
}

impl Bars {
    /// The drawing, or nothing without a row.
    pub fn draw(self) -> Option<Drawing> {
        let most = self.rows.iter().flat_map(|(_, counts)| *counts).max().filter(|&most| most > 0)?;
        let longest = self.rows.iter().map(|(name, _)| width_of(name)).fold(0.0, f64::max);
        let left = (longest + 8.0).min(WIDTH / 2.5);
        // A count stands behind its bar.
        let length = |count: u64| (WIDTH - left - 66.0) * count as f64 / most as f64;
        let mut svg = String::new();
        for (which, name) in self.names.iter().enumerate() {
            let y = LINE * which as f64;
            let _ = writeln!(svg, "<g class=\"s{which}\">");
            rect(&mut svg, ["bar full", "bar outlined"][1 - which], [left, y + 5.0], [24.0, BAR]);
            svg.push_str("</g>\n");
            text(&mut svg, "label", "start", [left + 30.0, y + 14.0], name);
        }
        let top = 2.0 * LINE + 6.0;
        for (i, (name, counts)) in self.rows.iter().enumerate() {
            let y = top + ROW * i as f64;
            text(&mut svg, "tick", "end", [left - 8.0, y + BAR + 5.0], name);
            for (which, &count) in counts.iter().enumerate() {
                let (at, length) = (y + BAR * which as f64, length(count));
                let tip = escape(&format!("{name}, {}: {}", self.names[which], units::grouped(count)));
                let _ = writeln!(svg, "<g class=\"s{which}\"><title>{tip}</title>");
                rect(&mut svg, ["bar full", "bar outlined"][1 - which], [left, at], [length, BAR - 1.0]);
                svg.push_str("</g>\n");
            }
            let behind = counts.map(length).into_iter().fold(0.0, f64::max);
            let share = 100.0 * counts[1] as f64 / counts[0].max(1) as f64;
            text(&mut svg, "tick", "start", [left + behind + 6.0, y + BAR + 5.0], &format!("{share:.0} %"));
        }
        let height = top + ROW * self.rows.len() as f64 + 4.0;
        let description =
            format!("{}: {} and {} of {} layers", self.title, self.names[0], self.names[1], self.rows.len());
        Some(Drawing { title: self.title, caption: self.caption, description, size: [WIDTH, height], body: svg })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_counts() {
        let bars = Bars {
            title: "MACs".into(),
            caption: String::new(),
            names: ["before".into(), "after".into()],
            rows: vec![("conv1".into(), [400, 400]), ("conv2".into(), [800, 200])],
        };
        let drawing = bars.clone().draw().unwrap();
        let widths: Vec<f64> = drawing
            .body
            .split("width=\"")
            .skip(3)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 4);
        assert!((widths[0] - widths[1]).abs() < 0.11 && (widths[2] - 2.0 * widths[0]).abs() < 0.21, "{widths:?}");
        assert!((widths[2] - 4.0 * widths[3]).abs() < 0.41, "{widths:?}");
        assert!(drawing.body.contains(">25 %<") && drawing.body.contains(">100 %<"));
        assert_eq!(Bars { rows: Vec::new(), ..bars }.draw(), None);
    }
}
