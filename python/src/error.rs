//! Errors as Python's exceptions.

use std::fmt::Display;
use std::io;
use std::path::Path;

use hetconv_graph::{FileError, FileFault};
use hetconv_onnx::OnnxError;
use pyo3::exceptions::PyValueError;
use pyo3::{PyErr, create_exception};

create_exception!(hetconv, Error, PyValueError, "What hetconv cannot do; the message says why.");

/// Anything else than the file system's errors.
pub fn error(error: impl Display) -> PyErr {
    Error::new_err(error.to_string())
}

/// `OSError`, or the subclass that fits, with the file's name.
fn io_error(path: &Path, error: &io::Error) -> PyErr {
    io::Error::new(error.kind(), format!("{}: {error}", path.display())).into()
}

pub fn file_error(failed: FileError) -> PyErr {
    match failed.fault {
        FileFault::Io(io) => io_error(&failed.path, &io),
        _ => error(failed),
    }
}

pub fn onnx_error(path: &Path, failed: OnnxError) -> PyErr {
    match failed {
        OnnxError::Io { path, source } => io_error(&path, &source),
        failed => error(format!("{}: {failed}", path.display())),
    }
}
