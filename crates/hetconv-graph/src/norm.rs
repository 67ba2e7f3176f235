//! Batch-norm with its running statistics: a factor and a summand for every channel, which a layer before it can take in.

use crate::Weights;

/// scale·x + shift of every channel, in double precision.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelAffine {
    /// The factors.
    pub scale: Vec<f64>,
    /// The summands.
    pub shift: Vec<f64>,
}

impl ChannelAffine {
    /// What the batch-norm of this name does: γ·(x − mean)/√(variance + ε) + β. `None` if the weights lack one of its four
    /// tensors, or they differ in length.
    ///
    /// # Examples
    /// ```
    /// use hetconv_graph::{ChannelAffine, WeightTensor, Weights};
    ///
    /// let mut weights = Weights::new();
    /// for (suffix, value) in [("weight", 2.0), ("bias", 1.0), ("running_mean", 3.0), ("running_var", 9.0)] {
    ///     weights.insert(format!("norm.{suffix}"), WeightTensor { shape: vec![1], data: vec![value] });
    /// }
    /// let affine = ChannelAffine::of_batch_norm(&weights, "norm", 7.0).expect("all four");
    /// assert_eq!((affine.scale[0], affine.shift[0]), (0.5, -0.5));
    /// ```
    pub fn of_batch_norm(weights: &Weights, name: &str, epsilon: f32) -> Option<Self> {
        let tensor = |suffix: &str| Some(weights.get(&format!("{name}.{suffix}"))?.data.as_slice());
        let [gamma, beta] = [tensor("weight")?, tensor("bias")?];
        let [mean, variance] = [tensor("running_mean")?, tensor("running_var")?];
        if [beta.len(), mean.len(), variance.len()] != [gamma.len(); 3] {
            return None;
        }
        let deviation = |&variance: &f32| (f64::from(variance) + f64::from(epsilon)).sqrt();
        let scale: Vec<f64> =
            gamma.iter().zip(variance).map(|(&gamma, var)| f64::from(gamma) / deviation(var)).collect();
        let shift = |channel: usize| f64::from(beta[channel]) - f64::from(mean[channel]) * scale[channel];
        Some(Self { shift: (0..scale.len()).map(shift).collect(), scale })
    }

    /// The first channel whose variance and ε are not positive together, so that they have no root, and its variance.
    pub fn without_root(variances: &[f32], epsilon: f32) -> Option<(usize, f32)> {
        let is_positive = |variance: f32| f64::from(variance) + f64::from(epsilon) > 0.0;
        variances.iter().copied().enumerate().find(|&(_, variance)| !is_positive(variance))
    }

    /// Makes a layer's weights those of the layer and this together; a filter's stand one behind the other. Zeros stay +0,
    /// which the spare slots of a ring have to be.
    ///
    /// # Panics
    /// If there are not as many filters as channels.
    pub fn scale_filters(&self, weights: &mut [f32]) {
        let filters = self.scale.len();
        assert!(filters > 0 && weights.len().is_multiple_of(filters), "{} weights of {filters} filters", weights.len());
        let of_filter = weights.len() / filters;
        if of_filter == 0 {
            return;
        }
        for (filter, &scale) in weights.chunks_exact_mut(of_filter).zip(&self.scale) {
            for weight in filter {
                *weight = if *weight == 0.0 { 0.0 } else { (f64::from(*weight) * scale) as f32 };
            }
        }
    }

    /// The biases of a layer and this together; without any, those of the layer are zeros.
    ///
    /// # Panics
    /// If there are not as many biases as channels.
    pub fn with_bias(&self, bias: Option<&[f32]>) -> Vec<f32> {
        assert!(bias.is_none_or(|bias| bias.len() == self.scale.len()), "a bias for every channel");
        let folded = |(channel, (scale, shift)): (usize, (&f64, &f64))| {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[channel]));
            (bias * scale + shift) as f32
        };
        self.scale.iter().zip(&self.shift).enumerate().map(folded).collect()
    }
}
