//! Constant folding: the arithmetic on shapes and weights that exporters leave in a graph.

use super::value::{Constant, Data, Int, Read, Refusal};

/// A tensor of these elements of another, by number.
pub(crate) fn pick(constant: &Constant, dims: Vec<usize>, sources: &[usize]) -> Constant {
    let data = match &constant.data {
        Data::Float(data) => Data::Float(sources.iter().map(|&source| data[source]).collect()),
        Data::Int(data) => Data::Int(sources.iter().map(|&source| data[source]).collect()),
    };
    Constant { dims, data }
}

/// An axis that may count from the end.
pub(crate) fn axis(axis: i64, rank: usize) -> Read<usize> {
    let from_start = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    from_start
        .and_then(|axis| usize::try_from(axis).ok())
        .filter(|&axis| axis < rank)
        .ok_or_else(|| Refusal::because(format!("axis {axis} of a value with {rank} axes")))
}

/// The indices that a slice with these bounds takes from an axis of so many elements.
pub(crate) fn slice_indices(start: i64, end: i64, step: i64, size: usize) -> Read<Vec<usize>> {
    if step == 0 {
        return Err(Refusal::because("a slice with step 0"));
    }
    let size = size as i64;
    let bound = |at: i64, low: i64, high: i64| {
        let at = if at < 0 { at.saturating_add(size) } else { at };
        at.clamp(low, high)
    };
    let mut indices = Vec::new();
    if step > 0 {
        let (mut at, end) = (bound(start, 0, size), bound(end, 0, size));
        while at < end {
            indices.push(at as usize);
            at = at.saturating_add(step);
        }
    } else {
        if size == 0 {
            return Ok(indices);
        }
        let (mut at, end) = (bound(start, 0, size - 1), bound(end, -1, size - 1));
        while at > end && at >= 0 {
            indices.push(at as usize);
            at = at.saturating_add(step);
        }
    }
    Ok(indices)
}

/// Row-major numbers of the elements of a tensor when each axis is indexed by a list.
pub(crate) fn sources(dims: &[usize], indices: &[Vec<usize>]) -> Vec<usize> {
    let mut sources = vec![0];
    for (&size, list) in dims.iter().zip(indices) {
        sources = sources.iter().flat_map(|&at| list.iter().map(move |&index| at * size + index)).collect();
    }
    sources
}

/// The sources of a transposed tensor, and its dims.
pub(crate) fn transposed(dims: &[usize], permutation: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let stride = |axis: usize| dims[axis + 1..].iter().product::<usize>();
    let mut sources = vec![0];
    for &axis in permutation {
        let (size, stride) = (dims[axis], stride(axis));
        sources = sources.iter().flat_map(|&at| (0..size).map(move |index| at + index * stride)).collect();
    }
    (permutation.iter().map(|&axis| dims[axis]).collect(), sources)
}

/// The dims of two tensors broadcast against each other.
pub(crate) fn broadcast_dims(a: &[usize], b: &[usize]) -> Read<Vec<usize>> {
    let rank = a.len().max(b.len());
    let extent = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |axis| dims[axis]);
    (0..rank)
        .map(|axis| match (extent(a, axis), extent(b, axis)) {
            (x, y) if x == y || y == 1 => Ok(x),
            (1, y) => Ok(y),
            _ => Err(Refusal::because(format!("operands {a:?} and {b:?} do not go together"))),
        })
        .collect()
}

/// For every element of a broadcast tensor, the element of an operand.
pub(crate) fn broadcast_sources(dims: &[usize], operand: &[usize]) -> Vec<usize> {
    let missing = dims.len() - operand.len();
    let mut sources = vec![0];
    for (axis, &size) in dims.iter().enumerate() {
        let own = axis.checked_sub(missing).map_or(1, |axis| operand[axis]);
        let index = |i: usize| if own == 1 { 0 } else { i };
        sources = sources.iter().flat_map(|&at| (0..size).map(move |i| at * own + index(i))).collect();
    }
    sources
}

/// A sum, difference, product or quotient, element by element; `dims` are those of the broadcast operands.
pub(crate) fn binary(op: &str, a: &Constant, b: &Constant, dims: Vec<usize>) -> Read<Constant> {
    let (left, right) = (broadcast_sources(&dims, &a.dims), broadcast_sources(&dims, &b.dims));
    let pairs = left.into_iter().zip(right);
    let data = match (&a.data, &b.data) {
        (Data::Int(a), Data::Int(b)) => Data::Int(pairs.map(|(i, j)| binary_int(op, a[i], b[j])).collect::<Read<_>>()?),
        (Data::Float(a), Data::Float(b)) => Data::Float(pairs.map(|(i, j)| binary_float(op, a[i], b[j])).collect()),
        _ => return Err(Refusal::because("mixes integers and floats")),
    };
    Ok(Constant { dims, data })
}

fn binary_float(op: &str, a: f32, b: f32) -> f32 {
    match op {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        _ => a / b,
    }
}

fn binary_int(op: &str, a: Int, b: Int) -> Read<Int> {
    let result = match (op, a, b) {
        ("Mul", Int::Batch, Int::Known(1)) | ("Mul", Int::Known(1), Int::Batch) => Some(Int::Batch),
        ("Div", Int::Batch, Int::Known(1)) | ("Add" | "Sub", Int::Batch, Int::Known(0)) => Some(Int::Batch),
        ("Add", Int::Known(a), Int::Known(b)) => a.checked_add(b).map(Int::Known),
        ("Sub", Int::Known(a), Int::Known(b)) => a.checked_sub(b).map(Int::Known),
        ("Mul", Int::Known(a), Int::Known(b)) => a.checked_mul(b).map(Int::Known),
        (_, Int::Known(a), Int::Known(b)) => a.checked_div(b).map(Int::Known),
        _ => return Err(Refusal::because("computes with the batch size")),
    };
    result.ok_or_else(|| Refusal::because("integer arithmetic that overflows or divides by 0"))
}

/// Integers as floats or floats as integers.
pub(crate) fn cast(constant: &Constant, to_float: bool) -> Read<Constant> {
    let data = match &constant.data {
        Data::Int(_) if to_float => Data::Float(constant.known()?.into_iter().map(|x| x as f32).collect()),
        Data::Float(data) if !to_float => Data::Int(data.iter().map(|&x| Int::Known(x as i64)).collect()),
        same => same.clone(),
    };
    Ok(Constant { dims: constant.dims.clone(), data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices() {
        assert_eq!(slice_indices(0, i64::MAX, 2, 5).unwrap(), [0, 2, 4]);
        assert_eq!(slice_indices(-2, i64::MAX, 1, 5).unwrap(), [3, 4]);
        assert_eq!(slice_indices(i64::MIN, -1, 1, 3).unwrap(), [0, 1]);
        assert_eq!(slice_indices(-1, i64::MIN, -1, 3).unwrap(), [2, 1, 0]);
        assert_eq!(slice_indices(-10, -100, -1, 5).unwrap(), [0]);
        assert_eq!(slice_indices(0, i64::MIN, -1, 0).unwrap(), [0_usize; 0]);
        assert_eq!(slice_indices(4, 2, 1, 5).unwrap(), [0_usize; 0]);
        assert!(slice_indices(0, 1, 0, 3).is_err());
    }

    #[test]
    fn transposition_and_broadcasting() {
        assert_eq!(transposed(&[2, 3], &[1, 0]), (vec![3, 2], vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(broadcast_dims(&[2, 1], &[3]).unwrap(), [2, 3]);
        assert_eq!(broadcast_sources(&[2, 3], &[3]), [0, 1, 2, 0, 1, 2]);
        assert_eq!(broadcast_sources(&[2, 3], &[2, 1]), [0, 0, 0, 1, 1, 1]);
        assert!(broadcast_dims(&[2], &[3]).is_err());
    }
}
