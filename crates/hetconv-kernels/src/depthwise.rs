//! Depthwise convolution: lanes run over channels, because no two channels ever meet.

use std::mem::MaybeUninit;

use hetconv_core::Activation;
use rayon::prelude::*;

use crate::conv::{ConvSpec, Images};
use crate::isa::Isa;
use crate::parallel::{Band, Target, images_per_part, reduction_parts};
use crate::simd::{Simd, Task};
use crate::taps::Region;
use crate::tile::Epilogue;

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

    /// Grad-weight `[channels, 1, kh, kw]`, natural order.
    pub fn grad_weight(&self, isa: Isa, images: &Images<'_>, pairs: &[Vec<(usize, usize)>], grad: &mut [f32]) {
        let channels = self.spec.in_channels;
        let len = self.taps * self.padded;
        let parts = reduction_parts(images.batch, len);
        let images_per_part = images.batch.div_ceil(parts).max(1);
        let mut partial = vec![0.0f32; parts * len];
        partial.par_chunks_mut(len).enumerate().for_each(|(part, out)| {
            let first = (part * images_per_part).min(images.batch);
            let last = (first + images_per_part).min(images.batch);
            isa.run(Backward { images, pairs, channels, padded: self.padded, first, last, out });
        });
        for (position, &channel) in self.spec.in_order.channels().iter().enumerate() {
            for tap in 0..self.taps {
                let of_part = |part: usize| partial[part * len + tap * self.padded + position];
                grad[channel as usize * self.taps + tap] = (0..parts).map(of_part).sum();
            }
        }
    }
}

/// Forward or grad-input, depending on whose regions these are.
#[derive(Clone, Copy)]
pub(crate) struct Gather<'a> {
    pub regions: &'a [Region],
    /// See [`Depthwise`].
    pub packed: &'a [f32],
    /// One number per channel, padded as the weights are.
    pub bias: &'a [f32],
    pub activation: Option<Activation>,
    pub channels: usize,
    pub source_pixels: usize,
    pub target_pixels: usize,
}

impl Gather<'_> {
    /// Computes `target` from `source`.
    pub fn run(&self, isa: Isa, batch: usize, source: &[f32], target: &mut [MaybeUninit<f32>]) {
        let [source_len, target_len] = [self.source_pixels, self.target_pixels].map(|pixels| pixels * self.channels);
        assert!(source.len() == batch * source_len && target.len() == batch * target_len);
        if target.is_empty() {
            return;
        }
        let images = images_per_part(batch, 4 * source_len.max(target_len), 1);
        target.par_chunks_mut(images * target_len).zip(source.par_chunks(images * source_len)).for_each(
            |(target, source)| {
                let (images, target) = (target.len() / target_len, Target(target.as_mut_ptr().cast()));
                isa.run(Part { gather: self, images, band: Band::WHOLE, source, residual: None, target });
            },
        );
    }
}

/// Some pixels of some images, for one thread.
pub(crate) struct Part<'a> {
    pub gather: &'a Gather<'a>,
    pub images: usize,
    /// Which pixels of each region.
    pub band: Band,
    pub source: &'a [f32],
    /// What is added, as long as the images' targets.
    pub residual: Option<&'a [f32]>,
    /// The first image's target.
    pub target: Target,
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Gather { regions, packed, bias, activation, channels, source_pixels, target_pixels } = *self.gather;
        let padded = channels.next_multiple_of(S::LANES);
        assert!(bias.len() == padded && packed.len().is_multiple_of(padded));
        let residual = self.residual.map(|residual| (residual.as_ptr(), self.target.0));
        let epilogue = Epilogue { residual, activation };
        for region in regions {
            let of_image = region.pixels.len();
            for pixel in self.band.of(self.images * of_image, 1) {
                let (image, (from, to)) = (pixel / of_image, region.pixels[pixel % of_image]);
                let source = self.source.as_ptr().wrapping_add(image * source_pixels * channels + from);
                let target = self.target.0.wrapping_add(image * target_pixels * channels + to);
                for channel in (0..channels).step_by(S::LANES) {
                    let lanes = S::LANES.min(channels - channel);
                    // SAFETY: `bias` and each tap's weights are padded to whole vectors; of a pixel's channels those are
                    // read and written that there are; regions only name pixels inside the images, whose lengths were
                    // checked by whoever made the part.
                    unsafe {
                        let mut sum = simd.load(bias.as_ptr().add(channel));
                        for &(tap, offset) in &region.taps {
                            let value = simd.load_lanes(source.offset(offset).add(channel), lanes);
                            let weight = simd.load(packed.as_ptr().add(tap * padded + channel));
                            sum = simd.mul_add(value, weight, sum);
                        }
                        let target = target.add(channel);
                        simd.store_lanes(target, epilogue.apply(simd, sum, target, lanes), lanes);
                    }
                }
            }
        }
    }
}

/// Grad-weight over some images.
struct Backward<'a> {
    images: &'a Images<'a>,
    pairs: &'a [Vec<(usize, usize)>],
    channels: usize,
    padded: usize,
    first: usize,
    last: usize,
    out: &'a mut [f32],
}

impl Task for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { images, pairs, channels, padded, first, last, out } = self;
        let in_len = images.in_size[0] * images.in_size[1] * channels;
        let out_len = images.out_size[0] * images.out_size[1] * channels;
        for image in first..last {
            let input = &images.input[image * in_len..][..in_len];
            let grad_output = &images.grad_output[image * out_len..][..out_len];
            for (tap, pairs) in pairs.iter().enumerate() {
                for channel in (0..channels).step_by(S::LANES) {
                    let whole = channel + S::LANES <= channels;
                    let mut sum = simd.splat(0.0);
                    // SAFETY: pairs name pixels inside the two images; partial vectors are read partially; `out` is
                    // padded to whole vectors.
                    unsafe {
                        for &(from, to) in pairs {
                            let x = input.as_ptr().add(from * channels + channel);
                            let dy = grad_output.as_ptr().add(to * channels + channel);
                            let (x, dy) = if whole {
                                (simd.load(x), simd.load(dy))
                            } else {
                                (simd.load_first(x, channels - channel), simd.load_first(dy, channels - channel))
                            };
                            sum = simd.mul_add(x, dy, sum);
                        }
                        let slot = out.as_mut_ptr().add(tap * padded + channel);
                        simd.store(slot, simd.add(simd.load(slot), sum));
                    }
                }
            }
        }
    }
}
