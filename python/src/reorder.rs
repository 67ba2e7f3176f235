//! Tensors of Python store channels in their natural order; the kernels want the channels of a class side by side.

use std::borrow::Cow;

use hetconv_core::ChannelOrder;
use rayon::prelude::*;

/// Values that a thread moves at a time.
const CHUNK: usize = 1 << 15;

/// Pixels brought from their natural order into a layer's; as they are if that is the same.
pub fn stored<'a>(pixels: &'a [f32], order: &ChannelOrder) -> Cow<'a, [f32]> {
    if order.is_natural() {
        return pixels.into();
    }
    let mut stored = vec![0.0; pixels.len()];
    gather(pixels, order.channels(), &mut stored);
    stored.into()
}

/// Has pixels written in a layer's order, and brings them into the natural one.
pub fn natural<T>(order: &ChannelOrder, target: &mut [f32], write: impl FnOnce(&mut [f32]) -> T) -> T {
    if order.is_natural() {
        return write(target);
    }
    let mut stored = vec![0.0; target.len()];
    let result = write(&mut stored);
    gather(&stored, &order.positions(), target);
    result
}

/// Channel `i` of every target pixel becomes channel `sources[i]` of the source pixel.
fn gather(source: &[f32], sources: &[u32], target: &mut [f32]) {
    let channels = sources.len();
    let chunk = (CHUNK / channels).max(1) * channels;
    target.par_chunks_mut(chunk).zip(source.par_chunks(chunk)).for_each(|(target, source)| {
        for (target, source) in target.chunks_exact_mut(channels).zip(source.chunks_exact(channels)) {
            for (target, &from) in target.iter_mut().zip(sources) {
                *target = source[from as usize];
            }
        }
    });
}
