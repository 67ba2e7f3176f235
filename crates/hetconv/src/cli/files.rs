//! Files that commands write, whole or not at all.

use std::path::Path;

use anyhow::{Context, Result};
use hetconv::graph::atomic_write;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes text.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    atomic_write(path, |file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
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
