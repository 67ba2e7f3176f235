use serde::{Deserialize, Serialize};

/// Elementwise functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// min(max(x, 0), 6).
    Relu6,
    /// 1/(1+exp(−x)).
    Sigmoid,
    /// min(max(x/6 + 1/2, 0), 1).
    HardSigmoid,
    /// x · hard-sigmoid(x).
    HardSwish,
    /// x · sigmoid(x).
    Silu,
}
