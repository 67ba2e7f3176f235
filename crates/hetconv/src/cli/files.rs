//! Files that commands read and write, and where they are.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hetconv::graph::atomic_write;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::usage::bad_usage;

/// Where a path leads, however it is spelled, or would if something were there.
pub fn place(path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    let new = || Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(new).unwrap_or_else(|| path.to_owned())
}

/// The folder a file is in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes text, whole or not at all.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    atomic_write(path, |file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Whether a page may be written here: nothing is there, or what is there is one.
pub fn is_page_or_new(path: &Path) -> Result<()> {
    if !is_new_or_begins(path, "<!doctype html")? {
        bad_usage!(
            "{} is there already and is no page, which would take its place; choose another name",
            path.display()
        );
    }
    Ok(())
}

/// Whether a table may be written here: nothing is there, or what is there begins with these names.
pub fn is_table_or_new(path: &Path, names: &str) -> Result<()> {
    if !is_new_or_begins(path, names)? {
        bad_usage!("{} is there already and is another table; choose another folder", path.display());
    }
    Ok(())
}

/// Whether nothing is there, or what is there begins like this, in capital letters or small ones.
fn is_new_or_begins(path: &Path, beginning: &str) -> Result<bool> {
    let mut start = Vec::new();
    if path.is_file() {
        let read = File::open(path).and_then(|file| file.take(beginning.len() as u64).read_to_end(&mut start));
        read.with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(start.is_empty() || start.eq_ignore_ascii_case(beginning.as_bytes()))
}

/// Writes lines of a CSV file under the names of their fields.
pub fn write_csv<T: Serialize>(path: &Path, lines: &[T]) -> Result<()> {
    write_text(path, &csv_text(lines)?)
}

/// Lines of a CSV file under the names of their fields.
pub fn csv_text<T: Serialize>(lines: &[T]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    lines.iter().try_for_each(|line| writer.serialize(line))?;
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// Reads a CSV file whose columns are named after fields; one that is not there has no lines.
pub fn read_csv<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let read = || csv::Reader::from_path(path)?.deserialize().collect::<Result<Vec<T>, csv::Error>>();
    read().with_context(|| format!("cannot read {}", path.display()))
}
