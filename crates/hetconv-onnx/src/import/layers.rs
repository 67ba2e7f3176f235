//! Nodes with weights or windows: convolutions, linear layers, batch-norms and pooling.

use hetconv_core::{Conv2dGeometry, ConvKind};
use hetconv_graph::{Op, Shape, ValueId};

use super::Importer;
use super::attributes::Attributes;
use super::constant::axis;
use super::value::{Constant, Padded, Read, Refusal, Value};
use crate::prepare::node_name;
use crate::proto::NodeProto;

impl<'a> Importer<'a> {
    pub(super) fn conv(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let (of, pads) = self.padded_operand(node, |_, padded| padded.fill == 0.0)?;
        let weight = self.constant_operand(node, 1, "weight")?;
        let bias = self.optional_constant(node, 2, "bias")?;
        let [channels, ..] = self.network.image(of)?;
        let groups = attributes.groups();
        let [filters, of_group, kernel_height, kernel_width] = weight.dims[..] else {
            return Err(Refusal::because(format!("its weight has the shape {:?}, not [N, M, kh, kw]", weight.dims)));
        };
        if groups == 0 || of_group.checked_mul(groups) != Some(channels) {
            let asked = format!("{groups} groups of {of_group} channels");
            return Err(Refusal::because(format!("its weight is for {asked}, but its input has {channels} channels")));
        }
        let geometry = self.window(of, pads, [kernel_height, kernel_width], attributes)?;
        self.network.spend(weight.len())?;
        let weights = weight.floats()?.to_vec();
        let kind = if groups == 1 { ConvKind::Standard } else { ConvKind::Grouped(groups) };
        let op = Op::Conv2d { in_channels: channels, out_channels: filters, geometry, kind, bias: bias.is_some() };
        let bias = bias.map(|bias| per_channel(&bias, filters, "bias")).transpose()?;
        let id = self.network.push_own(node_name(node), op, &[of])?;
        self.network.set_weight(id, "weight", &[filters, of_group, kernel_height, kernel_width], weights);
        if let Some(bias) = bias {
            self.network.set_weight(id, "bias", &[filters], bias);
        }
        Ok(Value::Network(id))
    }

    pub(super) fn batch_norm(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        // Before the attribute came, a node was in training mode that gave more than one result.
        let several = || node.output.iter().skip(1).any(|output| !output.is_empty());
        if attributes.int("training_mode", 0) != 0 || (self.opset < 14 && several()) {
            return Err(Refusal::because("is in training mode"));
        }
        let of = self.network_operand(node, 0)?;
        let channels = self.network.shape(of).channels();
        self.network.spend(channels.saturating_mul(4))?;
        let suffixes = ["weight", "bias", "running_mean", "running_var"];
        let mut parameters = Vec::new();
        for (index, suffix) in suffixes.into_iter().enumerate() {
            parameters.push(per_channel(&*self.constant_operand(node, index + 1, suffix)?, channels, suffix)?);
        }
        let epsilon = match attributes.float("epsilon", 1e-5) {
            // The graph asks for more; the smallest of all floats changes nothing.
            0.0 => f32::MIN_POSITIVE,
            epsilon if epsilon > 0.0 && epsilon.is_finite() => epsilon,
            epsilon => return Err(Refusal::because(format!("its epsilon is {epsilon}"))),
        };
        let id = self.network.push(node_name(node), Op::BatchNorm { channels, epsilon }, &[of])?;
        for (suffix, data) in suffixes.into_iter().zip(parameters) {
            self.network.set_weight(id, suffix, &[channels], data);
        }
        Ok(Value::Network(id))
    }

    pub(super) fn gemm(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        if attributes.int("transA", 0) != 0 {
            return Err(Refusal::because("transposes its input"));
        }
        let weight = self.constant_operand(node, 1, "weight")?;
        let bias = self.optional_constant(node, 2, "bias")?;
        let (alpha, beta) = (attributes.float("alpha", 1.0), attributes.float("beta", 1.0));
        let by_output = attributes.int("transB", 0) != 0;
        let of = self.network_operand(node, 0)?;
        let id = self.linear(node, of, &weight, by_output, alpha)?;
        if let Some(bias) = bias {
            let outputs = self.network.shape(id).channels();
            let mut bias = broadcast_channels(&bias, outputs, 2)?;
            bias.iter_mut().for_each(|value| *value *= beta);
            self.add_bias(id, bias);
        }
        Ok(Value::Network(id))
    }

    pub(super) fn mat_mul(&mut self, node: &'a NodeProto) -> Read<Value> {
        let weight = self.constant_operand(node, 1, "second operand")?;
        let of = self.network_operand(node, 0)?;
        Ok(Value::Network(self.linear(node, of, &weight, false, 1.0)?))
    }

    /// A linear layer without bias; the weight is `[out, in]` if `by_output`, else `[in, out]`.
    fn linear(
        &mut self,
        node: &'a NodeProto,
        of: ValueId,
        weight: &Constant,
        by_output: bool,
        alpha: f32,
    ) -> Read<ValueId> {
        let Shape::Features(in_features) = self.network.shape(of) else {
            return Err(Refusal::because("takes features, but gets an image"));
        };
        let [rows, columns] = weight.dims[..] else {
            return Err(Refusal::because(format!("its weight has the shape {:?}, not a matrix", weight.dims)));
        };
        let (out_features, inputs) = if by_output { (rows, columns) } else { (columns, rows) };
        if inputs != in_features {
            return Err(Refusal::because(format!(
                "its weight is for {inputs} features, but its input has {in_features}"
            )));
        }
        self.network.spend(weight.len())?;
        let data = weight.floats()?;
        let at = |out: usize, input: usize| if by_output { out * columns + input } else { input * columns + out };
        let indices = (0..out_features).flat_map(|out| (0..in_features).map(move |input| at(out, input)));
        let data: Vec<f32> = indices.map(|index| data[index] * alpha).collect();
        let id = self.network.push(node_name(node), Op::Linear { in_features, out_features, bias: false }, &[of])?;
        self.network.set_weight(id, "weight", &[out_features, in_features], data);
        Ok(id)
    }

    /// Adds one number per channel to the result of a convolution or linear layer without bias.
    pub(super) fn add_bias(&mut self, id: ValueId, data: Vec<f32>) {
        if let Op::Conv2d { bias, .. } | Op::Linear { bias, .. } = &mut self.network.graph.nodes[id].op {
            *bias = true;
        }
        self.network.set_weight(id, "bias", &[data.len()], data);
    }

    pub(super) fn max_pool(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        if node.output.get(1).is_some_and(|indices| !indices.is_empty()) {
            return Err(Refusal::because("gives indices"));
        }
        let (of, pads) = self.pooled_operand(node, attributes, |importer, padded, _| {
            // Padding never wins in this graph's pooling, nor do zeros around an image without negative numbers.
            padded.fill <= f32::MIN || padded.fill == 0.0 && importer.is_non_negative(padded.of, &mut 100)
        })?;
        let geometry = self.pool_geometry(of, pads, attributes)?;
        Ok(Value::Network(self.network.push(node_name(node), Op::MaxPool { geometry }, &[of])?))
    }

    pub(super) fn average_pool(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let counts = attributes.int("count_include_pad", 0) != 0;
        // All of a window's padding counts or none, and what is padded before does.
        let (of, pads) = self.pooled_operand(node, attributes, |_, padded, geometry| {
            let has_own = geometry.padding.map(|pad| pad as i64) != padded.pads;
            padded.fill == 0.0 && (counts || !has_own)
        })?;
        let [_, height, width] = self.network.image(of)?;
        let [kernel, strides] = [attributes.sizes("kernel_shape", 0)?, attributes.sizes("strides", 1)?];
        let geometry = self.pool_geometry(of, pads, attributes)?;
        if counts && geometry != self.window(of, pads, kernel, attributes)? {
            return Err(Refusal::because("counts its padding, but not what ceil_mode adds"));
        }
        let count_padding = counts || pads != [0; 4];
        let unpadded = geometry.padding == [0; 4] && geometry.dilation == [1, 1];
        if unpadded && kernel == [1, 1] && strides == [1, 1] {
            return Ok(Value::Network(of));
        }
        let op = if unpadded && kernel == [height, width] {
            Op::GlobalAvgPool
        } else {
            Op::AvgPool { geometry, count_padding }
        };
        Ok(Value::Network(self.network.push(node_name(node), op, &[of])?))
    }

    pub(super) fn global_max_pool(&mut self, node: &'a NodeProto) -> Read<Value> {
        let of = self.network_operand(node, 0)?;
        let [_, height, width] = self.network.image(of)?;
        let mut geometry = Conv2dGeometry::same(1, 1);
        geometry.kernel = [height, width];
        Ok(Value::Network(self.network.push(node_name(node), Op::MaxPool { geometry }, &[of])?))
    }

    /// A mean over all pixels.
    pub(super) fn reduce_mean(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let axes = match self.optional_constant(node, 1, "axes")? {
            Some(axes) => axes.known_list()?,
            None => attributes.ints("axes").map(<[i64]>::to_vec).unwrap_or_default(),
        };
        let of = self.network_operand(node, 0)?;
        self.network.image(of)?;
        let mut over: Vec<usize> = axes.iter().map(|&at| axis(at, 4)).collect::<Read<_>>()?;
        over.sort_unstable();
        if over != [2, 3] {
            return Err(Refusal::because(format!("averages over the axes {axes:?}, not over height and width")));
        }
        let name = node_name(node);
        if attributes.int("keepdims", 1) != 0 {
            return Ok(Value::Network(self.network.push(name, Op::GlobalAvgPool, &[of])?));
        }
        let mean = self.network.push(&format!("{name}.pool"), Op::GlobalAvgPool, &[of])?;
        Ok(Value::Network(self.network.push(name, Op::Flatten, &[mean])?))
    }

    /// The image that a window is applied to, and what is padded around it if the window takes that up as its own padding.
    fn padded_operand(
        &mut self,
        node: &'a NodeProto,
        takes: impl Fn(&Self, &Padded) -> bool,
    ) -> Read<(ValueId, [i64; 4])> {
        if let Value::Padded(padded) = self.operand(node, 0)?
            && padded.pads.iter().all(|&pad| pad >= 0)
            && takes(self, &padded)
        {
            return Ok((padded.of, padded.pads));
        }
        Ok((self.network_operand(node, 0)?, [0; 4]))
    }

    /// As [`Importer::padded_operand`], of a pooling node: every window still has to see a pixel of the image.
    fn pooled_operand(
        &mut self,
        node: &'a NodeProto,
        attributes: &Attributes<'_>,
        takes: impl Fn(&Self, &Padded, &Conv2dGeometry) -> bool,
    ) -> Read<(ValueId, [i64; 4])> {
        self.padded_operand(node, |importer, padded| {
            importer.pool_geometry(padded.of, padded.pads, attributes).is_ok_and(|geometry| {
                takes(importer, padded, &geometry) && importer.network.admits(Op::MaxPool { geometry }, padded.of)
            })
        })
    }

    /// Whether a value has no negative numbers, as far as so many looks at nodes before it tell.
    fn is_non_negative(&self, value: ValueId, looks: &mut usize) -> bool {
        use hetconv_graph::Activation::{HardSigmoid, Relu, Relu6, Sigmoid};
        match self.network.op(value) {
            Op::Activation { function } => matches!(function, Relu | Relu6 | Sigmoid | HardSigmoid),
            Op::MaxPool { .. } | Op::AvgPool { .. } | Op::GlobalAvgPool | Op::Gather { .. } | Op::Concat => {
                let inputs = &self.network.graph.nodes[value].inputs;
                inputs.iter().all(|&input| {
                    *looks = looks.saturating_sub(1);
                    *looks > 0 && self.is_non_negative(input, looks)
                })
            }
            Op::Softmax => true,
            _ => false,
        }
    }

    /// The window of a node on an image, with what is padded around that.
    fn window(
        &self,
        of: ValueId,
        pads: [i64; 4],
        kernel: [usize; 2],
        attributes: &Attributes<'_>,
    ) -> Read<Conv2dGeometry> {
        let [_, height, width] = self.network.image(of)?;
        let mut geometry = attributes.geometry(kernel, padded_size([height, width], pads)?)?;
        pad_more(&mut geometry, pads)?;
        Ok(geometry)
    }

    /// As [`Importer::window`], of a pooling node; rounding up is padding at the bottom and right.
    fn pool_geometry(&self, of: ValueId, pads: [i64; 4], attributes: &Attributes<'_>) -> Read<Conv2dGeometry> {
        let [_, height, width] = self.network.image(of)?;
        let size = padded_size([height, width], pads)?;
        let mut geometry = attributes.geometry(attributes.sizes("kernel_shape", 0)?, size)?;
        if attributes.int("ceil_mode", 0) != 0 {
            for (axis, size) in size.into_iter().enumerate() {
                let stride = geometry.stride[axis];
                let window = (geometry.kernel[axis] - 1) * geometry.dilation[axis] + 1;
                let padded = size.saturating_add(geometry.padding[axis] + geometry.padding[axis + 2]);
                let Some(room) = padded.checked_sub(window) else { continue };
                // The last window must begin in the image or before it.
                let last = room.div_ceil(stride) * stride;
                let outside = last >= size.saturating_add(geometry.padding[axis]);
                let last = if outside { room / stride * stride } else { last };
                geometry.padding[axis + 2] += (last + window).saturating_sub(padded);
            }
        }
        pad_more(&mut geometry, pads)?;
        Ok(geometry)
    }
}

/// Height and width of a padded or cropped image.
pub(super) fn padded_size(size: [usize; 2], pads: [i64; 4]) -> Read<[usize; 2]> {
    let mut padded = [0; 2];
    for axis in 0..2 {
        let sum = (size[axis] as i64).checked_add(pads[axis]).and_then(|sum| sum.checked_add(pads[axis + 2]));
        let sum = sum.and_then(|sum| usize::try_from(sum).ok()).filter(|&side| side <= Shape::MAX_SIDE);
        padded[axis] = sum.ok_or_else(|| Refusal::because("pads or crops beyond what an image can be"))?;
    }
    Ok(padded)
}

/// The window of an image that is padded before.
fn pad_more(geometry: &mut Conv2dGeometry, pads: [i64; 4]) -> Read<()> {
    for (padding, more) in geometry.padding.iter_mut().zip(pads) {
        let sum = (*padding as i64).checked_add(more).and_then(|sum| usize::try_from(sum).ok());
        *padding = sum.ok_or_else(|| Refusal::because("pads by a number too large"))?;
    }
    Ok(())
}

/// A tensor of one number per channel.
fn per_channel(constant: &Constant, channels: usize, what: &str) -> Read<Vec<f32>> {
    let data = constant.floats()?;
    if data.len() == channels && constant.dims.len() == 1 {
        return Ok(data.to_vec());
    }
    Err(Refusal::because(format!("its {what} has the shape {:?}, but there are {channels} channels", constant.dims)))
}

/// One number per channel from a constant that broadcasts to them; `rank` is the value's, batch included.
pub(super) fn broadcast_channels(constant: &Constant, channels: usize, rank: usize) -> Read<Vec<f32>> {
    let data = constant.floats()?;
    let refused = || Refusal::because(format!("a constant of shape {:?} for {channels} channels", constant.dims));
    let missing = rank.checked_sub(constant.dims.len()).ok_or_else(refused)?;
    let other_axes = constant.dims.iter().enumerate().filter(|(axis, _)| axis + missing != 1);
    if data.is_empty() || other_axes.into_iter().any(|(_, &dim)| dim != 1) {
        return Err(refused());
    }
    match data {
        [one] => Ok(vec![*one; channels]),
        data if data.len() == channels => Ok(data.to_vec()),
        _ => Err(refused()),
    }
}
