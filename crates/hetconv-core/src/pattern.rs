use serde::{Deserialize, Serialize};

/// How a [`HetPattern`] assigns channels and filters to classes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrangement {
    /// Figure 3 of the paper: channel `c` has class `c mod P`, filter `f` has class `f mod P`.
    Shifted {
        /// The paper's P.
        parts: usize,
    },
    /// Contiguous classes: channel `c` has class `⌊c·P/M⌋`, filter `f` has class `⌊f·P/N⌋`. P divides M and N.
    Blocked {
        /// The paper's P.
        parts: usize,
    },
    /// A class written out for every channel and every filter (calibrated, gathered or pruned layers).
    Assigned {
        /// Class of each channel.
        channels: Vec<u32>,
        /// Class of each filter.
        filters: Vec<u32>,
    },
}

/// The arrangements that a P alone decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrangementKind {
    /// The paper's figure 3, [`Arrangement::Shifted`].
    #[default]
    #[serde(alias = "Shifted")]
    Shifted,
    /// Contiguous classes, [`Arrangement::Blocked`]; P must divide M and N.
    #[serde(alias = "Blocked")]
    Blocked,
}

impl ArrangementKind {
    /// The pattern of M channels and N filters with P parts.
    ///
    /// # Errors
    /// As of [`HetPattern::shifted`] and [`HetPattern::blocked`].
    pub fn pattern(self, in_channels: usize, out_channels: usize, parts: usize) -> Result<HetPattern, PatternError> {
        match self {
            Self::Shifted => HetPattern::shifted(in_channels, out_channels, parts),
            Self::Blocked => HetPattern::blocked(in_channels, out_channels, parts),
        }
    }

    /// The pattern with the largest P up to `most` that fits M and N.
    ///
    /// ```
    /// use hetconv_core::ArrangementKind::{Blocked, Shifted};
    /// assert_eq!(Shifted.fitting(48, 96, 32)?.classes(), 32);
    /// assert_eq!(Blocked.fitting(48, 96, 32)?.classes(), 24);
    /// assert_eq!(Shifted.fitting(3, 64, 4)?.classes(), 3);
    /// # Ok::<(), hetconv_core::PatternError>(())
    /// ```
    ///
    /// # Errors
    /// P = 0, or sizes out of range.
    pub fn fitting(self, in_channels: usize, out_channels: usize, most: usize) -> Result<HetPattern, PatternError> {
        let most = most.min(in_channels);
        let fits = |parts: &usize| match self {
            Self::Shifted => true,
            Self::Blocked => in_channels.is_multiple_of(*parts) && out_channels.is_multiple_of(*parts),
        };
        self.pattern(in_channels, out_channels, (1..=most).rev().find(fits).unwrap_or(most))
    }
}

/// Which channels each filter of a HetConv layer sees through its whole K×K window.
///
/// Every channel and every filter has a class. Filter `f` keeps its off-centre taps only on the channels of its own
/// class ([`HetPattern::is_spatial`]), and keeps the centre tap of every channel: those are the paper's K×K and 1×1
/// kernels. Classes may be uneven or empty.
///
/// ```
/// use hetconv_core::HetPattern;
/// let pattern = HetPattern::shifted(8, 4, 4)?; // 8 channels, 4 filters, P = 4
/// assert!(pattern.is_spatial(1, 5) && !pattern.is_spatial(1, 6));
/// assert_eq!(pattern.spatial_channels(1).collect::<Vec<_>>(), [1, 5]);
/// # Ok::<(), hetconv_core::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct HetPattern {
    arrangement: Arrangement,
    channel_class: Vec<u32>,
    filter_class: Vec<u32>,
    classes: usize,
}

/// Why a pattern is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// P = 0.
    #[error("a HetConv layer needs at least 1 part, got P = 0")]
    NoParts,
    /// P > M.
    #[error("P = {parts} is more than the layer's {in_channels} input channels; P must be 1 to {in_channels}")]
    MoreThanChannels {
        /// P.
        parts: usize,
        /// M.
        in_channels: usize,
    },
    /// Blocked arrangement with P that does not divide M and N.
    #[error("the blocked arrangement needs P to divide both, but P = {parts}, M = {in_channels}, N = {out_channels}")]
    DoesNotDivide {
        /// P.
        parts: usize,
        /// M.
        in_channels: usize,
        /// N.
        out_channels: usize,
    },
    /// No channels or no filters, or more than can be counted.
    #[error("M = {in_channels} channels and N = {out_channels} filters: each must be 1 to {limit}")]
    Size {
        /// M.
        in_channels: usize,
        /// N.
        out_channels: usize,
        /// The largest number accepted.
        limit: usize,
    },
    /// A class number beyond the number of channels and filters.
    #[error("class {class} is out of range: with M = {in_channels} and N = {out_channels} classes are below {limit}")]
    ClassOutOfRange {
        /// The offending class.
        class: u32,
        /// M.
        in_channels: usize,
        /// N.
        out_channels: usize,
        /// Classes must be below this.
        limit: usize,
    },
    /// Written-out classes that do not match the stated M and N.
    #[error(
        "classes are given for {channels} channels and {filters} filters, but M = {in_channels} and N = {out_channels}"
    )]
    Lengths {
        /// Channels with a class.
        channels: usize,
        /// Filters with a class.
        filters: usize,
        /// M.
        in_channels: usize,
        /// N.
        out_channels: usize,
    },
}

impl HetPattern {
    /// The most channels or filters a layer may have.
    pub const LIMIT: usize = 1 << 24;

    /// The paper's arrangement (figure 3): channel `c` is spatial for filter `f` iff `(c − f) mod P == 0`.
    ///
    /// # Errors
    /// P = 0, P > M, or sizes out of range.
    pub fn shifted(in_channels: usize, out_channels: usize, parts: usize) -> Result<Self, PatternError> {
        check_parts(in_channels, out_channels, parts)?;
        let class = |n: usize| (0..n).map(|i| (i % parts) as u32).collect();
        Ok(Self {
            arrangement: Arrangement::Shifted { parts },
            channel_class: class(in_channels),
            filter_class: class(out_channels),
            classes: parts,
        })
    }

    /// The blocked arrangement: classes are contiguous runs of M/P channels and N/P filters.
    ///
    /// # Errors
    /// P = 0, P > M, P that does not divide both M and N, or sizes out of range.
    pub fn blocked(in_channels: usize, out_channels: usize, parts: usize) -> Result<Self, PatternError> {
        check_parts(in_channels, out_channels, parts)?;
        if !in_channels.is_multiple_of(parts) || !out_channels.is_multiple_of(parts) {
            return Err(PatternError::DoesNotDivide { parts, in_channels, out_channels });
        }
        let class = |n: usize| (0..n).map(|i| (i * parts / n) as u32).collect();
        Ok(Self {
            arrangement: Arrangement::Blocked { parts },
            channel_class: class(in_channels),
            filter_class: class(out_channels),
            classes: parts,
        })
    }

    /// A pattern with the class of every channel and every filter written out.
    ///
    /// # Errors
    /// No channels or no filters, or a class that is not below max(M, N).
    pub fn assigned(channels: Vec<u32>, filters: Vec<u32>) -> Result<Self, PatternError> {
        let (in_channels, out_channels) = (channels.len(), filters.len());
        check_sizes(in_channels, out_channels)?;
        let limit = in_channels.max(out_channels);
        if let Some(&class) = channels.iter().chain(&filters).find(|&&class| class as usize >= limit) {
            return Err(PatternError::ClassOutOfRange { class, in_channels, out_channels, limit });
        }
        let classes = channels.iter().chain(&filters).max().map_or(0, |&class| class as usize + 1);
        let arrangement = Arrangement::Assigned { channels: channels.clone(), filters: filters.clone() };
        Ok(Self { arrangement, channel_class: channels, filter_class: filters, classes })
    }

    /// M, the number of input channels.
    pub fn in_channels(&self) -> usize {
        self.channel_class.len()
    }

    /// N, the number of filters.
    pub fn out_channels(&self) -> usize {
        self.filter_class.len()
    }

    /// The number of classes; the paper's P for the shifted and blocked arrangements.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How the classes came about.
    pub fn arrangement(&self) -> &Arrangement {
        &self.arrangement
    }

    /// Class of every channel.
    pub fn channel_classes(&self) -> &[u32] {
        &self.channel_class
    }

    /// Class of every filter.
    pub fn filter_classes(&self) -> &[u32] {
        &self.filter_class
    }

    /// Whether filter `filter` keeps its off-centre taps on channel `channel`.
    ///
    /// # Panics
    /// If either index is out of range.
    pub fn is_spatial(&self, filter: usize, channel: usize) -> bool {
        self.filter_class[filter] == self.channel_class[channel]
    }

    /// The channels that filter `filter` sees through its whole window, ascending: slot `s` of its ring weights belongs
    /// to the `s`-th of them.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn spatial_channels(&self, filter: usize) -> impl Iterator<Item = usize> + '_ {
        let class = self.filter_class[filter];
        (0..self.in_channels()).filter(move |&c| self.channel_class[c] == class)
    }

    /// For every channel, its rank among the channels of its class: the ring slot that belongs to it.
    pub fn ring_slots(&self) -> Vec<usize> {
        let mut next = vec![0; self.classes];
        let rank = |&class: &u32| {
            let slot = next[class as usize];
            next[class as usize] += 1;
            slot
        };
        self.channel_class.iter().map(rank).collect()
    }

    /// The number of channels of every class.
    pub fn class_sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.classes];
        for &class in &self.channel_class {
            sizes[class as usize] += 1;
        }
        sizes
    }

    /// S_f, the number of K×K kernels of every filter: the channels of its class.
    pub fn slots(&self) -> Vec<usize> {
        let sizes = self.class_sizes();
        self.filter_class.iter().map(|&class| sizes[class as usize]).collect()
    }

    /// S, the most K×K kernels any filter has: the extent of the ring weights `[N, S, K²−1]`.
    pub fn max_spatial(&self) -> usize {
        self.slots().into_iter().max().unwrap_or(0)
    }

    /// Pairs of filter and channel with a K×K kernel, over all filters.
    pub fn spatial_pairs(&self) -> usize {
        self.slots().iter().sum()
    }

    /// The weights of each filter of a layer whose window has `taps` taps, which both of its tensors share as their fan-in:
    /// M + (K²−1)·S_f.
    pub fn fan_in(&self, taps: usize) -> Vec<usize> {
        let of_filter = |slots| self.in_channels() + taps.saturating_sub(1) * slots;
        self.slots().into_iter().map(of_filter).collect()
    }

    /// Number of weights of a layer whose window has `taps` taps: N·M centre taps and K²−1 more for every spatial pair.
    /// It is also the number of MACs per output pixel.
    ///
    /// # Panics
    /// If `taps` is 0.
    pub fn weights(&self, taps: usize) -> usize {
        assert!(taps > 0, "a window without taps");
        self.in_channels() * self.out_channels() + self.spatial_pairs() * (taps - 1)
    }
}

fn check_sizes(in_channels: usize, out_channels: usize) -> Result<(), PatternError> {
    let legal = 1..=HetPattern::LIMIT;
    if legal.contains(&in_channels) && legal.contains(&out_channels) {
        return Ok(());
    }
    Err(PatternError::Size { in_channels, out_channels, limit: HetPattern::LIMIT })
}

fn check_parts(in_channels: usize, out_channels: usize, parts: usize) -> Result<(), PatternError> {
    check_sizes(in_channels, out_channels)?;
    match parts {
        0 => Err(PatternError::NoParts),
        parts if parts > in_channels => Err(PatternError::MoreThanChannels { parts, in_channels }),
        _ => Ok(()),
    }
}

/// The compact form in files: an arrangement and the two sizes.
#[derive(Serialize, Deserialize)]
#[serde(rename = "HetPattern", deny_unknown_fields)]
struct Stored {
    in_channels: usize,
    out_channels: usize,
    arrangement: Arrangement,
}

impl From<HetPattern> for Stored {
    fn from(pattern: HetPattern) -> Self {
        Self {
            in_channels: pattern.in_channels(),
            out_channels: pattern.out_channels(),
            arrangement: pattern.arrangement,
        }
    }
}

impl TryFrom<Stored> for HetPattern {
    type Error = PatternError;

    fn try_from(stored: Stored) -> Result<Self, PatternError> {
        let (in_channels, out_channels) = (stored.in_channels, stored.out_channels);
        match stored.arrangement {
            Arrangement::Shifted { parts } => Self::shifted(in_channels, out_channels, parts),
            Arrangement::Blocked { parts } => Self::blocked(in_channels, out_channels, parts),
            Arrangement::Assigned { channels, filters } => {
                if channels.len() != in_channels || filters.len() != out_channels {
                    let (channels, filters) = (channels.len(), filters.len());
                    return Err(PatternError::Lengths { channels, filters, in_channels, out_channels });
                }
                Self::assigned(channels, filters)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifted_is_the_papers_condition() {
        let pattern = HetPattern::shifted(7, 9, 3).unwrap();
        for f in 0..9usize {
            for c in 0..7usize {
                assert_eq!(pattern.is_spatial(f, c), (c as isize - f as isize).rem_euclid(3) == 0);
            }
        }
        assert_eq!(pattern.class_sizes(), [3, 2, 2]);
        assert_eq!(pattern.slots(), [3, 2, 2, 3, 2, 2, 3, 2, 2]);
        assert_eq!(pattern.max_spatial(), 3);
        assert_eq!(pattern.weights(9), 7 * 9 + 8 * (3 * 3 + 3 * 2 + 3 * 2));
    }

    #[test]
    fn blocked_is_contiguous() {
        let pattern = HetPattern::blocked(8, 4, 4).unwrap();
        assert_eq!(pattern.channel_classes(), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(pattern.filter_classes(), [0, 1, 2, 3]);
        assert_eq!(
            HetPattern::blocked(8, 6, 4),
            Err(PatternError::DoesNotDivide { parts: 4, in_channels: 8, out_channels: 6 })
        );
    }

    #[test]
    fn parts_beyond_the_channels_are_an_error() {
        assert_eq!(HetPattern::shifted(4, 8, 5), Err(PatternError::MoreThanChannels { parts: 5, in_channels: 4 }));
        assert_eq!(HetPattern::shifted(4, 8, 0), Err(PatternError::NoParts));
        assert!(matches!(HetPattern::shifted(0, 8, 1), Err(PatternError::Size { .. })));
        assert!(matches!(HetPattern::assigned(vec![9], vec![0]), Err(PatternError::ClassOutOfRange { class: 9, .. })));
    }

    #[test]
    fn more_parts_than_filters_is_legal() {
        let pattern = HetPattern::shifted(8, 3, 8).unwrap();
        assert_eq!((pattern.classes(), pattern.max_spatial()), (8, 1));
        assert_eq!(pattern.weights(9), 3 * 8 + 3 * 8);
    }

    #[test]
    fn ring_slots_rank_channels_within_their_class() {
        let pattern = HetPattern::assigned(vec![1, 0, 1, 1, 3], vec![1, 2]).unwrap();
        assert_eq!(pattern.ring_slots(), [0, 0, 1, 2, 0]);
        assert_eq!(pattern.spatial_channels(0).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(pattern.spatial_channels(1).count(), 0);
        assert_eq!((pattern.classes(), pattern.max_spatial()), (4, 3));
    }
}
