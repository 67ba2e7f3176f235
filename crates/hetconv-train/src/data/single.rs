//! One image file, for a network that is asked about it.

use super::decode::{checked_size, decode};
use super::files::read_limited;
use super::{DataError, Images};
use std::fs::File;
use std::path::Path;

impl Images {
    /// Reads one image file, as a set of one: the square in its middle, scaled to `side` × `side` pixels unless it has
    /// that size already, with 3 channels, or with 1 of brightness.
    ///
    /// # Errors
    /// A size that images are not scaled to, a file that cannot be read or is no image, or another number of channels.
    pub fn read(path: &Path, side: usize, channels: usize) -> Result<Self, DataError> {
        let size = checked_size(side)?;
        let name = || path.display().to_string();
        let file = File::open(path).map_err(DataError::io(path))?;
        let bytes = read_limited(file, name)?;
        let image = decode(&bytes, Some(size)).map_err(|reason| DataError::NotAnImage { file: name(), reason })?;
        let pixels = match channels {
            3 => image.rgb,
            1 => image.rgb.as_chunks::<3>().0.iter().map(brightness).collect(),
            _ => {
                let fault = format!("image files have 1 or 3 channels, not {channels}");
                return Err(DataError::Inconsistent { data: name(), fault });
            }
        };
        Self::new([side, side, channels], pixels)
    }
}

/// The brightness of a colour by ITU-R BT.601; of a grey one, its value.
fn brightness(&[red, green, blue]: &[u8; 3]) -> u8 {
    let weighted = 299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue);
    ((weighted + 500) / 1000) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, RgbImage};

    #[test]
    fn the_middle_is_kept_and_grey_stays_grey() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wide.png");
        // Columns 0 to 7; the middle four are 2 to 5.
        RgbImage::from_fn(8, 4, |x, y| image::Rgb([x as u8, y as u8, 200])).save(&path).unwrap();
        let image = Images::read(&path, 4, 3).unwrap();
        assert_eq!((image.shape(), image.len()), ([4, 4, 3], 1));
        assert_eq!(image.image(0)[..6], [2, 0, 200, 3, 0, 200]);

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
}
