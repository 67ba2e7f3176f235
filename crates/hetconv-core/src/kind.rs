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

impl ConvKind {
    /// Whether every filter has a whole kernel on every channel: standard, or one group of all.
    pub fn is_standard(&self) -> bool {
        matches!(self, ConvKind::Standard | ConvKind::Grouped(1))
    }

    /// Whether each filter reads one channel alone: depthwise, perhaps with several filters for each channel.
    pub fn reads_one_channel(&self, in_channels: usize) -> bool {
        *self == ConvKind::Grouped(in_channels)
    }

    /// Whether each of as many filters as channels reads one channel, its own.
    pub fn is_depthwise(&self, in_channels: usize, out_channels: usize) -> bool {
        self.reads_one_channel(in_channels) && in_channels == out_channels
    }

    /// Number of weights of a layer of M channels and N filters whose window has `taps` taps, biases left out. It is also
    /// the number of MACs per output pixel.
    ///
    /// # Panics
    /// If there are 0 groups or taps.
    pub fn weights(&self, in_channels: usize, out_channels: usize, taps: usize) -> usize {
        assert!(taps > 0, "a window without taps");
        match self {
            ConvKind::Standard => in_channels * out_channels * taps,
            ConvKind::Grouped(groups) => in_channels / groups * out_channels * taps,
            ConvKind::Het(pattern) => pattern.weights(taps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depthwise_is_one_filter_a_channel() {
        assert!(ConvKind::Grouped(6).is_depthwise(6, 6));
        assert!(![(6, 12), (12, 6), (12, 12)].iter().any(|&(m, n)| ConvKind::Grouped(6).is_depthwise(m, n)));
        assert!(ConvKind::Grouped(6).reads_one_channel(6) && !ConvKind::Grouped(6).reads_one_channel(12));
        assert!(!ConvKind::Standard.is_depthwise(1, 1));
    }

    #[test]
    fn weights_are_those_of_every_pair_of_channel_and_filter() {
        assert_eq!(ConvKind::Standard.weights(6, 4, 9), 6 * 4 * 9);
        assert_eq!(ConvKind::Grouped(2).weights(6, 4, 9), 3 * 4 * 9);
        assert_eq!(ConvKind::Grouped(6).weights(6, 6, 9), 6 * 9);
        let pattern = HetPattern::shifted(6, 4, 3).unwrap();
        assert_eq!(ConvKind::Het(pattern).weights(6, 4, 9), 4 * (2 * 9 + 4));
    }
}
