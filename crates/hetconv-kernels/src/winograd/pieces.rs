//! Where pieces are, and their transformed source.

// Rows and columns are indexed alike.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::transforms::source_points;
use super::{IN, OUT, POINTS};
use crate::simd::Simd;

/// How images are cut into pieces.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub source_size: [usize; 2],
    pub target_size: [usize; 2],
    /// Source pixels that the first target pixel's window begins before the source, vertically and horizontally.
    pub before: [isize; 2],
}

/// One piece of some images.
pub(crate) struct Window {
    /// Number of the window's first source pixel, which may lie outside of the image.
    source: isize,
    /// Source pixels of a row of the image.
    row: usize,
    /// Which rows and columns of the window lie inside: a bit for each.
    inside: [u32; 2],
    /// Number of the first target pixel.
    pub target: usize,
    /// Rows and columns of target pixels.
    pub size: [usize; 2],
}

impl Grid {
    /// A piece, counted through all images.
    pub fn window(&self, piece: usize) -> Window {
        let Self { source_size, target_size, before } = *self;
        let [rows, columns] = target_size.map(|size| size.div_ceil(OUT));
        let (image, within) = (piece / (rows * columns), piece % (rows * columns));
        let first = [within / columns * OUT, within % columns * OUT];
        let source = [0, 1].map(|axis| first[axis] as isize - before[axis]);
        let inside = |axis: usize| {
            let is_inside = |&at: &usize| (0..source_size[axis] as isize).contains(&(source[axis] + at as isize));
            (0..IN).filter(is_inside).fold(0, |bits, at| bits | 1 << at)
        };
        Window {
            source: ((image * source_size[0]) as isize + source[0]) * source_size[1] as isize + source[1],
            row: source_size[1],
            inside: [inside(0), inside(1)],
            target: (image * target_size[0] + first[0]) * target_size[1] + first[1],
            size: [0, 1].map(|axis| (target_size[axis] - first[axis]).min(OUT)),
        }
    }
}

impl Window {
    /// Number of the source pixel in a row and a column of the window; nothing outside of the image.
    #[inline(always)]
    pub fn pixel(&self, [y, x]: [usize; 2]) -> Option<usize> {
        let is_inside = (self.inside[0] >> y) & (self.inside[1] >> x) & 1 == 1;
        is_inside.then(|| (self.source + (y * self.row + x) as isize) as usize)
    }
}

/// Transforms some channels of a window's pixels; a point's stand `stride` values behind those of the one before.
///
/// # Safety
/// Every pixel has these channels; as many values, in whole vectors, are writable at every point.
#[inline(always)]
pub(crate) unsafe fn transform_source<S: Simd>(
    simd: S,
    pixels: &[*const f32; POINTS],
    channels: Range<usize>,
    out: *mut f32,
    stride: usize,
) {
    for at in (0..channels.len()).step_by(S::LANES) {
        let (channel, left) = (channels.start + at, channels.len() - at);
        // SAFETY: the caller's.
        unsafe {
            let load = |pixel: usize| simd.load_lanes(pixels[pixel].add(channel), left.min(S::LANES));
            let mut rows = [[simd.splat(0.0); IN]; IN];
            for x in 0..IN {
                let column = source_points(simd, std::array::from_fn(|y| load(y * IN + x)));
                for y in 0..IN {
                    rows[y][x] = column[y];
                }
            }
            for (y, &row) in rows.iter().enumerate() {
                for (x, &value) in source_points(simd, row).iter().enumerate() {
                    simd.store(out.add((y * IN + x) * stride + at), value);
                }
            }
        }
    }
}
