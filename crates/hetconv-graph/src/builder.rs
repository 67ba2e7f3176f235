//! Writing a graph as a plain list of layers.

use hetconv_core::Conv2dGeometry;

use crate::shape::infer;
use crate::{Activation, ConvKind, Fault, Graph, GraphError, Node, Op, Shape, ValueId};

/// Writes a graph node by node; every method returns the value the new node produces.
///
/// The number of input channels is read from the value, so it is never written twice. A node that does not fit is
/// remembered and reported by [`GraphBuilder::finish`], so that a network reads as a plain list of layers.
///
/// ```
/// use hetconv_core::Conv2dGeometry;
/// use hetconv_graph::GraphBuilder;
/// let mut b = GraphBuilder::new("tiny");
/// let x = b.input("input", [3, 32, 32]);
/// let x = b.conv_bn_relu("conv1", x, 16, Conv2dGeometry::same(3, 2));
/// let x = b.global_avg_pool("pool", x);
/// let x = b.flatten("flatten", x);
/// let x = b.linear("classifier", x, 10, true);
/// let graph = b.finish([x])?;
/// assert_eq!(graph.cost()?.macs, 16 * 16 * 27 * 16 + 16 * 10);
/// # Ok::<(), hetconv_graph::GraphError>(())
/// ```
#[derive(Clone, Debug)]
pub struct GraphBuilder {
    graph: Graph,
    shapes: Vec<Shape>,
    fault: Option<GraphError>,
}

impl GraphBuilder {
    /// An empty network of this name.
    pub fn new(name: impl Into<String>) -> Self {
        let graph = Graph { name: name.into(), nodes: Vec::new(), outputs: Vec::new() };
        Self { graph, shapes: Vec::new(), fault: None }
    }

    /// Adds a node of any kind.
    pub fn push(&mut self, name: impl Into<String>, op: Op, inputs: impl Into<Vec<ValueId>>) -> ValueId {
        let node = Node { name: name.into(), op, inputs: inputs.into() };
        let read = |&input: &ValueId| self.shapes.get(input).copied().ok_or(Fault::Order { input });
        let shapes: Result<Vec<Shape>, Fault> = node.inputs.iter().map(read).collect();
        let shape = shapes.and_then(|shapes| infer(&node, &shapes)).unwrap_or_else(|fault| {
            self.fault.get_or_insert(fault.at(&node.name));
            // Stands in for the value that could not be computed, so that building can go on to `finish`.
            Shape::Image { channels: 1, height: 1, width: 1 }
        });
        self.shapes.push(shape);
        self.graph.nodes.push(node);
        self.graph.nodes.len() - 1
    }

    /// The shape of a value; 1×1×1 for one that does not exist.
    pub fn shape(&self, value: ValueId) -> Shape {
        self.shapes.get(value).copied().unwrap_or(Shape::Image { channels: 1, height: 1, width: 1 })
    }

    /// The network's input, `[channels, height, width]`.
    pub fn input(&mut self, name: impl Into<String>, shape: [usize; 3]) -> ValueId {
        self.push(name, Op::Input { shape }, [])
    }

    /// A convolution of any kind.
    pub fn conv(
        &mut self,
        name: impl Into<String>,
        from: ValueId,
        out_channels: usize,
        geometry: Conv2dGeometry,
        kind: ConvKind,
        bias: bool,
    ) -> ValueId {
        let in_channels = self.shape(from).channels();
        self.push(name, Op::Conv2d { in_channels, out_channels, geometry, kind, bias }, [from])
    }

    /// A standard convolution without bias and its batch-norm, `NAME` and `NAME.bn`.
    pub fn conv_bn(&mut self, name: &str, from: ValueId, out_channels: usize, geometry: Conv2dGeometry) -> ValueId {
        let x = self.conv(name, from, out_channels, geometry, ConvKind::Standard, false);
        self.batch_norm(format!("{name}.bn"), x)
    }

    /// A standard convolution without bias, batch-norm and ReLU: `NAME`, `NAME.bn`, `NAME.relu`.
    pub fn conv_bn_relu(
        &mut self,
        name: &str,
        from: ValueId,
        out_channels: usize,
        geometry: Conv2dGeometry,
    ) -> ValueId {
        let x = self.conv_bn(name, from, out_channels, geometry);
        self.relu(format!("{name}.relu"), x)
    }

    /// A depthwise convolution without bias, batch-norm and ReLU: `NAME`, `NAME.bn`, `NAME.relu`.
    pub fn depthwise_bn_relu(&mut self, name: &str, from: ValueId, geometry: Conv2dGeometry) -> ValueId {
        let channels = self.shape(from).channels();
        let x = self.conv(name, from, channels, geometry, ConvKind::Grouped(channels), false);
        let x = self.batch_norm(format!("{name}.bn"), x);
        self.relu(format!("{name}.relu"), x)
    }

    /// Batch normalisation with epsilon 10⁻⁵.
    pub fn batch_norm(&mut self, name: impl Into<String>, from: ValueId) -> ValueId {
        let channels = self.shape(from).channels();
        self.push(name, Op::BatchNorm { channels, epsilon: 1e-5 }, [from])
    }

    /// max(x, 0).
    pub fn relu(&mut self, name: impl Into<String>, from: ValueId) -> ValueId {
        self.activation(name, from, Activation::Relu)
    }

    /// An elementwise function.
    pub fn activation(&mut self, name: impl Into<String>, from: ValueId, function: Activation) -> ValueId {
        self.push(name, Op::Activation { function }, [from])
    }

    /// Elementwise sum.
    pub fn add(&mut self, name: impl Into<String>, operands: &[ValueId]) -> ValueId {
        self.push(name, Op::Add, operands)
    }

    /// Elementwise product; an operand of 1×1 pixels scales the channels of the other.
    pub fn mul(&mut self, name: impl Into<String>, operands: [ValueId; 2]) -> ValueId {
        self.push(name, Op::Mul, operands)
    }

    /// Concatenation along the channels.
    pub fn concat(&mut self, name: impl Into<String>, operands: &[ValueId]) -> ValueId {
        self.push(name, Op::Concat, operands)
    }

    /// Largest value of each window.
    pub fn max_pool(&mut self, name: impl Into<String>, from: ValueId, geometry: Conv2dGeometry) -> ValueId {
        self.push(name, Op::MaxPool { geometry }, [from])
    }

    /// Mean over all pixels of each channel.
    pub fn global_avg_pool(&mut self, name: impl Into<String>, from: ValueId) -> ValueId {
        self.push(name, Op::GlobalAvgPool, [from])
    }

    /// Image to features.
    pub fn flatten(&mut self, name: impl Into<String>, from: ValueId) -> ValueId {
        self.push(name, Op::Flatten, [from])
    }

    /// Fully connected layer.
    pub fn linear(&mut self, name: impl Into<String>, from: ValueId, out_features: usize, bias: bool) -> ValueId {
        let in_features = self.shape(from).channels();
        self.push(name, Op::Linear { in_features, out_features, bias }, [from])
    }

    /// The finished network.
    ///
    /// # Errors
    /// The first node that did not fit, or any other fault [`Graph::validate`] finds.
    pub fn finish(mut self, outputs: impl Into<Vec<ValueId>>) -> Result<Graph, GraphError> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.graph.outputs = outputs.into();
        self.graph.validate()?;
        Ok(self.graph)
    }
}
