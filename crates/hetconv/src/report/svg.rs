//! The few SVG elements that drawings are made of.

use std::fmt::Write;

use super::html::escape;

/// What one letter of a label takes, and one line of them, in the units of a drawing.
pub(super) const LETTER: f64 = 11.0;
pub(super) const LINE: f64 = 18.0;

pub(super) fn width_of(label: &str) -> f64 {
    LETTER * label.chars().count() as f64
}

pub(super) fn line(svg: &mut String, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
    let _ = writeln!(svg, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

pub(super) fn text(svg: &mut String, class: &str, anchor: &str, [x, y]: [f64; 2], content: &str) {
    let content = escape(content);
    let _ =
        writeln!(svg, "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{content}</text>");
}

pub(super) fn rect(svg: &mut String, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2]) {
    let _ = writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
    );
}

pub(super) fn marker(svg: &mut String, slot: usize, [x, y]: [f64; 2], tip: &str) {
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

/// How a slot's curve is broken into dashes; five ways.
pub(super) fn dashes(slot: usize) -> &'static str {
    const DASHES: [&str; 5] = ["none", "9 4", "3 4", "12 4 3 4", "6 3 1 3"];
    DASHES[slot % DASHES.len()]
}
