//! The built-in data set: repeatable, and told apart by structure alone.

use hetconv_train::{Dataset, Images, LoadOptions, Split, SyntheticOptions, synthetic};

fn data(seed: u64, train: usize, test: usize) -> Dataset {
    synthetic(&SyntheticOptions { seed, train, test }).unwrap()
}

/// Images and labels.
fn images(split: &Split) -> (&Images, &[u16]) {
    (split.images().unwrap(), split.labels())
}

/// Brightness of every pixel of an image: the sum of its channels.
fn brightness(image: &[u8]) -> Vec<f64> {
    image.chunks_exact(3).map(|pixel| pixel.iter().map(|&v| f64::from(v)).sum()).collect()
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let (a, b) = (one.install(|| data(5, 200, 30)), three.install(|| data(5, 200, 30)));
    assert_eq!((images(&a.train), images(&a.test)), (images(&b.train), images(&b.test)));
    assert_ne!(images(&a.train), images(&data(6, 200, 30).train));
    // More images leave the others as they are.
    assert_eq!(data(5, 300, 30).train.images().unwrap().image(199), a.train.images().unwrap().image(199));
    assert_ne!(a.train.images().unwrap().image(0), a.test.images().unwrap().image(0));
}

#[test]
fn empty_splits_are_refused() {
    assert!(synthetic(&SyntheticOptions { train: 0, ..Default::default() }).is_err());
    assert!(synthetic(&SyntheticOptions { test: 0, ..Default::default() }).is_err());
}

#[test]
fn classes_have_the_same_colours() {
    let data = data(1, 6_000, 10);
    let mut sums = vec![[0.0f64; 3]; 10];
    let mut histograms = vec![[0.0f64; 16]; 10];
    for (index, &label) in data.train.labels().iter().enumerate() {
        for pixel in data.train.images().unwrap().image(index).chunks_exact(3) {
            for (channel, &value) in pixel.iter().enumerate() {
                sums[usize::from(label)][channel] += f64::from(value);
                histograms[usize::from(label)][usize::from(value) / 16] += 1.0;
            }
        }
    }
    let pixels = 600.0 * 1024.0;
    for class in 0..10 {
        for (channel, (sum, first)) in sums[class].iter().zip(&sums[0]).enumerate() {
            let difference = (sum - first) / pixels;
            assert!(difference.abs() < 15.0, "class {class}, channel {channel}: mean differs by {difference}");
        }
        let distance: f64 = (0..16).map(|bin| (histograms[class][bin] - histograms[0][bin]).abs()).sum();
        assert!(distance / (3.0 * pixels) < 0.12, "class {class}: histogram differs by {}", distance / (3.0 * pixels));
    }
}

/// Accuracy of a classifier that compares features, scaled by their spread, with each class's mean.
fn nearest_mean(data: &Dataset, features: impl Fn(&[u8]) -> Vec<f64>) -> f64 {
    let rows: Vec<Vec<f64>> = (0..data.train.len()).map(|i| features(data.train.images().unwrap().image(i))).collect();
    let (width, n) = (rows[0].len(), rows.len() as f64);
    let mean: Vec<f64> = (0..width).map(|j| rows.iter().map(|row| row[j]).sum::<f64>() / n).collect();
    let spread: Vec<f64> =
        (0..width).map(|j| (rows.iter().map(|r| (r[j] - mean[j]).powi(2)).sum::<f64>() / n).sqrt()).collect();
    let mut means = vec![vec![0.0; width]; 10];
    for (row, &label) in rows.iter().zip(data.train.labels()) {
        (0..width).for_each(|j| means[usize::from(label)][j] += row[j] / (n / 10.0));
    }
    let right = (0..data.test.len()).filter(|&i| {
        let row = features(data.test.images().unwrap().image(i));
        let distance = |class: &Vec<f64>| (0..width).map(|j| ((row[j] - class[j]) / spread[j]).powi(2)).sum::<f64>();
        let best = (0..10).min_by(|&a, &b| distance(&means[a]).total_cmp(&distance(&means[b]))).unwrap();
        best == usize::from(data.test.labels()[i])
    });
    right.count() as f64 / data.test.len() as f64
}

/// What a network of 1×1 convolutions and a global mean can see: each pixel's values, wherever they are.
fn values(image: &[u8]) -> Vec<f64> {
    let mut sorted = brightness(image);
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
    let scaled = (1..16).map(|i| (sorted[i * 64] - low) / (high - low + 1.0));
    scaled.chain([low, high]).collect()
}

/// What a 3×3 convolution can see besides: how alike pixels are that lie a few rows and columns apart.
fn structure(image: &[u8]) -> Vec<f64> {
    let brightness = brightness(image);
    let mean = brightness.iter().sum::<f64>() / 1024.0;
    let at = |x: usize, y: usize| brightness[y * 32 + x] - mean;
    let energy = brightness.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / 1024.0 + 1.0;
    let shifts = (0..6usize).flat_map(|dy| (0..6usize).map(move |dx| (dx, dy)));
    shifts
        .map(|(dx, dy)| {
            let mut sum = 0.0;
            for y in 0..32 - dy {
                // Both slants together, since mirror images are of one class.
                sum += (0..32 - dx).map(|x| at(x, y) * at(x + dx, y + dy)).sum::<f64>();
                sum += (dx..32).map(|x| at(x, y) * at(x - dx, y + dy)).sum::<f64>();
            }
            sum / energy / 2048.0
        })
        .collect()
}

#[test]
fn structure_tells_classes_apart_and_pixel_values_do_not() {
    let data = data(2, 2_000, 1_000);
    let (by_values, by_structure) = (nearest_mean(&data, values), nearest_mean(&data, structure));
    println!("nearest mean by pixel values {by_values:.3}, by structure {by_structure:.3}");
    assert!(by_values < 0.16, "pixel values alone tell too much: {by_values}");
    assert!(by_structure > 0.4, "structure should tell classes apart: {by_structure}");
}

#[test]
fn it_opens_by_name_and_can_be_limited() {
    let options = LoadOptions { limit_train: Some(20), ..Default::default() };
    let opened = Dataset::open("synthetic", &options).unwrap();
    assert_eq!((opened.train.len(), opened.test.len(), opened.name.as_str()), (20, 2_000, "synthetic"));
    assert_eq!(images(&opened.train), images(&data(0, 20, 10).train));
}
