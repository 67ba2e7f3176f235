//! Weights with the batch-norm behind them folded in, exactly but for one rounding.

use std::borrow::Cow;

use hetconv_graph::{ChannelAffine, Graph, Op, ValueId, Weights};

use crate::CompileError;

/// A graph's weights, whose presence, shapes and values were checked. A layer's are taken out of weights that are owned.
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

    /// A tensor's values; none of one that is not there.
    fn values(&self, node: ValueId, suffix: &str) -> &[f32] {
        self.weights.get(&format!("{}.{suffix}", self.name(node))).map_or(&[], |tensor| &tensor.data)
    }

    /// A tensor's values to be changed, if the graph has it.
    fn take(&mut self, node: ValueId, suffix: &str) -> Option<Vec<f32>> {
        let name = format!("{}.{suffix}", self.name(node));
        let tensor = match &mut self.weights {
            Cow::Owned(weights) => weights.remove(&name),
            Cow::Borrowed(weights) => weights.get(&name).cloned(),
        };
        tensor.map(|tensor| tensor.data)
    }

    /// Whether what a batch-norm has made of a tensor is still finite.
    pub fn finite(&self, node: ValueId, suffix: &str, data: &[f32]) -> Result<(), CompileError> {
        if data.iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        let node = self.name(node).to_owned();
        Err(CompileError::Overflow { tensor: format!("{node}.{suffix}"), node })
    }

    /// What a batch-norm does to each channel.
    pub fn affine(&self, node: ValueId) -> ChannelAffine {
        let epsilon = match self.graph.nodes[node].op {
            Op::BatchNorm { epsilon, .. } => epsilon,
            _ => 0.0,
        };
        let affine = ChannelAffine::of_batch_norm(&self.weights, self.name(node), epsilon);
        affine.expect("the weights were checked to be the graph's")
    }

    /// A layer's weights, with a batch-norm's factors, and its bias, with the batch-norm's summands.
    pub fn layer(&mut self, node: ValueId, norm: Option<ValueId>) -> Result<Folded, CompileError> {
        let affine = norm.map(|norm| self.affine(norm));
        let filters = match self.graph.nodes[node].op {
            Op::Conv2d { out_channels, .. } => out_channels,
            Op::Linear { out_features, .. } => out_features,
            _ => unreachable!("a layer with weights"),
        };
        let mut tensors = Vec::new();
        for suffix in ["weight", "center", "ring"] {
            let Some(mut data) = self.take(node, suffix) else { continue };
            if let Some(affine) = &affine {
                affine.scale_filters(&mut data);
                self.finite(node, suffix, &data)?;
            }
            tensors.push(data);
        }
        let bias = Some(self.values(node, "bias")).filter(|bias| !bias.is_empty());
        let bias = match (&affine, bias) {
            (Some(affine), bias) => affine.with_bias(bias),
            (None, Some(bias)) => bias.to_vec(),
            (None, None) => vec![0.0; filters],
        };
        self.finite(node, "bias", &bias)?;
        Ok(Folded { tensors, bias })
    }
}
