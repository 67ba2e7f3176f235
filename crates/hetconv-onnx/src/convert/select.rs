//! Which convolutions are converted.

use std::collections::HashMap;

use hetconv_core::Conv2dGeometry;
use hetconv_graph::{ConvertOptions, KeptReason};

use super::{Candidate, Stop};
use crate::OnnxError;
use crate::prepare::node_name;
use crate::proto::tensor_proto::DataType;
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::tensor::{self, DataFiles, Elements};

/// The tensors of a graph by name: initializers, and what Constant nodes hold.
pub(super) fn weights(graph: &GraphProto) -> HashMap<&str, &TensorProto> {
    let constants = graph.node.iter().filter(|node| node.op_type() == "Constant").filter_map(|node| {
        let value = node.attribute.iter().find(|attribute| attribute.name() == "value")?;
        Some((node.output.first()?.as_str(), value.t.as_ref()?))
    });
    graph.initializer.iter().map(|tensor| (tensor.name(), tensor)).chain(constants).collect()
}

/// The HetConv layer that a convolution is to become, or why it stays.
pub(super) fn candidate(
    node: &NodeProto,
    weight: Option<&TensorProto>,
    files: &DataFiles<'_>,
    first: bool,
    options: &ConvertOptions,
) -> Result<Candidate, Stop> {
    let name = node_name(node);
    let kept = |reason| Err(Stop::Kept(reason));
    if let Some(reason) = options.keeps(name, first) {
        return kept(reason);
    }
    let Some(weight) = weight else { return kept(KeptReason::NoWeight) };
    let int = |name: &str| node.attribute.iter().find(|attribute| attribute.name() == name).map(|found| found.i());
    match int("group").unwrap_or(1) {
        1 => {}
        groups => return kept(KeptReason::Grouped(usize::try_from(groups).unwrap_or(0))),
    }
    let sizes: Vec<usize> = weight.dims.iter().filter_map(|&dim| usize::try_from(dim).ok()).collect();
    let [out_channels, in_channels, height, width] = sizes[..] else { return kept(KeptReason::Malformed) };
    if let Some(reason) = KeptReason::of_kernel([height, width]) {
        return kept(reason);
    }
    if weight.data_type() != DataType::Float as i32 {
        return kept(KeptReason::ElementType);
    }
    let geometry = geometry(node, [height, width]).map_err(Stop::Kept)?;
    // Its sizes are believed, and classes made for them, when the data is there; and many layers may share what is not
    // decoded for one that stays as it is.
    let failed = |fault| {
        let error = OnnxError::Tensor { tensor: node.input[1].clone(), fault };
        Stop::Failed(Box::new(error))
    };
    tensor::check(weight).map_err(failed)?;
    let pattern = options.pattern(name, in_channels, out_channels).map_err(Stop::Kept)?;
    let kernels = match tensor::read(weight, files) {
        Ok((_, Elements::Float(kernels))) => kernels,
        Ok((_, Elements::Int(_))) => return kept(KeptReason::ElementType),
        Err(fault) => return Err(failed(fault)),
    };
    Ok(Candidate { geometry, pattern, kernels, bias: None })
}

/// The window of a convolution node.
fn geometry(node: &NodeProto, kernel: [usize; 2]) -> Result<Conv2dGeometry, KeptReason> {
    fn sizes<const LENGTH: usize>(node: &NodeProto, name: &str, default: usize) -> Result<[usize; LENGTH], KeptReason> {
        let Some(found) = node.attribute.iter().find(|attribute| attribute.name() == name) else {
            return Ok([default; LENGTH]);
        };
        let sizes: Result<Vec<usize>, _> = found.ints.iter().map(|&size| usize::try_from(size)).collect();
        sizes.ok().and_then(|sizes| sizes.try_into().ok()).ok_or(KeptReason::Malformed)
    }
    let (stride, dilation): ([usize; 2], [usize; 2]) = (sizes(node, "strides", 1)?, sizes(node, "dilations", 1)?);
    let auto_pad = node.attribute.iter().find(|attribute| attribute.name() == "auto_pad").map_or(&[][..], |a| a.s());
    let mut padding = [0; 4];
    match auto_pad {
        b"" | b"NOTSET" => padding = sizes(node, "pads", 0)?,
        b"VALID" => {}
        // At stride 1 it is the same for every image: as much on either side as the window's centre is away from it.
        b"SAME_UPPER" | b"SAME_LOWER" if stride == [1, 1] => {
            let reach = |axis: usize| (kernel[axis] / 2).saturating_mul(dilation[axis]);
            padding = [reach(0), reach(1), reach(0), reach(1)];
        }
        b"SAME_UPPER" | b"SAME_LOWER" => return Err(KeptReason::AutoPad),
        _ => return Err(KeptReason::Malformed),
    }
    let geometry = Conv2dGeometry { kernel, stride, padding, dilation };
    geometry.validate().map_err(|_| KeptReason::Malformed)?;
    Ok(geometry)
}
