//! What a tile reads: the taps of a region as runs of positions for one block.

use std::ops::Range;
use std::sync::Arc;

use crate::pack::{Block, Ring, Source};

/// One tap over one range of positions, or several that follow each other in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// First value, relative to the tile pixel's own first.
    pub source: isize,
    /// Number of positions.
    pub len: usize,
    /// First weight in the packed buffer, of the first vector.
    pub weights: usize,
}

/// As [`Segment`], with a range of its own for each of two vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnSegment {
    /// First value of each range, relative to the tile pixel's own first.
    pub sources: [isize; 2],
    /// Number of positions of each range.
    pub len: usize,
    /// First weight in the packed buffer, of the first vector.
    pub weights: usize,
}

/// One tap over one vector of positions.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// First value that is read, relative to the tile pixel's own first.
    pub source: isize,
    /// How the values come to their lanes; `None` as they are.
    pub lanes: Option<Arc<Spread>>,
    /// First weight in the packed buffer.
    pub weights: usize,
}

/// A vector's lanes taken from others, some of them left 0.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    pub lanes: [u32; 16],
    /// 1 for every lane that holds a value.
    pub live: [f32; 16],
}

impl Spread {
    /// The lanes as they are read.
    pub const PLAIN: Self = Self { lanes: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], live: [1.0; 16] };

    /// `None` where the lanes hold the values as they are read.
    pub fn new(source: &Source) -> Option<Self> {
        if source.is_plain() {
            return None;
        }
        let (mut lanes, mut live) = ([0; 16], [0.0; 16]);
        for (lane, held) in source.lanes.iter().enumerate() {
            lanes[lane] = held.unwrap_or(0);
            live[lane] = if held.is_some() { 1.0 } else { 0.0 };
        }
        Some(Self { lanes, live })
    }
}

/// Everything a block reads for a pixel of one region.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// What all vectors read.
    pub both: Vec<Segment>,
    /// Positions of all those.
    pub steps: usize,
    /// What each vector reads elsewhere.
    pub own: Vec<OwnSegment>,
    /// What each vector reads as vectors.
    pub turns: [Vec<Turn>; 2],
    /// Size of the turned groups, 0 without.
    pub size: usize,
    /// Whether all turns read their lanes as they are.
    pub plain: bool,
}

impl Walk {
    /// Of a block, for `taps` with the first value of their source pixels relative to that of a tile pixel's own.
    pub fn new(block: &Block, center: Option<usize>, taps: &[(usize, isize)]) -> Self {
        let mut walk = Self::default();
        // The same for all taps.
        let spreads =
            |sources: &Vec<Source>| sources.iter().map(|of| Spread::new(of).map(Arc::new)).collect::<Vec<_>>();
        let spreads: Vec<_> = match &block.ring {
            Ring::Turned { sources, .. } => sources.iter().map(spreads).collect(),
            Ring::Ranges(_) => Vec::new(),
        };
        for &(tap, first) in taps {
            let weights = block.taps[tap];
            match &block.ring {
                _ if Some(tap) == center => walk.read(block.stride, first, &block.center, weights),
                Ring::Ranges([one, other]) if one == other => walk.read(block.stride, first, one, weights),
                Ring::Ranges(ranges) => {
                    let sources = ranges.each_ref().map(|range| first + range.start as isize);
                    walk.own.push(OwnSegment { sources, len: ranges[0].len(), weights });
                }
                Ring::Turned { size, sources } => {
                    walk.size = *size;
                    let mut weights = weights;
                    for (turns, (sources, spreads)) in walk.turns.iter_mut().zip(sources.iter().zip(&spreads)) {
                        for (source, lanes) in sources.iter().zip(spreads) {
                            let lanes = lanes.clone();
                            turns.push(Turn { source: first + source.start as isize, lanes, weights });
                            weights += size * block.lanes();
                        }
                    }
                }
            }
        }
        walk.plain = walk.turns.iter().flatten().all(|turn| turn.lanes.is_none());
        walk
    }

    /// Adds a range that all vectors read, to the last segment where it goes on from there.
    pub fn read(&mut self, stride: usize, first: isize, range: &Range<usize>, weights: usize) {
        if range.is_empty() {
            return;
        }
        self.steps += range.len();
        let source = first + range.start as isize;
        if let Some(last) = self.both.last_mut() {
            let follows = last.source + last.len as isize == source && last.weights + last.len * stride == weights;
            if follows {
                last.len += range.len();
                return;
            }
        }
        self.both.push(Segment { source, len: range.len(), weights });
    }
}
