//! Sums over the pixels of each channel, gathered where the values are made.

/// The sum and the sum of squares of each channel over all pixels of a batch, in stored order.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnSums {
    /// Σx.
    pub sums: Vec<f64>,
    /// Σx².
    pub squares: Vec<f64>,
}

impl ColumnSums {
    /// The sums of no pixel at all.
    pub fn zero(channels: usize) -> Self {
        Self { sums: vec![0.0; channels], squares: vec![0.0; channels] }
    }
}

/// The sums of each of several parts, `[parts, 2, channels]`: parts are worked on in any order and added in theirs.
pub(crate) struct SumsOfParts {
    values: Vec<f64>,
    channels: usize,
}

impl SumsOfParts {
    pub fn new(parts: usize, channels: usize) -> Self {
        Self { values: vec![0.0; parts * 2 * channels], channels }
    }

    /// Each part's `[2, channels]`.
    pub fn parts(&mut self) -> std::slice::ChunksExactMut<'_, f64> {
        self.values.chunks_exact_mut(2 * self.channels)
    }

    pub fn total(self) -> ColumnSums {
        let mut total = ColumnSums::zero(self.channels);
        for part in self.values.chunks_exact(2 * self.channels) {
            let (sums, squares) = part.split_at(self.channels);
            total.sums.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
            total.squares.iter_mut().zip(squares).for_each(|(total, square)| *total += square);
        }
        total
    }
}
