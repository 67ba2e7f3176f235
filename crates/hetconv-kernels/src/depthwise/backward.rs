//! Grad-weight: the sums of some taps at once, which share each grad-output.

use std::ops::Range;

use super::bundle::{Bundles, Strung};
use crate::conv::Images;
use crate::kernel::Along;
use crate::prefetch::Prefetch;
use crate::scratch::Scratch;
use crate::simd::{Simd, Task, constant};
use crate::taps::{Rows, Stretch};

/// The most taps whose sums are kept at once.
const TAPS: usize = 9;

/// Grad-weight over some images.
pub(super) struct Backward<'a> {
    pub images: &'a Images<'a>,
    pub rows: &'a Rows,
    pub channels: usize,
    /// Taps of the window.
    pub taps: usize,
    pub of_part: Range<usize>,
    /// Laid out as packed weights.
    pub out: &'a mut [f32],
    pub along: Option<&'a Along<'a>>,
    /// `[2, channels]`, if that is counted.
    pub counted: &'a mut [f64],
}

impl Task for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { images, rows: table, channels, taps: all_taps, of_part, out, along, counted } = self;
        let lens = [images.in_size, images.out_size].map(|[height, width]| height * width * channels);
        let [of_input, of_grad_output] = images.readings;
        let bundles = Bundles::new(table, of_part.len(), 1, of_input.scaled().is_some());
        let (scaled, of_input, pitch) = match bundles.strings {
            true => (of_input.scaled(), of_input.rest(), S::LANES),
            false => (None, of_input, channels),
        };
        let mut rooms = [of_input.room(bundles.of[0] * lens[0]), of_grad_output.room(bundles.of[0] * lens[1])];
        let mut strung = Scratch::new(bundles.scratch_len(table));
        let at_once = along.map_or(of_part.len().max(1), |along| along.images(bundles.of[0]));
        let mut scratch = along.map(|along| along.scratch(at_once));
        let mut done = of_part.start;
        let [mut input, mut grad_output]: [&[f32]; 2] = [&[]; 2];
        for index in 0..bundles.len() {
            let [bundle, rows] = bundles.at(index);
            let (first, end) = (of_part.start + bundle.start, of_part.start + bundle.end);
            if rows.start == 0 {
                let [room_in, room_out] = rooms.each_mut().map(|room| &mut room[..]);
                input = of_input.brought(simd, &images.input[first * lens[0]..end * lens[0]], room_in);
                grad_output = &images.grad_output[first * lens[1]..end * lens[1]];
                grad_output = of_grad_output.brought(simd, grad_output, room_out);
            }
            let reads = table.reads(rows.clone());
            let stretches = || table.rows[rows.clone()].iter().flatten();
            // The next bundle's are asked for meanwhile.
            let tasks = table.stretches(rows.clone()) * channels.div_ceil(S::LANES);
            let next = |values: &[f32], len: usize, behind: usize| {
                let next = values.as_ptr().wrapping_add((end - 1) * len + behind);
                Prefetch::new(next, bundle.len() * len * rows.len() / table.rows.len(), tasks)
            };
            let mut near = [
                next(images.input, lens[0], reads.end * channels),
                next(images.grad_output, lens[1], lens[1] * rows.end / table.rows.len()),
            ];
            for channel in (0..channels).step_by(S::LANES) {
                let lanes = S::LANES.min(channels - channel);
                if bundles.strings {
                    let (images, pixels, to) = (bundle.len(), reads.clone(), &mut strung[..]);
                    simd.apart(Strung {
                        source: input,
                        images,
                        image_len: lens[0],
                        pixels,
                        channels,
                        channel,
                        scaled,
                        to,
                    });
                }
                let first = match bundles.strings {
                    true => strung.as_ptr(),
                    false => input.as_ptr().wrapping_add(reads.start * channels + channel),
                };
                for stretch in stretches() {
                    near.iter_mut().for_each(|near| near.advance(simd));
                    for taps in table.taps[stretch.taps].chunks(TAPS) {
                        let sums = Sums {
                            stretch,
                            taps,
                            source: first.wrapping_add((stretch.first[0] - reads.start) * pitch),
                            pitch,
                            grad: grad_output.as_ptr().wrapping_add(stretch.first[1] + channel),
                            images: bundle.len(),
                            lens: [if bundles.strings { reads.len() * pitch } else { lens[0] }, lens[1]],
                            lanes,
                            out: &mut out[channel * all_taps..],
                        };
                        // SAFETY: the sources have been strung together or are pixels inside the images, as the table has
                        // them; of a pixel's channels those are read that there are.
                        unsafe { sums.compute(simd) };
                    }
                }
            }
            if let (Some(along), Some(scratch)) = (along, &mut scratch)
                && rows.end == table.rows.len()
                && (end - done >= at_once || end == of_part.end)
            {
                let grad_output = &images.grad_output[done * lens[1]..end * lens[1]];
                // SAFETY: parts have images of their own.
                unsafe { along.compute(done..end, grad_output, scratch, counted) };
                done = end;
            }
        }
    }
}

/// The sums of some taps over a stretch of some images, for one vector of channels.
struct Sums<'a> {
    stretch: &'a Stretch,
    taps: &'a [(usize, isize)],
    /// The first image's first pixel's.
    source: *const f32,
    /// Values from one source pixel to the next.
    pitch: usize,
    grad: *const f32,
    images: usize,
    /// Values from one image to the next, of source and grad-output.
    lens: [usize; 2],
    lanes: usize,
    /// `[tap, lane]`.
    out: &'a mut [f32],
}

impl Sums<'_> {
    /// Adds the sums to `out`.
    ///
    /// # Safety
    /// `lanes` values are readable at every source and grad-output of the stretch's pixels of all images.
    #[inline(always)]
    unsafe fn compute<S: Simd>(self, simd: S) {
        // SAFETY: the caller's.
        unsafe { if self.lanes == S::LANES { self.taps::<S, true>(simd) } else { self.taps::<S, false>(simd) } }
    }

    /// # Safety
    /// As [`Sums::compute`].
    #[inline(always)]
    unsafe fn taps<S: Simd, const WHOLE: bool>(self, simd: S) {
        constant!(T = self.taps.len(), of 1 2 3 4 5 6 7 8 9 => simd.apart(TapSums::<T, WHOLE>(self)))
    }
}

/// [`Sums`] of `T` taps, of a whole vector or a partial one.
struct TapSums<'a, const T: usize, const WHOLE: bool>(Sums<'a>);

impl<const T: usize, const WHOLE: bool> Task for TapSums<'_, T, WHOLE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Sums { stretch, taps, mut source, pitch, mut grad, images, lens, lanes, out } = self.0;
        let lanes = if WHOLE { S::LANES } else { lanes };
        assert!(taps.len() == T && taps.iter().all(|&(tap, _)| (tap + 1) * S::LANES <= out.len()));
        let offsets: [isize; T] = std::array::from_fn(|t| taps[t].1 * pitch as isize);
        let mut sums = [simd.splat(0.0); T];
        for _ in 0..images {
            let (mut from, mut to) = (source, grad);
            for _ in 0..stretch.pixels {
                // SAFETY: made by `Sums::taps` alone, whose caller vouches for all pixels.
                unsafe {
                    let grad = simd.load_lanes(to, lanes);
                    for t in 0..T {
                        sums[t] = simd.mul_add(simd.load_lanes(from.offset(offsets[t]), lanes), grad, sums[t]);
                    }
                }
                from = from.wrapping_add(stretch.steps[0] * pitch);
                to = to.wrapping_add(stretch.steps[1]);
            }
            source = source.wrapping_add(lens[0]);
            grad = grad.wrapping_add(lens[1]);
        }
        for t in 0..T {
            let slot = out[taps[t].0 * S::LANES..].as_mut_ptr();
            // SAFETY: a whole vector is left at each place, as was checked.
            unsafe { simd.store(slot, simd.add(simd.load(slot), sums[t])) };
        }
    }
}
