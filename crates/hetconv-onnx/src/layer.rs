//! A HetConv layer as the convolutions that ONNX has: its kernels in any channel order, and its classes as groups.

use std::ops::Range;

use hetconv_core::{ChannelOrder, Conv2dGeometry, HetPattern};

/// The dense kernels `[N, M, taps]` of a HetConv layer, zero where it has no weight, with channels and filters stored in
/// the given orders; the centre tap is `middle`.
pub(crate) fn dense_kernels(
    pattern: &HetPattern,
    geometry: &Conv2dGeometry,
    [center, ring]: [&[f32]; 2],
    [channels, filters]: [&ChannelOrder; 2],
) -> Vec<f32> {
    let (taps, middle) = (geometry.taps(), geometry.center_tap().unwrap_or(0));
    let (slots, width, around) = (pattern.ring_slots(), pattern.max_spatial(), taps - 1);
    let mut dense = Vec::with_capacity(center.len() * taps);
    for &filter in filters.channels() {
        let filter = filter as usize;
        for &channel in channels.channels() {
            let channel = channel as usize;
            let tap = center[filter * pattern.in_channels() + channel];
            if pattern.is_spatial(filter, channel) {
                let kernel = &ring[(filter * width + slots[channel]) * around..][..around];
                dense.extend_from_slice(&kernel[..middle]);
                dense.push(tap);
                dense.extend_from_slice(&kernel[middle..]);
            } else {
                dense.extend((0..taps).map(|t| if t == middle { tap } else { 0.0 }));
            }
        }
    }
    dense
}

/// The classes of a pattern as they stand when channels and filters are stored in the given orders.
pub(crate) fn stored_pattern(pattern: &HetPattern, [channels, filters]: [&ChannelOrder; 2]) -> HetPattern {
    let stored =
        |order: &ChannelOrder, classes: &[u32]| order.channels().iter().map(|&c| classes[c as usize]).collect();
    let channels = stored(channels, pattern.channel_classes());
    let filters = stored(filters, pattern.filter_classes());
    simplest_pattern(channels, filters).unwrap_or_else(|| pattern.clone())
}

/// The pattern that these classes are, blocked or shifted if it can be said so; `None` if it is none.
pub(crate) fn simplest_pattern(channels: Vec<u32>, filters: Vec<u32>) -> Option<HetPattern> {
    // Numbered by first appearance, since the numbers themselves mean nothing.
    let mut numbers: Vec<Option<u32>> = Vec::new();
    let mut next = 0;
    let mut number = |class: u32| {
        let class = class as usize;
        numbers.resize(numbers.len().max(class + 1), None);
        *numbers[class].get_or_insert_with(|| {
            next += 1;
            next - 1
        })
    };
    let channels: Vec<u32> = channels.into_iter().map(&mut number).collect();
    let filters: Vec<u32> = filters.into_iter().map(&mut number).collect();
    let (m, n) = (channels.len(), filters.len());
    let written_out = HetPattern::assigned(channels, filters).ok()?;
    let named = [HetPattern::blocked(m, n, written_out.classes()), HetPattern::shifted(m, n, written_out.classes())];
    let same = |named: &HetPattern| {
        named.channel_classes() == written_out.channel_classes()
            && named.filter_classes() == written_out.filter_classes()
    };
    Some(named.into_iter().flatten().find(same).unwrap_or(written_out))
}

/// One grouped convolution among those that, side by side, have the off-centre taps of a HetConv layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupedPart {
    /// The stored channels it reads, group by group.
    pub channels: Vec<usize>,
    /// The stored filters it computes.
    pub filters: Range<usize>,
    /// Number of groups.
    pub groups: usize,
}

/// The most grouped convolutions a layer is worth; beyond, one dense convolution is simpler.
const MOST_PARTS: usize = 8;

/// The classes of a pattern whose filter classes are contiguous as groups: one grouped convolution if all classes have
/// equal sizes, else one for every run of classes that have. `None` if that takes too many or no filter has a spatial
/// channel.
pub(crate) fn grouped_parts(pattern: &HetPattern) -> Option<Vec<GroupedPart>> {
    let mut parts: Vec<GroupedPart> = Vec::new();
    let filters = pattern.filter_classes();
    let mut start = 0;
    for class in filters.chunk_by(|a, b| a == b) {
        let channels: Vec<usize> = pattern.spatial_channels(start).collect();
        let range = start..start + class.len();
        start = range.end;
        match parts.last_mut() {
            Some(last)
                if last.channels.len() == channels.len() * last.groups
                    && last.filters.len() == class.len() * last.groups =>
            {
                last.channels.extend(channels);
                last.filters.end = range.end;
                last.groups += 1;
            }
            _ => parts.push(GroupedPart { channels, filters: range, groups: 1 }),
        }
    }
    if parts.len() > MOST_PARTS || parts.iter().all(|part| part.channels.is_empty()) {
        return None;
    }
    // Filters without a spatial channel read any one, off whose centre their kernels are zero.
    for part in parts.iter_mut().filter(|part| part.channels.is_empty()) {
        (part.channels, part.groups) = (vec![0], 1);
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_classes_are_one_grouped_convolution() {
        let parts = grouped_parts(&HetPattern::blocked(8, 4, 4).unwrap()).unwrap();
        assert_eq!(parts, [GroupedPart { channels: (0..8).collect(), filters: 0..4, groups: 4 }]);
    }

    #[test]
    fn uneven_classes_are_several() {
        let pattern = HetPattern::assigned(vec![0, 1, 1, 0, 2], vec![0, 1, 1, 2]).unwrap();
        let parts = grouped_parts(&pattern).unwrap();
        let part = |channels: &[usize], filters| GroupedPart { channels: channels.to_vec(), filters, groups: 1 };
        assert_eq!(parts, [part(&[0, 3], 0..1), part(&[1, 2], 1..3), part(&[4], 3..4)]);
        // Filters without a channel of their class are no part of their neighbours' groups, whatever these read.
        let pattern = HetPattern::assigned(vec![0, 3, 3], vec![0, 1, 2, 3]).unwrap();
        assert_eq!(grouped_parts(&pattern).unwrap(), [part(&[0], 0..1), part(&[0], 1..3), part(&[1, 2], 3..4)]);
        assert_eq!(grouped_parts(&HetPattern::assigned(vec![0, 0], vec![1, 1]).unwrap()), None);
        let sizes = |classes: u32| (0..classes).flat_map(|class| vec![class; class as usize + 1]).collect();
        let uneven = |classes: u32| HetPattern::assigned(sizes(classes), (0..classes).collect()).unwrap();
        assert_eq!(grouped_parts(&uneven(8)).unwrap().len(), 8);
        assert_eq!(grouped_parts(&uneven(9)), None);
    }

    #[test]
    fn stored_by_class_a_shifted_pattern_is_blocked() {
        let pattern = HetPattern::shifted(8, 16, 4).unwrap();
        let orders = [&ChannelOrder::interleaved(8), &ChannelOrder::interleaved(16)];
        assert_eq!(stored_pattern(&pattern, orders), HetPattern::blocked(8, 16, 4).unwrap());
        let natural = [&ChannelOrder::natural(8), &ChannelOrder::natural(16)];
        assert_eq!(stored_pattern(&pattern, natural), pattern);
    }
}
