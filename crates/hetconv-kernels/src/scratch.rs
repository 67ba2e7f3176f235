//! Memory that passes leave to the next ones.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Memory that goes from one pass to the next, so that it need not be cleared or faulted in; it holds any values.
#[derive(Debug)]
pub(crate) struct Scratch {
    values: Vec<f32>,
    len: usize,
}

static IDLE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Values that are kept at most: 256 MiB.
const KEPT: usize = 64 << 20;

impl Scratch {
    pub fn new(len: usize) -> Self {
        let values = if len == 0 { Some(Vec::new()) } else { Self::idle(len) };
        Self { values: values.unwrap_or_else(|| vec![0.0; len]), len }
    }

    /// The smallest block that is large enough, and not much larger.
    fn idle(len: usize) -> Option<Vec<f32>> {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = idle.iter().enumerate().filter(|(_, values)| (len..4 * len).contains(&values.len()));
        let smallest = fits.min_by_key(|(_, values)| values.len()).map(|(index, _)| index);
        smallest.map(|index| idle.swap_remove(index))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.values.is_empty() {
            return;
        }
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(std::mem::take(&mut self.values));
        let mut kept: usize = idle.iter().map(Vec::len).sum();
        // Those that nobody wanted for longest go.
        while kept > KEPT {
            kept -= idle.remove(0).len();
        }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}
