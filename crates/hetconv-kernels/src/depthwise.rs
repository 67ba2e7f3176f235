//! Depthwise convolution: lanes run over channels, because no two channels ever meet.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::conv::{ConvSpec, Images};
use crate::isa::Isa;
use crate::parallel::{images_per_part, reduction_parts};
use crate::simd::{Simd, Task};
use crate::taps::Region;

/// A depthwise convolution for one instruction set. Packed weights are `[tap, channels]` in stored order, channels
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

    pub fn pack(&self, weight: &[f32]) -> Vec<f32> {
        let mut packed = vec![0.0; self.taps * self.padded];
        for (position, &channel) in self.spec.in_order.channels().iter().enumerate() {
            for tap in 0..self.taps {
                packed[tap * self.padded + position] = weight[channel as usize * self.taps + tap];
            }
        }
        packed
    }

    /// Forward or grad-input, depending on whose regions these are, with packed weights; `pixels` are those of a source and a target image.
    #[allow(clippy::too_many_arguments)]
    pub fn gather(
        &self,
        isa: Isa,
        batch: usize,
        regions: &[Region],
        pixels: [usize; 2],
        source: &[f32],
        packed: &[f32],
        bias: Option<&[f32]>,
        target: &mut [MaybeUninit<f32>],
    ) {
        let channels = self.spec.in_channels;
        let [source_len, target_len] = pixels.map(|pixels| pixels * channels);
        assert!(source.len() == batch * source_len && target.len() == batch * target_len);
        if target.is_empty() {
            return;
        }
        let mut stored_bias = vec![0.0; self.padded];
        if let Some(bias) = bias {
            for (slot, &channel) in stored_bias.iter_mut().zip(self.spec.out_order.channels()) {
                *slot = bias[channel as usize];
            }
        }
        let images = images_per_part(batch, 4 * source_len.max(target_len), 1);
        target.par_chunks_mut(images * target_len).zip(source.par_chunks(images * source_len)).for_each(
            |(target, source)| {
                for (target, source) in target.chunks_exact_mut(target_len).zip(source.chunks_exact(source_len)) {
                    let (bias, padded) = (&stored_bias, self.padded);
                    isa.run(Forward { regions, channels, padded, packed, bias, source, target });
                }
            },
        );
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

/// Forward or grad-input of one image.
struct Forward<'a> {
    regions: &'a [Region],
    channels: usize,
    padded: usize,
    packed: &'a [f32],
    bias: &'a [f32],
    source: &'a [f32],
    target: &'a mut [MaybeUninit<f32>],
}

impl Task for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { regions, channels, padded, packed, bias, source, target } = self;
        for region in regions {
            for &(from, to) in &region.pixels {
                let out = &mut target[to..][..channels];
                for channel in (0..channels).step_by(S::LANES) {
                    let whole = channel + S::LANES <= channels;
                    // SAFETY: `bias` and each tap's weights are padded to whole vectors; source values are read whole
                    // only where a whole vector of the pixel's channels is left, and regions only name inner pixels.
                    unsafe {
                        let mut sum = simd.load(bias.as_ptr().add(channel));
                        for &(tap, offset) in &region.taps {
                            let pixel = (from as isize + offset) as usize + channel;
                            debug_assert!(pixel < source.len());
                            let value = source.as_ptr().add(pixel);
                            let value =
                                if whole { simd.load(value) } else { simd.load_first(value, channels - channel) };
                            let weight = simd.load(packed.as_ptr().add(tap * padded + channel));
                            sum = simd.mul_add(value, weight, sum);
                        }
                        let out = out.as_mut_ptr().cast::<f32>().add(channel);
                        if whole { simd.store(out, sum) } else { simd.store_first(out, sum, channels - channel) }
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
