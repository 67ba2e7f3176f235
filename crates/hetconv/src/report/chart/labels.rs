//! Where the names of series stand, so that none covers another.

use std::fmt::Write;

use super::Series;
use super::scale::Scale;
use crate::report::svg::{LINE, line, shape, text, width_of};

/// A series' name: where it stands, and which point it belongs to.
pub(super) struct Label {
    pub from: [f64; 2],
    pub at: [f64; 2],
    pub anchor: &'static str,
}

impl Label {
    /// Places beside a point, the best first, and the areas they take.
    pub fn around([a, b]: [f64; 2], label: &str) -> Vec<(Label, Area)> {
        let width = width_of(label);
        let mut places = Vec::new();
        let near = [[12.0, 0.0], [-12.0, 0.0], [0.0, -18.0], [0.0, 18.0]];
        // From the nearest to the farthest: to the right and to the left, above and below.
        let far = (1..=6).map(|step| 16.0 * f64::from(step));
        let far = far.flat_map(|dy| {
            [[12.0 + dy / 8.0, -dy], [12.0 + dy / 8.0, dy], [-12.0 - dy / 8.0, -dy], [-12.0 - dy / 8.0, dy]]
        });
        for [dx, dy] in near.into_iter().chain(far) {
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

    /// Places in the margin on the right, moved apart where points lie at close heights.
    pub fn in_margin(points: Vec<[f64; 2]>, x: &Scale, y: &Scale) -> Vec<Label> {
        let place = |from: [f64; 2]| Label { from, at: [x.pixels[1] + 32.0, from[1]], anchor: "start" };
        let mut labels: Vec<Label> = points.into_iter().map(place).collect();
        move_apart(&mut labels, y.pixels[1] + 4.0, y.pixels[0] - 2.0);
        labels
    }

    pub fn draw(&self, svg: &mut String, series: &Series) {
        let ([a, b], [x, y]) = (self.from, self.at);
        if (y - b).abs() > 2.0 * LINE - 8.0 && self.anchor != "middle" {
            let _ = writeln!(svg, "<g class=\"s{}\">", series.slot % 8);
            line(svg, "leader", [a, b], [x - (x - a).signum() * 3.0, y]);
            svg.push_str("</g>\n");
        }
        self.draw_name(svg, series);
    }

    fn draw_name(&self, svg: &mut String, series: &Series) {
        text(svg, "label", self.anchor, [self.at[0], self.at[1] + 5.0], &series.label);
    }

    /// Draws the name with its marker, and a line from there to the point or the end of the curve.
    pub fn draw_in_margin(&self, svg: &mut String, series: &Series) {
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
        self.draw_name(svg, series);
    }
}

/// A rectangle that something takes.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
}

impl Area {
    pub fn overlap(&self, other: &Area) -> f64 {
        let width = self.right.min(other.right) - self.left.max(other.left);
        let height = self.bottom.min(other.bottom) - self.top.max(other.top);
        width.max(0.0) * height.max(0.0)
    }

    pub fn outside(&self, frame: &Area) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

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
