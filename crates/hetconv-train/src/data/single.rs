//! One image file, for a network that is asked about it.

use super::decode::{checked_size, decode};
use super::files::read_limited;
use super::{DataError, Images, view};
use std::fs::File;
use std::path::Path;

impl Images {
    /// Reads one image file, as a set of one: its middle as evaluation sees it, `side` × `side` pixels, with 3 channels, or
    /// with 1 of brightness. An image that has that size already is left alone.
    ///
    /// # Errors
    /// A size that images are not scaled to, a file that cannot be read or is no image, or another number of channels.
    pub fn read(path: &Path, side: usize, channels: usize) -> Result<Self, DataError> {
        let size = checked_size(side)?;
        let name = || path.display().to_string();
        if !matches!(channels, 1 | 3) {
            let fault = format!("image files have 1 or 3 channels, not {channels}");
            return Err(DataError::Inconsistent { data: name(), fault });
        }
        let file = File::open(path).map_err(DataError::io(path))?;
        let bytes = read_limited(file, name)?;
        let pixels = decode(&bytes).and_then(|image| view::square(&image, size, channels, None));
        let pixels = pixels.map_err(|reason| DataError::NotAnImage { file: name(), reason })?;
        Self::new([side, side, channels], pixels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, RgbImage};

    #[test]
    fn the_middle_is_kept_and_grey_stays_grey() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wide.png");
        // Black sides, and a middle that is white for as far as evaluation looks.
        RgbImage::from_fn(64, 32, |x, _| image::Rgb([if (16..48).contains(&x) { 255 } else { 0 }; 3]))
            .save(&path)
            .unwrap();
        let image = Images::read(&path, 8, 3).unwrap();
        assert_eq!((image.shape(), image.len()), ([8, 8, 3], 1));
        assert!(image.pixels().iter().all(|&value| value == 255));

        let grey = folder.path().join("grey.png");
        GrayImage::from_fn(2, 2, |x, y| image::Luma([(100 * x + 50 * y) as u8])).save(&grey).unwrap();
        assert_eq!(Images::read(&grey, 2, 1).unwrap().pixels(), [0, 100, 50, 150]);
        assert!(Images::read(&grey, 2, 4).unwrap_err().to_string().contains("not 4"));
        // Sizes that would not fit the memory, or not even 32 bits.
        for side in [0, 1 << 20, (1 << 32) + 4] {
            assert!(matches!(Images::read(&grey, side, 1), Err(DataError::ImageSize { size, .. }) if size == side));
        }
    }

    #[test]
    fn what_is_no_image_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letter.jpg");
        std::fs::write(&path, "Dear image,").unwrap();
        let error = Images::read(&path, 4, 3).unwrap_err().to_string();
        assert!(error.contains("letter.jpg is not a readable image"), "{error}");
        let error = Images::read(&folder.path().join("none.png"), 4, 3).unwrap_err().to_string();
        assert!(error.contains("none.png"), "{error}");
    }

    #[test]
    fn a_jpeg_that_is_cut_off_is_no_image_and_a_wrong_name_is_no_fault() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("photo.png");
        let rgb = RgbImage::from_fn(64, 64, |x, y| image::Rgb([4 * x as u8, 4 * y as u8, (x * y) as u8]));
        rgb.save_with_format(&path, image::ImageFormat::Jpeg).unwrap();
        Images::read(&path, 32, 3).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for kept in [bytes.len() - 2, bytes.len() * 3 / 4, bytes.len() / 2, 20, 3] {
            std::fs::write(&path, &bytes[..kept]).unwrap();
            let error = Images::read(&path, 32, 3).unwrap_err();
            assert!(matches!(&error, DataError::NotAnImage { file, .. } if file.ends_with("photo.png")), "{error}");
        }
    }
}
