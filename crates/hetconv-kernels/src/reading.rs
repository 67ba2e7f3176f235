//! What a pass makes of an activation before it computes with it.

use crate::fresh::place;
use crate::isa::Isa;
use crate::norm::{Affine, scale_shift_into};
use crate::reorder::Reorder;
use crate::scratch::Scratch;
use crate::simd::{Simd, Task};

/// A convolution's input, `[batch, height, width, channels]`.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// As it stands.
    Plain(&'a [f32]),
    /// The result of a batch-norm, and of a ReLU behind it, which is not kept: it is made where it is read, in memory for the
    /// time being. That is a few images at a time, which stay in a core's second-level cache, or, where the images are few or
    /// the blocks of filters are many, all of them; of a depthwise layer a vector of channels of some rows, in the first.
    Scaled {
        /// What the batch-norm reads.
        x: &'a [f32],
        /// What it does.
        affine: Affine<'a>,
    },
}

impl<'a> Input<'a> {
    /// The values that are stored, and how they are read.
    pub(crate) fn read(self, channels: usize) -> (&'a [f32], Reading<'a>) {
        match self {
            Self::Plain(values) => (values, Reading::Plain),
            Self::Scaled { x, affine } => {
                affine.check(channels);
                (x, Reading::Scaled(affine))
            }
        }
    }
}

/// How an activation is read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading<'a> {
    /// As it stands.
    Plain,
    /// With its channels in another order.
    Reordered(&'a Reorder),
    /// Through a batch-norm.
    Scaled(Affine<'a>),
}

impl<'a> Reading<'a> {
    pub fn reordered(order: &'a Reorder) -> Self {
        if order.is_none() { Self::Plain } else { Self::Reordered(order) }
    }

    /// Whether what stands there is what is read.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }

    /// What becomes of each value on its own.
    pub fn scaled(self) -> Option<Affine<'a>> {
        if let Self::Scaled(affine) = self { Some(affine) } else { None }
    }

    /// What is left if [`Reading::scaled`] is done elsewhere.
    pub fn rest(self) -> Self {
        if let Self::Scaled(_) = self { Self::Plain } else { self }
    }

    /// Room for what so many values are made into; none where they are good as they are.
    pub fn room(&self, values: usize) -> Scratch {
        Scratch::new(if self.is_plain() { 0 } else { values })
    }

    /// What some pixels are made into, in the room for it, or themselves. Inlined into a task.
    #[inline(always)]
    pub fn brought<'b, S: Simd>(&self, simd: S, source: &'b [f32], room: &'b mut [f32]) -> &'b [f32] {
        let len = source.len();
        match self {
            Self::Plain => return source,
            Self::Reordered(order) => order.write(simd, source, &mut room[..len]),
            Self::Scaled(affine) => affine.write(simd, source, place(&mut room[..len])),
        }
        &room[..len]
    }

    /// As [`Reading::brought`], as a task of its own.
    pub fn brought_alone<'b>(&self, isa: Isa, source: &'b [f32], room: &'b mut [f32]) -> &'b [f32] {
        isa.run(Bring { reading: *self, source, room })
    }

    /// As [`Reading::brought`], on all threads.
    pub fn brought_by_all<'b>(&self, isa: Isa, source: &'b [f32], room: &'b mut [f32]) -> &'b [f32] {
        let len = source.len();
        match self {
            Self::Plain => return source,
            Self::Reordered(order) => order.copy_all(isa, source, &mut room[..len]),
            Self::Scaled(affine) => scale_shift_into(isa, source, None, *affine, place(&mut room[..len])),
        }
        &room[..len]
    }
}

struct Bring<'a, 'b> {
    reading: Reading<'a>,
    source: &'b [f32],
    room: &'b mut [f32],
}

impl<'b> Task for Bring<'_, 'b> {
    type Output = &'b [f32];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> &'b [f32] {
        self.reading.brought(simd, self.source, self.room)
    }
}
