//! Pooling over NHWC images.

use hetconv_core::Conv2dGeometry;
use rayon::prelude::*;

use crate::fresh::product;
use crate::isa::Isa;
use crate::simd::{Simd, Task};

/// The input rows, or columns, of a window that lie inside the image.
#[derive(Clone, Copy, Debug)]
struct Inside {
    first: usize,
    step: usize,
    count: usize,
}

impl Inside {
    /// Of every output row (`axis` 0) or column (1). Only the ends are kept: a window may be as large as the image.
    fn of_axis(geometry: &Conv2dGeometry, axis: usize, input: usize, output: usize) -> Vec<Self> {
        let (kernel, stride, step) = (geometry.kernel[axis], geometry.stride[axis], geometry.dilation[axis]);
        let before = geometry.padding[axis];
        let inside = |o: usize| {
            let start = o * stride;
            let taps_before = |end: usize| end.saturating_sub(start).div_ceil(step).min(kernel);
            let (outside, count) = (taps_before(before), taps_before(before + input) - taps_before(before));
            Self { first: if count > 0 { start + outside * step - before } else { 0 }, step, count }
        };
        (0..output).map(inside).collect()
    }

    fn iter(self) -> impl Iterator<Item = usize> + Clone {
        (0..self.count).map(move |i| self.first + i * self.step)
    }
}

/// The windows of a pooling: for each output row and column, the input rows and columns inside.
#[derive(Debug)]
struct Windows {
    rows: Vec<Inside>,
    columns: Vec<Inside>,
    in_size: [usize; 2],
    channels: usize,
}

impl Windows {
    fn new(geometry: &Conv2dGeometry, in_size: [usize; 2], channels: usize) -> Self {
        assert!(!in_size.contains(&0), "images have pixels");
        let out = geometry.output_size(in_size).expect("a window that fits, checked by shape inference");
        let inside = |axis: usize| Inside::of_axis(geometry, axis, in_size[axis], out[axis]);
        Self { rows: inside(0), columns: inside(1), in_size, channels }
    }

    fn in_len(&self) -> usize {
        product([self.in_size[0], self.in_size[1], self.channels])
    }

    fn out_len(&self) -> usize {
        product([self.rows.len(), self.columns.len(), self.channels])
    }

    /// The windows of an output row.
    fn of_row(&self, row: usize) -> impl Iterator<Item = Window> {
        let (rows, width) = (self.rows[row], self.in_size[1]);
        self.columns.iter().map(move |&columns| Window { rows, columns, width })
    }

    /// The windows of all output pixels.
    fn all(&self) -> impl Iterator<Item = Window> {
        (0..self.rows.len()).flat_map(|row| self.of_row(row))
    }
}

/// The input pixels of an output pixel.
#[derive(Clone, Copy, Debug)]
struct Window {
    rows: Inside,
    columns: Inside,
    /// Of the input.
    width: usize,
}

impl Window {
    fn len(self) -> usize {
        self.rows.count * self.columns.count
    }

    #[inline(always)]
    fn pixels(self) -> impl Iterator<Item = usize> + Clone {
        self.rows.iter().flat_map(move |row| self.columns.iter().map(move |column| row * self.width + column))
    }
}

/// What a mean divides by.
#[derive(Clone, Copy, Debug)]
enum Divisor {
    /// The taps of a window, padding included.
    Taps(usize),
    /// Its pixels inside the image.
    Inside,
}

impl Divisor {
    fn new(geometry: &Conv2dGeometry, count_padding: bool) -> Self {
        if count_padding { Self::Taps(geometry.taps()) } else { Self::Inside }
    }

    /// At least 1: a window without pixels has a mean of 0.
    fn of(self, window: Window) -> f64 {
        let count = match self {
            Self::Taps(taps) => taps,
            Self::Inside => window.len(),
        };
        count.max(1) as f64
    }
}

/// A batch of images and the windows over them, for training.
#[derive(Clone, Copy, Debug)]
pub struct PooledImages<'a> {
    /// Size, stride, padding and dilation of the windows.
    pub geometry: &'a Conv2dGeometry,
    /// Number of images.
    pub batch: usize,
    /// Height and width of an image.
    pub size: [usize; 2],
    /// Channels of an image.
    pub channels: usize,
}

impl PooledImages<'_> {
    fn windows(&self) -> Windows {
        Windows::new(self.geometry, self.size, self.channels)
    }

    /// The lengths of one image before and after, once those of the batch are known to fit.
    fn check(&self, windows: &Windows, in_len: usize, out_len: usize) -> (usize, usize) {
        let (in_image, out_image) = (windows.in_len(), windows.out_len());
        let of_batch = |image| product([self.batch, image]);
        assert!(in_len == of_batch(in_image) && out_len == of_batch(out_image), "lengths");
        (in_image, out_image)
    }
}

/// A pooling for inference.
#[derive(Debug)]
pub struct Pool {
    windows: Windows,
    /// Of the mean; `None` takes the largest value.
    divisor: Option<Divisor>,
}

impl Pool {
    /// Largest value of each window, as [`max_pool_forward`] has it.
    ///
    /// # Panics
    /// If the geometry doesn't fit the image, or that has no pixels.
    pub fn max(geometry: &Conv2dGeometry, in_size: [usize; 2], channels: usize) -> Self {
        Self { windows: Windows::new(geometry, in_size, channels), divisor: None }
    }

    /// Mean of each window, as [`avg_pool_forward`] has it.
    ///
    /// # Panics
    /// If the geometry doesn't fit the image, or that has no pixels.
    pub fn average(geometry: &Conv2dGeometry, in_size: [usize; 2], channels: usize, count_padding: bool) -> Self {
        let divisor = Divisor::new(geometry, count_padding);
        Self { windows: Windows::new(geometry, in_size, channels), divisor: Some(divisor) }
    }

    /// Rows of an output image.
    pub fn rows(&self) -> usize {
        self.windows.rows.len()
    }

    /// Computes whole output rows, counted through all images, from `first` on: `[images, height, width, channels]` →
    /// `[rows, out width, channels]`.
    ///
    /// # Panics
    /// If the rows are not those of the images.
    pub fn run_rows(&self, isa: Isa, first: usize, x: &[f32], y: &mut [f32]) {
        isa.run(PoolRows { pool: self, first, x, y });
    }
}

/// [`Pool::run_rows`].
struct PoolRows<'a> {
    pool: &'a Pool,
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Task for PoolRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Windows { rows, columns, channels, .. } = &self.pool.windows;
        let (channels, in_len) = (*channels, self.pool.windows.in_len());
        for (row, y) in (self.first..).zip(self.y.chunks_exact_mut((columns.len() * channels).max(1))) {
            let x = &self.x[row / rows.len() * in_len..][..in_len];
            for (y, window) in y.chunks_exact_mut(channels).zip(self.pool.windows.of_row(row % rows.len())) {
                let pixels = window.pixels().map(|pixel| &x[pixel * channels..][..channels]);
                match self.pool.divisor {
                    Some(divisor) => average(pixels, window.len(), divisor.of(window), y),
                    None => largest(simd, pixels, y),
                }
            }
        }
    }
}

/// The largest value of each channel of some pixels, as [`wins`] has it: of a few vectors of channels at a time, which stay
/// in registers.
#[inline(always)]
fn largest<'a, S: Simd>(simd: S, pixels: impl Iterator<Item = &'a [f32]> + Clone, y: &mut [f32]) {
    const VECTORS: usize = 4;
    let none = simd.splat(f32::NEG_INFINITY);
    let mut first = 0;
    for y in y.chunks_exact_mut(VECTORS * S::LANES) {
        let mut largest = [none; VECTORS];
        for pixel in pixels.clone() {
            let x = &pixel[first..][..VECTORS * S::LANES];
            for (v, largest) in largest.iter_mut().enumerate() {
                // SAFETY: the slice has as many vectors.
                *largest = unsafe { simd.max(*largest, simd.load(x.as_ptr().add(v * S::LANES))) };
            }
        }
        for (v, largest) in largest.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { simd.store(y.as_mut_ptr().add(v * S::LANES), largest) };
        }
        first += VECTORS * S::LANES;
    }
    for y in y[first..].chunks_mut(S::LANES) {
        let mut largest = none;
        for pixel in pixels.clone() {
            let x = &pixel[first..][..y.len()];
            // SAFETY: as many values as the slices have are read.
            largest = unsafe { simd.max(largest, simd.load_lanes(x.as_ptr(), x.len())) };
        }
        // SAFETY: as many values as the slice has are written.
        unsafe { simd.store_lanes(y.as_mut_ptr(), largest, y.len()) };
        first += y.len();
    }
}

/// Whether a value takes the place of the largest before it: it is greater, or not a number where none was before.
#[inline(always)]
fn wins(x: f32, largest: f32) -> bool {
    (x > largest) | (x.is_nan() & !largest.is_nan())
}

/// Mean over all pixels of each channel of one image, `[pixels, pitch]`: of the first channels, if the pixels have more.
///
/// # Panics
/// If the lengths don't fit.
pub fn global_average(isa: Isa, pitch: usize, x: &[f32], y: &mut [f32]) {
    assert!(!y.is_empty() && y.len() <= pitch && x.len().is_multiple_of(pitch), "lengths");
    let pixels = x.len() / pitch;
    isa.plain(|| average(x.chunks_exact(pitch), pixels, pixels.max(1) as f64, y));
}

/// The sums of the first channels of so many pixels, divided. Many pixels in one go would lose what is added last.
#[inline(always)]
fn average<'a>(pixels: impl Iterator<Item = &'a [f32]> + Clone, count: usize, divisor: f64, y: &mut [f32]) {
    /// Pixels and channels that are summed in `f32`, before the sums of many pixels are added in `f64`.
    const PIXELS: usize = 64;
    const CHANNELS: usize = 64;
    if count <= PIXELS {
        y.fill(0.0);
        pixels.for_each(|pixel| y.iter_mut().zip(pixel).for_each(|(sum, &x)| *sum += x));
        let weight = (1.0 / divisor) as f32;
        return y.iter_mut().for_each(|sum| *sum *= weight);
    }
    for (first, means) in (0..).step_by(CHANNELS).zip(y.chunks_mut(CHANNELS)) {
        let mut total = [0.0f64; CHANNELS];
        let mut pixels = pixels.clone().peekable();
        while pixels.peek().is_some() {
            let mut sums = [0.0f32; CHANNELS];
            for pixel in pixels.by_ref().take(PIXELS) {
                sums.iter_mut().zip(&pixel[first..][..means.len()]).for_each(|(sum, &x)| *sum += x);
            }
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += f64::from(sum));
        }
        means.iter_mut().zip(total).for_each(|(mean, total)| *mean = (total / divisor) as f32);
    }
}

/// Largest value of each window; `argmax` becomes the input pixel it came from (the first of equals), padding never wins.
/// A NaN wins. A window that lies in the padding altogether gives −∞ and passes no gradient.
///
/// # Panics
/// If the geometry doesn't fit the image, that has no pixels, or the lengths don't fit.
pub fn max_pool_forward(isa: Isa, images: PooledImages<'_>, x: &[f32], y: &mut [f32], argmax: &mut [u32]) {
    let windows = images.windows();
    let (in_len, out_len) = images.check(&windows, x.len(), y.len());
    assert!(argmax.len() == y.len(), "argmax length");
    let images =
        x.par_chunks(in_len.max(1)).zip(y.par_chunks_mut(out_len.max(1))).zip(argmax.par_chunks_mut(out_len.max(1)));
    images.for_each(|((x, y), argmax)| isa.run(MaxPool { windows: &windows, x, y, argmax }));
}

/// [`max_pool_forward`] of one image.
struct MaxPool<'a> {
    windows: &'a Windows,
    x: &'a [f32],
    y: &'a mut [f32],
    argmax: &'a mut [u32],
}

impl Task for MaxPool<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Self { windows, x, y, argmax } = self;
        let channels = windows.channels;
        let outputs = y.chunks_exact_mut(channels).zip(argmax.chunks_exact_mut(channels));
        for ((y, argmax), window) in outputs.zip(windows.all()) {
            y.fill(f32::NEG_INFINITY);
            argmax.fill(u32::MAX);
            for (number, pixel) in window.pixels().enumerate() {
                let x = &x[pixel * channels..][..channels];
                if number == 0 {
                    y.copy_from_slice(x);
                    argmax.fill(pixel as u32);
                    continue;
                }
                for ((&x, y), argmax) in x.iter().zip(&mut *y).zip(&mut *argmax) {
                    let wins = wins(x, *y);
                    *y = if wins { x } else { *y };
                    *argmax = if wins { pixel as u32 } else { *argmax };
                }
            }
        }
    }
}

/// Gradient of [`max_pool_forward`]: each output's gradient goes to the pixel that won.
///
/// # Panics
/// If the geometry doesn't fit the image, that has no pixels, or the lengths don't fit.
pub fn max_pool_backward(isa: Isa, images: PooledImages<'_>, argmax: &[u32], grad_y: &[f32], grad_x: &mut [f32]) {
    let windows = images.windows();
    let (in_len, out_len) = images.check(&windows, grad_x.len(), grad_y.len());
    assert!(argmax.len() == grad_y.len(), "argmax length");
    let images = grad_x
        .par_chunks_mut(in_len.max(1))
        .zip(grad_y.par_chunks(out_len.max(1)))
        .zip(argmax.par_chunks(out_len.max(1)));
    images.for_each(|((grad_x, grad_y), argmax)| isa.run(MaxPoolBack { windows: &windows, argmax, grad_y, grad_x }));
}

/// [`max_pool_backward`] of one image.
struct MaxPoolBack<'a> {
    windows: &'a Windows,
    argmax: &'a [u32],
    grad_y: &'a [f32],
    grad_x: &'a mut [f32],
}

impl Task for MaxPoolBack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let Self { windows, argmax, grad_y, grad_x } = self;
        let channels = windows.channels;
        grad_x.fill(0.0);
        let outputs = grad_y.chunks_exact(channels).zip(argmax.chunks_exact(channels));
        for ((grad_y, argmax), window) in outputs.zip(windows.all()) {
            for pixel in window.pixels() {
                let grad_x = &mut grad_x[pixel * channels..][..channels];
                for ((dx, &dy), &winner) in grad_x.iter_mut().zip(grad_y).zip(argmax) {
                    *dx += if winner == pixel as u32 { dy } else { 0.0 };
                }
            }
        }
    }
}

/// Mean of each window; padded zeros count as pixels if `count_padding`.
///
/// # Panics
/// If the geometry doesn't fit the image, that has no pixels, or the lengths don't fit.
pub fn avg_pool_forward(isa: Isa, images: PooledImages<'_>, count_padding: bool, x: &[f32], y: &mut [f32]) {
    let pool = Pool::average(images.geometry, images.size, images.channels, count_padding);
    let (_, out_len) = images.check(&pool.windows, x.len(), y.len());
    let rows = pool.rows();
    y.par_chunks_mut(out_len.max(1)).enumerate().for_each(|(image, y)| pool.run_rows(isa, image * rows, x, y));
}

/// Gradient of [`avg_pool_forward`].
///
/// # Panics
/// If the geometry doesn't fit the image, that has no pixels, or the lengths don't fit.
pub fn avg_pool_backward(isa: Isa, images: PooledImages<'_>, count_padding: bool, grad_y: &[f32], grad_x: &mut [f32]) {
    let windows = images.windows();
    let (in_len, out_len) = images.check(&windows, grad_x.len(), grad_y.len());
    let PooledImages { geometry, channels, .. } = images;
    let divisor = Divisor::new(geometry, count_padding);
    grad_x.par_chunks_mut(in_len.max(1)).zip(grad_y.par_chunks(out_len.max(1))).for_each(|(grad_x, grad_y)| {
        isa.plain(|| {
            grad_x.fill(0.0);
            for (grad_y, window) in grad_y.chunks_exact(channels).zip(windows.all()) {
                let weight = (1.0 / divisor.of(window)) as f32;
                for pixel in window.pixels() {
                    let grad_x = &mut grad_x[pixel * channels..][..channels];
                    grad_x.iter_mut().zip(grad_y).for_each(|(dx, &dy)| *dx += dy * weight);
                }
            }
        })
    });
}

/// Mean over all pixels of each channel: `[batch, pixels, channels]` → `[batch, channels]`.
///
/// # Panics
/// If there are no pixels, or the lengths don't fit.
pub fn global_avg_forward(isa: Isa, batch: usize, pixels: usize, channels: usize, x: &[f32], y: &mut [f32]) {
    assert!(pixels > 0, "images have pixels");
    assert!(x.len() == product([batch, pixels, channels]) && y.len() == product([batch, channels]), "lengths");
    let images = x.par_chunks((pixels * channels).max(1)).zip(y.par_chunks_mut(channels.max(1)));
    images.for_each(|(x, y)| global_average(isa, channels, x, y));
}

/// Gradient of [`global_avg_forward`].
///
/// # Panics
/// If the lengths don't fit.
pub fn global_avg_backward(isa: Isa, batch: usize, pixels: usize, channels: usize, grad_y: &[f32], grad_x: &mut [f32]) {
    let lengths = [product([batch, pixels, channels]), product([batch, channels])];
    assert!([grad_x.len(), grad_y.len()] == lengths, "lengths");
    let scale = 1.0 / pixels.max(1) as f32;
    let images = grad_x.par_chunks_mut((pixels * channels).max(1)).zip(grad_y.par_chunks(channels.max(1)));
    images.for_each(|(grad_x, grad_y)| {
        isa.plain(|| {
            for row in grad_x.chunks_exact_mut(channels) {
                for (dx, &dy) in row.iter_mut().zip(grad_y) {
                    *dx = dy * scale;
                }
            }
        })
    });
}
