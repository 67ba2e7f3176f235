//! What a layer's channels and filters have in common, and where its canonical weights stand.

use std::borrow::Cow;

use hetconv_core::{ConvKind, HetPattern};

use crate::conv::ConvSpec;

/// What the three kinds of convolution have in common: classes on both sides, and whether the centre tap ignores them.
#[derive(Debug)]
pub(crate) struct Classes {
    pub channels: Vec<u32>,
    pub filters: Vec<u32>,
    pub count: usize,
    pub dense_center: bool,
    /// Channels of each filter's class: pairs that meet in every tap, but for a dense centre.
    pub slots: Vec<usize>,
    /// Rank of every channel within its class: its place in a filter's weights.
    ranks: Vec<usize>,
    /// Extent of the place axis: M/groups, or the ring's S.
    width: usize,
}

impl Classes {
    /// Of a specification that was checked. Groups are contiguous classes, and without groups there is one.
    pub fn new(spec: &ConvSpec) -> Self {
        let grouped = |groups| {
            let pattern = HetPattern::blocked(spec.in_channels, spec.out_channels, groups);
            Cow::Owned(pattern.expect("groups that divide the channels"))
        };
        let pattern = match &spec.kind {
            ConvKind::Standard => grouped(1),
            ConvKind::Grouped(groups) => grouped(*groups),
            ConvKind::Het(pattern) => Cow::Borrowed(pattern),
        };
        Self {
            channels: pattern.channel_classes().to_vec(),
            filters: pattern.filter_classes().to_vec(),
            count: pattern.classes(),
            dense_center: matches!(spec.kind, ConvKind::Het(_)),
            slots: pattern.slots(),
            ranks: pattern.ring_slots(),
            width: pattern.max_spatial(),
        }
    }
}

/// Taps whose weights stand side by side in one canonical tensor.
pub(super) struct TapGroup {
    pub taps: Vec<usize>,
    pub is_center: bool,
}

impl Classes {
    /// HetConv's centre and its ring, or all taps of any other convolution.
    pub(super) fn tap_groups(&self, spec: &ConvSpec) -> Vec<TapGroup> {
        let taps = spec.geometry.taps();
        match spec.geometry.center_tap().filter(|_| self.dense_center) {
            None => vec![TapGroup { taps: (0..taps).collect(), is_center: false }],
            Some(center) => vec![
                TapGroup { taps: vec![center], is_center: true },
                TapGroup { taps: (0..taps).filter(|&tap| tap != center).collect(), is_center: false },
            ],
        }
    }

    /// Where the weights of a filter and a channel start within the filter's row of a group's tensor; `None` where the
    /// layer has none.
    #[inline(always)]
    pub(super) fn place(&self, group: &TapGroup, filter: usize, channel: usize) -> Option<usize> {
        if group.is_center {
            return Some(channel);
        }
        let same = self.filters[filter] == self.channels[channel];
        same.then(|| self.ranks[channel] * group.taps.len())
    }

    /// Whether a group is one tap of every filter and every channel: a matrix `[N, M]`.
    pub(super) fn is_matrix(&self, group: &TapGroup) -> bool {
        group.taps.len() == 1 && (group.is_center || self.count == 1)
    }

    /// Zeroes what belongs to no channel in a ring `[N, S, taps − 1]`.
    pub(super) fn clear_spare(&self, spec: &ConvSpec, ring: &mut [f32]) {
        let taps = spec.geometry.taps() - 1;
        for (row, &slots) in ring.chunks_exact_mut((self.width * taps).max(1)).zip(&self.slots) {
            row[slots * taps..].fill(0.0);
        }
    }

    /// Length of a filter's row in a group's tensor.
    pub(super) fn row(&self, group: &TapGroup) -> usize {
        if group.is_center { self.channels.len() } else { self.width * group.taps.len() }
    }
}
