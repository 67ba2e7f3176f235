//! The optimizer's update, in place.

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

impl SgdStep {
    /// One step.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn apply(self, isa: Isa, weight: &mut [f32], velocity: &mut [f32], grad: &[f32]) {
        assert!(weight.len() == velocity.len() && weight.len() == grad.len(), "weight, velocity and gradient lengths");
        const STRETCH: usize = 1 << 15;
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
}
