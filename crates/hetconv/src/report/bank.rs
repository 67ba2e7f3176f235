//! The paper's figure 3: the filter bank of a HetConv layer.

use hetconv_core::{Arrangement, HetPattern};

use super::Drawing;
use super::svg::{line, rect, text};

/// Width of a drawing in its own units.
const WIDTH: f64 = 480.0;
const LEFT: f64 = 40.0;
const TOP: f64 = 34.0;

/// Draws the kernels of the first `most` filters on the first `most` channels: one row a filter, one column a channel. A
/// K×K kernel is a square with its taps, a 1×1 kernel a dot.
///
/// ```
/// use hetconv::core::HetPattern;
/// let drawing = hetconv::report::filter_bank(&HetPattern::shifted(8, 4, 4)?, 3, 32);
/// assert_eq!(drawing.file().matches("class=\"spatial\"").count(), 8); // M·N/P
/// # Ok::<(), hetconv::core::PatternError>(())
/// ```
pub fn filter_bank(pattern: &HetPattern, kernel: usize, most: usize) -> Drawing {
    let (all_channels, all_filters) = (pattern.in_channels(), pattern.out_channels());
    let (channels, filters) = (all_channels.min(most), all_filters.min(most));
    let cell = ((WIDTH - LEFT - 4.0) / channels as f64).min(40.0);
    let gap = (cell * 0.08).min(2.0);
    let side = cell - 2.0 * gap;
    let mut svg = String::new();
    let mut spatial = 0;
    svg.push_str("<g class=\"s1\">\n");
    for f in 0..filters {
        for c in 0..channels {
            let corner = [LEFT + cell * c as f64 + gap, TOP + cell * f as f64 + gap];
            if pattern.is_spatial(f, c) {
                spatial += 1;
                rect(&mut svg, "spatial", corner, [side; 2]);
                let step = side / kernel as f64;
                if step >= 3.0 {
                    for i in 1..kernel {
                        let at = step * i as f64;
                        line(&mut svg, "tap", [corner[0] + at, corner[1]], [corner[0] + at, corner[1] + side]);
                        line(&mut svg, "tap", [corner[0], corner[1] + at], [corner[0] + side, corner[1] + at]);
                    }
                }
            } else {
                let dot = (side / kernel as f64).max(1.5);
                let at = corner.map(|edge| edge + (side - dot) / 2.0);
                rect(&mut svg, "pointwise", at, [dot; 2]);
            }
        }
    }
    svg.push_str("</g>\n");
    let every = [1, 2, 4, 8, 16, 32, 64].into_iter().find(|&every| cell * every as f64 >= 16.0).unwrap_or(64);
    for c in (0..channels).step_by(every) {
        text(&mut svg, "tick", "middle", [LEFT + cell * (c as f64 + 0.5), TOP - 4.0], &c.to_string());
    }
    for f in (0..filters).step_by(every) {
        text(&mut svg, "tick", "end", [LEFT - 5.0, TOP + cell * (f as f64 + 0.5) + 5.0], &f.to_string());
    }
    text(&mut svg, "axis", "start", [LEFT, 13.0], "channels →, filters ↓");
    let parts = pattern.classes();
    let of_first = pattern.spatial_channels(0).count();
    let next = match pattern.arrangement() {
        Arrangement::Shifted { .. } => "the next filter's stand one channel further",
        Arrangement::Blocked { .. } | Arrangement::Assigned { .. } => {
            "filters of one class have theirs on the same channels"
        }
    };
    let cropped = if (channels, filters) == (all_channels, all_filters) {
        String::new()
    } else {
        format!(" The first {channels} channels and {filters} filters are drawn.")
    };
    Drawing {
        title: format!("Filter bank: M = {all_channels}, N = {all_filters}, P = {parts}"),
        caption: format!(
            "A square is a {kernel}×{kernel} kernel, a dot a 1×1 kernel. The first filter has {of_first} kernels of \
             {kernel}×{kernel} taps and {} of one tap; {next}.{cropped}",
            all_channels - of_first
        ),
        description: format!("{filters} filters on {channels} channels, {spatial} kernels of {kernel}×{kernel}"),
        size: [(LEFT + cell * channels as f64 + 4.0).max(200.0), TOP + cell * filters as f64 + 4.0],
        body: svg,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_stand_where_the_pattern_has_them() {
        let pattern = HetPattern::shifted(7, 5, 3).unwrap();
        let drawing = filter_bank(&pattern, 3, 64);
        let place = |class: &str| {
            let begin = format!("<rect class=\"{class}\" x=\"");
            let elements = drawing.body.split(&begin).skip(1);
            let cell = (WIDTH - LEFT - 4.0_f64).min(7.0 * 40.0) / 7.0;
            let number = |text: &str| text.split('"').next().unwrap().parse::<f64>().unwrap();
            elements
                .map(|rest| {
                    let y = number(rest.split("y=\"").nth(1).unwrap());
                    (((y - TOP) / cell) as usize, ((number(rest) - LEFT) / cell) as usize)
                })
                .collect::<Vec<_>>()
        };
        let expected = |spatial: bool| {
            let pairs = (0..5).flat_map(|f| (0..7).map(move |c| (f, c)));
            pairs.filter(|&(f, c)| pattern.is_spatial(f, c) == spatial).collect::<Vec<_>>()
        };
        assert_eq!(place("spatial"), expected(true));
        assert_eq!(place("pointwise"), expected(false));
    }

    #[test]
    fn what_is_left_out_is_said() {
        let pattern = HetPattern::shifted(256, 128, 4).unwrap();
        let drawing = filter_bank(&pattern, 3, 16);
        assert_eq!(drawing.body.matches("class=\"spatial\"").count(), 64);
        assert!(drawing.caption.contains("The first 16 channels and 16 filters"), "{}", drawing.caption);
        assert!(drawing.caption.contains("64 kernels of 3×3 taps and 192 of one tap"), "{}", drawing.caption);
    }
}
