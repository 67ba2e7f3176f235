//! Which convolutions are converted.

use std::collections::HashMap;

use hetconv_core::Conv2dGeometry;
use hetconv_graph::{ConvertOptions, KeptReason, ValueError};

use super::{Candidate, Stop};
use crate::OnnxError;
use crate::import::Attributes;
use crate::prepare::node_name;
use crate::proto::tensor_proto::DataType;
use crate::proto::{GraphProto, NodeProto, TensorProto};
use crate::tensor::{self, DataFiles, Elements};

/// The tensors of a graph by name: initializers, and what Constant nodes hold.
pub(super) fn weights(graph: &GraphProto) -> HashMap<&str, &TensorProto> {
    let constants = graph
        .node
        .iter()
        .filter(|node| node.op_type() == "Constant")
        .filter_map(|node| Some((node.output.first()?.as_str(), Attributes(node).tensor("value")?)));
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
    let attributes = Attributes(node);
    match attributes.groups() {
        1 => {}
        groups => return kept(KeptReason::Grouped(groups)),
    }
    let sizes: Vec<usize> = weight.dims.iter().filter_map(|&dim| usize::try_from(dim).ok()).collect();
    let [out_channels, in_channels, height, width] = sizes[..] else { return kept(KeptReason::Malformed) };
    if let Some(reason) = KeptReason::of_kernel([height, width]) {
        return kept(reason);
    }
    if weight.data_type() != DataType::Float as i32 {
        return kept(KeptReason::ElementType);
    }
    let geometry = geometry(&attributes, [height, width]).map_err(Stop::Kept)?;
    // Its sizes are believed, and classes made for them, when the data is there; and many layers may share what is not
    // decoded for one that stays as it is.
    let failed = |fault| {
        let error = OnnxError::Tensor { tensor: node.input[1].clone(), fault };
        Stop::Failed(Box::new(error))
    };
    tensor::check(weight, files).map_err(failed)?;
    let pattern = options.pattern(name, in_channels, out_channels).map_err(Stop::Kept)?;
    let kernels = match tensor::read(weight, files) {
        Ok((_, Elements::Float(kernels))) => kernels,
        Ok((_, Elements::Int(_))) => return kept(KeptReason::ElementType),
        Err(fault) => return Err(failed(fault)),
    };
    if let Some(&value) = kernels.iter().find(|value| !value.is_finite()) {
        let fault = ValueError::NotFinite { name: node.input[1].clone(), value };
        return Err(Stop::Failed(Box::new(fault.into())));
    }
    Ok(Candidate { geometry, pattern, kernels, bias: None })
}

/// The window of a convolution, if it is the same for images of any size.
fn geometry(attributes: &Attributes<'_>, kernel: [usize; 2]) -> Result<Conv2dGeometry, KeptReason> {
    let on = |side: usize| attributes.geometry(kernel, [side; 2]).map_err(|_| KeptReason::Malformed);
    // Automatic padding at a stride is a pixel less for an image of a pixel more.
    match (on(1)?, on(2)?) {
        (one, two) if one == two => Ok(one),
        _ => Err(KeptReason::AutoPad),
    }
}
