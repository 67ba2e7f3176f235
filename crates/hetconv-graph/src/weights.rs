//! A network's numbers: what weights a graph asks for, and the tensors that hold them by name.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::{ChannelAffine, ConvKind, Graph, GraphError, Node, Op};

/// One weight tensor a graph asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// `NODE.weight`, `NODE.center`, `NODE.ring`, `NODE.bias`, `NODE.running_mean` or `NODE.running_var`.
    pub name: String,
    /// Extent of every axis.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: WeightRole,
}

impl WeightSpec {
    /// Number of elements, spare ring slots included.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of elements that are weights: spare ring slots are not.
    pub fn weights(&self) -> usize {
        match &self.role {
            WeightRole::HetRing { slots, .. } => slots.iter().sum::<usize>() * self.shape[2],
            _ => self.elements(),
        }
    }
}

/// What a weight tensor is for. A fan-in is the number of products that are summed into one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightRole {
    /// `[N, M/groups, kh, kw]` of a standard, grouped or depthwise convolution.
    Convolution {
        /// (M/groups)·kh·kw.
        fan_in: usize,
    },
    /// `[N, M]`, the centre taps of a HetConv layer.
    HetCenter {
        /// M + (kh·kw−1)·S_f for every filter f, where S_f is the number of its spatial channels.
        fan_in: Vec<usize>,
    },
    /// `[N, S, kh·kw−1]`, the off-centre taps of a HetConv layer, row-major without the centre. Of the S slots filter f
    /// uses the first S_f, one per spatial channel in ascending order; the others are spare and hold +0.
    HetRing {
        /// As of the centre taps: the two tensors are one filter.
        fan_in: Vec<usize>,
        /// S_f for every filter f.
        slots: Vec<usize>,
    },
    /// `[out, in]` of a linear layer.
    Linear {
        /// Number of input features.
        fan_in: usize,
    },
    /// One number per filter or output feature.
    Bias,
    /// Factor per channel of a batch-norm.
    NormScale,
    /// Summand per channel of a batch-norm.
    NormShift,
    /// Mean per channel seen in training.
    RunningMean,
    /// Variance per channel seen in training.
    RunningVar,
}

impl WeightRole {
    /// Whether gradient descent changes it; running statistics it does not.
    pub fn trainable(&self) -> bool {
        !matches!(self, WeightRole::RunningMean | WeightRole::RunningVar)
    }

    /// Whether weight decay makes sense for it: true for the kernels of convolutions and linear layers, false for
    /// biases and batch-norm.
    pub fn decays(&self) -> bool {
        match self {
            WeightRole::Convolution { .. }
            | WeightRole::HetCenter { .. }
            | WeightRole::HetRing { .. }
            | WeightRole::Linear { .. } => true,
            WeightRole::Bias
            | WeightRole::NormScale
            | WeightRole::NormShift
            | WeightRole::RunningMean
            | WeightRole::RunningVar => false,
        }
    }
}

impl Graph {
    /// The weight tensors the graph asks for, in the order of its nodes.
    ///
    /// # Errors
    /// The fault [`Graph::validate`] finds.
    pub fn weight_specs(&self) -> Result<Vec<WeightSpec>, GraphError> {
        self.validate()?;
        Ok(self.nodes.iter().flat_map(node_specs).collect())
    }
}

/// The weights of one node of a valid graph.
pub(crate) fn node_specs(node: &Node) -> Vec<WeightSpec> {
    let spec =
        |suffix: &str, shape: Vec<usize>, role| WeightSpec { name: format!("{}.{suffix}", node.name), shape, role };
    let mut specs = Vec::new();
    match &node.op {
        Op::Conv2d { in_channels, out_channels, geometry, kind, bias } => {
            let [height, width] = geometry.kernel;
            let dense = |groups: usize| {
                let shape = vec![*out_channels, in_channels / groups, height, width];
                let fan_in = shape[1..].iter().product();
                spec("weight", shape, WeightRole::Convolution { fan_in })
            };
            match kind {
                ConvKind::Standard => specs.push(dense(1)),
                ConvKind::Grouped(groups) => specs.push(dense(*groups)),
                ConvKind::Het(pattern) => {
                    let ring = geometry.taps() - 1;
                    let slots = pattern.slots();
                    let fan_in = pattern.fan_in(geometry.taps());
                    let role = WeightRole::HetCenter { fan_in: fan_in.clone() };
                    specs.push(spec("center", vec![*out_channels, *in_channels], role));
                    let shape = vec![*out_channels, pattern.max_spatial(), ring];
                    specs.push(spec("ring", shape, WeightRole::HetRing { fan_in, slots }));
                }
            }
            if *bias {
                specs.push(spec("bias", vec![*out_channels], WeightRole::Bias));
            }
        }
        Op::BatchNorm { channels, .. } => {
            let each = [
                ("weight", WeightRole::NormScale),
                ("bias", WeightRole::NormShift),
                ("running_mean", WeightRole::RunningMean),
                ("running_var", WeightRole::RunningVar),
            ];
            specs.extend(each.map(|(suffix, role)| spec(suffix, vec![*channels], role)));
        }
        Op::Linear { in_features, out_features, bias } => {
            let role = WeightRole::Linear { fan_in: *in_features };
            specs.push(spec("weight", vec![*out_features, *in_features], role));
            if *bias {
                specs.push(spec("bias", vec![*out_features], WeightRole::Bias));
            }
        }
        _ => {}
    }
    specs
}

/// A dense row-major tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightTensor {
    /// Extent of every axis.
    pub shape: Vec<usize>,
    /// The elements, as many as the product of the extents.
    pub data: Vec<f32>,
}

/// Why weights do not belong to a graph.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The graph itself is at fault.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A tensor the graph asks for is not there.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor the graph does not ask for.
    #[error("tensor `{name}` belongs to no node of the graph")]
    Unexpected {
        /// Its name.
        name: String,
    },
    /// A tensor of the wrong shape.
    #[error("tensor `{name}` has shape {found:?}, but the graph asks for {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// The shape asked for.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A tensor whose data does not fill its shape.
    #[error("tensor `{name}` has {found} elements, but its shape {shape:?} needs another number")]
    Elements {
        /// Its name.
        name: String,
        /// The shape it claims.
        shape: Vec<usize>,
        /// Its elements.
        found: usize,
    },
    /// A number in a ring slot that belongs to no channel.
    #[error("tensor `{name}`: slot {slot} of filter {filter} is spare and must be 0, but holds {value}")]
    SpareSlot {
        /// Its name.
        name: String,
        /// The filter.
        filter: usize,
        /// The slot.
        slot: usize,
        /// What it holds.
        value: f32,
    },
}

/// A number that no network computes with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// A weight that is NaN or infinite.
    #[error("tensor `{name}` holds {value}")]
    NotFinite {
        /// The tensor's name.
        name: String,
        /// What it holds.
        value: f32,
    },
    /// A batch-norm whose variance and epsilon are not positive together.
    #[error("node `{node}`: the variance {variance} of channel {channel} has no root")]
    Variance {
        /// The node.
        node: String,
        /// The channel.
        channel: usize,
        /// Its running variance.
        variance: f32,
    },
}

/// A network's weight tensors by name, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights(BTreeMap<String, WeightTensor>);

impl Weights {
    /// No weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fresh weights for training: convolutions He-normal with standard deviation √(2/fan-in) per filter, linear layers
    /// uniform with standard deviation √(1/fan-in), biases and shifts 0, scales 1, running mean 0 and variance 1.
    ///
    /// Every tensor is drawn from a stream of its own, which depends on the seed and the tensor's name alone: what else
    /// is in the graph does not change it.
    ///
    /// # Errors
    /// The fault [`Graph::validate`] finds.
    pub fn init(graph: &Graph, seed: u64) -> Result<Self, GraphError> {
        let tensor = |spec: WeightSpec| {
            let data = draw(&spec, seed);
            (spec.name, WeightTensor { shape: spec.shape, data })
        };
        Ok(Self(graph.weight_specs()?.into_iter().map(tensor).collect()))
    }

    /// Checks that these are the weights of the graph: every tensor there with the right shape, none besides, spare
    /// ring slots 0.
    ///
    /// # Errors
    /// The first fault, naming the tensor.
    pub fn check(&self, graph: &Graph) -> Result<(), WeightError> {
        let specs = graph.weight_specs()?;
        for spec in &specs {
            let name = spec.name.clone();
            let tensor = self.get(&name).ok_or_else(|| WeightError::Missing { name: name.clone() })?;
            if tensor.shape != spec.shape {
                let (expected, found) = (spec.shape.clone(), tensor.shape.clone());
                return Err(WeightError::Shape { name, expected, found });
            }
            if tensor.data.len() != spec.elements() {
                return Err(WeightError::Elements { name, shape: spec.shape.clone(), found: tensor.data.len() });
            }
            if let WeightRole::HetRing { slots, .. } = &spec.role {
                check_spare_slots(&name, tensor, slots)?;
            }
        }
        if self.0.len() == specs.len() {
            return Ok(());
        }
        let known: std::collections::HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        match self.0.keys().find(|name| !known.contains(name.as_str())) {
            Some(name) => Err(WeightError::Unexpected { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// Checks that every number is finite and every batch-norm's variance has a root.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_values(&self, graph: &Graph) -> Result<(), ValueError> {
        for (name, tensor) in self.iter() {
            if let Some(&value) = tensor.data.iter().find(|value| !value.is_finite()) {
                return Err(ValueError::NotFinite { name: name.to_owned(), value });
            }
        }
        for node in &graph.nodes {
            let Op::BatchNorm { epsilon, .. } = node.op else { continue };
            let variances = self.get(&format!("{}.running_var", node.name)).map_or(&[][..], |tensor| &tensor.data);
            if let Some((channel, variance)) = ChannelAffine::without_root(variances, epsilon) {
                return Err(ValueError::Variance { node: node.name.clone(), channel, variance });
            }
        }
        Ok(())
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&WeightTensor> {
        self.0.get(name)
    }

    /// The tensor of this name, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut WeightTensor> {
        self.0.get_mut(name)
    }

    /// Puts a tensor under a name and returns the one that was there.
    pub fn insert(&mut self, name: impl Into<String>, tensor: WeightTensor) -> Option<WeightTensor> {
        self.0.insert(name.into(), tensor)
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Option<WeightTensor> {
        self.0.remove(name)
    }

    /// All tensors by name, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &WeightTensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// All tensors by name, ascending, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut WeightTensor)> {
        self.0.iter_mut().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, WeightTensor)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, WeightTensor)>>(tensors: I) -> Self {
        Self(tensors.into_iter().collect())
    }
}

impl IntoIterator for Weights {
    type Item = (String, WeightTensor);
    type IntoIter = std::collections::btree_map::IntoIter<String, WeightTensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

fn check_spare_slots(name: &str, tensor: &WeightTensor, used: &[usize]) -> Result<(), WeightError> {
    let [_, slots, taps] = tensor.shape[..] else { return Ok(()) };
    if taps == 0 || slots == 0 {
        return Ok(());
    }
    for (filter, ring) in tensor.data.chunks_exact(slots * taps).enumerate() {
        // +0 alone: −0 and everything else would make two files of one network.
        let spare = ring.iter().enumerate().skip(used[filter] * taps);
        if let Some((at, &value)) = spare.into_iter().find(|(_, value)| value.to_bits() != 0) {
            return Err(WeightError::SpareSlot { name: name.to_owned(), filter, slot: at / taps, value });
        }
    }
    Ok(())
}

/// The initial elements of one tensor.
pub(crate) fn draw(spec: &WeightSpec, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(fnv1a(&spec.name));
    let elements = spec.elements();
    let mut he_normal = |fan_in: usize| (normal(&mut rng) * (2.0 / fan_in as f64).sqrt()) as f32;
    match &spec.role {
        WeightRole::Convolution { fan_in } => (0..elements).map(|_| he_normal(*fan_in)).collect(),
        WeightRole::HetCenter { fan_in } => {
            let channels = spec.shape[1];
            (0..elements).map(|i| he_normal(fan_in[i / channels])).collect()
        }
        WeightRole::HetRing { fan_in, slots } => {
            let mut data = vec![0.0; elements];
            let (stride, taps) = (spec.shape[1] * spec.shape[2], spec.shape[2]);
            for (filter, (&fan_in, &slots)) in fan_in.iter().zip(slots).enumerate() {
                data[filter * stride..][..slots * taps].fill_with(|| he_normal(fan_in));
            }
            data
        }
        WeightRole::Linear { fan_in } => {
            // A uniform distribution on ±b has standard deviation b/√3.
            let bound = (3.0 / *fan_in as f64).sqrt();
            (0..elements).map(|_| ((2.0 * uniform(&mut rng) - 1.0) * bound) as f32).collect()
        }
        WeightRole::NormScale | WeightRole::RunningVar => vec![1.0; elements],
        WeightRole::Bias | WeightRole::NormShift | WeightRole::RunningMean => vec![0.0; elements],
    }
}

/// A number in [0, 1) with 53 random bits.
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// A draw from the standard normal distribution (Box and Muller's transform of two uniform draws).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}

/// The FNV-1a hash of a name, 64 bits.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
