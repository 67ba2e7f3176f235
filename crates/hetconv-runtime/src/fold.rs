//! Weights with the batch-norm behind them folded in, exactly but for one rounding.

use std::borrow::Cow;

use hetconv_graph::{Graph, Op, ValueId, WeightTensor, Weights};

use crate::CompileError;

/// Factor and summand of every channel.
pub(crate) struct Affine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

/// A graph's weights, whose presence and shapes were checked. A layer's are taken out of weights that are owned.
pub(crate) struct Source<'a> {
    pub graph: &'a Graph,
    pub weights: Cow<'a, Weights>,
}

/// Weights and biases of one layer.
pub(crate) struct Folded {
    /// `weight` alone, or `center` and `ring`.
    pub tensors: Vec<Vec<f32>>,
    pub bias: Vec<f32>,
}

impl<'a> Source<'a> {
    fn name(&self, node: ValueId) -> &'a str {
        &self.graph.nodes[node].name
    }

    /// A tensor's values, all of them finite; none of one that is not there.
    fn values(&self, node: ValueId, suffix: &str) -> Result<&[f32], CompileError> {
        let tensor = self.weights.get(&format!("{}.{suffix}", self.name(node)));
        let data = tensor.map_or(&[][..], |tensor| &tensor.data);
        self.finite(node, suffix, data)?;
        Ok(data)
    }

    /// A tensor's values to be changed, all of them finite, if the graph has it.
    fn take(&mut self, node: ValueId, suffix: &str) -> Result<Option<Vec<f32>>, CompileError> {
        let name = format!("{}.{suffix}", self.name(node));
        let tensor = match &mut self.weights {
            Cow::Owned(weights) => weights.remove(&name),
            Cow::Borrowed(weights) => weights.get(&name).cloned(),
        };
        let Some(WeightTensor { data, .. }) = tensor else { return Ok(None) };
        self.finite(node, suffix, &data)?;
        Ok(Some(data))
    }

    pub fn finite(&self, node: ValueId, suffix: &str, data: &[f32]) -> Result<(), CompileError> {
        match data.iter().find(|value| !value.is_finite()) {
            Some(&value) => Err(self.not_finite(node, suffix, f64::from(value))),
            None => Ok(()),
        }
    }

    fn not_finite(&self, node: ValueId, suffix: &str, value: f64) -> CompileError {
        let node = self.name(node).to_owned();
        CompileError::NotFinite { tensor: format!("{node}.{suffix}"), node, value }
    }

    /// What a batch-norm does to each channel.
    pub fn affine(&self, node: ValueId) -> Result<Affine, CompileError> {
        let epsilon = match self.graph.nodes[node].op {
            Op::BatchNorm { epsilon, .. } => f64::from(epsilon),
            _ => 0.0,
        };
        let [gamma, beta] = [self.values(node, "weight")?, self.values(node, "bias")?];
        let [mean, variance] = [self.values(node, "running_mean")?, self.values(node, "running_var")?];
        let mut affine = Affine { scale: Vec::new(), shift: Vec::new() };
        for (channel, &variance) in variance.iter().enumerate() {
            let squared = f64::from(variance) + epsilon;
            if squared <= 0.0 {
                return Err(CompileError::Variance { node: self.name(node).to_owned(), channel, variance });
            }
            let scale = f64::from(gamma[channel]) / squared.sqrt();
            affine.scale.push(scale);
            affine.shift.push(f64::from(beta[channel]) - f64::from(mean[channel]) * scale);
        }
        Ok(affine)
    }

    /// A layer's weights, with a batch-norm's factors, and its bias, with the batch-norm's summands.
    pub fn layer(&mut self, node: ValueId, norm: Option<ValueId>) -> Result<Folded, CompileError> {
        let affine = norm.map(|norm| self.affine(norm)).transpose()?;
        let filters = match self.graph.nodes[node].op {
            Op::Conv2d { out_channels, .. } => out_channels,
            Op::Linear { out_features, .. } => out_features,
            _ => 0,
        };
        let mut tensors = Vec::new();
        for suffix in ["weight", "center", "ring"] {
            let Some(mut data) = self.take(node, suffix)? else { continue };
            if let Some(affine) = &affine {
                let row = (data.len() / filters.max(1)).max(1);
                for (row, &scale) in data.chunks_exact_mut(row).zip(&affine.scale) {
                    row.iter_mut().for_each(|weight| *weight = (f64::from(*weight) * scale) as f32);
                }
                self.finite(node, suffix, &data)?;
            }
            tensors.push(data);
        }
        let bias = self.values(node, "bias")?;
        let folded = |filter: usize| {
            let bias = bias.get(filter).map_or(0.0, |&bias| f64::from(bias));
            affine.as_ref().map_or(bias, |affine| bias * affine.scale[filter] + affine.shift[filter]) as f32
        };
        let bias: Vec<f32> = (0..filters).map(folded).collect();
        self.finite(node, "bias", &bias)?;
        Ok(Folded { tensors, bias })
    }
}
