//! What happens to weights after a backward pass, in place: the optimizer's update, and their moving average.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::simd::{Simd, Task};

/// Stochastic gradient descent with momentum, as PyTorch defines it: g = grad + decay·w, v = μ·v + g, w = w − lr·(g + μ·v)
/// with Nesterov momentum and w − lr·v without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// The learning rate, lr.
    pub lr: f32,
    /// How much of the velocity stays, μ.
    pub momentum: f32,
    /// How much of the weight is added to its gradient.
    pub weight_decay: f32,
    /// Whether to look ahead along the velocity.
    pub nesterov: bool,
}

/// Numbers that one thread changes at a time.
const STRETCH: usize = 1 << 15;

impl SgdStep {
    /// One step.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn apply(self, isa: Isa, weight: &mut [f32], velocity: &mut [f32], grad: &[f32]) {
        assert!(weight.len() == velocity.len() && weight.len() == grad.len(), "weight, velocity and gradient lengths");
        let parts = weight.par_chunks_mut(STRETCH).zip(velocity.par_chunks_mut(STRETCH)).zip(grad.par_chunks(STRETCH));
        parts.for_each(|((weight, velocity), grad)| isa.run(Step { sgd: self, weight, velocity, grad }));
    }
}

struct Step<'a> {
    sgd: SgdStep,
    weight: &'a mut [f32],
    velocity: &'a mut [f32],
    grad: &'a [f32],
}

impl Task for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let SgdStep { lr, momentum, weight_decay, nesterov } = self.sgd;
        for ((weight, velocity), grad) in self.weight.iter_mut().zip(self.velocity).zip(self.grad) {
            let grad = grad + weight_decay * *weight;
            *velocity = momentum * *velocity + grad;
            let step = if nesterov { grad + momentum * *velocity } else { *velocity };
            *weight -= lr * step;
        }
    }
}

/// Moves a mean towards new values by a share of the way, from 0 to 1.
///
/// # Panics
/// If the lengths differ.
pub fn move_towards(isa: Isa, mean: &mut [f32], values: &[f32], share: f32) {
    assert_eq!(mean.len(), values.len(), "mean and values");
    let parts = mean.par_chunks_mut(STRETCH).zip(values.par_chunks(STRETCH));
    parts.for_each(|(mean, values)| isa.run(Move { mean, values, share }));
}

struct Move<'a> {
    mean: &'a mut [f32],
    values: &'a [f32],
    share: f32,
}

impl Task for Move<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for (mean, value) in self.mean.iter_mut().zip(self.values) {
            *mean += (value - *mean) * self.share;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesterov_by_hand() {
        let isa = Isa::selected().unwrap();
        let (mut w, mut v) = ([1.0f32, -2.0], [0.5f32, 0.0]);
        let step = SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 0.5, nesterov: true };
        step.apply(isa, &mut w, &mut v, &[0.1, 0.2]);
        // g = 0.6, -0.8; v = 1.05, -0.8; step = 1.545, -1.52
        for (got, want) in w.iter().chain(&v).zip([1.0 - 0.1545, -2.0 + 0.152, 1.05, -0.8]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let (mut w, mut v) = ([1.0f32], [0.5f32]);
        SgdStep { weight_decay: 0.0, nesterov: false, ..step }.apply(isa, &mut w, &mut v, &[0.1]);
        assert!((w[0] - (1.0 - 0.055)).abs() < 1e-6);
    }

    #[test]
    fn every_value_of_a_mean_moves() {
        let length = 2 * STRETCH + 5;
        let mut mean: Vec<f32> = (0..length).map(|i| i as f32).collect();
        let values: Vec<f32> = (0..length).map(|i| -(i as f32) - 1.0).collect();
        move_towards(Isa::selected().unwrap(), &mut mean, &values, 0.25);
        let by_hand = |i: usize| 0.75 * i as f32 + 0.25 * (-(i as f32) - 1.0);
        assert!(mean.iter().enumerate().all(|(i, &mean)| (mean - by_hand(i)).abs() <= 1e-6 * i as f32));
        assert_eq!(mean[4], 1.75);
    }
}
