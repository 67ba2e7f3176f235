//! Depthwise convolution: lanes run over channels, because no two channels ever meet.
//!
//! There are few products for each value, so memory decides. A [bundle] of rows is worked on at a time, one vector of
//! channels after another, and the next one's sources are asked for meanwhile. The vectors of all sources of small images
//! are [strung together](bundle::Strung) first: they stay in the first-level cache, where pixels as they stand, a power of
//! two apart, would drive each other out, and several images share each weight. A batch-norm is applied on the way. Larger
//! images are worked on row by row where they stand, unless a batch-norm has to be applied and bundles share few rows.
//! [Forward and grad-input](forward) keep the sums of some pixels in registers, which share each weight;
//! [grad-weight](backward) keeps those of some taps, which share each grad-output.

// Sums are indexed as registers are.
#![allow(clippy::needless_range_loop)]

mod backward;
mod bundle;
mod forward;

use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::conv::{ConvSpec, Images};
use crate::isa::Isa;
use crate::kernel::Along;
use crate::moments::SumsOfParts;
use crate::parallel::reduction_parts;
use crate::taps::Rows;

use backward::Backward;
pub(crate) use forward::{DepthwiseConv, Part};

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

    pub fn pack(&self, weight: &[f32]) -> Aligned {
        let mut packed = Aligned::zeroed(self.taps * self.padded);
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
