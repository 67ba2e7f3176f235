//! One image file to bytes.

use super::DataError;
use image::imageops::{FilterType, crop_imm, resize};
use image::{ImageReader, Limits};
use std::io::Cursor;

/// The longest side of an image that is decoded, in pixels.
const SIDE_LIMIT: u32 = 16_384;
/// The largest size images are scaled to, in pixels.
const SIZE_LIMIT: u32 = 4096;
/// The most memory one decoder may ask for, in bytes.
const MEMORY_LIMIT: u64 = 1 << 30;

/// A decoded image: `[height, width, 3]` bytes, channels interleaved.
pub(super) struct Decoded {
    /// Height and width.
    pub size: [usize; 2],
    /// Whether the file has no colours, so that the three channels are equal.
    pub is_grey: bool,
    pub rgb: Vec<u8>,
}

/// A size that images may be scaled to.
pub(super) fn checked_size(size: usize) -> Result<u32, DataError> {
    match u32::try_from(size) {
        Ok(pixels @ 1..=SIZE_LIMIT) => Ok(pixels),
        _ => Err(DataError::ImageSize { size, limit: SIZE_LIMIT }),
    }
}

/// Decodes a JPEG, PNG or BMP; with a size, scales the square in its middle to size × size pixels.
pub(super) fn decode(bytes: &[u8], size: Option<u32>) -> Result<Decoded, String> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_LIMIT);
    limits.max_image_height = Some(SIDE_LIMIT);
    limits.max_alloc = Some(MEMORY_LIMIT);
    reader.limits(limits);
    let image = reader.decode().map_err(|e| e.to_string())?;
    let is_grey = !image.color().has_color();
    let mut rgb = image.into_rgb8();
    if let Some(size) = size.filter(|&size| rgb.dimensions() != (size, size)) {
        let (width, height) = rgb.dimensions();
        // Cropping first keeps the memory small whatever the image's proportions.
        let side = width.min(height);
        let square = crop_imm(&rgb, (width - side) / 2, (height - side) / 2, side, side);
        rgb = resize(&*square, size, size, FilterType::Triangle);
    }
    Ok(Decoded { size: [rgb.height() as usize, rgb.width() as usize], is_grey, rgb: rgb.into_raw() })
}
