//! A HetConv layer in each style.

use hetconv_core::{ChannelOrder, Conv2dGeometry, HetPattern};
use hetconv_graph::ValueId;

use super::{Exporter, Style};
use crate::decompose::{Layer, conv_attributes};
use crate::layer::{GroupedPart, dense_kernels, grouped_parts, stored_pattern};
use crate::proto::attribute_proto::AttributeType;
use crate::proto::{FunctionProto, OperatorSetIdProto};
use crate::writer::{ints, node, reference};

/// The domain of the function.
pub(crate) const DOMAIN: &str = "hetconv";
/// The function.
const FUNCTION: &str = "HetConv";

impl Exporter<'_> {
    pub(super) fn het_conv(&mut self, id: ValueId, input: &str, geometry: &Conv2dGeometry, pattern: &HetPattern) {
        let name = self.graph.nodes[id].name.clone();
        let weight = |suffix: &str| self.weights.get(&format!("{name}.{suffix}")).map_or(&[][..], |t| &t.data);
        let orders = [self.plan.input_order(id, 0), self.plan.order(id)];
        let kernels = dense_kernels(pattern, geometry, [weight("center"), weight("ring")], orders);
        let stored = stored_pattern(pattern, orders);
        let bias = self.bias(id);
        // Where classes matter, the plan has filters stored class by class.
        let filters = ChannelOrder::natural(stored.out_channels());
        let layer = Layer { name: &name, input, geometry, kernels: &kernels, bias: bias.as_deref(), filters: &filters };
        // One class is a standard convolution, and a 1×1 kernel has nothing but its centre.
        let plain = self.style == Style::Dense || stored.classes() == 1 || geometry.taps() == 1;
        let parts = if plain { None } else { grouped_parts(&stored) };
        match parts.as_deref() {
            Some([part]) if self.style == Style::Function && layer.is_two_convolutions(part) => {
                self.function_call(&layer, part);
            }
            Some(parts) => layer.write_sum(&mut self.writer, parts),
            None => {
                layer.write_dense(&mut self.writer);
                self.dense_layers.extend((!plain).then(|| name.clone()));
            }
        }
        self.layers.insert(name, stored);
    }

    /// One node of the domain's own function, which is defined when it is first called.
    fn function_call(&mut self, layer: &Layer<'_>, part: &GroupedPart) {
        let ring = layer.write_ring_weight(&mut self.writer, &format!("{}.ring", layer.name), part);
        let center = layer.write_center_weight(&mut self.writer);
        let inputs: Vec<&str> = [layer.input, &ring, &center].into_iter().chain(layer.bias).collect();
        let mut attributes = conv_attributes(layer.geometry, part.groups);
        attributes.push(ints("center_pads", &layer.pointwise().padding));
        let mut call = node(layer.name, FUNCTION, &inputs, attributes);
        call.domain = Some(DOMAIN.to_owned());
        self.writer.nodes.push(call);
        if self.functions.is_empty() {
            self.functions.push(function(self.opset));
        }
    }
}

/// `HetConv(X, ring, center, bias)`: the two convolutions and their sum.
fn function(opset: i64) -> FunctionProto {
    let attributes = ["kernel_shape", "strides", "pads", "dilations", "group", "center_pads"];
    let ring = attributes[..5]
        .iter()
        .map(|&name| reference(name, name, if name == "group" { AttributeType::Int } else { AttributeType::Ints }));
    let center =
        [reference("strides", "strides", AttributeType::Ints), reference("pads", "center_pads", AttributeType::Ints)];
    FunctionProto {
        name: Some(FUNCTION.to_owned()),
        domain: Some(DOMAIN.to_owned()),
        doc_string: Some(
            "Heterogeneous convolution (arXiv 1903.04120): `ring` [N, M/P, K, K] has the off-centre taps of P classes, \
             `center` [N, M, 1, 1] the centre taps of all channels."
                .to_owned(),
        ),
        input: ["X", "ring", "center", "bias"].map(str::to_owned).to_vec(),
        output: vec!["Y".to_owned()],
        attribute: attributes.map(str::to_owned).to_vec(),
        node: vec![
            node("spatial", "Conv", &["X", "ring"], ring.collect()),
            node("pointwise", "Conv", &["X", "center", "bias"], center.to_vec()),
            node("Y", "Add", &["spatial", "pointwise"], vec![]),
        ],
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(opset) }],
        ..FunctionProto::default()
    }
}
