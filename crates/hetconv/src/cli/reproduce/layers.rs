//! Single layers as networks: a chain of the same layer, so that what happens around it does not count.

use anyhow::{Result, bail};
use hetconv::core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv::graph::{Graph, GraphBuilder, ValueId};

/// How often a layer is repeated.
pub const REPEATED: usize = 8;

/// Channels in and out of a layer, and height and width of its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub channels: usize,
    pub size: usize,
}

/// What a layer is made of; every convolution has batch-norm and ReLU behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One standard 3×3 convolution.
    Standard,
    /// One HetConv layer with P parts.
    Het { parts: usize },
    /// Grouped 3×3 to so many channels, then 1×1.
    GroupPointwise { groups: usize, width: usize },
    /// Depthwise 3×3, then 1×1.
    DepthwisePointwise,
    /// Branches of 1×1 to so many channels and 3×3, concatenated.
    Inception { branches: usize, width: usize },
    /// 1×1, then depthwise 3×3.
    Xception,
}

impl Form {
    /// As people call it.
    pub fn name(self) -> String {
        match self {
            Form::Standard => "standard".to_owned(),
            Form::Het { parts } => format!("HetConv P{parts}"),
            Form::GroupPointwise { groups, .. } => format!("GWC{groups} + PWC"),
            Form::DepthwisePointwise => "DWC + PWC".to_owned(),
            Form::Inception { branches, .. } => format!("Inception with {branches} branches"),
            Form::Xception => "Xception (PWC + DWC)".to_owned(),
        }
    }

    /// The width that can be chosen, if there is one.
    pub fn width(self) -> Option<usize> {
        match self {
            Form::GroupPointwise { width, .. } | Form::Inception { width, .. } => Some(width),
            _ => None,
        }
    }

    /// The same with the width that comes nearest to so many MACs, where a width can be chosen.
    pub fn with_macs(self, shape: Shape, macs: u64) -> Result<Self> {
        let step = match self {
            Form::GroupPointwise { groups, .. } => groups,
            Form::Inception { .. } => 1,
            _ => return Ok(self),
        };
        let mut best = (u64::MAX, self);
        for width in (step..=2 * shape.channels).step_by(step) {
            let candidate = match self {
                Form::GroupPointwise { groups, .. } => Form::GroupPointwise { groups, width },
                Form::Inception { branches, .. } => Form::Inception { branches, width },
                other => other,
            };
            let off = chain(candidate, shape, 1)?.cost()?.macs.abs_diff(macs);
            if off < best.0 {
                best = (off, candidate);
            }
        }
        Ok(best.1)
    }

    /// Adds the layer.
    fn push(self, b: &mut GraphBuilder, name: &str, x: ValueId) -> Result<ValueId> {
        let channels = b.shape(x).channels();
        let spatial = || Conv2dGeometry::same(3, 1);
        let pointwise =
            |b: &mut GraphBuilder, name: &str, x, width| b.conv_bn_relu(name, x, width, Conv2dGeometry::same(1, 1));
        Ok(match self {
            Form::Standard => b.conv_bn_relu(name, x, channels, spatial()),
            Form::Het { parts } => {
                let kind = ConvKind::Het(HetPattern::shifted(channels, channels, parts)?);
                of_kind(b, name, x, channels, kind)
            }
            Form::GroupPointwise { groups, width } => {
                let x = of_kind(b, &format!("{name}.grouped"), x, width, ConvKind::Grouped(groups));
                pointwise(b, name, x, channels)
            }
            Form::DepthwisePointwise => {
                let x = b.depthwise_bn_relu(&format!("{name}.depthwise"), x, spatial());
                pointwise(b, name, x, channels)
            }
            Form::Inception { branches, width } => {
                if branches == 0 || !channels.is_multiple_of(branches) {
                    bail!("{branches} branches do not divide {channels} channels");
                }
                let branch = |i: usize| {
                    let x = pointwise(b, &format!("{name}.reduce{i}"), x, width);
                    b.conv_bn_relu(&format!("{name}.branch{i}"), x, channels / branches, spatial())
                };
                let ends: Vec<ValueId> = (0..branches).map(branch).collect();
                b.concat(name, &ends)
            }
            Form::Xception => {
                let x = pointwise(b, &format!("{name}.pointwise"), x, channels);
                b.depthwise_bn_relu(name, x, spatial())
            }
        })
    }
}

/// A 3×3 convolution of some kind with batch-norm and ReLU.
fn of_kind(b: &mut GraphBuilder, name: &str, x: ValueId, width: usize, kind: ConvKind) -> ValueId {
    let x = b.conv(name, x, width, Conv2dGeometry::same(3, 1), kind, false);
    let x = b.batch_norm(format!("{name}.bn"), x);
    b.relu(format!("{name}.relu"), x)
}

/// A layer so many times in a row.
pub fn chain(form: Form, shape: Shape, repeated: usize) -> Result<Graph> {
    let (b, x) = layers(form, shape, repeated)?;
    Ok(b.finish([x])?)
}

/// A layer so many times in a row, and a classifier behind it, so that it can be trained.
pub fn trainable_chain(form: Form, shape: Shape, repeated: usize) -> Result<Graph> {
    let (mut b, x) = layers(form, shape, repeated)?;
    let x = b.global_avg_pool("pool", x);
    let x = b.flatten("flatten", x);
    let x = b.linear("classifier", x, 10, true);
    Ok(b.finish([x])?)
}

fn layers(form: Form, shape: Shape, repeated: usize) -> Result<(GraphBuilder, ValueId)> {
    let Shape { channels, size } = shape;
    let width = form.width().map_or(String::new(), |width| format!(" width {width}"));
    let mut b = GraphBuilder::new(format!("{repeated} × {} of {channels}@{size}{width}", form.name()));
    let mut x = b.input("input", [channels, size, size]);
    for i in 1..=repeated {
        x = form.push(&mut b, &format!("layer{i}"), x)?;
    }
    Ok((b, x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_make_macs_equal() {
        let shape = Shape { channels: 256, size: 14 };
        let macs = |form| chain(form, shape, 1).unwrap().cost().unwrap().macs;
        let het = macs(Form::Het { parts: 4 });
        assert_eq!(het, macs(Form::Standard) / 3);
        for form in [Form::GroupPointwise { groups: 4, width: 0 }, Form::Inception { branches: 4, width: 0 }] {
            let chosen = form.with_macs(shape, het).unwrap();
            assert!(macs(chosen).abs_diff(het) < het / 50, "{chosen:?}: {} and {het}", macs(chosen));
        }
        let (depthwise, extreme) = (macs(Form::DepthwisePointwise), macs(Form::Het { parts: 256 }));
        assert!(depthwise.abs_diff(extreme) < extreme / 100, "{depthwise} and {extreme}");
        assert_eq!(macs(Form::Xception), depthwise);
    }

    #[test]
    fn a_layer_has_its_stages_each_time() {
        let shape = Shape { channels: 16, size: 8 };
        let stages = |form| chain(form, shape, 3).unwrap().cost().unwrap().stages;
        assert_eq!((stages(Form::Standard), stages(Form::Het { parts: 4 })), (3, 3));
        for form in [
            Form::GroupPointwise { groups: 4, width: 16 },
            Form::DepthwisePointwise,
            Form::Inception { branches: 4, width: 4 },
            Form::Xception,
        ] {
            assert_eq!(stages(form), 6, "{form:?}");
        }
    }
}
