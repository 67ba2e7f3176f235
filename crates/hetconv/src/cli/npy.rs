//! Arrays of `f32` in NumPy's `.npy` format.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use hetconv::graph::atomic_write;

/// A row-major array.
#[derive(Debug, Default, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

const MAGIC: &[u8] = b"\x93NUMPY";
/// More than any array of `f32` needs.
const MAX_HEADER: usize = 1 << 12;

/// Reads a file.
pub fn read(path: &Path) -> Result<Array> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&bytes).with_context(|| format!("{} is not an .npy file of f32 in row-major order", path.display()))
}

/// Writes a file.
pub fn write(path: &Path, array: &Array) -> Result<()> {
    let bytes = to_bytes(array)?;
    atomic_write(path, |file| file.write_all(&bytes)).with_context(|| format!("cannot write {}", path.display()))
}

fn parse(bytes: &[u8]) -> Result<Array> {
    let rest = bytes.strip_prefix(MAGIC).context("it does not begin with \\x93NUMPY")?;
    let [version, _, ..] = *rest else { bail!("it ends within its header") };
    let width = match version {
        1 => 2,
        2 | 3 => 4,
        _ => bail!("format version {version} is not known"),
    };
    let len = rest.get(2..2 + width).context("it ends within its header")?;
    let len = len.iter().rev().fold(0usize, |len, &byte| len << 8 | usize::from(byte));
    ensure!(len <= MAX_HEADER, "its header claims {len} bytes");
    let header = rest.get(2 + width..2 + width + len).context("it ends within its header")?;
    let header = std::str::from_utf8(header).context("its header is no text")?;
    let descr = field(header, "descr")?;
    ensure!(descr.starts_with("'<f4'"), "its elements are {}, not '<f4'", descr.split(',').next().unwrap_or_default());
    ensure!(field(header, "fortran_order")?.starts_with("False"), "its order is Fortran's");
    let shape = field(header, "shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let (shape, _) = shape.context("its shape is no tuple")?;
    let extents = shape.split(',').map(str::trim).filter(|extent| !extent.is_empty());
    let shape: Vec<usize> =
        extents.map(|extent| extent.parse().context("its shape has no numbers")).collect::<Result<_>>()?;
    let data = &rest[2 + width + len..];
    let elements = shape.iter().try_fold(1usize, |all, &extent| all.checked_mul(extent));
    let expected = elements.and_then(|elements| elements.checked_mul(4));
    ensure!(expected == Some(data.len()), "its shape {shape:?} does not fit its {} bytes of elements", data.len());
    let data = data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Ok(Array { shape, data })
}

/// What stands behind a key of the header.
fn field<'a>(header: &'a str, key: &str) -> Result<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}':")).with_context(|| format!("its header has no {key}"))?;
    Ok(rest.trim_start())
}

fn to_bytes(array: &Array) -> Result<Vec<u8>> {
    let mut extents = String::new();
    for extent in &array.shape {
        write!(extents, "{extent}, ")?;
    }
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({extents}), }}");
    // Data begin at a multiple of 64 bytes, behind a line feed.
    while !(MAGIC.len() + 4 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend(u16::try_from(header.len()).context("too many dimensions")?.to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(array.data.iter().flat_map(|value| value.to_le_bytes()));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_back() {
        for shape in [vec![], vec![0, 3], vec![4], vec![2, 3, 1, 2]] {
            let elements = shape.iter().product::<usize>();
            let array = Array { shape, data: (0..elements).map(|i| i as f32 - 0.5).collect() };
            let bytes = to_bytes(&array).unwrap();
            assert_eq!((bytes.len() - 4 * elements) % 64, 0);
            assert_eq!(parse(&bytes).unwrap(), array);
        }
    }

    #[test]
    fn numpys_own_header_is_read() {
        let mut bytes = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }".to_vec();
        bytes.resize(127, b' ');
        bytes.push(b'\n');
        bytes.extend([0, 0, 128, 63, 0, 0, 0, 192]);
        assert_eq!(parse(&bytes).unwrap(), Array { shape: vec![2], data: vec![1.0, -2.0] });
    }

    #[test]
    fn everything_else_is_refused() {
        let good = to_bytes(&Array { shape: vec![2, 2], data: vec![1.0; 4] }).unwrap();
        let changed = |from: &str, to: &str| {
            assert_eq!(from.len(), to.len());
            let at = good.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            let mut bytes = good.clone();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            bytes
        };
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err(), "{len} bytes");
        }
        for (from, to) in [
            ("NUMPY", "numpy"),
            ("'<f4'", "'<f8'"),
            ("'<f4'", "'>f4'"),
            ("False", "True "),
            ("(2, 2, )", "(2, 3, )"),
            ("(2, 2, )", "(2,-2, )"),
            ("(2, 2, )", "[2, 2, ]"),
            ("'shape'", "'shake'"),
        ] {
            assert!(parse(&changed(from, to)).is_err(), "{from} as {to}");
        }
        let mut version = good.clone();
        version[6] = 9;
        assert!(parse(&version).is_err());
        let huge = b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr': '<f4'}";
        assert!(parse(huge).is_err());
        let overflow = "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4), }";
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend([overflow.len() as u8, 0]);
        bytes.extend(overflow.as_bytes());
        assert!(parse(&bytes).is_err());
    }
}
