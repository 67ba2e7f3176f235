//! A run is the steps that its settings say, one after another.

use hetconv_burn::{DecayScope, GraphModule, Sgd, SgdConfig};
use hetconv_core::{Conv2dGeometry, ConvKind, HetPattern};
use hetconv_graph::{Graph, GraphBuilder, ModelFile, Weights};
use hetconv_train::{
    Augment, BatchLoader, Dataset, Device, Position, RecipeName, RunConfig, SyntheticOptions, TrainJob,
    TrainingBatches, burn_device, evaluate, run_files, synthetic, train,
};

const SEED: u64 = 7;
const EPOCHS: u64 = 2;
const BATCH: usize = 8;
const CUTOUT: usize = 10;
const PEAK: f64 = 0.05;
const EMA: f64 = 0.6;

/// A network with parameters that decay and such that do not.
fn network() -> Graph {
    let mut b = GraphBuilder::new("normed");
    let x = b.input("image", [3, 32, 32]);
    let x = b.conv("stem", x, 8, Conv2dGeometry::same(3, 2), ConvKind::Standard, false);
    let x = b.batch_norm("stem.norm", x);
    let x = b.relu("stem.relu", x);
    let pattern = HetPattern::shifted(8, 8, 4).expect("a legal pattern");
    let x = b.conv("het", x, 8, Conv2dGeometry::same(3, 2), ConvKind::Het(pattern), true);
    let x = b.global_avg_pool("pool", x);
    let x = b.flatten("flatten", x);
    let x = b.linear("fc", x, 10, true);
    b.finish([x]).expect("a graph")
}

/// What two epochs of `onecycle` make of the network, from the parts that a run is made of: 2 × 3 steps, the first two of
/// them on the way up. The weights after the last step, and the moving average of those after every one.
fn by_hand(data: &Dataset) -> [Weights; 2] {
    let graph = network();
    let weights = Weights::init(&graph, SEED).expect("weights");
    let device = burn_device(Device::Cpu).expect("a device");
    let mut module = GraphModule::new(&graph, &weights, &device).expect("a network");
    let sgd = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 5e-4, decay: DecayScope::Kernels };
    let mut optimizer = Sgd::new(sgd);
    let batches = TrainingBatches {
        batch_size: BATCH,
        augment: Augment { cutout: CUTOUT, flip: false, ..Augment::PAPER },
        seed: SEED,
        start: Position::default(),
        epochs: EPOCHS,
    };
    let normalisation = data.train.normalisation();
    let loader = BatchLoader::training(data.train.clone(), &normalisation, batches).expect("batches");
    let mut after_steps = Vec::new();
    let mut rates = [0.5, 1.0, 0.853_553_390_593_273_8, 0.5, 0.146_446_609_406_726_2, 0.0].into_iter();
    for batch in loader {
        let batch = batch.expect("a batch");
        let out = module.step(batch.images, BATCH, &batch.labels, 0.1).expect("a step");
        let rate = PEAK * rates.next().expect("six steps");
        optimizer.step(&mut module, out.gradients, rate as f32);
        after_steps.push(module.weights());
    }
    assert_eq!(rates.next(), None, "six steps");
    let parts: Vec<f64> = (0..6).map(|step| EMA.powi(5 - step)).collect();
    let mut mean = module.weights();
    for (name, tensor) in mean.iter_mut() {
        for (i, value) in tensor.data.iter_mut().enumerate() {
            let of_step = |weights: &Weights| f64::from(weights.get(name).expect("the same weights").data[i]);
            let sum: f64 = after_steps.iter().zip(&parts).map(|(weights, part)| part * of_step(weights)).sum();
            *value = (sum / parts.iter().sum::<f64>()) as f32;
        }
    }
    [module.weights(), mean]
}

#[test]
fn a_run_is_the_steps_of_its_settings() {
    let data = synthetic(&SyntheticOptions { train: 26, test: 10, ..Default::default() }).expect("images");
    let own = RunConfig::new("small-cifar", "synthetic", RecipeName::OneCycle).expect("a name");
    let settings = RunConfig { epochs: EPOCHS, batch_size: BATCH, lr: PEAK, cutout: Some(CUTOUT), ..own };
    let folder = tempfile::tempdir().expect("a folder");
    let [last, mean] = by_hand(&data);
    for (out, ema, expected) in [("last", None, last), ("mean", Some(EMA), mean)] {
        let config = RunConfig { seed: SEED, no_flip: true, ema, ..settings.clone() };
        let out = folder.path().join(out);
        let job = TrainJob { config: &config, graph: network(), data: &data, out: &out, resume: false };
        let summary = train(job, &mut ()).expect("a run");
        let model = ModelFile::load(&out.join(run_files::MODEL)).expect("a model");
        assert_eq!(model.weights.iter().count(), expected.iter().count());
        for ((name, found), (_, expected)) in model.weights.iter().zip(expected.iter()) {
            let apart = found.data.iter().zip(&expected.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-6, "{name}: {apart} apart");
        }
        // What is kept is what was judged.
        let device = burn_device(Device::Cpu).expect("a device");
        let module = GraphModule::new(&network(), &model.weights, &device).expect("a network");
        let judged = evaluate(&module, &data.test, &model.normalisation, BATCH, &mut |_, _| {}).expect("an evaluation");
        assert_eq!(judged.loss, summary.eval_loss);
    }
}
