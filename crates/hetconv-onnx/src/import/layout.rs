//! Nodes that move numbers and compute none: reshaping, picking channels, padding, concatenation.

use std::rc::Rc;

use hetconv_graph::{Op, Shape, ValueId};

use super::Importer;
use super::attributes::Attributes;
use super::constant::{axis, slice_indices, transposed};
use super::fold::{elements, permutation, resolved, shape_of, squeezed, unsqueezed};
use super::value::{Channels, Int, Padded, Read, Refusal, Value};
use crate::prepare::node_name;
use crate::proto::NodeProto;

impl<'a> Importer<'a> {
    /// The extents of a value, the batch first.
    pub(super) fn shape(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let dims = self.dims(&self.operand(node, 0)?)?;
        let known = dims.iter().map(|&dim| Int::Known(dim as i64));
        let all: Vec<Int> = std::iter::once(Int::Batch).chain(known).collect();
        Ok(Value::Constant(Rc::new(shape_of(&all, attributes)?)))
    }

    pub(super) fn reshape(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let target = self.constant_operand(node, 1, "shape")?;
        let zero_is_meant = attributes.int("allowzero", 0) != 0;
        let dims = self.dims(&self.operand(node, 0)?)?;
        let sizes = target.list()?;
        let [batch, rest @ ..] = sizes else { return Err(Refusal::because("its shape is empty")) };
        let known = |size: &Int| match size {
            Int::Known(size) => Ok(*size),
            Int::Batch => Err(Refusal::because("moves the batch to another axis")),
        };
        let mut rest: Vec<i64> = rest.iter().map(known).collect::<Read<_>>()?;
        if !zero_is_meant {
            // A 0 keeps the extent at its place, and the batch is the first.
            for (at, size) in rest.iter_mut().enumerate().filter(|(_, size)| **size == 0) {
                *size = dims.get(at).map_or(0, |&dim| dim as i64);
            }
        }
        let same_batch = match *batch {
            Int::Batch => true,
            Int::Known(0) => !zero_is_meant,
            Int::Known(-1) => !rest.contains(&-1),
            Int::Known(size) => Some(size) == self.batch,
        };
        if !same_batch {
            let sizes: Vec<String> = sizes.iter().map(Int::to_string).collect();
            return Err(Refusal::because(format!("its shape [{}] changes the batch", sizes.join(", "))));
        }
        let new = resolved(&rest, &dims, true)?;
        self.reshaped(node, new)
    }

    pub(super) fn flatten(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let dims = self.dims(&self.operand(node, 0)?)?;
        match axis(attributes.int("axis", 1), dims.len() + 1)? {
            1 => self.reshaped(node, vec![elements(&dims)?]),
            axis => Err(Refusal::because(format!("flattens before axis {axis}, not behind the batch"))),
        }
    }

    pub(super) fn squeeze(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let axes = match self.optional_constant(node, 1, "axes")? {
            Some(axes) => Some(axes.known_list()?),
            None => attributes.ints("axes").map(<[i64]>::to_vec),
        };
        let axes = axes.ok_or_else(|| Refusal::because("squeezes whatever axis has extent 1, the batch perhaps"))?;
        let dims = [&[1], self.dims(&self.operand(node, 0)?)?.as_slice()].concat();
        for &at in &axes {
            if axis(at, dims.len())? == 0 {
                return Err(Refusal::because("squeezes the batch"));
            }
        }
        let new = squeezed(&dims, Some(&axes))?;
        self.reshaped(node, new[1..].to_vec())
    }

    pub(super) fn unsqueeze(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let axes = match self.optional_constant(node, 1, "axes")? {
            Some(axes) => axes.known_list()?,
            None => attributes.ints("axes").map(<[i64]>::to_vec).unwrap_or_default(),
        };
        let dims = [&[usize::MAX], self.dims(&self.operand(node, 0)?)?.as_slice()].concat();
        let new = unsqueezed(&dims, &axes)?;
        if new[0] != usize::MAX {
            return Err(Refusal::because("puts an axis before the batch"));
        }
        self.reshaped(node, new[1..].to_vec())
    }

    /// The node's operand with other extents behind the batch.
    fn reshaped(&mut self, node: &'a NodeProto, new: Vec<usize>) -> Read<Value> {
        let value = self.operand(node, 0)?;
        let dims = self.dims(&value)?;
        if new == dims {
            return Ok(value);
        }
        let refused = || Refusal::because(format!("reshapes {dims:?} to {new:?}, which no operator here does"));
        if let [_] = new[..] {
            let of = self.network_operand(node, 0)?;
            return Ok(Value::Network(self.network.push(node_name(node), Op::Flatten, &[of])?));
        }
        if let ([features], [channels, 1, 1]) = (&dims[..], &new[..])
            && features == channels
        {
            let of = self.network_operand(node, 0)?;
            return Ok(Value::Network(self.network.as_image(of)?));
        }
        let ([.., height, width], [split @ .., new_height, new_width]) = (&dims[..], &new[..]) else {
            return Err(refused());
        };
        let of_channels = |dims: &[usize]| dims[..dims.len() - 2].iter().product::<usize>();
        if dims.len() < 3 || [height, width] != [new_height, new_width] || of_channels(&dims) != of_channels(&new) {
            return Err(refused());
        }
        let channels = match &value {
            Value::Channels(channels) => {
                self.network.spend(channels.channels.len())?;
                channels.channels.clone()
            }
            _ => {
                let count = of_channels(&dims);
                self.network.spend(count)?;
                (0..count as u32).collect()
            }
        };
        let of = match &value {
            Value::Channels(channels) => channels.of,
            _ => self.network_operand(node, 0)?,
        };
        let channels = Channels { of, dims: split.to_vec(), channels };
        if split.len() == 1 {
            return Ok(Value::Network(self.picked_channels(node_name(node), &channels)?));
        }
        Ok(Value::Channels(Rc::new(channels)))
    }

    pub(super) fn transpose(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let value = self.operand(node, 0)?;
        let rank = self.dims(&value)?.len() + 1;
        let permutation = permutation(attributes, rank)?;
        if permutation.iter().copied().eq(0..rank) {
            return Ok(value);
        }
        let Value::Channels(split) = &value else {
            return Err(Refusal::because(format!("moves axes of an image: {permutation:?}")));
        };
        let [0, axes @ .., height, width] = &permutation[..] else {
            return Err(Refusal::because(format!("moves the batch: {permutation:?}")));
        };
        if [*height, *width] != [rank - 2, rank - 1] {
            return Err(Refusal::because(format!("moves height or width: {permutation:?}")));
        }
        self.network.spend(split.channels.len())?;
        let axes: Vec<usize> = axes.iter().map(|axis| axis - 1).collect();
        let (dims, sources) = transposed(&split.dims, &axes);
        let channels = sources.into_iter().map(|source| split.channels[source]).collect();
        Ok(Value::Channels(Rc::new(Channels { of: split.of, dims, channels })))
    }

    /// Channels of an image, picked; the image itself if they are all there in their places.
    pub(super) fn picked_channels(&mut self, name: &str, channels: &Channels) -> Read<ValueId> {
        let [_] = channels.dims[..] else {
            return Err(Refusal::because(format!("reads an image with {} channel axes, not one", channels.dims.len())));
        };
        self.pick(name, channels.of, channels.channels.iter().copied().map(Some).collect(), 1)
    }

    /// Channels of an image by number, zero where there is none, of every `stride`-th pixel.
    fn pick(&mut self, name: &str, of: ValueId, channels: Vec<Option<u32>>, stride: usize) -> Read<ValueId> {
        let [available, ..] = self.network.image(of)?;
        if stride == 1 && channels.iter().copied().eq((0..available as u32).map(Some)) {
            return Ok(of);
        }
        self.network.spend(channels.len())?;
        self.network.push(name, Op::Gather { channels, stride }, &[of])
    }

    pub(super) fn slice(&mut self, node: &'a NodeProto) -> Read<Value> {
        let of = self.network_operand(node, 0)?;
        let [channels, height, width] = self.network.image(of)?;
        let mut kept: Option<Vec<Option<u32>>> = None;
        let mut pads = [0; 4];
        let mut steps = [1; 2];
        for (axis, [start, end, step]) in self.slices(node, 4)? {
            match axis {
                0 if start == 0 && end >= i64::from(i32::MAX) && step == 1 => {}
                0 => return Err(Refusal::because("slices the batch")),
                1 => {
                    self.network.spend(channels)?;
                    let picked = slice_indices(start, end, step, channels)?;
                    kept = Some(picked.into_iter().map(|channel| Some(channel as u32)).collect());
                }
                _ => {
                    let size = [height, width][axis - 2] as i64;
                    let bound = |at: i64| if at < 0 { at.saturating_add(size) } else { at }.clamp(0, size);
                    (pads[axis - 2], pads[axis]) = (-bound(start), bound(end) - size);
                    steps[axis - 2] = step;
                }
            }
        }
        let name = node_name(node);
        let [stride, other] = steps.map(|step| usize::try_from(step).unwrap_or(0));
        if stride == 0 || stride != other || (stride > 1 && pads != [0; 4]) {
            return Err(Refusal::because(format!("takes every {steps:?}-th pixel with {pads:?} cut off")));
        }
        let of = match kept {
            Some(kept) => self.pick(name, of, kept, stride)?,
            None if stride > 1 => {
                self.network.spend(channels)?;
                self.pick(name, of, (0..channels as u32).map(Some).collect(), stride)?
            }
            None => of,
        };
        if pads == [0; 4] {
            return Ok(Value::Network(of));
        }
        let padded = Value::Padded(Padded { of, pads, fill: 0.0 });
        if self.dims(&padded)?.contains(&0) {
            return Err(Refusal::because("cuts off all of an image"));
        }
        Ok(padded)
    }

    pub(super) fn gather(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let indices = self.constant_operand(node, 1, "indices")?;
        let of = self.network_operand(node, 0)?;
        let [channels, ..] = self.network.image(of)?;
        if axis(attributes.int("axis", 0), 4)? != 1 || indices.dims.len() != 1 {
            return Err(Refusal::because("picks something else than channels"));
        }
        self.network.spend(indices.len())?;
        let picked = indices.known()?.into_iter().map(|index| axis(index, channels));
        let picked: Vec<Option<u32>> = picked.map(|index| Ok(Some(index? as u32))).collect::<Read<_>>()?;
        Ok(Value::Network(self.pick(node_name(node), of, picked, 1)?))
    }

    /// Consecutive channels, several times.
    pub(super) fn split(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Vec<Value>> {
        let of = self.network_operand(node, 0)?;
        let [channels, ..] = self.network.image(of)?;
        if axis(attributes.int("axis", 0), 4)? != 1 {
            return Err(Refusal::because("splits something else than channels"));
        }
        let outputs = node.output.len();
        let sizes = match self.optional_constant(node, 1, "split")? {
            Some(sizes) if sizes.len() != outputs => {
                return Err(Refusal::because(format!("splits into {} parts for {outputs} outputs", sizes.len())));
            }
            Some(sizes) => sizes.known()?,
            None => match attributes.ints("split") {
                Some(sizes) => sizes.to_vec(),
                None => {
                    let size = channels.div_ceil(outputs.max(1));
                    let rest = |part: usize| size.min(channels.saturating_sub(part * size));
                    (0..outputs).map(|part| rest(part) as i64).collect()
                }
            },
        };
        let refused = || Refusal::because(format!("splits {channels} channels into {sizes:?} for {outputs} outputs"));
        let sizes: Vec<usize> =
            sizes.iter().map(|&size| usize::try_from(size).map_err(|_| refused())).collect::<Read<_>>()?;
        let total = sizes.iter().try_fold(0_usize, |total, &size| total.checked_add(size));
        if sizes.len() != outputs || total != Some(channels) {
            return Err(refused());
        }
        self.network.spend(channels)?;
        let mut start = 0;
        let mut values = Vec::new();
        for (output, size) in node.output.iter().zip(sizes) {
            let part = (start..start + size).map(|channel| Some(channel as u32)).collect();
            start += size;
            // An output without a name is read by nobody.
            values.push(if output.is_empty() {
                Value::Unknown
            } else {
                Value::Network(self.pick(output, of, part, 1)?)
            });
        }
        Ok(values)
    }

    pub(super) fn pad(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        if !matches!(attributes.string("mode"), "" | "constant") {
            return Err(Refusal::because(format!("pads in the mode `{}`", attributes.string("mode"))));
        }
        let given = self.constant_operand(node, 1, "pads")?.known_list()?;
        let fill = self.optional_constant(node, 2, "value")?;
        let fill =
            fill.map_or(Some(0.0), |fill| fill.scalar()).ok_or_else(|| Refusal::because("its value is no number"))?;
        let axes: Vec<usize> = match self.optional_constant(node, 3, "axes")? {
            Some(axes) => axes.known_list()?.into_iter().map(|at| axis(at, 4)).collect::<Read<_>>()?,
            None => (0..4).collect(),
        };
        let twice = |i: usize| axes[..i].contains(&axes[i]);
        if given.len() != 2 * axes.len() || axes.len() > 4 || (1..axes.len()).any(twice) {
            return Err(Refusal::because(format!("its {} pads are for another number of axes", given.len())));
        }
        let mut pads = [[0; 2]; 4];
        axes.iter().enumerate().for_each(|(i, &axis)| pads[axis] = [given[i], given[i + axes.len()]]);
        let [batch, [before, behind], [top, bottom], [left, right]] = pads;
        let mut of = self.network_operand(node, 0)?;
        let [channels, ..] = self.network.image(of)?;
        if batch != [0, 0] {
            return Err(Refusal::because("pads the batch"));
        }
        if [before, behind] != [0, 0] {
            let count = |count: i64| usize::try_from(count).ok().filter(|_| fill == 0.0);
            let (Some(before), Some(behind)) = (count(before), count(behind)) else {
                return Err(Refusal::because("takes channels away by padding, or adds such that are not 0"));
            };
            self.network.spend(before.saturating_add(behind).saturating_add(channels))?;
            let zeros = |count: usize| std::iter::repeat_n(None, count);
            let all = zeros(before).chain((0..channels as u32).map(Some)).chain(zeros(behind)).collect();
            of = self.pick(node_name(node), of, all, 1)?;
        }
        if [top, left, bottom, right] == [0; 4] {
            return Ok(Value::Network(of));
        }
        let padded = Value::Padded(Padded { of, pads: [top, left, bottom, right], fill: fill as f32 });
        self.dims(&padded)?;
        Ok(padded)
    }

    pub(super) fn concat(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let operands = self.network_operands(node)?;
        let first = *operands.first().ok_or_else(|| Refusal::because("concatenates nothing"))?;
        let rank = if let Shape::Features(_) = self.network.shape(first) { 2 } else { 4 };
        match axis(attributes.int("axis", 0), rank)? {
            1 => Ok(Value::Network(self.network.push(node_name(node), Op::Concat, &operands)?)),
            axis => Err(Refusal::because(format!("concatenates along axis {axis}, not along the channels"))),
        }
    }
}
