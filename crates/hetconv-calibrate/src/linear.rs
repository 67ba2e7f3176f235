//! Symmetric matrices in float64.

/// A symmetric matrix, all of it, row by row.
pub(crate) struct Symmetric(pub Vec<f64>);

impl Symmetric {
    fn size(&self) -> usize {
        self.0.len().isqrt()
    }

    /// vᵀ A v
    pub fn form(&self, v: &[f32]) -> f64 {
        let row = |row: &[f64]| -> f64 { row.iter().zip(v).map(|(a, &x)| a * f64::from(x)).sum() };
        self.0.chunks_exact(v.len()).zip(v).map(|(a, &x)| f64::from(x) * row(a)).sum()
    }

    /// A v
    pub fn times(&self, v: &[f64]) -> Vec<f64> {
        self.0.chunks_exact(v.len()).map(|row| dot(row, v)).collect()
    }

    /// Adds a number to the diagonal, but for its last entry, which is the bias's: that grows by a share of its own, since it
    /// counts windows whatever the inputs' size.
    pub fn hold_down(&mut self, share: f64, by: f64) {
        let size = self.size();
        let mut diagonal: Vec<&mut f64> = self.0.iter_mut().step_by(size + 1).collect();
        if let Some(bias) = diagonal.pop() {
            *bias += (share * *bias).max(f64::MIN_POSITIVE.sqrt());
        }
        diagonal.into_iter().for_each(|x| *x += by);
    }

    /// The mean of the diagonal, without its last entry.
    pub fn mean_of_inputs(&self) -> f64 {
        let size = self.size();
        self.0.iter().step_by(size + 1).take(size - 1).sum::<f64>() / (size - 1).max(1) as f64
    }

    /// The lower factor L of A = L Lᵀ; `None` if A is not positive definite.
    pub fn factor(mut self) -> Option<Factor> {
        let size = self.size();
        for i in 0..size {
            let (before, rest) = self.0.split_at_mut(i * size);
            let row = &mut rest[..size];
            for j in 0..i {
                let other = &before[j * size..][..size];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let squared = row[i] - dot(&row[..i], &row[..i]);
            // Not a number counts as well.
            if squared.is_nan() || squared <= 0.0 {
                return None;
            }
            row[i] = squared.sqrt();
        }
        Some(Factor(self.0))
    }
}

/// The lower factor of a symmetric matrix; what is above its diagonal means nothing.
pub(crate) struct Factor(Vec<f64>);

impl Factor {
    /// Solves A x = b in place.
    pub fn solve(&self, b: &mut [f64]) {
        let size = b.len();
        for i in 0..size {
            let row = &self.0[i * size..][..size];
            b[i] = (b[i] - dot(&row[..i], &b[..i])) / row[i];
        }
        for i in (0..size).rev() {
            let row = &self.0[i * size..][..size];
            b[i] /= row[i];
            let x = b[i];
            b[..i].iter_mut().zip(row).for_each(|(b, l)| *b -= l * x);
        }
    }
}

/// Sums of eight apart, so that they are computed side by side.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_solved_fits() {
        let size = 21;
        let tall: Vec<f64> = (0..40 * size).map(|i| ((i * i) as f64 * 0.7).sin()).collect();
        let entry =
            |at: usize| -> f64 { (0..40).map(|k| tall[k * size + at / size] * tall[k * size + at % size]).sum() };
        let matrix: Vec<f64> = (0..size * size).map(entry).collect();
        let x: Vec<f64> = (0..size).map(|i| i as f64 - 7.5).collect();
        let mut solved = Symmetric(matrix.clone()).times(&x);
        Symmetric(matrix).factor().unwrap().solve(&mut solved);
        solved.iter().zip(&x).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-9));
    }

    #[test]
    fn a_form_is_a_sum_of_products() {
        assert_eq!(Symmetric(vec![2.0, 1.0, 1.0, 5.0]).form(&[1.0, -2.0]), 2.0 - 4.0 + 20.0);
        assert!(Symmetric(vec![1.0, 2.0, 2.0, 1.0]).factor().is_none());
    }
}
