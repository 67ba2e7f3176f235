//! Which channels and filters are of one class.
//!
//! What a filter loses on a channel of another class is what its off-centre taps add there beyond what the centre pixel
//! says already: neighbouring pixels are alike, and the centre tap stays. So the energy of a filter and channel is the
//! variance of the off-centre taps' sum given the centre pixel.
//!
//! A value that one layer writes and others read has one class per channel for all of them; else no order of its channels
//! would have every layer's classes side by side. The values' classes are improved in turn, each with all others fixed, as
//! long as more energy lies within classes. That ends where no value alone can do better, which need not be the best there is.

use std::collections::BTreeMap;

use hetconv_core::HetPattern;
use hetconv_graph::ValueId;

use crate::Layer;
use crate::linear::Symmetric;

/// First and second moments of a layer's windows, channel by channel.
pub(crate) struct Moments {
    taps: usize,
    windows: usize,
    /// `[M, taps]`
    first: Vec<f64>,
    /// `[M, taps, taps]`
    second: Vec<f64>,
}

impl Moments {
    pub fn new(layer: &Layer) -> Self {
        let (taps, channels) = (layer.geometry.taps(), layer.pattern.in_channels());
        Self { taps, windows: 0, first: vec![0.0; channels * taps], second: vec![0.0; channels * taps * taps] }
    }

    /// Counts windows `[windows, M, taps]`.
    pub fn add(&mut self, windows: &[f32]) {
        let taps = self.taps;
        for window in windows.chunks_exact(self.first.len()) {
            self.windows += 1;
            for (index, values) in window.chunks_exact(taps).enumerate() {
                let first = &mut self.first[index * taps..][..taps];
                first.iter_mut().zip(values).for_each(|(sum, &x)| *sum += f64::from(x));
                let second = &mut self.second[index * taps * taps..][..taps * taps];
                for (row, &x) in second.chunks_exact_mut(taps).zip(values) {
                    row.iter_mut().zip(values).for_each(|(sum, &y)| *sum += f64::from(x) * f64::from(y));
                }
            }
        }
    }

    /// The covariance of a channel's taps given the centre tap.
    fn given_center(&self, channel: usize, center: usize) -> Vec<f64> {
        let (taps, count) = (self.taps, self.windows.max(1) as f64);
        let mean = |t: usize| self.first[channel * taps + t] / count;
        let covariance = |t: usize, s: usize| self.second[(channel * taps + t) * taps + s] / count - mean(t) * mean(s);
        let variance = covariance(center, center);
        let explained = |t: usize, s: usize| {
            if variance > 0.0 { covariance(t, center) * covariance(center, s) / variance } else { 0.0 }
        };
        (0..taps * taps).map(|at| covariance(at / taps, at % taps) - explained(at / taps, at % taps)).collect()
    }

    /// What each filter loses on each channel of another class.
    pub fn energy(&self, layer: &Layer) -> Energy {
        let (taps, channels) = (self.taps, layer.pattern.in_channels());
        let center = layer.geometry.center_tap().unwrap_or(0);
        let covariances: Vec<Symmetric> =
            (0..channels).map(|channel| Symmetric(self.given_center(channel, center))).collect();
        let kernels = layer.weight.chunks_exact(taps).enumerate();
        // Rounding may leave a little less than nothing.
        Energy(kernels.map(|(pair, kernel)| covariances[pair % channels].form(kernel).max(0.0)).collect())
    }
}

/// `[N, M]`
pub(crate) struct Energy(pub Vec<f64>);

/// A value's classes, with one set for every P.
type Classes = BTreeMap<(ValueId, usize), Vec<u32>>;

/// Gives the layers classes that keep more energy; `ends` are the values that each reads and gives.
pub(crate) fn assign(layers: &mut [Layer], ends: &[[ValueId; 2]], energies: &[Energy]) {
    let mut classes = Classes::new();
    for (layer, &[input, output]) in layers.iter().zip(ends) {
        let parts = layer.pattern.classes();
        // Values of different widths are not tied, so whoever comes first says how large the classes are.
        classes.entry((input, parts)).or_insert_with(|| layer.pattern.channel_classes().to_vec());
        classes.entry((output, parts)).or_insert_with(|| layer.pattern.filter_classes().to_vec());
    }
    let keys: Vec<(ValueId, usize)> = classes.keys().copied().collect();
    for _ in 0..20 {
        let mut better = false;
        for &key in &keys {
            let scores = scores(key, layers, ends, energies, &classes);
            let current = &classes[&key];
            let found = distribute(&scores, current, key.1);
            // Where a layer reads and gives the same value, scores are of the old classes at its other end.
            let before = kept(key, layers, ends, energies, &classes);
            let old = classes.insert(key, found).unwrap_or_default();
            if kept(key, layers, ends, energies, &classes) > before * (1.0 + 1e-6) {
                better = true;
            } else {
                classes.insert(key, old);
            }
        }
        if !better {
            break;
        }
    }
    for (layer, &[input, output]) in layers.iter_mut().zip(ends) {
        let parts = layer.pattern.classes();
        let [channels, filters] = [input, output].map(|value| classes[&(value, parts)].clone());
        let same = channels == layer.pattern.channel_classes() && filters == layer.pattern.filter_classes();
        if !same && let Ok(pattern) = HetPattern::assigned(channels, filters) {
            layer.pattern = pattern;
        }
    }
}

/// `[channels, P]`: the energy that lies within classes if a channel of this value is of a class.
fn scores(
    (value, parts): (ValueId, usize),
    layers: &[Layer],
    ends: &[[ValueId; 2]],
    energies: &[Energy],
    classes: &Classes,
) -> Vec<f64> {
    let mut scores = vec![0.0; classes[&(value, parts)].len() * parts];
    for ((layer, &[input, output]), Energy(energy)) in layers.iter().zip(ends).zip(energies) {
        if layer.pattern.classes() != parts || ![input, output].contains(&value) {
            continue;
        }
        let channels = layer.pattern.in_channels();
        let [of_channel, of_filter] = [input, output].map(|value| &classes[&(value, parts)]);
        for (pair, energy) in energy.iter().enumerate() {
            let (filter, channel) = (pair / channels, pair % channels);
            if input == value {
                scores[channel * parts + of_filter[filter] as usize] += energy;
            }
            if output == value {
                scores[filter * parts + of_channel[channel] as usize] += energy;
            }
        }
    }
    scores
}

/// The energy that lies within classes, of all layers that read or give this value.
fn kept(
    (value, parts): (ValueId, usize),
    layers: &[Layer],
    ends: &[[ValueId; 2]],
    energies: &[Energy],
    classes: &Classes,
) -> f64 {
    let of_layer = |((layer, ends), Energy(energy)): ((&Layer, &[ValueId; 2]), &Energy)| -> f64 {
        if layer.pattern.classes() != parts || !ends.contains(&value) {
            return 0.0;
        }
        let channels = layer.pattern.in_channels();
        let [of_channel, of_filter] = ends.map(|value| &classes[&(value, parts)]);
        let pairs = energy.iter().enumerate();
        pairs
            .filter(|(pair, _)| of_filter[pair / channels] == of_channel[pair % channels])
            .map(|(_, energy)| energy)
            .sum()
    };
    layers.iter().zip(ends).zip(energies).map(of_layer).sum()
}

/// Classes of the same sizes as `current` with a high sum of scores `[items, P]`: items choose in the order of what they
/// have to lose, then pairs change places while that helps.
fn distribute(scores: &[f64], current: &[u32], parts: usize) -> Vec<u32> {
    let mut room = vec![0_usize; parts];
    current.iter().for_each(|&class| room[class as usize] += 1);
    let row = |item: usize| &scores[item * parts..][..parts];
    let stake = |item: usize| {
        let row = row(item);
        row.iter().copied().fold(f64::MIN, f64::max) - row.iter().sum::<f64>() / parts as f64
    };
    let mut order: Vec<usize> = (0..current.len()).collect();
    order.sort_by(|&a, &b| stake(b).total_cmp(&stake(a)).then(a.cmp(&b)));
    let mut classes = vec![0_u32; current.len()];
    for item in order {
        // Of equals the first.
        let free = (0..parts).filter(|&class| room[class] > 0).rev();
        let class = free.max_by(|&a, &b| row(item)[a].total_cmp(&row(item)[b])).unwrap_or(0);
        room[class] = room[class].saturating_sub(1);
        classes[item] = class as u32;
    }
    for _ in 0..10 {
        let mut swapped = false;
        for a in 0..classes.len() {
            for b in a + 1..classes.len() {
                let (of_a, of_b) = (classes[a] as usize, classes[b] as usize);
                let gain = row(a)[of_b] + row(b)[of_a] - row(a)[of_a] - row(b)[of_b];
                if gain > 1e-9 * (row(a)[of_a] + row(b)[of_b]) {
                    classes.swap(a, b);
                    swapped = true;
                }
            }
        }
        if !swapped {
            break;
        }
    }
    classes
}

#[cfg(test)]
mod tests {
    use hetconv_core::Conv2dGeometry;

    use super::*;
    use crate::windows::Sampling;

    #[test]
    fn items_get_the_classes_that_score_most() {
        // Each item likes one class; two of them the same, and one has more to lose.
        let scores = [9.0, 1.0, 8.0, 1.0, 1.0, 5.0, 4.0, 3.0];
        assert_eq!(distribute(&scores, &[0, 0, 1, 1], 2), [0, 0, 1, 1]);
        let scores = [1.0, 9.0, 1.0, 8.0, 5.0, 1.0, 3.0, 4.0];
        assert_eq!(distribute(&scores, &[0, 0, 1, 1], 2), [1, 1, 0, 0]);
        assert_eq!(distribute(&[0.0; 8], &[0, 1, 0, 1], 2), [0, 0, 1, 1]);
    }

    /// As in `x + conv(x)`, whose input and output have to have the same classes.
    #[test]
    fn a_layer_that_reads_and_gives_one_value_never_keeps_less_than_asked() {
        let classes = vec![0, 0, 1, 1];
        let mut energy = vec![0.0; 16];
        for (filter, channel, value) in [(0, 2, 10.0), (2, 0, 10.0), (0, 1, 1.0), (1, 0, 1.0)] {
            energy[filter * 4 + channel] = value;
        }
        let mut layers = [Layer {
            id: 1,
            name: "conv".into(),
            geometry: Conv2dGeometry::same(3, 1),
            in_size: [4, 4],
            pattern: HetPattern::assigned(classes.clone(), classes).expect("legal"),
            sampling: Sampling::new([4, 4], 1, 16),
            weight: vec![0.0; 144],
            bias: vec![0.0; 4],
        }];
        let energies = [Energy(energy)];
        let kept = |layer: &Layer| -> f64 {
            let (channels, filters) = (layer.pattern.channel_classes(), layer.pattern.filter_classes());
            assert_eq!(channels, filters);
            (0..16).filter(|at| filters[at / 4] == channels[at % 4]).map(|at| energies[0].0[at]).sum()
        };
        let asked = kept(&layers[0]);
        assign(&mut layers, &[[0, 0]], &energies);
        assert!(kept(&layers[0]) >= asked && asked > 0.0, "{:?}", layers[0].pattern);
    }

    #[test]
    fn no_pair_would_rather_change_places() {
        let scores: Vec<f64> = (0..60).map(|i| f64::from(i * 37 % 61)).collect();
        let classes = distribute(&scores, &[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3][..15], 4);
        let score = |item: usize, class: u32| scores[item * 4 + class as usize];
        for (a, b) in (0..15).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let kept = score(a, classes[a]) + score(b, classes[b]);
            assert!(score(a, classes[b]) + score(b, classes[a]) <= kept + 1e-6);
        }
    }
}
