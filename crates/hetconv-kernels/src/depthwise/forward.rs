//! Forward and grad-input: the sums of some pixels at once, which share each weight.

use hetconv_core::Activation;

use super::bundle::{Bundles, Strung};
use crate::kernel::{Pass, Share};
use crate::moments::{ChannelMoments, ChannelSums};
use crate::norm::Affine;
use crate::parallel::Band;
use crate::prefetch::Prefetch;
use crate::simd::{Simd, Task};
use crate::taps::{Rows, Stretch};
use crate::tile::Epilogue;

/// The most pixels whose sums are kept at once.
const PIXELS: usize = 6;

/// Forward or grad-input, depending on whose rows these are.
#[derive(Clone, Copy)]
pub(crate) struct DepthwiseConv<'a> {
    pub rows: &'a Rows,
    /// See [`Depthwise`].
    pub packed: &'a [f32],
    /// One number per channel, padded as the weights are.
    pub bias: &'a [f32],
    pub activation: Option<Activation>,
    /// What a batch-norm makes of the source, where it is not kept.
    pub scaled: Option<Affine<'a>>,
    pub channels: usize,
    pub source_pixels: usize,
    pub target_pixels: usize,
}

/// Some pixels of some images, for one thread.
pub(crate) struct Part<'a> {
    pub kernel: &'a DepthwiseConv<'a>,
    pub pass: Pass<'a>,
    pub share: Share<'a>,
    /// As long as [`DepthwiseConv::scratch_len`] says.
    pub scratch: &'a mut [f32],
}

impl DepthwiseConv<'_> {
    /// How so many images are cut for so many parts.
    fn bundles(&self, images: usize, parts: usize) -> Bundles {
        Bundles::new(self.rows, images, parts, self.scaled.is_some())
    }

    /// Whether it is better to apply a batch-norm where the source is read than before.
    pub fn scales(&self) -> bool {
        Bundles::new(self.rows, 1, 1, true).strings
    }

    /// Values that one of so many parts of so many images needs for its own.
    pub fn scratch_len(&self, images: usize, parts: usize) -> usize {
        self.bundles(images, parts).scratch_len(self.rows)
    }
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let DepthwiseConv { rows: table, packed, bias, activation, scaled, channels, source_pixels, target_pixels } =
            *self.kernel;
        let padded = channels.next_multiple_of(S::LANES);
        assert!(bias.len() == padded && packed.len().is_multiple_of(padded));
        let weights_of_channel = packed.len() / padded.max(1);
        let epilogue = Epilogue::new(self.pass.residual, self.pass.target, activation);
        let mut moments = self.share.moments.is_some().then(|| ChannelMoments::new(padded));
        let lens = [source_pixels, target_pixels].map(|pixels| pixels * channels);
        let vectors = padded / S::LANES;
        let bundles = self.kernel.bundles(self.pass.images, self.share.band.count);
        assert!(bundles.strings || scaled.is_none(), "a batch-norm is applied to what is strung together");
        let strung = &mut self.scratch[..bundles.scratch_len(table)];
        let pitch = if bundles.strings { S::LANES } else { channels };
        // Behind what is read as it stands lies what is read next, or is likely to be.
        let stored = self.pass.stored;
        let behind = stored.values.as_ptr().wrapping_add(if stored.near { self.pass.source.len() } else { 0 });
        let of_part = self.share.band.of(bundles.len());
        for index in of_part.clone() {
            let [images, rows] = bundles.at(index);
            let reads = table.reads(rows.clone());
            let stretches = || table.rows[rows.clone()].iter().flatten();
            let source = &self.pass.source[images.start * lens[0]..images.end * lens[0]];
            let target = self.pass.target.0.wrapping_add(images.start * lens[1]);
            let next = behind.wrapping_add((images.end - 1) * lens[0] + reads.end * channels);
            let share = images.len() * lens[0] * rows.len() / table.rows.len();
            let mut near = Prefetch::new(next, share, table.stretches(rows.clone()) * vectors);
            // What lies behind a whole batch's part is most likely this thread's next one; behind a band it is another's.
            let is_ours = index + 1 < of_part.end || self.share.band == Band::WHOLE;
            let ahead = if is_ours { images.len() * lens[1] * rows.len() / table.rows.len() } else { 0 };
            for channel in (0..channels).step_by(S::LANES) {
                let lanes = S::LANES.min(channels - channel);
                if bundles.strings {
                    let (images, pixels, to) = (images.len(), reads.clone(), &mut *strung);
                    simd.apart(Strung { source, images, image_len: lens[0], pixels, channels, channel, scaled, to });
                }
                let first = match bundles.strings {
                    true => strung.as_ptr(),
                    false => source.as_ptr().wrapping_add(reads.start * channels + channel),
                };
                for (number, stretch) in stretches().enumerate() {
                    near.advance(simd);
                    let row = Row {
                        stretch,
                        taps: &table.taps[stretch.taps],
                        source: first.wrapping_add(stretch.first[0].wrapping_sub(reads.start).wrapping_mul(pitch)),
                        pitch,
                        target: target.wrapping_add(stretch.first[1] + channel),
                        images: images.len(),
                        lens: [if bundles.strings { reads.len() * pitch } else { lens[0] }, lens[1]],
                        weights: packed.as_ptr().wrapping_add(channel * weights_of_channel),
                        bias: bias.as_ptr().wrapping_add(channel),
                        epilogue,
                        lanes,
                        ahead,
                    };
                    let sums = moments.as_mut().map(|moments| moments.sums(channel));
                    let sums = sums.map(|sums| ChannelSums { is_first: sums.is_first && number == 0, ..sums });
                    // SAFETY: `bias`, the sums and each tap's weights are padded to whole vectors; the sources have been
                    // strung together or are pixels inside the images, as the table has them, and of a pixel's channels
                    // those are read and written that there are, by this part alone.
                    unsafe { row.compute(simd, sums) };
                }
            }
            if let Some(moments) = &mut moments {
                moments.count(images.len() * stretches().map(|stretch| stretch.pixels).sum::<usize>());
            }
        }
        if let (Some(moments), Some(sums)) = (moments, self.share.moments) {
            moments.add_to(sums);
        }
    }
}

/// The pixels of a stretch of some images by one vector of channels.
struct Row<'a> {
    stretch: &'a Stretch,
    taps: &'a [(usize, isize)],
    /// The first image's first pixel's.
    source: *const f32,
    /// Values from one source pixel to the next.
    pitch: usize,
    target: *mut f32,
    images: usize,
    /// Values from one image to the next, of source and target.
    lens: [usize; 2],
    /// `[tap, lane]`.
    weights: *const f32,
    bias: *const f32,
    epilogue: Epilogue,
    lanes: usize,
    /// Values from a target to one that is written later.
    ahead: usize,
}

impl Row<'_> {
    /// Computes the pixels and counts them in `sums`.
    ///
    /// # Safety
    /// `lanes` values are readable at every source and writable at every target; whole vectors are readable at `bias` and at
    /// every tap's weights, and writable at the places of `sums`.
    #[inline(always)]
    unsafe fn compute<S: Simd>(self, simd: S, sums: Option<ChannelSums>) {
        match (self.lanes == S::LANES, sums) {
            (true, None) => simd.apart(RowTask::<true, false> { row: self, sums: None }),
            (true, sums) => simd.apart(RowTask::<true, true> { row: self, sums }),
            (false, sums) => simd.apart(RowTask::<false, true> { row: self, sums }),
        }
    }
}

/// [`Row`] of a whole vector or a partial one, with sums or without.
struct RowTask<'a, const WHOLE: bool, const SUMS: bool> {
    row: Row<'a>,
    sums: Option<ChannelSums>,
}

/// What a row's pixels add to the sums.
struct Counted<V> {
    sum: V,
    square: V,
    pivot: V,
    /// Whether the next pixel is the pivot.
    is_first: bool,
}

impl<const WHOLE: bool, const SUMS: bool> Task for RowTask<'_, WHOLE, SUMS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Stretch { steps: [source_step, target_step], pixels, .. } = *self.row.stretch;
        let Row { images, lens, .. } = self.row;
        let steps = [source_step * self.row.pitch, target_step];
        // Sums are kept of pixels of a row, or of one pixel of several images if those are more.
        let (mut rows, steps_of_rows, pixels, steps) = match images > pixels {
            true => (pixels, steps, images, lens),
            false => (images, lens, pixels, steps),
        };
        let (mut source, mut target) = (self.row.source, self.row.target);
        let zero = simd.splat(0.0);
        let mut counted = Counted { sum: zero, square: zero, pivot: zero, is_first: false };
        if let (true, Some(ChannelSums { places, is_first })) = (SUMS, self.sums) {
            // SAFETY: the caller vouches for whole vectors.
            (counted.pivot, counted.is_first) = (unsafe { simd.load(places[2]) }, is_first);
        }
        while rows > 0 {
            let (mut from, mut to, mut left) = (source, target, pixels);
            while left > 0 {
                // SAFETY: made by `Row::compute` alone, whose caller vouches for the row.
                unsafe {
                    match left {
                        1 => self.pixels::<S, 1>(simd, from, to, steps, &mut counted),
                        2 => self.pixels::<S, 2>(simd, from, to, steps, &mut counted),
                        3 => self.pixels::<S, 3>(simd, from, to, steps, &mut counted),
                        4 | 7 | 8 => self.pixels::<S, 4>(simd, from, to, steps, &mut counted),
                        5 => self.pixels::<S, 5>(simd, from, to, steps, &mut counted),
                        _ => self.pixels::<S, PIXELS>(simd, from, to, steps, &mut counted),
                    }
                }
                let done = match left {
                    7 | 8 => 4,
                    left => left.min(PIXELS),
                };
                from = from.wrapping_add(done * steps[0]);
                to = to.wrapping_add(done * steps[1]);
                left -= done;
            }
            source = source.wrapping_add(steps_of_rows[0]);
            target = target.wrapping_add(steps_of_rows[1]);
            rows -= 1;
        }
        if let (true, Some(ChannelSums { places: [sum, square, pivot], .. })) = (SUMS, self.sums) {
            // SAFETY: the caller vouches for whole vectors.
            unsafe {
                simd.store(sum, simd.add(simd.load(sum), counted.sum));
                simd.store(square, simd.add(simd.load(square), counted.square));
                simd.store(pivot, counted.pivot);
            }
        }
    }
}

impl<const WHOLE: bool, const SUMS: bool> RowTask<'_, WHOLE, SUMS> {
    /// # Safety
    /// As [`Row::compute`], for `R` pixels, so many values after each other.
    #[inline(always)]
    unsafe fn pixels<S: Simd, const R: usize>(
        &self,
        simd: S,
        source: *const f32,
        target: *mut f32,
        [source_step, target_step]: [usize; 2],
        counted: &mut Counted<S::V>,
    ) {
        let row = &self.row;
        let lanes = if WHOLE { S::LANES } else { row.lanes };
        // SAFETY: the caller's.
        unsafe {
            for r in 0..R {
                simd.prefetch_to_write(target.wrapping_add(r * target_step + row.ahead));
            }
            let mut sums = [simd.load(row.bias); R];
            for &(tap, offset) in row.taps {
                let weight = simd.load(row.weights.add(tap * S::LANES));
                let source = source.offset(offset * row.pitch as isize);
                for r in 0..R {
                    sums[r] = simd.mul_add(simd.load_lanes(source.add(r * source_step), lanes), weight, sums[r]);
                }
            }
            for r in 0..R {
                let target = target.add(r * target_step);
                let sum = row.epilogue.apply(simd, sums[r], target, lanes);
                simd.store_lanes(target, sum, lanes);
                if SUMS {
                    if r == 0 && counted.is_first {
                        (counted.pivot, counted.is_first) = (sum, false);
                    }
                    let x = simd.sub(sum, counted.pivot);
                    counted.sum = simd.add(counted.sum, x);
                    counted.square = simd.mul_add(x, x, counted.square);
                }
            }
        }
    }
}
