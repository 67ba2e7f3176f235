//! A HetConv layer in each style.

use hetconv_core::{Conv2dGeometry, HetPattern};
use hetconv_graph::ValueId;

use super::{Exporter, Style, conv_attributes};
use crate::layer::{GroupedPart, dense_kernels, grouped_parts, stored_pattern};
use crate::proto::attribute_proto::AttributeType;
use crate::proto::{FunctionProto, OperatorSetIdProto};
use crate::writer::{Slice, int, ints, node, reference};

/// The domain of the function.
pub(crate) const DOMAIN: &str = "hetconv";
/// The function.
pub(crate) const FUNCTION: &str = "HetConv";

impl Exporter<'_> {
    pub(super) fn het_conv(&mut self, id: ValueId, input: &str, geometry: &Conv2dGeometry, pattern: &HetPattern) {
        let name = self.graph.nodes[id].name.clone();
        let weight = |suffix: &str| self.weights.get(&format!("{name}.{suffix}")).map_or(&[][..], |t| &t.data);
        let orders = [self.plan.input_order(id, 0), self.plan.order(id)];
        let kernels = dense_kernels(pattern, geometry, [weight("center"), weight("ring")], orders);
        let stored = stored_pattern(pattern, orders);
        let bias = self.bias(id);
        let layer = Layer { name: &name, input, geometry, kernels: &kernels, bias: bias.as_deref() };
        // One class is a standard convolution, and a 1×1 kernel has nothing but its centre.
        let plain = self.options.style == Style::Dense || stored.classes() == 1 || geometry.taps() == 1;
        let parts = if plain { None } else { grouped_parts(&stored) };
        let [m, n] = [stored.in_channels(), stored.out_channels()];
        match parts.as_deref() {
            Some([part]) if self.options.style == Style::Function && layer.fits_the_function(part, m) => {
                self.function_call(&layer, part.groups, [m, n]);
            }
            Some(parts) => self.two_convolutions(&layer, parts, [m, n]),
            None => self.dense_convolution(&layer, [m, n]),
        }
        self.layers.insert(name, stored);
    }

    fn dense_convolution(&mut self, layer: &Layer<'_>, [m, n]: [usize; 2]) {
        let Layer { name, geometry, kernels, .. } = layer;
        let [height, width] = geometry.kernel;
        let weight = self.writer.floats(&format!("{name}.weight"), &[n, m, height, width], kernels);
        let inputs: Vec<&str> = [layer.input, &weight].into_iter().chain(layer.bias).collect();
        self.writer.node(name, "Conv", &inputs, conv_attributes(geometry, 1));
    }

    /// `NAME.ring` + `NAME.center`.
    fn two_convolutions(&mut self, layer: &Layer<'_>, parts: &[GroupedPart], sizes: [usize; 2]) {
        let name = layer.name;
        let several = parts.len() > 1;
        let mut rings = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let part_name = if several { format!("{name}.ring{index}") } else { format!("{name}.ring") };
            let channels = self.channels(&format!("{part_name}.input"), layer.input, &part.channels, sizes[0]);
            let weight = self.ring_weight(&part_name, layer, part, sizes[0]);
            let attributes = conv_attributes(layer.geometry, part.groups);
            rings.push(self.writer.helper(&part_name, "Conv", &[&channels, &weight], attributes));
        }
        if several {
            let rings: Vec<&str> = rings.iter().map(String::as_str).collect();
            let ring = self.writer.helper(&format!("{name}.ring"), "Concat", &rings, vec![int("axis", 1)]);
            return self.add_center(layer, &ring, sizes);
        }
        self.add_center(layer, &rings[0], sizes);
    }

    fn add_center(&mut self, layer: &Layer<'_>, ring: &str, sizes: [usize; 2]) {
        let name = layer.name;
        let weight = self.center_weight(layer, sizes);
        let margin = layer.margin();
        let mut input = layer.input.to_owned();
        if margin.iter().any(|&margin| margin < 0) {
            // Where the window's centre starts inside the image, the 1×1 convolution reads a part of it.
            let inside = |side: usize| margin[side].min(0);
            let end = |axis: usize| if inside(axis + 2) < 0 { inside(axis + 2) } else { i64::MAX };
            let crop = |axis: usize| Slice { axis: axis as i64 + 2, start: -inside(axis), end: end(axis), step: 1 };
            input = self.writer.slice(&format!("{name}.cropped"), &input, &[crop(0), crop(1)]);
        }
        let inputs: Vec<&str> = [input.as_str(), &weight].into_iter().chain(layer.bias).collect();
        let attributes = conv_attributes(&layer.pointwise(), 1);
        let center = self.writer.helper(&format!("{name}.center"), "Conv", &inputs, attributes);
        self.writer.node(name, "Add", &[ring, &center], vec![]);
    }

    /// One node of the domain's own function, which is defined when it is first called.
    fn function_call(&mut self, layer: &Layer<'_>, groups: usize, sizes: [usize; 2]) {
        let part = GroupedPart { channels: (0..sizes[0]).collect(), filters: 0..sizes[1], groups };
        let ring = self.ring_weight(&format!("{}.ring", layer.name), layer, &part, sizes[0]);
        let center = self.center_weight(layer, sizes);
        let inputs: Vec<&str> = [layer.input, &ring, &center].into_iter().chain(layer.bias).collect();
        let mut attributes = conv_attributes(layer.geometry, groups);
        attributes.push(ints("center_pads", &layer.pointwise().padding));
        let mut call = node(layer.name, FUNCTION, &inputs, attributes);
        call.domain = Some(DOMAIN.to_owned());
        self.writer.nodes.push(call);
        if self.functions.is_empty() {
            self.functions.push(function(self.options.opset));
        }
    }

    /// Channels of a value by stored number: the value itself, a slice or a gather.
    fn channels(&mut self, wanted: &str, input: &str, channels: &[usize], all: usize) -> String {
        let contiguous = channels.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        match channels {
            [first, .., last] | [first @ last] if contiguous => {
                if channels.len() == all {
                    return input.to_owned();
                }
                let slice = Slice { axis: 1, start: *first as i64, end: *last as i64 + 1, step: 1 };
                self.writer.slice(wanted, input, &[slice])
            }
            _ => {
                let channels: Vec<u32> = channels.iter().map(|&channel| channel as u32).collect();
                self.writer.gather(wanted, input, &channels)
            }
        }
    }

    /// `[N, M/groups, kh, kw]`, the off-centre taps of some classes; the centre taps are 0.
    fn ring_weight(&mut self, name: &str, layer: &Layer<'_>, part: &GroupedPart, m: usize) -> String {
        let (taps, middle) = (layer.geometry.taps(), layer.geometry.center_tap());
        let (filters, channels) = (part.filters.len() / part.groups, part.channels.len() / part.groups);
        let mut data = Vec::with_capacity(part.filters.len() * channels * taps);
        for (index, filter) in part.filters.clone().enumerate() {
            for &channel in &part.channels[index / filters * channels..][..channels] {
                let kernel = &layer.kernels[(filter * m + channel) * taps..][..taps];
                data.extend(kernel.iter().enumerate().map(|(t, &tap)| if Some(t) == middle { 0.0 } else { tap }));
            }
        }
        let [height, width] = layer.geometry.kernel;
        self.writer.floats(&format!("{name}.weight"), &[part.filters.len(), channels, height, width], &data)
    }

    /// `[N, M, 1, 1]`, the centre taps.
    fn center_weight(&mut self, layer: &Layer<'_>, [m, n]: [usize; 2]) -> String {
        let middle = layer.geometry.center_tap().unwrap_or(0);
        let data: Vec<f32> = layer.kernels.iter().skip(middle).step_by(layer.geometry.taps()).copied().collect();
        self.writer.floats(&format!("{}.center.weight", layer.name), &[n, m, 1, 1], &data)
    }
}

/// One HetConv layer to be written.
struct Layer<'a> {
    name: &'a str,
    input: &'a str,
    geometry: &'a Conv2dGeometry,
    /// `[N, M, taps]` in stored order.
    kernels: &'a [f32],
    bias: Option<&'a str>,
}

impl Layer<'_> {
    /// How far outside the image the centre tap of the outermost windows lies, in pixels at the top, left, bottom and
    /// right; inside if negative.
    fn margin(&self) -> [i64; 4] {
        let Conv2dGeometry { kernel, padding, dilation, .. } = self.geometry;
        [0, 1, 2, 3].map(|side| padding[side] as i64 - (kernel[side % 2] / 2 * dilation[side % 2]) as i64)
    }

    /// The geometry of the 1×1 convolution that has the centre taps.
    fn pointwise(&self) -> Conv2dGeometry {
        let padding = self.margin().map(|margin| margin.max(0) as usize);
        Conv2dGeometry { kernel: [1, 1], stride: self.geometry.stride, padding, dilation: [1, 1] }
    }

    /// Whether one grouped and one 1×1 convolution over the same value are all that is needed.
    fn fits_the_function(&self, part: &GroupedPart, channels: usize) -> bool {
        part.channels.iter().copied().eq(0..channels) && self.margin().iter().all(|&margin| margin >= 0)
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
