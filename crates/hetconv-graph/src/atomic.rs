//! Files that are either whole or not there.

use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Writes a file so that whoever looks at `path`, at any moment and after any crash, sees the old file or the new one,
/// whole: the bytes go to a temporary file beside it, which is synced and renamed. A link stays one, to the new file, and
/// a file that is there, and is the same person's, keeps its permissions. What is no file, such as a pipe or a device, takes the bytes as they come.
///
/// # Errors
/// Whatever `write` or the file system reports; the old file is then as it was, and no temporary file is left.
///
/// ```
/// use std::io::Write;
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("notes.txt");
/// hetconv_graph::atomic_write(&path, |file| file.write_all(b"whole"))?;
/// assert_eq!(std::fs::read(&path)?, b"whole");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn atomic_write(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut path = PathBuf::from(path);
    let found = path.metadata().ok();
    if let Some(found) = &found {
        if !found.is_file() && !found.is_dir() {
            let mut buffered = BufWriter::new(File::options().write(true).open(path)?);
            write(&mut buffered)?;
            return buffered.flush();
        }
        path = path.canonicalize()?;
    } else if let Ok(leads_to) = path.read_link() {
        // To where nothing is yet.
        path = path.with_file_name(leads_to);
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Dropped on every early return below, and with it the file on disk.
    let mut temporary = new_file(directory).map_err(|error| match error.kind() {
        // Told of the temporary file nobody would know what is meant.
        io::ErrorKind::NotFound if !directory.is_dir() => {
            io::Error::new(error.kind(), format!("there is no folder {}", directory.display()))
        }
        _ => error,
    })?;
    if let Some(found) = found {
        keep_permissions(&found, temporary.as_file())?;
    }
    let mut buffered = BufWriter::new(temporary.as_file_mut());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    temporary.as_file().sync_all()?;
    temporary.persist(&path).map_err(|error| error.error)?;
    sync_directory(directory)
}

/// Removes what [`atomic_write`] left in a folder when its process was killed. Nobody may be writing there. What cannot be
/// removed stays.
pub fn remove_unfinished(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            // Nobody misses the room that it takes more than the work that comes now.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// How temporary files' names begin.
const PREFIX: &str = ".hetconv-";

/// A temporary file with the permissions any new file would have; the default of temporary files is private.
#[cfg(unix)]
fn new_file(directory: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    // The process's umask is applied to these by the system.
    let permissions = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(PREFIX).permissions(permissions).tempfile_in(directory)
}

/// Gives a file the permissions of the one it will replace, if both are the same person's: they are then what that person
/// wanted.
#[cfg(unix)]
fn keep_permissions(of: &Metadata, file: &File) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let new = file.metadata()?;
    if new.uid() == of.uid() && new.mode() != of.mode() {
        // Some file systems have no permissions to change.
        let _ = file.set_permissions(of.permissions());
    }
    Ok(())
}

#[cfg(not(unix))]
fn keep_permissions(_: &Metadata, _: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn new_file(directory: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(PREFIX).tempfile_in(directory)
}

/// Makes the rename itself survive a crash.
#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Elsewhere directories cannot be opened as files, and renames are durable without.
#[cfg(not(unix))]
fn sync_directory(directory: &Path) -> io::Result<()> {
    directory.metadata().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_writer_that_fails_half_way_leaves_the_old_file_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model");
        atomic_write(&path, |file| file.write_all(b"old")).unwrap();
        let failed = atomic_write(&path, |file| {
            file.write_all(&vec![7; 100_000])?;
            Err(io::Error::other("disk on fire"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "disk on fire");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(directory.path()), ["model"]);
        atomic_write(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(entries(directory.path()), ["model"]);
    }

    #[test]
    fn a_writer_that_panics_leaves_the_old_file_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model");
        atomic_write(&path, |file| file.write_all(b"old")).unwrap();
        let write = || atomic_write(&path, |_| panic!("half way"));
        assert!(std::panic::catch_unwind(write).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(directory.path()), ["model"]);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let killed = new_file(directory.path()).unwrap();
        killed.keep().unwrap();
        std::fs::write(directory.path().join("model"), "whole").unwrap();
        assert_eq!(entries(directory.path()).len(), 2);
        remove_unfinished(directory.path());
        assert_eq!(entries(directory.path()), ["model"]);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let error = atomic_write(&directory.path().join("no/where"), |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn a_private_file_stays_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model");
        for mode in [0o600, 0o666] {
            std::fs::write(&path, "old").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            atomic_write(&path, |file| file.write_all(b"new")).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_and_pipes_stay_what_they_are() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let directory = tempfile::tempdir().unwrap();
        let [file, link, pipe] = ["file", "link", "pipe"].map(|name| directory.path().join(name));
        std::fs::write(&file, "old").unwrap();
        symlink("file", &link).unwrap();
        atomic_write(&link, |to| to.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        std::fs::remove_file(&file).unwrap();
        atomic_write(&link, |to| to.write_all(b"newer")).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"newer");
        assert!(link.is_symlink());

        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        atomic_write(&pipe, |to| to.write_all(b"through")).unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(pipe.metadata().unwrap().file_type().is_fifo());
    }
}
