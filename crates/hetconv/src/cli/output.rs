//! What goes to stdout and what to stderr.

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
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
            Format::Table => printable(&text(value)),
        };
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{}", printed.trim_end()).and_then(|()| stdout.flush()).context(ToStdout)
    }
}

/// What failed, where a result could not be printed.
#[derive(Debug)]
struct ToStdout;

impl std::fmt::Display for ToStdout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cannot write to stdout")
    }
}

/// Whether whoever read our stdout has gone, as `head` does; there is nobody left to tell then.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let is_broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.is::<ToStdout>() && error.downcast_ref().is_some_and(is_broken)
}

/// Prints a line to stderr, beside a command's result.
pub fn say(line: &str) {
    // Nobody is left to tell if it is closed, and the work goes on.
    let _ = writeln!(io::stderr(), "{}", printable(line));
}

/// Prints an error and its causes to stderr, each beginning a line of its own.
pub fn print_error(error: &anyhow::Error) {
    for (index, text) in causes(error).iter().enumerate() {
        let label = if index == 0 { "error" } else { "  caused by" };
        say(&format!("{label}: {text}"));
    }
}

/// What an error and its causes say, but for those that the one before quotes.
pub fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string().trim().to_owned();
        if said.last().is_none_or(|last| !last.contains(&text)) {
            said.push(text);
        }
    }
    said
}

/// Text that does nothing to a terminal but stand there, whatever names a file has brought: control characters become `�`,
/// except the ends of lines and the tables' own bold heads.
pub fn printable(text: &str) -> String {
    const STYLES: [&str; 2] = ["\u{1b}[1m", "\u{1b}[0m"];
    let styled = |at: usize| STYLES.iter().any(|style| text[at..].starts_with(style));
    let shown = |(at, c): (usize, char)| {
        let is_plain = !c.is_control() || matches!(c, '\n' | '\t') || styled(at);
        if is_plain { c } else { char::REPLACEMENT_CHARACTER }
    };
    text.char_indices().map(shown).collect()
}

/// A table with a rule under its heads; columns named in `left` are words, all others numbers. On a terminal that is too
/// narrow, cells take several lines.
pub fn table(heads: &[&str], left: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(heads.iter().map(|head| Cell::new(head).add_attribute(Attribute::Bold)));
    for (column, head) in table.column_iter_mut().zip(heads) {
        let alignment = if left.contains(head) { CellAlignment::Left } else { CellAlignment::Right };
        column.set_cell_alignment(alignment);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let cause = || anyhow::anyhow!("the disk is on fire");
        assert_eq!(
            causes(&cause().context("a: the disk is on fire").context("no b")),
            ["no b", "a: the disk is on fire"]
        );
        assert_eq!(causes(&cause().context("no a")), ["no a", "the disk is on fire"]);
    }

    #[test]
    fn names_do_nothing_to_a_terminal() {
        assert_eq!(printable("Größe\n\ta\u{1b}]0;title\u{7}b\rc"), "Größe\n\ta\u{fffd}]0;title\u{fffd}b\u{fffd}c");
        assert_eq!(printable("\u{1b}[31mred\u{9b}31m"), "\u{fffd}[31mred\u{fffd}31m");
        let mut heads = table(&["name"], &[]);
        heads.enforce_styling();
        let heads = heads.to_string();
        assert!(heads.contains("\u{1b}[1m"), "{heads:?}");
        assert_eq!(printable(&heads), heads);
    }
}
