//! A graph compiled to the operations of this crate: channel orders settled, batch-norm fused with what follows it.
//!
//! A batch-norm takes in the sum of two and the ReLU that follow it; see [`Fusion`]. If there is no sum, and only a
//! convolution reads the result, that convolution takes the batch-norm in: its input is never stored.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::{Tensor, activation};
use hetconv_core::{Conv2dGeometry, ConvKind};
use hetconv_graph::{Activation, Chain, ChannelPlan, Classifier, Fusion, Graph, Node, Op, Shape, Takes, ValueId};
use hetconv_kernels::select::Select;
use hetconv_kernels::{ColumnSums, Conv, ConvSpec, Tables};

use crate::ops::{
    ConvOp, ConvRequest, ConvTensors, Moments, NormOp, NormTensors, Normalised, PoolKind, PoolOp, SelectOp,
    global_avg_pool, scale_channels,
};
use crate::parameters::Leaves;
use crate::selection::Selection;
use crate::{Implementation, ModuleError};

/// A compiled graph.
#[derive(Debug)]
pub(crate) struct Program {
    pub graph: Graph,
    pub shapes: Vec<Shape>,
    pub implementation: Implementation,
    /// `[channels, height, width]` of an image.
    pub input: [usize; 3],
    /// The network's result.
    pub output: ValueId,
    /// What is trained: the result, or what its softmax reads.
    pub logits: ValueId,
    instructions: Vec<Instruction>,
    /// How often each value is read by instructions.
    reads: Vec<usize>,
    /// Whether a batch-norm reads each value as it was written, and with it its channels' sums.
    summed: Vec<bool>,
    /// Brings the result, and the logits, into natural order.
    to_natural: HashMap<ValueId, Selection>,
    /// A batch-norm of single pixels, which has no variance over one image.
    pub norm_of_one_pixel: Option<String>,
}

#[derive(Debug)]
struct Instruction {
    step: Step,
    operands: Vec<Operand>,
    output: ValueId,
}

#[derive(Debug)]
struct Operand {
    value: ValueId,
    gather: Option<Selection>,
}

impl Instruction {
    /// The first operand, if it is read as it was written.
    fn unmoved(&self) -> Option<ValueId> {
        self.operands.first().filter(|operand| operand.gather.is_none()).map(|operand| operand.value)
    }
}

#[derive(Debug)]
enum Step {
    Input,
    Conv {
        op: ConvOp,
        weights: ConvWeightIds,
        bias: Option<usize>,
        norm: Option<Norm>,
    },
    Norm(Norm),
    Pool(PoolOp),
    GlobalAvgPool,
    Activation(Activation),
    Add,
    /// A product, and the ReLU behind it.
    Mul {
        relu: bool,
    },
    /// An image whose channels are scaled, and the ReLU behind it.
    Scale {
        relu: bool,
    },
    Concat,
    Flatten,
    Softmax,
    Select(SelectOp),
}

impl Step {
    /// Whether a batch-norm reads the first operand.
    fn has_norm(&self) -> bool {
        matches!(self, Step::Norm(_) | Step::Conv { norm: Some(_), .. })
    }
}

/// Indices of parameters.
#[derive(Debug)]
enum ConvWeightIds {
    Dense(usize),
    Linear(usize),
    Het { center: usize, ring: usize },
}

/// A batch-norm with its parameters' indices.
#[derive(Debug)]
pub(crate) struct Norm {
    op: NormOp,
    scale: usize,
    shift: usize,
    pub mean: usize,
    pub variance: usize,
}

/// Whether batch-norm uses the batch's statistics or its running ones.
pub(crate) enum Pass<'a> {
    /// Collects the moments of every batch-norm: where its running ones are kept, the batch's, and how many values each
    /// was taken over.
    Training(&'a mut Vec<(RunningIds, Moments, usize)>),
    Evaluation {
        /// Whether convolutions may use Winograd's algorithm.
        fast: bool,
    },
}

/// Indices of the parameters that hold running statistics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunningIds {
    pub mean: usize,
    pub variance: usize,
}

impl Program {
    pub fn new(graph: &Graph, implementation: Implementation) -> Result<Self, ModuleError> {
        let shapes = graph.shapes()?;
        let Classifier { image: input, output, logits, .. } = graph.classifier()?;
        let plan = ChannelPlan::new(graph)?;
        let compiler = Compiler { graph, shapes: &shapes, plan: &plan, implementation, indices: indices(graph)? };
        let mut instructions = Vec::with_capacity(graph.nodes.len());
        let fusion = Fusion::new(graph, &plan).keeping(logits);
        // The chain that a convolution takes in.
        let mut of_reader = HashMap::new();
        for chain in fusion.chains(takes) {
            match &graph.nodes[chain.first].op {
                Op::BatchNorm { .. } => match fusion.only_reader(chain.last) {
                    Some((reader, _)) if chain.sum.is_none() && matches!(graph.nodes[reader].op, Op::Conv2d { .. }) => {
                        of_reader.insert(reader, chain);
                    }
                    _ => instructions.push(compiler.norm_instruction(chain)),
                },
                Op::Mul => instructions.push(compiler.product(chain)),
                _ => instructions.push(match of_reader.remove(&chain.first) {
                    Some(norm) => compiler.conv_of_norm(norm, chain.first)?,
                    None => compiler.instruction(chain.first)?,
                }),
            }
        }
        if let Implementation::Kernels(isa) = implementation {
            let mut tables = Tables::default();
            for instruction in &instructions {
                if let Step::Conv { op, .. } = &instruction.step
                    && !tables.take(op.conv(), isa)
                {
                    let (node, filters) = (&graph.nodes[instruction.output], op.conv().spec().out_channels);
                    return Err(ModuleError::Windows { node: node.name.clone(), filters });
                }
            }
        }
        let mut reads = vec![0; graph.nodes.len()];
        for operand in instructions.iter().flat_map(|instruction| &instruction.operands) {
            reads[operand.value] += 1;
        }
        let mut summed = vec![false; graph.nodes.len()];
        for instruction in instructions.iter().filter(|instruction| instruction.step.has_norm()) {
            instruction.unmoved().into_iter().for_each(|value| summed[value] = true);
        }
        let natural = |value: ValueId| {
            let order = plan.order(value);
            (value, Selection::new(&order.positions(), order.len()))
        };
        let to_natural = [output, logits].map(natural).into();
        let sees_one_pixel =
            |(node, shape): &(&Node, &Shape)| matches!(node.op, Op::BatchNorm { .. }) && shape.size() == [1, 1];
        let norm_of_one_pixel = graph.nodes.iter().zip(&shapes).find(sees_one_pixel).map(|(node, _)| node.name.clone());
        let graph = graph.clone();
        Ok(Self {
            norm_of_one_pixel,
            graph,
            shapes,
            implementation,
            input,
            output,
            logits,
            instructions,
            reads,
            summed,
            to_natural,
        })
    }

    /// Computes `wanted`, which is the output or the logits, from images `[batch, height, width, channels]`.
    pub fn run(&self, images: Tensor<4>, parameters: &Leaves, mut pass: Pass<'_>, wanted: ValueId) -> Tensor<2> {
        let mut reads = self.reads.clone();
        reads[wanted] += 1;
        let mut values: Vec<Option<Tensor<4>>> = vec![None; self.graph.nodes.len()];
        // Sums over a convolution's results, for a batch-norm that reads them.
        let mut sums: HashMap<ValueId, ColumnSums> = HashMap::new();
        let mut images = Some(images);
        for instruction in &self.instructions {
            let mut read = |operand: &Operand| {
                reads[operand.value] -= 1;
                let slot = &mut values[operand.value];
                let value = if reads[operand.value] == 0 { slot.take() } else { slot.clone() };
                let value = value.expect("operands are computed before they are read");
                match &operand.gather {
                    Some(gather) => gather.apply(value, 3),
                    None => value,
                }
            };
            let operands: Vec<Tensor<4>> = instruction.operands.iter().map(&mut read).collect();
            let result = match &instruction.step {
                Step::Input => images.take().expect("one input"),
                step => {
                    let read = instruction.unmoved().and_then(|value| sums.remove(&value));
                    let request = ConvRequest {
                        fast: matches!(pass, Pass::Evaluation { fast: true }),
                        sums: matches!(pass, Pass::Training(_)) && self.summed[instruction.output],
                    };
                    let (result, counted) = self.step(step, operands, read, request, parameters, &mut pass);
                    sums.extend(counted.map(|counted| (instruction.output, counted)));
                    result
                }
            };
            if instruction.output == wanted {
                let [batch, height, width, channels] = result.dims();
                let result = self.to_natural[&wanted].apply(result, 3);
                return result.reshape([batch, height * width * channels]);
            }
            if reads[instruction.output] > 0 {
                values[instruction.output] = Some(result);
            }
        }
        unreachable!("a graph's output is one of its nodes")
    }

    /// The result, and the sums of its channels where they were asked for and counted on the way; `sums` are those of the
    /// first operand.
    fn step(
        &self,
        step: &Step,
        operands: Vec<Tensor<4>>,
        sums: Option<ColumnSums>,
        request: ConvRequest,
        parameters: &Leaves,
        pass: &mut Pass<'_>,
    ) -> (Tensor<4>, Option<ColumnSums>) {
        let mut operands = operands.into_iter();
        let mut next = || operands.next().expect("shape inference checked the number of operands");
        let result = match step {
            Step::Input => unreachable!("read by `run`"),
            Step::Conv { op, weights, bias, norm } => {
                let weights = match *weights {
                    ConvWeightIds::Dense(weight) => ConvTensors::Dense(parameters.get(weight)),
                    ConvWeightIds::Het { center, ring } => {
                        ConvTensors::Het { center: parameters.get(center), ring: parameters.get(ring) }
                    }
                    ConvWeightIds::Linear(weight) => {
                        let weight: Tensor<2> = parameters.get(weight);
                        let [filters, channels] = weight.dims();
                        ConvTensors::Dense(weight.reshape([filters, channels, 1, 1]))
                    }
                };
                let bias = bias.map(|bias| parameters.get(bias));
                let Some(norm) = norm else { return op.forward_as_asked(next(), weights, bias, request) };
                let input = Normalised { norm: &norm.op, x: next(), affine: norm.affine(parameters) };
                match pass {
                    Pass::Training(collected) => {
                        let pixels = pixels(&input.x);
                        let (y, sums, moments) = op.forward_through_norm(input, sums, weights, bias, request);
                        collected.push((norm.running(), moments, pixels));
                        return (y, sums);
                    }
                    Pass::Evaluation { .. } => {
                        let moments = norm.running_moments(parameters);
                        op.evaluate_through_norm(input, moments, weights, bias, request.fast)
                    }
                }
            }
            Step::Norm(norm) => {
                let (x, affine) = (next(), norm.affine(parameters));
                let residual = operands.next();
                match pass {
                    Pass::Training(collected) => {
                        let pixels = pixels(&x);
                        let (y, moments) = norm.op.forward_with_sums(x, sums, affine, residual);
                        collected.push((norm.running(), moments, pixels));
                        y
                    }
                    Pass::Evaluation { .. } => norm.op.evaluate(x, affine, norm.running_moments(parameters), residual),
                }
            }
            Step::Pool(op) => op.forward(next()),
            Step::GlobalAvgPool => global_avg_pool(self.implementation, next()),
            Step::Activation(function) => activate(*function, next()),
            Step::Add => {
                let first = next();
                operands.fold(first, |sum, operand| sum + operand)
            }
            Step::Mul { relu } => {
                let first = next();
                let product = operands.fold(first, |product, operand| product * operand);
                if *relu { activation::relu(product) } else { product }
            }
            Step::Scale { relu } => {
                let image = next();
                scale_channels(self.implementation, image, next(), *relu)
            }
            Step::Concat => Tensor::cat(operands.collect(), 3),
            // Features are numbered channel by channel; the plan has several pixels' channels in natural order.
            Step::Flatten => {
                let image = next();
                let [batch, height, width, channels] = image.dims();
                image.permute([0, 3, 1, 2]).reshape([batch, 1, 1, channels * height * width])
            }
            Step::Softmax => activation::softmax(next(), 3),
            Step::Select(op) => op.forward(next()),
        };
        (result, None)
    }
}

impl Norm {
    fn affine(&self, parameters: &Leaves) -> NormTensors {
        NormTensors { scale: parameters.get(self.scale), shift: parameters.get(self.shift) }
    }

    fn running(&self) -> RunningIds {
        RunningIds { mean: self.mean, variance: self.variance }
    }

    fn running_moments(&self, parameters: &Leaves) -> Moments {
        Moments { mean: parameters.get(self.mean), variance: parameters.get(self.variance) }
    }
}

/// Pixels of all images.
fn pixels(x: &Tensor<4>) -> usize {
    let [batch, height, width, _] = x.dims();
    batch * height * width
}

fn activate(function: Activation, x: Tensor<4>) -> Tensor<4> {
    match function {
        Activation::Relu => activation::relu(x),
        Activation::Relu6 => activation::relu6(x),
        Activation::Sigmoid => activation::sigmoid(x),
        Activation::HardSigmoid => activation::hard_sigmoid(x, 1.0 / 6.0, 0.5),
        Activation::HardSwish => activation::hard_swish(x),
        Activation::Silu => activation::silu(x),
    }
}

/// Index of every parameter by name.
fn indices(graph: &Graph) -> Result<HashMap<String, usize>, ModuleError> {
    Ok(graph.weight_specs()?.into_iter().enumerate().map(|(index, spec)| (spec.name, index)).collect())
}

/// What a node takes in, apart from a convolution.
fn takes(op: &Op) -> Takes {
    let relu = Takes { activation: |function| function == Activation::Relu, ..Takes::NOTHING };
    match op {
        Op::BatchNorm { .. } => Takes { sum: true, ..relu },
        Op::Mul => relu,
        _ => Takes::NOTHING,
    }
}

struct Compiler<'a> {
    graph: &'a Graph,
    shapes: &'a [Shape],
    plan: &'a ChannelPlan,
    implementation: Implementation,
    indices: HashMap<String, usize>,
}

impl Compiler<'_> {
    fn operand(&self, node: ValueId, side: usize) -> Operand {
        let value = self.graph.nodes[node].inputs[side];
        let gather = self.plan.gather(node, side).map(|gather| Selection::new(gather, self.channels(value)));
        Operand { value, gather }
    }

    fn channels(&self, value: ValueId) -> usize {
        self.shapes[value].channels()
    }

    fn index(&self, node: ValueId, suffix: &str) -> usize {
        self.indices[&format!("{}.{suffix}", self.graph.nodes[node].name)]
    }

    fn norm(&self, chain: Chain) -> Norm {
        let Op::BatchNorm { epsilon, .. } = self.graph.nodes[chain.first].op else {
            unreachable!("a chain that starts at a batch-norm")
        };
        let index = |suffix: &str| self.index(chain.first, suffix);
        let relu = chain.activation.is_some();
        Norm {
            op: NormOp::new(self.plan.input_order(chain.first, 0).clone(), epsilon, relu, self.implementation),
            scale: index("weight"),
            shift: index("bias"),
            mean: index("running_mean"),
            variance: index("running_var"),
        }
    }

    fn norm_instruction(&self, chain: Chain) -> Instruction {
        let mut operands = vec![self.operand(chain.first, 0)];
        operands.extend(chain.sum.map(|(sum, side)| self.operand(sum, side)));
        Instruction { step: Step::Norm(self.norm(chain)), operands, output: chain.last }
    }

    /// A product; of an image and one number for each of its channels if that is what it is.
    fn product(&self, chain: Chain) -> Instruction {
        let inputs = &self.graph.nodes[chain.first].inputs;
        let mut operands: Vec<Operand> = (0..inputs.len()).map(|side| self.operand(chain.first, side)).collect();
        let (relu, is_scale) = (chain.activation.is_some(), |&value: &ValueId| self.shapes[value].size() == [1, 1]);
        let step = match inputs.as_slice() {
            [image, scale] if is_scale(scale) && !is_scale(image) => Step::Scale { relu },
            [scale, image] if is_scale(scale) && !is_scale(image) => {
                operands.swap(0, 1);
                Step::Scale { relu }
            }
            _ => Step::Mul { relu },
        };
        Instruction { step, operands, output: chain.last }
    }

    fn conv_of_norm(&self, chain: Chain, conv: ValueId) -> Result<Instruction, ModuleError> {
        let mut instruction = self.instruction(conv)?;
        let Step::Conv { norm, .. } = &mut instruction.step else { unreachable!("its reader is a convolution") };
        *norm = Some(self.norm(chain));
        instruction.operands = vec![self.operand(chain.first, 0)];
        Ok(instruction)
    }

    fn conv(&self, id: ValueId, spec: ConvSpec, weights: ConvWeightIds, bias: bool) -> Result<Step, ModuleError> {
        let in_size = self.shapes[self.graph.nodes[id].inputs[0]].size();
        let conv = Conv::new(spec, in_size);
        let conv = conv.map_err(|source| ModuleError::Conv { node: self.graph.nodes[id].name.clone(), source })?;
        let bias = bias.then(|| self.index(id, "bias"));
        Ok(Step::Conv { op: ConvOp::new(Arc::new(conv), self.implementation), weights, bias, norm: None })
    }

    fn pool(&self, id: ValueId, kind: PoolKind, geometry: &Conv2dGeometry) -> Result<Step, ModuleError> {
        let node = &self.graph.nodes[id];
        let pool = PoolOp::new(kind, geometry.clone(), self.shapes[node.inputs[0]].size(), self.implementation);
        pool.map(Step::Pool).map_err(|source| ModuleError::Pool { node: node.name.clone(), source })
    }

    fn instruction(&self, id: ValueId) -> Result<Instruction, ModuleError> {
        let node = &self.graph.nodes[id];
        let operands = (0..node.inputs.len()).map(|side| self.operand(id, side)).collect();
        let out_order = self.plan.order(id).clone();
        let step = match &node.op {
            Op::Input { .. } => Step::Input,
            Op::Conv2d { in_channels, out_channels, geometry, kind, bias } => {
                let weights = match kind {
                    ConvKind::Standard | ConvKind::Grouped(_) => ConvWeightIds::Dense(self.index(id, "weight")),
                    ConvKind::Het(_) => {
                        ConvWeightIds::Het { center: self.index(id, "center"), ring: self.index(id, "ring") }
                    }
                };
                let spec = ConvSpec {
                    in_channels: *in_channels,
                    out_channels: *out_channels,
                    geometry: geometry.clone(),
                    kind: kind.clone(),
                    in_order: self.plan.input_order(id, 0).clone(),
                    out_order,
                };
                self.conv(id, spec, weights, *bias)?
            }
            Op::Linear { in_features, out_features, bias } => {
                let spec = ConvSpec {
                    in_channels: *in_features,
                    out_channels: *out_features,
                    geometry: Conv2dGeometry::same(1, 1),
                    kind: ConvKind::Standard,
                    in_order: self.plan.input_order(id, 0).clone(),
                    out_order,
                };
                self.conv(id, spec, ConvWeightIds::Linear(self.index(id, "weight")), *bias)?
            }
            Op::BatchNorm { .. } => unreachable!("a batch-norm is the start of a chain"),
            Op::Activation { function } => Step::Activation(*function),
            Op::Add => Step::Add,
            Op::Mul => unreachable!("a product is the start of a chain"),
            Op::Concat => Step::Concat,
            Op::MaxPool { geometry } => self.pool(id, PoolKind::Max, geometry)?,
            Op::AvgPool { geometry, count_padding } => {
                self.pool(id, PoolKind::Avg { count_padding: *count_padding }, geometry)?
            }
            Op::GlobalAvgPool => Step::GlobalAvgPool,
            Op::Flatten => Step::Flatten,
            Op::Softmax => Step::Softmax,
            Op::Gather { stride, .. } => self.gather(id, *stride),
        };
        Ok(Instruction { step, operands, output: id })
    }

    fn gather(&self, id: ValueId, stride: usize) -> Step {
        let sources = self.plan.sources(id).expect("the plan has the sources of every gather").to_vec();
        let input = self.graph.nodes[id].inputs[0];
        let select = Select::new(sources, self.channels(input), stride, self.shapes[input].size());
        Step::Select(SelectOp::new(select, self.implementation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hetconv_graph::{GraphBuilder, ModelName, zoo};

    fn program(graph: &Graph) -> Program {
        Program::new(graph, Implementation::Composed).unwrap()
    }

    /// The names of the nodes whose instruction is such a step.
    fn names(program: &Program, is: impl Fn(&Step) -> bool) -> Vec<&str> {
        let found = program.instructions.iter().filter(|instruction| is(&instruction.step));
        found.map(|instruction| program.graph.nodes[instruction.output].name.as_str()).collect()
    }

    fn takes_norm(step: &Step) -> bool {
        matches!(step, Step::Conv { norm: Some(_), .. })
    }

    #[test]
    fn every_batch_norm_of_a_residual_network_is_fused() {
        let program = program(&zoo::build(&"resnet20_p4".parse::<ModelName>().unwrap(), 10).unwrap());
        assert!(names(&program, |step| matches!(step, Step::Add | Step::Activation(_))).is_empty());
        assert_eq!(names(&program, takes_norm).len(), 9, "the second convolution of every block");
        assert_eq!(
            names(&program, |step| matches!(step, Step::Norm(_))).len(),
            10,
            "the stem's and every block's second"
        );
    }

    #[test]
    fn a_convolution_takes_in_a_batch_norm_that_it_alone_reads() {
        let mut b = GraphBuilder::new("conv");
        let x = b.input("image", [4, 8, 8]);
        let norm = b.batch_norm("norm", x);
        let conv = b.conv("conv", norm, 4, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
        let shared = b.batch_norm("shared", conv);
        let one = b.conv("one", shared, 4, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
        let two = b.conv("two", shared, 4, Conv2dGeometry::same(3, 1), ConvKind::Standard, false);
        let sum = b.add("sum", &[one, two]);
        let y = b.global_avg_pool("pool", sum);
        let y = b.flatten("flatten", y);
        let program = program(&b.finish([y]).unwrap());
        assert_eq!(names(&program, takes_norm), ["conv"]);
        assert_eq!(names(&program, |step| matches!(step, Step::Norm(_))), ["shared"]);
    }
}
