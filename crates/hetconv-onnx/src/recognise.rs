//! HetConv in the operators that other people write it with.
//!
//! A sum of convolutions over one image is one convolution. If its off-centre taps make classes — that is so for a grouped
//! K×K convolution plus a 1×1 convolution, with or without biases, gathers, cropping, centre taps in either — it is a HetConv
//! layer. A dense convolution whose off-centre taps are 0 outside of classes is one, too.

use std::collections::{BTreeMap, HashMap};

use hetconv_core::{Conv2dGeometry, HetPattern};
use hetconv_graph::{ChannelAffine, ConvKind, Graph, HetLayer, Node, Op, Shape, ValueId, WeightTensor, Weights};

use crate::OnnxError;
use crate::layer::{dense_kernels, simplest_pattern};
use crate::simplify::{alone, remove_weights};

/// How many nodes behind a convolution may belong to it.
const DEEPEST: usize = 8;

/// Replaces what is HetConv by HetConv layers; `known` are the patterns of layers by name, as the file states them.
/// Nodes that are no longer read stay.
pub(crate) fn recognise(
    graph: &mut Graph,
    weights: &mut Weights,
    known: &BTreeMap<String, HetPattern>,
) -> Result<(), OnnxError> {
    // What is taken together below is read by nobody else, before and after, and all values keep their shapes.
    let facts = Facts { alone: alone(graph), shapes: graph.shapes()? };
    for id in 0..graph.nodes.len() {
        match &graph.nodes[id].op {
            Op::Conv2d { kind: ConvKind::Standard, geometry, .. }
                if geometry.taps() > 1 && geometry.center_tap().is_some() =>
            {
                masked(graph, weights, &facts, known, id);
            }
            Op::Add => sum(graph, weights, &facts, id),
            _ => {}
        }
    }
    Ok(graph.validate()?)
}

/// What is known of the graph's values.
struct Facts {
    /// Whether one node alone reads it.
    alone: Vec<bool>,
    shapes: Vec<Shape>,
}

/// A dense convolution with zero taps.
fn masked(graph: &mut Graph, weights: &mut Weights, facts: &Facts, known: &BTreeMap<String, HetPattern>, id: ValueId) {
    if !known.contains_key(&graph.nodes[id].name) && !has_dead_kernel(graph, weights, id) {
        return;
    }
    let Some(Source { base, .. }) = Source::of(graph, weights, facts, id) else { return };
    if !has_centers(graph, weights, facts, base, id, &[id]) {
        return;
    }
    let Some(mut term) = Term::convolution(graph, weights, facts, id, &mut Room::default()) else { return };
    term.mark_spatial();
    let stated = known.get(&graph.nodes[id].name).filter(|pattern| term.has_pattern(pattern));
    let pattern = stated.cloned().or_else(|| {
        let pattern = term.pattern()?;
        // A layer is not taken for HetConv because of a few dead kernels: every class has channels and filters.
        let inhabited = |classes: &[u32]| (0..pattern.classes()).all(|class| classes.contains(&(class as u32)));
        (inhabited(pattern.channel_classes()) && inhabited(pattern.filter_classes())).then_some(pattern)
    });
    if let Some(pattern) = pattern {
        put(graph, weights, id, term, pattern);
    }
}

/// Whether any kernel of a standard convolution has nothing off its centre: what most have not.
fn has_dead_kernel(graph: &Graph, weights: &Weights, id: ValueId) -> bool {
    let Op::Conv2d { geometry, .. } = &graph.nodes[id].op else { return false };
    let Some(weight) = weights.get(&format!("{}.weight", graph.nodes[id].name)) else { return false };
    let center = geometry.center_tap();
    let dead = |kernel: &[f32]| kernel.iter().enumerate().all(|(t, &tap)| Some(t) == center || tap == 0.0);
    weight.data.chunks(geometry.taps()).any(dead)
}

/// A sum some of whose operands are convolutions over one image.
fn sum(graph: &mut Graph, weights: &mut Weights, facts: &Facts, id: ValueId) {
    let operands = graph.nodes[id].inputs.clone();
    // A convolution's base can be told before its kernels are written out, and most sums have none in common.
    let mut by_base: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
    for &operand in &operands {
        if let Some(base) = base(graph, weights, facts, operand, DEEPEST) {
            by_base.entry(base).or_default().push(operand);
        }
    }
    for (base, operands) in by_base.into_iter().filter(|(_, operands)| operands.len() > 1) {
        if !has_centers(graph, weights, facts, base, id, &operands) {
            continue;
        }
        let mut room = Room::default();
        let terms: Option<Vec<Term>> =
            operands.iter().map(|&operand| Term::of(graph, weights, facts, operand, DEEPEST, &mut room)).collect();
        let Some((term, pattern)) = terms.and_then(joined) else { continue };
        let kept: Vec<ValueId> =
            graph.nodes[id].inputs.iter().copied().filter(|input| !operands.contains(input)).collect();
        if kept.is_empty() {
            return put(graph, weights, id, term, pattern);
        }
        // The layer takes the place of the last of its parts, behind everything it reads.
        let Some(place) = operands.into_iter().max() else { continue };
        put(graph, weights, place, term, pattern);
        graph.nodes[id].inputs = [kept.as_slice(), &[place]].concat();
    }
}

/// The base of the convolutions that a value is made of, if they have one in common; `None` if it is made of others.
fn base(graph: &Graph, weights: &Weights, facts: &Facts, value: ValueId, depth: usize) -> Option<ValueId> {
    if !facts.alone[value] || depth == 0 {
        return None;
    }
    let node = &graph.nodes[value];
    match &node.op {
        Op::Conv2d { .. } => Some(Source::of(graph, weights, facts, value)?.base),
        Op::BatchNorm { .. } | Op::Gather { stride: 1, .. } => base(graph, weights, facts, node.inputs[0], depth - 1),
        Op::Concat => {
            let mut bases = node.inputs.iter().map(|&input| base(graph, weights, facts, input, depth - 1));
            let first = bases.next()??;
            bases.all(|base| base == Some(first)).then_some(first)
        }
        _ => None,
    }
}

/// Whether the values that a layer between two values would be made of have as many weights as it has centre taps: one for
/// every filter and channel, and the file has as many numbers.
fn has_centers(
    graph: &Graph,
    weights: &Weights,
    facts: &Facts,
    base: ValueId,
    result: ValueId,
    parts: &[ValueId],
) -> bool {
    let numbers: usize = parts.iter().map(|&part| weight_count(graph, weights, part, DEEPEST)).sum();
    facts.shapes[base].channels().saturating_mul(facts.shapes[result].channels()) <= numbers
}

/// How many weights the convolutions have that a value with a [`base`] is made of.
fn weight_count(graph: &Graph, weights: &Weights, value: ValueId, depth: usize) -> usize {
    let node = &graph.nodes[value];
    let count = |suffix: &str| weights.get(&format!("{}.{suffix}", node.name)).map_or(0, |tensor| tensor.data.len());
    match &node.op {
        Op::Conv2d { .. } => count("weight") + count("center") + count("ring"),
        _ if depth == 0 => 0,
        _ => node.inputs.iter().map(|&input| weight_count(graph, weights, input, depth - 1)).sum(),
    }
}

/// What a convolution reads, seen through gathers that keep all pixels, and the window it reads it by.
///
/// A 1×1 kernel that alone reads an image padded or cropped before is one tap of a larger window of that image.
struct Source {
    base: ValueId,
    /// Which of its channels stands where, if they do not stand as they are.
    picked: Option<Vec<Option<u32>>>,
    geometry: Conv2dGeometry,
    /// Where in the window the kernels begin.
    first: [usize; 2],
}

impl Source {
    /// `None` if the node is no convolution.
    fn of(graph: &Graph, weights: &Weights, facts: &Facts, id: ValueId) -> Option<Self> {
        let Node { op: Op::Conv2d { geometry, .. }, inputs, .. } = &graph.nodes[id] else { return None };
        let mut source = Self { base: inputs[0], picked: None, geometry: geometry.clone(), first: [0; 2] };
        let mut moves = geometry.kernel == [1, 1];
        loop {
            let node = &graph.nodes[source.base];
            moves &= facts.alone[source.base];
            if let Op::Gather { channels, stride: 1 } = &node.op {
                source.picked = Some(match source.picked {
                    None => channels.clone(),
                    Some(picked) => picked.iter().map(|channel| channel.and_then(|c| channels[c as usize])).collect(),
                });
            } else if !moves || source.take_in(node, weights).is_none() {
                return Some(source);
            }
            source.base = node.inputs[0];
        }
    }

    /// Enlarges the window by that of a depthwise convolution before it, if this one has but a 1 at the same tap of all its
    /// kernels: padding or cropping.
    fn take_in(&mut self, node: &Node, weights: &Weights) -> Option<()> {
        let Op::Conv2d { in_channels, out_channels, geometry, kind: ConvKind::Grouped(groups), bias: false } = &node.op
        else {
            return None;
        };
        let [height, width] = geometry.kernel;
        let data = &weights.get(&format!("{}.weight", node.name))?.data;
        let one = data.iter().position(|&weight| weight == 1.0)?;
        let is_one = |(tap, &weight): (usize, &f32)| weight == if tap == one { 1.0 } else { 0.0 };
        if [in_channels, out_channels] != [groups; 2]
            || [geometry.stride, geometry.dilation] != [[1, 1]; 2]
            || !data.chunks(geometry.taps()).all(|kernel| kernel.iter().enumerate().all(is_one))
        {
            return None;
        }
        let at = [one / width, one % width];
        let cut = [at[0], at[1], height - 1 - at[0], width - 1 - at[1]];
        // What is cut off at a side and then padded is zero, and not what was there.
        if cut.iter().zip(self.geometry.padding).any(|(&cut, padding)| cut > 0 && padding > 0) {
            return None;
        }
        let larger = Conv2dGeometry {
            kernel: [0, 1].map(|axis| self.geometry.kernel[axis] + geometry.kernel[axis] - 1),
            stride: self.geometry.stride,
            padding: [0, 1, 2, 3].map(|side| self.geometry.padding[side] + geometry.padding[side]),
            dilation: [1, 1],
        };
        larger.validate().ok()?;
        self.first = [0, 1].map(|axis| self.first[axis] + at[axis]);
        self.geometry = larger;
        Some(())
    }
}

/// How many more numbers a layer's parts may be written out in, all together.
struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(1 << 27)
    }
}

impl Room {
    /// Takes room for so many filters with so many kernels of so many taps.
    fn take(&mut self, filters: usize, channels: usize, taps: usize) -> Option<()> {
        let numbers = filters.checked_mul(channels)?.checked_mul(taps)?;
        self.0 = self.0.checked_sub(numbers)?;
        Some(())
    }
}

/// A convolution written out: one kernel for every filter and channel of the image it reads.
struct Term {
    base: ValueId,
    channels: usize,
    filters: usize,
    geometry: Conv2dGeometry,
    /// `[filters, channels, taps]`.
    kernels: Vec<f32>,
    /// `[filters, channels]`: whether a group or class has more than a centre tap there, be its weights 0 or not.
    spatial: Vec<bool>,
    bias: Option<Vec<f32>>,
    /// Whether the window is larger than the kernels in it.
    enlarged: bool,
}

impl Term {
    /// A value as one convolution; only values that nobody else reads are taken apart.
    fn of(
        graph: &Graph,
        weights: &Weights,
        facts: &Facts,
        value: ValueId,
        depth: usize,
        room: &mut Room,
    ) -> Option<Self> {
        if !facts.alone[value] || depth == 0 {
            return None;
        }
        let node = &graph.nodes[value];
        let mut input = |index: usize| Self::of(graph, weights, facts, node.inputs[index], depth - 1, room);
        match &node.op {
            Op::Conv2d { .. } => Self::convolution(graph, weights, facts, value, room),
            Op::BatchNorm { epsilon, .. } => {
                let mut term = input(0)?;
                let affine = ChannelAffine::of_batch_norm(weights, &node.name, *epsilon)?;
                if affine.scale.len() != term.filters {
                    return None;
                }
                affine.scale_filters(&mut term.kernels);
                term.bias = Some(affine.with_bias(term.bias.as_deref()));
                Some(term)
            }
            Op::Gather { channels, stride: 1 } => input(0)?.with_filters(channels, room),
            Op::Concat => {
                let mut terms = (0..node.inputs.len()).map(input);
                let first = terms.next()??;
                terms.try_fold(first, |all, term| all.beside(term?))
            }
            _ => None,
        }
    }

    /// A convolution node.
    fn convolution(graph: &Graph, weights: &Weights, facts: &Facts, id: ValueId, room: &mut Room) -> Option<Self> {
        let node = &graph.nodes[id];
        let Op::Conv2d { in_channels, out_channels: filters, geometry, kind, .. } = &node.op else { return None };
        let (filters, own_taps) = (*filters, geometry.taps());
        let tensor = |suffix: &str| Some(weights.get(&format!("{}.{suffix}", node.name))?.data.as_slice());
        let Source { base, picked, geometry: window, first } = Source::of(graph, weights, facts, id)?;
        let (channels, taps) = (facts.shapes[base].channels(), window.taps());
        let first = first[0] * window.kernel[1] + first[1];
        room.take(filters, channels, taps)?;
        let mut term = Self {
            base,
            channels,
            filters,
            geometry: window,
            kernels: vec![0.0; filters * channels * taps],
            spatial: vec![false; filters * channels],
            bias: tensor("bias").map(<[f32]>::to_vec),
            enlarged: own_taps < taps,
        };
        let (kernels, groups, structural) = match kind {
            ConvKind::Standard => (tensor("weight")?.to_vec(), 1, None),
            ConvKind::Grouped(groups) => (tensor("weight")?.to_vec(), *groups, None),
            ConvKind::Het(pattern) => {
                let orders = [*in_channels, filters].map(hetconv_core::ChannelOrder::natural);
                let tensors = [tensor("center")?, tensor("ring")?];
                (dense_kernels(pattern, geometry, tensors, [&orders[0], &orders[1]]), 1, Some(pattern))
            }
        };
        let (of_group, group_filters) = (in_channels / groups, filters / groups);
        for (filter, index) in (0..filters).flat_map(|filter| (0..of_group).map(move |index| (filter, index))) {
            let channel = filter / group_filters * of_group + index;
            let kernel = &kernels[(filter * of_group + index) * own_taps..][..own_taps];
            let source = match &picked {
                None => channel,
                Some(picked) => match picked[channel] {
                    Some(source) => source as usize,
                    None => continue,
                },
            };
            let at = filter * channels + source;
            term.kernels[at * taps + first..].iter_mut().zip(kernel).for_each(|(tap, more)| *tap += more);
            term.spatial[at] |= match structural {
                Some(pattern) => pattern.is_spatial(filter, channel),
                None => groups > 1 && own_taps > 1,
            };
        }
        Some(term)
    }

    /// The filters of these numbers, zero where there is none.
    fn with_filters(self, picked: &[Option<u32>], room: &mut Room) -> Option<Self> {
        room.take(picked.len(), self.channels, self.geometry.taps())?;
        let pick = |data: &[f32], row: usize| -> Vec<f32> {
            let source = |filter: &Option<u32>| match filter {
                Some(filter) => data[*filter as usize * row..][..row].to_vec(),
                None => vec![0.0; row],
            };
            picked.iter().flat_map(source).collect()
        };
        let spatial = picked.iter().flat_map(|filter| match filter {
            Some(filter) => self.spatial[*filter as usize * self.channels..][..self.channels].to_vec(),
            None => vec![false; self.channels],
        });
        Some(Self {
            filters: picked.len(),
            kernels: pick(&self.kernels, self.channels * self.geometry.taps()),
            spatial: spatial.collect(),
            bias: self.bias.as_ref().map(|bias| pick(bias, 1)),
            ..self
        })
    }

    /// Two convolutions' filters one after another.
    fn beside(mut self, other: Self) -> Option<Self> {
        if self.base != other.base || self.geometry != other.geometry || self.channels != other.channels {
            return None;
        }
        if self.bias.is_some() || other.bias.is_some() {
            let zeros = |filters: usize| vec![0.0; filters];
            let first = self.bias.take().unwrap_or_else(|| zeros(self.filters));
            self.bias = Some([first, other.bias.unwrap_or_else(|| zeros(other.filters))].concat());
        }
        self.filters += other.filters;
        self.enlarged &= other.enlarged;
        self.kernels.extend(other.kernels);
        self.spatial.extend(other.spatial);
        Some(self)
    }

    /// Adds another convolution over the same image, if its taps are among this one's.
    fn add(&mut self, other: &Self) -> Option<()> {
        if (self.base, self.channels, self.filters) != (other.base, other.channels, other.filters)
            || self.geometry.stride != other.geometry.stride
        {
            return None;
        }
        let (taps, other_taps) = (self.geometry.taps(), other.geometry.taps());
        for t in 0..other_taps {
            if !other.uses(t) {
                continue;
            }
            let to = tap_at(&self.geometry, tap_offset(&other.geometry, t))?;
            let from = other.kernels.iter().skip(t).step_by(other_taps);
            self.kernels.iter_mut().skip(to).step_by(taps).zip(from).for_each(|(tap, more)| *tap += more);
            if Some(to) != self.geometry.center_tap() {
                self.spatial.iter_mut().zip(&other.spatial).for_each(|(mine, theirs)| *mine |= theirs);
            }
        }
        if let Some(bias) = &other.bias {
            let mine = self.bias.get_or_insert_with(|| vec![0.0; bias.len()]);
            mine.iter_mut().zip(bias).for_each(|(mine, more)| *mine += more);
        }
        Some(())
    }

    /// Whether any kernel has a weight at a tap.
    fn uses(&self, tap: usize) -> bool {
        self.kernels.iter().skip(tap).step_by(self.geometry.taps()).any(|&weight| weight != 0.0)
    }

    /// Makes every pair with a weight off the centre spatial.
    fn mark_spatial(&mut self) {
        let center = self.geometry.center_tap();
        for (kernel, spatial) in self.kernels.chunks(self.geometry.taps()).zip(&mut self.spatial) {
            *spatial |= kernel.iter().enumerate().any(|(t, &weight)| Some(t) != center && weight != 0.0);
        }
    }

    /// The classes that the spatial pairs make, if they make any and there is more than one.
    fn pattern(&self) -> Option<HetPattern> {
        let mut class_of_row: HashMap<&[bool], u32> = HashMap::new();
        let mut channels: Vec<Option<u32>> = vec![None; self.channels];
        let mut filters = Vec::with_capacity(self.filters);
        for row in self.spatial.chunks(self.channels) {
            let next = class_of_row.len() as u32;
            let class = *class_of_row.entry(row).or_insert(next);
            filters.push(class);
            if class == next {
                for (channel, _) in row.iter().enumerate().filter(|(_, spatial)| **spatial) {
                    if channels[channel].replace(class).is_some() {
                        return None;
                    }
                }
            }
        }
        if !self.spatial.contains(&true) || !self.spatial.contains(&false) {
            return None;
        }
        // Channels that no filter sees spatially share a class of their own.
        let rest = class_of_row.len() as u32;
        simplest_pattern(channels.into_iter().map(|class| class.unwrap_or(rest)).collect(), filters)
    }

    /// Whether a pattern is of this size and covers every spatial pair.
    fn has_pattern(&self, pattern: &HetPattern) -> bool {
        let pairs = (0..self.filters).flat_map(|filter| (0..self.channels).map(move |channel| (filter, channel)));
        [pattern.in_channels(), pattern.out_channels()] == [self.channels, self.filters]
            && pairs
                .zip(&self.spatial)
                .all(|((filter, channel), &spatial)| !spatial || pattern.is_spatial(filter, channel))
    }
}

/// Where a tap lies, in pixels from the top left of the image for the first window.
fn tap_offset(geometry: &Conv2dGeometry, tap: usize) -> [i64; 2] {
    let place = [tap / geometry.kernel[1], tap % geometry.kernel[1]];
    [0, 1].map(|axis| (place[axis] * geometry.dilation[axis]) as i64 - geometry.padding[axis] as i64)
}

/// The tap that lies there, if there is one.
fn tap_at(geometry: &Conv2dGeometry, offset: [i64; 2]) -> Option<usize> {
    let mut place = [0; 2];
    for axis in 0..2 {
        let from_first = usize::try_from(offset[axis] + geometry.padding[axis] as i64).ok()?;
        let dilation = geometry.dilation[axis];
        place[axis] = (from_first % dilation == 0).then_some(from_first / dilation)?;
    }
    let inside = place[0] < geometry.kernel[0] && place[1] < geometry.kernel[1];
    inside.then_some(place[0] * geometry.kernel[1] + place[1])
}

/// The sum of convolutions over one image, if it is HetConv.
fn joined(terms: Vec<Term>) -> Option<(Term, HetPattern)> {
    // The window of the sum is that of the convolution that is spatial most, or has most taps, all of them its own.
    let extent = |term: &Term| {
        let pairs = term.spatial.iter().filter(|&&spatial| spatial).count();
        (pairs, (0..term.geometry.taps()).filter(|&tap| term.uses(tap)).count())
    };
    let own = (0..terms.len()).filter(|&index| !terms[index].enlarged);
    let main = own.max_by_key(|&index| extent(&terms[index]))?;
    let mut terms = terms;
    let mut sum = terms.swap_remove(main);
    sum.geometry.center_tap()?;
    terms.iter().try_for_each(|term| sum.add(term))?;
    sum.mark_spatial();
    let pattern = sum.pattern()?;
    Some((sum, pattern))
}

/// Makes a node the HetConv layer that a term is.
fn put(graph: &mut Graph, weights: &mut Weights, id: ValueId, term: Term, pattern: HetPattern) {
    let Term { base, channels, filters, geometry, kernels, bias, .. } = term;
    let (width, around) = (pattern.max_spatial(), geometry.taps() - 1);
    let HetLayer { pattern, center, ring, .. } = HetLayer::projected(pattern, &geometry, &kernels);
    let node = &mut graph.nodes[id];
    remove_weights(node, weights);
    let mut set = |suffix: &str, shape: &[usize], data: Vec<f32>| {
        weights.insert(format!("{}.{suffix}", node.name), WeightTensor { shape: shape.to_vec(), data });
    };
    set("center", &[filters, channels], center);
    set("ring", &[filters, width, around], ring);
    let has_bias = bias.is_some();
    if let Some(bias) = bias {
        set("bias", &[filters], bias);
    }
    let kind = ConvKind::Het(pattern);
    node.op = Op::Conv2d { in_channels: channels, out_channels: filters, geometry, kind, bias: has_bias };
    node.inputs = vec![base];
}
