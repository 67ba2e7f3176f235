use serde::{Deserialize, Serialize};

use crate::HetPattern;

/// Which kernels the filters of a convolution have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvKind {
    /// All kernels are K×K.
    Standard,
    /// Channels and filters in so many separate groups; depthwise if it equals the number of channels.
    Grouped(usize),
    /// HetConv.
    Het(HetPattern),
}
