//! Charts as SVG, small enough to be written by hand.
//!
//! Colours are classes (`s0` to `s7`) that the style gives a light and a dark value. No chart needs them: every series has
//! a marker of its own shape, its curve a pattern of dashes, and its name stands beside it.

mod labels;
mod scale;

use std::fmt::Write;

use super::Drawing;
use super::html::escape;
use super::svg::{LINE, dashes, line, marker, text, width_of};
use labels::{Area, Label};
pub use scale::Axis;
use scale::Scale;

/// Extent of a chart in its own units, which are pixels when the chart is 480 of them wide; many curves make it higher.
const WIDTH: f64 = 480.0;
const LEAST_HEIGHT: f64 = 340.0;
const TOP: f64 = 14.0;
const LEFT: f64 = 62.0;
const BOTTOM: f64 = 52.0;

/// One network in a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name.
    pub label: String,
    /// Which colour, marker and dashes it has, the same in every chart.
    pub slot: usize,
    /// x and y; what is not finite is left out.
    pub points: Vec<[f64; 2]>,
    /// Smallest and largest y of a single point.
    pub spread: Option<[f64; 2]>,
}

/// What is drawn of the points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Markers.
    Scatter,
    /// Markers joined by a curve.
    Curves,
}

/// A chart before it is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// From left to right.
    pub x: Axis,
    /// From bottom to top.
    pub y: Axis,
    /// Points or curves.
    pub form: Form,
    /// What is drawn, in order.
    pub series: Vec<Series>,
}

impl Chart {
    /// The drawing, or nothing if there is no point.
    pub fn draw(mut self) -> Option<Drawing> {
        for series in &mut self.series {
            series.points.retain(|point| point.iter().all(|value| value.is_finite()));
        }
        self.series.retain(|series| !series.points.is_empty());
        if self.series.is_empty() {
            return None;
        }
        let all = || self.series.iter().flat_map(|series| &series.points);
        let spreads = self.series.iter().filter_map(|series| series.spread).flatten();
        let longest = self.series.iter().map(|series| width_of(&series.label)).fold(0.0, f64::max);
        // Names of points stand beside them unless one is too long for that.
        let in_margin = self.form == Form::Curves || longest > (WIDTH - LEFT) / 2.0;
        let right = if in_margin { longest + 46.0 } else { 26.0 };
        // Long names make the drawing wider, not the plot narrower than half of it.
        let width = WIDTH + (right - WIDTH / 2.0).max(0.0);
        let names_height = if in_margin { LINE * self.series.len() as f64 } else { 0.0 };
        let height = LEAST_HEIGHT.max(TOP + BOTTOM + names_height);
        let x = Scale::new(&self.x, all().map(|point| point[0]), [LEFT, width - right]);
        let y = Scale::new(&self.y, all().map(|point| point[1]).chain(spreads), [height - BOTTOM, TOP]);

        let mut svg = String::new();
        self.frame(&mut svg, &x, &y);
        let labels = match self.form {
            Form::Curves => Label::in_margin(self.curves(&mut svg, &x, &y), &x, &y),
            Form::Scatter => {
                let beside = self.scatter(&mut svg, &x, &y);
                let points = beside.iter().map(|label| label.from);
                if in_margin { Label::in_margin(points.collect(), &x, &y) } else { beside }
            }
        };
        for (series, label) in self.series.iter().zip(labels) {
            if in_margin { label.draw_in_margin(&mut svg, series) } else { label.draw(&mut svg, series) }
        }
        let names: Vec<&str> = self.series.iter().map(|series| series.label.as_str()).collect();
        let description = format!("{}: {}", self.title, names.join(", "));
        Some(Drawing { title: self.title, caption: self.caption, description, size: [width, height], body: svg })
    }

    fn frame(&self, svg: &mut String, x: &Scale, y: &Scale) {
        let [left, right] = x.pixels;
        let [bottom, top] = y.pixels;
        for tick in y.ticks() {
            let at = y.place(tick);
            line(svg, "grid", [left, at], [right, at]);
            text(svg, "tick", "end", [left - 8.0, at + 5.0], &y.tick_text(tick));
        }
        for tick in x.ticks() {
            let at = x.place(tick);
            line(svg, "frame", [at, bottom], [at, bottom + 5.0]);
            text(svg, "tick", "middle", [at, bottom + 21.0], &x.tick_text(tick));
        }
        line(svg, "frame", [left, bottom], [right, bottom]);
        text(svg, "axis", "end", [right, bottom + BOTTOM - 8.0], &self.x.label);
        let (at, middle) = (15.0, (top + bottom) / 2.0);
        let label = escape(&self.y.label);
        let _ = writeln!(
            svg,
            "<text class=\"axis\" text-anchor=\"middle\" transform=\"translate({at} {middle:.1}) rotate(-90)\">{label}</text>"
        );
    }

    /// Draws the curves, and says where they end.
    fn curves(&self, svg: &mut String, x: &Scale, y: &Scale) -> Vec<[f64; 2]> {
        let mut ends = Vec::new();
        for series in &self.series {
            let places: Vec<[f64; 2]> = series.points.iter().map(|&[a, b]| [x.place(a), y.place(b)]).collect();
            let path: Vec<String> = places.iter().map(|[a, b]| format!("{a:.1} {b:.1}")).collect();
            let _ = writeln!(
                svg,
                "<g class=\"s{}\"><path class=\"curve\" stroke-dasharray=\"{}\" d=\"M{}\"/>",
                series.slot % 8,
                dashes(series.slot),
                path.join(" L")
            );
            let every = places.len().div_ceil(12);
            for (i, (&place, value)) in places.iter().zip(&series.points).enumerate() {
                // Counted from the end, so that the last point has a marker.
                if (places.len() - 1 - i).is_multiple_of(every) {
                    marker(svg, series.slot, place, &self.describe(&series.label, *value, x, y));
                }
            }
            svg.push_str("</g>\n");
            ends.push(places[places.len() - 1]);
        }
        ends
    }

    /// Draws single points; each name stands where it covers least of the others.
    fn scatter(&self, svg: &mut String, x: &Scale, y: &Scale) -> Vec<Label> {
        let place = |series: &Series| [x.place(series.points[0][0]), y.place(series.points[0][1])];
        let mut taken: Vec<Area> = Vec::new();
        for series in &self.series {
            let [a, b] = place(series);
            taken.push(Area { left: a - 8.0, right: a + 8.0, top: b - 8.0, bottom: b + 8.0 });
            let _ = writeln!(svg, "<g class=\"s{}\">", series.slot % 8);
            if let Some([low, high]) = series.spread {
                let (low, high) = (y.place(low), y.place(high));
                let path = format!("M{a:.1} {low:.1}V{high:.1}M{:.1} {low:.1}h8M{:.1} {high:.1}h8", a - 4.0, a - 4.0);
                let _ = writeln!(svg, "<path class=\"whisker\" d=\"{path}\"/>");
                taken.push(Area { left: a - 5.0, right: a + 5.0, top: high, bottom: low });
            }
            marker(svg, series.slot, [a, b], &self.describe(&series.label, series.points[0], x, y));
            svg.push_str("</g>\n");
        }
        let frame = Area { left: x.pixels[0], right: WIDTH - 2.0, top: 2.0, bottom: y.pixels[0] };
        let mut labels = Vec::new();
        for series in &self.series {
            let from = place(series);
            let candidates = Label::around(from, &series.label);
            let cost = |(_, area): &(Label, Area)| {
                taken.iter().map(|other| area.overlap(other)).sum::<f64>() + 4.0 * area.outside(&frame)
            };
            let best = candidates.into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b)));
            let (label, area) = best.unwrap_or((Label { from, at: from, anchor: "start" }, frame));
            taken.push(area);
            labels.push(label);
        }
        labels
    }

    fn describe(&self, label: &str, [a, b]: [f64; 2], x: &Scale, y: &Scale) -> String {
        format!("{label}: {} {}, {} {}", self.y.label, y.text(b), self.x.label, x.text(a))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_points_stand_inside_of_the_drawing() {
        for label in ["p4", "standard, data cifar10-images.zip, recipe onecycle, 10 epochs"] {
            let series = |slot: usize| Series {
                label: format!("{label} {slot}"),
                slot,
                points: vec![[10.0 - slot as f64, 90.0]],
                spread: None,
            };
            let chart = Chart {
                title: "Accuracy".into(),
                caption: String::new(),
                x: Axis::from_zero("MACs"),
                y: Axis::from_zero("top-1"),
                form: Form::Scatter,
                series: (0..3).map(series).collect(),
            };
            let drawing = chart.draw().expect("points");
            let mut names = 0;
            for text in drawing.body.split("<text ").filter(|text| text.starts_with("class=\"label\"")) {
                let x = text
                    .split(" x=\"")
                    .nth(1)
                    .and_then(|rest| rest.split('"').next())
                    .and_then(|x| x.parse::<f64>().ok());
                let x = x.expect("a place");
                let name = text.split(['>', '<']).nth(1).expect("a name");
                let ends = match () {
                    () if text.contains("\"start\"") => [x, x + width_of(name)],
                    () if text.contains("\"end\"") => [x - width_of(name), x],
                    () => [x - width_of(name) / 2.0, x + width_of(name) / 2.0],
                };
                assert!(ends[0] >= 0.0 && ends[1] <= drawing.size[0], "{name}: {ends:?} of {}", drawing.size[0]);
                names += 1;
            }
            assert_eq!(names, 3);
        }
    }
}
