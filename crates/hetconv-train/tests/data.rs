//! Data sets from files: what is read must be what was written, and everything that is wrong must be said.

use hetconv_train::{DataError, Dataset, LoadOptions};
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

/// Bytes that tell every image, row, column and channel apart.
fn pixel(image: u32, x: u32, y: u32, channel: u32) -> u8 {
    (image * 67 + y * 29 + x * 11 + channel * 83) as u8
}

fn png(image: u32, width: u32, height: u32) -> Vec<u8> {
    let rgb = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([0, 1, 2].map(|c| pixel(image, x, y, c))));
    encode(&rgb.into())
}

fn encode(image: &image::DynamicImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A well-formed set: classes `ant` and `bee`, two training images and one test image of each.
fn good(split: &str, width: u32, height: u32) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for (class, first) in [("ant", 0), ("bee", 2)] {
        for i in 0..2 {
            files.push((format!("train/{class}/{i}.png"), png(first + i, width, height)));
        }
    }
    for (class, image) in [("ant", 4), ("bee", 5)] {
        files.push((format!("{split}/{class}/0.png"), png(image, width, height)));
    }
    files
}

fn folder(files: &[(String, Vec<u8>)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    root
}

/// An archive of these files; a name that ends in `/` is a folder.
fn archive(files: &[(String, Vec<u8>)]) -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.zip");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    for (name, bytes) in files {
        if name.ends_with('/') {
            zip.add_directory(name.as_str(), SimpleFileOptions::default()).unwrap();
        } else {
            zip.start_file(name.as_str(), SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
    }
    zip.finish().unwrap();
    (root, path)
}

fn open(path: &Path) -> Result<Dataset, DataError> {
    Dataset::open(path.to_str().unwrap(), &LoadOptions::default())
}

fn error(path: &Path) -> DataError {
    open(path).map(|data| data.name).unwrap_err()
}

fn assert_good(data: &Dataset, [width, height]: [u32; 2]) {
    assert_eq!(data.classes, ["ant", "bee"]);
    assert_eq!(data.train.labels(), [0, 0, 1, 1]);
    assert_eq!(data.test.labels(), [0, 1]);
    assert_eq!(data.train.shape(), [height as usize, width as usize, 3]);
    let images = (0..4)
        .map(|i| data.train.images().unwrap().image(i))
        .chain((0..2).map(|i| data.test.images().unwrap().image(i)));
    for (image, bytes) in (0..).zip(images) {
        let mut expected = Vec::new();
        for y in 0..height {
            for x in 0..width {
                expected.extend((0..3).map(|c| pixel(image, x, y, c)));
            }
        }
        assert_eq!(bytes, expected, "image {image}");
    }
}

#[test]
fn folders_with_test_or_val() {
    for split in ["test", "val"] {
        assert_good(&open(folder(&good(split, 5, 3)).path()).unwrap(), [5, 3]);
    }
}

#[test]
fn hidden_files_and_files_beside_class_folders_are_left_out() {
    let mut files = good("test", 4, 4);
    files.push(("train/ant/.DS_Store".into(), b"junk".into()));
    files.push(("train/labels.csv".into(), b"junk".into()));
    files.push((".cache/train/x/1.png".into(), b"junk".into()));
    assert_good(&open(folder(&files).path()).unwrap(), [4, 4]);
    files.push(("__MACOSX/train/ant/._0.png".into(), b"junk".into()));
    files.push(("README.md".into(), b"junk".into()));
    assert_good(&open(&archive(&files).1).unwrap(), [4, 4]);
}

/// Linux has file names that are not Unicode, and pipes.
#[cfg(target_os = "linux")]
#[test]
fn odd_things_matter_within_splits_alone() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = folder(&good("test", 8, 8));
    let odd = OsStr::from_bytes(b"notes\xff.txt");
    std::fs::write(folder.path().join(odd), "").unwrap();
    assert_good(&open(folder.path()).unwrap(), [8, 8]);
    let class = folder.path().join("train/ant");
    std::fs::write(class.join(odd), "").unwrap();
    assert!(error(folder.path()).to_string().contains("not Unicode"));
    std::fs::remove_file(class.join(odd)).unwrap();
    let made = std::process::Command::new("mkfifo").arg(class.join("pipe.png")).status().unwrap();
    assert!(made.success());
    assert!(error(folder.path()).to_string().contains("it is no file"));
}

#[test]
fn archives_and_folders_below_one_top_folder() {
    let below: Vec<_> = good("test", 4, 4).into_iter().map(|(name, bytes)| (format!("top/{name}"), bytes)).collect();
    assert_good(&open(&archive(&below).1).unwrap(), [4, 4]);
    assert_good(&open(folder(&below).path()).unwrap(), [4, 4]);
    assert_good(&open(&archive(&good("val", 4, 4)).1).unwrap(), [4, 4]);
}

#[test]
fn grey_images_keep_one_channel_unless_some_have_colours() {
    let mut files = good("test", 4, 4);
    let grey = image::GrayImage::from_fn(4, 4, |x, y| image::Luma([pixel(9, x, y, 0)]));
    files[0].1 = encode(&grey.clone().into());
    let mixed = open(folder(&files).path()).unwrap();
    assert_eq!(mixed.train.shape(), [4, 4, 3]);
    assert_eq!(mixed.train.images().unwrap().image(0)[3..6], [pixel(9, 1, 0, 0); 3]);
    files.iter_mut().for_each(|(_, bytes)| *bytes = encode(&grey.clone().into()));
    let data = open(folder(&files).path()).unwrap();
    assert_eq!(data.train.shape(), [4, 4, 1]);
    assert_eq!(data.test.images().unwrap().image(1), grey.as_raw().as_slice());
}

#[test]
fn impossible_image_sizes_are_refused() {
    let root = folder(&good("test", 8, 8));
    for size in [0, 4097, (1 << 32) + 4] {
        let options = LoadOptions { image_size: Some(size), ..Default::default() };
        for data in [root.path().to_str().unwrap(), "synthetic"] {
            let error = Dataset::open(data, &options).map(|data| data.name).unwrap_err();
            assert!(matches!(error, DataError::ImageSize { size: found, limit: 4096 } if found == size), "{error}");
        }
    }
}

#[test]
fn a_limit_keeps_classes_balanced() {
    let options = LoadOptions { limit_train: Some(2), ..Default::default() };
    let data = Dataset::open_path(folder(&good("test", 4, 4)).path(), &options, &mut |_, _| ()).unwrap();
    assert_eq!((data.train.labels(), data.test.len()), ([0, 1].as_slice(), 2));
    assert_eq!(data.train.images().unwrap().image(1)[0], pixel(2, 0, 0, 0));
}

#[test]
fn an_image_that_is_none_is_named() {
    let mut files = good("test", 4, 4);
    files[2].1 = b"not an image".into();
    for path in [folder(&files).keep(), archive(&files).0.keep().join("set.zip")] {
        let error = error(&path);
        assert!(matches!(&error, DataError::NotAnImage { file, .. } if file.ends_with("train/bee/0.png")), "{error}");
    }
}

#[test]
fn a_truncated_image_is_named() {
    let mut files = good("test", 40, 40);
    let half = files[5].1.len() / 2;
    files[5].1.truncate(half);
    let error = error(folder(&files).path());
    assert!(matches!(&error, DataError::NotAnImage { file, .. } if file.ends_with("test/bee/0.png")), "{error}");
}

#[test]
fn an_image_that_claims_to_be_huge_is_refused() {
    let mut files = good("test", 4, 4);
    // Width and height of a PNG stand at bytes 16 to 24; the checksum behind them is put right.
    let header = &mut files[1].1;
    header[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let crc = crc32(&header[12..29]);
    header[29..33].copy_from_slice(&crc.to_be_bytes());
    let error = error(folder(&files).path());
    assert!(matches!(&error, DataError::NotAnImage { file, .. } if file.ends_with("train/ant/1.png")), "{error}");
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[test]
fn sizes_that_differ() {
    let mut files = good("test", 4, 4);
    files[3].1 = png(3, 4, 5);
    let error = error(folder(&files).path());
    assert!(
        matches!(&error, DataError::SizeDiffers { file, expected: [4, 4], found: [5, 4] } if file.ends_with("bee/1.png")),
        "{error}"
    );
}

#[test]
fn an_empty_class_folder() {
    let files = good("test", 4, 4);
    let root = folder(&files);
    fs::create_dir_all(root.path().join("train/cat")).unwrap();
    let found = error(root.path());
    assert!(matches!(&found, DataError::EmptyClass { folder } if folder.ends_with("train/cat")), "{found}");

    let mut files = files;
    files.push(("test/cat/".into(), Vec::new()));
    let found = error(&archive(&files).1);
    assert!(matches!(&found, DataError::EmptyClass { folder } if folder.ends_with("test/cat")), "{found}");
}

#[test]
fn classes_that_differ() {
    let mut files = good("test", 4, 4);
    files.push(("test/cat/0.png".into(), png(7, 4, 4)));
    let error = error(folder(&files).path());
    let DataError::ClassMismatch { only_train, only_test, .. } = &error else { panic!("{error}") };
    assert_eq!((only_train.as_slice(), only_test.as_slice()), ([].as_slice(), ["cat".to_owned()].as_slice()));
}

#[test]
fn splits_without_classes() {
    let mut files = good("test", 4, 4);
    files.retain(|(name, _)| name.starts_with("train"));
    let found = error(folder(&files).path());
    assert!(matches!(&found, DataError::NoClasses { folder } if folder.ends_with("test")), "{found}");
    let root = folder(&good("test", 4, 4)[4..]);
    fs::create_dir(root.path().join("train")).unwrap();
    assert!(matches!(error(root.path()), DataError::NoClasses { .. } | DataError::UnknownLayout { .. }));
}

#[test]
fn a_folder_or_file_that_is_no_data_set() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("notes.txt"), "hello").unwrap();
    assert!(matches!(error(root.path()), DataError::UnknownLayout { .. }));
    let found = error(&root.path().join("notes.txt"));
    assert!(matches!(&found, DataError::Archive { path, .. } if path.ends_with("notes.txt")), "{found}");
}

#[test]
fn odd_paths_in_archives_are_refused() {
    for name in ["../train/ant/9.png", "/train/ant/9.png", "train/ant/../../9.png", "train\\ant\\9.png"] {
        let mut files = good("test", 4, 4);
        files.push((name.into(), png(9, 4, 4)));
        let error = error(&archive(&files).1);
        assert!(matches!(error, DataError::Archive { .. }), "{name}: {error}");
    }
}

#[test]
fn an_entry_that_unpacks_to_too_much_is_refused() {
    let mut files = good("test", 4, 4);
    files[0].1 = vec![0; (64 << 20) + 1];
    let error = error(&archive(&files).1);
    assert!(matches!(&error, DataError::TooLarge { file, .. } if file.ends_with("train/ant/0.png")), "{error}");
}

#[test]
fn a_torn_archive_is_refused() {
    let (_root, path) = archive(&good("test", 4, 4));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(error(&path), DataError::Archive { .. }));
    // A byte of an entry's data is wrong: its checksum says so.
    let mut bytes = bytes;
    bytes[60] ^= 0xff;
    fs::write(&path, &bytes).unwrap();
    assert!(open(&path).is_err());
}

#[test]
fn the_unknown_name_is_explained() {
    let error = Dataset::open("syntetic", &LoadOptions::default()).map(|data| data.name).unwrap_err().to_string();
    assert!(error.contains("did you mean \"synthetic\"?"), "{error}");
}

#[test]
fn the_real_cifar10() {
    let data = match Dataset::open("cifar10", &LoadOptions::default()) {
        Err(DataError::NotPresent { .. }) => {
            return println!("SKIPPED: HETCONV_DATA names no folder that holds CIFAR-10");
        }
        found => found.unwrap(),
    };
    assert_eq!((data.train.len(), data.test.len(), data.classes.len()), (50_000, 10_000, 10));
    assert_eq!(data.train.shape(), [32, 32, 3]);
    for class in 0..10 {
        assert_eq!(data.train.labels().iter().filter(|&&label| label == class).count(), 5_000);
    }
    // The published statistics, which compressing the images hardly changes.
    let normalisation = data.train.normalisation();
    for (found, expected) in normalisation.mean.iter().zip([0.4914, 0.4822, 0.4465]) {
        assert!((found - expected).abs() < 0.005, "{normalisation:?}");
    }
    for (found, expected) in normalisation.std.iter().zip([0.247, 0.2435, 0.2616]) {
        assert!((found - expected).abs() < 0.005, "{normalisation:?}");
    }
}
