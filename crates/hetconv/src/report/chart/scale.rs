//! From values to pixels.

/// A quantity along an edge of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it is, with its unit.
    pub label: String,
    /// Whether the axis begins at 0 whatever the data.
    pub from_zero: bool,
    /// Whether equal steps are doublings; values are positive then.
    pub doublings: bool,
    /// Values beyond which the axis never goes.
    pub limits: [f64; 2],
}

impl Axis {
    /// An axis from 0 up.
    pub fn from_zero(label: impl Into<String>) -> Self {
        Self { label: label.into(), from_zero: true, doublings: false, limits: [0.0, f64::INFINITY] }
    }

    /// An axis around its values.
    pub fn around(label: impl Into<String>) -> Self {
        Self { from_zero: false, limits: [f64::NEG_INFINITY, f64::INFINITY], ..Self::from_zero(label) }
    }

    /// An axis around values that are percentages.
    pub fn percent(label: impl Into<String>) -> Self {
        Self { limits: [0.0, 100.0], ..Self::around(label) }
    }

    /// An axis on which 1, 2, 4, 8 and so on are equally far apart.
    pub fn doublings(label: impl Into<String>) -> Self {
        Self { doublings: true, ..Self::around(label) }
    }
}

/// The scale of an axis over some values.
pub(super) struct Scale {
    from: f64,
    to: f64,
    pub step: f64,
    doublings: bool,
    pub pixels: [f64; 2],
}

impl Scale {
    /// A scale over some finite values, from tick to tick.
    pub fn new(axis: &Axis, values: impl Iterator<Item = f64>, pixels: [f64; 2]) -> Self {
        let place = |v: f64| if axis.doublings { v.max(f64::MIN_POSITIVE).log2() } else { v };
        let (mut low, mut high) =
            values.map(place).fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        if axis.doublings {
            let (from, to) = (low.floor(), high.ceil().max(low.floor() + 1.0));
            return Self { from, to, step: 1.0, doublings: true, pixels };
        }
        if axis.from_zero {
            low = low.min(0.0);
        }
        if high - low <= 1e-9 * high.abs().max(1e-9) {
            let around = (0.05 * high.abs()).max(0.5);
            (low, high) = (if axis.from_zero { low } else { low - around }, high + around);
        }
        let step = round_step((high - low) / 5.0);
        let [least, most] = axis.limits;
        let from = ((low / step).floor() * step).max(least);
        let to = ((high / step).ceil() * step).min(most);
        Self { from, to, step, doublings: false, pixels }
    }

    pub fn place(&self, value: f64) -> f64 {
        let value = if self.doublings { value.max(f64::MIN_POSITIVE).log2() } else { value };
        let share = (value - self.from) / (self.to - self.from);
        self.pixels[0] + share * (self.pixels[1] - self.pixels[0])
    }

    /// The values that are marked on the axis.
    pub fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let first = (self.from / self.step - 1e-6).ceil() as i64;
        let last = (self.to / self.step + 1e-6).floor() as i64;
        let value = |i: i64| if self.doublings { (i as f64).exp2() } else { i as f64 * self.step };
        (first..=last).map(value)
    }

    /// A value as exact as anybody can see: to a hundredth of a tick.
    pub fn text(&self, value: f64) -> String {
        if self.doublings { decimal(value, 0.01) } else { decimal(value, self.step / 100.0) }
    }

    /// The name of a tick.
    pub fn tick_text(&self, tick: f64) -> String {
        if self.doublings { decimal(tick, tick.min(1.0)) } else { decimal(tick, self.step) }
    }
}

/// The next number from 1, 2, 2.5, 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let mantissa = step / power;
    let round = [1.0, 2.0, 2.5, 5.0].into_iter().find(|&round| mantissa <= round * 1.000_001).unwrap_or(10.0);
    round * power
}

/// A number with as many decimals as its step needs.
fn decimal(value: f64, step: f64) -> String {
    // A step of 2.5·10ⁿ needs one decimal more than 1·10ⁿ.
    let decimals = (0..9).find(|&n| (step * 10f64.powi(n)).fract().min(1.0 - (step * 10f64.powi(n)).fract()) < 1e-6);
    format!("{value:.*}", decimals.unwrap_or(9) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (step, expected) in
            [(0.013, 0.02), (0.9, 1.0), (1.0, 1.0), (2.1, 2.5), (3.0, 5.0), (7.0, 10.0), (230.0, 250.0)]
        {
            assert!((round_step(step) - expected).abs() < 1e-9 * expected, "{step}: {}", round_step(step));
        }
    }

    #[test]
    fn a_scale_covers_its_values_with_ticks_at_both_ends() {
        let axis = Axis::percent("");
        let scale = Scale::new(&axis, [61.0, 98.7].into_iter(), [0.0, 100.0]);
        assert_eq!(scale.ticks().collect::<Vec<_>>(), [60.0, 70.0, 80.0, 90.0, 100.0]);
        assert!((scale.place(60.0)).abs() < 1e-9 && (scale.place(100.0) - 100.0).abs() < 1e-9);
        let single = Scale::new(&axis, [50.0].into_iter(), [0.0, 1.0]);
        assert!(single.from < 50.0 && single.to > 50.0);
        let perfect = Scale::new(&axis, [100.0].into_iter(), [0.0, 1.0]);
        assert!(perfect.from < 100.0 && perfect.to == 100.0 && perfect.place(100.0) == 1.0);
    }

    #[test]
    fn doublings_are_equally_far_apart() {
        let scale = Scale::new(&Axis::doublings("P"), [1.0, 2.0, 30.0].into_iter(), [0.0, 100.0]);
        assert_eq!(scale.ticks().collect::<Vec<_>>(), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]);
        assert_eq!((scale.place(1.0), scale.place(32.0)), (0.0, 100.0));
        assert!((scale.place(8.0) - scale.place(4.0) - 20.0).abs() < 1e-9);
        assert_eq!((scale.tick_text(16.0), scale.tick_text(0.25)), ("16".to_owned(), "0.25".to_owned()));
    }
}
