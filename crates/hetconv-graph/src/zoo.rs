//! The networks of the paper, and a small one for quick runs.
//!
//! All expect RGB images: 32×32 pixels for the CIFAR networks, 224×224 for the ImageNet ones.

use hetconv_core::Conv2dGeometry;

use crate::rewrite::{RewriteNote, RewriteOptions, Substitution, rewrite};
use crate::{Graph, GraphBuilder, GraphError, ModelName, Op, ValueId, squeeze_excite};

/// What is known about an architecture.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// Its name, the `ARCH` of [`ModelName`].
    pub name: &'static str,
    /// One line about it.
    pub description: &'static str,
    /// Classes it usually has: 10 for CIFAR-10, 1000 for ImageNet.
    pub classes: usize,
    /// What kind of network it is.
    pub family: Family,
    /// What images it is for.
    pub images: Images,
    layers: fn(&mut GraphBuilder, usize) -> ValueId,
}

/// Kinds of networks, which learn alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Convolutions one after another.
    Vgg,
    /// Residual blocks.
    ResNet,
    /// Depthwise separable convolutions.
    MobileNet,
}

/// What images a network is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Images {
    /// 32×32 pixels.
    Cifar,
    /// 224×224 pixels.
    ImageNet,
}

/// The architecture of this name.
pub fn architecture(name: &str) -> Option<&'static Architecture> {
    architectures().iter().find(|architecture| architecture.name == name)
}

/// All architectures, small first.
pub fn architectures() -> &'static [Architecture] {
    const CIFAR: usize = 10;
    const IMAGENET: usize = 1000;
    &[
        Architecture {
            name: "small-cifar",
            description: "four 3×3 convolutions, 32×32 images, 3.4M MACs: for quick runs",
            classes: CIFAR,
            family: Family::Vgg,
            images: Images::Cifar,
            layers: small_cifar,
        },
        Architecture {
            name: "vgg16-cifar",
            description: "VGG-16 for 32×32 images: 13 convolutions with batch-norm, 512→512→classes",
            classes: CIFAR,
            family: Family::Vgg,
            images: Images::Cifar,
            layers: vgg16_cifar,
        },
        Architecture {
            name: "resnet20",
            description: "ResNet-20 for 32×32 images, parameter-free shortcuts",
            classes: CIFAR,
            family: Family::ResNet,
            images: Images::Cifar,
            layers: |b, classes| resnet_cifar(b, 3, classes),
        },
        Architecture {
            name: "resnet56",
            description: "ResNet-56 for 32×32 images, parameter-free shortcuts",
            classes: CIFAR,
            family: Family::ResNet,
            images: Images::Cifar,
            layers: |b, classes| resnet_cifar(b, 9, classes),
        },
        Architecture {
            name: "mobilenet-cifar",
            description: "MobileNet for 32×32 images: stem stride 1, 13 depthwise separable convolutions, 64 to 1024 channels",
            classes: CIFAR,
            family: Family::MobileNet,
            images: Images::Cifar,
            layers: mobilenet_cifar,
        },
        Architecture {
            name: "vgg16",
            description: "VGG-16 for 224×224 images with batch-norm, 4096→4096→classes",
            classes: IMAGENET,
            family: Family::Vgg,
            images: Images::ImageNet,
            layers: vgg16,
        },
        Architecture {
            name: "resnet34",
            description: "ResNet-34 for 224×224 images",
            classes: IMAGENET,
            family: Family::ResNet,
            images: Images::ImageNet,
            layers: resnet34,
        },
        Architecture {
            name: "resnet50",
            description: "ResNet-50 v1.5 for 224×224 images: the stride sits in the 3×3 convolutions",
            classes: IMAGENET,
            family: Family::ResNet,
            images: Images::ImageNet,
            layers: resnet50,
        },
    ]
}

/// The variants of the paper, as in names; the empty one is the standard network.
pub(crate) const VARIANTS: [&str; 10] = ["", "p2", "p4", "p8", "p16", "p32", "p64", "pc", "gwc4_pwc", "dwc_pwc"];

/// Every architecture with every variant of the paper, and, for some, squeeze-and-excitation. Others are legal too: any
/// P, any G, and `_se` on everything.
pub fn known_names() -> Vec<String> {
    let variants = VARIANTS.into_iter().chain(["se", "p4_se", "p8_se"]);
    let named = |architecture: &Architecture| {
        let name = architecture.name;
        let join = move |variant: &str| if variant.is_empty() { name.to_owned() } else { format!("{name}_{variant}") };
        variants.clone().map(join).collect::<Vec<_>>()
    };
    architectures().iter().flat_map(named).collect()
}

/// The network of this name with so many classes.
///
/// P or G that do not fit a layer are reduced there; [`build_with_notes`] tells where.
///
/// # Errors
/// An architecture that is none of [`architectures`], a pruned network, or a number of classes that is 0 or absurd.
pub fn build(name: &ModelName, classes: usize) -> Result<Graph, GraphError> {
    build_with_notes(name, classes).map(|(graph, _)| graph)
}

/// As [`build`], and what [`rewrite()`] did otherwise than the name says.
///
/// # Errors
/// As [`build`].
pub fn build_with_notes(name: &ModelName, classes: usize) -> Result<(Graph, Vec<RewriteNote>), GraphError> {
    let Some(architecture) = architecture(&name.architecture) else {
        return Err(GraphError::UnknownArchitecture { name: name.architecture.clone() });
    };
    if name.pruned {
        return Err(GraphError::Pruned { name: name.to_string() });
    }
    let mut builder = GraphBuilder::new(architecture.name);
    let output = (architecture.layers)(&mut builder, classes);
    let mut graph = builder.finish([output])?;
    if name.se {
        graph = squeeze_excite(&graph, SE_REDUCTION)?;
    }
    let mut notes = Vec::new();
    if name.substitution != Substitution::Standard {
        (graph, notes) = rewrite(&graph, &RewriteOptions::new(name.substitution))?;
    }
    graph.name = name.to_string();
    Ok((graph, notes))
}

/// The paper's reduction of squeeze-and-excitation.
pub const SE_REDUCTION: usize = 8;

const CIFAR: [usize; 3] = [3, 32, 32];
const IMAGENET: [usize; 3] = [3, 224, 224];

fn halving_pool() -> Conv2dGeometry {
    Conv2dGeometry::square(2, 2, 0, 1)
}

/// Global pool, flatten, linear.
fn classifier(b: &mut GraphBuilder, x: ValueId, classes: usize) -> ValueId {
    let x = b.global_avg_pool("pool", x);
    let x = b.flatten("flatten", x);
    b.linear("classifier", x, classes, true)
}

fn small_cifar(b: &mut GraphBuilder, classes: usize) -> ValueId {
    let x = b.input("input", CIFAR);
    let x = b.conv_bn_relu("conv1", x, 16, Conv2dGeometry::same(3, 1));
    let x = b.max_pool("pool1", x, halving_pool());
    let x = b.conv_bn_relu("conv2", x, 32, Conv2dGeometry::same(3, 1));
    let x = b.max_pool("pool2", x, halving_pool());
    let x = b.conv_bn_relu("conv3", x, 32, Conv2dGeometry::same(3, 1));
    let x = b.conv_bn_relu("conv4", x, 64, Conv2dGeometry::same(3, 1));
    classifier(b, x, classes)
}

/// The 13 convolutions and 5 pools of VGG-16.
fn vgg16_features(b: &mut GraphBuilder, mut x: ValueId) -> ValueId {
    for (stage, (convs, channels)) in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)].into_iter().enumerate() {
        let stage = stage + 1;
        for conv in 1..=convs {
            x = b.conv_bn_relu(&format!("conv{stage}_{conv}"), x, channels, Conv2dGeometry::same(3, 1));
        }
        x = b.max_pool(format!("pool{stage}"), x, halving_pool());
    }
    b.flatten("flatten", x)
}

fn vgg16_cifar(b: &mut GraphBuilder, classes: usize) -> ValueId {
    let x = b.input("input", CIFAR);
    let x = vgg16_features(b, x);
    let x = b.linear("fc1", x, 512, false);
    let x = b.batch_norm("fc1.bn", x);
    let x = b.relu("fc1.relu", x);
    b.linear("classifier", x, classes, true)
}

fn vgg16(b: &mut GraphBuilder, classes: usize) -> ValueId {
    let x = b.input("input", IMAGENET);
    let mut x = vgg16_features(b, x);
    for name in ["fc1", "fc2"] {
        x = b.linear(name, x, 4096, true);
        x = b.relu(format!("{name}.relu"), x);
    }
    b.linear("classifier", x, classes, true)
}

/// He et al., section 4.2: 6n+2 layers, shortcuts that subsample and append zero channels.
fn resnet_cifar(b: &mut GraphBuilder, blocks: usize, classes: usize) -> ValueId {
    let x = b.input("input", CIFAR);
    let mut x = b.conv_bn_relu("conv1", x, 16, Conv2dGeometry::same(3, 1));
    for (stage, channels) in [16, 32, 64].into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let shortcut = |b: &mut GraphBuilder, name: &str, x: ValueId| {
                let present = b.shape(x).channels();
                let source = (0..channels).map(|c| (c < present).then_some(c as u32)).collect();
                b.push(name, Op::Gather { channels: source, stride }, [x])
            };
            x = basic_block(b, &format!("stage{}.{block}", stage + 1), x, channels, stride, shortcut);
        }
    }
    classifier(b, x, classes)
}

/// Two 3×3 convolutions; `shortcut` is called where stride or channels change.
fn basic_block(
    b: &mut GraphBuilder,
    name: &str,
    x: ValueId,
    channels: usize,
    stride: usize,
    shortcut: impl Fn(&mut GraphBuilder, &str, ValueId) -> ValueId,
) -> ValueId {
    let changes = stride != 1 || b.shape(x).channels() != channels;
    let identity = if changes { shortcut(b, &format!("{name}.shortcut"), x) } else { x };
    let y = b.conv_bn_relu(&format!("{name}.conv1"), x, channels, Conv2dGeometry::same(3, stride));
    let y = b.conv_bn(&format!("{name}.conv2"), y, channels, Conv2dGeometry::same(3, 1));
    let y = b.add(format!("{name}.add"), &[y, identity]);
    b.relu(format!("{name}.relu"), y)
}

/// 7×7 convolution and 3×3 max-pool, both with stride 2.
fn resnet_stem(b: &mut GraphBuilder) -> ValueId {
    let x = b.input("input", IMAGENET);
    let x = b.conv_bn_relu("conv1", x, 64, Conv2dGeometry::same(7, 2));
    b.max_pool("maxpool", x, Conv2dGeometry::same(3, 2))
}

fn resnet34(b: &mut GraphBuilder, classes: usize) -> ValueId {
    let mut x = resnet_stem(b);
    for (stage, (blocks, channels)) in [(3, 64), (4, 128), (6, 256), (3, 512)].into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let projection = |b: &mut GraphBuilder, name: &str, x: ValueId| {
                b.conv_bn(name, x, channels, Conv2dGeometry::same(1, stride))
            };
            x = basic_block(b, &format!("stage{}.{block}", stage + 1), x, channels, stride, projection);
        }
    }
    classifier(b, x, classes)
}

fn resnet50(b: &mut GraphBuilder, classes: usize) -> ValueId {
    let mut x = resnet_stem(b);
    for (stage, (blocks, channels)) in [(3, 64), (4, 128), (6, 256), (3, 512)].into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            x = bottleneck(b, &format!("stage{}.{block}", stage + 1), x, channels, stride);
        }
    }
    classifier(b, x, classes)
}

/// 1×1, 3×3 (with the stride), 1×1 to four times the channels.
fn bottleneck(b: &mut GraphBuilder, name: &str, x: ValueId, channels: usize, stride: usize) -> ValueId {
    let wide = 4 * channels;
    let changes = stride != 1 || b.shape(x).channels() != wide;
    let projection = Conv2dGeometry::same(1, stride);
    let identity = if changes { b.conv_bn(&format!("{name}.shortcut"), x, wide, projection) } else { x };
    let y = b.conv_bn_relu(&format!("{name}.conv1"), x, channels, Conv2dGeometry::same(1, 1));
    let y = b.conv_bn_relu(&format!("{name}.conv2"), y, channels, Conv2dGeometry::same(3, stride));
    let y = b.conv_bn(&format!("{name}.conv3"), y, wide, Conv2dGeometry::same(1, 1));
    let y = b.add(format!("{name}.add"), &[y, identity]);
    b.relu(format!("{name}.relu"), y)
}

fn mobilenet_cifar(b: &mut GraphBuilder, classes: usize) -> ValueId {
    let x = b.input("input", CIFAR);
    let mut x = b.conv_bn_relu("conv1", x, 32, Conv2dGeometry::same(3, 1));
    let widths = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)];
    let widths = widths.into_iter().chain([(512, 1); 5]).chain([(1024, 2), (1024, 1)]);
    for (block, (channels, stride)) in widths.enumerate() {
        let block = block + 1;
        x = b.depthwise_bn_relu(&format!("block{block}.depthwise"), x, Conv2dGeometry::same(3, stride));
        x = b.conv_bn_relu(&format!("block{block}.pointwise"), x, channels, Conv2dGeometry::same(1, 1));
    }
    classifier(b, x, classes)
}
