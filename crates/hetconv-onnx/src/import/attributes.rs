//! The attributes of a node.

use super::value::{Read, Refusal};
use crate::proto::{AttributeProto, NodeProto, TensorProto};

/// Attributes by name; one that is not there has its default.
pub(crate) struct Attributes<'a>(pub &'a NodeProto);

impl<'a> Attributes<'a> {
    pub fn get(&self, name: &str) -> Option<&'a AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name() == name)
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.get(name).map_or(default, |attribute| attribute.i())
    }

    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.get(name).map_or(default, |attribute| attribute.f())
    }

    pub fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.get(name).map(|attribute| attribute.ints.as_slice())
    }

    pub fn string(&self, name: &str) -> &'a str {
        self.get(name).and_then(|attribute| std::str::from_utf8(attribute.s()).ok()).unwrap_or_default()
    }

    pub fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.get(name).and_then(|attribute| attribute.t.as_ref())
    }

    /// A list of so many sizes, each with a default.
    pub fn sizes<const LENGTH: usize>(&self, name: &str, default: usize) -> Read<[usize; LENGTH]> {
        let Some(ints) = self.ints(name) else { return Ok([default; LENGTH]) };
        let refused = || Refusal::because(format!("its {name} {ints:?} are not {LENGTH} sizes"));
        let sizes =
            ints.iter().map(|&int| usize::try_from(int).map_err(|_| refused())).collect::<Read<Vec<usize>>>()?;
        sizes.try_into().map_err(|_| refused())
    }
}
