//! A page that needs nothing but itself.

use std::fmt::Write;

use super::html::escape;
use super::{Drawing, Table, drawing};

/// An HTML page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The heading.
    pub title: String,
    /// A sentence below it, or nothing.
    pub lead: String,
    /// Its sections.
    pub sections: Vec<Section>,
}

/// A section of a [`Page`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    /// The heading.
    pub heading: String,
    /// What stands below it.
    pub parts: Vec<Part>,
}

/// What a [`Section`] is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A paragraph.
    Text(String),
    /// Items that begin with something strong.
    List(Vec<(String, String)>),
    /// A table.
    Table(Table),
    /// Drawings side by side, or below each other where there is no room.
    Drawings(Vec<Drawing>),
    /// Names and what they mean.
    Definitions(Vec<(String, String)>),
}

impl Page {
    /// The page as HTML; sections without parts are left out.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{}{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
            drawing::STYLE,
            include_str!("page.css")
        );
        if !self.lead.is_empty() {
            let _ = writeln!(page, "<p class=\"lead\">{}</p>", escape(&self.lead));
        }
        for section in self.sections.iter().filter(|section| !section.parts.is_empty()) {
            let _ = writeln!(page, "<section>\n<h2>{}</h2>", escape(&section.heading));
            section.parts.iter().for_each(|part| part.write(&mut page));
            page.push_str("</section>\n");
        }
        let _ = write!(page, "</main>\n<script>\n{}</script>\n</body>\n</html>\n", include_str!("page.js"));
        page
    }
}

impl Part {
    fn write(&self, page: &mut String) {
        match self {
            Part::Text(text) => {
                let _ = writeln!(page, "<p>{}</p>", escape(text));
            }
            Part::List(items) => {
                page.push_str("<ul>\n");
                for (strong, rest) in items {
                    let _ = writeln!(page, "<li><strong>{}</strong>{}</li>", escape(strong), escape(rest));
                }
                page.push_str("</ul>\n");
            }
            Part::Table(table) => table.write(page),
            Part::Drawings(drawings) => {
                page.push_str("<div class=\"drawings\">\n");
                drawings.iter().for_each(|drawing| page.push_str(&drawing.figure()));
                page.push_str("</div>\n");
            }
            Part::Definitions(pairs) => {
                page.push_str("<dl>\n");
                for (name, meaning) in pairs {
                    let _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(meaning));
                }
                page.push_str("</dl>\n");
            }
        }
    }
}
