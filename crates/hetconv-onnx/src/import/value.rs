//! What the names of an ONNX graph stand for while it is read.

use std::fmt;
use std::rc::Rc;

use hetconv_graph::ValueId;

use crate::tensor::MOST_AXES;

/// Why a node cannot be read.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The reason, to be reported.
    Because(String),
    /// It reads the result of a node that could not be read; that one is reported.
    Downstream,
}

impl Refusal {
    /// Longer reasons, such as one that quotes a constant, are cut.
    const MOST: usize = 500;

    pub fn because(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        if reason.len() <= Self::MOST {
            return Self::Because(reason);
        }
        let end = (0..=Self::MOST).rev().find(|&end| reason.is_char_boundary(end)).unwrap_or(0);
        Self::Because(format!("{} …", &reason[..end]))
    }
}

pub(crate) type Read<T> = Result<T, Refusal>;

/// What a value of the ONNX graph is.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Numbers known now: weights, and the arithmetic on shapes.
    Constant(Rc<Constant>),
    /// A value of the network.
    Network(ValueId),
    /// An elementwise function of a network value that is not finished yet.
    Ramp(Rc<Ramp>),
    /// An image with pixels added around it, or cut off where negative.
    Padded(Padded),
    /// An image whose channel axis is seen as several.
    Channels(Rc<Channels>),
    /// The result of a node that could not be read.
    Unknown,
}

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constant {
    pub dims: Vec<usize>,
    pub data: Data,
}

/// Its elements, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    Float(Vec<f32>),
    Int(Vec<Int>),
}

/// An integer, or the batch size, which is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Int {
    Known(i64),
    Batch,
}

impl fmt::Display for Int {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(value) => value.fmt(f),
            Self::Batch => f.write_str("N"),
        }
    }
}

impl Constant {
    pub fn ints(data: Vec<Int>) -> Self {
        Self { dims: vec![data.len()], data: Data::Int(data) }
    }

    pub fn len(&self) -> usize {
        match &self.data {
            Data::Float(data) => data.len(),
            Data::Int(data) => data.len(),
        }
    }

    /// Its floats.
    pub fn floats(&self) -> Read<&[f32]> {
        match &self.data {
            Data::Float(data) => Ok(data),
            Data::Int(_) => Err(Refusal::because("needs floats where it has integers")),
        }
    }

    /// Its integers.
    fn integers(&self) -> Read<&[Int]> {
        match &self.data {
            Data::Int(data) => Ok(data),
            Data::Float(_) => Err(Refusal::because("needs integers where it has floats")),
        }
    }

    /// Its integers, one or a few for each axis of a value: no more than make sense.
    pub fn list(&self) -> Read<&[Int]> {
        match self.integers()? {
            data if data.len() <= 2 * MOST_AXES => Ok(data),
            data => Err(Refusal::because(format!("has a list of {} numbers for the axes of a value", data.len()))),
        }
    }

    /// As [`Constant::list`], all of them known.
    pub fn known_list(&self) -> Read<Vec<i64>> {
        self.list()?.iter().map(known).collect()
    }

    /// Its integers, all of them known; as many as there are, which is the caller's to pay for.
    pub fn known(&self) -> Read<Vec<i64>> {
        self.integers()?.iter().map(known).collect()
    }

    /// The one number it holds, if it is one.
    pub fn scalar(&self) -> Option<f64> {
        match &self.data {
            Data::Float(data) => data.first().filter(|_| data.len() == 1).map(|&x| x.into()),
            Data::Int(data) => match data[..] {
                [Int::Known(value)] => Some(value as f64),
                _ => None,
            },
        }
    }
}

fn known(int: &Int) -> Read<i64> {
    match int {
        Int::Known(value) => Ok(*value),
        Int::Batch => Err(Refusal::because("depends on the batch size")),
    }
}

/// `c · clip(a·x + b, low, high) + d` of a network value x.
#[derive(Clone, Debug)]
pub(crate) struct Ramp {
    /// The node it came from, after which what it becomes is named.
    pub name: String,
    pub of: ValueId,
    pub a: f64,
    pub b: f64,
    pub low: f64,
    pub high: f64,
    pub c: f64,
    pub d: f64,
}

impl Ramp {
    /// x itself.
    pub fn identity(name: &str, of: ValueId) -> Self {
        let (low, high) = (f64::NEG_INFINITY, f64::INFINITY);
        Self { name: name.to_owned(), of, a: 1.0, b: 0.0, low, high, c: 1.0, d: 0.0 }
    }

    pub fn is_clipped(&self) -> bool {
        self.low > f64::NEG_INFINITY || self.high < f64::INFINITY
    }

    /// `scale · self + shift`.
    pub fn then_affine(mut self, name: &str, scale: f64, shift: f64) -> Self {
        name.clone_into(&mut self.name);
        if self.is_clipped() {
            (self.c, self.d) = (self.c * scale, self.d * scale + shift);
        } else {
            (self.a, self.b) = (self.a * scale, self.b * scale + shift);
        }
        self
    }

    /// k, if this is k · hard-sigmoid(x).
    pub fn hard_sigmoid_factor(&self) -> Option<f64> {
        let k = self.c * self.high + self.d;
        let near = |x: f64, y: f64| (x - y).abs() <= 1e-5 * k.abs();
        let fits = near(self.c * self.low + self.d, 0.0)
            && near(self.c * self.a, k / 6.0)
            && near(self.c * self.b + self.d, k / 2.0);
        (k.is_finite() && k > 0.0 && fits).then_some(k)
    }
}

/// An image with pixels added at the top, left, bottom and right, or cut off where negative.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Padded {
    pub of: ValueId,
    pub pads: [i64; 4],
    /// What is added.
    pub fill: f32,
}

/// An image whose channel axis is seen as `dims`; element i of it is the image's channel `channels[i]`.
#[derive(Clone, Debug)]
pub(crate) struct Channels {
    pub of: ValueId,
    pub dims: Vec<usize>,
    pub channels: Vec<u32>,
}
