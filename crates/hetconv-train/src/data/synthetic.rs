//! The built-in data set: 32×32 RGB textures of ten classes that differ in spatial structure and in nothing else.
//!
//! An image begins as a brightness field: the pattern of its class at random phase, scale and slant, a slope across the
//! image, a fainter pattern of another class, and noise. The pixels are then *ranked*, and each gets its rank's place
//! on a fixed curve between two random colours. Hence, before the last bit of noise, every image of every class holds
//! the very same amounts of every mixture of its two colours: a network that looks at pixels one by one (1×1
//! convolutions, then a global mean) has nothing to go by. Classes also come in pairs that are one another's rotation, so
//! that pooling windows tell little, and no class is another's mirror image, since training flips images.
//!
//! Everything is built from additions, multiplications and square roots, which IEEE 754 defines exactly: a seed gives
//! the same bytes on every machine and any number of threads.

use super::{DataError, Dataset, Images, Split};
use crate::rng::{Purpose, below, stream, uniform};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// The name of the data set.
pub(super) const NAME: &str = "synthetic";
const SIDE: usize = 32;
const PIXELS: usize = SIDE * SIDE;
const CLASSES: [&str; 10] = [
    "vertical stripes",
    "horizontal stripes",
    "diagonal stripes",
    "checkers",
    "diamonds",
    "rings",
    "vertical zigzags",
    "horizontal zigzags",
    "plus signs",
    "crosses",
];

/// Which images to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntheticOptions {
    /// Every image is a function of the seed, its split and its index.
    pub seed: u64,
    /// Number of training images.
    pub train: usize,
    /// Number of test images.
    pub test: usize,
}

impl Default for SyntheticOptions {
    /// Seed 0, 8,000 training and 2,000 test images.
    fn default() -> Self {
        Self { seed: 0, train: 8_000, test: 2_000 }
    }
}

/// Generates the built-in data set. Image `i` is of class `i mod 10`.
///
/// # Errors
/// If a split is to be empty.
///
/// # Examples
/// ```
/// use hetconv_train::{SyntheticOptions, synthetic};
///
/// let data = synthetic(&SyntheticOptions { train: 100, test: 20, ..Default::default() })?;
/// assert_eq!(data.train.shape(), [32, 32, 3]);
/// assert_eq!(data.classes.len(), 10);
/// # Ok::<(), hetconv_train::DataError>(())
/// ```
pub fn synthetic(options: &SyntheticOptions) -> Result<Dataset, DataError> {
    let split = |n: usize, purpose| {
        let mut pixels = vec![0; n * PIXELS * 3];
        pixels.par_chunks_exact_mut(PIXELS * 3).enumerate().for_each(|(index, image)| {
            draw(&mut stream(options.seed, 0, index as u64, purpose), index % CLASSES.len(), image);
        });
        let labels = (0..n).map(|index| (index % CLASSES.len()) as u16).collect();
        Split::new(Images::new([SIDE, SIDE, 3], pixels)?, labels)
    };
    let train = split(options.train, Purpose::SyntheticTrain)?;
    let test = split(options.test, Purpose::SyntheticTest)?;
    Dataset::new(NAME.into(), train, test, CLASSES.map(str::to_owned).into())
}

/// Strength of the noise under the ranking, from the clearest to the noisiest image; patterns reach from −1 to 1.
const NOISE: [f32; 2] = [0.2, 0.8];
/// Strength of the other class's pattern.
const DISTRACTOR: [f32; 2] = [0.0, 0.3];

/// Draws one image of a class: `[row][column][channel]` bytes.
fn draw(rng: &mut ChaCha8Rng, class: usize, image: &mut [u8]) {
    let mut field = pattern(rng, class);
    let other = (class + 1 + below(rng, CLASSES.len() as u32 - 1) as usize) % CLASSES.len();
    let distractor = pattern(rng, other);
    let (share, noise) = (between(rng, DISTRACTOR), between(rng, NOISE));
    let slope = [between(rng, [-0.04, 0.04]), between(rng, [-0.04, 0.04])];
    for (i, value) in field.iter_mut().enumerate() {
        let (x, y) = ((i % SIDE) as f32, (i / SIDE) as f32);
        *value += share * distractor[i] + slope[0] * x + slope[1] * y + noise * bell(rng);
    }

    let mut order: Vec<usize> = (0..PIXELS).collect();
    order.sort_by(|&a, &b| field[a].total_cmp(&field[b]));
    let [from, to] = colours(rng);
    for (rank, &i) in order.iter().enumerate() {
        let t = rank as f32 / (PIXELS - 1) as f32;
        let mixture = t * t * (3.0 - 2.0 * t);
        for channel in 0..3 {
            let value = from[channel] + (to[channel] - from[channel]) * mixture + 12.0 * bell(rng);
            image[i * 3 + channel] = value.round().clamp(0.0, 255.0) as u8;
        }
    }
}

/// Two random colours that are not too much alike.
fn colours(rng: &mut ChaCha8Rng) -> [[f32; 3]; 2] {
    loop {
        let mut colour = || [(); 3].map(|()| between(rng, [0.0, 255.0]));
        let (a, b) = (colour(), colour());
        let distance = (0..3).map(|c| (a[c] - b[c]) * (a[c] - b[c])).sum::<f32>().sqrt();
        if distance >= 80.0 {
            return [a, b];
        }
    }
}

/// The brightness field of a class, between −1 and 1.
fn pattern(rng: &mut ChaCha8Rng, class: usize) -> [f32; PIXELS] {
    // Axes u and v of the pattern: slanted a little, on the diagonal for some classes, exchanged for others.
    let slant = between(rng, [-0.15, 0.15]);
    let length = (1.0 + slant * slant).sqrt();
    let (mut cos, mut sin) = (1.0 / length, slant / length);
    if matches!(class, 2 | 4 | 9) {
        let sign = if below(rng, 2) == 0 { 1.0 } else { -1.0 };
        (cos, sin) = ((cos - sign * sin) * HALF_ROOT, (sin + sign * cos) * HALF_ROOT);
    }
    let swap = matches!(class, 1 | 7);
    let period = between(rng, [4.5, 8.5]);
    let phase = [uniform(rng), uniform(rng)];
    let centre = [between(rng, [4.0, 28.0]), between(rng, [4.0, 28.0])];
    let (bend, bend_period) = (between(rng, [2.5, 4.0]), between(rng, [10.0, 14.0]));
    let signs: Vec<[f32; 2]> = (0..7).map(|_| [between(rng, [2.0, 30.0]), between(rng, [2.0, 30.0])]).collect();
    let (arm, thickness) = (between(rng, [4.0, 6.0]), between(rng, [0.8, 1.3]));
    let turned = |x: f32, y: f32| {
        if swap { (cos * y + sin * x, cos * x - sin * y) } else { (cos * x + sin * y, cos * y - sin * x) }
    };

    std::array::from_fn(|i| {
        let (x, y) = ((i % SIDE) as f32, (i / SIDE) as f32);
        let (u, v) = turned(x, y);
        match class {
            0..=2 => wave(u / period + phase[0]),
            3 | 4 => wave(u / period + phase[0]) * wave(v / period + phase[1]) * 2.0,
            5 => {
                let (dx, dy) = (x - centre[0], y - centre[1]);
                wave((dx * dx + dy * dy).sqrt() / period + phase[0])
            }
            6 | 7 => wave((u + bend * wave(v / bend_period + phase[1])) / period + phase[0]),
            _ => {
                let inside = signs.iter().any(|&[a, b]| {
                    let (du, dv) = turned(x - a, y - b);
                    let (du, dv) = (du.abs(), dv.abs());
                    du.max(dv) <= arm && du.min(dv) <= thickness
                });
                if inside { 1.5 } else { -1.0 }
            }
        }
    })
}

const HALF_ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// A triangle wave of period 1 between −1 and 1.
fn wave(t: f32) -> f32 {
    4.0 * (t - t.floor() - 0.5).abs() - 1.0
}

fn between(rng: &mut ChaCha8Rng, [low, high]: [f32; 2]) -> f32 {
    low + (high - low) * uniform(rng)
}

/// A bell-shaped number of mean 0 and variance 1: the sum of three uniform ones.
fn bell(rng: &mut ChaCha8Rng) -> f32 {
    2.0 * (uniform(rng) + uniform(rng) + uniform(rng) - 1.5)
}
