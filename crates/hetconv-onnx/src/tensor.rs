//! The tensors of an ONNX file, believed only once their claims have been checked against the bytes that are there.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use prost::bytes::Bytes;

use crate::proto::TensorProto;
use crate::proto::tensor_proto::{DataLocation, DataType};

/// What is wrong with a tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorFault {
    /// A negative extent, extents whose product cannot be counted, or more than 32 of them.
    #[error("its dimensions {0:?} are not sizes")]
    Dims(Vec<i64>),
    /// Another amount of data than the dimensions ask for.
    #[error("its dimensions {dims:?} ask for {expected} {unit}, but {found} are there")]
    Length {
        /// The dimensions it claims.
        dims: Vec<i64>,
        /// How much data they need.
        expected: usize,
        /// How much there is.
        found: usize,
        /// `bytes` or `elements`.
        unit: &'static str,
    },
    /// An element type that is not supported.
    #[error("its element type {0} is not supported")]
    ElementType(String),
    /// External data of a model that was read from memory.
    #[error("its data is in another file, but the model was not read from a folder")]
    NoFolder,
    /// External data outside the model's folder.
    #[error("its data is said to be in `{0}`, which is not in the model's folder")]
    Outside(String),
    /// An external-data entry that makes no sense.
    #[error("its external data has {key} `{value}`, which is not a number")]
    External {
        /// `offset` or `length`.
        key: String,
        /// Its value.
        value: String,
    },
    /// Less external data than is claimed.
    #[error("its external data is said to have {length} bytes from byte {offset} on, but {rest} are there")]
    Missing {
        /// How many it claims.
        length: u64,
        /// Where they begin.
        offset: u64,
        /// How many there are.
        rest: u64,
    },
    /// More external data than there is, because tensors share it.
    #[error("with it, tensors read `{}` more than {times} times over", path.display())]
    Shared {
        /// The file.
        path: PathBuf,
        /// How often all of it may be read.
        times: u64,
    },
    /// External data that cannot be read.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: std::io::Error,
    },
}

/// The elements of a tensor: floats of any width as `f32`, integers of any width as `i64`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Elements {
    Float(Vec<f32>),
    Int(Vec<i64>),
}

/// The most axes a tensor may have.
pub(crate) const MOST_AXES: usize = 32;

/// The extents of a tensor and their product.
pub(crate) fn checked_dims(dims: &[i64]) -> Result<(Vec<usize>, usize), TensorFault> {
    let fault = || TensorFault::Dims(dims.iter().copied().take(MOST_AXES + 1).collect());
    if dims.len() > MOST_AXES {
        return Err(fault());
    }
    let sizes: Vec<usize> =
        dims.iter().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>().map_err(|_| fault())?;
    // Checked without zeros: [2⁶², 0, 2⁶²] has no elements, but its product overflows on the way.
    let count = |total: usize, &size: &usize| total.checked_mul(size.max(1));
    let elements =
        sizes.iter().try_fold(1, count).filter(|&total| total <= isize::MAX as usize / 8).ok_or_else(fault)?;
    Ok((sizes.clone(), if sizes.contains(&0) { 0 } else { elements }))
}

/// Whether a tensor's data is there: as much as its extents ask for. None of it is decoded.
pub(crate) fn check(tensor: &TensorProto, files: &DataFiles<'_>) -> Result<(), TensorFault> {
    extents(tensor)?;
    match tensor.data_location() {
        DataLocation::External => files.find(tensor).map(drop),
        DataLocation::Default => Ok(()),
    }
}

/// The extents of a tensor, if the model holds as much data as they ask for; another file is not looked at.
fn extents(tensor: &TensorProto) -> Result<Vec<usize>, TensorFault> {
    let (sizes, count) = checked_dims(&tensor.dims)?;
    let data_type = data_type(tensor);
    let unknown = || TensorFault::ElementType(data_type.as_str_name().to_owned());
    let length = |expected: usize, found: usize, unit: &'static str| match found == expected {
        true => Ok(()),
        false => Err(TensorFault::Length { dims: tensor.dims.clone(), expected, found, unit }),
    };
    if tensor.data_location() == DataLocation::External {
        width(data_type).ok_or_else(unknown)?;
    } else if let Some(raw) = &tensor.raw_data {
        length(count * width(data_type).ok_or_else(unknown)?, raw.len(), "bytes")?;
    } else {
        let found = match data_type {
            DataType::Float => tensor.float_data.len(),
            DataType::Double => tensor.double_data.len(),
            DataType::Int64 => tensor.int64_data.len(),
            DataType::Float16
            | DataType::Bfloat16
            | DataType::Int32
            | DataType::Int8
            | DataType::Uint8
            | DataType::Bool => tensor.int32_data.len(),
            _ => return Err(unknown()),
        };
        length(count, found, "elements")?;
    }
    Ok(sizes)
}

fn data_type(tensor: &TensorProto) -> DataType {
    DataType::try_from(tensor.data_type()).unwrap_or(DataType::Undefined)
}

/// Reads a tensor; `files` are where external data may be.
pub(crate) fn read(tensor: &TensorProto, files: &DataFiles<'_>) -> Result<(Vec<usize>, Elements), TensorFault> {
    let dims = extents(tensor)?;
    let data_type = data_type(tensor);
    let raw = match tensor.data_location() {
        DataLocation::External => Some(files.read(tensor)?),
        DataLocation::Default => tensor.raw_data.clone(),
    };
    let Some(raw) = raw else {
        let elements = match data_type {
            DataType::Float => Elements::Float(tensor.float_data.clone()),
            DataType::Double => Elements::Float(tensor.double_data.iter().map(|&x| x as f32).collect()),
            DataType::Float16 => Elements::Float(tensor.int32_data.iter().map(|&x| half(x as u16)).collect()),
            DataType::Bfloat16 => Elements::Float(tensor.int32_data.iter().map(|&x| brain(x as u16)).collect()),
            DataType::Int64 => Elements::Int(tensor.int64_data.clone()),
            _ => Elements::Int(tensor.int32_data.iter().map(|&x| x.into()).collect()),
        };
        return Ok((dims, elements));
    };
    let elements = match data_type {
        DataType::Float => Elements::Float(decode(&raw, f32::from_le_bytes)),
        DataType::Double => Elements::Float(decode(&raw, |bytes| f64::from_le_bytes(bytes) as f32)),
        DataType::Float16 => Elements::Float(decode(&raw, |bytes| half(u16::from_le_bytes(bytes)))),
        DataType::Bfloat16 => Elements::Float(decode(&raw, |bytes| brain(u16::from_le_bytes(bytes)))),
        DataType::Int64 => Elements::Int(decode(&raw, i64::from_le_bytes)),
        DataType::Int32 => Elements::Int(decode(&raw, |bytes| i32::from_le_bytes(bytes).into())),
        DataType::Int8 => Elements::Int(decode(&raw, |bytes| i8::from_le_bytes(bytes).into())),
        _ => Elements::Int(decode(&raw, |bytes| u8::from_le_bytes(bytes).into())),
    };
    Ok((dims, elements))
}

/// Bytes of one element, of the types that are read.
fn width(data_type: DataType) -> Option<usize> {
    match data_type {
        DataType::Int8 | DataType::Uint8 | DataType::Bool => Some(1),
        DataType::Float16 | DataType::Bfloat16 => Some(2),
        DataType::Float | DataType::Int32 => Some(4),
        DataType::Double | DataType::Int64 => Some(8),
        _ => None,
    }
}

fn decode<const WIDTH: usize, T>(raw: &[u8], element: impl Fn([u8; WIDTH]) -> T) -> Vec<T> {
    let (elements, _) = raw.as_chunks();
    elements.iter().map(|&bytes| element(bytes)).collect()
}

/// A number of IEEE half precision.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    match exponent {
        0 => sign * fraction * 2_f32.powi(-24),
        0x1f if fraction == 0.0 => sign * f32::INFINITY,
        0x1f => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2_f32.powi(exponent - 15),
    }
}

/// A bfloat16: the upper half of a float.
fn brain(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The files beside a model that hold data of its tensors.
pub(crate) struct DataFiles<'a> {
    /// Where they must lie, if there may be any.
    folder: Option<&'a Path>,
    /// How many more bytes of each may be read: tensors that share data would otherwise come to any amount.
    left: RefCell<HashMap<PathBuf, u64>>,
    /// The names of tensors that count no more, if each has its own.
    counted: Option<RefCell<HashSet<String>>>,
}

impl<'a> DataFiles<'a> {
    /// How often all of a file may be read.
    const TIMES: u64 = 4;

    /// Files in a folder, or none; a tensor counts whenever it is read.
    pub fn new(folder: Option<&'a Path>) -> Self {
        Self { folder, left: RefCell::default(), counted: None }
    }

    /// As [`DataFiles::new`], of tensors that are known by their names: one that many nodes read counts once.
    pub fn by_name(folder: Option<&'a Path>) -> Self {
        Self { counted: Some(RefCell::default()), ..Self::new(folder) }
    }

    /// Where the bytes of a tensor with a file of its own are, as many as its type and dimensions ask for.
    fn find(&self, tensor: &TensorProto) -> Result<Place, TensorFault> {
        let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
        let number = |key: &str| {
            let parse = |value: &str| {
                value.parse().map_err(|_| TensorFault::External { key: key.to_owned(), value: value.to_owned() })
            };
            entry(key).map(parse).transpose()
        };
        let location = entry("location").unwrap_or_default();
        let folder = self.folder.ok_or(TensorFault::NoFolder)?;
        let path = file_inside(folder, location)?;
        let failed = |source| TensorFault::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let available = file.metadata().map_err(failed)?.len();
        let offset: u64 = number("offset")?.unwrap_or(0);
        let rest = available.saturating_sub(offset);
        let length: u64 = number("length")?.unwrap_or(rest);
        if length > rest {
            return Err(TensorFault::Missing { length, offset, rest });
        }
        let (_, count) = checked_dims(&tensor.dims)?;
        // Of other types it is not known how much data they have.
        let width = width(data_type(tensor));
        let expected = width.map_or(length, |width| count.saturating_mul(width) as u64);
        if expected != length {
            let (dims, found) = (tensor.dims.clone(), length as usize);
            return Err(TensorFault::Length { dims, expected: expected as usize, found, unit: "bytes" });
        }
        Ok(Place { file, path, available, offset, length })
    }

    /// The bytes of a tensor with a file of its own.
    pub fn read(&self, tensor: &TensorProto) -> Result<Bytes, TensorFault> {
        let Place { mut file, path, available, offset, length } = self.find(tensor)?;
        // Tensors without a name cannot be told apart.
        let is_new = |counted: &RefCell<HashSet<String>>| counted.borrow_mut().insert(tensor.name().to_owned());
        if tensor.name().is_empty() || self.counted.as_ref().is_none_or(is_new) {
            let mut left = self.left.borrow_mut();
            let left = left.entry(path.clone()).or_insert(available.saturating_mul(Self::TIMES));
            let shared = || TensorFault::Shared { path: path.clone(), times: Self::TIMES };
            *left = left.checked_sub(length).ok_or_else(shared)?;
        }
        let failed = |source| TensorFault::Io { path: path.clone(), source };
        // No more than the file has: a length that lies allocates nothing.
        let mut bytes = vec![0; length as usize];
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        file.read_exact(&mut bytes).map_err(failed)?;
        Ok(Bytes::from(bytes))
    }
}

/// Where a tensor's bytes are.
struct Place {
    file: File,
    path: PathBuf,
    /// How many bytes the file has.
    available: u64,
    /// The tensor's first byte, and how many it has.
    offset: u64,
    length: u64,
}

/// The file at a relative path that does not leave the folder, not even by a symbolic link.
fn file_inside(folder: &Path, location: &str) -> Result<PathBuf, TensorFault> {
    let outside = || TensorFault::Outside(location.to_owned());
    let relative = Path::new(location);
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_) | Component::CurDir);
    if location.is_empty() || !relative.components().all(plain) {
        return Err(outside());
    }
    let path = folder.join(relative);
    let real = |path: &Path| path.canonicalize().map_err(|source| TensorFault::Io { path: path.to_owned(), source });
    let found = real(&path)?;
    if found.starts_with(real(folder)?) && found.is_file() { Ok(found) } else { Err(outside()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_floats() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2_f32.powi(-24)), (0x7bff, 65504.0), (0x3555, 0.333_251_95)]
        {
            assert_eq!(half(bits), value);
        }
        assert_eq!(half(0xfc00), f32::NEG_INFINITY);
        assert!(half(0x7e00).is_nan());
        assert_eq!(brain(0x3fc0), 1.5);
    }

    #[test]
    fn dims_that_cannot_be_counted() {
        assert!(matches!(checked_dims(&[1 << 40, 1 << 40]), Err(TensorFault::Dims(_))));
        assert!(matches!(checked_dims(&[-1, 3]), Err(TensorFault::Dims(_))));
        assert_eq!(checked_dims(&[3, 0, 2]).unwrap(), (vec![3, 0, 2], 0));
        assert_eq!(checked_dims(&[]).unwrap(), (vec![], 1));
    }
}
