//! Which convolutions become others, and with which P.

use std::fmt;
use std::sync::Arc;

/// Says whether a node, by its name, is meant.
pub type NameFilter = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Which convolutions are changed, and which P of their own some of them get. By default all but the network's first: the
/// paper's rule.
#[derive(Clone)]
pub struct Selection {
    /// Convolutions that stay as they are.
    pub exclude: Option<NameFilter>,
    /// Layers with a P of their own; the first filter that matches counts.
    pub parts_by_name: Vec<(NameFilter, usize)>,
    /// Whether the network's first convolution stays as it is.
    pub keep_first: bool,
}

impl Default for Selection {
    fn default() -> Self {
        Self { exclude: None, parts_by_name: Vec::new(), keep_first: true }
    }
}

impl Selection {
    /// All, the first convolution as well.
    pub fn all() -> Self {
        Self { keep_first: false, ..Self::default() }
    }

    /// Leaves out the convolutions whose name the filter accepts.
    #[must_use]
    pub fn excluding(self, filter: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self { exclude: Some(Arc::new(filter)), ..self }
    }

    /// Gives the layers whose name the filter accepts a P of their own.
    #[must_use]
    pub fn with_parts(mut self, filter: impl Fn(&str) -> bool + Send + Sync + 'static, parts: usize) -> Self {
        self.parts_by_name.push((Arc::new(filter), parts));
        self
    }

    /// Whether a convolution of this name is left out.
    pub fn excludes(&self, name: &str) -> bool {
        self.exclude.as_ref().is_some_and(|filter| filter(name))
    }

    /// The P of its own of a layer of this name, if it has one.
    pub fn parts(&self, name: &str) -> Option<usize> {
        self.parts_by_name.iter().find(|(filter, _)| filter(name)).map(|(_, parts)| *parts)
    }
}

impl fmt::Debug for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<usize> = self.parts_by_name.iter().map(|(_, parts)| *parts).collect();
        f.debug_struct("Selection")
            .field("exclude", &self.exclude.is_some())
            .field("parts_by_name", &parts)
            .field("keep_first", &self.keep_first)
            .finish()
    }
}
