//! A finished drawing: SVG as a figure of a page, or as a file of its own.

use super::html::escape;

/// The style that drawings need; a page has it beside its own.
pub(super) const STYLE: &str = include_str!("drawing.css");

/// An SVG drawing.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// What it shows, as a heading.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// What it shows, for those who cannot see it.
    pub(super) description: String,
    /// Width and height in its own units.
    pub(super) size: [f64; 2],
    /// SVG elements.
    pub(super) body: String,
}

impl Drawing {
    /// The drawing as a `figure` of a page.
    pub(super) fn figure(&self) -> String {
        format!(
            "<figure>\n<h3>{}</h3>\n<svg class=\"drawing\" {}>\n{}</svg>\n<figcaption>{}</figcaption>\n</figure>\n",
            escape(&self.title),
            self.attributes(),
            self.body,
            escape(&self.caption)
        )
    }

    /// The drawing as an SVG file, with its style, light or dark as its reader likes.
    pub fn file(&self) -> String {
        let [width, height] = self.size;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"drawing file\" width=\"{width:.0}\" height=\"{height:.0}\" \
             {}>\n<title>{}</title>\n<style>\n{STYLE}</style>\n{}</svg>\n",
            self.attributes(),
            escape(&self.title),
            self.body
        )
    }

    fn attributes(&self) -> String {
        let [width, height] = self.size;
        let description = escape(&self.description);
        format!("viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{description}\"")
    }
}
