//! The optimizer's update, in place.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::simd::{Simd, Task};

/// One step of stochastic gradient descent with momentum, as PyTorch defines it: g = grad + decay·w, v = μ·v + g,
/// w = w − lr·(g + μ·v) with Nesterov momentum and w − lr·v without.
///
/// # Panics
/// If the lengths differ.
#[allow(clippy::too_many_arguments)]
pub fn sgd_step(
    isa: Isa,
    weight: &mut [f32],
    velocity: &mut [f32],
    grad: &[f32],
    lr: f32,
    momentum: f32,
    weight_decay: f32,
    nesterov: bool,
) {
    assert!(weight.len() == velocity.len() && weight.len() == grad.len(), "weight, velocity and gradient lengths");
    const STRETCH: usize = 1 << 15;
    let parts = weight.par_chunks_mut(STRETCH).zip(velocity.par_chunks_mut(STRETCH)).zip(grad.par_chunks(STRETCH));
    parts.for_each(|((weight, velocity), grad)| {
        isa.run(Step { weight, velocity, grad, lr, momentum, weight_decay, nesterov });
    });
}

struct Step<'a> {
    weight: &'a mut [f32],
    velocity: &'a mut [f32],
    grad: &'a [f32],
    lr: f32,
    momentum: f32,
    weight_decay: f32,
    nesterov: bool,
}

impl Task for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for ((weight, velocity), grad) in self.weight.iter_mut().zip(self.velocity).zip(self.grad) {
            let grad = grad + self.weight_decay * *weight;
            *velocity = self.momentum * *velocity + grad;
            let step = if self.nesterov { grad + self.momentum * *velocity } else { *velocity };
            *weight -= self.lr * step;
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
        sgd_step(isa, &mut w, &mut v, &[0.1, 0.2], 0.1, 0.9, 0.5, true);
        // g = 0.6, -0.8; v = 1.05, -0.8; step = 1.545, -1.52
        for (got, want) in w.iter().chain(&v).zip([1.0 - 0.1545, -2.0 + 0.152, 1.05, -0.8]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let (mut w, mut v) = ([1.0f32], [0.5f32]);
        sgd_step(isa, &mut w, &mut v, &[0.1], 0.1, 0.9, 0.0, false);
        assert!((w[0] - (1.0 - 0.055)).abs() < 1e-6);
    }
}
