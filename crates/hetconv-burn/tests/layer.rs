//! The public layer in other people's models.

use burn::backend::{BackendTensor, DispatchTensorKind};
use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use hetconv_burn::{ArrangementKind, HetConv2d, HetConv2dConfig, LayerError};
use hetconv_core::{KindError, PatternError};

#[derive(Module, Debug)]
struct Model {
    first: HetConv2d,
    second: HetConv2d,
}

#[test]
fn a_model_is_saved_validated_and_loaded() {
    let device = Device::flex().autodiff();
    let new = || Model {
        first: HetConv2dConfig::new([6, 8], [3, 3], 3).init(&device),
        second: HetConv2dConfig::new([8, 4], [5, 3], 2).with_stride([2, 1]).with_bias(false).init(&device),
    };
    let (model, other) = (new(), new());
    let forward = |model: &Model, x: Tensor<4>| model.second.forward(model.first.forward(x));
    let x = Tensor::random([2, 6, 7, 9], Distribution::Default, &device.clone().inner());
    let valid = model.valid();
    let y = forward(&valid, x.clone());
    assert!(!y.is_autodiff());
    assert_eq!(y.dims(), [2, 4, 4, 9]);
    assert_eq!(valid.first.output_size([7, 9]), Ok([7, 9]));
    assert_ne!(forward(&other.valid(), x.clone()).into_data(), y.clone().into_data());
    let loaded = other.load_record(model.clone().into_record());
    assert_eq!(forward(&loaded.valid(), x.clone()).into_data(), y.clone().into_data());
    // Another image size, then the first again.
    let small = x.clone().narrow(2, 0, 5);
    assert_eq!(forward(&valid, small).dims(), [2, 4, 3, 9]);
    assert_eq!(forward(&valid, x).into_data(), y.into_data());
    let pairs = |m: usize, n: usize, parts: usize, taps: usize| m * n + m / parts * n * taps;
    assert_eq!(model.num_params(), pairs(6, 8, 3, 8) + 8 + pairs(8, 4, 2, 14));
}

#[test]
fn the_result_is_nhwc_in_memory() {
    let device = Device::flex();
    let layer = HetConv2dConfig::new([4, 8], [3, 3], 4).init(&device);
    let y = layer.forward(Tensor::random([1, 4, 5, 6], Distribution::Default, &device));
    let DispatchTensorKind::Flex(BackendTensor::Float(nhwc)) = y.permute([0, 2, 3, 1]).into_dispatch().kind else {
        panic!("a Flex tensor")
    };
    assert!(nhwc.is_contiguous());
}

#[test]
fn initialisation_has_one_fan_in_per_filter_and_zeros_in_spare_slots() {
    let device = Device::flex();
    device.seed(3);
    // Classes of 2 and 1 channels: filters 0, 3, 6, … see two channels, the others one.
    let layer = HetConv2dConfig::new([4, 300], [3, 3], 3).init(&device);
    let bound = |spatial: usize| 1.0 / ((4 + 8 * spatial) as f32).sqrt();
    let (center, ring) = (layer.center.val().into_data(), layer.ring.val().into_data());
    let center: Vec<f32> = center.iter::<f32>().collect();
    let ring: Vec<f32> = ring.iter::<f32>().collect();
    assert_eq!(ring.len(), 300 * 2 * 8);
    let mut largest = [0.0f32; 2];
    for filter in 0..300 {
        let spatial = if filter % 3 == 0 { 2 } else { 1 };
        let slots = &ring[filter * 16..][..16];
        assert!(slots[spatial * 8..].iter().all(|&value| value.to_bits() == 0));
        for &value in center[filter * 4..][..4].iter().chain(&slots[..spatial * 8]) {
            assert!(value.abs() <= bound(spatial) && value != 0.0);
            largest[spatial - 1] = largest[spatial - 1].max(value.abs());
        }
    }
    assert!(largest[0] > 0.95 * bound(1) && largest[1] > 0.95 * bound(2));
}

#[test]
fn unusable_configurations_are_errors() {
    let device = Device::flex();
    let error = |config: HetConv2dConfig| config.try_init(&device).expect_err("an error");
    let config = |parts: usize| HetConv2dConfig::new([8, 12], [3, 3], parts);
    assert_eq!(error(config(9)), LayerError::Pattern(PatternError::MoreThanChannels { parts: 9, in_channels: 8 }));
    assert_eq!(error(config(0)), LayerError::Pattern(PatternError::NoParts));
    let blocked = error(config(8).with_arrangement(ArrangementKind::Blocked));
    assert!(matches!(blocked, LayerError::Pattern(PatternError::DoesNotDivide { parts: 8, .. })));
    assert!(matches!(error(config(4).with_stride([0, 1])), LayerError::Geometry(_)));
    assert!(matches!(error(config(4).with_dilation([usize::MAX, 1])), LayerError::Geometry(_)));
    assert_eq!(error(HetConv2dConfig::new([8, 8], [3, 2], 4)), KindError::EvenKernel([3, 2]).into());
    assert_eq!(error(HetConv2dConfig::new([8, 8], [1, 1], 4)), LayerError::PointwiseKernel);
}
