//! Mutations of an ONNX file that leave it one: other numbers, other operators, other connections.

use hetconv_onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};
use prost::Message;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers at which something changes its meaning.
const NUMBERS: [i64; 16] = [0, 1, 2, 3, 4, 5, 7, 8, 16, -1, -2, 1 << 20, 1 << 31, 1 << 40, i64::MAX, i64::MIN];

/// Another file, or `None` where bytes are to be mutated instead.
pub fn mutate(bytes: &[u8], seed: u32) -> Option<Vec<u8>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed.into());
    if rng.random_bool(0.5) {
        return None;
    }
    let mut model = ModelProto::decode(bytes).ok()?;
    let graph = model.graph.as_mut()?;
    for _ in 0..rng.random_range(1..4) {
        change(graph, &mut rng)?;
    }
    if rng.random_bool(0.02) {
        model.opset_import.first_mut()?.version = Some(rng.random_range(11..24));
    }
    Some(model.encode_to_vec())
}

fn change(graph: &mut GraphProto, rng: &mut ChaCha8Rng) -> Option<()> {
    let nodes = graph.node.len();
    match rng.random_range(0..10) {
        0 => {
            let tensor = any(&mut graph.initializer, rng)?;
            *any(&mut tensor.dims, rng)? = number(rng);
        }
        1 => {
            let tensor = any(&mut graph.initializer, rng)?;
            let at = rng.random_range(0..tensor.dims.len() + 1);
            tensor.dims.insert(at, 1);
        }
        2 | 3 => {
            let attribute = any(&mut any(&mut graph.node, rng)?.attribute, rng)?;
            change_attribute(attribute, rng);
        }
        4 => {
            let attributes = &mut any(&mut graph.node, rng)?.attribute;
            let at = (!attributes.is_empty()).then(|| rng.random_range(0..attributes.len()))?;
            attributes.remove(at);
        }
        5 => {
            let op = any(&mut graph.node, rng)?.op_type.clone();
            any(&mut graph.node, rng)?.op_type = op;
        }
        6 => {
            // A value read elsewhere.
            let names: Vec<String> =
                graph.node.iter().flat_map(|node| node.input.iter().chain(&node.output)).cloned().collect();
            let name = (!names.is_empty()).then(|| names[rng.random_range(0..names.len())].clone())?;
            *any(&mut any(&mut graph.node, rng)?.input, rng)? = name;
        }
        7 => {
            // A node twice, the first copy in front of the second.
            let at = (nodes > 0).then(|| rng.random_range(0..nodes))?;
            let node = graph.node[at].clone();
            let output = node.output.first()?.clone();
            let between = format!("{output}{}", rng.next_u32());
            let first = NodeProto { output: vec![between.clone()], name: Some(between.clone()), ..node };
            *graph.node[at].input.first_mut()? = between;
            graph.node.insert(at, first);
        }
        8 => {
            // A node left out.
            let at = (nodes > 1).then(|| rng.random_range(0..nodes))?;
            let node = graph.node.remove(at);
            let (from, to) = (node.output.first()?.clone(), node.input.first()?.clone());
            for input in graph.node.iter_mut().flat_map(|node| &mut node.input).filter(|input| **input == from) {
                *input = to.clone();
            }
            for output in graph.output.iter_mut().filter(|output| output.name() == from) {
                output.name = Some(to.clone());
            }
        }
        _ => {
            let tensor = any(&mut graph.initializer, rng)?;
            let mut bytes = tensor.raw_data.as_ref()?.to_vec();
            let special = [0.0, -0.0, 1.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE, f32::MAX];
            let value = special[rng.random_range(0..special.len())].to_le_bytes();
            let at = (bytes.len() >= 4).then(|| rng.random_range(0..bytes.len() / 4))?;
            bytes[4 * at..][..4].copy_from_slice(&value);
            tensor.raw_data = Some(bytes.into());
        }
    }
    Some(())
}

fn change_attribute(attribute: &mut AttributeProto, rng: &mut ChaCha8Rng) {
    if let Some(value) = &mut attribute.i {
        *value = number(rng);
    }
    if let Some(value) = &mut attribute.f {
        *value = f32::from_bits(rng.next_u32());
    }
    match rng.random_range(0..4) {
        0 => drop(attribute.ints.pop()),
        1 => attribute.ints.push(1),
        _ => any(&mut attribute.ints, rng).into_iter().for_each(|value| *value = number(rng)),
    }
}

fn number(rng: &mut ChaCha8Rng) -> i64 {
    NUMBERS[rng.random_range(0..NUMBERS.len())]
}

fn any<'a, T>(list: &'a mut [T], rng: &mut ChaCha8Rng) -> Option<&'a mut T> {
    (!list.is_empty()).then(|| rng.random_range(0..list.len())).and_then(|at| list.get_mut(at))
}
