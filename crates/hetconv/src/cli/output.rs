//! What goes to stdout and what to stderr.

use std::io::{self, Write};

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{Attribute, Cell, CellAlignment, LineStyle, Table, TableStyle};
use serde::Serialize;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Where a command's result goes.
pub struct Output {
    format: Format,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Prints a result to stdout: as JSON, or as `text` writes it for people.
    pub fn result<T: Serialize + ?Sized>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        let printed = match self.format {
            Format::Json => serde_json::to_string_pretty(value)?,
            Format::Table => text(value),
        };
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", printed.trim_end())?;
        stdout.flush()?;
        Ok(())
    }
}

/// Whether whoever read our stdout has gone, as `head` does; there is nobody left to tell then.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints an error and its causes to stderr, each beginning a line of its own.
pub fn print_error(error: &anyhow::Error) {
    let mut said = String::new();
    for cause in error.chain() {
        let text = cause.to_string().trim().to_owned();
        // Many errors already quote their cause.
        if said.contains(&text) {
            continue;
        }
        let label = if said.is_empty() { "error" } else { "  caused by" };
        // Nobody is left to tell if stderr is closed.
        let _ = writeln!(io::stderr(), "{label}: {text}");
        said = text;
    }
}

/// A table with a rule under its heads; columns named in `left` are words, all others numbers.
pub fn table(heads: &[&str], left: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(heads.iter().map(|head| Cell::new(head).add_attribute(Attribute::Bold)));
    for (column, head) in table.column_iter_mut().zip(heads) {
        let alignment = if left.contains(head) { CellAlignment::Left } else { CellAlignment::Right };
        column.set_cell_alignment(alignment);
    }
    table
}
