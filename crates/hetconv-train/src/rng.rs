//! Random numbers as a pure function of what they are for.
//!
//! No generator is ever carried from one step to the next: every draw comes from a fresh ChaCha8 stream whose 256-bit
//! key is the concatenation of four little-endian 64-bit words,
//!
//! ```text
//! key = seed ‖ epoch ‖ sample ‖ purpose
//! ```
//!
//! so that two streams are equal exactly if all four are. Hence a run that is killed and resumed, and a run on another
//! number of threads, draws the very same numbers. The functions that turn words into numbers are written out here
//! because they, too, must never change.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream of random numbers is used for; part of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Purpose {
    /// The order of the samples of an epoch.
    Permutation = 1,
    /// Shift and flip of one sample in one epoch.
    Augment = 2,
    /// A built-in training image.
    SyntheticTrain = 3,
    /// A built-in test image.
    SyntheticTest = 4,
    /// The part of one photo that is looked at in one epoch.
    Crop = 5,
}

/// The stream of random numbers of one sample in one epoch of a run, for one purpose.
///
/// # Examples
/// ```
/// use hetconv_train::{Purpose, below, stream};
///
/// let mut a = stream(7, 0, 42, Purpose::Augment);
/// let mut b = stream(7, 0, 42, Purpose::Augment);
/// assert_eq!(below(&mut a, 1000), below(&mut b, 1000));
/// ```
pub fn stream(seed: u64, epoch: u64, sample: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, epoch, sample, purpose as u64]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A uniform integer in `0..n`, without bias (Lemire's multiplication with rejection); 0 if `n` is 0.
pub fn below(rng: &mut ChaCha8Rng, n: u32) -> u32 {
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(n);
        // The first 2^32 mod n low halves of every bucket would favour some results.
        if (product as u32) >= n.wrapping_neg().checked_rem(n).unwrap_or(0) {
            return (product >> 32) as u32;
        }
    }
}

/// A uniform number in `[0, 1)`, a multiple of 2⁻²⁴.
pub fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}

/// The order in which an epoch visits its `n` samples: a Fisher–Yates shuffle of `0..n`.
pub fn permutation(seed: u64, epoch: u64, n: u32) -> Vec<u32> {
    let mut rng = stream(seed, epoch, 0, Purpose::Permutation);
    let mut order: Vec<u32> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last as usize, below(&mut rng, last + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_key_matters() {
        let first = |seed, epoch, sample, purpose| stream(seed, epoch, sample, purpose).next_u64();
        let base = first(1, 2, 3, Purpose::Augment);
        assert_eq!(base, first(1, 2, 3, Purpose::Augment));
        assert_ne!(base, first(2, 2, 3, Purpose::Augment));
        assert_ne!(base, first(1, 3, 3, Purpose::Augment));
        assert_ne!(base, first(1, 2, 4, Purpose::Augment));
        assert_ne!(base, first(1, 2, 3, Purpose::Permutation));
    }

    #[test]
    fn streams_never_change() {
        // Computed by an independent ChaCha8 with key 1 ‖ 0 ‖ 0 ‖ 1, counter 0.
        assert_eq!(permutation(1, 0, 8), [5, 2, 3, 7, 0, 1, 6, 4]);
    }

    #[test]
    fn a_permutation_holds_every_sample_once_and_differs_by_epoch() {
        let mut order = permutation(9, 4, 1000);
        assert_ne!(order, permutation(9, 5, 1000));
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
        assert!(permutation(9, 4, 0).is_empty());
    }

    #[test]
    fn below_is_uniform() {
        let mut rng = stream(3, 0, 0, Purpose::Augment);
        let mut counts = [0u32; 9];
        for _ in 0..90_000 {
            counts[below(&mut rng, 9) as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (9_600..10_400).contains(&n)), "{counts:?}");
        assert_eq!(below(&mut rng, 0), 0);
        assert_eq!(below(&mut rng, 1), 0);
    }

    #[test]
    fn uniform_has_the_right_mean_and_range() {
        let mut rng = stream(3, 0, 1, Purpose::Augment);
        let values: Vec<f32> = (0..10_000).map(|_| uniform(&mut rng)).collect();
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
        assert!((values.iter().sum::<f32>() / 10_000.0 - 0.5).abs() < 0.02);
    }
}
