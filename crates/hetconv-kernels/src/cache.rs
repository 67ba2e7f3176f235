//! The caches that work is cut for, in values of `f32`: those of a core that the kernels were tuned on (Zen 4), which most
//! cores have or exceed. With others the cuts are not the best ones, and the results the same.

/// A line: 64 bytes.
pub(crate) const LINE: usize = 16;

/// The first level: 32 KiB.
pub(crate) const FIRST: usize = 8 << 10;

/// Lines that share a set of the first level, and values from one that does to the next: a way, 4 KiB.
pub(crate) const WAYS: usize = 8;
pub(crate) const WAY: usize = FIRST / WAYS;

/// Channels to store pixels with that lie one behind the other, so that they are not all in one set of the first level: as
/// many, or a line more. As many pixels as a set has lines find room in it.
pub fn spread(channels: usize, pixels: usize) -> usize {
    let crowds = channels > 0 && channels.is_multiple_of(WAY) && pixels > WAYS;
    if crowds { channels + LINE } else { channels }
}

/// The second level: 1 MiB.
pub const SECOND: usize = 256 << 10;

/// Bytes of half the second level: what a thread works on while it needs as much for other things.
pub(crate) const HALF_SECOND_BYTES: usize = 4 * SECOND / 2;
