//! CIFAR binary batches and IDX files: what is read must be what was written, and each malformation is told.

use hetconv_train::{DataError, Dataset, LoadOptions};
use std::fs;
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;

fn open(path: &Path) -> Result<Dataset, DataError> {
    Dataset::open_path(path, &LoadOptions::default(), &mut |_, _| ())
}

fn error(path: &Path) -> DataError {
    open(path).map(|data| data.name).unwrap_err()
}

/// A record whose pixels tell channel and place apart.
fn record(labels: &[u8], salt: usize) -> Vec<u8> {
    let pixels = (0..3 * 1024).map(|i| ((i / 1024) * 71 + (i % 1024) * 3 + salt) as u8);
    labels.iter().copied().chain(pixels).collect()
}

fn cifar10() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for batch in 1..=5u8 {
        let bytes = [record(&[batch], batch.into()), record(&[9 - batch], 100 + usize::from(batch))].concat();
        fs::write(root.path().join(format!("data_batch_{batch}.bin")), bytes).unwrap();
    }
    fs::write(root.path().join("test_batch.bin"), record(&[0], 50)).unwrap();
    root
}

fn cifar100() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("train.bin"), [record(&[3, 99], 1), record(&[4, 7], 2)].concat()).unwrap();
    fs::write(root.path().join("test.bin"), record(&[19, 42], 3)).unwrap();
    root
}

#[test]
fn cifar10_batches_become_interleaved_images() {
    let root = cifar10();
    fs::write(root.path().join("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
    let data = open(root.path()).unwrap();
    assert_eq!(data.train.labels(), [1, 8, 2, 7, 3, 6, 4, 5, 5, 4]);
    assert_eq!(data.classes[9], "j");
    // Image 3 is the second of batch 2, salted with 102.
    let image = data.train.images().unwrap().image(3);
    for place in [0, 1, 32, 1023] {
        let expected = [0, 1, 2].map(|channel| (channel * 71 + place * 3 + 102) as u8);
        assert_eq!(image[place * 3..][..3], expected);
    }
}

#[test]
fn cifar_in_the_archives_own_folder_and_by_default_names() {
    let root = tempfile::tempdir().unwrap();
    fs::rename(cifar10().keep(), root.path().join("cifar-10-batches-bin")).unwrap();
    let data = open(root.path()).unwrap();
    assert_eq!((data.train.len(), data.classes[3].as_str()), (10, "3"));
}

#[test]
fn cifar100_uses_fine_labels() {
    let data = open(cifar100().path()).unwrap();
    assert_eq!((data.train.labels(), data.test.labels()), ([99, 7].as_slice(), [42].as_slice()));
    assert_eq!(data.classes.len(), 100);
}

#[test]
fn a_limit_applies_to_training_only() {
    let options = LoadOptions { limit_train: Some(3), ..Default::default() };
    let data = Dataset::open_path(cifar10().path(), &options, &mut |_, _| ()).unwrap();
    assert_eq!((data.train.len(), data.test.len()), (3, 1));
}

#[test]
fn cifar_records_cut_short() {
    let root = cifar10();
    let path = root.path().join("data_batch_4.bin");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(error(root.path()), DataError::Malformed { path, .. } if path.ends_with("data_batch_4.bin")));
    fs::write(&path, b"").unwrap();
    assert!(matches!(error(root.path()), DataError::Malformed { .. }));
}

#[test]
fn a_missing_batch() {
    let root = cifar10();
    fs::remove_file(root.path().join("data_batch_3.bin")).unwrap();
    assert!(matches!(error(root.path()), DataError::Io { path, .. } if path.ends_with("data_batch_3.bin")));
}

#[test]
fn a_cifar_label_out_of_range_names_file_and_record() {
    let root = cifar10();
    fs::write(root.path().join("data_batch_5.bin"), [record(&[1], 0), record(&[10], 0)].concat()).unwrap();
    let found = error(root.path());
    assert!(
        matches!(&found, DataError::LabelOutOfRange { path, record: 1, label: 10, classes: 10 } if path.ends_with("data_batch_5.bin")),
        "{found}"
    );
    let root = cifar100();
    fs::write(root.path().join("test.bin"), record(&[0, 100], 0)).unwrap();
    assert!(matches!(error(root.path()), DataError::LabelOutOfRange { record: 0, label: 100, classes: 100, .. }));
}

#[test]
fn class_names_of_the_wrong_number() {
    let root = cifar10();
    fs::write(root.path().join("batches.meta.txt"), "a\nb\n").unwrap();
    assert!(matches!(error(root.path()), DataError::Malformed { path, .. } if path.ends_with("batches.meta.txt")));
}

fn idx(dims: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, dims.len() as u8];
    file.extend(dims.iter().flat_map(|size| size.to_be_bytes()));
    file.extend(bytes);
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// Three training and two test images of 2 rows and 3 columns; the test half is packed.
fn mnist() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: Vec<u8>| fs::write(root.path().join(name), bytes).unwrap();
    write("train-images-idx3-ubyte", idx(&[3, 2, 3], &(0..18).collect::<Vec<_>>()));
    write("train-labels-idx1-ubyte", idx(&[3], &[2, 0, 1]));
    write("t10k-images-idx3-ubyte.gz", gzip(&idx(&[2, 2, 3], &(100..112).collect::<Vec<_>>())));
    write("t10k-labels-idx1-ubyte.gz", gzip(&idx(&[2], &[1, 2])));
    root
}

/// The error after one file has been replaced.
fn mnist_with(name: &str, bytes: Vec<u8>) -> DataError {
    let root = mnist();
    fs::write(root.path().join(name), bytes).unwrap();
    let found = error(root.path());
    let named = match &found {
        DataError::Malformed { path, .. } | DataError::LabelOutOfRange { path, .. } => path.ends_with(name),
        _ => false,
    };
    assert!(named, "{found} should name {name}");
    found
}

#[test]
fn idx_files_packed_or_not() {
    let data = open(mnist().path()).unwrap();
    assert_eq!(data.train.shape(), [2, 3, 1]);
    assert_eq!(data.train.images().unwrap().image(1), [6, 7, 8, 9, 10, 11]);
    assert_eq!(data.test.images().unwrap().image(1)[0], 106);
    assert_eq!((data.train.labels(), data.test.labels()), ([2, 0, 1].as_slice(), [1, 2].as_slice()));
    assert_eq!(data.classes, ["0", "1", "2"]);
}

#[test]
fn idx_class_names() {
    let root = mnist();
    fs::write(root.path().join("classes.txt"), "shoe\nshirt\ncoat\n").unwrap();
    assert_eq!(open(root.path()).unwrap().classes[2], "coat");
    fs::write(root.path().join("classes.txt"), "shoe\nshirt\n").unwrap();
    let error = open(root.path()).unwrap_err().to_string();
    assert!(error.contains("classes.txt") && error.contains("2 class names, but labels up to 2"), "{error}");
    // Fashion-MNIST is known by its labels, whatever its folder is called.
    let mut labels =
        vec![9, 2, 1, 1, 6, 1, 4, 6, 5, 7, 4, 5, 7, 3, 4, 1, 2, 4, 8, 0, 2, 5, 7, 9, 1, 4, 6, 0, 9, 3, 8, 8];
    let mut classes = || {
        let root = mnist();
        let count = labels.len() as u32;
        fs::write(root.path().join("t10k-images-idx3-ubyte"), idx(&[count, 2, 3], &vec![7; 6 * labels.len()])).unwrap();
        fs::write(root.path().join("t10k-labels-idx1-ubyte"), idx(&[count], &labels)).unwrap();
        fs::write(root.path().join("train-labels-idx1-ubyte"), idx(&[3], &[9, 0, 1])).unwrap();
        labels[0] -= 1;
        open(root.path()).unwrap().classes
    };
    assert_eq!(classes()[9], "Ankle boot");
    assert_eq!(classes()[9], "9");
}

#[test]
fn idx_magic_numbers() {
    let mut float = idx(&[3, 2, 3], &[0; 18]);
    float[2] = 0x0d;
    mnist_with("train-images-idx3-ubyte", float);
    mnist_with("train-labels-idx1-ubyte", idx(&[3, 1], &[0, 0, 0]));
    mnist_with("train-labels-idx1-ubyte", vec![0, 0, 8]);
}

#[test]
fn idx_files_shorter_or_longer_than_they_say() {
    mnist_with("train-images-idx3-ubyte", idx(&[3, 2, 3], &[0; 17]));
    mnist_with("train-images-idx3-ubyte", idx(&[3, 2, 3], &[0; 19]));
    mnist_with("t10k-labels-idx1-ubyte.gz", gzip(&idx(&[2], &[1])));
}

#[test]
fn idx_headers_that_announce_the_moon() {
    let huge = mnist_with("train-images-idx3-ubyte", idx(&[u32::MAX, u32::MAX, u32::MAX], &[0; 18]));
    assert!(huge.to_string().contains("announces"), "{huge}");
    // Within the limit, but not there: nothing is set aside for it.
    mnist_with("train-images-idx3-ubyte", idx(&[1 << 20, 28, 28], &[0; 18]));
}

#[test]
fn idx_images_of_no_size_and_labels_of_another_number() {
    mnist_with("train-images-idx3-ubyte", idx(&[3, 0, 3], &[]));
    mnist_with("train-labels-idx1-ubyte", idx(&[2], &[0, 1]));
}

#[test]
fn idx_gzip_that_is_torn() {
    let whole = gzip(&idx(&[2, 2, 3], &[7; 12]));
    mnist_with("t10k-images-idx3-ubyte.gz", whole[..whole.len() - 9].to_vec());
}

#[test]
fn an_idx_label_out_of_range_names_file_and_record() {
    let found = mnist_with("t10k-labels-idx1-ubyte.gz", gzip(&idx(&[2], &[1, 3])));
    assert!(matches!(found, DataError::LabelOutOfRange { record: 1, label: 3, classes: 3, .. }));
}
