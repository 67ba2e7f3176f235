//! Weights in the order the kernel reads them.
//!
//! The filters (for grad-input: the channels) that a tile computes together form a [`Block`] of one or two vectors. At the
//! centre tap of a HetConv layer a block reads all of the other side's positions. At every other tap it reads its own
//! classes, in one of two forms:
//!
//! * *Ranges*: each vector reads a range of positions, value by value, and each value meets all its lanes. Vectors may
//!   have half the lanes, for classes narrower than a whole one. Where a class is narrower still, a vector covers several
//!   and the weights in between are zeros.
//! * *Turned*: where whole narrow classes fill a vector on both sides, the positions are read as vectors, and meet
//!   weights that pair lane i with each output of its class in turn. Sums are kept apart by turn, and brought to
//!   their lanes at the end of a tile. No lane is idle, whatever the classes' size.
//!
//! That is all the kernel knows of HetConv, groups or a standard convolution, so all of them are equally tuned.

mod classes;
mod layout;
mod weights;

use std::ops::Range;

pub(crate) use classes::Classes;
pub(crate) use layout::Layout;
pub(crate) use weights::{Rows, pack, rows_of_blocks, unpack};

/// Outputs that are computed together.
#[derive(Debug)]
pub(crate) struct Block {
    /// First output position and number of outputs.
    pub outputs: Range<usize>,
    /// Whether its vectors have half the lanes.
    pub half: bool,
    /// Vectors that hold the outputs: 1 or 2.
    pub vectors: usize,
    /// Lanes of all vectors together.
    pub stride: usize,
    /// Input positions read by the centre tap, if it reads all.
    pub center: Range<usize>,
    /// What every other tap reads.
    pub ring: Ring,
    /// Where each tap's weights start, relative to the whole packed buffer.
    pub taps: Vec<usize>,
    /// The block's part of the packed buffer.
    pub weights: Range<usize>,
}

/// What the taps of a block read, but for a dense centre.
#[derive(Debug)]
pub(crate) enum Ring {
    /// Input positions for each vector; of equal length, and equal with one vector. Weights are `[range, stride]`.
    Ranges([Range<usize>; 2]),
    /// For each vector, vectors of input positions. Weights are `[sources, size, lanes]`, one vector's behind the other's:
    /// lane i of turn j belongs to the input in lane i and the output in lane [`partner`]`(i, j)`.
    Turned {
        /// Lanes that change places among themselves: 1, 2, 4 or 8.
        size: usize,
        /// The vectors that each vector reads.
        sources: Vec<Vec<Source>>,
    },
}

/// A vector of input positions.
#[derive(Debug, PartialEq)]
pub(crate) struct Source {
    /// The first of the positions that are read.
    pub start: usize,
    /// For each lane the position it holds, relative to `start`; `None` holds 0.
    pub lanes: Vec<Option<u32>>,
}

/// The output lane that input lane `lane` meets in turn `turn`: within groups of a power of two of lanes, each lane meets
/// each in as many turns, and two lanes meet each other in the same one.
pub(crate) fn partner(lane: usize, turn: usize) -> usize {
    lane ^ turn
}

impl Source {
    /// Whether the lanes hold the positions as they are read.
    pub fn is_plain(&self) -> bool {
        self.lanes.iter().enumerate().all(|(lane, &held)| held == Some(lane as u32))
    }
}

/// Which way a convolution's [`PackedWeights`](crate::PackedWeights) are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From input to output.
    Forward,
    /// From the output's gradient to the input's.
    GradInput,
}

impl Block {
    /// Lanes of one vector.
    pub fn lanes(&self) -> usize {
        self.stride / self.vectors
    }

    /// The positions that each tap but a dense centre reads, of a block whose vectors all read the same.
    pub fn range(&self) -> Range<usize> {
        match &self.ring {
            Ring::Ranges([first, second]) if first == second => first.clone(),
            _ => unreachable!("vectors that read differently"),
        }
    }

    /// How many positions the centre tap alone reads, beside that range.
    pub fn outside(&self) -> usize {
        self.center.len().saturating_sub(self.range().len())
    }

    /// Whether a tap reads positions value by value.
    fn reads_ranges(&self, is_center: bool) -> bool {
        is_center || matches!(self.ring, Ring::Ranges(_))
    }

    /// Number of the weights of a tap.
    fn tap_len(&self, is_center: bool) -> usize {
        match &self.ring {
            _ if is_center => self.center.len() * self.stride,
            Ring::Ranges([range, _]) => range.len() * self.stride,
            Ring::Turned { size, sources } => sources.iter().map(Vec::len).sum::<usize>() * size * self.lanes(),
        }
    }
}
