//! Channels that stand in another order in memory than a kernel wants them.

use hetconv_core::ChannelOrder;
use rayon::prelude::*;

use crate::isa::Isa;
use crate::scratch::Scratch;
use crate::simd::{Simd, Task};

/// Values that a thread moves at a time, where nothing else decides.
const CHUNK: usize = 1 << 15;

/// The way of a pixel's channels from one order into another.
#[derive(Debug)]
pub(crate) struct Reorder {
    /// For every position of the target, the source's; empty where the orders are one.
    sources: Vec<u32>,
    /// Where the move is the transposition of a matrix, as it is between natural order and equal shifted classes: its columns.
    columns: Option<usize>,
}

impl Reorder {
    pub fn new(from: &ChannelOrder, to: &ChannelOrder) -> Self {
        if from == to {
            return Self { sources: Vec::new(), columns: None };
        }
        let sources = to.gather_from(from);
        let columns = sources[1] as usize;
        let rows = sources.len() / columns.max(1);
        let transposed = |position: usize| position % rows * columns + position / rows;
        let is_transposed =
            rows * columns == sources.len() && (0..sources.len()).all(|i| sources[i] as usize == transposed(i));
        Self { columns: is_transposed.then_some(columns), sources }
    }

    /// Whether nothing moves.
    pub fn is_none(&self) -> bool {
        self.sources.is_empty()
    }

    /// Room for so many values that are brought into the other order; none where they are good as they are.
    pub fn room(&self, values: usize) -> Scratch {
        Scratch::new(if self.is_none() { 0 } else { values })
    }

    /// Brings pixels into the other order, on this thread.
    pub fn copy(&self, isa: Isa, source: &[f32], target: &mut [f32]) {
        isa.run(Move { order: self, source, target });
    }

    /// As [`Reorder::copy`], inlined into a task.
    #[inline(always)]
    pub fn write<S: Simd>(&self, simd: S, source: &[f32], target: &mut [f32]) {
        Move { order: self, source, target }.run(simd);
    }

    /// As [`Reorder::copy`], on all threads.
    pub fn copy_all(&self, isa: Isa, source: &[f32], target: &mut [f32]) {
        let channels = self.sources.len();
        let chunk = (CHUNK / channels).max(1) * channels;
        target.par_chunks_mut(chunk).zip(source.par_chunks(chunk)).for_each(|(target, source)| {
            self.copy(isa, source, target);
        });
    }
}

/// Some pixels whose channels move.
struct Move<'a> {
    order: &'a Reorder,
    source: &'a [f32],
    target: &'a mut [f32],
}

impl Task for Move<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let sources = &self.order.sources;
        let [columns, rows] = match self.order.columns {
            Some(columns) => [columns, sources.len() / columns],
            None => [0; 2],
        };
        match (columns, rows) {
            (2, _) => simd.apart(ToRows::<2>(self)),
            (4, _) => simd.apart(ToRows::<4>(self)),
            (8, _) => simd.apart(ToRows::<8>(self)),
            (_, 2) => simd.apart(ToColumns::<2>(self)),
            (_, 4) => simd.apart(ToColumns::<4>(self)),
            (_, 8) => simd.apart(ToColumns::<8>(self)),
            _ => self.each(|source, target| {
                for (target, &from) in target.iter_mut().zip(sources) {
                    *target = source[from as usize];
                }
            }),
        }
    }
}

impl Move<'_> {
    #[inline(always)]
    fn each(self, mut pixel: impl FnMut(&[f32], &mut [f32])) {
        let channels = self.order.sources.len();
        for (target, source) in self.target.chunks_exact_mut(channels).zip(self.source.chunks_exact(channels)) {
            pixel(source, target);
        }
    }
}

/// Transposes matrices of `P` columns.
struct ToRows<'a, const P: usize>(Move<'a>);

impl<const P: usize> Task for ToRows<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        /// Columns at a time: so many loads and stores in a row let the compiler use vectors.
        const TOGETHER: usize = 16;
        self.0.each(|source, target| {
            let (columns, _) = source.as_chunks::<P>();
            let size = columns.len();
            let (blocks, rest) = columns.as_chunks::<TOGETHER>();
            for (index, block) in blocks.iter().enumerate() {
                let mut rows = [[0.0; TOGETHER]; P];
                for (at, column) in block.iter().enumerate() {
                    for (row, &value) in rows.iter_mut().zip(column) {
                        row[at] = value;
                    }
                }
                for (p, row) in rows.iter().enumerate() {
                    target[p * size + index * TOGETHER..][..TOGETHER].copy_from_slice(row);
                }
            }
            for (at, column) in rest.iter().enumerate() {
                for (p, &value) in column.iter().enumerate() {
                    target[p * size + size - rest.len() + at] = value;
                }
            }
        });
    }
}

/// Transposes matrices of `P` rows.
struct ToColumns<'a, const P: usize>(Move<'a>);

impl<const P: usize> Task for ToColumns<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.0.each(|source, target| {
            let size = source.len() / P;
            let (columns, _) = target.as_chunks_mut::<P>();
            let rows: [&[f32]; P] = std::array::from_fn(|p| &source[p * size..][..size]);
            assert_eq!(columns.len(), size, "channels of a pixel");
            for (i, column) in columns.iter_mut().enumerate() {
                for (value, row) in column.iter_mut().zip(&rows) {
                    *value = row[i];
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_come_to_their_places() {
        for (channels, parts) in
            [(4, 2), (5, 2), (8, 4), (30, 2), (64, 4), (68, 4), (66, 4), (128, 8), (136, 8), (48, 3)]
        {
            let natural = ChannelOrder::natural(channels);
            let classes: Vec<u32> = (0..channels as u32).map(|channel| channel % parts).collect();
            let by_class = ChannelOrder::by_class(&classes);
            let pixels: Vec<f32> = (0..7 * channels).map(|value| value as f32).collect();
            let expected: Vec<f32> = pixels
                .chunks_exact(channels)
                .flat_map(|pixel| by_class.channels().iter().map(|&channel| pixel[channel as usize]))
                .collect();
            let (there, back) = (Reorder::new(&natural, &by_class), Reorder::new(&by_class, &natural));
            for isa in Isa::available() {
                let (mut stored, mut again) = (vec![f32::NAN; pixels.len()], vec![f32::NAN; pixels.len()]);
                there.copy(isa, &pixels, &mut stored);
                assert_eq!(stored, expected, "{channels} channels, P = {parts}");
                back.copy_all(isa, &stored, &mut again);
                assert_eq!(again, pixels, "{channels} channels, P = {parts}, back");
            }
        }
        assert!(Reorder::new(&ChannelOrder::natural(3), &ChannelOrder::by_class(&[0, 0, 1])).is_none());
    }
}
