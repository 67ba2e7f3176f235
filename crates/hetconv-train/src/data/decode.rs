//! One image file to bytes.

use super::DataError;
use super::view::MAX_SIZE;
use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use std::io::{BufRead, Cursor, Seek};

/// The longest side of an image that is decoded, in pixels.
const SIDE_LIMIT: u32 = 16_384;
/// The most memory one image may take while it is decoded, in bytes.
const MEMORY_LIMIT: u64 = 1 << 30;

/// A decoded image.
pub(super) struct Decoded {
    pub rgb: RgbImage,
    /// Whether the file has no colours, so that the three channels are equal.
    pub is_grey: bool,
}

/// A size that images may be scaled to.
pub(super) fn checked_size(size: usize) -> Result<usize, DataError> {
    if (1..=MAX_SIZE).contains(&size) { Ok(size) } else { Err(DataError::ImageSize { size, limit: MAX_SIZE as u32 }) }
}

/// Why a file was not decoded.
pub(super) enum Undecoded {
    NotAnImage(String),
    /// Height and width are not those that were expected.
    OtherSize([usize; 2]),
}

/// Decodes a JPEG, PNG or BMP, whatever its name says it is.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    decode_at(bytes, None).map_err(|fault| match fault {
        Undecoded::NotAnImage(reason) => reason,
        Undecoded::OtherSize(_) => unreachable!("none was expected"),
    })
}

/// The same of an image of this height and width: what its header says of them is looked at first.
pub(super) fn decode_at(bytes: &[u8], expected: Option<[usize; 2]>) -> Result<Decoded, Undecoded> {
    let fault = |reason: String| Undecoded::NotAnImage(reason);
    if is_cut_off(bytes) {
        return Err(fault("the JPEG ends before its image does".into()));
    }
    let decoder = reader(bytes).map_err(fault)?.into_decoder().map_err(|error| fault(error.to_string()))?;
    let (width, height) = decoder.dimensions();
    let found = [height, width].map(|side| side as usize);
    if expected.is_some_and(|expected| expected != found) {
        return Err(Undecoded::OtherSize(found));
    }
    let in_colours = if decoder.color_type() == ColorType::Rgb8 { 0 } else { 3 * u64::from(width) * u64::from(height) };
    if decoder.total_bytes().saturating_add(in_colours) > MEMORY_LIMIT {
        return Err(fault(format!("{height}×{width} pixels take more than {} MiB", MEMORY_LIMIT >> 20)));
    }
    let image = DynamicImage::from_decoder(decoder).map_err(|error| fault(error.to_string()))?;
    Ok(Decoded { is_grey: !image.color().has_color(), rgb: image.into_rgb8() })
}

/// Whether a file has no colours, from its header alone.
pub(super) fn is_grey(bytes: &[u8]) -> Result<bool, String> {
    let decoder = reader(bytes)?.into_decoder().map_err(|e| e.to_string())?;
    Ok(!decoder.color_type().has_color())
}

fn reader(bytes: &[u8]) -> Result<ImageReader<impl BufRead + Seek>, String> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_LIMIT);
    limits.max_image_height = Some(SIDE_LIMIT);
    limits.max_alloc = Some(MEMORY_LIMIT);
    reader.limits(limits);
    Ok(reader)
}

/// Whether a JPEG lacks the mark at its image's end, whatever follows it. The decoder would fill what is missing with grey.
fn is_cut_off(bytes: &[u8]) -> bool {
    const START: u8 = 0xd8;
    const END: u8 = 0xd9;
    let Some(mut rest) = bytes.strip_prefix(&[0xff, START]) else { return false };
    // From mark to mark; what a segment or a scan holds is passed over.
    while let Some(at) = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff))
    {
        let mark = rest[at + 1];
        rest = &rest[at + 2..];
        match mark {
            END => return false,
            START | 0x01 => continue,
            _ => {}
        }
        let Some((&length, _)) = rest.split_first_chunk() else { return true };
        let Some(behind) = rest.get(usize::from(u16::from_be_bytes(length))..) else { return true };
        rest = behind;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::is_cut_off;

    #[test]
    fn a_jpeg_ends_where_its_image_does() {
        let segment = |mark: u8, held: &[u8]| [&[0xff, mark, 0, held.len() as u8 + 2], held].concat();
        // A preview inside of a segment, then two scans with a stuffed byte and a restart mark.
        let preview = segment(0xe1, &[0xff, 0xd8, 0xff, 0xda, 0, 2, 7, 0xff, 0xd9]);
        let scan = [segment(0xda, &[1, 2]), vec![9, 0xff, 0, 8, 0xff, 0xd3, 7]].concat();
        let image = [vec![0xff, 0xd8], preview, scan.clone(), scan, vec![0xff, 0xd9]].concat();
        assert!(!is_cut_off(&image));
        for length in 2..image.len() {
            assert!(is_cut_off(&image[..length]), "{length} of {}", image.len());
        }
        // A film behind the image.
        assert!(!is_cut_off(&[&image[..], &[0xff, 0xda, 1, 2, 3]].concat()));
        assert!(!is_cut_off(b"\x89PNG"));
    }
}
