//! Tables of a page, which sort by any column.

use std::fmt::Write;

use super::html::escape;
use super::svg::shape;

/// A table; its first column names the rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Names of the columns.
    pub heads: Vec<String>,
    /// What stands in them.
    pub rows: Vec<Row>,
}

/// A row of a [`Table`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// The row's colour and marker in charts, if it has one.
    pub slot: Option<usize>,
    /// Its name.
    pub label: String,
    /// The cells after the name.
    pub cells: Vec<Cell>,
}

/// A cell of a [`Table`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// What stands in it.
    pub text: String,
    /// What it is sorted by; cells without a number come last.
    pub value: Option<f64>,
    /// Whether it is prose, which stands on the left and may take several lines.
    pub is_prose: bool,
}

impl Cell {
    /// A number and its text.
    pub fn number(value: f64, text: impl Into<String>) -> Self {
        Self { text: text.into(), value: Some(value), is_prose: false }
    }

    /// Prose.
    pub fn prose(text: impl Into<String>) -> Self {
        Self { text: text.into(), value: None, is_prose: true }
    }

    /// A number that may be missing.
    pub fn optional(value: Option<f64>, text: impl FnOnce(f64) -> String) -> Self {
        match value {
            Some(value) => Self::number(value, text(value)),
            None => Self { text: "–".to_owned(), ..Self::default() },
        }
    }
}

impl Table {
    pub(super) fn write(&self, page: &mut String) {
        page.push_str("<div class=\"scroll\">\n<table class=\"sortable\">\n<thead><tr>");
        for (column, head) in self.heads.iter().enumerate() {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(column.checked_sub(1)?));
            let class = if cells.clone().count() > 0 && cells.clone().all(|cell| cell.is_prose) {
                " class=\"prose\""
            } else {
                ""
            };
            let _ = write!(page, "<th scope=\"col\"{class}>{}</th>", escape(head));
        }
        page.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            page.push_str("<tr><th scope=\"row\">");
            if let Some(slot) = row.slot {
                let _ = write!(
                    page,
                    "<svg class=\"s{}\" viewBox=\"-8 -8 16 16\" aria-hidden=\"true\"><path class=\"marker\" d=\"{}\"/></svg>",
                    slot % 8,
                    shape(slot)
                );
            }
            let _ = write!(page, "{}</th>", escape(&row.label));
            for cell in &row.cells {
                let class = if cell.is_prose { " class=\"prose\"" } else { "" };
                let value = cell.value.filter(|value| value.is_finite());
                let value = value.map_or(String::new(), |value| format!(" data-value=\"{value}\""));
                let _ = write!(page, "<td{class}{value}>{}</td>", escape(&cell.text));
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</tbody>\n</table>\n</div>\n");
    }
}
