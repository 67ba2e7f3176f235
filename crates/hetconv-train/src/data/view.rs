//! The square of an image that a network looks at.
//!
//! Training looks at a random part (Szegedy et al. 2015: 8 to 100 % of the area, sides in a ratio of 3:4 to 4:3), which is
//! scaled to the square, so that things come in many sizes and places. Evaluation looks at the middle: of the square with
//! the image's shorter side, seven eighths, ImageNet's usual 224 of 256 pixels. An image that has the square's size
//! already is judged as it is. Scaling is bilinear, over all pixels that a new one covers.

use super::decode::Decoded;
use crate::rng::{below, uniform};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use rand_chacha::ChaCha8Rng;

/// The largest square, in pixels a side.
pub(super) const MAX_SIZE: usize = 4096;
/// The least and largest part of an image's area that training looks at.
const AREA: [f32; 2] = [0.08, 1.0];
/// Natural logarithm of the largest ratio of width to height, 4:3.
const LOG_RATIO: f64 = 0.287_682_072_451_780_9;
/// How often a part that does not fit the image is drawn anew.
const ATTEMPTS: usize = 10;

/// A part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

impl Part {
    fn whole([height, width]: [usize; 2]) -> Self {
        Self { left: 0.0, top: 0.0, width: width as f64, height: height as f64 }
    }

    /// What evaluation looks at.
    fn middle([height, width]: [usize; 2], size: usize) -> Self {
        if [height, width] == [size, size] {
            return Self::whole([height, width]);
        }
        let (width, height) = (width as f64, height as f64);
        let side = width.min(height) * 0.875;
        Self { left: (width - side) / 2.0, top: (height - side) / 2.0, width: side, height: side }
    }

    /// What training looks at. Every function here is exact or made of exact ones, so that all machines draw the same.
    fn random([height, width]: [usize; 2], rng: &mut ChaCha8Rng) -> Self {
        let (w, h) = (width as f64, height as f64);
        for _ in 0..ATTEMPTS {
            let area = w * h * f64::from(AREA[0] + (AREA[1] - AREA[0]) * uniform(rng));
            let ratio = exp(LOG_RATIO * (2.0 * f64::from(uniform(rng)) - 1.0));
            let (part_w, part_h) = ((area * ratio).sqrt().round(), (area / ratio).sqrt().round());
            if (1.0..=w).contains(&part_w) && (1.0..=h).contains(&part_h) {
                let left = f64::from(below(rng, (w - part_w) as u32 + 1));
                let top = f64::from(below(rng, (h - part_h) as u32 + 1));
                return Self { left, top, width: part_w, height: part_h };
            }
        }
        // An image far wider or higher than any part: as much of its middle as the ratios allow.
        let (part_w, part_h) = (w.min(h * 4.0 / 3.0), h.min(w * 4.0 / 3.0));
        Self { left: (w - part_w) / 2.0, top: (h - part_h) / 2.0, width: part_w, height: part_h }
    }
}

/// The exponential function near 0, where this many terms are exact to the last bits.
fn exp(x: f64) -> f64 {
    (1..=16).rev().fold(1.0, |sum, n| 1.0 + x / f64::from(n) * sum)
}

/// The square of `size` pixels a side, interleaved, with 3 channels or 1 of brightness: the image's middle, or with random
/// numbers a part of it.
pub(super) fn square(
    image: &Decoded,
    size: usize,
    channels: usize,
    rng: Option<&mut ChaCha8Rng>,
) -> Result<Vec<u8>, String> {
    let (width, height) = image.rgb.dimensions();
    let shape = [height as usize, width as usize];
    let part = match rng {
        Some(rng) => Part::random(shape, rng),
        None => Part::middle(shape, size),
    };
    let rgb = match shape == [size, size] && part == Part::whole(shape) {
        true => image.rgb.as_raw().clone(),
        false => scale(&image.rgb, part, size)?,
    };
    match channels {
        3 => Ok(rgb),
        _ => Ok(rgb.as_chunks::<3>().0.iter().map(brightness).collect()),
    }
}

fn scale(image: &image::RgbImage, part: Part, size: usize) -> Result<Vec<u8>, String> {
    let fault = |e: &dyn std::fmt::Display| e.to_string();
    let source =
        ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3).map_err(|e| fault(&e))?;
    let mut scaled = Image::new(size as u32, size as u32, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    let options = options.crop(part.left, part.top, part.width, part.height);
    Resizer::new().resize(&source, &mut scaled, &options).map_err(|e| fault(&e))?;
    Ok(scaled.into_vec())
}

/// The brightness of a colour by ITU-R BT.601; of a grey one, its value.
fn brightness(&[red, green, blue]: &[u8; 3]) -> u8 {
    let weighted = 299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue);
    ((weighted + 500) / 1000) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, stream};
    use image::RgbImage;

    fn draws(shape: [usize; 2]) -> Vec<Part> {
        (0..2000).map(|sample| Part::random(shape, &mut stream(1, 2, sample, Purpose::Crop))).collect()
    }

    #[test]
    fn parts_have_the_sizes_and_ratios_of_the_recipe_and_lie_inside() {
        let (height, width) = (300.0, 400.0);
        let parts = draws([300, 400]);
        for part in &parts {
            assert!(part.left >= 0.0 && part.top >= 0.0, "{part:?}");
            assert!(part.left + part.width <= width && part.top + part.height <= height, "{part:?}");
            // Sides are rounded to pixels.
            let (area, ratio) = (part.width * part.height / (width * height), part.width / part.height);
            assert!((0.078..=1.0).contains(&area) && (0.73..1.36).contains(&ratio), "{part:?}");
        }
        let share = |of: &dyn Fn(&Part) -> bool| parts.iter().filter(|part| of(part)).count() as f64 / 2000.0;
        // Of areas from 0.08 to 1, those beyond 9/16 fit a 4:3 image only with a ratio of at least 4/3 of the area; so an area
        // fits with a probability of 0.6805, and is then below a half with one of 0.42/0.6805.
        let small = share(&|part| part.width * part.height < 0.5 * width * height);
        assert!((small - 0.617).abs() < 0.035, "{small}");
        let wide = share(&|part| part.width > part.height);
        assert!((wide - 0.580).abs() < 0.035, "{wide}");
        let places = share(&|part| part.left + part.width / 2.0 < width / 2.0);
        assert!((0.46..0.54).contains(&places), "{places}");
    }

    #[test]
    fn images_far_from_square_give_their_middle_or_what_fits() {
        for shape in [[10, 1000], [1000, 10], [1, 1], [3, 2]] {
            for part in draws(shape) {
                let fits = part.left + part.width <= shape[1] as f64 && part.top + part.height <= shape[0] as f64;
                let ratio = part.width / part.height;
                assert!(fits && part.width >= 1.0 && part.height >= 1.0, "{part:?} of {shape:?}");
                assert!((0.49..=2.01).contains(&ratio), "{part:?} of {shape:?}");
            }
        }
    }

    #[test]
    fn the_exponential_function_is_that_of_the_library() {
        for i in -100..=100 {
            let x = LOG_RATIO * f64::from(i) / 100.0;
            assert!((exp(x) - x.exp()).abs() < 1e-15);
        }
        assert!((exp(LOG_RATIO) - 4.0 / 3.0).abs() < 1e-15);
    }

    /// Every pixel of the square against the mean of the pixels it covers, for scales that are whole numbers.
    #[test]
    fn the_middle_is_seven_eighths_of_the_shorter_side() {
        // A ramp over the columns: 64 wide, 32 high. Seven eighths are 28 pixels, columns 18 to 46; 4 pixels become one.
        let rgb = RgbImage::from_fn(64, 32, |x, _| image::Rgb([4 * x as u8, 100, 200]));
        let image = Decoded { rgb, is_grey: false };
        let found = square(&image, 7, 3, None).unwrap();
        for (i, pixel) in found.as_chunks::<3>().0.iter().enumerate() {
            // A ramp's mean is its middle, at the edges too: the filter reaches beyond the part, into the image.
            let middle = 18.0 + 4.0 * (i % 7) as f64 + 1.5;
            assert!((f64::from(pixel[0]) - 4.0 * middle).abs() <= 4.0, "{i}: {pixel:?}");
            assert_eq!(pixel[1..], [100, 200]);
        }
    }

    #[test]
    fn an_image_of_the_right_size_is_left_alone() {
        let rgb = RgbImage::from_fn(5, 5, |x, y| image::Rgb([50 * x as u8, 60 * y as u8, 7]));
        let raw = rgb.as_raw().clone();
        let image = Decoded { rgb, is_grey: false };
        assert_eq!(square(&image, 5, 3, None).unwrap(), raw);
        let grey = square(&image, 5, 1, None).unwrap();
        assert_eq!((grey.len(), grey[1]), (25, ((299 * 50 + 114 * 7 + 500) / 1000) as u8));
        // Training looks at parts of it nonetheless.
        assert_ne!(square(&image, 5, 3, Some(&mut stream(1, 0, 0, Purpose::Crop))).unwrap(), raw);
    }
}
