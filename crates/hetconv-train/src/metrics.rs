//! What a run reports: `metrics.csv`, one line an epoch, and `summary.json` at its end.

use hetconv_graph::atomic_write;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// One line of `metrics.csv`. Losses are means per image in nats; top-1 and top-5 are fractions from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochMetrics {
    /// Number of epochs finished: the first line says 1.
    pub epoch: u64,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    /// Training loss, label smoothing included.
    pub train_loss: f64,
    /// Top-1 accuracy on the training batches as they came by.
    pub train_top1: f64,
    /// Loss on the held-out split, without smoothing.
    pub eval_loss: f64,
    /// Top-1 accuracy on the held-out split.
    pub eval_top1: f64,
    /// Top-5 accuracy on the held-out split.
    pub eval_top5: f64,
    /// Training images per second.
    pub images_per_second: f64,
    /// Seconds the epoch took, evaluation left out.
    pub seconds: f64,
}

/// Why metrics or a summary could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line or value that makes no sense.
    #[error("{} is malformed: {fault}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        fault: String,
    },
    /// The file ends before the epoch a run is resumed from.
    #[error("{} holds {found} epochs, but the checkpoint was made after {expected}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Epochs the checkpoint has seen.
        expected: u64,
        /// Epochs in the file.
        found: u64,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> MetricsError {
    let path = path.to_owned();
    |source| MetricsError::Io { path, source }
}

/// All lines of a `metrics.csv`.
///
/// # Errors
/// A file that cannot be read, other columns than those of [`EpochMetrics`], or a value that is no number.
pub fn read_metrics(path: &Path) -> Result<Vec<EpochMetrics>, MetricsError> {
    let (rows, fault) = read_until_fault(&fs::read(path).map_err(io_error(path))?);
    fault.map_or(Ok(rows), |fault| Err(MetricsError::Malformed { path: path.to_owned(), fault }))
}

/// The lines of a `metrics.csv` before the first that makes no sense, such as one that a kill tore.
///
/// # Errors
/// A file that cannot be read.
pub fn read_whole_metrics(path: &Path) -> Result<Vec<EpochMetrics>, MetricsError> {
    let bytes = fs::read(path).map_err(io_error(path))?;
    // What is left of a torn line may make sense by itself.
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    Ok(read_until_fault(&bytes[..whole]).0)
}

/// The lines before the first that makes no sense, and what is wrong with that one.
fn read_until_fault(bytes: &[u8]) -> (Vec<EpochMetrics>, Option<String>) {
    let mut rows = Vec::new();
    for row in csv::Reader::from_reader(bytes).deserialize() {
        match row {
            Ok(row) => rows.push(row),
            Err(error) => return (rows, Some(error.to_string())),
        }
    }
    (rows, None)
}

/// Appends lines to a `metrics.csv`, each on the disk before the next epoch begins.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Begins a new file, which replaces any old one.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn create(path: &Path) -> Result<Self, MetricsError> {
        Self::rewrite(path, &[])
    }

    /// Goes on with a file after so many epochs: later lines, whole or torn, are cut off. A run writes an epoch's line
    /// before the checkpoint that follows the epoch, so that earlier lines are always there.
    ///
    /// # Errors
    /// [`MetricsError::Missing`] if they are not, and as [`read_metrics`] and [`MetricsWriter::create`].
    pub fn resume(path: &Path, epochs: u64) -> Result<Self, MetricsError> {
        if epochs == 0 {
            return Self::create(path);
        }
        let (mut rows, fault) = read_until_fault(&fs::read(path).map_err(io_error(path))?);
        rows.truncate(usize::try_from(epochs).unwrap_or(usize::MAX));
        let found = (1..).zip(&rows).take_while(|(epoch, row)| row.epoch == *epoch).count() as u64;
        if found < epochs {
            let path = path.to_owned();
            return Err(match fault {
                Some(fault) => MetricsError::Malformed { path, fault },
                None => MetricsError::Missing { path, expected: epochs, found },
            });
        }
        Self::rewrite(path, &rows)
    }

    fn rewrite(path: &Path, rows: &[EpochMetrics]) -> Result<Self, MetricsError> {
        let mut lines = format!("{}\n", COLUMNS.join(",")).into_bytes();
        for row in rows {
            lines.extend(line(row).map_err(io_error(path))?);
        }
        atomic_write(path, |file| file.write_all(&lines)).map_err(io_error(path))?;
        let file = OpenOptions::new().append(true).open(path).map_err(io_error(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends a line and waits until it is on the disk.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn append(&mut self, row: &EpochMetrics) -> Result<(), MetricsError> {
        line(row)
            .and_then(|line| self.file.write_all(&line))
            .and_then(|()| self.file.sync_data())
            .map_err(io_error(&self.path))
    }
}

/// Whether a file begins as those that are written here do.
pub(crate) fn is_metrics(path: &Path) -> Result<bool, MetricsError> {
    let head = format!("{}\n", COLUMNS.join(","));
    let mut found = Vec::new();
    let file = File::open(path).map_err(io_error(path))?;
    file.take(head.len() as u64).read_to_end(&mut found).map_err(io_error(path))?;
    Ok(found == head.as_bytes())
}

/// The columns, in the order of the fields.
const COLUMNS: [&str; 9] =
    ["epoch", "lr", "train_loss", "train_top1", "eval_loss", "eval_top1", "eval_top5", "images_per_second", "seconds"];

fn line(row: &EpochMetrics) -> io::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.serialize(row).map_err(io::Error::other)?;
    writer.into_inner().map_err(|error| io::Error::other(error.to_string()))
}

/// `summary.json`: a run in a nutshell. Accuracies are fractions from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// The network.
    pub model: String,
    /// The data set.
    pub data: String,
    /// The recipe.
    pub recipe: String,
    /// The seed.
    pub seed: u64,
    /// Epochs trained.
    pub epochs: u64,
    /// Steps trained.
    pub steps: u64,
    /// Images in a batch.
    pub batch_size: usize,
    /// Training images.
    pub train_images: usize,
    /// Held-out images.
    pub eval_images: usize,
    /// Number of weights.
    pub params: u64,
    /// MACs of convolutions and linear layers, for one image.
    pub macs: u64,
    /// Training loss of the last epoch.
    pub train_loss: f64,
    /// Training top-1 of the last epoch.
    pub train_top1: f64,
    /// Loss on the held-out split at the end.
    pub eval_loss: f64,
    /// Top-1 accuracy on the held-out split at the end.
    pub eval_top1: f64,
    /// Top-5 accuracy on the held-out split at the end.
    pub eval_top5: f64,
    /// Seconds of training over all epochs, evaluation left out.
    pub seconds: f64,
    /// Training images per second over all epochs.
    pub images_per_second: f64,
    /// Threads used.
    pub threads: usize,
    /// Where it ran, such as `cpu`.
    pub device: String,
    /// The name of the CPU on which it came to its end; empty if the run was made before this was kept.
    #[serde(default)]
    pub machine: String,
    /// [`crate::Split::digest`] of the training and of the held-out images; nothing if the run was made before this was
    /// kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<[String; 2]>,
}

impl Summary {
    /// Training images that went through the network, each as often as it did.
    pub fn images_seen(&self) -> u64 {
        (self.images_per_second * self.seconds).round() as u64
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), MetricsError> {
        let text = serde_json::to_string_pretty(self).map_err(|e| io_error(path)(io::Error::other(e)))?;
        atomic_write(path, |file| writeln!(file, "{text}")).map_err(io_error(path))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// A file that cannot be read or is no summary.
    pub fn load(path: &Path) -> Result<Self, MetricsError> {
        let bytes = fs::read(path).map_err(io_error(path))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| MetricsError::Malformed { path: path.to_owned(), fault: e.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(epoch: u64) -> EpochMetrics {
        let x = epoch as f64;
        EpochMetrics {
            epoch,
            lr: 0.1 / x,
            train_loss: 2.3 / x,
            train_top1: 0.1 * x,
            eval_loss: 1.0 / 3.0 / x,
            eval_top1: 0.11 * x,
            eval_top5: 0.2 * x,
            images_per_second: 1234.5 * x,
            seconds: 7.25 * x,
        }
    }

    fn file_with(epochs: u64) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        let mut writer = MetricsWriter::create(&path).unwrap();
        (1..=epochs).for_each(|epoch| writer.append(&row(epoch)).unwrap());
        (folder, path)
    }

    #[test]
    fn lines_come_back_exactly_under_the_agreed_columns() {
        let (_folder, path) = file_with(3);
        let text = fs::read_to_string(&path).unwrap();
        let header = "epoch,lr,train_loss,train_top1,eval_loss,eval_top1,eval_top5,images_per_second,seconds";
        assert_eq!(text.lines().next(), Some(header));
        assert_eq!(text.lines().count(), 4);
        assert_eq!(read_metrics(&path).unwrap(), [row(1), row(2), row(3)]);
    }

    #[test]
    fn resuming_cuts_off_what_the_checkpoint_has_not_seen() {
        let (_folder, path) = file_with(3);
        // A line that a kill tore in the middle.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"4,0.025,0.5").unwrap();
        assert!(matches!(read_metrics(&path), Err(MetricsError::Malformed { .. })));
        let mut writer = MetricsWriter::resume(&path, 3).unwrap();
        assert_eq!(read_metrics(&path).unwrap().len(), 3);
        writer.append(&row(4)).unwrap();
        let mut writer = MetricsWriter::resume(&path, 1).unwrap();
        writer.append(&row(2)).unwrap();
        assert_eq!(read_metrics(&path).unwrap(), [row(1), row(2)]);
        MetricsWriter::resume(&path, 0).unwrap();
        assert_eq!(read_metrics(&path).unwrap(), []);
    }

    #[test]
    fn the_rest_of_a_torn_line_is_no_line() {
        let (_folder, path) = file_with(2);
        let text = fs::read_to_string(&path).unwrap();
        for bytes in 1..=text.lines().last().unwrap().len() {
            fs::write(&path, &text[..text.len() - bytes]).unwrap();
            assert_eq!(read_whole_metrics(&path).unwrap(), [row(1)], "{bytes} bytes less");
        }
    }

    #[test]
    fn resuming_needs_the_earlier_lines() {
        let (_folder, path) = file_with(2);
        let error = MetricsWriter::resume(&path, 5).unwrap_err();
        assert!(matches!(error, MetricsError::Missing { expected: 5, found: 2, .. }), "{error}");
        fs::write(&path, "epoch,lr\n1,2\n").unwrap();
        assert!(matches!(MetricsWriter::resume(&path, 1), Err(MetricsError::Malformed { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "epoch,lr\n1,2\n", "a failed resume changes nothing");
    }

    #[test]
    fn summaries_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        let summary = Summary {
            model: "small-cifar_p4".into(),
            data: "synthetic".into(),
            recipe: "onecycle".into(),
            seed: 3,
            epochs: 2,
            steps: 124,
            batch_size: 128,
            train_images: 8000,
            eval_images: 2000,
            params: 12_345,
            macs: 3_400_000,
            train_loss: 0.7,
            train_top1: 0.9,
            eval_loss: 1.0 / 3.0,
            eval_top1: 0.91,
            eval_top5: 0.99,
            seconds: 12.5,
            images_per_second: 1300.0,
            threads: 2,
            device: "cpu".into(),
            machine: "a CPU".into(),
            images: Some(["abc".into(), "def".into()]),
        };
        summary.save(&path).unwrap();
        assert_eq!(Summary::load(&path).unwrap(), summary);
        let mut older: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for later in ["machine", "images"] {
            older.as_object_mut().unwrap().remove(later);
        }
        fs::write(&path, older.to_string()).unwrap();
        assert_eq!(Summary::load(&path).unwrap(), Summary { machine: String::new(), images: None, ..summary });
        fs::write(&path, "{\"model\": \"x\"").unwrap();
        let error = Summary::load(&path).unwrap_err().to_string();
        assert!(error.contains("summary.json") && error.contains("malformed"), "{error}");
    }
}
