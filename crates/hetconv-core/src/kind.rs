use serde::{Deserialize, Serialize};

use crate::{Conv2dGeometry, HetPattern};

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

/// Why there is no convolution of a kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KindError {
    /// No channels or no filters, or more than can be counted.
    #[error("a convolution of {in_channels} channels and {out_channels} filters: each must be 1 to {limit}")]
    Size {
        /// M.
        in_channels: usize,
        /// N.
        out_channels: usize,
        /// The largest number accepted.
        limit: usize,
    },
    /// Groups that do not divide the channels and filters.
    #[error("{groups} groups do not divide {in_channels} channels and {out_channels} filters")]
    Groups {
        /// Number of groups.
        groups: usize,
        /// M.
        in_channels: usize,
        /// N.
        out_channels: usize,
    },
    /// A HetConv pattern for a layer of another size.
    #[error(
        "its pattern is for {} channels and {} filters, but it has {} channels and {} filters",
        pattern[0], pattern[1], layer[0], layer[1]
    )]
    PatternSize {
        /// M and N of the pattern.
        pattern: [usize; 2],
        /// M and N of the layer.
        layer: [usize; 2],
    },
    /// A HetConv layer whose window has no centre.
    #[error("HetConv needs an odd kernel to have a centre, got {}×{}", .0[0], .0[1])]
    EvenKernel([usize; 2]),
}

impl ConvKind {
    /// Whether there is such a convolution of M channels and N filters with this window.
    ///
    /// # Errors
    /// [`KindError`].
    pub fn check(&self, in_channels: usize, out_channels: usize, geometry: &Conv2dGeometry) -> Result<(), KindError> {
        let (limit, layer) = (HetPattern::LIMIT, [in_channels, out_channels]);
        if !layer.iter().all(|size| (1..=limit).contains(size)) {
            return Err(KindError::Size { in_channels, out_channels, limit });
        }
        match self {
            ConvKind::Standard => Ok(()),
            ConvKind::Grouped(groups) => {
                let groups = *groups;
                let divides = groups > 0 && layer.iter().all(|size| size.is_multiple_of(groups));
                if divides { Ok(()) } else { Err(KindError::Groups { groups, in_channels, out_channels }) }
            }
            ConvKind::Het(pattern) => {
                let pattern = [pattern.in_channels(), pattern.out_channels()];
                if pattern != layer {
                    return Err(KindError::PatternSize { pattern, layer });
                }
                geometry.center_tap().map(|_| ()).ok_or(KindError::EvenKernel(geometry.kernel))
            }
        }
    }

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
    fn what_does_not_go_together_is_no_convolution() {
        let [odd, even] = [3, 2].map(|kernel| Conv2dGeometry::square(kernel, 1, 0, 1));
        let het = ConvKind::Het(HetPattern::shifted(6, 4, 3).unwrap());
        for good in [ConvKind::Standard, ConvKind::Grouped(2), het.clone()] {
            assert_eq!(good.check(6, 4, &odd), Ok(()));
        }
        assert_eq!(ConvKind::Grouped(2).check(6, 4, &even), Ok(()));
        assert_eq!(het.check(6, 4, &even), Err(KindError::EvenKernel([2, 2])));
        assert_eq!(het.check(6, 8, &odd), Err(KindError::PatternSize { pattern: [6, 4], layer: [6, 8] }));
        for groups in [0, 3, 4] {
            let expected = KindError::Groups { groups, in_channels: 6, out_channels: 4 };
            assert_eq!(ConvKind::Grouped(groups).check(6, 4, &odd), Err(expected));
        }
        for (m, n) in [(0, 4), (4, 0), (HetPattern::LIMIT + 1, 4)] {
            assert!(matches!(ConvKind::Standard.check(m, n, &odd), Err(KindError::Size { .. })));
        }
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
