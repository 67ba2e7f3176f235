//! How the pixels of a batch are cut into runs and groups.

use crate::cache;
use crate::conv::ConvSpec;
use crate::taps::Region;

/// Output pixels of a run: long enough for a tile's sums to be read and written seldom, short enough for the panel and the
/// input that meets it to stay in the second-level cache.
pub(super) const RUN: usize = 256;

/// Values of input and grad-output that are strung together at most, where a run is not longer: they stay in the second-level
/// cache.
const STRUNG: usize = cache::SECOND / 2;

/// Where a product's two factors are: the first of its input channels, and the place of its output pixel in a run or, for a
/// region, its first value.
type Pairs = Vec<(u32, u32)>;

/// How images of one size are strung together and cut.
#[derive(Debug)]
pub(crate) struct Cut {
    /// Images of a group.
    pub(super) group: usize,
    /// For every run of a group and every tap its pairs.
    pub(super) runs: Vec<Vec<Pairs>>,
    /// For every region the pairs of a group, image by image.
    pub(super) regions: Vec<Pairs>,
}

impl Cut {
    /// `pairs` are for every tap those of input and output pixel of one image, in the order of output pixels; `in_len` and
    /// `out_len` the values of an image.
    pub fn new(
        spec: &ConvSpec,
        pairs: &[Vec<(usize, usize)>],
        regions: &[Region],
        [in_len, out_len]: [usize; 2],
    ) -> Self {
        let out_pixels = out_len / spec.out_channels;
        let strung = if out_pixels <= RUN { (STRUNG / (in_len + out_len).max(1)).clamp(1, 8) } else { 1 };
        // Values of a group are numbered in 32 bits.
        let most = (u32::MAX as usize / in_len.max(out_len).max(1)).max(1);
        let group = (RUN / out_pixels.max(1)).max(strung).min(most);
        let value = |value: usize| u32::try_from(value).expect("an image below 4 G values");
        let mut runs = vec![vec![Pairs::new(); pairs.len()]; (group * out_pixels).div_ceil(RUN)];
        for (tap, of_tap) in pairs.iter().enumerate() {
            for image in 0..group {
                for &(input, output) in of_tap {
                    let output = image * out_pixels + output;
                    let input = value(image * in_len + input * spec.in_channels);
                    runs[output / RUN][tap].push((input, (output % RUN) as u32));
                }
            }
        }
        let of_region = |region: &Region| -> Pairs {
            let of_image = |image| {
                let pair = move |(input, output)| (value(image * in_len + input), value(image * out_len + output));
                region.places().map(pair)
            };
            (0..group).flat_map(of_image).collect()
        };
        Self { group, runs, regions: regions.iter().map(of_region).collect() }
    }
}
