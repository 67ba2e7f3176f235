use serde::{Deserialize, Serialize};

/// Kernel size, stride, padding and dilation of a 2-D convolution or pooling window.
///
/// Every pair is `[vertical, horizontal]`; `padding` is `[top, left, bottom, right]`, in input pixels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv2dGeometry {
    /// Window height and width, in taps.
    pub kernel: [usize; 2],
    /// Distance between neighbouring windows, in input pixels.
    pub stride: [usize; 2],
    /// Zero pixels added at the top, left, bottom and right.
    pub padding: [usize; 4],
    /// Distance between neighbouring taps, in input pixels.
    pub dilation: [usize; 2],
}

/// Why a window does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// A kernel, stride or dilation of zero.
    #[error("{what} is {value:?}, but every {what} must be at least 1")]
    Zero {
        /// Which of the three.
        what: &'static str,
        /// The offending pair.
        value: [usize; 2],
    },
    /// A number so large that sizes cannot be computed.
    #[error("{what} is {value}, more than the supported {limit}")]
    TooLarge {
        /// The field.
        what: &'static str,
        /// Its value.
        value: usize,
        /// The largest value accepted.
        limit: usize,
    },
    /// The window is larger than the padded input.
    #[error("a window of {window} pixels does not fit an input of {input} pixels with {padding} pixels of padding")]
    DoesNotFit {
        /// Extent of the dilated window.
        window: usize,
        /// Input extent.
        input: usize,
        /// Padding on both sides together.
        padding: usize,
    },
}

impl Conv2dGeometry {
    /// The largest kernel, stride, padding or dilation accepted.
    pub const LIMIT: usize = 1 << 16;

    /// A square window with the same stride, padding and dilation on every side.
    pub fn square(kernel: usize, stride: usize, padding: usize, dilation: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 4], dilation: [dilation; 2] }
    }

    /// A square window of odd size that keeps the image size at stride 1 (`padding = kernel / 2`).
    pub fn same(kernel: usize, stride: usize) -> Self {
        Self::square(kernel, stride, kernel / 2, 1)
    }

    /// Number of taps of the window, kh·kw.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Index of the centre tap in row-major order, if both kernel sides are odd.
    pub fn center_tap(&self) -> Option<usize> {
        let [h, w] = self.kernel;
        (h % 2 == 1 && w % 2 == 1).then_some((h / 2) * w + w / 2)
    }

    /// Checks that the numbers are usable at all.
    ///
    /// # Errors
    /// [`GeometryError::Zero`] or [`GeometryError::TooLarge`].
    pub fn validate(&self) -> Result<(), GeometryError> {
        for (what, value) in [("kernel", self.kernel), ("stride", self.stride), ("dilation", self.dilation)] {
            if value.contains(&0) {
                return Err(GeometryError::Zero { what, value });
            }
            if let Some(&value) = value.iter().find(|&&v| v > Self::LIMIT) {
                return Err(GeometryError::TooLarge { what, value, limit: Self::LIMIT });
            }
        }
        match self.padding.iter().find(|&&v| v > Self::LIMIT) {
            Some(&value) => Err(GeometryError::TooLarge { what: "padding", value, limit: Self::LIMIT }),
            None => Ok(()),
        }
    }

    /// Output height and width, in pixels, for an input of `[height, width]` pixels.
    ///
    /// # Errors
    /// [`GeometryError`] if the geometry is unusable or the window does not fit the padded input.
    pub fn output_size(&self, input: [usize; 2]) -> Result<[usize; 2], GeometryError> {
        self.validate()?;
        let mut output = [0; 2];
        for axis in 0..2 {
            let padding = self.padding[axis] + self.padding[axis + 2];
            let window = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            let room = input[axis].saturating_add(padding).checked_sub(window);
            let room = room.ok_or(GeometryError::DoesNotFit { window, input: input[axis], padding })?;
            output[axis] = room / self.stride[axis] + 1;
        }
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_sizes() {
        assert_eq!(Conv2dGeometry::same(3, 1).output_size([5, 7]), Ok([5, 7]));
        assert_eq!(Conv2dGeometry::same(3, 2).output_size([5, 8]), Ok([3, 4]));
        assert_eq!(Conv2dGeometry::square(7, 2, 3, 1).output_size([224, 224]), Ok([112, 112]));
        assert_eq!(Conv2dGeometry::square(3, 1, 2, 2).output_size([9, 9]), Ok([9, 9]));
        assert_eq!(Conv2dGeometry::square(2, 2, 0, 1).output_size([5, 4]), Ok([2, 2]));
    }

    #[test]
    fn unusable_geometry_is_an_error() {
        assert!(matches!(
            Conv2dGeometry::square(3, 1, 0, 1).output_size([2, 9]),
            Err(GeometryError::DoesNotFit { window: 3, input: 2, padding: 0 })
        ));
        assert!(matches!(
            Conv2dGeometry::square(3, 0, 1, 1).validate(),
            Err(GeometryError::Zero { what: "stride", .. })
        ));
        assert!(matches!(
            Conv2dGeometry::square(usize::MAX, 1, 1, 1).validate(),
            Err(GeometryError::TooLarge { what: "kernel", .. })
        ));
    }
}
