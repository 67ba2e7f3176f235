//! Forward and grad-input of every convolution but depthwise: one pass over the output, or two where there are few pixels.
//!
//! A [`Tile`] takes its pixels from one [`Region`], across rows and images, so that they all read the same taps.

use std::ops::Range;

use hetconv_core::Activation;

use crate::aligned::Shared;
use crate::cache;
use crate::kernel::{Pass, Share};
use crate::moments::Moments;
use crate::pack::{Block, Layout, Ring};
use crate::parallel::Band;
use crate::prefetch::{Ahead, Prefetch};
use crate::prepared::Residual;
use crate::simd::{Simd, Task};
use crate::taps::{Place, Region};
use crate::tile::{Epilogue, MAX_ROWS, MAX_STRIDE, Start, Tile, TileSums};
use crate::walk::Walk;

/// A layer's weights, and what each block reads for the pixels of each region.
#[derive(Debug)]
pub(crate) struct Weights {
    pub layout: Layout,
    pub packed: Shared,
    /// `[region, block]`.
    walks: Vec<Vec<Walk>>,
    /// The same in two passes, for few pixels.
    apart: Option<Apart>,
}

/// What a dense centre tap reads and what the others read.
///
/// Few pixels are many regions of one or a few each, and every region reads all weights of a block. Those of the centre
/// tap are most of them, and are the same for all: a first pass computes it for the pixels of all regions, and a second
/// one starts each region's sums with its results.
#[derive(Debug)]
struct Apart {
    /// For each block, of a pixel of the centre tap.
    center: Vec<Walk>,
    /// For each region its centre tap's source pixel, relative to the first tap's.
    offsets: Vec<isize>,
    /// `[region, block]`.
    rings: Vec<Vec<Walk>>,
}

impl Apart {
    /// More pixels of an image are not few.
    const MOST: usize = 64;

    /// `None` unless every region has the centre tap, every block reads ranges of whole vectors, and there are few pixels.
    fn new(layout: &Layout, regions: &[Region]) -> Option<Self> {
        let center = layout.center?;
        let pixels: usize = regions.iter().map(Region::len).sum();
        let plain = |block: &Block| block.outputs.len() == block.stride && matches!(block.ring, Ring::Ranges(_));
        if pixels > Self::MOST || !layout.blocks.iter().all(plain) {
            return None;
        }
        let offset = |region: &Region| region.taps.iter().find(|&&(tap, _)| tap == center).map(|&(_, first)| first);
        let ring = |region: &Region| {
            let taps: Vec<_> = region.taps.iter().copied().filter(|&(tap, _)| tap != center).collect();
            layout.blocks.iter().map(|block| Walk::new(block, None, &taps)).collect()
        };
        Some(Self {
            center: layout.blocks.iter().map(|block| Walk::new(block, Some(center), &[(center, 0)])).collect(),
            offsets: regions.iter().map(offset).collect::<Option<_>>()?,
            rings: regions.iter().map(ring).collect(),
        })
    }
}

impl Weights {
    pub fn new(layout: Layout, packed: Shared, regions: &[Region]) -> Self {
        assert!(packed.len() == layout.len);
        let of_region =
            |region: &Region| layout.blocks.iter().map(|block| Walk::new(block, layout.center, &region.taps)).collect();
        let walks = regions.iter().map(of_region).collect();
        let apart = Apart::new(&layout, regions);
        Self { layout, packed, walks, apart }
    }

    /// Number of weights, zeros of the layout included.
    pub fn len(&self) -> usize {
        self.packed.len()
    }

    /// Blocks, of so many, that read a band of a source of some values one after another. A source that stays near is read
    /// once for each block, and the weights once. Otherwise every block reads some of it before the next ones, which are
    /// then brought near.
    fn together(source_len: usize, blocks: usize) -> usize {
        if source_len <= BAND { 1 } else { blocks.max(1) }
    }

    /// What a part of these blocks reads first, of a source of so many values.
    pub fn first(&self, blocks: &Range<usize>, source_len: usize) -> &[f32] {
        let together = Self::together(source_len, blocks.len()).min(blocks.len());
        let blocks = &self.layout.blocks[blocks.clone()][..together];
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return &[] };
        let of_blocks = &self.packed[first.weights.start..last.weights.end];
        &of_blocks[..of_blocks.len().min(BAND)]
    }
}

/// A prepared convolution; see the module's text.
#[derive(Clone, Copy)]
pub(crate) struct DirectConv<'a> {
    pub weights: &'a Weights,
    pub regions: &'a [Region],
    /// One number per output position.
    pub bias: &'a [f32],
    pub activation: Option<Activation>,
    pub source_pixels: usize,
    pub target_pixels: usize,
    pub source_channels: usize,
    pub target_channels: usize,
}

/// Some pixels and blocks of some images, for one thread.
pub(crate) struct Part<'a> {
    pub kernel: &'a DirectConv<'a>,
    pub pass: Pass<'a>,
    pub share: Share<'a>,
}

impl Task for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let DirectConv { weights, regions, source_pixels, source_channels, target_pixels, .. } = *self.kernel;
        assert!(weights.walks.len() == regions.len());
        let source_len = source_pixels * source_channels;
        let blocks = self.share.blocks.clone();
        let apart = self.apart();
        let mut turned = TileSums::new();
        let mut moments: Vec<Moments> = match self.share.moments {
            Some(_) => blocks.clone().map(|_| Moments::new()).collect(),
            None => Vec::new(),
        };
        let most = pixels_of_band(source_len, target_pixels);
        let together = Weights::together(self.pass.source.len(), blocks.len());
        // What lies behind a band is most likely this thread's next one.
        let stored = self.pass.stored;
        let far = if stored.near { self.pass.source.len() } else { BAND.min(self.pass.source.len()) };
        let of_band = self.share.band.of(self.pass.source.len());
        let end = (of_band.end + far).min(self.pass.source.len() + stored.behind);
        let near = of_band.start + far..end.max(of_band.start + far);
        let tiles = self.work::<S>(&blocks, |_, _| 1);
        let mut near = Prefetch::new(stored.values.as_ptr().wrapping_add(near.start), near.len(), tiles);
        for first in blocks.clone().step_by(together) {
            let group = first..blocks.end.min(first + together);
            // Blocks that come one after another find their weights near.
            let next = group.end..blocks.end.min(group.end + together);
            let next = if next.is_empty() { self.pass.ahead } else { weights.first(&next, self.pass.source.len()) };
            let mut ahead = Ahead::new(next, self.steps::<S>(apart, &group));
            if let Some(apart) = apart {
                for index in group.clone() {
                    self.center(simd, apart, index, &mut ahead, &mut turned);
                }
            }
            for ((region, walks), pixels) in regions.iter().zip(self.walks(apart)).zip(self.pixels()) {
                // One block alone reads the source once, whatever stays near.
                let most = if group.len() > 1 { most } else { usize::MAX };
                for pixels in bands(pixels, most) {
                    let of_group = weights.layout.blocks[group.clone()].iter().zip(&walks[group.clone()]);
                    for (index, (block, walk)) in group.clone().zip(of_group) {
                        let moments = moments.get_mut(index - blocks.start);
                        let ahead = (&mut near, &mut ahead);
                        let begun = apart.is_some();
                        self.tiles(simd, region, pixels.clone(), block, walk, begun, ahead, &mut turned, moments);
                    }
                }
            }
        }
        if let Some(sums) = &mut self.share.moments {
            for (moments, block) in moments.into_iter().zip(&weights.layout.blocks[blocks]) {
                moments.add_to(sums, &block.outputs);
            }
        }
    }
}

impl Part<'_> {
    /// The pixels of each region, image by image, that fall to this part.
    fn pixels(&self) -> impl Iterator<Item = Range<usize>> {
        let (images, total) = (self.pass.images, self.pass.images * self.kernel.target_pixels);
        let mut before = 0;
        self.kernel.regions.iter().map(move |region| {
            let len = images * region.len();
            let pixels = self.share.band.among(before, len, total, STEP);
            before += len;
            pixels
        })
    }

    /// The two passes, if they read less than one.
    fn apart(&self) -> Option<&Apart> {
        let pixels = self.pass.images * self.kernel.target_pixels;
        let tiles: usize = self.pixels().map(|pixels| pixels.len().div_ceil(MAX_ROWS)).sum();
        let whole = self.share.band == Band::WHOLE;
        self.kernel.weights.apart.as_ref().filter(|_| whole && (1..=tiles / 2).contains(&pixels.div_ceil(MAX_ROWS)))
    }

    /// What each block reads for the pixels of each region, in the second of two passes if there are two.
    fn walks<'w>(&'w self, apart: Option<&'w Apart>) -> &'w [Vec<Walk>] {
        apart.map_or(&self.kernel.weights.walks, |apart| &apart.rings)
    }

    /// Steps in which some blocks bring near what comes next.
    fn steps<S: Simd>(&self, apart: Option<&Apart>, blocks: &Range<usize>) -> usize {
        let pixels = self.pass.images * self.kernel.target_pixels;
        let of_center = |(block, walk): (&Block, &Walk)| pixels.div_ceil(Tile::most_rows::<S>(block)) * walk.steps;
        let of_blocks = self.kernel.weights.layout.blocks[blocks.clone()].iter();
        let of_centers =
            apart.map_or(0, |apart| of_blocks.zip(&apart.center[blocks.clone()]).map(of_center).sum::<usize>());
        let walks = self.walks(apart);
        of_centers + self.work::<S>(blocks, |region, block| walks[region][block].steps)
    }

    /// The sum over the tiles of some blocks, of what one costs in a region.
    fn work<S: Simd>(&self, blocks: &Range<usize>, of_tile: impl Fn(usize, usize) -> usize) -> usize {
        let mut sum = 0;
        for (number, (region, pixels)) in self.kernel.regions.iter().zip(self.pixels()).enumerate() {
            for index in blocks.clone() {
                let most = region.most_rows::<S>(&self.kernel.weights.layout.blocks[index]);
                sum += pixels.len().div_ceil(most) * of_tile(number, index);
            }
        }
        sum
    }

    /// The first of two passes: the centre tap of all pixels by one block. Its results stand where the sums will.
    #[inline(always)]
    fn center<S: Simd>(&self, simd: S, apart: &Apart, index: usize, ahead: &mut Ahead, turned: &mut TileSums) {
        let DirectConv {
            weights, regions, bias, source_pixels, target_pixels, source_channels, target_channels, ..
        } = *self.kernel;
        let block = &weights.layout.blocks[index];
        let mut tile = Tile {
            walk: &apart.center[index],
            block,
            packed: weights.packed.as_ptr(),
            bias: &bias[block.outputs.clone()],
            rows: 0,
            sources: [self.pass.source.as_ptr(); MAX_ROWS],
            targets: [self.pass.target.0; MAX_ROWS],
            start: Start::Zero,
            // What stands where the sums will is added before it is lost.
            epilogue: Epilogue::new(self.pass.residual.filter(Residual::is_target), self.pass.target, None),
            ahead: *ahead,
        };
        let mut left = self.pass.images * target_pixels;
        let rows = left.div_ceil(left.div_ceil(Tile::most_rows::<S>(block)));
        for image in 0..self.pass.images {
            let source = self.pass.source.as_ptr().wrapping_add(image * source_pixels * source_channels);
            let target = self.pass.target.0.wrapping_add(image * target_pixels * target_channels + block.outputs.start);
            for (region, &offset) in regions.iter().zip(&apart.offsets) {
                for (from, to) in region.places() {
                    tile.sources[tile.rows] = source.wrapping_add(from).wrapping_offset(offset);
                    tile.targets[tile.rows] = target.wrapping_add(to);
                    tile.rows += 1;
                    if tile.rows < rows.min(left) {
                        continue;
                    }
                    // SAFETY: as in `Part::tiles`; the centre tap is one of each region's.
                    unsafe { tile.compute(simd, turned, None) };
                    left -= tile.rows;
                    tile.rows = 0;
                }
            }
        }
        *ahead = tile.ahead;
    }

    /// Computes some pixels of a region by one block; the sums are begun where they will be written, or begin with the
    /// bias.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn tiles<S: Simd>(
        &self,
        simd: S,
        region: &Region,
        pixels: Range<usize>,
        block: &Block,
        walk: &Walk,
        begun: bool,
        (near, ahead): (&mut Prefetch, &mut Ahead),
        turned: &mut TileSums,
        mut moments: Option<&mut Moments>,
    ) {
        let DirectConv {
            weights,
            bias,
            activation,
            source_pixels,
            target_pixels,
            source_channels,
            target_channels,
            ..
        } = *self.kernel;
        let residual = self.pass.residual.filter(|residual| !(begun && residual.is_target()));
        let image_lens = [source_pixels * source_channels, target_pixels * target_channels];
        let mut tile = Tile {
            walk,
            block,
            packed: weights.packed.as_ptr(),
            bias: if begun { &NO_BIAS[..block.outputs.len()] } else { &bias[block.outputs.clone()] },
            rows: 0,
            sources: [self.pass.source.as_ptr(); MAX_ROWS],
            targets: [self.pass.target.0; MAX_ROWS],
            start: if begun { Start::Targets } else { Start::Zero },
            epilogue: Epilogue::new(residual, self.pass.target, activation),
            ahead: *ahead,
        };
        // Tiles of nearly equal height: a last one of a few rows would waste most of its loads.
        let mut left = pixels.len();
        let most = region.most_rows::<S>(block);
        let mut tiles = left.div_ceil(most);
        let first_target = self.pass.target.0.wrapping_add(block.outputs.start);
        let (mut source, mut target) = (self.pass.source.as_ptr(), first_target);
        // The source that comes next is asked for as evenly, unless weights are.
        let spreads = ahead.is_nothing() && walk.steps > 0;
        let mut runs = region.runs(pixels);
        let mut in_run: &[Place] = &[];
        while left > 0 {
            tile.rows = left.div_ceil(tiles);
            (left, tiles) = (left - tile.rows, tiles - 1);
            let mut row = 0;
            while row < tile.rows {
                if in_run.is_empty() {
                    let Some(run) = runs.next() else { unreachable!("as many pixels as were counted") };
                    source = self.pass.source.as_ptr().wrapping_add(run.image * image_lens[0] + run.base.0);
                    target = first_target.wrapping_add(run.image * image_lens[1] + run.base.1);
                    in_run = run.relative;
                }
                let (pixels, rest) = in_run.split_at(in_run.len().min(tile.rows - row));
                let ends = tile.sources[row..].iter_mut().zip(&mut tile.targets[row..]);
                for ((tile_source, tile_target), &(from, to)) in ends.zip(pixels) {
                    *tile_source = source.wrapping_add(from);
                    *tile_target = target.wrapping_add(to);
                }
                (row, in_run) = (row + pixels.len(), rest);
            }
            match spreads {
                true => tile.ahead = near.spread(walk.steps),
                false => near.advance(simd),
            }
            tile.epilogue.prefetch(simd, &tile.targets[..tile.rows], block.vectors);
            // SAFETY: see `Tile::compute`; regions only name taps that fall inside the source image, and pixels that lie
            // inside this part's images: whoever made the part compared their lengths with those of `Kernel::lens`, which
            // `Conv::new` found not to wrap around.
            unsafe { tile.compute(simd, turned, moments.as_deref_mut()) };
        }
        if !spreads {
            *ahead = tile.ahead;
        }
    }
}

/// The bias of sums that are begun.
const NO_BIAS: [f32; MAX_STRIDE] = [0.0; MAX_STRIDE];

/// Pixels of a region are shared out in so many.
const STEP: usize = 4;

impl Region {
    /// The most rows of a tile of a block.
    fn most_rows<S: Simd>(&self, block: &Block) -> usize {
        /// Where sources share a set of the first-level cache, they leave room for weights.
        const CROWDED: usize = 6;
        Tile::most_rows::<S>(block).min(if self.crowded { CROWDED } else { MAX_ROWS })
    }
}

/// Values of the source that all blocks read before the next ones are begun: twice as many stay in a core's second-level
/// cache.
const BAND: usize = cache::SECOND / 4;

/// Target pixels whose sources are a band.
fn pixels_of_band(source_len: usize, target_pixels: usize) -> usize {
    let values = source_len.div_ceil(target_pixels.max(1)).max(1);
    (BAND / values).max(1).next_multiple_of(4 * MAX_ROWS)
}

/// Pixels in bands of about so many, nearly alike: a last one of a few pixels would read all weights for them.
fn bands(pixels: Range<usize>, about: usize) -> impl Iterator<Item = Range<usize>> {
    let (first, len) = (pixels.start, pixels.len());
    let count = (len / about + usize::from(len % about > about / 2)).max(usize::from(len > 0));
    (0..count).map(move |index| {
        let band = Band { index, count }.among(0, len, len, MAX_ROWS);
        first + band.start..first + band.end
    })
}
