//! Files below a folder or inside a .zip archive, seen alike. Nothing an archive says about itself is believed.

use super::DataError;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zip::ZipArchive;

/// The most that is read of one file, compressed or not.
const FILE_LIMIT: u64 = 64 << 20;
/// How deep folders may nest; ends the walk through a folder that contains itself.
const DEPTH_LIMIT: usize = 8;

/// A file or folder, by its path with `/` between the parts.
#[derive(Clone)]
pub(super) struct Entry {
    pub path: String,
    pub is_folder: bool,
    /// What [`Files::read`] wants to know.
    pub handle: usize,
}

/// Some files: a folder or an archive.
pub(super) trait Files: Send + Sync {
    /// All files and folders; hidden ones are left out.
    fn entries(&self) -> &[Entry];
    /// The first bytes of a file, so many at most.
    fn head(&self, entry: &Entry, most: u64) -> Result<Vec<u8>, DataError>;
    /// How messages name a file.
    fn display(&self, path: &str) -> String;

    /// The bytes of a file.
    fn read(&self, entry: &Entry) -> Result<Vec<u8>, DataError> {
        not_too_large(self.head(entry, FILE_LIMIT + 1)?, || self.display(&entry.path))
    }
}

/// Whether a part of a path is one that people don't mean: dotfiles and the resource forks of macOS.
fn is_hidden(part: &str) -> bool {
    part.starts_with('.') || part == "__MACOSX"
}

/// Reads to the end, but never more than [`FILE_LIMIT`].
pub(super) fn read_limited(source: impl Read, name: impl Fn() -> String) -> Result<Vec<u8>, DataError> {
    not_too_large(read_head(source, FILE_LIMIT + 1, &name)?, name)
}

fn not_too_large(bytes: Vec<u8>, name: impl FnOnce() -> String) -> Result<Vec<u8>, DataError> {
    match bytes.len() as u64 <= FILE_LIMIT {
        true => Ok(bytes),
        false => Err(DataError::TooLarge { file: name(), limit: FILE_LIMIT }),
    }
}

fn read_head(source: impl Read, most: u64, name: impl FnOnce() -> String) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    match source.take(most).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(source) => Err(DataError::Io { path: name().into(), source }),
    }
}

/// What is looked at below a folder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The `train/`, `test/` and `val/` folders in it or in the folders directly inside it. Anything else is left alone:
    /// the folder may be a person's home.
    Splits,
    /// Everything.
    All,
}

/// The files below a folder.
pub(super) struct Folder {
    root: PathBuf,
    entries: Vec<Entry>,
}

impl Folder {
    pub fn open(root: &Path, scope: Scope) -> Result<Self, DataError> {
        let mut folder = Self { root: root.to_owned(), entries: Vec::new() };
        if scope == Scope::All {
            folder.walk(String::new(), 0)?;
            return Ok(folder);
        }
        folder.splits("")?;
        for (name, is_folder) in list(root)?.named {
            if is_folder && !is_split(&name) {
                folder.splits(&format!("{name}/"))?;
            }
        }
        Ok(folder)
    }

    /// Walks through the splits of one folder.
    fn splits(&mut self, prefix: &str) -> Result<(), DataError> {
        // A neighbouring folder that may not be read holds no data set of ours.
        let Ok(inside) = list(&self.root.join(prefix)) else { return Ok(()) };
        for (name, is_folder) in inside.named {
            if is_folder && is_split(&name) {
                self.walk(format!("{prefix}{name}"), 0)?;
            }
        }
        Ok(())
    }

    fn walk(&mut self, path: String, depth: usize) -> Result<(), DataError> {
        let place = self.root.join(&path);
        if depth > DEPTH_LIMIT {
            return Err(DataError::malformed(&place, format!("folders nest more than {DEPTH_LIMIT} deep")));
        }
        let Inside { named, unnamed } = list(&place)?;
        if let Some(unnamed) = unnamed {
            return Err(DataError::malformed(&unnamed, "its name is not Unicode"));
        }
        for (name, is_folder) in named {
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            self.entries.push(Entry { path: path.clone(), is_folder, handle: 0 });
            if is_folder {
                self.walk(path, depth + 1)?;
            }
        }
        Ok(())
    }
}

fn is_split(name: &str) -> bool {
    matches!(name, "train" | "test" | "val")
}

/// What a folder holds.
struct Inside {
    /// Names and whether they are a folder's, sorted.
    named: Vec<(String, bool)>,
    /// Something whose name is not Unicode.
    unnamed: Option<PathBuf>,
}

fn list(folder: &Path) -> Result<Inside, DataError> {
    let (mut named, mut unnamed) = (Vec::new(), None);
    for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        let Ok(name) = entry.file_name().into_string() else {
            unnamed = Some(entry.path());
            continue;
        };
        if !is_hidden(&name) {
            // Follows symbolic links, which people use to put data sets together.
            named.push((name, entry.path().is_dir()));
        }
    }
    named.sort_unstable();
    Ok(Inside { named, unnamed })
}

impl Files for Folder {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn head(&self, entry: &Entry, most: u64) -> Result<Vec<u8>, DataError> {
        let path = self.root.join(&entry.path);
        // Opening a pipe would wait for somebody to write into it.
        if !path.metadata().map_err(DataError::io(&path))?.is_file() {
            return Err(DataError::malformed(&path, "it is no file"));
        }
        read_head(fs::File::open(&path).map_err(DataError::io(&path))?, most, || self.display(&entry.path))
    }

    fn display(&self, path: &str) -> String {
        self.root.join(path).display().to_string()
    }
}

/// A .zip archive, of which only the directory is in memory. Threads read entries independently.
pub(super) struct Archive {
    path: PathBuf,
    zip: ZipArchive<SharedFile>,
    entries: Vec<Entry>,
}

impl Archive {
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let fault = |fault| DataError::Archive { path: path.to_owned(), fault };
        let file = SharedFile::open(path).map_err(DataError::io(path))?;
        let zip = ZipArchive::new(file).map_err(|e| fault(format!("not a readable .zip archive: {e}")))?;
        let mut entries = Vec::new();
        for handle in 0..zip.len() {
            let file = zip.by_index_data(handle).map_err(|e| fault(format!("entry {handle}: {e}")))?;
            let name = file.name().map_err(|e| fault(format!("the name of entry {handle}: {e}")))?.into_owned();
            if file.is_symlink() {
                return Err(fault(format!("{name:?} is a symbolic link; only files and folders are read")));
            }
            let path = plain_path(&name)
                .ok_or_else(|| fault(format!("{name:?} is no plain relative path; such an archive is not read")))?;
            if !path.split('/').any(is_hidden) {
                entries.push(Entry { path: path.to_owned(), is_folder: name.ends_with('/'), handle });
            }
        }
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { path: path.to_owned(), zip, entries })
    }
}

/// An open file that is read at places of its own by every clone.
#[derive(Clone)]
struct SharedFile {
    file: Arc<File>,
    len: u64,
    at: u64,
}

impl SharedFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self { len: file.metadata()?.len(), file: Arc::new(file), at: 0 })
    }

    #[cfg(unix)]
    fn read_here(&self, into: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&*self.file, into, self.at)
    }

    #[cfg(windows)]
    fn read_here(&self, into: &mut [u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&*self.file, into, self.at)
    }
}

impl Read for SharedFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.read_here(into)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for SharedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (from, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::End(by) => (self.len, by),
            SeekFrom::Current(by) => (self.at, by),
        };
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "a place before the file's beginning");
        self.at = from.checked_add_signed(by).ok_or_else(before)?;
        Ok(self.at)
    }
}

/// An entry's name without a `./` before or a `/` behind it, if that is a path without tricks.
fn plain_path(name: &str) -> Option<&str> {
    let path = name.strip_prefix("./").unwrap_or(name);
    let path = path.strip_suffix('/').unwrap_or(path);
    let plain = !path.contains(['\\', ':', '\0']) && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    plain.then_some(path)
}

impl Files for Archive {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn head(&self, entry: &Entry, most: u64) -> Result<Vec<u8>, DataError> {
        let fault = |e: zip::result::ZipError| DataError::Archive {
            path: self.path.clone(),
            fault: format!("{}: {e}", entry.path),
        };
        // The clone shares file and directory; it only has a position of its own.
        let mut zip = self.zip.clone();
        read_head(zip.by_index(entry.handle).map_err(fault)?, most, || self.display(&entry.path))
    }

    fn display(&self, path: &str) -> String {
        format!("{}:{path}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_are_taken() {
        assert_eq!(plain_path("./train/a/1.png"), Some("train/a/1.png"));
        assert_eq!(plain_path("train/a/"), Some("train/a"));
        for odd in ["../x.png", "a/../../x.png", "/etc/x.png", "a//x.png", "a\\..\\x.png", "C:/x.png", "a/./x.png", ""]
        {
            assert_eq!(plain_path(odd), None, "{odd}");
        }
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let error = read_limited(std::io::repeat(0), || "big".into()).unwrap_err();
        assert!(matches!(error, DataError::TooLarge { ref file, limit: FILE_LIMIT } if file == "big"));
    }
}
