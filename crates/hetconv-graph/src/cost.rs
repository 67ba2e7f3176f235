//! What a network costs: multiply-accumulates, parameters, activations and stages, counted from the patterns.

use crate::shape::product;
use crate::weights::node_specs;
use crate::{ConvKind, Fault, Graph, GraphError, Node, Op, Shape};

/// The cost of one layer, for one image. As JSON it is a layer of `hetconv summary`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LayerCost {
    /// The node's name.
    pub name: String,
    /// `conv2d`, `linear` or `batch_norm`.
    pub op: &'static str,
    /// Of a convolution: `standard`, `pointwise`, `grouped`, `depthwise` or `het`.
    pub kind: Option<&'static str>,
    /// Kernel height and width, in taps, of a convolution.
    pub kernel: Option<[usize; 2]>,
    /// M, or the number of input features.
    pub in_channels: usize,
    /// N, or the number of output features.
    pub out_channels: usize,
    /// Output height, in pixels.
    pub out_height: usize,
    /// Output width, in pixels.
    pub out_width: usize,
    /// The paper's P of a HetConv layer.
    pub parts: Option<usize>,
    /// Trainable parameters.
    pub params: u64,
    /// Multiply-accumulates, what the paper calls FLOPs; biases and batch-norm are not counted.
    pub macs: u64,
    /// Output elements of a convolution or linear layer: its activations, and the additions that the paper's totals
    /// count besides MACs.
    #[serde(skip)]
    pub additions: u64,
    /// 1 for a convolution, else 0.
    pub stages: u64,
}

/// The cost of a network, for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The layers that have weights, in the order of the nodes.
    pub layers: Vec<LayerCost>,
    /// Trainable parameters.
    pub params: u64,
    /// Multiply-accumulates of convolutions and linear layers, what the paper calls FLOPs.
    pub macs: u64,
    /// Floating-point operations: 2·MACs.
    pub flops: u64,
    /// Output elements of convolutions and linear layers.
    pub activations: u64,
    /// The most convolutions that have to run one after another: the longest path through the graph, counting
    /// convolutions. A HetConv layer is one convolution, as is the layer it replaces; grouped or depthwise followed by
    /// pointwise are two. A convolution in parallel with others, such as a projection shortcut, adds nothing.
    pub stages: u64,
}

impl Cost {
    /// MACs and one addition per output element of a convolution or linear layer: the paper's way of counting.
    pub fn macs_with_additions(&self) -> u64 {
        self.macs.saturating_add(self.activations)
    }
}

impl Graph {
    /// Counts what the network costs for one image.
    ///
    /// # Errors
    /// The fault [`Graph::validate`] finds, or sizes too large to count.
    pub fn cost(&self) -> Result<Cost, GraphError> {
        self.validate()?;
        let shapes = self.shapes()?;
        let mut cost = Cost { layers: Vec::new(), params: 0, macs: 0, flops: 0, activations: 0, stages: 0 };
        let mut depth = vec![0; self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate() {
            let before = node.inputs.iter().map(|&input| depth[input]).max().unwrap_or(0);
            depth[id] = before + u64::from(matches!(node.op, Op::Conv2d { .. }));
            let too_large = || Fault::TooLarge.at(&node.name);
            if let Some(layer) = layer_cost(node, shapes[id]).map_err(|fault| fault.at(&node.name))? {
                cost.params = cost.params.checked_add(layer.params).ok_or_else(too_large)?;
                cost.macs = cost.macs.checked_add(layer.macs).ok_or_else(too_large)?;
                cost.activations = cost.activations.checked_add(layer.additions).ok_or_else(too_large)?;
                cost.flops = cost.macs.checked_mul(2).ok_or_else(too_large)?;
                cost.layers.push(layer);
            }
        }
        cost.stages = self.outputs.iter().map(|&output| depth[output]).max().unwrap_or(0);
        Ok(cost)
    }
}

/// The cost of a node of a valid graph, if it has weights.
fn layer_cost(node: &Node, output: Shape) -> Result<Option<LayerCost>, Fault> {
    let [out_height, out_width] = output.size();
    let params = node_specs(node).iter().filter(|spec| spec.role.trainable()).map(|spec| spec.weights() as u64).sum();
    let elements = output.elements() as u64;
    let mut layer = LayerCost {
        name: node.name.clone(),
        op: "conv2d",
        kind: None,
        kernel: None,
        in_channels: output.channels(),
        out_channels: output.channels(),
        out_height,
        out_width,
        parts: None,
        params,
        macs: 0,
        additions: elements,
        stages: 0,
    };
    match &node.op {
        Op::Conv2d { in_channels, out_channels, geometry, kind, .. } => {
            let weights = kind.weights(*in_channels, *out_channels, geometry.taps());
            layer.macs = (weights as u64).checked_mul((out_height * out_width) as u64).ok_or(Fault::TooLarge)?;
            layer.kind = Some(kind_name(kind, *in_channels, geometry.taps()));
            layer.kernel = Some(geometry.kernel);
            layer.in_channels = *in_channels;
            layer.stages = 1;
            if let ConvKind::Het(pattern) = kind {
                layer.parts = Some(pattern.classes());
            }
        }
        Op::Linear { in_features, out_features, .. } => {
            layer.op = "linear";
            layer.in_channels = *in_features;
            layer.macs = product(&[*in_features, *out_features])? as u64;
        }
        Op::BatchNorm { .. } => {
            layer.op = "batch_norm";
            layer.additions = 0;
        }
        _ => return Ok(None),
    }
    Ok(Some(layer))
}

fn kind_name(kind: &ConvKind, in_channels: usize, taps: usize) -> &'static str {
    match kind {
        ConvKind::Het(_) => "het",
        kind if kind.reads_one_channel(in_channels) => "depthwise",
        ConvKind::Grouped(groups) if *groups > 1 => "grouped",
        ConvKind::Standard | ConvKind::Grouped(_) if taps == 1 => "pointwise",
        ConvKind::Standard | ConvKind::Grouped(_) => "standard",
    }
}
