//! Elementwise nodes: activations in all their spellings, sums and products.

use std::rc::Rc;

use hetconv_graph::{Activation, Op, Shape, ValueId};

use super::attributes::Attributes;
use super::layers::broadcast_channels;
use super::value::{Constant, Data, Ramp, Read, Refusal, Value};
use super::{Importer, as_ramp};
use crate::prepare::node_name;
use crate::proto::NodeProto;

impl<'a> Importer<'a> {
    pub(super) fn activation(&mut self, node: &'a NodeProto, function: Activation) -> Read<Value> {
        self.unary(node, Op::Activation { function })
    }

    /// Relu, or Clip to any range.
    pub(super) fn clip(&mut self, node: &'a NodeProto) -> Read<Value> {
        let bound = |index: usize, default: f64| {
            let bound = self.optional_constant(node, index, "bound")?;
            let number = |bound: Rc<Constant>| bound.scalar().ok_or_else(|| Refusal::because("its bound is no number"));
            bound.map_or(Ok(default), number)
        };
        let [low, high] = match node.op_type() {
            "Relu" => [0.0, f64::INFINITY],
            _ => [bound(1, f64::NEG_INFINITY)?, bound(2, f64::INFINITY)?],
        };
        // The largest float means no bound.
        let low = if low <= f64::from(f32::MIN) { f64::NEG_INFINITY } else { low };
        let high = if high >= f64::from(f32::MAX) { f64::INFINITY } else { high };
        let name = node_name(node);
        let operand = self.operand(node, 0)?;
        if let Value::Ramp(pending) = &operand
            && !pending.is_clipped()
        {
            return Ok(pending_ramp(Ramp { low, high, name: name.to_owned(), ..(**pending).clone() }));
        }
        let of = self.network_operand(node, 0)?;
        let function = match (low, high) {
            (0.0, f64::INFINITY) => Activation::Relu,
            (0.0, 6.0) => Activation::Relu6,
            _ => return Ok(pending_ramp(Ramp { low, high, ..Ramp::identity(name, of) })),
        };
        Ok(Value::Network(self.network.push(name, Op::Activation { function }, &[of])?))
    }

    pub(super) fn hard_sigmoid(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let of = self.network_operand(node, 0)?;
        let name = node_name(node);
        let (alpha, beta) = (attributes.float("alpha", 0.2).into(), attributes.float("beta", 0.5).into());
        let ramp = Ramp { a: alpha, b: beta, low: 0.0, high: 1.0, ..Ramp::identity(name, of) };
        if ramp.hard_sigmoid_factor().is_some() {
            let function = Activation::HardSigmoid;
            return Ok(Value::Network(self.network.push(name, Op::Activation { function }, &[of])?));
        }
        Ok(pending_ramp(ramp))
    }

    pub(super) fn add(&mut self, node: &'a NodeProto) -> Read<Value> {
        if node.input.len() == 2 {
            for (constant, value) in [(0, 1), (1, 0)] {
                if let Value::Constant(constant) = self.operand(node, constant)? {
                    return self.affine(node, value, None, Some(&constant));
                }
            }
        }
        let operands = self.network_operands(node)?;
        Ok(Value::Network(self.network.push(node_name(node), Op::Add, &operands)?))
    }

    pub(super) fn sub(&mut self, node: &'a NodeProto) -> Read<Value> {
        match (self.operand(node, 0)?, self.operand(node, 1)?) {
            (_, Value::Constant(constant)) => {
                let negative = self.mapped(&constant, |x| -x)?;
                self.affine(node, 0, None, Some(&negative))
            }
            (Value::Constant(constant), other) => {
                self.check_axes(&constant, &other)?;
                let negative =
                    as_ramp(&other, node_name(node)).map(|ramp| ramp.then_affine(node_name(node), -1.0, 0.0));
                match (negative, constant.scalar()) {
                    (Some(ramp), Some(shift)) => Ok(pending_ramp(ramp.then_affine(node_name(node), 1.0, shift))),
                    _ => Err(Refusal::because("subtracts from a constant that is no number")),
                }
            }
            _ => Err(Refusal::because("subtracts one image from another")),
        }
    }

    pub(super) fn div(&mut self, node: &'a NodeProto) -> Read<Value> {
        match self.operand(node, 1)? {
            Value::Constant(divisor) => {
                let factor = self.mapped(&divisor, |x| 1.0 / x)?;
                self.affine(node, 0, Some(&factor), None)
            }
            _ => Err(Refusal::because("divides by an image")),
        }
    }

    pub(super) fn mul(&mut self, node: &'a NodeProto) -> Read<Value> {
        let name = node_name(node);
        let operands = [self.operand(node, 0)?, self.operand(node, 1)?];
        for (constant, value) in [(0, 1), (1, 0)] {
            if let Value::Constant(constant) = &operands[constant] {
                return self.affine(node, value, Some(constant), None);
            }
        }
        for (gate, value) in [(0, 1), (1, 0)] {
            let Value::Network(of) = operands[value] else { continue };
            if let Some((function, factor)) = self.gate(&operands[gate], of) {
                let id = self.network.push(name, Op::Activation { function }, &[of])?;
                return Ok(pending_ramp(Ramp::identity(name, id).then_affine(name, factor, 0.0)));
            }
        }
        let operands = self.network_operands(node)?;
        Ok(Value::Network(self.network.push(name, Op::Mul, &operands)?))
    }

    /// x times this value, if that is an activation of x up to a factor.
    fn gate(&self, gate: &Value, of: ValueId) -> Option<(Activation, f64)> {
        match gate {
            Value::Ramp(ramp) if ramp.of == of && ramp.is_clipped() => {
                Some((Activation::HardSwish, ramp.hard_sigmoid_factor()?))
            }
            Value::Network(gate) if self.network.graph.nodes[*gate].inputs == [of] => match self.network.op(*gate) {
                Op::Activation { function: Activation::Sigmoid } => Some((Activation::Silu, 1.0)),
                Op::Activation { function: Activation::HardSigmoid } => Some((Activation::HardSwish, 1.0)),
                _ => None,
            },
            _ => None,
        }
    }

    /// A node's operands, all of them images or features.
    pub(super) fn network_operands(&mut self, node: &'a NodeProto) -> Read<Vec<ValueId>> {
        (0..node.input.len()).map(|index| self.network_operand(node, index)).collect()
    }

    /// `scale · x + shift` with constants that are one number, or one per channel.
    fn affine(
        &mut self,
        node: &'a NodeProto,
        operand: usize,
        scale: Option<&Constant>,
        shift: Option<&Constant>,
    ) -> Read<Value> {
        let name = node_name(node);
        let value = self.operand(node, operand)?;
        for constant in scale.into_iter().chain(shift) {
            self.check_axes(constant, &value)?;
        }
        let number = |constant: Option<&Constant>, default| constant.map_or(Some(default), Constant::scalar);
        if let (Some(scale), Some(shift)) = (number(scale, 1.0), number(shift, 0.0))
            && let Some(ramp) = as_ramp(&value, name)
        {
            return Ok(pending_ramp(ramp.then_affine(name, scale, shift)));
        }
        let of = self.network_operand(node, operand)?;
        let shape = self.network.shape(of);
        let (channels, rank) = (shape.channels(), if let Shape::Features(_) = shape { 2 } else { 4 });
        self.network.spend(channels.saturating_mul(2))?;
        let numbers = |constant: Option<&Constant>, default: f32| {
            constant.map_or_else(|| Ok(vec![default; channels]), |c| broadcast_channels(c, channels, rank))
        };
        let (scale_values, shift_values) = (numbers(scale, 1.0)?, numbers(shift, 0.0)?);
        let unbiased = matches!(self.network.op(of), Op::Conv2d { bias: false, .. } | Op::Linear { bias: false, .. });
        if scale.is_none() && unbiased && !self.as_written && self.reads_alone(node, operand, of) {
            self.add_bias(of, shift_values);
            return Ok(Value::Network(of));
        }
        Ok(Value::Network(self.network.affine(name, of, scale_values, shift_values)?))
    }

    /// Refuses a constant that would give a value more axes than it has, be they of extent 1.
    fn check_axes(&self, constant: &Constant, value: &Value) -> Read<()> {
        let axes = 1 + self.dims(value)?.len();
        if constant.dims.len() <= axes {
            return Ok(());
        }
        Err(Refusal::because(format!("a constant of shape {:?} for a value of {axes} axes", constant.dims)))
    }

    /// A constant with a function applied to its elements.
    fn mapped(&mut self, constant: &Constant, function: fn(f32) -> f32) -> Read<Constant> {
        self.network.spend(constant.len())?;
        let data = Data::Float(constant.floats()?.iter().map(|&x| function(x)).collect());
        Ok(Constant { dims: constant.dims.clone(), data })
    }

    pub(super) fn dropout(&mut self, node: &'a NodeProto) -> Read<Value> {
        let training = self.optional_constant(node, 2, "training mode")?.and_then(|constant| constant.scalar());
        if training.unwrap_or(0.0) != 0.0 {
            return Err(Refusal::because("is in training mode"));
        }
        if node.output.get(1).is_some_and(|mask| self.readers.contains_key(mask.as_str())) {
            return Err(Refusal::because("gives its mask"));
        }
        self.operand(node, 0)
    }

    pub(super) fn softmax(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Value> {
        let of = self.network_operand(node, 0)?;
        let default = if self.opset < 13 { 1 } else { -1 };
        match (self.network.shape(of), attributes.int("axis", default)) {
            (Shape::Features(_), 1 | -1) => {
                Ok(Value::Network(self.network.push(node_name(node), Op::Softmax, &[of])?))
            }
            (shape, axis) => Err(Refusal::because(format!("is over axis {axis} of {shape}, not over features"))),
        }
    }
}

fn pending_ramp(ramp: Ramp) -> Value {
    Value::Ramp(Rc::new(ramp))
}
