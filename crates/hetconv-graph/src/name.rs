//! The paper's names for networks: `ARCH[_pP|_pc|_gwcG_pwc|_dwc_pwc][_se]`, with `_pruned` behind them once filters were
//! removed.

use std::fmt;
use std::str::FromStr;

use crate::{Substitution, zoo};

/// A network's name, taken apart.
///
/// ```
/// use hetconv_graph::{ModelName, Substitution};
/// let name: ModelName = "vgg16-cifar_p4_se".parse()?;
/// assert_eq!(name.architecture, "vgg16-cifar");
/// assert_eq!(name.substitution, Substitution::Het { parts: 4 });
/// assert!(name.se);
/// assert_eq!(name.to_string(), "vgg16-cifar_p4_se");
/// # Ok::<(), hetconv_graph::NameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelName {
    /// One of [`zoo::architectures`].
    pub architecture: String,
    /// What takes the place of its standard convolutions.
    pub substitution: Substitution,
    /// Whether it has squeeze-and-excitation.
    pub se: bool,
    /// Whether filters were removed from it (see [`crate::prune()`]). Which ones, a name does not say: such a network
    /// exists in files alone.
    pub pruned: bool,
}

/// The end of a pruned network's name.
const PRUNED: &str = "_pruned";

/// The name of a network that filters were removed from.
///
/// ```
/// assert_eq!(hetconv_graph::pruned_name("resnet20"), "resnet20_pruned");
/// assert_eq!(hetconv_graph::pruned_name("resnet20_pruned"), "resnet20_pruned");
/// ```
pub fn pruned_name(name: &str) -> String {
    if name.ends_with(PRUNED) { name.to_owned() } else { format!("{name}{PRUNED}") }
}

/// A name that means no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// No such architecture or variant.
    #[error("unknown network `{name}`{} Names are ARCH[_pP|_pc|_gwcG_pwc|_dwc_pwc][_se]", did_you_mean(suggestion))]
    Unknown {
        /// The name.
        name: String,
        /// The known name nearest to it, if one is like it.
        suggestion: Option<String>,
    },
    /// No such variant.
    #[error("unknown variant `{name}`{} Variants are standard, pP, pc, gwcG_pwc and dwc_pwc", did_you_mean(suggestion))]
    UnknownVariant {
        /// The variant.
        name: String,
        /// The usual variant nearest to it, if one is like it.
        suggestion: Option<String>,
    },
    /// P = 0 or G = 0.
    #[error("`{name}` asks for 0 parts or groups; at least 1 is needed")]
    Zero {
        /// The name.
        name: String,
    },
}

impl ModelName {
    /// The number of classes that its architecture usually has, as [`zoo::Architecture::classes`].
    pub fn usual_classes(&self) -> usize {
        zoo::architecture(&self.architecture).map_or(10, |known| known.classes)
    }

    /// The same architecture, with or without squeeze-and-excitation as here, with another substitution and all filters.
    #[must_use]
    pub fn with_substitution(&self, substitution: Substitution) -> Self {
        Self { substitution, pruned: false, ..self.clone() }
    }
}

impl fmt::Display for Substitution {
    /// The part of a name that stands for it: `p4`, `pc`, `gwc4_pwc`, `dwc_pwc` or `standard`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Substitution::Standard => write!(f, "standard"),
            Substitution::Het { parts } => write!(f, "p{parts}"),
            Substitution::PointwiseChannel => write!(f, "pc"),
            Substitution::GroupPointwise { groups } => write!(f, "gwc{groups}_pwc"),
            Substitution::DepthwisePointwise => write!(f, "dwc_pwc"),
        }
    }
}

impl FromStr for Substitution {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let unknown = || NameError::UnknownVariant {
            name: text.to_owned(),
            suggestion: nearest(text, zoo::VARIANTS.map(|v| if v.is_empty() { "standard" } else { v }))
                .map(str::to_owned),
        };
        let number = |digits: &str| {
            // One spelling per number: no sign, no leading zero.
            let number: usize = digits.parse().map_err(|_| unknown())?;
            if number.to_string() != digits {
                return Err(unknown());
            }
            if number == 0 { Err(NameError::Zero { name: text.to_owned() }) } else { Ok(number) }
        };
        match text {
            "standard" => Ok(Substitution::Standard),
            "pc" => Ok(Substitution::PointwiseChannel),
            "dwc_pwc" => Ok(Substitution::DepthwisePointwise),
            _ => {
                if let Some(groups) = text.strip_prefix("gwc").and_then(|rest| rest.strip_suffix("_pwc")) {
                    Ok(Substitution::GroupPointwise { groups: number(groups)? })
                } else if let Some(parts) = text.strip_prefix('p') {
                    Ok(Substitution::Het { parts: number(parts)? })
                } else {
                    Err(unknown())
                }
            }
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.architecture)?;
        if self.substitution != Substitution::Standard {
            write!(f, "_{}", self.substitution)?;
        }
        let ends = [(self.se, "_se"), (self.pruned, PRUNED)];
        ends.iter().filter(|(is_so, _)| *is_so).try_for_each(|(_, end)| f.write_str(end))
    }
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let unknown = || {
            let known = zoo::known_names();
            let suggestion = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
            NameError::Unknown { name: name.to_owned(), suggestion }
        };
        let (stem, pruned) = strip(name, PRUNED);
        let (stem, se) = strip(stem, "_se");
        let (architecture, variant) = stem.split_once('_').map_or((stem, None), |(a, v)| (a, Some(v)));
        if zoo::architecture(architecture).is_none() {
            return Err(unknown());
        }
        let substitution = match variant {
            None => Substitution::Standard,
            Some("standard") => return Err(unknown()),
            Some(variant) => variant.parse().map_err(|error| match error {
                NameError::Zero { .. } => NameError::Zero { name: name.to_owned() },
                NameError::Unknown { .. } | NameError::UnknownVariant { .. } => unknown(),
            })?,
        };
        Ok(Self { architecture: architecture.to_owned(), substitution, se, pruned })
    }
}

/// A name without its end, and whether it had it.
fn strip<'a>(name: &'a str, end: &str) -> (&'a str, bool) {
    name.strip_suffix(end).map_or((name, false), |stem| (stem, true))
}

/// The end of a sentence that names what is unknown.
fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or(".".to_owned(), |suggestion| format!("; did you mean `{suggestion}`?"))
}

/// The candidate most like what somebody wrote, to suggest it; nothing if none is like it.
///
/// ```
/// use hetconv_graph::nearest;
/// assert_eq!(nearest("resnet2O", ["vgg16", "resnet20"]), Some("resnet20"));
/// assert_eq!(nearest("inception", ["vgg16", "resnet20"]), None);
/// ```
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Below that two names have some letters in common, as any two have.
    const LIKE: f64 = 0.8;
    // Jaro and Winkler's similarity values a common beginning, which in names of networks is the architecture.
    let unlike = |candidate: &str| 1.0 - strsim::jaro_winkler(text, candidate);
    let nearest = candidates.into_iter().min_by(|a, b| unlike(a).total_cmp(&unlike(b)));
    nearest.filter(|candidate| unlike(candidate) <= 1.0 - LIKE)
}
