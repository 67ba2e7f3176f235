//! The command line as people and scripts meet it: results, exit statuses, messages.

mod command;

use std::path::Path;
use std::process::{Output, Stdio};

use assert_cmd::Command;
use command::{failure, hetconv, json, stderr};
use hetconv::graph::{ModelFile, Normalisation, Weights, zoo};
use serde_json::Value;

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn here() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn list_is_an_array_of_names() {
    let here = here();
    let names = json(here.path(), &["list"]);
    let names: Vec<&str> = names.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for name in
        ["small-cifar", "vgg16-cifar_p4", "vgg16-cifar_p4_se", "resnet56_p2", "mobilenet-cifar_p32", "resnet50_p4"]
    {
        assert!(names.contains(&name), "{name}");
    }
    let table = stdout(&hetconv(here.path(), &["list"]));
    assert!(table.contains("vgg16-cifar") && table.contains("ARCH_gwcG_pwc"), "{table}");
}

#[test]
fn summary_counts_macs_exactly() {
    let here = here();
    for (name, macs) in [
        ("vgg16-cifar", 313_463_808),
        ("vgg16-cifar_p2", 175_051_776),
        ("vgg16-cifar_p4", 105_845_760),
        ("vgg16-cifar_p64", 40_965_120),
        ("vgg16-cifar_gwc4_pwc", 107_418_624),
        ("vgg16-cifar_dwc_pwc", 38_280_192),
        ("resnet56", 125_485_696),
        ("mobilenet-cifar", 46_354_432),
        ("mobilenet-cifar_p32", 55_945_216),
    ] {
        let summary = json(here.path(), &["summary", name]);
        assert_eq!(summary["macs"], macs, "{name}");
        assert_eq!(summary["flops"], 2 * macs, "{name}");
        let layers = summary["layers"].as_array().unwrap();
        let sum = |key: &str| layers.iter().map(|layer| layer[key].as_u64().unwrap()).sum::<u64>();
        assert_eq!((sum("macs"), Some(sum("params"))), (macs, summary["params"].as_u64()), "{name}");
    }
}

#[test]
fn summary_counts_imagenet_networks() {
    let here = here();
    for (name, percent) in [("vgg16_p4", 65.76), ("resnet34_p4", 64.16), ("resnet50_p4", 30.16)] {
        let summary = json(here.path(), &["summary", name]);
        assert_eq!(summary["input"], serde_json::json!([1, 3, 224, 224]));
        let found = summary["macs_reduction_percent"].as_f64().unwrap();
        assert!((found - percent).abs() < 0.1, "{name}: {found}");
    }
}

#[test]
fn summary_counts_additions_as_the_paper_does() {
    let here = here();
    for (name, macs) in [("vgg16-cifar", 313_740_810), ("resnet56", 126_018_186)] {
        let summary = json(here.path(), &["summary", name, "--count-additions"]);
        assert_eq!(summary["macs"], macs, "{name}");
        let layers = summary["layers"].as_array().unwrap();
        assert_eq!(layers.iter().map(|layer| layer["macs"].as_u64().unwrap()).sum::<u64>(), macs, "{name}");
    }
    // 313.74M and 126.02M.
    let text = stdout(&hetconv(here.path(), &["summary", "vgg16-cifar", "--count-additions"]));
    assert!(text.contains("313.7 M") && text.contains("one addition per output element"), "{text}");
}

#[test]
fn summary_counts_stages() {
    let here = here();
    let stages = |name: &str| json(here.path(), &["summary", name])["stages"].as_u64().unwrap();
    let standard = stages("vgg16-cifar");
    assert_eq!(standard, 13);
    assert_eq!(stages("vgg16-cifar_p4"), standard);
    assert_eq!(stages("vgg16-cifar_gwc4_pwc"), standard + 12);
    assert_eq!(stages("vgg16-cifar_dwc_pwc"), standard + 12);
    assert_eq!(stages("mobilenet-cifar") - stages("mobilenet-cifar_p32"), 13);
}

#[test]
fn summary_describes_layers() {
    let here = here();
    let summary = json(here.path(), &["summary", "vgg16-cifar_p4"]);
    let layers = summary["layers"].as_array().unwrap();
    let het = layers.iter().find(|layer| layer["kind"] == "het").unwrap();
    assert_eq!(het["op"], "conv2d");
    // Which of them depends on the instruction set.
    let known = |layer: &Value| ["direct", "winograd"].iter().any(|&known| layer["algorithm"] == known);
    assert!(layers.iter().all(|layer| known(layer) != (layer["op"] == "batch_norm")), "{summary}");
    assert_eq!((&het["parts"], &het["in_channels"], &het["stages"]), (&4.into(), &64.into(), &1.into()));
    assert_eq!(het["kernel"], serde_json::json!([3, 3]));
    assert_eq!((&het["out_height"], &het["out_width"]), (&32.into(), &32.into()));
    let table = stdout(&hetconv(here.path(), &["summary", "vgg16-cifar_p4"]));
    assert!(table.contains("105,845,760 (105.8 M), 66.23 % fewer") && table.contains("13 convolutions"), "{table}");
}

#[test]
fn summary_takes_other_inputs() {
    let here = here();
    let per_image = json(here.path(), &["summary", "resnet20", "--input", "1,3,64,64"]);
    let usual = json(here.path(), &["summary", "resnet20"]);
    let linear = 64 * 10;
    let of = |summary: &Value| summary["macs"].as_u64().unwrap();
    assert_eq!(of(&per_image) - linear, 4 * (of(&usual) - linear), "four times the pixels");
    let batch = json(here.path(), &["summary", "resnet20", "--input", "5,3,64,64"]);
    assert_eq!(of(&batch), 5 * of(&per_image));
    assert_eq!(batch["params"], per_image["params"]);
    let grey = json(here.path(), &["summary", "resnet20_p4", "--input", "1,1,28,28", "--classes", "7"]);
    assert_eq!(grey["layers"][0]["in_channels"], 1);
    assert!(failure(here.path(), 2, &["summary", "resnet20", "--input", "3,32,32"]).contains("N,C,H,W"));
    assert!(failure(here.path(), 2, &["summary", "resnet20", "--input", "0,3,32,32"]).contains("at least one image"));
    let error = failure(here.path(), 2, &["summary", "vgg16", "--input", "1,3,32,32"]);
    assert!(error.contains("vgg16 does not take images of 3×32×32") && error.contains("`fc1`"), "{error}");
    let error = failure(here.path(), 2, &["summary", "resnet20", "--input", "1,3,1048576,1048576"]);
    assert!(error.contains("`input`") && error.contains("16384 pixels a side"), "{error}");
}

/// A full disk is a failure, a reader who has gone is none; but nothing written to a file may be lost that way.
#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_printed() {
    let here = here();
    let to = |stdout: Stdio, args: &[&str]| command::command(here.path(), args).stdout(stdout).output().unwrap();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = to(full.into(), &["list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot write to stdout"), "{}", stderr(&output));
    assert_eq!(to(closed().into(), &["list"]).status.code(), Some(0));
    let output = to(closed().into(), &["export", "small-cifar", "-o", "/dev/stdout"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("cannot write /dev/stdout"), "{}", stderr(&output));
}

#[test]
fn a_folder_of_a_networks_name_does_not_hide_it() {
    let here = here();
    std::fs::create_dir(here.path().join("small-cifar")).unwrap();
    assert_eq!(json(here.path(), &["summary", "small-cifar"])["model"], "small-cifar");
}

#[test]
fn unknown_names_suggest_the_nearest() {
    let here = here();
    let error = failure(here.path(), 2, &["summary", "vgg16-cifr_p4"]);
    assert!(error.contains("vgg16-cifr_p4") && error.contains("did you mean `vgg16-cifar_p4`"), "{error}");
    let error = failure(here.path(), 2, &["train", "--model", "resnet2O"]);
    assert!(error.contains("did you mean `resnet20`"), "{error}");
    let error = failure(here.path(), 2, &["compare", "--variants", "standard,gcw4_pwc"]);
    assert!(error.contains("gcw4_pwc") && error.contains("did you mean `gwc4_pwc`"), "{error}");
    let error = failure(here.path(), 2, &["data", "fetch", "cifar-10"]);
    assert!(error.contains("did you mean \"cifar10\""), "{error}");
    let error = failure(here.path(), 2, &["data", "prepare", "syntetic"]);
    assert!(error.contains("syntetic") && error.contains("did you mean \"synthetic\""), "{error}");
    let error = failure(here.path(), 2, &["train", "--model", "resnet20", "--data", "fashon-mnist"]);
    assert!(error.contains("did you mean \"fashion-mnist\""), "{error}");
}

#[test]
fn bad_usage_is_2_and_says_what_would_do() {
    let here = here();
    assert!(failure(here.path(), 2, &["sumary", "resnet20"]).contains("summary"));
    assert!(failure(here.path(), 2, &["list", "--threads", "0"]).contains("--threads"));
    assert!(failure(here.path(), 2, &["train", "--model", "resnet20", "--recipe", "fast"]).contains("onecycle"));
    assert!(failure(here.path(), 2, &["train", "--model", "resnet20", "--device", "gpu"]).contains("vulkan"));
    assert!(failure(here.path(), 2, &["train", "--model", "resnet20", "--epochs", "0"]).contains("at least 1"));
    assert!(failure(here.path(), 2, &["compare", "--model", "resnet20_p4"]).contains("--variants"));
    assert!(failure(here.path(), 2, &["compare", "--variants", "p4,p4"]).contains("twice"));
    assert!(failure(here.path(), 2, &["compare", "--seeds", "1,1"]).contains("twice"));
    assert!(failure(here.path(), 2, &["benchmark"]).contains("--training"));
    assert!(failure(here.path(), 2, &["summary", "resnet20", "--classes", "0"]).contains("--classes"));
    assert!(failure(here.path(), 2, &["data", "prepare", "synthetic", "--image-size", "0"]).contains("1 to 4096"));
}

#[test]
fn an_exported_network_is_counted_as_the_network_itself() {
    let here = here();
    let macs = |model: &str| {
        let summary = json(here.path(), &["summary", model]);
        (summary["macs"].as_u64().unwrap(), summary["stages"].as_u64().unwrap())
    };
    let expected = macs("small-cifar_p4");
    for style in ["standard", "dense", "function"] {
        let file = format!("{style}.onnx");
        let exported = json(here.path(), &["export", "small-cifar_p4", "--style", style, "--output", &file]);
        assert_eq!(exported["model"], "small-cifar_p4", "{style}");
        assert_eq!(macs(&file), expected, "{style}");
    }
    assert!(failure(here.path(), 1, &["summary", "missing.onnx"]).contains("missing.onnx"));
    std::fs::write(here.path().join("broken.onnx"), [8, 255, 255]).unwrap();
    assert!(failure(here.path(), 1, &["summary", "broken.onnx"]).contains("broken.onnx"));
}

#[test]
fn a_run_that_cannot_be_done_is_2_and_leaves_nothing() {
    let here = here();
    let few = ["--limit-train", "64", "--batch-size", "128", "--out", "run"];
    for command in [&["train", "--model", "small-cifar"][..], &["compare", "--variants", "standard,p4"]] {
        let error = failure(here.path(), 2, &[command, &few].concat());
        assert!(error.contains("64 training images do not fill one batch of 128"), "{command:?}: {error}");
    }
    let error = failure(here.path(), 2, &["train", "--model", "vgg16", "--out", "run"]);
    assert!(error.contains("vgg16 does not take images of 3×32×32"), "{error}");
    let error = failure(here.path(), 2, &["train", "--model", "small-cifar", "--cutout", "32", "--out", "run"]);
    assert!(error.contains("--cutout 32 leaves nothing"), "{error}");
    let error = failure(here.path(), 2, &["compare", "--model", "small-cifar_pruned", "--out", "run"]);
    assert!(error.contains("is a variant already"), "{error}");
    for args in
        [&["eval", "small-cifar", "--data", "synthetic"][..], &["convert", "small-cifar", "-p", "4", "-o", "run"]]
    {
        let error = failure(here.path(), 2, args);
        assert!(error.contains("small-cifar is a network's name"), "{error}");
    }
    for name in ["run.safetensors", "run.txt", "run"] {
        let error = failure(here.path(), 2, &["export", "small-cifar", "-o", name]);
        assert!(error.contains(&format!("has to end in .onnx, not {name}")), "{error}");
    }
    std::fs::write(here.path().join("notes.txt"), "no network").unwrap();
    let error = failure(here.path(), 1, &["summary", "notes.txt"]);
    assert!(error.contains("a model file (.safetensors) or an ONNX file (.onnx) is needed"), "{error}");
    std::fs::remove_file(here.path().join("notes.txt")).unwrap();
    let error = failure(here.path(), 2, &["data", "prepare", "synthetic", "--image-size", "64"]);
    assert!(error.contains("--image-size 64 is for image files"), "{error}");
    assert!(failure(here.path(), 1, &["export", "small-cifar", "-o", "no/run.onnx"]).contains("no/run.onnx"));
    #[cfg(not(feature = "cuda"))]
    {
        let error = failure(here.path(), 2, &["train", "--model", "small-cifar", "--device", "cuda", "--out", "run"]);
        assert!(error.contains("--features cuda"), "{error}");
    }
    let mut command = Command::cargo_bin("hetconv").unwrap();
    command.args(["train", "--model", "small-cifar", "--out", "run"]).current_dir(here.path());
    let output = command.env("HETCONV_ISA", "sse9").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(here.path()).unwrap().count(), 0);
}

#[test]
fn every_command_has_help_with_an_example() {
    let here = here();
    let help = stdout(&hetconv(here.path(), &["--help"]));
    let commands = [
        "compare",
        "list",
        "summary",
        "train",
        "eval",
        "predict",
        "run",
        "benchmark",
        "convert",
        "export",
        "prune",
        "data",
        "report",
        "reproduce",
        "checks",
    ];
    for command in commands {
        assert!(help.contains(&format!("\n  {command} ")), "{command} in {help}");
    }
    let all = commands.iter().map(|command| vec![*command]);
    for command in all.chain(["list", "prepare", "fetch"].map(|sub| vec!["data", sub])) {
        let output = hetconv(here.path(), &[command.clone(), vec!["--help"]].concat());
        let text = stdout(&output);
        assert!(output.status.success() && text.contains("Example"), "{command:?}: {text}");
        assert!(text.contains(&format!("hetconv {}", command.join(" "))), "{command:?}: {text}");
        assert!(text.contains("--format") && text.contains("--threads"), "{command:?}: {text}");
    }
}

/// A model file of a small network with fresh weights.
fn model_file(path: &Path) -> ModelFile {
    let graph = zoo::build(&"small-cifar_p4".parse().unwrap(), 10).unwrap();
    let weights = Weights::init(&graph, 1).unwrap();
    let classes = (0..10).map(|i| format!("class {i}")).collect();
    let file = ModelFile { graph, weights, classes, normalisation: Normalisation::identity(3) };
    file.save(path).unwrap();
    file
}

#[test]
fn summary_reads_model_files() {
    let here = here();
    model_file(&here.path().join("net.safetensors"));
    let of_file = json(here.path(), &["summary", "net.safetensors"]);
    assert_eq!(of_file, json(here.path(), &["summary", "small-cifar_p4"]));
    let error = failure(here.path(), 2, &["summary", "net.safetensors", "--input", "1,3,4,0"]);
    assert!(error.contains("small-cifar_p4 does not take images of 3×4×0"), "{error}");
}

/// Asserts that an object has these keys and no others.
#[track_caller]
fn assert_keys(object: &Value, keys: &str) {
    let mut wanted: Vec<&str> = keys.split(", ").collect();
    wanted.sort_unstable();
    let mut found: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, wanted);
}

#[test]
fn json_has_the_agreed_keys() {
    let here = here();
    let summary = json(here.path(), &["summary", "vgg16-cifar_p4"]);
    assert_keys(&summary, "model, input, params, macs, flops, macs_standard, macs_reduction_percent, stages, layers");
    for layer in summary["layers"].as_array().unwrap() {
        assert_keys(
            layer,
            "name, op, kind, kernel, in_channels, out_channels, out_height, out_width, parts, params, macs, stages, \
             algorithm",
        );
    }
    let mut file = model_file(&here.path().join("net.safetensors"));
    file.classes.clear();
    file.save(&here.path().join("net.safetensors")).unwrap();
    let exact = json(here.path(), &["eval", "net.safetensors", "--data", "synthetic"]);
    assert_keys(&exact, "model, top1, top5, loss, images, seconds");
    // Another algorithm, another rounding, but the same network.
    let fast = json(here.path(), &["eval", "net.safetensors", "--data", "synthetic", "--fast"]);
    let apart = fast["loss"].as_f64().unwrap() - exact["loss"].as_f64().unwrap();
    assert!(apart.abs() < 1e-4, "{fast} {exact}");
    image_file(&here.path().join("image.bmp"));
    let predicted = json(here.path(), &["predict", "net.safetensors", "image.bmp"]);
    assert_keys(&predicted[0], "image, classes");
    assert_keys(&predicted[0]["classes"][0], "label, probability");
}

#[test]
fn hostile_model_files_fail_by_name() {
    let here = here();
    let path = here.path().join("net.safetensors");
    model_file(&path);
    let whole = std::fs::read(&path).unwrap();
    let commands: [&[&str]; 3] = [
        &["summary", "net.safetensors"],
        &["eval", "net.safetensors", "--data", "synthetic"],
        &["predict", "net.safetensors", "cat.png"],
    ];
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let stated = b"\\\"format\\\":1";
    let at = whole.windows(stated.len()).position(|bytes| bytes == stated).expect("the format version in the header");
    let mut version = whole.clone();
    version[at + stated.len() - 1] = b'9';
    for (fault, bytes) in [
        ("not a safetensors file", whole[..whole.len() / 2].to_vec()),
        ("not a safetensors file", lying),
        ("not a safetensors file", b"GIF89a".to_vec()),
        ("format version 9", version),
    ] {
        std::fs::write(&path, bytes).unwrap();
        for command in commands {
            let error = failure(here.path(), 1, command);
            assert!(error.contains("net.safetensors") && error.contains(fault), "{command:?}: {error}");
            assert_eq!(error.lines().count(), 1, "one line an error: {error}");
        }
    }
    std::fs::remove_file(&path).unwrap();
    assert!(failure(here.path(), 1, commands[0]).contains("net.safetensors"));
}

#[test]
fn data_sets_are_described() {
    let here = here();
    let list = json(here.path(), &["data", "list"]);
    let entry = |name: &str| list.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap().clone();
    assert_eq!(entry("synthetic")["present"], true);
    assert_eq!(entry("cifar10")["present"], false);
    assert!(entry("cifar10")["looked"].as_array().unwrap().len() > 1);
    let prepared = json(here.path(), &["data", "prepare", "synthetic"]);
    assert_eq!((&prepared["train"]["images"], &prepared["test"]["images"]), (&8000.into(), &2000.into()));
    assert_eq!(prepared["image"], serde_json::json!([32, 32, 3]));
    assert_eq!(prepared["classes"].as_array().unwrap().len(), 10);
    assert_eq!(prepared["train"]["per_class"][9], 800);
    assert_eq!(prepared["normalisation"]["mean"].as_array().unwrap().len(), 3);
    assert_eq!(prepared["train"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(json(here.path(), &["data", "fetch", "synthetic"])["name"], "synthetic");
    let error = failure(here.path(), 1, &["data", "fetch", "cifar10"]);
    assert!(error.contains("cifar10 is not here") && error.contains("cifar-10-binary.tar.gz"), "{error}");
    let error = failure(here.path(), 1, &["train", "--model", "small-cifar", "--data", "cifar10"]);
    assert!(error.contains("cifar10") && error.contains("to get it"), "{error}");
    assert!(!here.path().join("runs").exists(), "nothing is begun without data");
}

#[test]
fn checks_measure_this_machine() {
    let here = here();
    let checks = json(here.path(), &["checks", "--threads", "1"]);
    assert_eq!(checks["threads"], 1);
    assert!(checks["isas"].as_array().unwrap().contains(&checks["isa"]));
    // The workspace's, or the package's own.
    let folders = [concat!(env!("CARGO_MANIFEST_DIR"), "/../.."), env!("CARGO_MANIFEST_DIR")];
    let lock = folders.iter().find_map(|folder| std::fs::read_to_string(Path::new(folder).join("Cargo.lock")).ok());
    let lock = lock.expect("Cargo.lock");
    let burn = format!("name = \"burn\"\nversion = {}\n", checks["versions"]["burn"]);
    assert!(lock.contains(&burn), "{burn}");
    for rate in ["fma_peak_gflops", "fma_peak_all_threads_gflops", "memory_bandwidth_gb_per_s"] {
        assert!(checks[rate].as_f64().unwrap() > 0.1, "{rate}");
    }
    let mut command = Command::cargo_bin("hetconv").unwrap();
    let output = command.arg("checks").env("HETCONV_ISA", "sse9").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("sse9"));
}

/// Settings that take a second or two.
const TINY: [&str; 8] = ["--epochs", "2", "--limit-train", "64", "--batch-size", "32", "--threads", "2"];

fn tiny<'a>(args: &[&'a str]) -> Vec<&'a str> {
    args.iter().copied().chain(TINY).collect()
}

#[test]
fn a_run_leaves_its_files_and_can_be_used() {
    let here = here();
    let train = tiny(&["train", "--model", "small-cifar_p4", "--out", "run", "--seed", "3"]);
    let summary = json(here.path(), &train);
    assert_eq!((&summary["model"], &summary["epochs"]), (&"small-cifar_p4".into(), &2.into()));
    for file in ["config.toml", "metrics.csv", "summary.json", "model.safetensors", "checkpoints"] {
        assert!(here.path().join("run").join(file).exists(), "{file}");
    }
    let error = failure(here.path(), 1, &train);
    assert!(error.contains("already holds a run"), "{error}");
    let error = failure(here.path(), 2, &["train", "--resume", "--out", "run", "--epochs", "3"]);
    assert!(error.contains("--epochs 3") && error.contains("says 2"), "{error}");
    let again = json(here.path(), &["train", "--resume", "--out", "run"]);
    assert_eq!(again["eval_top1"], summary["eval_top1"]);

    let found = json(here.path(), &["eval", "run/model.safetensors", "--data", "synthetic"]);
    assert_eq!((&found["model"], &found["images"]), (&"small-cifar_p4".into(), &2000.into()));
    assert_eq!(found["top1"], summary["eval_top1"]);

    image_file(&here.path().join("image.bmp"));
    let found = json(here.path(), &["predict", "run/model.safetensors", "image.bmp", "--top", "10"]);
    let classes = found[0]["classes"].as_array().unwrap();
    let probabilities: Vec<f64> = classes.iter().map(|class| class["probability"].as_f64().unwrap()).collect();
    assert_eq!(probabilities.len(), 10);
    assert!(probabilities.is_sorted_by(|a, b| a >= b) && (probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(classes.iter().any(|class| class["label"] == "rings"));
    std::fs::write(here.path().join("letter.png"), "Dear network,").unwrap();
    let error = failure(here.path(), 1, &["predict", "run/model.safetensors", "letter.png"]);
    assert!(error.contains("letter.png is not a readable image"), "{error}");

    let written = json(here.path(), &["report", "run", "--out", "page.html"]);
    assert_eq!(written["runs"], 1);
    assert!(std::fs::read_to_string(here.path().join("page.html")).unwrap().contains("small-cifar"));
    assert!(failure(here.path(), 1, &["report", "run/checkpoints"]).contains("no finished run"));
}

#[test]
fn a_network_that_overflows_predicts_nothing() {
    let here = here();
    let path = here.path().join("net.safetensors");
    let mut file = model_file(&path);
    file.classes.clear();
    let weight = file.weights.get_mut("conv2.center").unwrap();
    weight.data.iter_mut().for_each(|value| *value = 1e38);
    file.save(&path).unwrap();
    image_file(&here.path().join("image.bmp"));
    for args in [&["predict", "net.safetensors", "image.bmp"][..], &["eval", "net.safetensors", "--data", "synthetic"]]
    {
        let error = failure(here.path(), 1, args);
        assert!(error.contains("its weights or the normalisation are too large"), "{error}");
    }
    // Nothing is made of a black image, however large the weights; which of several it is that is not black is said.
    let mut black = std::fs::read(here.path().join("image.bmp")).unwrap();
    black[54..].fill(0);
    std::fs::write(here.path().join("black.bmp"), black).unwrap();
    json(here.path(), &["predict", "net.safetensors", "black.bmp"]);
    let error = failure(here.path(), 1, &["predict", "net.safetensors", "black.bmp", "image.bmp"]);
    assert!(error.contains("image.bmp") && !error.contains("black.bmp"), "{error}");
}

#[test]
fn image_size_scales_image_files() {
    let here = here();
    for class in ["train/cat", "train/dog", "test/cat", "test/dog"] {
        let folder = here.path().join("photos").join(class);
        std::fs::create_dir_all(&folder).unwrap();
        image_file(&folder.join("image.bmp"));
    }
    let image = |args: &[&str]| json(here.path(), &[&["data", "prepare", "photos"], args].concat())["image"].clone();
    assert_eq!(image(&[]), serde_json::json!([32, 40, 3]));
    assert_eq!(image(&["--image-size", "16"]), serde_json::json!([16, 16, 3]));

    let small = ["train", "--model", "small-cifar_p4", "--data", "photos", "--out", "run", "--image-size", "16"];
    let train = [&small[..], &["--epochs", "1", "--batch-size", "2", "--threads", "2"]].concat();
    json(here.path(), &train);
    let config = std::fs::read_to_string(here.path().join("run/config.toml")).unwrap();
    assert!(config.lines().any(|line| line == "image_size = 16"), "{config}");
    let input = |model: &str| json(here.path(), &["summary", model])["input"].clone();
    assert_eq!(input("run/model.safetensors"), serde_json::json!([1, 3, 16, 16]));
    // A trained network's own size is used where it is tried.
    assert_eq!(json(here.path(), &["eval", "run/model.safetensors", "--data", "photos"])["images"], 2);

    let error = failure(here.path(), 2, &["train", "--resume", "--out", "run", "--image-size", "24"]);
    assert!(error.contains("--image-size 24") && error.contains("says 16"), "{error}");
}

/// Writes a BMP of 40×32 pixels, 24 bits each.
fn image_file(path: &Path) {
    let (width, height) = (40u32, 32u32);
    let pixels: Vec<u8> = (0..width * height).flat_map(|i| [(i % 251) as u8, (i % 7 * 30) as u8, 90]).collect();
    let mut bytes = b"BM".to_vec();
    for field in
        [54 + pixels.len() as u32, 0, 54, 40, width, height, 1 | 24 << 16, 0, pixels.len() as u32, 2835, 2835, 0, 0]
    {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(pixels);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn classes_must_be_those_of_the_training() {
    let here = here();
    model_file(&here.path().join("net.safetensors"));
    let error = failure(here.path(), 2, &["eval", "net.safetensors", "--data", "synthetic"]);
    assert!(error.contains("class 0") && error.contains("vertical stripes"), "{error}");
}

#[test]
fn compare_writes_table_and_report_and_keeps_finished_runs() {
    let here = here();
    let compare = tiny(&["compare", "--variants", "standard,p4,dwc_pwc", "--seeds", "1,2", "--out", "out"]);
    let compared = json(here.path(), &compare);
    let rows = compared["variants"].as_array().unwrap();
    let column = |key: &str| rows.iter().map(|row| row[key].clone()).collect::<Vec<_>>();
    assert_eq!(column("variant"), ["standard", "p4", "dwc_pwc"]);
    assert_eq!(column("seeds"), [2, 2, 2]);
    let macs: Vec<u64> = column("macs").iter().map(|macs| macs.as_u64().unwrap()).collect();
    assert_eq!(Some(macs[1]), json(here.path(), &["summary", "small-cifar_p4"])["macs"].as_u64());
    assert!(macs[0] > macs[1] && rows[1]["macs_reduction_percent"].as_f64().unwrap() > 50.0);
    assert!(rows.iter().all(|row| row["ms_per_image"].as_f64().unwrap() > 0.0));

    let mut csv = csv::Reader::from_path(here.path().join("out/compare.csv")).unwrap();
    let heads: Vec<&str> = csv.headers().unwrap().iter().collect();
    assert_eq!(
        heads.join(","),
        "variant,model,params,macs,flops,macs_reduction_percent,stages,top1,top1_spread,ms_per_image,train_seconds,\
         seeds,epochs,data,recipe"
    );
    assert_eq!(csv.records().count(), 3);
    let page = std::fs::read_to_string(here.path().join("out/report.html")).unwrap();
    assert!(["standard", "p4", "dwc_pwc"].iter().all(|label| page.contains(&format!(">{label}</text>"))));

    // One run's summary is taken away: that run goes on, the others are kept as they are.
    let run = |name: &str| here.path().join("out/runs").join(name);
    std::fs::remove_file(run("small-cifar_p4-seed2").join("summary.json")).unwrap();
    let output = hetconv(here.path(), &compare);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output).matches("already trained").count(), 5, "{}", stderr(&output));
    assert!(run("small-cifar_p4-seed2").join("summary.json").exists());
    let table = stdout(&output);
    assert!(table.contains("dwc_pwc") && table.contains("±") && table.contains("report.html"), "{table}");

    let other = [&compare[..], &["--lr", "0.01"]].concat();
    let error = failure(here.path(), 1, &other);
    assert!(error.contains("other settings"), "{error}");

    // Of other images, although as many and called the same.
    let summary = run("small-cifar_dwc_pwc-seed1").join("summary.json");
    let mut told: Value = serde_json::from_slice(&std::fs::read(&summary).unwrap()).unwrap();
    told["images"][1] = "0".into();
    std::fs::write(&summary, told.to_string()).unwrap();
    let error = failure(here.path(), 1, &compare);
    assert!(error.contains("as it is now"), "{error}");
}

#[test]
fn compare_takes_nobodys_place() {
    let here = here();
    for file in ["compare.csv", "report.html"] {
        let out = here.path().join(file.replace('.', "-"));
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join(file), "somebody's").unwrap();
        let error = failure(here.path(), 2, &tiny(&["compare", "--out", out.to_str().unwrap()]));
        assert!(error.contains(file) && error.contains("is there already"), "{error}");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1, "nothing was trained");
    }
}

#[test]
fn benchmark_measures_training_steps() {
    let here = here();
    let args = ["benchmark", "--training", "--model", "small-cifar_p4", "--batch", "8", "--steps", "3"];
    let found = json(here.path(), &args);
    let number = |key: &str| found[key].as_f64().unwrap_or_else(|| panic!("{key} in {found}"));
    assert_eq!((number("batch"), number("steps")), (8.0, 3.0));
    assert!(number("p10_ms") <= number("median_ms") && number("median_ms") <= number("p90_ms"));
    assert!(number("executed_macs") <= number("macs") && number("fraction_of_peak") > 0.0);
    for key in ["images_per_second", "gmacs_per_second", "fma_peak_gflops", "threads"] {
        assert!(number(key) > 0.0, "{key}");
    }
    assert!(found["isa"].is_string() && found["cpu"].is_string() && found.get("peak_memory_mib").is_some());

    model_file(&here.path().join("net.safetensors"));
    let of_file = ["benchmark", "--training", "--model", "net.safetensors", "--batch", "8", "--steps", "3"];
    let of_file = json(here.path(), &of_file);
    assert_eq!((&of_file["model"], &of_file["macs"]), (&"small-cifar_p4".into(), &found["macs"]));
}

#[test]
fn benchmark_measures_inference() {
    let here = here();
    let args = ["benchmark", "--model", "small-cifar_p4", "--batch", "3", "--steps", "4"];
    for more in [&[][..], &["--exact"], &["--tune"]] {
        let found = json(here.path(), &[&args[..], more].concat());
        assert_eq!(
            (&found["batch"], &found["steps"], &found["model"]),
            (&3.into(), &4.into(), &"small-cifar_p4".into())
        );
        assert_eq!(found["macs"], 3 * json(here.path(), &["summary", "small-cifar_p4"])["macs"].as_u64().unwrap());
        assert!(found["executed_macs"].as_u64() < found["macs"].as_u64() && found["median_ms"].as_f64() > Some(0.0));
    }
    assert!(failure(here.path(), 2, &[&args[..], &["--exact", "--tune"]].concat()).contains("--tune"));
    assert!(failure(here.path(), 2, &["benchmark", "--training", "--model", "resnet20", "--tune"]).contains("--tune"));
}

/// An `.npy` file of f32, as NumPy writes it.
fn npy(shape: &str, data: &[f32]) -> Vec<u8> {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    header.extend(std::iter::repeat_n(' ', 117 - header.len()));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[test]
fn run_writes_what_the_network_makes_of_an_array() {
    let here = here();
    model_file(&here.path().join("net.safetensors"));
    let data: Vec<f32> = (0..2 * 3 * 32 * 32).map(|i| (i % 23) as f32 / 11.0 - 1.0).collect();
    std::fs::write(here.path().join("x.npy"), npy("(2, 3, 32, 32)", &data)).unwrap();
    let args = ["run", "net.safetensors", "--input", "x.npy", "--output"];
    for (file, more) in [("exact.npy", &["--exact"][..]), ("fast.npy", &[])] {
        let found = json(here.path(), &[&args[..], &[file], more].concat());
        assert_eq!(found["outputs"][0]["shape"], serde_json::json!([2, 10]));
    }
    let read = |file: &str| -> Vec<f32> {
        let bytes = std::fs::read(here.path().join(file)).unwrap();
        bytes[128..].as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    let (exact, fast) = (read("exact.npy"), read("fast.npy"));
    assert_eq!(exact.len(), 20);
    assert!(exact[..10] != exact[10..]);
    let largest = exact.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    assert!(exact.iter().zip(&fast).all(|(exact, fast)| (exact - fast).abs() <= 1e-3 * largest), "{exact:?} {fast:?}");

    std::fs::write(here.path().join("small.npy"), npy("(1, 3, 16, 16)", &data[..768])).unwrap();
    let error = failure(here.path(), 2, &["run", "net.safetensors", "--input", "small.npy", "--output", "y.npy"]);
    assert!(error.contains("32"), "{error}");
    std::fs::write(here.path().join("short.npy"), npy("(2, 3, 32, 32)", &data[..5])).unwrap();
    let error = failure(here.path(), 1, &["run", "net.safetensors", "--input", "short.npy", "--output", "y.npy"]);
    assert!(error.contains("short.npy"), "{error}");
    assert!(!here.path().join("y.npy").exists());
}

#[test]
fn benchmark_measures_kernels() {
    let here = here();
    let found =
        json(here.path(), &["benchmark", "--kernels", "--shapes", "n16 32x32", "--parts", "1,4", "--threads", "1"]);
    let found = found.as_array().expect("an array");
    let of = |key: &str| found.iter().map(|one| one[key].to_string()).collect::<Vec<_>>();
    assert_eq!(of("direction"), ["\"forward\"", "\"grad_input\"", "\"grad_weight\""].repeat(2));
    assert_eq!(of("parts"), ["1", "1", "1", "4", "4", "4"]);
    assert_eq!(found[0]["kernel"], "standard");
    assert_eq!(found[3]["kernel"], "hetconv");
    // 32 images of 16 channels and filters, 32×32 pixels: nine taps, and of P = 4 a third.
    assert_eq!(found[0]["macs"], 32 * 9 * 16 * 16 * 32 * 32);
    assert_eq!(found[3]["macs"], 32 * 3 * 16 * 16 * 32 * 32);
    for one in found {
        assert_eq!((&one["shape"], &one["threads"]), (&"b32 m16 n16 32x32 k3 s1".into(), &1.into()));
        assert!(one["executed_macs"].as_u64() < one["macs"].as_u64(), "{one}");
        assert!(one["gflops"].as_f64() > Some(0.0) && one["fraction_of_peak"].as_f64() > Some(0.0), "{one}");
    }
    assert!(failure(here.path(), 2, &["benchmark", "--kernels", "--shapes", "n17"]).contains("n17"));
    assert!(failure(here.path(), 2, &["benchmark", "--kernels", "--training"]).contains("--training"));
    assert!(failure(here.path(), 2, &["benchmark", "--training"]).contains("--model"));
}
