//! Nodes that read constants only, and are constants.

use std::rc::Rc;

use super::Importer;
use super::attributes::Attributes;
use super::constant::{
    axis, binary, broadcast_dims, broadcast_sources, cast, pick, slice_indices, sources, transposed,
};
use super::value::{Constant, Data, Int, Read, Refusal, Value};
use crate::prepare::node_name;
use crate::proto::NodeProto;
use crate::proto::tensor_proto::DataType;
use crate::tensor::{self, MOST_AXES};

impl<'a> Importer<'a> {
    /// A node whose tensor stands in an attribute.
    pub(super) fn constant_node(&mut self, node: &'a NodeProto) -> Read<Value> {
        let attributes = Attributes(node);
        let float = |dims: Vec<usize>, data: Vec<f32>| Constant { dims, data: Data::Float(data) };
        let int = |dims: Vec<usize>, data: &[i64]| {
            let data = Data::Int(data.iter().map(|&value| Int::Known(value)).collect());
            Constant { dims, data }
        };
        let constant = if let Some(tensor) = attributes.tensor("value") {
            let constant =
                self.constant(tensor, node_name(node)).map_err(|error| Refusal::because(error.to_string()))?;
            self.network.earn_in_node(constant.len())?;
            constant
        } else if let Some(value) = attributes.get("value_float") {
            float(vec![], vec![value.f()])
        } else if let Some(value) = attributes.get("value_floats") {
            float(vec![value.floats.len()], value.floats.clone())
        } else if let Some(value) = attributes.get("value_int") {
            int(vec![], &[value.i()])
        } else if let Some(value) = attributes.get("value_ints") {
            int(vec![value.ints.len()], &value.ints)
        } else {
            return Err(Refusal::because("its value is neither a tensor nor numbers"));
        };
        Ok(Value::Constant(Rc::new(constant)))
    }

    /// The results of a node all of whose inputs are constants; `None` if they are not or it is not one that is folded.
    pub(super) fn fold(&mut self, node: &'a NodeProto, attributes: &Attributes<'_>) -> Read<Option<Vec<Value>>> {
        let mut inputs = Vec::new();
        for index in 0..node.input.len() {
            match self.optional(node, index)? {
                Some(Value::Constant(constant)) => inputs.push(Some(constant)),
                None => inputs.push(None),
                Some(_) => return Ok(None),
            }
        }
        let Some(first) = inputs.first().cloned().flatten() else { return Ok(None) };
        let second = inputs.get(1).cloned().flatten();
        let op = node.op_type();
        let copies = ["Cast", "CastLike", "Floor", "Ceil", "Sqrt", "Neg", "Squeeze", "Unsqueeze", "Reshape", "Flatten"];
        if copies.contains(&op) {
            self.network.spend(first.len())?;
        }
        let constant = match op {
            "Identity" => return Ok(Some(vec![Value::Constant(first)])),
            "Shape" => {
                let all: Vec<Int> = first.dims.iter().map(|&dim| Int::Known(dim as i64)).collect();
                shape_of(&all, attributes)?
            }
            "Cast" => {
                let to = DataType::try_from(attributes.int("to", 0) as i32).unwrap_or(DataType::Undefined);
                let to_float = match to {
                    DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16 => true,
                    DataType::Int64 | DataType::Int32 => false,
                    other => return Err(Refusal::because(format!("casts to {}", other.as_str_name()))),
                };
                let constant = cast(&first, to_float)?;
                fits(&constant, to)?;
                constant
            }
            "CastLike" => {
                let like = second.ok_or_else(|| Refusal::because("its input 1 is missing"))?;
                cast(&first, matches!(like.data, Data::Float(_)))?
            }
            "Expand" => {
                let target = second.ok_or_else(|| Refusal::because("its shape is missing"))?.known_list()?;
                let (target, _) = tensor::checked_dims(&target).map_err(|fault| Refusal::because(fault.to_string()))?;
                let dims = broadcast_dims(&first.dims, &target)?;
                self.spend_on(&dims)?;
                let sources = broadcast_sources(&dims, &first.dims);
                pick(&first, dims, &sources)
            }
            "Add" | "Sub" | "Mul" | "Div" => {
                let second = second.ok_or_else(|| Refusal::because("its input 1 is missing"))?;
                let dims = broadcast_dims(&first.dims, &second.dims)?;
                self.spend_on(&dims)?;
                binary(op, &first, &second, dims)?
            }
            "Floor" | "Ceil" | "Sqrt" | "Neg" => {
                let function: fn(f32) -> f32 = match op {
                    "Floor" => f32::floor,
                    "Ceil" => f32::ceil,
                    "Sqrt" => f32::sqrt,
                    _ => |x| -x,
                };
                let data = Data::Float(first.floats()?.iter().map(|&x| function(x)).collect());
                Constant { dims: first.dims.clone(), data }
            }
            "Concat" => self.fold_concat(&inputs, attributes)?,
            "ConstantOfShape" => self.fold_constant_of_shape(&first, attributes)?,
            "Squeeze" | "Unsqueeze" | "Reshape" | "Flatten" => {
                let dims = self.folded_dims(op, &first, second.as_deref(), attributes)?;
                if elements(&dims)? != first.len() {
                    return Err(Refusal::because(format!("reshapes {:?} to {dims:?}", first.dims)));
                }
                Constant { dims, data: first.data.clone() }
            }
            "Transpose" => {
                let rank = first.dims.len();
                let permutation = permutation(attributes, rank)?;
                self.spend_on(&first.dims)?;
                let (dims, sources) = transposed(&first.dims, &permutation);
                pick(&first, dims, &sources)
            }
            "Gather" => {
                let second = second.ok_or_else(|| Refusal::because("its input 1 is missing"))?;
                self.fold_gather(&first, &second, attributes)?
            }
            "Slice" => self.fold_slice(node, &first)?,
            _ => return Ok(None),
        };
        Ok(Some(vec![Value::Constant(Rc::new(constant))]))
    }

    /// A value of the type of one that is not a constant: all those are floats.
    pub(super) fn cast_like(&mut self, node: &'a NodeProto) -> Read<Value> {
        self.operand(node, 1)?;
        let Value::Constant(constant) = self.operand(node, 0)? else {
            return Err(Refusal::because("is supported for constants only"));
        };
        self.network.spend(constant.len())?;
        Ok(Value::Constant(Rc::new(cast(&constant, true)?)))
    }

    /// Pays for a tensor of these extents, and for an empty one as if it were not: its other axes are gone through as well.
    fn spend_on(&mut self, dims: &[usize]) -> Read<()> {
        let dims: Vec<usize> = dims.iter().map(|&dim| dim.max(1)).collect();
        self.network.spend(elements(&dims).unwrap_or(usize::MAX))
    }

    fn fold_concat(&mut self, inputs: &[Option<Rc<Constant>>], attributes: &Attributes<'_>) -> Read<Constant> {
        let parts: Vec<&Constant> = inputs.iter().flatten().map(|part| &**part).collect();
        let first = parts[0];
        if parts.iter().any(|part| part.dims.len() != 1) || axis(attributes.int("axis", 0), first.dims.len())? != 0 {
            return Err(Refusal::because("concatenates constants of more than one axis"));
        }
        self.network.spend(parts.iter().map(|part| part.len()).sum())?;
        let mut data = first.data.clone();
        for part in &parts[1..] {
            match (&mut data, &part.data) {
                (Data::Int(data), Data::Int(more)) => data.extend(more),
                (Data::Float(data), Data::Float(more)) => data.extend(more),
                _ => return Err(Refusal::because("mixes integers and floats")),
            }
        }
        let length = parts.iter().map(|part| part.len()).sum();
        Ok(Constant { dims: vec![length], data })
    }

    fn fold_constant_of_shape(&mut self, shape: &Constant, attributes: &Attributes<'_>) -> Read<Constant> {
        let (dims, count) =
            tensor::checked_dims(&shape.known_list()?).map_err(|fault| Refusal::because(fault.to_string()))?;
        self.network.spend(count)?;
        let data = match attributes.tensor("value") {
            None => Data::Float(vec![0.0; count]),
            Some(value) => {
                let value = self.constant(value, "value").map_err(|error| Refusal::because(error.to_string()))?;
                match &value.data {
                    Data::Float(data) if data.len() == 1 => Data::Float(vec![data[0]; count]),
                    Data::Int(data) if data.len() == 1 => Data::Int(vec![data[0]; count]),
                    _ => return Err(Refusal::because("its value is not one number")),
                }
            }
        };
        Ok(Constant { dims, data })
    }

    /// The extents that a constant has once reshaped.
    fn folded_dims(
        &self,
        op: &str,
        constant: &Constant,
        argument: Option<&Constant>,
        attributes: &Attributes<'_>,
    ) -> Read<Vec<usize>> {
        let dims = &constant.dims;
        let axes = || match argument {
            Some(axes) => axes.known_list().map(Some),
            None => Ok(attributes.ints("axes").map(<[i64]>::to_vec)),
        };
        match op {
            "Squeeze" => squeezed(dims, axes()?.as_deref()),
            "Unsqueeze" => unsqueezed(dims, &axes()?.ok_or_else(|| Refusal::because("its axes are missing"))?),
            "Flatten" => {
                let at = attributes.int("axis", 1);
                let at = if at == dims.len() as i64 { dims.len() } else { axis(at, dims.len())? };
                Ok(vec![elements(&dims[..at])?, elements(&dims[at..])?])
            }
            _ => {
                let target = argument.ok_or_else(|| Refusal::because("its shape is missing"))?.known_list()?;
                resolved(&target, dims, attributes.int("allowzero", 0) != 0)
            }
        }
    }

    fn fold_gather(&mut self, data: &Constant, indices: &Constant, attributes: &Attributes<'_>) -> Read<Constant> {
        let along = axis(attributes.int("axis", 0), data.dims.len())?;
        let size = data.dims[along];
        self.network.spend(indices.len())?;
        let picked: Vec<usize> = indices.known()?.into_iter().map(|index| axis(index, size)).collect::<Read<_>>()?;
        let dims = [&data.dims[..along], &indices.dims, &data.dims[along + 1..]].concat();
        if data.len() == 0 || dims.len() > MOST_AXES {
            return Err(Refusal::because(format!("picks from {:?} into a value of {} axes", data.dims, dims.len())));
        }
        self.spend_on(&dims)?;
        let lists: Vec<Vec<usize>> = (0..data.dims.len())
            .map(|axis| if axis == along { picked.clone() } else { (0..data.dims[axis]).collect() })
            .collect();
        Ok(pick(data, dims, &sources(&data.dims, &lists)))
    }

    fn fold_slice(&mut self, node: &'a NodeProto, data: &Constant) -> Read<Constant> {
        if data.len() == 0 {
            return Err(Refusal::because("slices nothing"));
        }
        self.network.spend(data.dims.iter().sum())?;
        let mut lists: Vec<Vec<usize>> = data.dims.iter().map(|&size| (0..size).collect()).collect();
        for (along, [start, end, step]) in self.slices(node, data.dims.len())? {
            lists[along] = slice_indices(start, end, step, data.dims[along])?;
        }
        let dims: Vec<usize> = lists.iter().map(Vec::len).collect();
        self.spend_on(&dims)?;
        Ok(pick(data, dims, &sources(&data.dims, &lists)))
    }

    /// What a Slice takes, axis by axis: start, end and step.
    pub(super) fn slices(&self, node: &'a NodeProto, rank: usize) -> Read<Vec<(usize, [i64; 3])>> {
        let starts = self.constant_operand(node, 1, "starts")?.known_list()?;
        let ends = self.constant_operand(node, 2, "ends")?.known_list()?;
        let axes = match self.optional_constant(node, 3, "axes")? {
            Some(axes) => axes.known_list()?,
            None => (0..starts.len() as i64).collect(),
        };
        let steps = match self.optional_constant(node, 4, "steps")? {
            Some(steps) => steps.known_list()?,
            None => vec![1; starts.len()],
        };
        if starts.len() > rank {
            return Err(Refusal::because("slices an axis twice"));
        }
        if [ends.len(), axes.len(), steps.len()].iter().any(|&length| length != starts.len()) {
            return Err(Refusal::because("its starts, ends, axes and steps differ in number"));
        }
        let slices: Vec<(usize, [i64; 3])> = (0..starts.len())
            .map(|i| Ok((axis(axes[i], rank)?, [starts[i], ends[i], steps[i]])))
            .collect::<Read<_>>()?;
        let twice = |i: usize| slices[..i].iter().any(|(axis, _)| *axis == slices[i].0);
        if (1..slices.len()).any(twice) {
            return Err(Refusal::because(format!("slices an axis twice: {axes:?}")));
        }
        Ok(slices)
    }
}

/// What a Shape gives of these extents.
pub(super) fn shape_of(all: &[Int], attributes: &Attributes<'_>) -> Read<Constant> {
    let picked = slice_indices(attributes.int("start", 0), attributes.int("end", i64::MAX), 1, all.len())?;
    Ok(Constant::ints(picked.into_iter().map(|index| all[index]).collect()))
}

/// The number of elements of these extents.
pub(super) fn elements(dims: &[usize]) -> Read<usize> {
    let count = dims.iter().try_fold(1_usize, |total, &dim| total.checked_mul(dim));
    count.ok_or_else(|| Refusal::because(format!("more elements than can be counted: {dims:?}")))
}

/// The permutation of a Transpose: each axis once.
pub(super) fn permutation(attributes: &Attributes<'_>, rank: usize) -> Read<Vec<usize>> {
    let Some(permutation) = attributes.ints("perm") else { return Ok((0..rank).rev().collect()) };
    let axes: Vec<usize> = permutation.iter().map(|&from| axis(from, rank)).collect::<Read<_>>()?;
    if axes.len() == rank && (0..rank).all(|axis| axes.contains(&axis)) {
        Ok(axes)
    } else {
        Err(Refusal::because(format!("its perm {permutation:?} does not permute {rank} axes")))
    }
}

/// Extents without the given axes of extent 1, or without any.
pub(super) fn squeezed(dims: &[usize], axes: Option<&[i64]>) -> Read<Vec<usize>> {
    let Some(axes) = axes else { return Ok(dims.iter().copied().filter(|&dim| dim != 1).collect()) };
    let gone: Vec<usize> = axes.iter().map(|&at| axis(at, dims.len())).collect::<Read<_>>()?;
    if let Some(&wide) = gone.iter().find(|&&axis| dims[axis] != 1) {
        return Err(Refusal::because(format!("squeezes axis {wide}, which has extent {}", dims[wide])));
    }
    Ok((0..dims.len()).filter(|axis| !gone.contains(axis)).map(|axis| dims[axis]).collect())
}

/// Extents with an axis of extent 1 at each of the given places of the result.
pub(super) fn unsqueezed(dims: &[usize], axes: &[i64]) -> Read<Vec<usize>> {
    let rank = dims.len() + axes.len();
    if rank > MOST_AXES {
        return Err(Refusal::because(format!("makes a value of {rank} axes")));
    }
    let new: Vec<usize> = axes.iter().map(|&at| axis(at, rank)).collect::<Read<_>>()?;
    let mut old = dims.iter().copied();
    let result: Vec<usize> =
        (0..rank).filter_map(|axis| if new.contains(&axis) { Some(1) } else { old.next() }).collect();
    if result.len() == rank { Ok(result) } else { Err(Refusal::because(format!("unsqueezes an axis twice: {axes:?}"))) }
}

/// The extents that a Reshape asks for: 0 keeps one (unless it is meant), −1 is what is left.
pub(super) fn resolved(target: &[i64], dims: &[usize], zero_is_meant: bool) -> Read<Vec<usize>> {
    if target.len() > MOST_AXES {
        return Err(Refusal::because(format!("makes a value of {} axes", target.len())));
    }
    let refused = || Refusal::because(format!("reshapes {dims:?} to {target:?}"));
    let kept = |(at, &size): (usize, &i64)| match size {
        0 if !zero_is_meant => dims.get(at).map(|&dim| dim as i64).ok_or_else(refused),
        size => Ok(size),
    };
    let sizes: Vec<i64> = target.iter().enumerate().map(kept).collect::<Read<_>>()?;
    let total = elements(dims)?;
    let open = sizes.iter().filter(|&&size| size == -1).count();
    let mut known = 1_usize;
    for &size in sizes.iter().filter(|&&size| size != -1) {
        known = usize::try_from(size).ok().and_then(|size| known.checked_mul(size)).ok_or_else(refused)?;
    }
    let fits = if open == 0 { known == total } else { open == 1 && known != 0 && total.is_multiple_of(known) };
    if !fits {
        return Err(refused());
    }
    Ok(sizes.into_iter().map(|size| if size == -1 { total / known } else { size as usize }).collect())
}

/// Refuses a cast of numbers beyond a type's range: all types of one kind are held as the widest.
fn fits(constant: &Constant, to: DataType) -> Read<()> {
    /// The largest number of 16 bits.
    const LARGEST_HALF: f32 = 65504.0;
    let is_held = match (&constant.data, to) {
        (Data::Int(data), DataType::Int32) => data.iter().all(|int| match int {
            Int::Known(value) => i32::try_from(*value).is_ok(),
            Int::Batch => true,
        }),
        (Data::Float(data), DataType::Float16) => data.iter().all(|x| !x.is_finite() || x.abs() <= LARGEST_HALF),
        _ => true,
    };
    if is_held { Ok(()) } else { Err(Refusal::because(format!("casts numbers that {} cannot hold", to.as_str_name()))) }
}
