//! The kernels of forward and grad-input seen as one, and how a pass over a batch is shared out among threads.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::depthwise;
use crate::direct::{self, DirectConv};
use crate::fresh::product;
use crate::isa::Isa;
use crate::moments::SumsOfParts;
use crate::norm::NormBackward;
use crate::parallel::{Band, Target, groups_of_blocks, images_per_part};
use crate::prepared::Residual;
use crate::reading::Reading;
use crate::scratch::Scratch;
use crate::tile::MAX_ROWS;
use crate::winograd::{self, Winograd};

/// One of the three kernels, with its arguments but for the activations.
pub(crate) enum Kernel<'a> {
    Depthwise(depthwise::DepthwiseConv<'a>),
    Direct(DirectConv<'a>),
    Winograd(Winograd<'a>),
}

/// The activations of a pass, or of some of its images.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub images: usize,
    pub source: &'a [f32],
    /// What the source stands in, or was made of, and what is most likely read after it.
    pub stored: Stored<'a>,
    /// What is added.
    pub residual: Option<Residual<'a>>,
    /// The first image's target.
    pub target: Target,
    /// Weights that are most likely read next: they are brought near.
    pub ahead: &'a [f32],
    /// Whether the weights that are read first have been brought near in this way.
    pub begun: bool,
}

impl<'a> Pass<'a> {
    /// Of some images, with nothing known of what comes next.
    pub fn new(images: usize, source: &'a [f32], target: Target) -> Self {
        let stored = Stored { values: source, near: false, behind: 0 };
        Self { images, source, stored, residual: None, target, ahead: &[], begun: false }
    }
}

/// Where a pass's source is in memory, for asking for it before it is read.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub values: &'a [f32],
    /// Whether it has been read already.
    pub near: bool,
    /// Values behind it that are most likely read next, if any are there.
    pub behind: usize,
}

/// What one thread computes of a pass.
pub(crate) struct Share<'a> {
    /// Which pixels.
    pub band: Band,
    /// Which blocks of outputs; a depthwise convolution has one.
    pub blocks: Range<usize>,
    /// Counts each channel's results and their squares, `[2, target channels]`.
    pub moments: Option<&'a mut [f64]>,
}

/// What is counted of each channel of a target, two sums.
#[derive(Clone, Copy)]
pub(crate) enum Count<'a> {
    Nothing,
    /// The values and their squares.
    Moments,
    /// [`NormBackward::sums`] of a batch-norm whose result's gradient the target is.
    Norm(&'a NormBackward<'a>),
}

/// Grad-input that is computed along with grad-weight, some images at a time, while what both read is near.
pub(crate) struct Along<'a> {
    isa: Isa,
    kernel: Kernel<'a>,
    /// Images of a call, or as many as are worked on together in the other pass.
    images: usize,
    target: Target,
    /// The batch-norm whose sums are counted.
    norm: Option<&'a NormBackward<'a>>,
}

impl<'a> Along<'a> {
    /// `target` has the whole batch.
    pub fn new(
        isa: Isa,
        kernel: Kernel<'a>,
        batch: usize,
        target: &mut [MaybeUninit<f32>],
        norm: Option<&'a NormBackward<'a>>,
    ) -> Self {
        let ([source_len, target_len], channels) = (kernel.lens(), kernel.target_channels());
        assert_eq!(target.len(), product([batch, target_len]), "length of the target");
        if let Some(norm) = norm {
            assert_eq!([norm.check(), norm.x.len()], [channels, target.len()], "the batch-norm's channels and length");
        }
        // The gradient by the output, that by the input, and what the input is made of.
        let images = kernel.images_together(batch, 4 * (source_len + 2 * target_len));
        Self { isa, kernel, images, target: Target(target.as_mut_ptr().cast()), norm }
    }

    /// Channels whose sums are counted.
    pub fn counted(&self) -> usize {
        self.norm.map_or(0, |_| self.kernel.target_channels())
    }

    /// Images of a call, a multiple of so many.
    pub fn images(&self, together: usize) -> usize {
        self.images.next_multiple_of(together)
    }

    /// What a thread needs for calls of so many images.
    pub fn scratch(&self, images: usize) -> Scratch {
        Scratch::new(self.kernel.scratch_len(0..self.kernel.blocks(), images, Band::WHOLE))
    }

    /// Computes some images, and adds what is counted to `sums`, `[2, channels]`.
    ///
    /// # Safety
    /// The images are the target's, and nobody else writes or reads them meanwhile.
    pub unsafe fn compute(&self, images: Range<usize>, source: &[f32], scratch: &mut [f32], sums: &mut [f64]) {
        let ([_, target_len], channels) = (self.kernel.lens(), self.kernel.target_channels());
        // SAFETY: the caller's.
        let target = unsafe { self.target.add(images.start * target_len) };
        let share = Share { band: Band::WHOLE, blocks: 0..self.kernel.blocks(), moments: None };
        // SAFETY: the caller's.
        unsafe { self.kernel.compute(self.isa, Pass::new(images.len(), source, target), share, scratch) };
        if let Some(norm) = self.norm {
            // SAFETY: all blocks of these images have been written, by this thread.
            let written = unsafe { std::slice::from_raw_parts(target.0, images.len() * target_len) };
            let rows = target_len / channels;
            norm.add_sums(self.isa, images.start * rows..images.end * rows, written, sums);
        }
    }
}

impl Kernel<'_> {
    /// Values of a source image and of a target image.
    pub fn lens(&self) -> [usize; 2] {
        match self {
            Self::Depthwise(kernel) => {
                [kernel.source_pixels, kernel.target_pixels].map(|pixels| pixels * kernel.channels)
            }
            Self::Direct(kernel) => {
                [kernel.source_pixels * kernel.source_channels, kernel.target_pixels * kernel.target_channels]
            }
            Self::Winograd(kernel) => [kernel.source_len(), kernel.target_len()],
        }
    }

    fn target_channels(&self) -> usize {
        match self {
            Self::Depthwise(kernel) => kernel.channels,
            Self::Direct(kernel) => kernel.target_channels,
            Self::Winograd(kernel) => kernel.target_channels,
        }
    }

    /// Blocks of outputs.
    pub fn blocks(&self) -> usize {
        match self {
            Self::Depthwise(_) => 1,
            Self::Direct(kernel) => kernel.weights.layout.blocks.len(),
            Self::Winograd(kernel) => kernel.weights.layout.blocks.len(),
        }
    }

    /// Values of the scratch for some blocks of a band of so many images.
    pub fn scratch_len(&self, blocks: Range<usize>, images: usize, band: Band) -> usize {
        match self {
            Self::Depthwise(kernel) => kernel.scratch_len(images, band.count),
            Self::Direct(_) => 0,
            Self::Winograd(kernel) => kernel.scratch_len(blocks, band.of(images * kernel.pieces()).len()),
        }
    }

    /// Images that a thread works on alone, if it keeps so many bytes of each near.
    pub fn images_together(&self, batch: usize, bytes: usize) -> usize {
        match self {
            Self::Depthwise(_) => images_per_part(batch, bytes, 1),
            Self::Direct(_) => images_per_part(batch, bytes, MAX_ROWS),
            Self::Winograd(kernel) => {
                images_per_part(batch, bytes, 1).max(winograd::FEW_PIECES.div_ceil(kernel.pieces()))
            }
        }
    }

    /// Computes a share of a pass on this thread.
    ///
    /// # Safety
    /// The target has the pass's images and is writable, values that are added are as many as the target's, and nobody else
    /// writes or reads this share of the target meanwhile.
    pub unsafe fn compute(&self, isa: Isa, pass: Pass<'_>, share: Share<'_>, scratch: &mut [f32]) {
        let [source_len, _] = self.lens();
        assert_eq!(pass.source.len(), pass.images * source_len, "length of the source");
        match self {
            Self::Depthwise(kernel) => isa.run(depthwise::Part { kernel, pass, share, scratch }),
            Self::Direct(kernel) => isa.run(direct::Part { kernel, pass, share }),
            Self::Winograd(kernel) => isa.run(winograd::Part { kernel, pass, share, scratch }),
        }
    }

    /// Computes `target` `[batch, target pixels, target channels]` from `source` on all threads, and returns what is counted
    /// meanwhile, `[2, target channels]`, or nothing.
    pub fn run(
        &self,
        isa: Isa,
        batch: usize,
        source: &[f32],
        reading: Reading<'_>,
        target: &mut [MaybeUninit<f32>],
        count: Count<'_>,
    ) -> Vec<f64> {
        if let (Self::Depthwise(kernel), Some(scaled)) = (self, reading.scaled())
            && kernel.scaled.is_none()
            && kernel.scales()
        {
            let kernel = Kernel::Depthwise(depthwise::DepthwiseConv { scaled: Some(scaled), ..*kernel });
            return kernel.run(isa, batch, source, reading.rest(), target, count);
        }
        let ([source_len, target_len], channels) = (self.lens(), self.target_channels());
        assert_eq!([source.len(), target.len()], [source_len, target_len].map(|len| product([batch, len])), "lengths");
        if let Count::Norm(norm) = count {
            assert_eq!([norm.check(), norm.x.len()], [channels, target.len()], "the batch-norm's channels and length");
        }
        let mut counted = if matches!(count, Count::Nothing) { 0 } else { channels };
        if target.is_empty() {
            return vec![0.0; 2 * counted];
        }
        let near = match self {
            Self::Depthwise(_) => source_len.max(target_len),
            Self::Direct(_) => source_len,
            Self::Winograd(_) => source_len + target_len,
        };
        // What a source is made of passes through the cache, too.
        let near = if reading.is_plain() { near } else { near + source_len };
        let images = self.images_together(batch, 4 * near);
        let image_parts = batch.div_ceil(images);
        let groups = groups_of_blocks(self.blocks(), image_parts);
        if groups.len() > 1 && !reading.is_plain() {
            // Each group would make the same values.
            let mut room = reading.room(source.len());
            let source = reading.brought_by_all(isa, source, &mut room);
            return self.run(isa, batch, source, Reading::Plain, target, count);
        }
        // What a batch-norm needs is counted when all blocks of some images are computed.
        let after_all = if let Count::Norm(norm) = count { Some(norm).filter(|_| groups.len() > 1) } else { None };
        if after_all.is_some() {
            counted = 0;
        }
        let mut sums = SumsOfParts::new(image_parts * groups.len(), counted);
        let mut of_parts = sums.parts();
        let mut parts = Vec::with_capacity(image_parts * groups.len());
        for first in (0..batch).step_by(images) {
            for blocks in &groups {
                parts.push((first, blocks.clone(), of_parts.next()));
            }
        }
        let scratch =
            groups.iter().map(|blocks| self.scratch_len(blocks.clone(), images, Band::WHOLE)).max().unwrap_or(0);
        let target = Target(target.as_mut_ptr().cast());
        let rows = target_len / channels;
        parts.into_par_iter().for_each_init(
            || (Aligned::zeroed(scratch), reading.room(images * source_len)),
            |(scratch, room), (first, blocks, sums)| {
                let images = images.min(batch - first);
                let source = &source[first * source_len..][..images * source_len];
                // What lies behind a part of a batch is most likely this thread's next part.
                let stored = Stored { values: source, near: !reading.is_plain(), behind: source.len() };
                let source = reading.brought_alone(isa, source, room);
                // SAFETY: the target has `batch` images.
                let target = unsafe { target.add(first * target_len) };
                let pass = Pass { stored, ..Pass::new(images, source, target) };
                let (moments, norm) = match count {
                    Count::Nothing => (None, None),
                    Count::Moments => (sums, None),
                    Count::Norm(norm) => (None, sums.zip(Some(norm))),
                };
                // SAFETY: the target's length was checked; parts are of different images or blocks.
                unsafe { self.compute(isa, pass, Share { band: Band::WHOLE, blocks, moments }, scratch) };
                if let Some((sums, norm)) = norm {
                    // SAFETY: all blocks of these images have been written, by this thread.
                    let written = unsafe { std::slice::from_raw_parts(target.0, images * target_len) };
                    norm.add_sums(isa, first * rows..(first + images) * rows, written, sums);
                }
            },
        );
        let Some(norm) = after_all else { return sums.total() };
        // SAFETY: every image and every block has been written.
        let written = unsafe { std::slice::from_raw_parts(target.0, batch * target_len) };
        norm.sums(isa, written)
    }
}
