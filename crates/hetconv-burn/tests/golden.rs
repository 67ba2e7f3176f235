//! Float64 results of an independent implementation, reproduced through Burn's `loss.backward()`.

mod common;

use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use common::{assert_close, wide};
use hetconv_burn::ops::{ConvOp, ConvTensors};
use hetconv_burn::{ArrangementKind, HetConv2dConfig, Implementation};
use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_graph::GraphBuilder;
use hetconv_kernels::{Conv, ConvSpec};
use safetensors::SafeTensors;

/// One file.
struct Case {
    name: String,
    pattern: HetPattern,
    geometry: Conv2dGeometry,
    arrangement: ArrangementKind,
    parts: usize,
    macs: u64,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Case {
    fn tensor(&self, name: &str) -> (&[usize], &[f32]) {
        let (_, shape, data) = self.tensors.iter().find(|(found, ..)| found == name).expect("a tensor of the file");
        (shape, data)
    }

    fn on<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (shape, data) = self.tensor(name);
        Tensor::from_data(TensorData::new(data.to_vec(), shape.to_vec()), device)
    }

    /// Centre and ring of a dense masked tensor `[N, M, K, K]`.
    fn split(&self, name: &str) -> (Vec<f32>, Vec<f32>) {
        let (_, dense) = self.tensor(name);
        let (m, slots, taps) = (self.pattern.in_channels(), self.pattern.max_spatial(), self.geometry.taps());
        let center = dense.chunks_exact(taps).map(|window| window[taps / 2]).collect();
        let mut ring = vec![0.0; self.pattern.out_channels() * slots * (taps - 1)];
        for f in 0..self.pattern.out_channels() {
            for (slot, c) in self.pattern.spatial_channels(f).enumerate() {
                let window = &dense[(f * m + c) * taps..][..taps];
                let target = &mut ring[(f * slots + slot) * (taps - 1)..][..taps - 1];
                target[..taps / 2].copy_from_slice(&window[..taps / 2]);
                target[taps / 2..].copy_from_slice(&window[taps / 2 + 1..]);
            }
        }
        (center, ring)
    }

    fn weights(&self, name: &str, device: &Device) -> (Tensor<2>, Tensor<3>) {
        let (n, m, slots) = (self.pattern.out_channels(), self.pattern.in_channels(), self.pattern.max_spatial());
        let (center, ring) = self.split(name);
        let ring = Tensor::from_data(TensorData::new(ring, [n, slots, self.geometry.taps() - 1]), device);
        (Tensor::from_data(TensorData::new(center, [n, m]), device), ring)
    }

    fn check<const D: usize>(&self, what: &str, got: Option<Tensor<D>>, want: &[f32]) {
        let got: Vec<f32> = got.expect("a gradient").into_data().iter::<f32>().collect();
        assert_close(&format!("{} {what}", self.name), &got, &wide(want), 1e-5);
    }
}

fn cases() -> Vec<Case> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");
    let files = std::fs::read_dir(folder).expect("golden vectors").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    assert_eq!(files.len(), 25);
    files.iter().map(|path| read(&std::fs::read(path).expect("a golden file"))).collect()
}

fn read(bytes: &[u8]) -> Case {
    let (_, metadata) = SafeTensors::read_metadata(bytes).expect("a header");
    let metadata = metadata.metadata().as_ref().expect("metadata");
    let number = |key: &str| metadata[key].parse::<usize>().expect("a number");
    let file = SafeTensors::deserialize(bytes).expect("tensors");
    let values = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let tensors = file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec(), values(view.data())));
    let (m, n, parts) = (number("in_channels"), number("out_channels"), number("parts"));
    let (arrangement, pattern) = match metadata["arrangement"].as_str() {
        "shifted" => (ArrangementKind::Shifted, HetPattern::shifted(m, n, parts)),
        "blocked" => (ArrangementKind::Blocked, HetPattern::blocked(m, n, parts)),
        other => panic!("arrangement {other}"),
    };
    Case {
        name: metadata["name"].clone(),
        pattern: pattern.expect("a legal pattern"),
        geometry: Conv2dGeometry::square(number("kernel"), number("stride"), number("padding"), number("dilation")),
        arrangement,
        parts,
        macs: number("macs_per_image") as u64,
        tensors: tensors.collect(),
    }
}

#[test]
fn the_layer_on_flex() {
    let device = Device::flex().autodiff();
    for case in cases() {
        let Conv2dGeometry { kernel, stride, padding, dilation } = case.geometry;
        let channels = [case.pattern.in_channels(), case.pattern.out_channels()];
        let mut layer = HetConv2dConfig::new(channels, kernel, case.parts)
            .with_stride(stride)
            .with_padding(Some([padding[0], padding[1]]))
            .with_dilation(dilation)
            .with_arrangement(case.arrangement)
            .init(&device);
        let &[_, _, height, width] = case.tensor("x").0 else { panic!("{}: x has four axes", case.name) };
        let [height, width] = layer.output_size([height, width]).expect("a window that fits");
        let macs = layer.pattern().weights(layer.geometry().taps()) * height * width;
        assert_eq!(macs as u64, case.macs, "{}: MACs", case.name);
        let (center, ring) = case.weights("weight", &device);
        layer.center = Param::from_tensor(center);
        layer.ring = Param::from_tensor(ring);
        layer.bias = Some(Param::from_tensor(case.on("bias", &device)));
        let (center, ring) = case.split("dweight");
        // Once as NCHW in memory, once as NHWC in memory.
        for nhwc in [false, true] {
            let x: Tensor<4> = case.on("x", &device);
            let x = if nhwc {
                let [b, c, h, w] = x.dims();
                let data = x.permute([0, 2, 3, 1]).into_data();
                Tensor::<4>::from_data(data, &device).reshape([b, h, w, c]).permute([0, 3, 1, 2]).detach()
            } else {
                x
            };
            let x = x.require_grad();
            let y = layer.forward(x.clone());
            case.check("y", Some(y.clone()), case.tensor("y").1);
            let grads = (y * case.on("dy", &device)).sum().backward();
            case.check("dx", x.grad(&grads), case.tensor("dx").1);
            case.check("dcenter", layer.center.grad(&grads), &center);
            case.check("dring", layer.ring.grad(&grads), &ring);
            case.check("dbias", layer.bias.as_ref().expect("a bias").grad(&grads), case.tensor("dbias").1);
        }
    }
}

#[test]
fn macs_of_the_layer_and_of_a_network_of_it() {
    for case in cases() {
        let &[_, m, height, width] = case.tensor("x").0 else { panic!("{}: x has four axes", case.name) };
        let mut b = GraphBuilder::new(&case.name);
        let x = b.input("input", [m, height, width]);
        let kind = ConvKind::Het(case.pattern.clone());
        let y = b.conv("het", x, case.pattern.out_channels(), case.geometry.clone(), kind, true);
        let graph = b.finish([y]).expect("a network");
        assert_eq!(graph.cost().expect("a cost").macs, case.macs, "{}: network", case.name);
    }
}

#[test]
fn the_composed_form() {
    let device = Device::flex().autodiff();
    for case in cases() {
        let x = case.on::<4>("x", &device).require_grad();
        let [_, m, height, width] = x.dims();
        let n = case.pattern.out_channels();
        let spec = ConvSpec::natural(m, n, case.geometry.clone(), ConvKind::Het(case.pattern.clone()));
        let conv = Arc::new(Conv::new(spec, [height, width]).expect("a legal convolution"));
        let op = ConvOp::new(conv, Implementation::Composed);
        let (center, ring) = case.weights("weight", &device);
        let (center, ring) = (center.require_grad(), ring.require_grad());
        let bias = case.on::<1>("bias", &device).require_grad();
        let weights = ConvTensors::Het { center: center.clone(), ring: ring.clone() };
        let y = op.forward(x.clone().permute([0, 2, 3, 1]), weights, Some(bias.clone())).permute([0, 3, 1, 2]);
        case.check("y", Some(y.clone()), case.tensor("y").1);
        let grads = (y * case.on("dy", &device)).sum().backward();
        let (dcenter, dring) = case.split("dweight");
        case.check("dx", x.grad(&grads), case.tensor("dx").1);
        case.check("dcenter", center.grad(&grads), &dcenter);
        case.check("dring", ring.grad(&grads), &dring);
        case.check("dbias", bias.grad(&grads), case.tensor("dbias").1);
    }
}
