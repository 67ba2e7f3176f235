//! Selection of channels and of every n-th pixel: the parameter-free shortcut of residual networks.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::fresh::{fresh, place, product, zeros};

/// Channels of a result, each a copy of one of the operand's or zeros, at every `stride`-th row and column.
#[derive(Clone, Debug, PartialEq)]
pub struct Select {
    sources: Vec<Option<u32>>,
    channels: usize,
    stride: usize,
    in_size: [usize; 2],
    /// So many first channels are the operand's first ones.
    own: usize,
    /// Behind those, the channels of the result that are copies, and the operand's.
    others: Vec<(u32, u32)>,
}

impl Select {
    /// A selection from operands of so many channels: `sources` has for each channel of the result the operand's that it
    /// copies, `stride` is from one row or column of the result to the next, and `in_size` the operand's height and width.
    ///
    /// # Panics
    /// If a source is no channel of the operand, or the stride is 0.
    pub fn new(sources: Vec<Option<u32>>, channels: usize, stride: usize, in_size: [usize; 2]) -> Self {
        assert!(stride > 0, "a stride");
        assert!(sources.iter().flatten().all(|&source| (source as usize) < channels), "channels of the operand");
        let own = sources.iter().zip(0..).take_while(|&(&source, channel)| source == Some(channel)).count();
        let others = sources.iter().zip(0..).skip(own);
        let others = others.filter_map(|(&source, channel)| Some((channel, source?))).collect();
        Self { sources, channels, stride, in_size, own, others }
    }

    /// For each channel of the result the operand's it copies.
    pub fn sources(&self) -> &[Option<u32>] {
        &self.sources
    }

    /// Channels of the operand.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Rows and columns from one pixel of the result to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Height and width of the operand.
    pub fn in_size(&self) -> [usize; 2] {
        self.in_size
    }

    /// Height and width of the result.
    pub fn out_size(&self) -> [usize; 2] {
        self.in_size.map(|size| size.div_ceil(self.stride))
    }

    /// Pixels of the operand that the result's come from, row by row.
    fn pixels(&self) -> impl Iterator<Item = usize> {
        let ([height, width], stride) = (self.in_size, self.stride);
        (0..height).step_by(stride).flat_map(move |y| (0..width).step_by(stride).map(move |x| y * width + x))
    }

    fn lengths(&self) -> [usize; 2] {
        let [out_height, out_width] = self.out_size();
        [
            product([self.in_size[0], self.in_size[1], self.channels]),
            product([out_height, out_width, self.sources.len()]),
        ]
    }

    /// `[batch, height, width, channels]` → `[batch, out height, out width, sources]`.
    ///
    /// # Panics
    /// If the length doesn't fit.
    pub fn forward(&self, batch: usize, x: &[f32]) -> Vec<f32> {
        let [in_len, out_len] = self.lengths();
        assert_eq!(x.len(), product([batch, in_len]), "length of the operand");
        let rows = self.out_size()[0];
        let fill = |y: &mut [MaybeUninit<f32>]| {
            let images = y.par_chunks_mut(out_len.max(1)).enumerate();
            images.for_each(|(image, y)| self.copy_rows(image * rows, x, y));
        };
        // SAFETY: every channel of every pixel of the result is written.
        unsafe { fresh(product([batch, out_len]), fill) }
    }

    /// Computes whole rows of the result, counted through all images, from `first` on.
    ///
    /// # Panics
    /// If the rows are not those of the images.
    pub fn run_rows(&self, first: usize, x: &[f32], y: &mut [f32]) {
        self.copy_rows(first, x, place(y));
    }

    /// Writes every value of `y`.
    fn copy_rows(&self, first: usize, x: &[f32], y: &mut [MaybeUninit<f32>]) {
        let ([height, width], [out_height, out_width]) = (self.in_size, self.out_size());
        let row_len = out_width * self.sources.len();
        for (index, row) in y.chunks_exact_mut(row_len.max(1)).enumerate() {
            let (image, from_row) = ((first + index) / out_height, (first + index) % out_height * self.stride);
            for (column, pixel) in row.chunks_exact_mut(self.sources.len()).enumerate() {
                let from = (image * height + from_row) * width + column * self.stride;
                let from = &x[from * self.channels..][..self.channels];
                pixel[..self.own].write_copy_of_slice(&from[..self.own]);
                pixel[self.own..].fill(MaybeUninit::new(0.0));
                for &(to, source) in &self.others {
                    pixel[to as usize].write(from[source as usize]);
                }
            }
        }
    }

    /// The gradient by the operand: a channel that was copied several times gets the sum.
    ///
    /// # Panics
    /// If the length doesn't fit.
    pub fn backward(&self, batch: usize, grad_y: &[f32]) -> Vec<f32> {
        let [in_len, out_len] = self.lengths();
        assert_eq!(grad_y.len(), product([batch, out_len]), "length of the gradient");
        let mut grad_x = zeros(product([batch, in_len]));
        if in_len > 0 && out_len > 0 {
            grad_x.par_chunks_mut(in_len).zip(grad_y.par_chunks(out_len)).for_each(|(grad_x, grad_y)| {
                for (grad_y, pixel) in grad_y.chunks_exact(self.sources.len()).zip(self.pixels()) {
                    let grad_x = &mut grad_x[pixel * self.channels..][..self.channels];
                    grad_x.iter_mut().zip(&grad_y[..self.own]).for_each(|(to, &grad)| *to += grad);
                    for &(from, source) in &self.others {
                        grad_x[source as usize] += grad_y[from as usize];
                    }
                }
            });
        }
        grad_x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_zeros_and_sums() {
        let select = Select::new(vec![Some(1), None, Some(0), Some(1)], 2, 2, [3, 2]);
        assert_eq!(select.out_size(), [2, 1]);
        let x: Vec<f32> = (0..24).map(|i| i as f32).collect();
        // Pixels 0 and 4 of each image.
        assert_eq!(select.forward(2, &x), [1., 0., 0., 1., 9., 0., 8., 9., 13., 0., 12., 13., 21., 0., 20., 21.]);
        let grad: Vec<f32> = (1..=16).map(|i| i as f32).collect();
        let back = select.backward(2, &grad);
        let mut want = vec![0.0; 24];
        for (at, value) in [(0, 3.), (1, 5.), (8, 7.), (9, 13.), (12, 11.), (13, 21.), (20, 15.), (21, 29.)] {
            want[at] = value;
        }
        assert_eq!(back, want);
        assert!(select.forward(0, &[]).is_empty());
        let wider = Select::new(vec![Some(0), Some(1), None, Some(0)], 2, 2, [3, 2]);
        assert_eq!(wider.forward(1, &x[..12]), [0., 1., 0., 0., 8., 9., 0., 8.]);
        let mut want = [0.0; 12];
        for (at, value) in [(0, 5.), (1, 2.), (8, 13.), (9, 6.)] {
            want[at] = value;
        }
        assert_eq!(wider.backward(1, &grad[..8]), want);
    }
}
