//! Data sets known by name, and where they are looked for.

use super::{DataError, synthetic};
use hetconv_graph::nearest;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A data set that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownDataset {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub description: &'static str,
    /// What it may be called inside a data folder.
    pub files: &'static [&'static str],
    /// Where a distribution's package puts it.
    pub system: &'static [&'static str],
    /// How to get it, as the end of "to get it, …".
    pub how: &'static str,
}

/// All data sets known by name, besides the built-in `synthetic`.
pub const KNOWN: [KnownDataset; 4] = [
    KnownDataset {
        name: "cifar10",
        description: "60,000 photos, 32×32 RGB, 10 classes",
        files: &["cifar10", "cifar10.zip", "cifar-10-batches-bin", "cifar10-images.zip"],
        system: &[],
        how: "unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz in the folder of one of these",
    },
    KnownDataset {
        name: "cifar100",
        description: "60,000 photos, 32×32 RGB, 100 classes",
        files: &["cifar100", "cifar100.zip", "cifar-100-binary"],
        system: &[],
        how: "unpack https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz in the folder of one of these",
    },
    KnownDataset {
        name: "fashion-mnist",
        description: "70,000 pictures of clothes, 28×28 grey, 10 classes",
        files: &["fashion-mnist"],
        system: &["/usr/share/datasets/fashion-mnist"],
        how: "install Debian's package dataset-fashion-mnist, or put its four IDX files into one of these",
    },
    KnownDataset {
        name: "mnist",
        description: "70,000 handwritten digits, 28×28 grey, 10 classes",
        files: &["mnist"],
        system: &[],
        how: "put its four IDX files (train-images-idx3-ubyte.gz and so on) into one of these",
    },
];

impl KnownDataset {
    /// Every place where it is looked for, in order.
    pub fn places(&self, folders: &[PathBuf]) -> Vec<PathBuf> {
        let ours = folders.iter().flat_map(|folder| self.files.iter().map(move |file| folder.join(file)));
        ours.chain(self.system.iter().map(PathBuf::from)).collect()
    }
}

/// The folders that are searched for data sets: `$HETCONV_DATA`, then the person's data folder
/// (`$XDG_DATA_HOME/hetconv` or `~/.local/share/hetconv`).
pub fn search_folders() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || variable("HOME").or_else(|| variable("USERPROFILE")).map(|home| home.join(".local/share"));
    let personal = variable("XDG_DATA_HOME").or_else(home).map(|folder| folder.join("hetconv"));
    variable("HETCONV_DATA").into_iter().chain(personal).collect()
}

/// One line of the list of data sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CatalogEntry {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub description: &'static str,
    /// Whether it can be opened now.
    pub present: bool,
    /// Where it is, if it is a file or folder on this machine.
    pub path: Option<PathBuf>,
    /// Where it was looked for.
    pub looked: Vec<PathBuf>,
    /// How to get it.
    pub how: &'static str,
}

/// All known data sets and whether they are in one of these folders (see [`search_folders`]).
pub fn catalog(folders: &[PathBuf]) -> Vec<CatalogEntry> {
    let built_in = CatalogEntry {
        name: synthetic::NAME,
        description: "10,000 generated textures, 32×32 RGB, 10 classes",
        present: true,
        path: None,
        looked: Vec::new(),
        how: "nothing: it is built in",
    };
    let known = KNOWN.iter().map(|known| {
        let looked = known.places(folders);
        let path = looked.iter().find(|path| path.exists()).cloned();
        let KnownDataset { name, description, how, .. } = *known;
        CatalogEntry { name, description, present: path.is_some(), path, looked, how }
    });
    std::iter::once(built_in).chain(known).collect()
}

/// The path of a data set by name: a known one, or whatever else lies in a data folder under that name.
pub(super) fn find<'a>(name: &'a str, folders: &[PathBuf]) -> Result<(&'a str, PathBuf), DataError> {
    if let Some(known) = KNOWN.iter().find(|known| known.name == name) {
        let looked = known.places(folders);
        return match looked.iter().find(|path| path.exists()) {
            Some(path) => Ok((name, path.clone())),
            None => Err(DataError::NotPresent { name: name.to_owned(), looked, how: known.how.to_owned() }),
        };
    }
    let mut looked = vec![PathBuf::from(name)];
    // Only a bare name; a path with folders in it means what it says.
    let is_bare = Path::new(name).file_name().is_some_and(|bare| bare == name);
    // A file's name means that file.
    let is_name = is_bare && Path::new(name).extension().is_none_or(|extension| extension != "zip");
    if is_bare {
        let zipped = is_name.then(|| format!("{name}.zip"));
        let ways = || [Some(name), zipped.as_deref()].into_iter().flatten();
        looked.extend(folders.iter().flat_map(|folder| ways().map(|way| folder.join(way))));
    }
    if let Some(path) = looked.iter().find(|path| path.exists()) {
        return Ok((name, path.clone()));
    }
    let names = KNOWN.iter().map(|known| known.name).chain([synthetic::NAME]);
    let nearest = nearest(name, names).filter(|_| is_name).map(str::to_owned);
    Err(DataError::UnknownName { name: name.to_owned(), looked, nearest })
}

/// What a data set found under a name is called: a known one may lie there in several forms, so by that of its file.
pub(super) fn own_name(name: &str, path: &Path) -> String {
    path.file_name().map_or_else(|| name.to_owned(), |file| file.to_string_lossy().into_owned())
}

/// What a data set will be called once it is opened, its folders left out, if it is there.
pub fn name_of(spec: &str) -> String {
    if spec == synthetic::NAME {
        return spec.to_owned();
    }
    match find(spec, &search_folders()) {
        // As where it is opened, a path that exists wins.
        Ok((name, path)) if !Path::new(spec).exists() => own_name(name, &path),
        _ => own_name(spec, Path::new(spec)),
    }
}

/// Whether two ways to name a data set mean the same one; nothing if that cannot be told from here, since one of them is not
/// there, or no longer.
pub fn is_same_data(one: &str, other: &str) -> Option<bool> {
    if one == other {
        return Some(true);
    }
    let place = |spec: &str| {
        let path = Path::new(spec);
        let found = if path.exists() { path.to_owned() } else { find(spec, &search_folders()).ok()?.1 };
        found.canonicalize().ok()
    };
    if [one, other].contains(&synthetic::NAME) {
        return Some(false);
    }
    Some(place(one)? == place(other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_says_where_and_suggests() {
        let error = find("fashon-mnist", &["/nowhere".into()]).unwrap_err().to_string();
        assert!(
            error.contains("/nowhere/fashon-mnist") && error.contains("did you mean \"fashion-mnist\"?"),
            "{error}"
        );
        let error = find("photos.zip", &["/nowhere".into()]).unwrap_err().to_string();
        assert_eq!(error, "no data set \"photos.zip\": looked for photos.zip, /nowhere/photos.zip");
        let error = find("some/odd/path", &["/nowhere".into()]).unwrap_err().to_string();
        assert!(!error.contains("did you mean") && !error.contains("/nowhere/"), "{error}");
    }

    #[test]
    fn a_known_name_that_is_missing_says_how_to_get_it() {
        let error = find("cifar100", &["/nowhere".into()]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/cifar-100-binary") && error.contains("to get it, unpack"), "{error}");
    }

    #[test]
    fn the_same_data_by_other_paths() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir_all(path("a/photos")).unwrap();
        std::fs::create_dir_all(path("b/photos")).unwrap();
        assert_eq!(is_same_data(&path("a/photos"), &path("b/../a/photos")), Some(true));
        assert_eq!(is_same_data(&path("a/photos"), &path("b/photos")), Some(false));
        assert_eq!(is_same_data(&path("moved/photos"), &path("b/photos")), None);
        assert_eq!(is_same_data(&path("moved/photos"), &path("moved/photos")), Some(true));
        assert_eq!(is_same_data("synthetic", &path("a/photos")), Some(false));
    }

    #[test]
    fn names_are_found_in_data_folders() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [PathBuf::from("/nowhere"), folder.path().to_owned()];
        std::fs::create_dir(folder.path().join("mnist")).unwrap();
        std::fs::write(folder.path().join("birds.zip"), "").unwrap();
        assert_eq!(find("mnist", &folders).unwrap().1, folder.path().join("mnist"));
        assert_eq!(find("birds", &folders).unwrap().1, folder.path().join("birds.zip"));
        let list = catalog(&folders);
        let present = |name| list.iter().find(|entry| entry.name == name).unwrap().present;
        assert!(present("synthetic") && present("mnist") && !present("cifar10"));
    }
}
