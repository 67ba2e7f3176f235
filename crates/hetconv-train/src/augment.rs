//! Batches of floats from bytes: normalisation, and augmentation that is the paper's (pad 4, random crop, horizontal flip)
//! or ImageNet's (a random part of the photo, horizontal flip), with cutout if that is wanted.

use crate::data::{DataError, Source, Split};
use crate::rng::{Purpose, below, stream};
use hetconv_graph::Normalisation;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// How training images are varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Augment {
    /// Whether a random part of each photo is looked at and not its middle. Images in memory are always seen whole.
    pub part: bool,
    /// Each image is shifted by up to so many pixels in both directions; what comes in from outside is the mean colour
    /// (0 after normalisation).
    pub pad: usize,
    /// Whether every other image, at random, is mirrored left to right.
    pub flip: bool,
    /// The side of a square, its middle anywhere in the image, that is made the mean colour (DeVries and Taylor's cutout);
    /// 0 for none.
    pub cutout: usize,
}

impl Augment {
    /// The paper's: pad by 4, crop at random, flip.
    pub const PAPER: Self = Self { part: false, pad: 4, flip: true, cutout: 0 };
    /// The usual one for photos: a random part of 8 to 100 % of the area, sides in a ratio of 3:4 to 4:3; flip.
    pub const IMAGENET: Self = Self { part: true, pad: 0, flip: true, cutout: 0 };
    /// Images as they are, for evaluation.
    pub const NONE: Self = Self { part: false, pad: 0, flip: false, cutout: 0 };

    /// What is usual for a split: ImageNet's for photos, the paper's for images in memory.
    pub fn usual(split: &Split) -> Self {
        match split.source() {
            Source::Files(_) => Self::IMAGENET,
            Source::Memory(_) => Self::PAPER,
        }
    }

    /// The variation of one sample of this height and width in one epoch.
    fn draw(&self, [height, width]: [usize; 2], seed: u64, epoch: u64, sample: u32) -> Variation {
        if self.pad == 0 && !self.flip && self.cutout == 0 {
            return Variation { down: 0, right: 0, flip: false, blank: [0..0, 0..0] };
        }
        let mut rng = stream(seed, epoch, u64::from(sample), Purpose::Augment);
        let mut shift = || below(&mut rng, 2 * self.pad as u32 + 1) as isize - self.pad as isize;
        let (down, right) = (shift(), shift());
        let flip = self.flip && below(&mut rng, 2) == 1;
        // As far as it lies in the image.
        let mut blank = |extent: usize| {
            let middle = below(&mut rng, extent as u32) as usize;
            let end = (middle + self.cutout.div_ceil(2)).min(extent);
            middle.saturating_sub(self.cutout / 2)..end
        };
        let blank = if self.cutout == 0 { [0..0, 0..0] } else { [blank(height), blank(width)] };
        Variation { down, right, flip, blank }
    }
}

/// Where the crop lies relative to the image, whether it is mirrored afterwards, and which rows and columns are blank then.
struct Variation {
    down: isize,
    right: isize,
    flip: bool,
    blank: [Range<usize>; 2],
}

/// What becomes of each byte of each channel: `(byte/255 − mean) / std`.
#[derive(Clone, Debug, PartialEq)]
pub struct PixelTable {
    channels: Vec<[f32; 256]>,
}

impl PixelTable {
    /// The table of a normalisation.
    pub fn new(normalisation: &Normalisation) -> Self {
        let channel = |(&mean, &std): (&f32, &f32)| std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / std);
        Self { channels: normalisation.mean.iter().zip(&normalisation.std).map(channel).collect() }
    }
}

/// Fills a batch: image `i` of `out` is the sample `indices[i]`, varied and normalised, `[height, width, channels]`.
///
/// The variation of a sample depends on the seed, the epoch and the sample alone, not on its place in the batch. Photos are
/// decoded in parallel, on the threads of the pool that calls.
///
/// # Errors
/// The first photo that cannot be read or is none.
///
/// # Panics
/// If `out` does not hold exactly the images asked for, an index is out of range, or the table has not one row a channel.
pub fn fill_batch(
    split: &Split,
    indices: &[u32],
    augment: &Augment,
    table: &PixelTable,
    seed: u64,
    epoch: u64,
    out: &mut [f32],
) -> Result<(), DataError> {
    let shape = split.shape();
    let size: usize = shape.iter().product();
    assert_eq!(out.len(), indices.len() * size, "size of the batch buffer");
    assert_eq!(table.channels.len(), shape[2], "channels of the normalisation");
    let fill = |(&index, out): (&u32, &mut [f32])| {
        let image = look(split, index, augment, seed, epoch)?;
        let variation = augment.draw([shape[0], shape[1]], seed, epoch, index);
        fill_image(&image, shape, &variation, table, out);
        Ok(())
    };
    match split.source() {
        Source::Memory(_) => indices.iter().zip(out.chunks_exact_mut(size)).try_for_each(fill),
        // All are tried, so that of several faults always the first is reported.
        Source::Files(_) => {
            let filled: Vec<_> = indices.par_iter().zip(out.par_chunks_exact_mut(size)).map(fill).collect();
            filled.into_iter().collect()
        }
    }
}

/// The bytes of one image, or of the part of it that is looked at.
fn look<'a>(
    split: &'a Split,
    index: u32,
    augment: &Augment,
    seed: u64,
    epoch: u64,
) -> Result<Cow<'a, [u8]>, DataError> {
    match split.source() {
        Source::Files(photos) if augment.part => {
            let mut rng = stream(seed, epoch, u64::from(index), Purpose::Crop);
            photos.part(index as usize, &mut rng).map(Cow::from)
        }
        _ => split.image(index as usize),
    }
}

fn fill_image(
    image: &[u8],
    [height, width, channels]: [usize; 3],
    variation: &Variation,
    table: &PixelTable,
    out: &mut [f32],
) {
    for (y, row) in out.chunks_exact_mut(width * channels).enumerate() {
        let source = y.checked_add_signed(variation.down).filter(|&y| y < height);
        let source = source.map(|y| &image[y * width * channels..][..width * channels]);
        for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
            let x = if variation.flip { width - 1 - x } else { x };
            let x = x.checked_add_signed(variation.right).filter(|&x| x < width);
            match source.zip(x) {
                Some((source, x)) => {
                    let bytes = &source[x * channels..][..channels];
                    for ((value, table), &byte) in pixel.iter_mut().zip(&table.channels).zip(bytes) {
                        *value = table[usize::from(byte)];
                    }
                }
                None => pixel.fill(0.0),
            }
        }
    }
    let [rows, columns] = &variation.blank;
    for row in out.chunks_exact_mut(width * channels).take(rows.end).skip(rows.start) {
        row[columns.start * channels..columns.end * channels].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Images;

    /// Two 3×4 images of 2 channels whose bytes are all different, and a table that keeps bytes as they are.
    fn setting() -> (Split, PixelTable) {
        let images = Images::new([3, 4, 2], (1..=48).collect()).unwrap();
        let identity = Normalisation { mean: vec![0.0; 2], std: vec![1.0 / 255.0; 2] };
        (Split::new(images, vec![0, 1]).unwrap(), PixelTable::new(&identity))
    }

    /// The oracle: really pads, really crops, really flips.
    fn padded_crop(image: &[u8], [h, w, c]: [usize; 3], pad: usize, corner: [usize; 2], flip: bool) -> Vec<f32> {
        let (ph, pw) = (h + 2 * pad, w + 2 * pad);
        let mut padded = vec![0.0; ph * pw * c];
        for y in 0..h {
            for x in 0..w * c {
                padded[(y + pad) * pw * c + pad * c + x] = f32::from(image[y * w * c + x]);
            }
        }
        let mut out = Vec::new();
        for y in 0..h {
            let mut row: Vec<Vec<f32>> = (0..w)
                .map(|x| {
                    let at = ((y + corner[0]) * pw + x + corner[1]) * c;
                    padded[at..at + c].to_vec()
                })
                .collect();
            if flip {
                row.reverse();
            }
            out.extend(row.concat());
        }
        out
    }

    #[test]
    fn every_shift_and_flip_equals_a_real_padded_crop() {
        let (split, table) = setting();
        let (shape, image) = (split.shape(), split.images().unwrap().image(1));
        for pad in [1usize, 4] {
            for (down, right) in (0..=2 * pad).flat_map(|down| (0..=2 * pad).map(move |right| (down, right))) {
                for flip in [false, true] {
                    let [by_down, by_right] = [down, right].map(|by| by as isize - pad as isize);
                    let variation = Variation { down: by_down, right: by_right, flip, blank: [0..0, 0..0] };
                    let mut out = vec![f32::NAN; 24];
                    fill_image(image, shape, &variation, &table, &mut out);
                    let expected = padded_crop(image, shape, pad, [down, right], flip);
                    assert!(out.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{down} {right} {flip}");
                }
            }
        }
    }

    #[test]
    fn a_square_anywhere_is_blank_and_nothing_else_changes() {
        let (split, table) = setting();
        let [height, width, channels] = split.shape();
        for side in [1, 2, 3, 9] {
            let cutout = Augment { cutout: side, ..Augment::PAPER };
            let (mut seen, mut most) = (std::collections::HashSet::new(), 0);
            for epoch in 0..300 {
                let (mut whole, mut cut) = (vec![0.0; 24], vec![0.0; 24]);
                fill_batch(&split, &[1], &Augment::PAPER, &table, 5, epoch, &mut whole).unwrap();
                fill_batch(&split, &[1], &cutout, &table, 5, epoch, &mut cut).unwrap();
                let [rows, columns] = cutout.draw([height, width], 5, epoch, 1).blank;
                for (at, (&whole, &cut)) in whole.iter().zip(&cut).enumerate() {
                    let (y, x) = (at / channels / width, at / channels % width);
                    let is_blank = rows.contains(&y) && columns.contains(&x);
                    assert_eq!(cut, if is_blank { 0.0 } else { whole }, "{side}: {y} {x}");
                }
                most = most.max(rows.len() * columns.len());
                seen.insert((rows, columns));
            }
            assert_eq!(most, side.min(height) * side.min(width));
            assert_eq!(seen.len(), if side == 9 { 1 } else { height * width });
        }
    }

    #[test]
    fn without_augmentation_images_are_only_normalised() {
        let (split, _) = setting();
        let normalisation = split.normalisation();
        let mut out = vec![f32::NAN; 48];
        fill_batch(&split, &[1, 0], &Augment::NONE, &PixelTable::new(&normalisation), 3, 1, &mut out).unwrap();
        for channel in 0..2 {
            let values: Vec<f32> = out.iter().copied().skip(channel).step_by(2).collect();
            let mean = values.iter().sum::<f32>() / 24.0;
            let variance = values.iter().map(|v| v * v).sum::<f32>() / 24.0;
            assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4, "{mean} {variance}");
        }
        assert!(out[0] > out[24], "image 1, which is brighter, comes first");
    }

    #[test]
    fn draws_cover_all_shifts_and_depend_on_the_sample_alone() {
        let draw = |seed, epoch, sample| {
            let v = Augment::PAPER.draw([3, 4], seed, epoch, sample);
            (v.down, v.right, v.flip)
        };
        let seen: std::collections::HashSet<_> = (0..4000).map(|sample| draw(1, 2, sample)).collect();
        assert_eq!(seen.len(), 9 * 9 * 2);
        let order = |epoch, seed| (0..50).map(|sample| draw(seed, epoch, sample)).collect::<Vec<_>>();
        assert_ne!(order(2, 1), order(3, 1));
        assert_ne!(order(2, 1), order(2, 2));

        let (split, table) = setting();
        let (mut both, mut one) = (vec![0.0; 48], vec![0.0; 24]);
        fill_batch(&split, &[0, 1], &Augment::PAPER, &table, 5, 6, &mut both).unwrap();
        fill_batch(&split, &[1], &Augment::PAPER, &table, 5, 6, &mut one).unwrap();
        assert_eq!(both[24..], one);
    }
}
