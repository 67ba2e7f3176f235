use std::sync::Arc;

/// The order in which a value's channels are stored: position → channel.
///
/// Kernels are dense when the channels of a class stand side by side. [`ChannelOrder::interleaved`] makes that true for
/// the shifted classes of every power-of-two P up to 64 at once; [`ChannelOrder::by_class`] for any one assignment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelOrder(Arc<[u32]>);

impl ChannelOrder {
    /// Channel `c` at position `c`.
    pub fn natural(channels: usize) -> Self {
        Self((0..channels as u32).collect())
    }

    /// Channels sorted by the bit-reversed value of `c mod 64`, then by `c div 64`.
    ///
    /// For every power of two P ≤ 64 the channels with equal `c mod P` are contiguous: `c mod P` is the low end of
    /// `c mod 64`, so it is the high end of the sort key.
    pub fn interleaved(channels: usize) -> Self {
        let mut order: Vec<u32> = (0..channels as u32).collect();
        order.sort_by_key(|&c| ((c % 64).reverse_bits(), c / 64));
        Self(order.into())
    }

    /// Channels sorted by class, then by number.
    pub fn by_class(classes: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..classes.len() as u32).collect();
        order.sort_by_key(|&c| (classes[c as usize], c));
        Self(order.into())
    }

    /// An order written out, position → channel; `None` unless it names every channel exactly once.
    pub fn from_channels(channels: Vec<u32>) -> Option<Self> {
        let mut seen = vec![false; channels.len()];
        for &channel in &channels {
            let slot = seen.get_mut(channel as usize)?;
            if std::mem::replace(slot, true) {
                return None;
            }
        }
        Some(Self(channels.into()))
    }

    /// Number of channels.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no channels.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every channel stands at its own number.
    pub fn is_natural(&self) -> bool {
        self.0.iter().enumerate().all(|(position, &channel)| position == channel as usize)
    }

    /// The channel stored at each position.
    pub fn channels(&self) -> &[u32] {
        &self.0
    }

    /// The position at which each channel is stored.
    pub fn positions(&self) -> Vec<u32> {
        let mut positions = vec![0; self.len()];
        for (position, &channel) in self.0.iter().enumerate() {
            positions[channel as usize] = position as u32;
        }
        positions
    }

    /// For each position of this order, the position in `from` that holds the same channel: the gather that brings a
    /// value stored in `from` into this order.
    ///
    /// # Panics
    /// If the orders have different lengths.
    pub fn gather_from(&self, from: &ChannelOrder) -> Vec<u32> {
        assert_eq!(self.len(), from.len(), "channel orders of different lengths");
        let positions = from.positions();
        self.0.iter().map(|&channel| positions[channel as usize]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_makes_every_power_of_two_contiguous() {
        for channels in [1, 3, 16, 48, 64, 96, 512] {
            let order = ChannelOrder::interleaved(channels);
            assert!(ChannelOrder::from_channels(order.channels().to_vec()).is_some());
            for parts in [1, 2, 4, 8, 16, 32, 64] {
                let mut runs: Vec<u32> = order.channels().iter().map(|c| c % parts).collect();
                runs.dedup();
                let distinct = runs.len();
                runs.sort_unstable();
                runs.dedup();
                assert_eq!(runs.len(), distinct, "{channels} channels, P = {parts}");
            }
        }
    }

    #[test]
    fn gathers_move_values_between_orders() {
        let (a, b) = (ChannelOrder::interleaved(10), ChannelOrder::by_class(&[1, 0, 2, 1, 0, 2, 1, 0, 2, 0]));
        let gather = b.gather_from(&a);
        let moved: Vec<u32> = gather.iter().map(|&position| a.channels()[position as usize]).collect();
        assert_eq!(moved, b.channels());
        assert!(!a.is_natural() && ChannelOrder::natural(10).is_natural());
        assert_eq!(ChannelOrder::from_channels(vec![0, 0]), None);
        assert_eq!(ChannelOrder::from_channels(vec![0, 2]), None);
    }
}
