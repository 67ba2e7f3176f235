//! The paper's equations 1 to 12 (section 3): what a layer costs, as functions.
//!
//! Costs are multiply-accumulates for one image, which the paper calls FLOPs; ratios are against the standard
//! convolution. Symbols are the paper's: [`Layer`] has M input channels, N filters, K×K kernels and an output of D×D
//! pixels; P is HetConv's number of parts, G the number of groups. Costs are real numbers, because the equations assume
//! that P or G divides M and say M·N/P where it does not; [`HetPattern::weights`](crate::HetPattern::weights) counts a
//! given layer exactly: its weights, which times D·D are [`Layer::het`] where P divides M.
//!
//! ```
//! use hetconv_core::equations::Layer;
//! let layer = Layer { in_channels: 256, out_channels: 256, kernel: 3, output: 8 };
//! assert_eq!(layer.standard(), 37_748_736.0);
//! assert_eq!(layer.het_ratio(4), 1.0 / 3.0);
//! ```

/// The sizes of one convolutional layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// M.
    pub in_channels: usize,
    /// N.
    pub out_channels: usize,
    /// K, in taps.
    pub kernel: usize,
    /// Dₒ, the height and width of the output, in pixels.
    pub output: usize,
}

impl Layer {
    /// Dₒ², output pixels.
    fn pixels(&self) -> f64 {
        (self.output as f64).powi(2)
    }

    /// K², taps.
    fn taps(&self) -> f64 {
        (self.kernel as f64).powi(2)
    }

    /// M·N, pairs of channel and filter.
    fn pairs(&self) -> f64 {
        self.in_channels as f64 * self.out_channels as f64
    }

    /// Equation 1: the standard convolution, Dₒ²·M·N·K².
    pub fn standard(&self) -> f64 {
        self.pixels() * self.pairs() * self.taps()
    }

    /// Equation 2: HetConv's K×K kernels, Dₒ²·M·N·K²/P.
    pub fn het_spatial(&self, parts: usize) -> f64 {
        self.standard() / parts as f64
    }

    /// Equation 3: HetConv's 1×1 kernels, Dₒ²·N·(M − M/P).
    pub fn het_pointwise(&self, parts: usize) -> f64 {
        let channels = self.in_channels as f64;
        self.pixels() * self.out_channels as f64 * (channels - channels / parts as f64)
    }

    /// Equation 4: HetConv in total, equation 2 + equation 3.
    pub fn het(&self, parts: usize) -> f64 {
        self.het_spatial(parts) + self.het_pointwise(parts)
    }

    /// Equation 5: HetConv against standard, 1/P + (1 − 1/P)/K². At P = 1 it is 1.
    pub fn het_ratio(&self, parts: usize) -> f64 {
        let share = 1.0 / parts as f64;
        share + (1.0 - share) / self.taps()
    }

    /// The first term of equation 6: the depthwise convolution, Dₒ²·M·K².
    pub fn depthwise(&self) -> f64 {
        self.pixels() * self.in_channels as f64 * self.taps()
    }

    /// The second term of equations 6 and 10: the pointwise convolution, Dₒ²·M·N.
    pub fn pointwise(&self) -> f64 {
        self.pixels() * self.pairs()
    }

    /// Equation 6: depthwise followed by pointwise, Dₒ²·M·K² + Dₒ²·M·N.
    pub fn depthwise_pointwise(&self) -> f64 {
        self.depthwise() + self.pointwise()
    }

    /// Equation 7: depthwise followed by pointwise against standard, 1/N + 1/K².
    pub fn depthwise_pointwise_ratio(&self) -> f64 {
        1.0 / self.out_channels as f64 + 1.0 / self.taps()
    }

    /// Equation 8: HetConv's extreme case P = M against standard, 1/M + (1 − 1/M)/K² (section 3, comparison with
    /// depthwise followed by pointwise).
    pub fn het_extreme_ratio(&self) -> f64 {
        self.het_ratio(self.in_channels)
    }

    /// Equation 9: equation 8 beside equation 7 (section 3, comparison with depthwise followed by pointwise). HetConv's
    /// extreme case is the smaller one where M = N, and wherever M ≥ N.
    pub fn extreme_against_depthwise_pointwise(&self) -> [f64; 2] {
        [self.het_extreme_ratio(), self.depthwise_pointwise_ratio()]
    }

    /// The first term of equation 10: the grouped convolution M→N, Dₒ²·M·N·K²/G.
    pub fn grouped(&self, groups: usize) -> f64 {
        self.standard() / groups as f64
    }

    /// Equation 10: grouped followed by pointwise, Dₒ²·M·N·K²/G + Dₒ²·M·N.
    ///
    /// This takes the grouped convolution to have N filters. In a network that can be built, the grouped convolution goes
    /// M→M and the pointwise one M→N, which costs Dₒ²·M²·K²/G + Dₒ²·M·N: the same only where M = N.
    pub fn grouped_pointwise(&self, groups: usize) -> f64 {
        self.grouped(groups) + self.pointwise()
    }

    /// Equation 11: grouped followed by pointwise against standard, 1/G + 1/K².
    pub fn grouped_pointwise_ratio(&self, groups: usize) -> f64 {
        1.0 / groups as f64 + 1.0 / self.taps()
    }

    /// Equation 12: equation 5 beside equation 11 with as many groups as parts, G = P (section 3, comparison with
    /// groupwise followed by pointwise). HetConv is always the smaller one, by 1/(P·K²).
    pub fn het_against_grouped_pointwise(&self, parts: usize) -> [f64; 2] {
        [self.het_ratio(parts), self.grouped_pointwise_ratio(parts)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HetPattern;

    const LAYERS: [Layer; 4] = [
        Layer { in_channels: 64, out_channels: 128, kernel: 3, output: 16 },
        Layer { in_channels: 256, out_channels: 256, kernel: 3, output: 8 },
        Layer { in_channels: 16, out_channels: 24, kernel: 5, output: 7 },
        Layer { in_channels: 32, out_channels: 8, kernel: 1, output: 3 },
    ];

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * a.abs().max(b.abs())
    }

    #[test]
    fn het_counts_what_the_pattern_counts() {
        for layer in LAYERS {
            for parts in [1, 2, 4, 8, 16] {
                let pattern = HetPattern::shifted(layer.in_channels, layer.out_channels, parts).unwrap();
                let macs = pattern.weights(layer.kernel * layer.kernel) * layer.output * layer.output;
                assert!(close(layer.het(parts), macs as f64), "{layer:?}, P = {parts}");
                let spatial = pattern.spatial_pairs() * layer.kernel.pow(2) * layer.output.pow(2);
                assert!(close(layer.het_spatial(parts), spatial as f64), "{layer:?}, P = {parts}");
            }
        }
    }

    #[test]
    fn ratios_are_quotients_of_costs() {
        for layer in LAYERS {
            let standard = layer.standard();
            for parts in [1, 2, 4, 8] {
                assert!(close(layer.het_ratio(parts), layer.het(parts) / standard));
                assert!(close(layer.grouped_pointwise_ratio(parts), layer.grouped_pointwise(parts) / standard));
                let [het, grouped] = layer.het_against_grouped_pointwise(parts);
                assert!(close(grouped - het, 1.0 / (parts * layer.kernel.pow(2)) as f64));
            }
            assert!(close(layer.depthwise_pointwise_ratio(), layer.depthwise_pointwise() / standard));
            assert!(close(layer.het_extreme_ratio(), layer.het(layer.in_channels) / standard));
        }
    }

    #[test]
    fn figures_worked_out_by_hand() {
        let layer = Layer { in_channels: 8, out_channels: 4, kernel: 3, output: 5 };
        assert_eq!(layer.standard(), 25.0 * 8.0 * 4.0 * 9.0);
        assert_eq!(layer.het_spatial(4), 25.0 * 4.0 * 2.0 * 9.0);
        assert_eq!(layer.het_pointwise(4), 25.0 * 4.0 * 6.0);
        assert_eq!(layer.depthwise_pointwise(), 25.0 * (8.0 * 9.0 + 8.0 * 4.0));
        assert_eq!(layer.grouped_pointwise(2), 25.0 * (8.0 * 4.0 * 9.0 / 2.0 + 8.0 * 4.0));
    }

    #[test]
    fn the_extreme_case_is_cheaper_than_depthwise_pointwise_unless_there_are_more_filters() {
        for (in_channels, out_channels, cheaper) in [(128, 128, true), (256, 128, true), (64, 512, false)] {
            let layer = Layer { in_channels, out_channels, kernel: 3, output: 8 };
            let [het, depthwise] = layer.extreme_against_depthwise_pointwise();
            assert_eq!(het < depthwise, cheaper, "{in_channels} {out_channels}");
            assert_eq!(layer.het(in_channels) < layer.depthwise_pointwise(), cheaper);
        }
    }
}
