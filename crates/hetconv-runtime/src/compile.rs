//! From a graph to a plan.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use hetconv_core::{ChannelOrder, Conv2dGeometry, ConvKind};
use hetconv_graph::{Activation, Chain, ChannelPlan, Fusion, Graph, Node, Op, Shape, Takes, ValueId, Weights};
use hetconv_kernels::cache::spread;
use hetconv_kernels::pool::Pool;
use hetconv_kernels::select::Select;
use hetconv_kernels::{
    Algorithm, Aligned, Conv, ConvSpec, ConvWeights, Direction, Isa, Prepared, PreparedBatch, Tables,
};

use crate::apart::{is_pointwise, is_tiled, values_apart};
use crate::fold::{Folded, Source};
use crate::plan::{Input, Layer, Output};
use crate::step::{Kind, Step, Value};
use crate::{CompileError, Options, Plan};

pub(crate) fn compile(graph: &Graph, weights: Cow<'_, Weights>, options: &Options) -> Result<Plan, CompileError> {
    let shapes = graph.shapes()?;
    weights.check(graph)?;
    weights.check_values(graph)?;
    let orders = ChannelPlan::new(graph)?;
    let isa = selected(options)?;
    let source = Source { graph, weights };
    let plan = Plan {
        isa,
        name: graph.name.clone(),
        steps: Vec::new(),
        values: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        layers: Vec::new(),
    };
    let fusion = Fusion::new(graph, &orders);
    let chains = fusion.chains(takes);
    let segments = segments(graph, &fusion, &shapes, &chains);
    let mut compiler = Compiler {
        source,
        shapes: &shapes,
        orders: &orders,
        options,
        plan,
        of_node: vec![None; graph.nodes.len()],
        apart: values_apart(graph, &shapes, &orders, &chains, |value| segments.contains_key(&value)),
        segments,
        picked: HashMap::new(),
        tables: Tables::default(),
    };
    for chain in &chains {
        compiler.chain(chain)?;
    }
    for (number, &output) in graph.outputs.iter().enumerate() {
        compiler.output(number, output);
    }
    let mut plan = compiler.plan;
    Prepared::gather(plan.steps.iter_mut().filter_map(|step| match &mut step.kind {
        Kind::Conv(prepared) => Some(&mut **prepared),
        _ => None,
    }));
    Ok(plan)
}

/// What a node takes in: layers a batch-norm, a sum and an activation, most others an activation.
fn takes(op: &Op) -> Takes {
    match op {
        Op::Conv2d { .. } | Op::Linear { .. } => Takes { norm: true, sum: true, activation: |_| true },
        Op::Input { .. } | Op::Activation { .. } | Op::Softmax | Op::Flatten => Takes::NOTHING,
        _ => Takes { activation: |_| true, ..Takes::NOTHING },
    }
}

struct Compiler<'a> {
    source: Source<'a>,
    shapes: &'a [Shape],
    orders: &'a ChannelPlan,
    options: &'a Options,
    plan: Plan,
    /// The value that holds each node's result, once it is computed.
    of_node: Vec<Option<usize>>,
    segments: HashMap<ValueId, Segment>,
    /// The values whose pixels lie apart.
    apart: HashSet<ValueId>,
    /// For values of which every n-th pixel was picked, by n: the value of those.
    picked: HashMap<(usize, usize), usize>,
    /// Stretches that the tables of all convolutions so far name.
    tables: Tables,
}

/// The place of a convolution's result in that of a concatenation.
#[derive(Clone, Copy)]
struct Segment {
    concat: ValueId,
    /// Its first channel.
    first: usize,
}

/// The convolutions that write their results where a concatenation would copy them: those that it alone reads.
fn segments(graph: &Graph, fusion: &Fusion<'_>, shapes: &[Shape], chains: &[Chain]) -> HashMap<ValueId, Segment> {
    let concats = chains.iter().filter(|chain| graph.nodes[chain.first].op == Op::Concat && chain.activation.is_none());
    let mut segments = HashMap::new();
    for concat in concats.map(|chain| chain.first) {
        let inputs = graph.nodes[concat].inputs.iter().zip(first_channels(graph, shapes, concat));
        for (side, (&input, first)) in inputs.enumerate() {
            let whole = |chain: &&Chain| chain.last == input && chain.sum.is_none();
            let is_layer = chains.iter().find(whole).is_some_and(|chain| is_tiled(&graph.nodes[chain.first].op));
            if is_layer && fusion.only_reader(input) == Some((concat, side)) {
                segments.insert(input, Segment { concat, first });
            }
        }
    }
    segments
}

/// The first channel of each operand of a concatenation.
fn first_channels(graph: &Graph, shapes: &[Shape], node: ValueId) -> Vec<usize> {
    let mut end = 0;
    let after = |&input: &ValueId| {
        end += shapes[input].channels();
        end - shapes[input].channels()
    };
    graph.nodes[node].inputs.iter().map(after).collect()
}

impl Compiler<'_> {
    fn value(&mut self, value: Value) -> usize {
        self.plan.values.push(value);
        self.plan.values.len() - 1
    }

    fn shaped(&self, node: ValueId) -> Value {
        Value { size: self.shapes[node].size(), channels: self.shapes[node].channels() }
    }

    /// The value of a node that is computed now, or has been begun.
    fn begun(&mut self, node: ValueId) -> usize {
        let begun = self.of_node[node];
        let value = begun.unwrap_or_else(|| self.value(self.shaped(node)));
        self.of_node[node] = Some(value);
        value
    }

    fn computed(&self, node: ValueId) -> usize {
        self.of_node[node].expect("operands are computed before they are read")
    }

    /// The value that a node reads, brought into the order in which it reads it.
    fn operand(&mut self, node: ValueId, side: usize) -> usize {
        let input = self.source.graph.nodes[node].inputs[side];
        let stored = self.computed(input);
        let Some(gather) = self.orders.gather(node, side) else { return stored };
        let sources = gather.iter().map(|&position| Some(position)).collect();
        self.selected(node, stored, sources, 1)
    }

    /// The value that a pointwise layer reads: every `stride`-th row and column, picked on all threads, where each block of
    /// its outputs would pass over those between.
    fn picked(&mut self, node: ValueId, stride: usize) -> usize {
        let input = self.source.graph.nodes[node].inputs[0];
        let stored = self.computed(input);
        let own = self.shaped(input);
        let gather = self.orders.gather(node, 0);
        if gather.is_none()
            && let Some(&picked) = self.picked.get(&(stored, stride))
        {
            return picked;
        }
        let mut sources: Vec<Option<u32>> = match gather {
            Some(gather) => gather.iter().map(|&position| Some(position)).collect(),
            None => (0..own.channels as u32).map(Some).collect(),
        };
        let pixels = own.size.iter().map(|size| size.div_ceil(stride)).product();
        sources.resize(spread(own.channels, pixels), None);
        let picked = self.selected(node, stored, sources, stride);
        if gather.is_none() {
            self.picked.insert((stored, stride), picked);
        }
        picked
    }

    fn selected(&mut self, node: ValueId, operand: usize, sources: Vec<Option<u32>>, stride: usize) -> usize {
        let Value { size, channels } = self.plan.values[operand];
        let (of_result, select) = (sources.len(), Select::new(sources, channels, stride, size));
        let output = self.value(Value { size: select.out_size(), channels: of_result });
        self.push(node, Kind::Select(select), vec![operand], output, None);
        output
    }

    fn push(&mut self, node: ValueId, kind: Kind, operands: Vec<usize>, output: usize, activation: Option<Activation>) {
        let node = self.source.graph.nodes[node].name.clone();
        self.plan.steps.push(Step { node, kind, operands, output, activation });
    }

    fn output(&mut self, number: usize, node: ValueId) {
        let stored = self.computed(node);
        let value = self.plan.values[stored];
        let positions = self.orders.order(node).positions();
        let name = self.source.graph.nodes[node].name.clone();
        self.plan.outputs.push(Output { name, shape: self.shapes[node] });
        let output = self.value(value);
        self.push(node, Kind::Output { number, positions }, vec![stored], output, None);
    }

    fn chain(&mut self, chain: &Chain) -> Result<(), CompileError> {
        let graph = self.source.graph;
        let node = &graph.nodes[chain.first];
        let mut activation = chain.activation;
        if node.op == Op::Concat && chain.activation.is_none() {
            self.concat(chain.first);
            return Ok(());
        }
        let mut operands: Vec<usize> = match picks(&node.op) {
            Some(stride) => vec![self.picked(chain.first, stride)],
            None => (0..node.inputs.len()).map(|side| self.operand(chain.first, side)).collect(),
        };
        let mut value = self.shaped(chain.first);
        if self.apart.contains(&chain.last) {
            value.channels = spread(value.channels, value.pixels());
        }
        let kind = match &node.op {
            Op::Input { shape } => {
                self.plan.inputs.push(Input { name: node.name.clone(), shape: *shape });
                Kind::Input(self.plan.inputs.len() - 1)
            }
            Op::Conv2d { .. } | Op::Linear { .. } => {
                if let Some((sum, side)) = chain.sum {
                    operands.push(self.operand(sum, side));
                }
                Kind::Conv(Box::new(self.layer(chain, operands[0], value.channels, activation.take())?))
            }
            Op::BatchNorm { .. } => self.norm(chain.first)?,
            Op::Activation { function } => {
                activation = Some(*function);
                Kind::Copy
            }
            Op::Add => Kind::Add,
            Op::Mul => Kind::Mul,
            Op::Concat => Kind::Concat(first_channels(graph, self.shapes, chain.first)),
            Op::MaxPool { geometry } => {
                let input = self.shaped(node.inputs[0]);
                Kind::Pool(Pool::max(geometry, input.size, input.channels))
            }
            Op::AvgPool { geometry, count_padding } => {
                let input = self.shaped(node.inputs[0]);
                Kind::Pool(Pool::average(geometry, input.size, input.channels, *count_padding))
            }
            Op::GlobalAvgPool => Kind::GlobalAverage,
            // One pixel's channels are the features, in whatever order.
            Op::Flatten if self.shaped(node.inputs[0]).pixels() == 1 => {
                self.of_node[chain.last] = Some(operands[0]);
                return Ok(());
            }
            Op::Flatten => Kind::Flatten,
            Op::Softmax => Kind::Softmax,
            Op::Gather { stride, .. } => {
                let input = self.shaped(node.inputs[0]);
                let sources = self.orders.sources(chain.first).expect("of every gather").to_vec();
                Kind::Select(Select::new(sources, input.channels, *stride, input.size))
            }
        };
        let output = match self.segments.get(&chain.last).copied() {
            Some(segment) => self.begun(segment.concat),
            None => self.value(value),
        };
        self.push(chain.first, kind, operands, output, activation);
        self.of_node[chain.last] = Some(output);
        let step = &self.plan.steps[self.plan.steps.len() - 1];
        if let Kind::Conv(prepared) = &step.kind {
            self.plan.layers.push(Layer {
                name: node.name.clone(),
                algorithm: prepared.algorithm(),
                packed_bytes: 4 * prepared.packed_len(),
                executed_macs: prepared.executed_macs(),
            });
        }
        Ok(())
    }

    /// A concatenation: what is not yet in its place is copied.
    fn concat(&mut self, node: ValueId) {
        let (mut operands, mut firsts) = (Vec::new(), Vec::new());
        for (side, first) in first_channels(self.source.graph, self.shapes, node).into_iter().enumerate() {
            if !self.segments.contains_key(&self.source.graph.nodes[node].inputs[side]) {
                operands.push(self.operand(node, side));
                firsts.push(first);
            }
        }
        let output = self.begun(node);
        if !operands.is_empty() {
            self.push(node, Kind::Concat(firsts), operands, output, None);
        }
    }

    /// A batch-norm with nothing to fold it into.
    fn norm(&self, node: ValueId) -> Result<Kind, CompileError> {
        let affine = self.source.affine(node);
        let stored = |of_channel: &[f64]| -> Vec<f32> {
            self.orders.order(node).channels().iter().map(|&channel| of_channel[channel as usize] as f32).collect()
        };
        let (scale, shift) = (stored(&affine.scale), stored(&affine.shift));
        self.source.finite(node, "weight", &scale)?;
        self.source.finite(node, "bias", &shift)?;
        Ok(Kind::Norm { scale, shift })
    }

    /// A convolution or linear layer that reads a value, and writes pixels of so many channels.
    fn layer(
        &mut self,
        chain: &Chain,
        operand: usize,
        to: usize,
        activation: Option<Activation>,
    ) -> Result<Prepared, CompileError> {
        let graph = self.source.graph;
        let node = &graph.nodes[chain.first];
        let Folded { tensors, bias } = self.source.layer(chain.first, chain.norm)?;
        let in_order = self.orders.input_order(chain.first, 0).clone();
        let out_order = self.orders.order(chain.last).clone();
        let mut spec = spec(&node.op, in_order, out_order);
        if picks(&node.op).is_some() {
            spec.geometry.stride = [1; 2];
        }
        let Value { size: in_size, channels: from } = self.plan.values[operand];
        let failed = |source| CompileError::Conv { node: node.name.clone(), source };
        let make = || Conv::new(spec.clone(), in_size).map_err(failed);
        let weights = || match &tensors[..] {
            [center, ring] => ConvWeights::Het { center, ring },
            [weight] => ConvWeights::Dense(weight),
            _ => unreachable!("a layer has one tensor of weights, or two"),
        };
        let isa = self.plan.isa;
        let segment = self.segments.get(&chain.last);
        let segment = match segment {
            Some(segment) => (self.shapes[segment.concat].channels(), segment.first),
            None => (to, 0),
        };
        let prepare = |conv: Conv, algorithm| {
            let mut prepared = conv.prepare(isa, algorithm, weights(), Some(&bias), activation);
            let [own_from, own_to] = prepared.pitches();
            if from > own_from {
                prepared = prepared.reading_wider(from);
            }
            let (pitch, first) = segment;
            if pitch > own_to { prepared.into_segment(pitch, first) } else { prepared }
        };
        let conv = make()?;
        if !self.tables.take(&conv, isa) {
            return Err(windows(&conv, node));
        }
        if self.options.tune && !self.options.exact && conv.algorithms().len() > 1 {
            let mut fastest: Option<(Duration, Prepared)> = None;
            for &algorithm in conv.algorithms() {
                let prepared = prepare(make()?, algorithm);
                let batch = self.options.batch.max(1);
                let Some(time) = time(&prepared, batch) else {
                    return Err(CompileError::TooLarge { node: node.name.clone(), batch });
                };
                if fastest.as_ref().is_none_or(|(least, _)| time < *least) {
                    fastest = Some((time, prepared));
                }
            }
            if let Some((_, prepared)) = fastest {
                return Ok(prepared);
            }
        }
        let algorithm = algorithm(&conv, isa, self.options);
        Ok(prepare(conv, algorithm))
    }
}

/// The stride of a pointwise convolution that does not read all pixels.
fn picks(op: &Op) -> Option<usize> {
    let Op::Conv2d { geometry, .. } = op else { return None };
    let [rows, columns] = geometry.stride;
    (is_pointwise(op) && rows == columns && rows > 1).then_some(rows)
}

/// The instruction set that was asked for, or the best there is.
fn selected(options: &Options) -> Result<Isa, CompileError> {
    match options.isa {
        Some(isa) => Ok(isa),
        None => Ok(Isa::selected()?),
    }
}

/// The algorithm by a fixed cost.
fn algorithm(conv: &Conv, isa: Isa, options: &Options) -> Algorithm {
    match options.exact {
        true => conv.exact(),
        false => conv.fastest_for(isa, Direction::Forward, options.batch.max(1)),
    }
}

/// Name and algorithm of every convolution and linear layer; see [`Plan::algorithms`].
pub(crate) fn algorithms(graph: &Graph, options: &Options) -> Result<Vec<(String, Algorithm)>, CompileError> {
    let shapes = graph.shapes()?;
    let orders = ChannelPlan::new(graph)?;
    let isa = selected(options)?;
    let mut tables = Tables::default();
    let is_layer = |chain: &&Chain| matches!(graph.nodes[chain.first].op, Op::Conv2d { .. } | Op::Linear { .. });
    let of_chain = |chain: &Chain| {
        let node = &graph.nodes[chain.first];
        let in_order = orders.input_order(chain.first, 0).clone();
        let spec = spec(&node.op, in_order, orders.order(chain.last).clone());
        let conv = Conv::new(spec, shapes[node.inputs[0]].size());
        let conv = conv.map_err(|source| CompileError::Conv { node: node.name.clone(), source })?;
        if !tables.take(&conv, isa) {
            return Err(windows(&conv, node));
        }
        Ok((node.name.clone(), algorithm(&conv, isa, options)))
    };
    Fusion::new(graph, &orders).chains(takes).iter().filter(is_layer).map(of_chain).collect()
}

fn windows(conv: &Conv, node: &Node) -> CompileError {
    CompileError::Windows { node: node.name.clone(), filters: conv.spec().out_channels }
}

/// The least time of some passes on this thread; nothing if there is no memory for them.
fn time(prepared: &Prepared, batch: usize) -> Option<Duration> {
    let conv = prepared.conv();
    let zeroed = |[height, width]: [usize; 2], channels: usize| {
        let len = [height, width, channels].iter().try_fold(batch, |len, &size| len.checked_mul(size))?;
        Aligned::try_zeroed(len)
    };
    let [from, to] = prepared.pitches();
    let mut source = zeroed(conv.in_size(), from)?;
    source.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 17) as f32 / 8.0 - 1.0);
    let mut target = zeroed(conv.out_size(), to)?;
    let mut scratch = Aligned::try_zeroed(prepared.scratch_len(batch))?;
    let mut pass = || {
        let started = Instant::now();
        prepared.run_alone(
            &mut scratch,
            PreparedBatch { images: batch, source: &source, residual: None, target: &mut target },
        );
        started.elapsed()
    };
    pass();
    (0..5).map(|_| pass()).min()
}

/// A convolution's or linear layer's shape.
fn spec(op: &Op, in_order: ChannelOrder, out_order: ChannelOrder) -> ConvSpec {
    let (in_channels, out_channels) = (in_order.len(), out_order.len());
    let (geometry, kind) = match op {
        Op::Conv2d { geometry, kind, .. } => (geometry.clone(), kind.clone()),
        _ => (Conv2dGeometry::same(1, 1), ConvKind::Standard),
    };
    ConvSpec { in_channels, out_channels, geometry, kind, in_order, out_order }
}
