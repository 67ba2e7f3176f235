//! Float64 results of an independent implementation: forward, all gradients and MACs.

mod common;

use std::collections::BTreeMap;

use common::{Weights, assert_close, each_isa, load, store};
use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_kernels::{Algorithm, Batch, Conv, ConvSpec, Direction, Input};
use safetensors::SafeTensors;

/// `[batch, channels, height, width]` → `[batch, height, width, channels]`.
fn nhwc(data: &[f32], shape: &[usize]) -> Vec<f32> {
    let [b, c, h, w] = shape.try_into().expect("four axes");
    let at = |b: usize, c_: usize, y: usize, x: usize| data[((b * c + c_) * h + y) * w + x];
    let mut out = Vec::with_capacity(data.len());
    for b in 0..b {
        for y in 0..h {
            for x in 0..w {
                out.extend((0..c).map(|c| at(b, c, y, x)));
            }
        }
    }
    out
}

#[test]
fn golden_vectors() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("golden vectors")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 25);
    each_isa("golden vectors", |isa| {
        let mut computed = BTreeMap::new();
        for path in &files {
            let bytes = std::fs::read(path).expect("golden file");
            let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("header");
            let metadata = metadata.metadata().as_ref().expect("metadata");
            let number = |key: &str| metadata[key].parse::<usize>().expect("a number");
            let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
            let tensor = |name: &str| {
                let view = tensors.tensor(name).expect("tensor");
                let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")));
                (data.collect::<Vec<f32>>(), view.shape().to_vec())
            };
            let image = |name: &str| {
                let (data, shape) = tensor(name);
                (nhwc(&data, &shape), shape)
            };
            let (m, n, parts) = (number("in_channels"), number("out_channels"), number("parts"));
            let geometry =
                Conv2dGeometry::square(number("kernel"), number("stride"), number("padding"), number("dilation"));
            let pattern = match metadata["arrangement"].as_str() {
                "shifted" => HetPattern::shifted(m, n, parts),
                _ => HetPattern::blocked(m, n, parts),
            };
            let spec = ConvSpec::by_class(m, n, geometry, ConvKind::Het(pattern.expect("a legal pattern")));
            let (x, shape) = image("x");
            let (batch, in_size) = (shape[0], [shape[2], shape[3]]);
            let conv = Conv::new(spec.clone(), in_size).expect("a layer that fits");
            let name = path.file_stem().expect("name").to_string_lossy();
            let [h, w] = conv.out_size();
            assert_eq!(conv.macs(), number("macs_per_image"), "{name}: MACs");
            assert!(conv.executed_macs() <= conv.macs());
            assert_eq!(image("y").1, [batch, n, h, w]);

            let weights = Weights::from_dense(&spec, &tensor("weight").0);
            let (bias, dy) = (tensor("bias").0, store(&image("dy").0, &spec.out_order));
            let x = store(&x, &spec.in_order);
            let exact = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            for &algorithm in conv.algorithms() {
                *computed.entry(algorithm).or_insert(0) += 1;
                let tolerance = if algorithm == Algorithm::Winograd { 4e-5 } else { 1e-5 };
                let mut y = vec![f32::NAN; dy.len()];
                let packed = conv.pack(isa, Direction::Forward, algorithm, weights.get());
                conv.forward(batch, &x, &packed, Some(&bias), &mut y);
                let label = format!("{name} {algorithm:?}");
                assert_close(&format!("{label} y"), &load(&y, &spec.out_order), &exact(&image("y").0), tolerance);
                let packed = conv.pack(isa, Direction::GradInput, algorithm, weights.get());
                let dx = conv.grad_input(batch, &dy, &packed);
                assert_close(&format!("{label} dx"), &load(&dx, &spec.in_order), &exact(&image("dx").0), tolerance);
                // Rounding grows with the root of the number of pixels that are summed.
                let pixels = (batch * h * w) as f64;
                let tolerance = if algorithm == Algorithm::Winograd { 1e-5 * pixels.sqrt() } else { tolerance };
                let want = Weights::from_dense(&spec, &tensor("dweight").0);
                let mut grad = Weights::new(&spec, || f32::NAN);
                let batch = Batch { images: batch, input: Input::Plain(&x), grad_output: &dy };
                conv.grad_weight(isa, algorithm, batch, grad.get_mut());
                assert_close(&format!("{label} dweight centre"), &grad.main, &exact(&want.main), tolerance);
                assert_close(&format!("{label} dweight ring"), &grad.ring, &exact(&want.ring), tolerance);
            }
            let mut dbias = vec![f32::NAN; n];
            conv.grad_bias(batch, &dy, &mut dbias);
            assert_close(&format!("{name} dbias"), &dbias, &exact(&tensor("dbias").0), 1e-5);
        }
        println!("{isa:?}: {computed:?}");
        assert_eq!(computed[&Algorithm::Direct], files.len());
        assert!(computed[&Algorithm::Winograd] > 5, "{computed:?}");
    });
}
