//! The attributes of a node.

use hetconv_core::Conv2dGeometry;

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

    /// A word. What is no text is none that anybody knows.
    pub fn string(&self, name: &str) -> &'a str {
        self.get(name).map_or("", |attribute| std::str::from_utf8(attribute.s()).unwrap_or("\u{fffd}"))
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

    /// The number of groups of a convolution; 0 if it is none.
    pub fn groups(&self) -> usize {
        usize::try_from(self.int("group", 1)).unwrap_or(0)
    }

    /// The window of a convolution or pooling node on an image of this size. The kernel is that of the weight, if there
    /// is one; a `kernel_shape` must say the same.
    pub fn geometry(&self, kernel: [usize; 2], size: [usize; 2]) -> Read<Conv2dGeometry> {
        if self.get("kernel_shape").is_some() && self.sizes("kernel_shape", 0)? != kernel {
            return Err(Refusal::because(format!("its weight has {kernel:?} taps, its kernel_shape says otherwise")));
        }
        let (stride, dilation) = (self.sizes("strides", 1)?, self.sizes("dilations", 1)?);
        let mut padding = [0; 4];
        match self.string("auto_pad") {
            "" | "NOTSET" => padding = self.sizes("pads", 0)?,
            "VALID" => {}
            same @ ("SAME_UPPER" | "SAME_LOWER") => {
                for axis in 0..2 {
                    let refused = || Refusal::because("its window is 0 or cannot be counted");
                    let window = kernel[axis].checked_sub(1).and_then(|k| k.checked_mul(dilation[axis]));
                    if stride[axis] == 0 || size[axis] == 0 {
                        return Err(refused());
                    }
                    let reach = (size[axis].div_ceil(stride[axis]) - 1) * stride[axis];
                    let needed = reach.checked_add(window.ok_or_else(refused)?).and_then(|end| end.checked_add(1));
                    let total = needed.ok_or_else(refused)?.saturating_sub(size[axis]);
                    let before = if same == "SAME_UPPER" { total / 2 } else { total.div_ceil(2) };
                    (padding[axis], padding[axis + 2]) = (before, total - before);
                }
            }
            other => return Err(Refusal::because(format!("its auto_pad `{other}` is not known"))),
        }
        let geometry = Conv2dGeometry { kernel, stride, padding, dilation };
        geometry.validate().map_err(|error| Refusal::because(error.to_string()))?;
        Ok(geometry)
    }
}
