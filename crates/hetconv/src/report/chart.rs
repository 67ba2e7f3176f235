//! Charts as SVG, small enough to be written by hand.
//!
//! Colours are classes (`s0` to `s7`) that the page's style gives a light and a dark value. No chart needs them: every
//! series has a marker of its own shape and its name beside it.

use std::fmt::Write;

use super::html::escape;

/// Extent of a chart in its own units, which are pixels when the chart is 480 of them wide.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 340.0;
const TOP: f64 = 14.0;
const LEFT: f64 = 62.0;
const BOTTOM: f64 = 52.0;
/// What one letter of a label takes, and one line of them.
const LETTER: f64 = 11.0;
const LINE: f64 = 18.0;

/// A quantity along an edge of the chart.
pub(super) struct Axis {
    pub label: String,
    /// Whether the axis begins at 0 whatever the data.
    pub from_zero: bool,
    /// Values beyond which the axis never goes.
    pub limits: [f64; 2],
}

/// One network in a chart.
pub(super) struct Series<'a> {
    pub label: &'a str,
    /// Which colour and marker it has, the same in every chart.
    pub slot: usize,
    pub points: Vec<[f64; 2]>,
    /// Smallest and largest y of a single point.
    pub spread: Option<[f64; 2]>,
}

/// What is drawn of the points.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Markers.
    Scatter,
    /// Markers joined by a curve.
    Curves,
}

/// A chart before it is drawn.
pub(super) struct Chart<'a> {
    pub title: &'static str,
    pub caption: String,
    pub x: Axis,
    pub y: Axis,
    pub form: Form,
    pub series: Vec<Series<'a>>,
}

impl Chart<'_> {
    /// The chart as a `figure`, or nothing if it has no point.
    pub fn draw(mut self) -> String {
        for series in &mut self.series {
            series.points.retain(|point| point.iter().all(|value| value.is_finite()));
        }
        self.series.retain(|series| !series.points.is_empty());
        if self.series.is_empty() {
            return String::new();
        }
        let all = || self.series.iter().flat_map(|series| &series.points);
        let spreads = self.series.iter().filter_map(|series| series.spread).flatten();
        let longest = self.series.iter().map(|series| width_of(series.label)).fold(0.0, f64::max);
        let right = match self.form {
            Form::Scatter => 16.0,
            Form::Curves => (longest + 38.0).min(WIDTH / 2.0),
        };
        let x = Scale::new(&self.x, all().map(|point| point[0]), [LEFT, WIDTH - right]);
        let y = Scale::new(&self.y, all().map(|point| point[1]).chain(spreads), [HEIGHT - BOTTOM, TOP]);

        let mut svg = String::new();
        self.frame(&mut svg, &x, &y);
        let ends = match self.form {
            Form::Curves => self.curves(&mut svg, &x, &y),
            Form::Scatter => self.scatter(&mut svg, &x, &y),
        };
        for (series, label) in self.series.iter().zip(ends) {
            match self.form {
                Form::Curves => label.draw_in_margin(&mut svg, series),
                Form::Scatter => label.draw(&mut svg, series),
            }
        }
        let title = escape(self.title);
        let names: Vec<String> = self.series.iter().map(|series| escape(series.label)).collect();
        format!(
            "<figure>\n<h3>{title}</h3>\n<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{title}: {}\">\n{svg}</svg>\n<figcaption>{}</figcaption>\n</figure>\n",
            names.join(", "),
            escape(&self.caption)
        )
    }

    fn frame(&self, svg: &mut String, x: &Scale, y: &Scale) {
        let [left, right] = x.pixels;
        let [bottom, top] = y.pixels;
        for tick in y.ticks() {
            let at = y.place(tick);
            line(svg, "grid", [left, at], [right, at]);
            text(svg, "tick", "end", [left - 8.0, at + 5.0], &decimal(tick, y.step));
        }
        for tick in x.ticks() {
            let at = x.place(tick);
            line(svg, "frame", [at, bottom], [at, bottom + 5.0]);
            text(svg, "tick", "middle", [at, bottom + 21.0], &decimal(tick, x.step));
        }
        line(svg, "frame", [left, bottom], [right, bottom]);
        text(svg, "axis", "end", [right, HEIGHT - 8.0], &self.x.label);
        let (at, middle) = (15.0, (top + bottom) / 2.0);
        let label = escape(&self.y.label);
        let _ = writeln!(
            svg,
            "<text class=\"axis\" text-anchor=\"middle\" transform=\"translate({at} {middle:.1}) rotate(-90)\">{label}</text>"
        );
    }

    /// Draws the curves. Their names go into the margin on the right, moved apart where curves end close together.
    fn curves(&self, svg: &mut String, x: &Scale, y: &Scale) -> Vec<Label> {
        let mut labels = Vec::new();
        for series in &self.series {
            let places: Vec<[f64; 2]> = series.points.iter().map(|&[a, b]| [x.place(a), y.place(b)]).collect();
            let path: Vec<String> = places.iter().map(|[a, b]| format!("{a:.1} {b:.1}")).collect();
            let _ =
                writeln!(svg, "<g class=\"s{}\"><path class=\"curve\" d=\"M{}\"/>", series.slot % 8, path.join(" L"));
            let every = places.len().div_ceil(12);
            for (i, (&place, value)) in places.iter().zip(&series.points).enumerate() {
                // Counted from the end, so that the last point has a marker.
                if (places.len() - 1 - i).is_multiple_of(every) {
                    marker(svg, series.slot, place, &self.describe(series.label, *value, x, y));
                }
            }
            svg.push_str("</g>\n");
            let end = places[places.len() - 1];
            labels.push(Label { from: end, at: [x.pixels[1] + 32.0, end[1]], anchor: "start" });
        }
        move_apart(&mut labels, y.pixels[1] + 4.0, y.pixels[0] - 2.0);
        labels
    }

    /// Draws single points; each name stands where it covers least of the others.
    fn scatter(&self, svg: &mut String, x: &Scale, y: &Scale) -> Vec<Label> {
        let place = |series: &Series<'_>| [x.place(series.points[0][0]), y.place(series.points[0][1])];
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
            marker(svg, series.slot, [a, b], &self.describe(series.label, series.points[0], x, y));
            svg.push_str("</g>\n");
        }
        let frame = Area { left: x.pixels[0], right: WIDTH - 2.0, top: 2.0, bottom: y.pixels[0] };
        let mut labels = Vec::new();
        for series in &self.series {
            let from = place(series);
            let candidates = Label::around(from, series.label);
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
        // A hundredth of a tick is as exact as anybody can see.
        let (a, b) = (decimal(a, x.step / 100.0), decimal(b, y.step / 100.0));
        format!("{label}: {} {b}, {} {a}", self.y.label, self.x.label)
    }
}

/// From values to pixels.
struct Scale {
    from: f64,
    to: f64,
    step: f64,
    pixels: [f64; 2],
}

impl Scale {
    /// A scale over some finite values, from tick to tick.
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, pixels: [f64; 2]) -> Self {
        let (mut low, mut high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        if axis.from_zero {
            low = low.min(0.0);
        }
        if high - low <= 1e-9 * high.abs().max(1e-9) {
            let around = (0.05 * high.abs()).max(0.5);
            (low, high) = (if axis.from_zero { low } else { low - around }, high + around);
        }
        let step = round_step((high - low) / 5.0);
        let [least, most] = axis.limits;
        let from = ((low / step).floor() * step).max(least);
        let to = ((high / step).ceil() * step).min(most);
        Self { from, to, step, pixels }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value - self.from) / (self.to - self.from);
        self.pixels[0] + share * (self.pixels[1] - self.pixels[0])
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let first = (self.from / self.step - 1e-6).ceil() as i64;
        let last = (self.to / self.step + 1e-6).floor() as i64;
        (first..=last).map(|i| i as f64 * self.step)
    }
}

/// The next number from 1, 2, 2.5, 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let mantissa = step / power;
    let round = [1.0, 2.0, 2.5, 5.0].into_iter().find(|&round| mantissa <= round * 1.000_001).unwrap_or(10.0);
    round * power
}

/// A number with as many decimals as its step needs.
fn decimal(value: f64, step: f64) -> String {
    // A step of 2.5·10ⁿ needs one decimal more than 1·10ⁿ.
    let decimals = (0..9).find(|&n| (step * 10f64.powi(n)).fract().min(1.0 - (step * 10f64.powi(n)).fract()) < 1e-6);
    format!("{value:.*}", decimals.unwrap_or(9) as usize)
}

/// A series' name: where it stands, and which point it belongs to.
struct Label {
    from: [f64; 2],
    at: [f64; 2],
    anchor: &'static str,
}

impl Label {
    /// Places beside a point, the best first, and the areas they take.
    fn around([a, b]: [f64; 2], label: &str) -> Vec<(Label, Area)> {
        let width = width_of(label);
        let mut places = Vec::new();
        for [dx, dy] in [
            [12.0, 0.0],
            [-12.0, 0.0],
            [0.0, -18.0],
            [0.0, 18.0],
            [12.0, -16.0],
            [12.0, 16.0],
            [-12.0, -16.0],
            [-12.0, 16.0],
        ] {
            let at = [a + dx, b + dy];
            let (anchor, left) = match dx {
                0.0 => ("middle", at[0] - width / 2.0),
                dx if dx > 0.0 => ("start", at[0]),
                _ => ("end", at[0] - width),
            };
            let area = Area { left, right: left + width, top: at[1] - LINE / 2.0, bottom: at[1] + LINE / 2.0 };
            places.push((Label { from: [a, b], at, anchor }, area));
        }
        places
    }

    fn draw(&self, svg: &mut String, series: &Series<'_>) {
        text(svg, "label", self.anchor, [self.at[0], self.at[1] + 5.0], series.label);
    }

    /// Draws the name with its marker, and a line from there to the end of the curve.
    fn draw_in_margin(&self, svg: &mut String, series: &Series<'_>) {
        let ([a, b], [x, y]) = (self.from, self.at);
        let _ = writeln!(svg, "<g class=\"s{}\">", series.slot % 8);
        line(svg, "leader", [a + 7.0, b], [x - 20.0, y]);
        let _ = writeln!(
            svg,
            "<path class=\"marker\" transform=\"translate({:.1} {y:.1})\" d=\"{}\"/>",
            x - 11.0,
            shape(series.slot)
        );
        svg.push_str("</g>\n");
        self.draw(svg, series);
    }
}

/// A rectangle that something takes.
#[derive(Clone, Copy)]
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    fn overlap(&self, other: &Area) -> f64 {
        let width = self.right.min(other.right) - self.left.max(other.left);
        let height = self.bottom.min(other.bottom) - self.top.max(other.top);
        width.max(0.0) * height.max(0.0)
    }

    fn outside(&self, frame: &Area) -> f64 {
        (self.right - self.left) * (self.bottom - self.top) - self.overlap(frame)
    }
}

/// Moves labels up and down until none covers another, all within `top` and `bottom` if they fit there.
fn move_apart(labels: &mut [Label], top: f64, bottom: f64) {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by(|&a, &b| labels[a].at[1].total_cmp(&labels[b].at[1]));
    let mut next = top;
    for &i in &order {
        labels[i].at[1] = labels[i].at[1].max(next);
        next = labels[i].at[1] + LINE;
    }
    let mut next = bottom;
    for &i in order.iter().rev() {
        labels[i].at[1] = labels[i].at[1].min(next);
        next = labels[i].at[1] - LINE;
    }
}

fn width_of(label: &str) -> f64 {
    LETTER * label.chars().count() as f64
}

fn line(svg: &mut String, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
    let _ = writeln!(svg, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

fn text(svg: &mut String, class: &str, anchor: &str, [x, y]: [f64; 2], content: &str) {
    let content = escape(content);
    let _ =
        writeln!(svg, "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{content}</text>");
}

fn marker(svg: &mut String, slot: usize, [x, y]: [f64; 2], tip: &str) {
    let (path, tip) = (shape(slot), escape(tip));
    let _ = writeln!(
        svg,
        "<path class=\"marker\" transform=\"translate({x:.1} {y:.1})\" d=\"{path}\"><title>{tip}</title></path>"
    );
}

/// The marker of a slot around the origin. Seven shapes and eight colours make 56 different pairs.
pub(super) fn shape(slot: usize) -> &'static str {
    const SHAPES: [&str; 7] = [
        "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0Z",
        "M-5 -5H5V5H-5Z",
        "M0 -6.5L6.2 4.6H-6.2Z",
        "M0 -7L6 0L0 7L-6 0Z",
        "M0 6.5L6.2 -4.6H-6.2Z",
        "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
        "M0 -7L1.8 -2.4L6.7 -2.2L2.9 0.9L4.1 5.7L0 3L-4.1 5.7L-2.9 0.9L-6.7 -2.2L-1.8 -2.4Z",
    ];
    SHAPES[slot % SHAPES.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (step, expected) in
            [(0.013, 0.02), (0.9, 1.0), (1.0, 1.0), (2.1, 2.5), (3.0, 5.0), (7.0, 10.0), (230.0, 250.0)]
        {
            assert!((round_step(step) - expected).abs() < 1e-9 * expected, "{step}: {}", round_step(step));
        }
    }

    #[test]
    fn a_scale_covers_its_values_with_ticks_at_both_ends() {
        let axis = Axis { label: String::new(), from_zero: false, limits: [0.0, 100.0] };
        let scale = Scale::new(&axis, [61.0, 98.7].into_iter(), [0.0, 100.0]);
        assert_eq!(scale.ticks().collect::<Vec<_>>(), [60.0, 70.0, 80.0, 90.0, 100.0]);
        assert!((scale.place(60.0)).abs() < 1e-9 && (scale.place(100.0) - 100.0).abs() < 1e-9);
        let single = Scale::new(&axis, [50.0].into_iter(), [0.0, 1.0]);
        assert!(single.from < 50.0 && single.to > 50.0);
        let perfect = Scale::new(&axis, [100.0].into_iter(), [0.0, 1.0]);
        assert!(perfect.from < 100.0 && perfect.to == 100.0 && perfect.place(100.0) == 1.0);
    }

    #[test]
    fn names_in_the_margin_never_cover_each_other() {
        let label = |y| Label { from: [0.0, y], at: [0.0, y], anchor: "start" };
        let mut labels: Vec<Label> = [100.0, 101.0, 99.0, 290.0, 289.0, 12.0].map(label).into();
        move_apart(&mut labels, 14.0, 288.0);
        let mut places: Vec<f64> = labels.iter().map(|label| label.at[1]).collect();
        assert!(places[2] < places[0] && places[0] < places[1], "order kept: {places:?}");
        places.sort_by(f64::total_cmp);
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= LINE - 1e-9), "{places:?}");
        assert!(places[0] >= 14.0 && places[5] <= 288.0, "{places:?}");
    }

    #[test]
    fn names_beside_points_avoid_each_other() {
        let (first, area) = Label::around([100.0, 100.0], "standard").remove(0);
        assert_eq!(first.anchor, "start");
        assert!(area.left > 100.0);
        let other = Area { left: 110.0, right: 120.0, top: 95.0, bottom: 105.0 };
        assert!(area.overlap(&other) > 0.0);
        let free =
            Label::around([100.0, 100.0], "standard").into_iter().filter(|(_, area)| area.overlap(&other) == 0.0);
        assert!(free.count() >= 3);
    }
}
