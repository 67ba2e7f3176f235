//! Which windows of which images are looked at.

use crate::Layer;

/// Output pixels of a layer, the same number in every image, spread evenly and differently in each.
pub(crate) struct Sampling {
    size: [usize; 2],
    of_image: usize,
}

impl Sampling {
    /// About so many pixels of an output of this size, from so many images.
    pub fn new(size: [usize; 2], images: usize, wanted: usize) -> Self {
        Self { size, of_image: wanted.div_ceil(images.max(1)).min(size[0] * size[1]) }
    }

    /// The pixels of an image, by their place in it.
    fn places(&self, image: usize) -> impl Iterator<Item = usize> + '_ {
        let pixels = self.size[0] * self.size[1];
        // The fractional parts of the golden ratio's multiples, here times 2³², are spread evenly.
        let turn = (image as u32).wrapping_mul(0x9e37_79b9);
        let start = ((u64::from(turn) * pixels as u64) >> 32) as usize;
        (0..self.of_image).map(move |index| (start + index * pixels / self.of_image) % pixels)
    }

    /// Of `count` images from the `first` on, `[windows, channels]` of a value `[images, channels, pixels]`.
    pub fn pixels(&self, channels: usize, first: usize, count: usize, value: &[f32]) -> Vec<f32> {
        let pixels = self.size[0] * self.size[1];
        let mut sampled = Vec::with_capacity(count * self.of_image * channels);
        for (image, value) in value.chunks_exact(channels * pixels).enumerate() {
            for place in self.places(first + image) {
                sampled.extend(value.iter().skip(place).step_by(pixels));
            }
        }
        sampled
    }

    /// What a layer reads at these pixels, `[windows, M, taps]`, of `value` `[images, M, height, width]`.
    pub fn windows(&self, layer: &Layer, first: usize, count: usize, value: &[f32]) -> Vec<f32> {
        let (geometry, channels, [height, width]) = (&layer.geometry, layer.pattern.in_channels(), layer.in_size);
        let mut windows = Vec::with_capacity(count * self.of_image * channels * geometry.taps());
        for (image, value) in value.chunks_exact(channels * height * width).enumerate() {
            for place in self.places(first + image) {
                let pixel = [place / self.size[1], place % self.size[1]];
                // Wraps to a huge number above and left of the image.
                let source = |axis: usize, tap: usize| {
                    (pixel[axis] * geometry.stride[axis] + tap * geometry.dilation[axis])
                        .wrapping_sub(geometry.padding[axis])
                };
                for plane in value.chunks_exact(height * width) {
                    for y in (0..geometry.kernel[0]).map(|tap| source(0, tap)) {
                        for x in (0..geometry.kernel[1]).map(|tap| source(1, tap)) {
                            windows.push(if y < height && x < width { plane[y * width + x] } else { 0.0 });
                        }
                    }
                }
            }
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_begin_at_places_that_are_spread_evenly() {
        for side in [1, 3, 6, 7, 14, 28, 32] {
            let (pixels, sampling) = (side * side, Sampling::new([side; 2], 100, 1));
            for images in 1..=40 {
                let mut starts: Vec<usize> = (0..images).flat_map(|image| sampling.places(image)).collect();
                starts.sort_unstable();
                starts.push(starts[0] + pixels);
                // Twice the mean distance, and a pixel for rounding.
                let widest = starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
                assert!(widest <= 2 * pixels / images + 1, "{side}×{side}: {images} images begin at {starts:?}");
            }
        }
    }
}
