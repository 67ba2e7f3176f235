//! Memory that passes leave to the next ones.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use crate::aligned::Aligned;

/// Memory that goes from one pass to the next, so that it need not be cleared or faulted in; it holds any values.
#[derive(Debug)]
pub(crate) struct Scratch {
    values: Aligned,
    len: usize,
}

static IDLE: Mutex<Vec<Aligned>> = Mutex::new(Vec::new());

/// Values that are kept at most: 256 MiB.
const KEPT: usize = 64 << 20;

impl Scratch {
    pub fn new(len: usize) -> Self {
        let idle = if len == 0 { None } else { Self::idle(len) };
        Self { values: idle.unwrap_or_else(|| Aligned::zeroed(len)), len }
    }

    /// The smallest block that is large enough, and not much larger.
    fn idle(len: usize) -> Option<Aligned> {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = idle.iter().enumerate().filter(|(_, values)| (len..4 * len).contains(&values.len()));
        let smallest = fits.min_by_key(|(_, values)| values.len()).map(|(index, _)| index);
        smallest.map(|index| idle.remove(index))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.values.is_empty() {
            return;
        }
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(std::mem::replace(&mut self.values, Aligned::zeroed(0)));
        let mut kept: usize = idle.iter().map(|values| values.len()).sum();
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
