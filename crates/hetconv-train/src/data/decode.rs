//! One image file to bytes.

use super::DataError;
use super::view::MAX_SIZE;
use image::{ImageDecoder, ImageReader, Limits, RgbImage};
use std::io::{BufRead, Cursor, Seek};

/// The longest side of an image that is decoded, in pixels.
const SIDE_LIMIT: u32 = 16_384;
/// The most memory one decoder may ask for, in bytes.
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

/// Decodes a JPEG, PNG or BMP, whatever its name says it is.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    if is_cut_off(bytes) {
        return Err("the JPEG ends before its image does".into());
    }
    let image = reader(bytes)?.decode().map_err(|e| e.to_string())?;
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

/// Whether a JPEG lacks the mark at its end. The decoder would fill what is missing with grey. Previews inside a file end
/// with the mark as well, but stand before the start of the image's own data.
fn is_cut_off(bytes: &[u8]) -> bool {
    let last = |mark: u8| bytes.windows(2).rposition(|pair| pair == [0xff, mark]);
    let (scan, end) = (last(0xda), last(0xd9));
    bytes.starts_with(&[0xff, 0xd8]) && end <= scan
}
