//! Depthwise convolution: lanes run over channels, because no two channels ever meet.
//!
//! There are as many products for each value as there are taps, so memory decides. Pixels are taken row by row, in the order
//! of memory; a row's sources stay in the first-level cache while all of its vectors of channels are worked on, and the next
//! row's are asked for meanwhile. Forward and grad-input keep the sums of up to [`PIXELS`] pixels in registers, which share
//! each weight; grad-weight keeps those of up to [`TAPS`] taps, which share each grad-output.

// Sums are indexed as registers are.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use hetconv_core::Activation;
use rayon::prelude::*;

use crate::conv::{ConvSpec, Images};
use crate::isa::Isa;
use crate::kernel::{Along, Pass, Share};
use crate::moments::{ChannelMoments, ChannelSums, SumsOfParts};
use crate::parallel::reduction_parts;
use crate::prefetch::Prefetch;
use crate::simd::{Simd, Task};
use crate::taps::{Rows, Stretch};
use crate::tile::Epilogue;

/// The most pixels whose sums are kept at once.
const PIXELS: usize = 6;

/// The most taps whose sums are kept at once.
const TAPS: usize = 9;

/// A depthwise convolution's weights for one instruction set. Packed weights are `[tap, channels]` in stored order, channels
/// padded with zeros to whole vectors.
pub(crate) struct Depthwise<'a> {
    spec: &'a ConvSpec,
    taps: usize,
    padded: usize,
}

impl<'a> Depthwise<'a> {
    pub fn new(spec: &'a ConvSpec, isa: Isa) -> Self {
        Self { spec, taps: spec.geometry.taps(), padded: spec.in_channels.next_multiple_of(isa.lanes()) }
    }

    /// Channels, padded to whole vectors.
    pub fn padded(&self) -> usize {
        self.padded
    }

    pub fn pack(&self, weight: &[f32]) -> Vec<f32> {
        let mut packed = vec![0.0; self.taps * self.padded];
        for (position, &channel) in self.spec.in_order.channels().iter().enumerate() {
            for tap in 0..self.taps {
                packed[tap * self.padded + position] = weight[channel as usize * self.taps + tap];
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
            Backward { images, rows, channels, padded: self.padded, of_part, out, along, counted }
        };
        let work: Vec<Backward<'_>> = partial.chunks_mut(len).enumerate().map(part).collect();
        work.into_par_iter().for_each(|part| isa.run(part));
        for (position, &channel) in self.spec.in_order.channels().iter().enumerate() {
            for tap in 0..self.taps {
                let of_part = |part: usize| partial[part * len + tap * self.padded + position];
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
    pub channels: usize,
    pub source_pixels: usize,
    pub target_pixels: usize,
}

/// Some pixels of some images, for one thread.
pub(crate) struct Part<'a> {
    pub kernel: &'a DepthwiseConv<'a>,
    pub pass: Pass<'a>,
    pub share: Share<'a>,
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let DepthwiseConv {
            rows: Rows { taps, rows },
            packed,
            bias,
            activation,
            channels,
            source_pixels,
            target_pixels,
        } = *self.kernel;
        let padded = channels.next_multiple_of(S::LANES);
        assert!(bias.len() == padded && packed.len().is_multiple_of(padded));
        let epilogue = Epilogue::new(self.pass.residual, self.pass.target, activation);
        let mut moments = self.share.moments.is_some().then(|| ChannelMoments::new(padded));
        let of_part = self.share.band.of(self.pass.images * rows.len());
        let row_len = |pixels: usize| (pixels * channels).div_ceil(rows.len().max(1));
        let [source_row, target_row] = [source_pixels, target_pixels].map(row_len);
        let vectors = padded / S::LANES;
        for row in of_part {
            let (image, stretches) = (row / rows.len(), &rows[row % rows.len()]);
            let source = self.pass.source.as_ptr().wrapping_add(image * source_pixels * channels);
            let target = self.pass.target.0.wrapping_add(image * target_pixels * channels);
            let ahead = if self.pass.stored.near { self.pass.source.len() } else { 2 * source_row };
            let next = self.pass.stored.values.as_ptr().wrapping_add(row * source_row + ahead);
            let mut near = Prefetch::new(next, source_row, vectors * stretches.len());
            for channel in (0..channels).step_by(S::LANES) {
                for (number, stretch) in stretches.iter().enumerate() {
                    near.advance(simd);
                    let row = Row {
                        stretch,
                        taps: &taps[stretch.taps],
                        source: source.wrapping_add(stretch.first[0] + channel),
                        target: target.wrapping_add(stretch.first[1] + channel),
                        weights: packed.as_ptr().wrapping_add(channel),
                        padded,
                        bias: bias.as_ptr().wrapping_add(channel),
                        epilogue,
                        lanes: S::LANES.min(channels - channel),
                        ahead: target_row,
                    };
                    let sums = moments.as_mut().map(|moments| moments.sums(channel));
                    let sums = sums.map(|sums| ChannelSums { is_first: sums.is_first && number == 0, ..sums });
                    // SAFETY: `bias`, the sums and each tap's weights are padded to whole vectors; of a pixel's channels those
                    // are read and written that there are; stretches only name pixels inside the images, whose lengths were
                    // checked by whoever made the part.
                    unsafe { row.compute(simd, sums) };
                }
            }
            if let Some(moments) = &mut moments {
                moments.count(stretches.iter().map(|stretch| stretch.pixels).sum());
            }
        }
        if let (Some(moments), Some(sums)) = (moments, self.share.moments) {
            moments.add_to(sums);
        }
    }
}

/// The pixels of a stretch by one vector of channels.
struct Row<'a> {
    stretch: &'a Stretch,
    taps: &'a [(usize, isize)],
    /// The first pixel's.
    source: *const f32,
    target: *mut f32,
    /// `[tap, padded]`.
    weights: *const f32,
    padded: usize,
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
        let (mut source, mut target, mut left) = (self.row.source, self.row.target, pixels);
        let zero = simd.splat(0.0);
        let mut counted = Counted { sum: zero, square: zero, pivot: zero, is_first: false };
        if let (true, Some(ChannelSums { places, is_first })) = (SUMS, self.sums) {
            // SAFETY: the caller vouches for whole vectors.
            (counted.pivot, counted.is_first) = (unsafe { simd.load(places[2]) }, is_first);
        }
        while left > 0 {
            // SAFETY: made by `Row::compute` alone, whose caller vouches for the row.
            unsafe {
                match left {
                    1 => self.pixels::<S, 1>(simd, source, target, &mut counted),
                    2 => self.pixels::<S, 2>(simd, source, target, &mut counted),
                    3 => self.pixels::<S, 3>(simd, source, target, &mut counted),
                    4 | 7 => self.pixels::<S, 4>(simd, source, target, &mut counted),
                    5 => self.pixels::<S, 5>(simd, source, target, &mut counted),
                    _ => self.pixels::<S, PIXELS>(simd, source, target, &mut counted),
                }
            }
            let done = match left {
                7 => 4,
                left => left.min(PIXELS),
            };
            source = source.wrapping_add(done * source_step);
            target = target.wrapping_add(done * target_step);
            left -= done;
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
    /// As [`Row::compute`], for `R` pixels.
    #[inline(always)]
    unsafe fn pixels<S: Simd, const R: usize>(
        &self,
        simd: S,
        source: *const f32,
        target: *mut f32,
        counted: &mut Counted<S::V>,
    ) {
        let row = &self.row;
        let [source_step, target_step] = row.stretch.steps;
        let lanes = if WHOLE { S::LANES } else { row.lanes };
        // SAFETY: the caller's.
        unsafe {
            for r in 0..R {
                simd.prefetch_to_write(target.wrapping_add(r * target_step + row.ahead));
            }
            let mut sums = [simd.load(row.bias); R];
            for &(tap, offset) in row.taps {
                let weight = simd.load(row.weights.add(tap * row.padded));
                let source = source.offset(offset);
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
    padded: usize,
    of_part: Range<usize>,
    /// `[tap, padded]`.
    out: &'a mut [f32],
    along: Option<&'a Along<'a>>,
    /// `[2, channels]`, if that is counted.
    counted: &'a mut [f64],
}

/// Pixels that a tap's sum is taken over before it is added to the others, if images are that small: they are grouped.
const RUN: usize = 16;

impl Task for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { images, rows: Rows { taps, rows }, channels, padded, of_part, out, along, counted } = self;
        let lens = [images.in_size, images.out_size].map(|[height, width]| height * width * channels);
        let group = (RUN / images.out_size[1].max(1)).max(1);
        let [of_input, of_grad_output] = images.readings;
        let most = group.min(of_part.len());
        let mut rooms = [of_input.room(most * lens[0]), of_grad_output.room(most * lens[1])];
        let near = along.map_or(of_part.len().max(1), |along| along.images(group));
        let mut scratch = along.map(|along| along.scratch(near));
        let mut done = of_part.start;
        for first in of_part.clone().step_by(group) {
            let group = group.min(of_part.end - first);
            let [room_in, room_out] = &mut rooms;
            let input = of_input.brought(simd, &images.input[first * lens[0]..][..group * lens[0]], room_in);
            let grad_output = &images.grad_output[first * lens[1]..][..group * lens[1]];
            let grad_output = of_grad_output.brought(simd, grad_output, room_out);
            let row_len = |values: &[f32]| values.len() / rows.len();
            for (y, stretches) in rows.iter().enumerate() {
                // While a row of several images is worked on, the next group's is asked for.
                let tasks = stretches.len() * (padded / S::LANES);
                let mut near = [input, grad_output].map(|values| {
                    let ahead = if group == 1 { y + 2 } else { y + rows.len() };
                    Prefetch::new(values.as_ptr().wrapping_add(ahead * row_len(values)), row_len(values), tasks)
                });
                for channel in (0..channels).step_by(S::LANES) {
                    for stretch in stretches {
                        near.iter_mut().for_each(|near| near.advance(simd));
                        for taps in taps[stretch.taps].chunks(TAPS) {
                            let sums = Sums {
                                stretch,
                                taps,
                                source: input.as_ptr().wrapping_add(stretch.first[0] + channel),
                                grad: grad_output.as_ptr().wrapping_add(stretch.first[1] + channel),
                                images: group,
                                lens,
                                lanes: S::LANES.min(channels - channel),
                                out: &mut out[channel..],
                                padded,
                            };
                            // SAFETY: stretches name pixels inside the two images; of a pixel's channels those are read that
                            // there are.
                            unsafe { sums.compute(simd) };
                        }
                    }
                }
            }
            let end = first + group;
            if let (Some(along), Some(scratch)) = (along, &mut scratch)
                && (end - done >= near || end == of_part.end)
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
    grad: *const f32,
    images: usize,
    /// Values from one image to the next, of source and grad-output.
    lens: [usize; 2],
    lanes: usize,
    /// From the vector's first channel on.
    out: &'a mut [f32],
    padded: usize,
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
        let Sums { stretch, taps, mut source, mut grad, images, lens, lanes, out, padded } = self.0;
        let lanes = if WHOLE { S::LANES } else { lanes };
        assert!(taps.len() == T && taps.iter().all(|&(tap, _)| tap * padded + S::LANES <= out.len()));
        let offsets: [isize; T] = std::array::from_fn(|t| taps[t].1);
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
                from = from.wrapping_add(stretch.steps[0]);
                to = to.wrapping_add(stretch.steps[1]);
            }
            source = source.wrapping_add(lens[0]);
            grad = grad.wrapping_add(lens[1]);
        }
        for t in 0..T {
            let slot = out[taps[t].0 * padded..].as_mut_ptr();
            // SAFETY: a whole vector is left at each place, as was checked.
            unsafe { simd.store(slot, simd.add(simd.load(slot), sums[t])) };
        }
    }
}
