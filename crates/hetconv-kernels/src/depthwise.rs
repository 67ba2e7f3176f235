//! Depthwise convolution: lanes run over channels, because no two channels ever meet.
//!
//! There are few products for each value, so memory decides. A [`Bundle`] of rows is worked on at a time, one vector of
//! channels after another, and the next one's sources are asked for meanwhile. The vectors of all sources of small images are
//! [strung together](Strung) first: they stay in the first-level cache, where pixels as they stand, a power of two apart,
//! would drive each other out, and several images share each weight. A batch-norm is applied on the way. Larger images
//! are worked on row by row where they stand, unless a batch-norm has to be applied and bundles share few rows. Forward and grad-input
//! keep the sums of up to [`PIXELS`] pixels in registers, which share each weight; grad-weight keeps those of up to [`TAPS`]
//! taps, which share each grad-output.

// Sums are indexed as registers are.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use hetconv_core::Activation;
use rayon::prelude::*;

use crate::cache;
use crate::conv::{ConvSpec, Images};
use crate::isa::Isa;
use crate::kernel::{Along, Pass, Share};
use crate::moments::{ChannelMoments, ChannelSums, SumsOfParts};
use crate::norm::Affine;
use crate::parallel::{Band, reduction_parts};
use crate::prefetch::Prefetch;
use crate::scratch::Scratch;
use crate::simd::{Simd, Task};
use crate::taps::{Rows, Stretch};
use crate::tile::Epilogue;

/// The most pixels whose sums are kept at once.
const PIXELS: usize = 6;

/// The most taps whose sums are kept at once.
const TAPS: usize = 9;

/// The most lanes of a vector.
const MAX_LANES: usize = 16;

/// Source pixels of a bundle whose vectors are strung together, unless a row alone reads more: half of the first-level
/// cache.
const PIXELS_STRUNG: usize = cache::FIRST / 2 / MAX_LANES;

/// Rows of targets that are worked on together: all those of one or several small images, or some of a larger one.
#[derive(Clone, Copy)]
struct Bundles {
    /// Images and rows that there are.
    all: [usize; 2],
    /// Images and rows of a bundle.
    of: [usize; 2],
    /// Whether the sources are strung together, or read where they stand, row by row.
    strings: bool,
}

/// Images, and rows of each of them.
type Bundle = [Range<usize>; 2];

impl Bundles {
    /// The better way to cut so many images for so many parts. What a batch-norm has to be applied to is strung together if
    /// bundles share little; what is read as it stands only if no image is cut, so that they share nothing.
    fn new(table: &Rows, images: usize, parts: usize, is_scaled: bool) -> Self {
        let strung = Self::strung(table, images, parts);
        let is_better = match is_scaled {
            true => 2 * strung.reads(table).sum::<usize>() <= 3 * table.reads(0..table.rows.len()).len(),
            false => strung.per_image() == 1,
        };
        if is_better { strung } else { Self { of: [1, 1], strings: false, ..strung } }
    }

    /// Whose sources are strung together: of so many images, at least `count` bundles if there are so many rows.
    fn strung(table: &Rows, images: usize, count: usize) -> Self {
        let all = table.rows.len();
        let fits = |rows: usize| {
            let bundles = (0..all).step_by(rows).map(|first| first..all.min(first + rows));
            bundles.map(|rows| table.reads(rows).len()).max().is_none_or(|most| most <= PIXELS_STRUNG)
        };
        // Rows share what they read: that many fit at most.
        let of_image = table.reads(0..all).len().max(1);
        let most = (images * all / count).min(PIXELS_STRUNG * all / of_image).clamp(1, all.max(1));
        let rows = (1..=most).rev().find(|&rows| fits(rows)).unwrap_or(1);
        let together = (PIXELS_STRUNG / of_image).min(images / count).max(1);
        Self { all: [images, all], of: [if rows == all { together } else { 1 }, rows], strings: true }
    }

    fn len(&self) -> usize {
        self.all[0].div_ceil(self.of[0]) * self.per_image()
    }

    /// Bundles of an image, or of some that are worked on together.
    fn per_image(&self) -> usize {
        self.all[1].div_ceil(self.of[1])
    }

    fn at(&self, index: usize) -> Bundle {
        let [image, row] = [index / self.per_image() * self.of[0], index % self.per_image() * self.of[1]];
        let end = |first: usize, side: usize| self.all[side].min(first + self.of[side]);
        [image..end(image, 0), row..end(row, 1)]
    }

    /// The most values of a bundle's sources, if they are strung together.
    fn scratch_len(&self, table: &Rows) -> usize {
        if self.strings { self.of[0] * self.reads(table).max().unwrap_or(0) * MAX_LANES } else { 0 }
    }

    /// Source pixels of an image that each of its bundles reads.
    fn reads(&self, table: &Rows) -> impl Iterator<Item = usize> {
        let [all, of] = [self.all[1], self.of[1]];
        (0..all).step_by(of).map(move |first| table.reads(first..all.min(first + of)).len())
    }
}

/// A vector of channels of some pixels of some images, one behind the other.
struct Strung<'a> {
    /// Of all images, `[pixels, channels]`.
    source: &'a [f32],
    images: usize,
    /// Values from one image to the next.
    image_len: usize,
    /// Of each image.
    pixels: Range<usize>,
    channels: usize,
    /// The first of the vector.
    channel: usize,
    /// What becomes of them.
    scaled: Option<Affine<'a>>,
    to: &'a mut [f32],
}

impl Task for Strung<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, images, image_len, pixels, channels, channel, scaled, to } = self;
        let lanes = S::LANES.min(channels - channel);
        assert!(to.len() >= images * pixels.len() * S::LANES);
        assert!(images == 0 || source.len() >= (images - 1) * image_len + pixels.end * channels);
        let of_channels = |values: &[f32]| {
            let values = &values[channel..channel + lanes];
            // SAFETY: as many values as that.
            unsafe { simd.load_lanes(values.as_ptr(), lanes) }
        };
        let affine = scaled.map(|Affine { scale, shift, relu }| (of_channels(scale), of_channels(shift), relu));
        let mut to = to.as_mut_ptr();
        for image in 0..images {
            let mut from = source.as_ptr().wrapping_add(image * image_len + pixels.start * channels + channel);
            for _ in pixels.clone() {
                // SAFETY: `lanes` channels of a pixel, which the source has, and room for a vector of each, as was checked.
                unsafe {
                    let mut value = simd.load_lanes(from, lanes);
                    if let Some((scale, shift, relu)) = affine {
                        value = simd.mul_add(value, scale, shift);
                        if relu {
                            value = simd.relu(value);
                        }
                    }
                    simd.store(to, value);
                }
                from = from.wrapping_add(channels);
                to = to.wrapping_add(S::LANES);
            }
        }
    }
}

/// A depthwise convolution's weights for one instruction set. Packed weights are `[vector of channels, tap, lane]` in stored
/// order, channels padded with zeros to whole vectors: those of a vector do not share sets of the cache.
pub(crate) struct Depthwise<'a> {
    spec: &'a ConvSpec,
    taps: usize,
    lanes: usize,
    padded: usize,
}

impl<'a> Depthwise<'a> {
    pub fn new(spec: &'a ConvSpec, isa: Isa) -> Self {
        let (taps, lanes) = (spec.geometry.taps(), isa.lanes());
        Self { spec, taps, lanes, padded: spec.in_channels.next_multiple_of(lanes) }
    }

    /// Channels, padded to whole vectors.
    pub fn padded(&self) -> usize {
        self.padded
    }

    /// Where a weight stands of the channel in a position of the stored order.
    fn place(&self, position: usize, tap: usize) -> usize {
        (position / self.lanes * self.taps + tap) * self.lanes + position % self.lanes
    }

    pub fn pack(&self, weight: &[f32]) -> Vec<f32> {
        let mut packed = vec![0.0; self.taps * self.padded];
        for (position, &channel) in self.spec.in_order.channels().iter().enumerate() {
            for tap in 0..self.taps {
                packed[self.place(position, tap)] = weight[channel as usize * self.taps + tap];
            }
        }
        packed
    }

    /// Grad-weight `[channels, 1, kh, kw]`, natural order, and what is counted of what is computed along, `[2, channels]`;
    /// `rows` are those of the forward pass.
    pub fn grad_weight(
        &self,
        isa: Isa,
        images: &Images<'_>,
        rows: &Rows,
        grad: &mut [f32],
        along: Option<&Along<'_>>,
    ) -> Vec<f64> {
        let channels = self.spec.in_channels;
        let len = self.taps * self.padded;
        let parts = reduction_parts(images.batch, len);
        assert!(along.is_none() || images.readings[1].is_plain(), "a grad-output that is made");
        let mut partial = vec![0.0f32; parts * len];
        let mut counted = SumsOfParts::new(parts, along.map_or(0, Along::counted));
        let mut of_parts = counted.parts();
        let part = |(part, out): (usize, _)| {
            let of_part = part * images.batch / parts..(part + 1) * images.batch / parts;
            let counted = of_parts.next().unwrap_or_default();
            Backward { images, rows, channels, taps: self.taps, of_part, out, along, counted }
        };
        let work: Vec<Backward<'_>> = partial.chunks_mut(len).enumerate().map(part).collect();
        work.into_par_iter().for_each(|part| isa.run(part));
        for (position, &channel) in self.spec.in_order.channels().iter().enumerate() {
            for tap in 0..self.taps {
                let of_part = |part: usize| partial[part * len + self.place(position, tap)];
                grad[channel as usize * self.taps + tap] = (0..parts).map(of_part).sum();
            }
        }
        counted.total()
    }
}

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
                    // those are read and written that there are.
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

/// Grad-weight over some images.
struct Backward<'a> {
    images: &'a Images<'a>,
    rows: &'a Rows,
    channels: usize,
    /// Taps of the window.
    taps: usize,
    of_part: Range<usize>,
    /// Laid out as packed weights.
    out: &'a mut [f32],
    along: Option<&'a Along<'a>>,
    /// `[2, channels]`, if that is counted.
    counted: &'a mut [f64],
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
        if self.lanes == S::LANES { self.taps::<S, true>(simd) } else { self.taps::<S, false>(simd) }
    }

    #[inline(always)]
    fn taps<S: Simd, const WHOLE: bool>(self, simd: S) {
        match self.taps.len() {
            0 => {}
            1 => simd.apart(TapSums::<1, WHOLE>(self)),
            2 => simd.apart(TapSums::<2, WHOLE>(self)),
            3 => simd.apart(TapSums::<3, WHOLE>(self)),
            4 => simd.apart(TapSums::<4, WHOLE>(self)),
            5 => simd.apart(TapSums::<5, WHOLE>(self)),
            6 => simd.apart(TapSums::<6, WHOLE>(self)),
            7 => simd.apart(TapSums::<7, WHOLE>(self)),
            8 => simd.apart(TapSums::<8, WHOLE>(self)),
            _ => simd.apart(TapSums::<TAPS, WHOLE>(self)),
        }
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
                // SAFETY: made by `Sums::compute` alone, whose caller vouches for all pixels.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::taps;

    #[test]
    fn bundles_have_every_row_once_and_fit() {
        for (size, images) in [
            ([4, 4], 37),
            ([4, 4], 10),
            ([10, 10], 1),
            ([10, 10], 2),
            ([16, 16], 2),
            ([16, 17], 2),
            ([40, 9], 3),
            ([5, 100], 2),
            ([7, 300], 1),
        ] {
            for (stride, count) in [(1, 1), (2, 1), (1, 8), (1, 16)] {
                let geometry = hetconv_core::Conv2dGeometry::same(3, stride);
                let out = geometry.output_size(size).unwrap();
                let axis = |axis: usize| taps::forward_axis(&geometry, axis, size[axis], out[axis]);
                let table = Rows::new(3, &axis(0), &axis(1), size[1], 1);
                let bundles = Bundles::strung(&table, images, count);
                assert!(bundles.len() >= count.min(images * out[0]));
                let mut rows = Vec::new();
                for bundle in 0..bundles.len() {
                    let [of_images, of_rows] = bundles.at(bundle);
                    let strung = of_images.len() * table.reads(of_rows.clone()).len();
                    assert!(strung * MAX_LANES <= bundles.scratch_len(&table));
                    assert!(strung <= PIXELS_STRUNG || (of_images.len(), of_rows.len()) == (1, 1), "{size:?}");
                    rows.extend(of_images.flat_map(|image| of_rows.clone().map(move |row| (image, row))));
                }
                rows.sort_unstable();
                let all: Vec<_> = (0..images).flat_map(|image| (0..out[0]).map(move |row| (image, row))).collect();
                assert_eq!(rows, all, "{size:?}");
            }
        }
    }
}
