//! Which instruction sets there are, and which one this process uses.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Portable, Simd, Task};

/// An instruction set that this CPU has: it can only be made by a check.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// Why an instruction set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IsaError {
    /// A name that is none of the three.
    #[error("HETCONV_ISA is {0:?}; accepted are portable, avx2 and avx512")]
    Unknown(String),
    /// An instruction set that this CPU does not have.
    #[error("instruction set {name} was asked for, but this CPU has only {available}")]
    Unavailable {
        /// What was asked for.
        name: &'static str,
        /// What there is.
        available: String,
    },
}

impl Isa {
    /// The instruction sets of this CPU, slowest first.
    pub fn available() -> Vec<Isa> {
        let mut found = vec![Isa(Kind::Portable(Portable))];
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(Avx2::detect().map(|token| Isa(Kind::Avx2(token))));
            found.extend(Avx512::detect().map(|token| Isa(Kind::Avx512(token))));
        }
        found
    }

    /// The fastest instruction set of this CPU, or the one that `HETCONV_ISA` names. Read once per process.
    ///
    /// # Errors
    /// `HETCONV_ISA` holds an unknown name, or one that this CPU does not have.
    pub fn selected() -> Result<Isa, IsaError> {
        static SELECTED: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
        SELECTED
            .get_or_init(|| match std::env::var_os("HETCONV_ISA") {
                None => Ok(Self::available()[Self::available().len() - 1]),
                Some(name) => name.to_string_lossy().parse(),
            })
            .clone()
    }

    /// `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
        }
    }

    /// Number of `f32` lanes of a vector.
    pub fn lanes(self) -> usize {
        match self.0 {
            Kind::Portable(_) => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => Avx512::LANES,
        }
    }

    /// Lanes of the shorter vectors.
    pub(crate) fn half_lanes(self) -> usize {
        match self.0 {
            Kind::Portable(_) => <Portable as Simd>::Half::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => <Avx2 as Simd>::Half::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => <Avx512 as Simd>::Half::LANES,
        }
    }

    /// What an instruction costs, relative to one with whole vectors.
    pub(crate) fn cost_of(self, half: bool) -> f64 {
        if !half {
            return 1.0;
        }
        match self.0 {
            Kind::Portable(_) => Portable::HALF_COST,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => Avx2::HALF_COST,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => Avx512::HALF_COST,
        }
    }

    /// Runs a task compiled for this instruction set.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            Kind::Portable(token) => task.run(token),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(token) => token.vectorize(task),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(token) => token.vectorize(task),
        }
    }
}

/// A closure whose plain loops the compiler turns into vectors.
struct Plain<F>(F);

impl<F: FnOnce()> Task for Plain<F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        (self.0)()
    }
}

impl Isa {
    /// Runs a closure compiled for this instruction set.
    #[inline]
    pub(crate) fn plain(self, loops: impl FnOnce()) {
        self.run(Plain(loops))
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        let known = ["portable", "avx2", "avx512"].into_iter().find(|&known| known == name);
        let name = known.ok_or_else(|| IsaError::Unknown(name.to_owned()))?;
        let available = Self::available();
        available.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| IsaError::Unavailable {
            name,
            available: available.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!("portable".parse::<Isa>().map(Isa::name), Ok("portable"));
        assert_eq!("sse9".parse::<Isa>(), Err(IsaError::Unknown("sse9".to_owned())));
        for name in ["avx2", "avx512"] {
            let here = Isa::available().iter().any(|isa| isa.name() == name);
            assert_eq!(name.parse::<Isa>().is_ok(), here);
        }
    }
}
