//! Some pixels by one block of outputs, in registers: the arithmetic of every convolution but depthwise.
//!
//! Sums live in registers from the first product to the last. For HetConv the centre tap spans all channels and the others
//! one class, so K×K and 1×1 kernels meet in the same registers and no intermediate tensor exists: the paper's "zero
//! latency". There are two exceptions. The sums of turned vectors take a detour through the first-level cache, because they
//! need more registers for fewer pixels. And a tile may begin with sums that are there already: in its target those of the centre
//! tap, where few pixels are computed in two passes, or what Winograd's algorithm makes of the other taps.

// Sums are indexed by row and vector alike, as registers are.
#![allow(clippy::needless_range_loop)]

use hetconv_core::Activation;

use crate::elementwise::activate;
use crate::moments::Moments;
use crate::pack::{Block, partner};
use crate::parallel::Target;
use crate::prefetch::Ahead;
use crate::prepared::Residual;
use crate::registers::Register;
use crate::simd::{Simd, Task, constant};
use crate::walk::{OwnSegment, Segment, Spread, Turn, Walk};

/// The most pixels of any tile.
pub(crate) const MAX_ROWS: usize = 12;

/// The most lanes of any block.
pub(crate) const MAX_STRIDE: usize = 32;

/// Pixels that are computed together.
pub(crate) struct Tile<'a> {
    pub walk: &'a Walk,
    pub block: &'a Block,
    pub packed: *const f32,
    /// One number for each of the block's outputs.
    pub bias: &'a [f32],
    pub rows: usize,
    pub sources: [*const f32; MAX_ROWS],
    pub targets: [*mut f32; MAX_ROWS],
    pub start: Start,
    pub epilogue: Epilogue,
    /// What is brought near meanwhile.
    pub ahead: Ahead,
}

/// What a tile's sums begin with, besides the bias: a vector of the block's outputs for each pixel, padded to whole ones.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Zeros.
    Zero,
    /// What stands in the targets.
    Targets,
    /// Rows of [`MAX_STRIDE`] values.
    Rows(*const f32),
}

/// What happens to a sum and its bias before it is written.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue {
    residual: Option<Summand>,
    activation: Option<Activation>,
}

/// Values that are added, laid out as the target is; or the target's own, in whose place the results are written.
#[derive(Clone, Copy)]
pub(crate) struct Summand {
    /// The first of them.
    values: *const f32,
    /// The target's first.
    target: *mut f32,
}

impl Summand {
    /// What is added at a target.
    ///
    /// # Safety
    /// `target` lies within the target that this belongs to.
    #[inline(always)]
    unsafe fn at(self, target: *mut f32) -> *const f32 {
        // SAFETY: the caller's; the residual is as long as the target.
        unsafe { self.values.offset(target.offset_from(self.target)) }
    }
}

impl Epilogue {
    /// Of a pass with this target; values that are added are as many as the target's.
    pub fn new(residual: Option<Residual<'_>>, target: Target, activation: Option<Activation>) -> Self {
        let summand = |residual| Summand {
            values: match residual {
                Residual::Values(values) => values.as_ptr(),
                Residual::Target => target.0.cast_const(),
            },
            target: target.0,
        };
        Self { residual: residual.map(summand), activation }
    }

    /// Whether nothing happens.
    fn is_plain(&self) -> bool {
        self.residual.is_none() && self.activation.is_none()
    }

    /// Whether there is no activation but the usual one.
    fn is_simple(&self) -> bool {
        matches!(self.activation, None | Some(Activation::Relu))
    }

    /// Brings near the one or two vectors that will be written at some targets, and what will be added.
    #[inline(always)]
    pub fn prefetch<S: Simd>(&self, simd: S, targets: &[*mut f32], vectors: usize) {
        let second = (vectors > 1).then_some(S::LANES);
        for &target in targets {
            simd.prefetch_to_write(target);
            if let Some(second) = second {
                simd.prefetch_to_write(target.wrapping_add(second));
            }
        }
        // What is added where it is written is asked for already.
        let Some(apart) = self.residual.filter(|residual| residual.values != residual.target) else { return };
        for &target in targets {
            let residual = apart.values.wrapping_byte_offset((target as isize).wrapping_sub(apart.target as isize));
            simd.prefetch(residual);
            if let Some(second) = second {
                simd.prefetch(residual.wrapping_add(second));
            }
        }
    }

    /// Applies it to the sums of a vector of outputs at `target`, of which there are `lanes`.
    ///
    /// # Safety
    /// `target` lies within the target that the residual belongs to, with as many outputs from there on.
    #[inline(always)]
    pub unsafe fn apply<S: Simd>(&self, simd: S, mut sum: S::V, target: *mut f32, lanes: usize) -> S::V {
        if let Some(residual) = self.residual {
            // SAFETY: the caller's.
            sum = unsafe { simd.add(sum, simd.load_lanes(residual.at(target), lanes)) };
        }
        match self.activation {
            Some(function) => activate(simd, function, sum),
            None => sum,
        }
    }
}

/// Room for the sums of some pixels, such as those of a tile's turned vectors.
#[repr(align(64))]
pub(crate) struct TileSums<const ROWS: usize = MAX_ROWS>(pub [[f32; MAX_STRIDE]; ROWS]);

impl<const ROWS: usize> TileSums<ROWS> {
    pub fn new() -> Self {
        Self([[0.0; MAX_STRIDE]; ROWS])
    }
}

impl Tile<'_> {
    /// The most rows of a tile of a block.
    pub fn most_rows<S: Simd>(block: &Block) -> usize {
        MAX_ROWS.min(S::SUMS / block.vectors)
    }

    /// Computes the tile's pixels.
    ///
    /// # Safety
    /// There are from 1 to [`Tile::most_rows`] pixels. For each, every segment's and every turn's values are readable from its
    /// source pointer, and the block's outputs are writable at its target pointer; the weights lie inside the packed buffer.
    /// [`Start::Rows`] has a row for each pixel, [`Start::Targets`] stands in blocks of whole vectors, and with turned vectors
    /// sums start at 0. `S` is the instruction set that the block was made for.
    #[inline(always)]
    pub unsafe fn compute<S: Simd>(&mut self, simd: S, turned: &mut TileSums, moments: Option<&mut Moments>) {
        if self.walk.size == 0 {
            // SAFETY: the caller's.
            return unsafe { self.ranges(simd, moments) };
        }
        for vector in 0..self.block.vectors {
            let turns = Turns {
                turns: &self.walk.turns[vector],
                plain: self.walk.plain,
                sources: &self.sources[..self.rows],
                packed: self.packed,
                sums: turned.0.as_flattened_mut()[vector * S::LANES..].as_mut_ptr(),
            };
            // SAFETY: the caller's; `turned` has a row of `MAX_STRIDE` sums for every pixel.
            unsafe { turns.compute(simd, self.walk.size) };
        }
        debug_assert!(matches!(self.start, Start::Zero), "turned sums start at 0");
        self.start = Start::Rows(turned.0.as_flattened().as_ptr());
        // SAFETY: the caller's.
        unsafe { self.ranges(simd, moments) };
        self.start = Start::Zero;
    }

    /// Lanes of one of `V` vectors that hold outputs.
    #[inline(always)]
    fn lanes<S: Simd, const V: usize>(&self, vector: usize) -> usize {
        let outputs = self.bias.len();
        if outputs == V * S::LANES { S::LANES } else { outputs.saturating_sub(vector * S::LANES).min(S::LANES) }
    }

    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn ranges<S: Simd>(&mut self, simd: S, moments: Option<&mut Moments>) {
        // SAFETY: the caller's.
        unsafe {
            match (self.block.half, self.block.vectors) {
                (false, 2) => self.rows::<S, 2, false>(simd, moments),
                (false, _) => self.rows::<S, 1, false>(simd, moments),
                (true, 2) => self.rows::<S, 2, true>(simd, moments),
                (true, _) => self.rows::<S, 1, true>(simd, moments),
            }
        }
    }

    /// # Safety
    /// As [`Tile::compute`].
    #[inline(always)]
    unsafe fn rows<S: Simd, const V: usize, const HALF: bool>(&mut self, simd: S, moments: Option<&mut Moments>) {
        constant!(R = self.rows, of 1 2 3 4 5 6 7 8 9 10 11 12 => simd.apart(Ranges::<R, V, HALF> { tile: self, moments }))
    }
}

/// `R` pixels by `V` vectors: all segments, then bias, moments and the writing of results.
struct Ranges<'t, 'a, const R: usize, const V: usize, const HALF: bool> {
    tile: &'t mut Tile<'a>,
    moments: Option<&'t mut Moments>,
}

impl<const R: usize, const V: usize, const HALF: bool> Task for Ranges<'_, '_, R, V, HALF> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: made by `Tile::rows` alone, whose caller vouches for the tile.
        unsafe { if HALF { self.compute(simd.half()) } else { self.compute(simd) } }
    }
}

impl<const R: usize, const V: usize, const HALF: bool> Ranges<'_, '_, R, V, HALF> {
    /// # Safety
    /// As [`Tile::compute`], for `R` rows and `V` vectors of `S`.
    #[inline(always)]
    unsafe fn compute<S: Simd>(self, simd: S) {
        let Self { tile, moments } = self;
        let sources: [*const f32; R] = std::array::from_fn(|r| tile.sources[r]);
        // SAFETY: the caller's; as many biases as outputs are readable.
        unsafe {
            let bias: [S::V; V] = std::array::from_fn(|v| {
                simd.load_lanes(tile.bias.as_ptr().wrapping_add(v * S::LANES), tile.lanes::<S, V>(v))
            });
            let mut sums = [bias; R];
            match tile.start {
                Start::Zero => {}
                Start::Targets => add_rows(simd, |r| tile.targets[r].cast_const(), &mut sums),
                Start::Rows(first) => add_rows(simd, |r| first.wrapping_add(r * MAX_STRIDE), &mut sums),
            }
            let mut ahead = tile.ahead;
            for segment in &tile.walk.both {
                add_segment::<S, R, V>(simd, tile.packed, &sources, segment, &mut ahead, &mut sums);
            }
            tile.ahead = ahead;
            for segment in &tile.walk.own {
                add_own::<S, R, V>(simd, tile.packed, &sources, segment, &mut sums);
            }
            finish(simd, tile, sums, moments);
        }
    }
}

/// Adds the vectors that stand at `at(row)`.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn add_rows<S: Simd, const R: usize, const V: usize>(
    simd: S,
    at: impl Fn(usize) -> *const f32,
    sums: &mut [[S::V; V]; R],
) {
    for r in 0..R {
        for v in 0..V {
            // SAFETY: the caller's.
            sums[r][v] = unsafe { simd.add(sums[r][v], simd.load(at(r).wrapping_add(v * S::LANES))) };
        }
    }
}

/// Adds the products of `P` neighbouring positions, of which row `r` reads position `p` at `at(r, p)`.
///
/// # Safety
/// Every row's values are readable, and a row of weights for each position.
#[inline(always)]
pub(crate) unsafe fn add_positions<S: Simd, const R: usize, const V: usize, const P: usize>(
    simd: S,
    at: impl Fn(usize, usize) -> *const f32,
    weights: *const f32,
    sums: &mut [[S::V; V]; R],
) {
    // SAFETY: the caller's.
    unsafe {
        let weight: [[S::V; V]; P] =
            std::array::from_fn(|p| std::array::from_fn(|v| simd.load(weights.add((p * V + v) * S::LANES))));
        for p in 0..P {
            for r in 0..R {
                let value = simd.splat(*at(r, p));
                for v in 0..V {
                    sums[r][v] = simd.mul_add(value, weight[p][v], sums[r][v]);
                }
            }
        }
    }
}

/// Adds the products of a segment that all vectors read.
///
/// # Safety
/// As [`Tile::compute`].
#[inline(always)]
unsafe fn add_segment<S: Simd, const R: usize, const V: usize>(
    simd: S,
    packed: *const f32,
    sources: &[*const f32; R],
    segment: &Segment,
    ahead: &mut Ahead,
    sums: &mut [[S::V; V]; R],
) {
    // SAFETY: the caller vouches for the segment's sources and weights.
    unsafe {
        let mut weights = packed.add(segment.weights);
        let mut index = segment.source;
        let end = segment.source + segment.len as isize;
        // Where sums are few, every other position has its own, to hide the latency of a product.
        let few = R * V <= 4;
        let mut others = [[simd.splat(0.0); V]; R];
        while index + 2 <= end {
            let at = |r: usize, p: usize| sources[r].offset(index + p as isize);
            if few {
                add_positions::<S, R, V, 1>(simd, at, weights, sums);
                add_positions::<S, R, V, 1>(simd, |r, _| at(r, 1), weights.add(V * S::LANES), &mut others);
            } else {
                add_positions::<S, R, V, 2>(simd, at, weights, sums);
            }
            ahead.advance(simd, 1);
            ahead.advance(simd, 1);
            weights = weights.add(2 * V * S::LANES);
            index += 2;
        }
        if few {
            for r in 0..R {
                for v in 0..V {
                    sums[r][v] = simd.add(sums[r][v], others[r][v]);
                }
            }
        }
        if index < end {
            add_positions::<S, R, V, 1>(simd, |r, _| sources[r].offset(index), weights, sums);
            ahead.advance(simd, 1);
        }
    }
}

/// Adds the products of a segment that each vector reads elsewhere.
///
/// # Safety
/// As [`Tile::compute`].
#[inline(always)]
unsafe fn add_own<S: Simd, const R: usize, const V: usize>(
    simd: S,
    packed: *const f32,
    sources: &[*const f32; R],
    segment: &OwnSegment,
    sums: &mut [[S::V; V]; R],
) {
    // SAFETY: the caller vouches for the segment's sources and weights.
    unsafe {
        let mut weights = packed.add(segment.weights);
        let mut indices: [isize; V] = std::array::from_fn(|v| segment.sources[v]);
        for _ in 0..segment.len {
            for v in 0..V {
                let weight = simd.load(weights.add(v * S::LANES));
                for r in 0..R {
                    sums[r][v] = simd.mul_add(simd.splat(*sources[r].offset(indices[v])), weight, sums[r][v]);
                }
                indices[v] = (indices[v] + 1).in_a_register();
            }
            weights = weights.add(V * S::LANES);
        }
    }
}

/// Applies the epilogue, counts the moments and writes the outputs.
///
/// # Safety
/// As [`Tile::compute`].
#[inline(always)]
unsafe fn finish<S: Simd, const R: usize, const V: usize>(
    simd: S,
    tile: &Tile<'_>,
    mut sums: [[S::V; V]; R],
    moments: Option<&mut Moments>,
) {
    let whole = tile.bias.len() == V * S::LANES;
    // SAFETY: as many outputs as biases are writable at each target.
    unsafe {
        if let Some(moments) = moments {
            debug_assert!(tile.epilogue.is_plain(), "moments are those of the sums");
            moments.add(simd, &sums);
        }
        if whole && tile.epilogue.is_simple() {
            if let Some(residual) = tile.epilogue.residual {
                for r in 0..R {
                    let residual = residual.at(tile.targets[r]);
                    for v in 0..V {
                        sums[r][v] = simd.add(sums[r][v], simd.load(residual.add(v * S::LANES)));
                    }
                }
            }
            if tile.epilogue.activation.is_some() {
                for r in 0..R {
                    for v in 0..V {
                        sums[r][v] = simd.relu(sums[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    simd.store(tile.targets[r].wrapping_add(v * S::LANES), sums[r][v]);
                }
            }
            return;
        }
        // What is rare stays out of the way: this function is as large as a good part of the first-level cache.
        let mut values = TileSums::new();
        for r in 0..R {
            for v in 0..V {
                simd.store(values.0[r].as_mut_ptr().add(v * S::LANES), sums[r][v]);
            }
        }
        simd.apart(Rest { tile, values: &values });
    }
}

/// Sums of a tile, rows of [`MAX_STRIDE`], to which the epilogue is applied one vector after another.
struct Rest<'t, 'a> {
    tile: &'t Tile<'a>,
    values: &'t TileSums,
}

impl Task for Rest<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { tile, values } = self;
        for (&target, values) in tile.targets[..tile.rows].iter().zip(&values.0) {
            for first in (0..tile.bias.len()).step_by(S::LANES) {
                let lanes = S::LANES.min(tile.bias.len() - first);
                let target = target.wrapping_add(first);
                // SAFETY: made by `finish` alone, whose caller vouches for the targets; rows of values are whole vectors.
                unsafe {
                    let sum = simd.load(values[first..].as_ptr());
                    simd.store_lanes(target, tile.epilogue.apply(simd, sum, target, lanes), lanes);
                }
            }
        }
    }
}

/// Some pixels by one vector of outputs that reads vectors.
#[derive(Clone, Copy)]
struct Turns<'a> {
    turns: &'a [Turn],
    /// Whether all values come to their lanes as they are.
    plain: bool,
    sources: &'a [*const f32],
    packed: *const f32,
    /// `[sources, MAX_STRIDE]`, of which one vector each is written.
    sums: *mut f32,
}

impl Turns<'_> {
    /// Computes the sums, in groups of `size` lanes; as many pixels at a time as have sums that fit the registers beside
    /// their values and a weight.
    ///
    /// # Safety
    /// As [`Tile::compute`]; `sums` is writable.
    #[inline(always)]
    unsafe fn compute<S: Simd>(self, simd: S, size: usize) {
        // SAFETY: the caller's.
        unsafe {
            match (size, S::SUMS) {
                (1, 24..) => self.groups::<S, 12, 1>(simd),
                (2, 24..) => self.groups::<S, 6, 2>(simd),
                (4, 24..) => self.groups::<S, 6, 4>(simd),
                (_, 24..) => self.groups::<S, 3, 8>(simd),
                (1, _) => self.groups::<S, 6, 1>(simd),
                (2, _) => self.groups::<S, 3, 2>(simd),
                (4, _) => self.groups::<S, 3, 4>(simd),
                (_, _) => self.groups::<S, 1, 8>(simd),
            }
        }
    }

    /// Whole groups of `R` pixels, then the pixels that are left, one by one.
    ///
    /// # Safety
    /// As [`Turns::compute`].
    #[inline(always)]
    unsafe fn groups<S: Simd, const R: usize, const J: usize>(self, simd: S) {
        let whole = self.sources.len() - self.sources.len() % R;
        let (sources, rest) = self.sources.split_at(whole);
        simd.apart(TurnRows::<R, J>(Turns { sources, ..self }));
        if !rest.is_empty() {
            let sums = self.sums.wrapping_add(whole * MAX_STRIDE);
            simd.apart(TurnRows::<1, J>(Turns { sources: rest, sums, ..self }));
        }
    }
}

/// Adds the products of a vector of positions, `value(row)`.
///
/// # Safety
/// `J` vectors of weights are readable.
#[inline(always)]
unsafe fn add_turn<S: Simd, const R: usize, const J: usize>(
    simd: S,
    value: impl Fn(usize) -> S::V,
    weights: *const f32,
    turned: &mut [[S::V; J]; R],
) {
    // What there are fewer of is held in registers, the others come one at a time.
    // SAFETY: the caller's.
    unsafe {
        if J <= 2 {
            let weights: [S::V; J] = std::array::from_fn(|j| simd.load(weights.add(j * S::LANES)));
            for r in 0..R {
                let value = value(r);
                for j in 0..J {
                    turned[r][j] = simd.mul_add(value, weights[j], turned[r][j]);
                }
            }
        } else {
            let values: [S::V; R] = std::array::from_fn(value);
            for j in 0..J {
                let weight = simd.load(weights.add(j * S::LANES));
                for r in 0..R {
                    turned[r][j] = simd.mul_add(values[r], weight, turned[r][j]);
                }
            }
        }
    }
}

/// [`Turns`] of groups of `R` pixels, in groups of `J` lanes.
struct TurnRows<'a, const R: usize, const J: usize>(Turns<'a>);

impl<const R: usize, const J: usize> Task for TurnRows<'_, R, J> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Turns { turns, plain, sources, packed, mut sums } = self.0;
        // The lanes that change places for each bit of a turn.
        let swaps: [S::Lanes; 3] = std::array::from_fn(|bit| {
            simd.lanes(&std::array::from_fn(|lane| (partner(lane, 1 << bit) % S::LANES) as u32))
        });
        for sources in sources.as_chunks::<R>().0 {
            let mut turned = [[simd.splat(0.0); J]; R];
            // SAFETY: made by `Turns::groups` alone, whose caller vouches for sources, weights and sums.
            unsafe {
                // Two loops, so that the choice is not made for every value.
                if plain {
                    for turn in turns {
                        let value = |r: usize| simd.load(sources[r].offset(turn.source));
                        add_turn(simd, value, packed.add(turn.weights), &mut turned);
                    }
                } else {
                    for turn in turns {
                        let spread = turn.lanes.as_deref().unwrap_or(&Spread::PLAIN);
                        let (lanes, live) = (simd.lanes(&spread.lanes), simd.load(spread.live.as_ptr()));
                        let value = |r: usize| {
                            simd.where_positive(live, simd.permute(simd.load(sources[r].offset(turn.source)), lanes))
                        };
                        add_turn(simd, value, packed.add(turn.weights), &mut turned);
                    }
                }
                for bit in 0..J.ilog2() as usize {
                    for j in (0..J).step_by(2 << bit) {
                        for r in 0..R {
                            let other = simd.permute(turned[r][j + (1 << bit)], swaps[bit]);
                            turned[r][j] = simd.add(turned[r][j], other);
                        }
                    }
                }
                for r in 0..R {
                    simd.store(sums.add(r * MAX_STRIDE), turned[r][0]);
                }
            }
            sums = sums.wrapping_add(R * MAX_STRIDE);
        }
    }
}
