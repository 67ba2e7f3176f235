//! Functions of single values, and sums and products of two activations.

use hetconv_core::Activation;

use crate::isa::Isa;
use crate::simd::{Simd, Task};

/// A vector of function values; NaN stays NaN.
#[inline(always)]
pub(crate) fn activate<S: Simd>(simd: S, function: Activation, x: S::V) -> S::V {
    let constant = |value: f32| simd.splat(value);
    let hard = |x| simd.clamp(simd.mul_add(x, constant(1.0 / 6.0), constant(0.5)), constant(0.0), constant(1.0));
    match function {
        Activation::Relu => simd.relu(x),
        Activation::Relu6 => simd.clamp(x, constant(0.0), constant(6.0)),
        Activation::HardSigmoid => hard(x),
        Activation::HardSwish => simd.mul(x, hard(x)),
        Activation::Sigmoid => sigmoid(simd, x),
        // Below −87 the sigmoid stays what it is there, so that x must not go on.
        Activation::Silu => simd.mul(simd.clamp(x, constant(-87.0), constant(f32::INFINITY)), sigmoid(simd, x)),
    }
}

/// 1/(1 + exp(−x)).
#[inline(always)]
fn sigmoid<S: Simd>(simd: S, x: S::V) -> S::V {
    let one = simd.splat(1.0);
    simd.div(one, simd.add(one, exp(simd, simd.sub(simd.splat(0.0), x))))
}

/// exp(x) to some 10⁻⁷ of itself, for x from −87 to 87; beyond, its value there.
#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    /// Adding it leaves an integer in the lowest bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, so that multiples of the first are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let constant = |value: f32| simd.splat(value);
    let x = simd.clamp(x, constant(-87.0), constant(87.0));
    let shifted = simd.mul_add(x, constant(std::f32::consts::LOG2_E), constant(ROUND));
    let whole = simd.sub(shifted, constant(ROUND));
    let rest = simd.mul_add(whole, constant(-LN_2[0]), x);
    let rest = simd.mul_add(whole, constant(-LN_2[1]), rest);
    // The first terms of the series; the rest is at most ln 2 / 2.
    let mut sum = constant(1.0 / 5040.0);
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = simd.mul_add(sum, rest, constant(factor));
    }
    simd.mul(sum, simd.power_of_two(shifted))
}

/// Replaces every value by that of a function.
pub fn activate_all(isa: Isa, function: Activation, values: &mut [f32]) {
    isa.run(Activate { function, values });
}

struct Activate<'a> {
    function: Activation,
    values: &'a mut [f32],
}

impl Task for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for vector in self.values.chunks_mut(S::LANES) {
            // SAFETY: as many values as the chunk has are read and written.
            unsafe {
                let x = simd.load_lanes(vector.as_ptr(), vector.len());
                simd.store_lanes(vector.as_mut_ptr(), activate(simd, self.function, x), vector.len());
            }
        }
    }
}

/// Adds the operand to the sum, value by value.
///
/// # Panics
/// If the lengths differ.
pub fn add_to(isa: Isa, sum: &mut [f32], operand: &[f32]) {
    assert_eq!(sum.len(), operand.len(), "lengths");
    isa.plain(|| sum.iter_mut().zip(operand).for_each(|(sum, x)| *sum += x));
}

/// Multiplies the product by the operand, value by value.
///
/// # Panics
/// If the lengths differ.
pub fn multiply_by(isa: Isa, product: &mut [f32], operand: &[f32]) {
    assert_eq!(product.len(), operand.len(), "lengths");
    isa.plain(|| product.iter_mut().zip(operand).for_each(|(product, x)| *product *= x));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_their_values() {
        let xs: Vec<f32> = (-4000..4000).map(|i| i as f32 / 37.0).chain([f32::INFINITY, f32::NEG_INFINITY]).collect();
        let exact = |function, x: f64| {
            let (sigmoid, hard) = (1.0 / (1.0 + (-x).exp()), (x / 6.0 + 0.5).clamp(0.0, 1.0));
            match function {
                Activation::Relu => x.max(0.0),
                Activation::Relu6 => x.clamp(0.0, 6.0),
                Activation::Sigmoid => sigmoid,
                Activation::HardSigmoid => hard,
                Activation::HardSwish => x * hard,
                Activation::Silu => x * sigmoid,
            }
        };
        for isa in Isa::available() {
            for function in [
                Activation::Relu,
                Activation::Relu6,
                Activation::Sigmoid,
                Activation::HardSigmoid,
                Activation::HardSwish,
                Activation::Silu,
            ] {
                let mut ys = xs.clone();
                activate_all(isa, function, &mut ys);
                for (&x, &y) in xs.iter().zip(&ys).filter(|(x, _)| x.is_finite()) {
                    let (y, want) = (f64::from(y), exact(function, f64::from(x)));
                    // x/6 + 1/2 is rounded where it is large, and small where the other branch begins.
                    let least =
                        if matches!(function, Activation::HardSigmoid | Activation::HardSwish) { 1.0 } else { 1e-28 };
                    assert!((y - want).abs() <= 5e-7 * want.abs().max(least), "{function:?}({x}) = {y}, not {want}");
                }
                let mut nan = [f32::NAN; 19];
                activate_all(isa, function, &mut nan);
                assert!(nan.iter().all(|y| y.is_nan()), "{function:?} on {isa:?}");
            }
            let mut ends = [f32::INFINITY, f32::NEG_INFINITY];
            activate_all(isa, Activation::Sigmoid, &mut ends);
            assert!(ends[0] == 1.0 && ends[1] < 1e-37, "{ends:?}");
            let mut ends = [f32::INFINITY, f32::NEG_INFINITY, f32::MIN];
            activate_all(isa, Activation::Silu, &mut ends);
            assert!(ends[0] == f32::INFINITY && ends[1..].iter().all(|y| y.abs() < 1e-35), "{ends:?}");
        }
    }
}
