//! CIFAR-10 and CIFAR-100 in their binary form: records of one label byte (CIFAR-100: coarse and fine) and 3·32·32
//! pixel bytes, channel by channel.

use super::{DataError, Dataset, Images, LoadOptions, Split};
use std::fs;
use std::path::{Path, PathBuf};

const SIDE: usize = 32;
const PIXELS: usize = SIDE * SIDE;

/// Where the files are and how a record begins.
pub(super) struct Layout {
    folder: PathBuf,
    train: &'static [&'static str],
    test: &'static str,
    names: &'static str,
    /// Bytes before the pixels; the last of them is the label.
    label_bytes: usize,
    classes: usize,
}

/// A folder of binary batches, or one that holds the archive's own folder.
pub(super) fn detect(path: &Path) -> Option<Layout> {
    let ten = [path.to_owned(), path.join("cifar-10-batches-bin")].into_iter().find(|f| f.join(TEN[0]).is_file());
    if let Some(folder) = ten {
        return Some(Layout {
            folder,
            train: &TEN,
            test: "test_batch.bin",
            names: "batches.meta.txt",
            label_bytes: 1,
            classes: 10,
        });
    }
    let hundred = [path.to_owned(), path.join("cifar-100-binary")].into_iter().find(|f| f.join(HUNDRED[0]).is_file());
    hundred.map(|folder| Layout {
        folder,
        train: &HUNDRED,
        test: "test.bin",
        names: "fine_label_names.txt",
        label_bytes: 2,
        classes: 100,
    })
}

const TEN: [&str; 5] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
const HUNDRED: [&str; 1] = ["train.bin"];

pub(super) fn open(layout: &Layout, path: &Path, options: &LoadOptions) -> Result<Dataset, DataError> {
    let classes = layout.class_names()?;
    let train = layout.split(layout.train)?.limited(options.limit_train);
    let test = layout.split(&[layout.test])?;
    Dataset::new(path.display().to_string(), train, test, classes)
}

impl Layout {
    /// The names in the file beside the batches, or the labels' numbers where there is none.
    fn class_names(&self) -> Result<Vec<String>, DataError> {
        let path = self.folder.join(self.names);
        if !path.exists() {
            return Ok((0..self.classes).map(|label| label.to_string()).collect());
        }
        let text = fs::read_to_string(&path).map_err(DataError::io(&path))?;
        let names: Vec<String> =
            text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if names.len() != self.classes {
            let fault = format!("{} class names instead of {}", names.len(), self.classes);
            return Err(DataError::malformed(&path, fault));
        }
        Ok(names)
    }

    fn split(&self, batches: &[&str]) -> Result<Split, DataError> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for batch in batches {
            self.append(&self.folder.join(batch), &mut pixels, &mut labels)?;
        }
        Split::new(Images::new([SIDE, SIDE, 3], pixels)?, labels)
    }

    fn append(&self, path: &Path, pixels: &mut Vec<u8>, labels: &mut Vec<u16>) -> Result<(), DataError> {
        let bytes = fs::read(path).map_err(DataError::io(path))?;
        let size = self.label_bytes + 3 * PIXELS;
        if bytes.is_empty() || !bytes.len().is_multiple_of(size) {
            let fault = format!("{} bytes are no whole number of records of {size} bytes", bytes.len());
            return Err(DataError::malformed(path, fault));
        }
        pixels.reserve(bytes.len());
        for (record, bytes) in bytes.chunks_exact(size).enumerate() {
            let (head, planes) = bytes.split_at(self.label_bytes);
            let label = usize::from(head[self.label_bytes - 1]);
            if label >= self.classes {
                let path = path.to_owned();
                return Err(DataError::LabelOutOfRange { path, record, label, classes: self.classes });
            }
            labels.push(label as u16);
            pixels.extend((0..PIXELS).flat_map(|i| [planes[i], planes[PIXELS + i], planes[2 * PIXELS + i]]));
        }
        Ok(())
    }
}
