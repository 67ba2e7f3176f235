//! Tensors of Python store channels in their natural order; the kernels want the channels of a class side by side.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use hetconv_core::ChannelOrder;
use hetconv_kernels::{Isa, Simd, Task};
use rayon::prelude::*;

/// Values that a thread moves at a time.
const CHUNK: usize = 1 << 15;

/// How the channels of a pixel move.
pub struct Reorder {
    isa: Isa,
    /// For each channel as stored, the one that it is; empty where they stand so anyhow.
    channels: Vec<u32>,
    /// The reverse.
    positions: Vec<u32>,
    /// P, where the stored order is that of P equal shifted classes: channels are a matrix `[M/P, P]` that is transposed.
    parts: Option<usize>,
}

impl Reorder {
    pub fn new(isa: Isa, order: &ChannelOrder) -> Self {
        if order.is_natural() {
            return Self { isa, channels: Vec::new(), positions: Vec::new(), parts: None };
        }
        let channels = order.channels().to_vec();
        let parts = channels.get(1).map_or(0, |&second| second as usize);
        let size = channels.len() / parts.max(1);
        let transposed = |position: usize| (position % size * parts + position / size) as u32;
        let shifted =
            parts > 0 && size * parts == channels.len() && (0..channels.len()).all(|i| channels[i] == transposed(i));
        Self { isa, positions: order.positions(), parts: shifted.then_some(parts), channels }
    }

    /// Pixels brought from their natural order into the layer's; as they are if that is the same.
    pub fn stored<'a>(&self, pixels: &'a [f32]) -> Stored<'a> {
        if self.channels.is_empty() {
            return Stored::Same(pixels);
        }
        let mut stored = Scratch::new(pixels.len());
        let rows = |channels: usize| [channels / self.parts.unwrap_or(1), self.parts.unwrap_or(1)];
        self.each(pixels, &mut stored, &self.channels, rows(self.channels.len()));
        Stored::Copy(stored)
    }

    /// Has pixels written in the layer's order, and brings them into the natural one.
    pub fn natural(&self, target: &mut [f32], write: impl FnOnce(&mut [f32])) {
        if self.channels.is_empty() {
            return write(target);
        }
        let mut stored = Scratch::new(target.len());
        write(&mut stored);
        let rows = |channels: usize| [self.parts.unwrap_or(1), channels / self.parts.unwrap_or(1)];
        self.each(&stored, target, &self.positions, rows(self.channels.len()));
    }

    /// Channel `i` of every target pixel becomes channel `sources[i]` of the source pixel. If the classes allow it, that is
    /// the transposition of matrices of so many rows and columns.
    fn each(&self, source: &[f32], target: &mut [f32], sources: &[u32], [rows, columns]: [usize; 2]) {
        let channels = sources.len();
        let chunk = (CHUNK / channels).max(1) * channels;
        target.par_chunks_mut(chunk).zip(source.par_chunks(chunk)).for_each(|(target, source)| {
            let task = Move { source, target, sources, rows, columns, transposed: self.parts.is_some() };
            self.isa.run(task);
        });
    }
}

/// Some pixels whose channels move.
struct Move<'a> {
    source: &'a [f32],
    target: &'a mut [f32],
    sources: &'a [u32],
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl Task for Move<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Self { source, target, sources, rows, columns, transposed } = self;
        let pixels = target.chunks_exact_mut(sources.len()).zip(source.chunks_exact(sources.len()));
        match (transposed, rows, columns) {
            (true, _, 2) => pixels.for_each(|(target, source)| part::<2>(source, target)),
            (true, _, 4) => pixels.for_each(|(target, source)| part::<4>(source, target)),
            (true, _, 8) => pixels.for_each(|(target, source)| part::<8>(source, target)),
            (true, 2, _) => pixels.for_each(|(target, source)| join::<2>(source, target)),
            (true, 4, _) => pixels.for_each(|(target, source)| join::<4>(source, target)),
            (true, 8, _) => pixels.for_each(|(target, source)| join::<8>(source, target)),
            _ => pixels.for_each(|(target, source)| {
                for (target, &from) in target.iter_mut().zip(sources) {
                    *target = source[from as usize];
                }
            }),
        }
    }
}

/// Transposes a matrix of `P` columns.
#[inline(always)]
fn part<const P: usize>(source: &[f32], target: &mut [f32]) {
    let (quads, _) = source.as_chunks::<P>();
    for (p, row) in target.chunks_exact_mut(quads.len()).enumerate() {
        for (value, quad) in row.iter_mut().zip(quads) {
            *value = quad[p];
        }
    }
}

/// Transposes a matrix of `P` rows.
#[inline(always)]
fn join<const P: usize>(source: &[f32], target: &mut [f32]) {
    let size = source.len() / P;
    let (quads, _) = target.as_chunks_mut::<P>();
    let rows: [&[f32]; P] = std::array::from_fn(|p| &source[p * size..][..size]);
    assert_eq!(quads.len(), size, "channels of a pixel");
    for (i, quad) in quads.iter_mut().enumerate() {
        for (value, row) in quad.iter_mut().zip(&rows) {
            *value = row[i];
        }
    }
}

/// Pixels in a layer's order.
pub enum Stored<'a> {
    Same(&'a [f32]),
    Copy(Scratch),
}

impl Deref for Stored<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Same(pixels) => pixels,
            Self::Copy(pixels) => pixels,
        }
    }
}

/// Memory that goes from one call to the next, so that it need not be cleared or faulted in; it holds any values.
pub struct Scratch {
    values: Vec<f32>,
    len: usize,
}

static IDLE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Blocks that are kept: a layer's backward pass uses two at a time.
const KEPT: usize = 4;

impl Scratch {
    fn new(len: usize) -> Self {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = idle.iter().enumerate().filter(|(_, values)| values.len() >= len);
        let smallest = fits.min_by_key(|(_, values)| values.len()).map(|(index, _)| index);
        let values = smallest.map(|index| idle.swap_remove(index));
        drop(idle);
        Self { values: values.unwrap_or_else(|| vec![0.0; len]), len }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(std::mem::take(&mut self.values));
        if idle.len() > KEPT
            && let Some(smallest) = (0..idle.len()).min_by_key(|&index| idle[index].len())
        {
            idle.swap_remove(smallest);
        }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}
