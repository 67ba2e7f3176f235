//! The operations that a plan is made of, over values in memory.

use hetconv_graph::Activation;
use hetconv_kernels::norm::{self, Affine};
use hetconv_kernels::pool::{Pool, global_average};
use hetconv_kernels::scale::scale_pixels;
use hetconv_kernels::select::Select;
use hetconv_kernels::{Isa, Prepared, elementwise};

/// One operation.
#[derive(Debug)]
pub(crate) struct Step {
    /// The first of the nodes that it computes.
    pub node: String,
    pub kind: Kind,
    /// The values it reads.
    pub operands: Vec<usize>,
    /// The value it writes.
    pub output: usize,
    /// What is applied to its result; a convolution has its own.
    pub activation: Option<Activation>,
}

/// What an operation computes.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The network's input of this number, `[channels, pixels]`, brought to `[pixels, channels]`.
    Input(usize),
    /// The network's output of this number: the operand brought to `[channels, pixels]`, with for each channel its
    /// position.
    Output {
        number: usize,
        positions: Vec<u32>,
    },
    /// A convolution of the first operand; the second, if there is one, is added.
    Conv(Box<Prepared>),
    Norm {
        scale: Vec<f32>,
        shift: Vec<f32>,
    },
    Pool(Pool),
    GlobalAverage,
    Copy,
    Add,
    Mul,
    /// Operands side by side, each from this channel on; other channels are written by whoever computes them.
    Concat(Vec<usize>),
    /// As [`Kind::Output`], in natural order.
    Flatten,
    Softmax,
    Select(Select),
}

/// A value of one image: `[height, width, channels]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Value {
    pub size: [usize; 2],
    /// With those that keep its pixels apart, if they are.
    pub channels: usize,
}

impl Value {
    pub fn pixels(&self) -> usize {
        self.size[0] * self.size[1]
    }

    pub fn len(&self) -> usize {
        self.pixels() * self.channels
    }
}

impl Step {
    /// Whether an image's result can be computed row by row.
    pub fn has_rows(&self) -> bool {
        !matches!(self.kind, Kind::Output { .. } | Kind::GlobalAverage | Kind::Flatten | Kind::Softmax)
    }

    /// Computes whole rows (where it has none: whole images) of a step that is no convolution. Rows are counted through
    /// all images, `first` is the first of them; `read` gives an operand of all images, for [`Kind::Input`] the input.
    pub fn compute<'a>(
        &self,
        isa: Isa,
        values: &[Value],
        first: usize,
        read: &dyn Fn(usize) -> &'a [f32],
        target: &mut [f32],
    ) {
        let value = values[self.output];
        let of = |operand: usize| values[self.operands[operand]];
        let ([height, width], channels) = (value.size, value.channels);
        let (at, len) = (first * width * channels, target.len());
        // The same values of an operand that is laid out as the result.
        let same = |operand: usize| &read(operand)[at..][..len];
        match &self.kind {
            Kind::Conv(_) => unreachable!("run by itself"),
            Kind::Input(_) => {
                for (index, row) in target.chunks_exact_mut(width * channels).enumerate() {
                    let (image, y) = ((first + index) / height, (first + index) % height);
                    let image = &read(0)[image * value.len()..][..value.len()];
                    for (channel, plane) in image.chunks_exact(value.pixels()).enumerate() {
                        let from = &plane[y * width..][..width];
                        row[channel..].iter_mut().step_by(channels).zip(from).for_each(|(to, &from)| *to = from);
                    }
                }
            }
            Kind::Output { positions, .. } => {
                let of_channel = |channel: usize| positions[channel] as usize;
                planes(of(0), first, read(0), of_channel, target);
            }
            Kind::Flatten => planes(of(0), first, read(0), |channel| channel, target),
            Kind::Norm { scale, shift } => {
                norm::scale_shift_rows(isa, same(0), Affine { scale, shift, relu: false }, target);
            }
            Kind::Pool(pool) => pool.run_rows(isa, first, read(0), target),
            Kind::GlobalAverage => {
                let (len, pitch) = (of(0).len(), of(0).channels);
                for (image, y) in target.chunks_exact_mut(channels).enumerate() {
                    global_average(isa, pitch, &read(0)[(first + image) * len..][..len], y);
                }
            }
            Kind::Copy => target.copy_from_slice(same(0)),
            Kind::Add => {
                target.copy_from_slice(same(0));
                (1..self.operands.len()).for_each(|operand| elementwise::add_to(isa, target, same(operand)));
            }
            Kind::Mul if of(0) == of(1) => {
                target.copy_from_slice(same(0));
                elementwise::multiply_by(isa, target, same(1));
            }
            Kind::Mul => {
                // One of them scales the channels of the other.
                let (scaled, gate) = if of(0) == value { (0, 1) } else { (1, 0) };
                let row_len = width * channels;
                let rows = target.chunks_exact_mut(row_len).zip(same(scaled).chunks_exact(row_len));
                for (index, (target, row)) in rows.enumerate() {
                    let gate = &read(gate)[(first + index) / height * channels..][..channels];
                    scale_pixels(isa, row, gate, target);
                }
            }
            Kind::Concat(firsts) => {
                for (operand, &from) in firsts.iter().enumerate() {
                    let narrow = of(operand).channels;
                    let source = read(operand)[first * width * narrow..].chunks_exact(narrow);
                    for (pixel, source) in target.chunks_exact_mut(channels).zip(source) {
                        pixel[from..from + narrow].copy_from_slice(source);
                    }
                }
            }
            Kind::Softmax => {
                target.copy_from_slice(same(0));
                target.chunks_exact_mut(channels).for_each(softmax);
            }
            Kind::Select(select) => select.run_rows(first, read(0), target),
        }
        if let Some(function) = self.activation {
            elementwise::activate_all(isa, function, target);
        }
    }
}

/// Images `[pixels, channels]` from `first` on, brought to `[channels, pixels]`.
fn planes(value: Value, first: usize, source: &[f32], position: impl Fn(usize) -> usize, target: &mut [f32]) {
    for (index, target) in target.chunks_exact_mut(value.len()).enumerate() {
        let image = &source[(first + index) * value.len()..][..value.len()];
        for (channel, plane) in target.chunks_exact_mut(value.pixels()).enumerate() {
            let from = image[position(channel)..].iter().step_by(value.channels);
            plane.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
        }
    }
}

/// Of the features of one image.
fn softmax(features: &mut [f32]) {
    let largest = features.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for feature in features.iter_mut() {
        let power = f64::from(*feature - largest).exp();
        sum += power;
        *feature = power as f32;
    }
    features.iter_mut().for_each(|feature| *feature = (f64::from(*feature) / sum) as f32);
}
