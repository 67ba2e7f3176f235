//! Training on photos of any size, and pruning, through the command line.

mod command;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use command::{command, failure, hetconv, json, stderr};
use hetconv::graph::{ModelFile, Op};
use hetconv::onnx::proto::ModelProto;
use prost::Message;
use serde_json::Value;

fn here() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn bytes(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// A 24-bit BMP of coloured stripes.
fn bmp(path: &Path, width: u32, height: u32, seed: u32) {
    let row = (width * 3).next_multiple_of(4);
    let mut bytes = b"BM".to_vec();
    bytes.extend((54 + row * height).to_le_bytes());
    bytes.extend([0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0]);
    bytes.extend(width.to_le_bytes());
    bytes.extend(height.to_le_bytes());
    bytes.extend([1, 0, 24, 0]);
    bytes.extend([0; 24]);
    for y in 0..height {
        for x in 0..row {
            bytes.push((x * (seed + 1) + y * (7 * seed + 3) + 31 * seed) as u8);
        }
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Forty photos of different sizes in five class folders.
fn photos(folder: &Path) {
    for i in 0..40 {
        bmp(&folder.join(format!("photos/class{}/{i}.bmp", i % 5)), 40 + i, 80 - i, i);
    }
}

#[test]
fn photos_are_trained_on_evaluated_and_predicted() {
    let here = here();
    photos(here.path());
    let train = ["train", "--model", "small-cifar_p4", "--data", "photos", "--image-size", "32"];
    let sizes = ["--batch-size", "4", "--accumulate", "2", "--epochs", "2"];
    let error = failure(here.path(), 1, &[&train[..], &sizes, &["--out", "run"]].concat());
    assert!(error.contains("photos is no data set") && error.contains("--hold-out"), "{error}");
    assert!(!here.path().join("run").exists());

    let whole = [&train[..], &sizes, &["--hold-out", "20"]].concat();
    let summary = json(here.path(), &[&whole[..], &["--out", "run"]].concat());
    let number = |key: &str| summary[key].as_u64();
    // 32 images to learn from are four steps of two batches of four.
    assert_eq!((number("train_images"), number("eval_images"), number("steps")), (Some(32), Some(8), Some(2 * 4)));
    assert!(summary["eval_top1"].as_f64() <= summary["eval_top5"].as_f64());
    assert_eq!(summary["eval_top5"], 1.0, "there are five classes");

    let eval = json(here.path(), &["eval", "run/model.safetensors", "--data", "photos", "--hold-out", "20"]);
    assert_eq!((eval["images"].as_u64(), eval["top5"].as_f64()), (Some(8), Some(1.0)));
    assert!((eval["loss"].as_f64().unwrap() - summary["eval_loss"].as_f64().unwrap()).abs() < 1e-3, "{eval}");
    let seen = json(here.path(), &["predict", "run/model.safetensors", "photos/class3/3.bmp"]);
    assert_eq!(seen[0]["classes"].as_array().map(Vec::len), Some(5));
    let prepared = json(here.path(), &["data", "prepare", "photos", "--image-size", "32", "--hold-out", "20"]);
    assert_eq!((prepared["test"]["images"].as_u64(), prepared["memory_mib"].as_f64()), (Some(8), Some(0.0)));

    // Neither threads nor a kill change a bit.
    let one = [&["--threads", "1"], &whole[..], &["--out", "one"]].concat();
    assert!(hetconv(here.path(), &one).status.success());
    assert!(bytes(here.path().join("run/model.safetensors")) == bytes(here.path().join("one/model.safetensors")));
    let resumed = [&whole[..], &["--checkpoint-every", "1", "--resume", "--out", "resumed"]].concat();
    killed_and_resumed(here.path(), &resumed, "resumed");
    assert!(bytes(here.path().join("run/model.safetensors")) == bytes(here.path().join("resumed/model.safetensors")));

    // A pruned network is judged by no photo that the whole one learned from, and a size is for files only.
    let tiny = ["--batch-size", "8", "--epochs", "1"];
    let prune = |more: &[&'static str]| {
        [&["prune", "run/model.safetensors", "--data", "photos", "--ratio", "0.5", "--out", "pruned"], &tiny[..], more]
            .concat()
    };
    let error = failure(here.path(), 2, &prune(&["--hold-out", "30"]));
    assert!(error.contains("--hold-out 30") && error.contains("trained with 20"), "{error}");
    json(here.path(), &prune(&[]));
    let config = std::fs::read_to_string(here.path().join("pruned/config.toml")).unwrap();
    assert!(config.contains("hold_out = 20\n") && config.contains("image_size = 32\n"), "{config}");
    let error = failure(here.path(), 2, &["train", "--model", "small-cifar", "--image-size", "64", "--out", "sized"]);
    assert!(error.contains("--image-size 64 is for image files"), "{error}");

    // With one photo more, every fifth is another one: a run does not go on with them, and whoever judges by them is told.
    bmp(&here.path().join("photos/class0/00.bmp"), 50, 50, 7);
    std::fs::copy(here.path().join("run/model.safetensors"), here.path().join("moved.safetensors")).unwrap();
    let judged = |file: &str, data: &str| {
        let eval = hetconv(here.path(), &["eval", file, "--data", data, "--hold-out", "20"]);
        assert!(eval.status.success());
        String::from_utf8(eval.stderr).unwrap()
    };
    let warning = "photos has other images than when run/model.safetensors was trained";
    assert!(judged("run/model.safetensors", "photos").contains(warning));
    assert!(!judged("moved.safetensors", "photos").contains("other images"));
    std::fs::remove_file(here.path().join("run/model.safetensors")).unwrap();
    let error = failure(here.path(), 1, &[&whole[..], &["--resume", "--out", "run"]].concat());
    assert!(error.contains("other images or classes than photos has now"), "{error}");
    std::fs::remove_file(here.path().join("photos/class0/00.bmp")).unwrap();
    json(here.path(), &[&whole[..], &["--resume", "--out", "run"]].concat());

    // Images of one size are in memory while a network learns, and seen as photos by who judges it: they are the same.
    (0..20).for_each(|i| bmp(&here.path().join(format!("small/class{}/{i}.bmp", i % 2)), 32, 32, i));
    let small = ["train", "--model", "small-cifar", "--data", "small", "--hold-out", "20", "--out", "kept"];
    json(here.path(), &[&small[..], &tiny].concat());
    assert!(!judged("kept/model.safetensors", "small").contains("other images"));

    // A file that is no photo is named, by training as by `data prepare`.
    std::fs::write(here.path().join("photos/class1/1.bmp"), "no photo").unwrap();
    let error = failure(here.path(), 1, &[&whole[..], &["--out", "other"]].concat());
    assert!(error.contains("photos/class1/1.bmp is not a readable image"), "{error}");
}

#[test]
fn onnx_files_are_evaluated_and_asked_as_model_files_are() {
    let here = here();
    photos(here.path());
    let data = ["--data", "photos", "--hold-out", "20"];
    let train = [
        "train",
        "--model",
        "small-cifar_p4",
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--image-size",
        "32",
        "--out",
        "run",
    ];
    json(here.path(), &[&train[..], &data].concat());
    // Its own share of the images, which nobody has to repeat, and no other.
    let own = |more: &[&'static str]| [&["eval", "run/model.safetensors", "--data", "photos"], more].concat();
    assert_eq!(json(here.path(), &own(&[]))["loss"], json(here.path(), &own(&["--hold-out", "20"]))["loss"]);
    let error = failure(here.path(), 2, &own(&["--hold-out", "50"]));
    assert!(error.contains("trained with 20"), "{error}");
    json(here.path(), &["export", "run/model.safetensors", "-o", "run.onnx"]);
    let loss = |more: &[&str]| {
        let [a, b] = ["run/model.safetensors", "run.onnx"]
            .map(|file| json(here.path(), &[&["eval", file][..], &data, more].concat()));
        let [loss, other] = [&a, &b].map(|found| found["loss"].as_f64().unwrap());
        assert!((loss - other).abs() < 1e-4 * loss, "{a} {b}");
        assert_eq!((&a["top1"], &a["top5"], &a["images"]), (&b["top1"], &b["top5"], &b["images"]));
        loss
    };
    let otherwise = ["--mean", "0.1,0.2,0.3", "--std", "1,2,3"];
    let losses = [loss(&[]), loss(&otherwise)];
    assert_ne!(losses[0], losses[1]);
    // A network of ours goes by its layers; an ONNX file is for the size that it states.
    let larger = |file| [&["eval", file, "--image-size", "40"], &data[..]].concat();
    assert_ne!(json(here.path(), &larger("run/model.safetensors"))["loss"].as_f64(), Some(losses[0]));
    assert!(failure(here.path(), 2, &larger("run.onnx")).contains("for images of 32×32"));
    let photo = "photos/class3/3.bmp";
    let [a, b] = ["run/model.safetensors", "run.onnx"]
        .map(|file| json(here.path(), &["predict", file, photo, "--top", "1"])[0]["classes"][0]["label"].take());
    assert_eq!(a, b);
    // Of a file that does not say how pixels are normalised, it is said, and what is made of it does not say so either.
    json(here.path(), &["export", "small-cifar", "-o", "fresh.onnx"]);
    let mut foreign = ModelProto::decode(&*bytes(here.path().join("run.onnx"))).unwrap();
    foreign.metadata_props.clear();
    std::fs::write(here.path().join("foreign.onnx"), foreign.encode_to_vec()).unwrap();
    json(here.path(), &["export", "foreign.onnx", "-o", "again.onnx"]);
    let warned = |file, more: &[&str]| {
        stderr(&hetconv(here.path(), &[&["predict", file, photo], more].concat())).contains("--mean")
    };
    assert!(!warned("run.onnx", &[]) && !warned("foreign.onnx", &otherwise));
    assert!(["foreign.onnx", "again.onnx", "fresh.onnx"].iter().all(|file| warned(file, &[])));
    for (mean, std) in [("0", "1"), ("0,nan,0", "1,1,1"), ("0,0,0", "1,0,1"), ("0,0,0", "1,inf,1")] {
        let error = failure(here.path(), 2, &["predict", "fresh.onnx", photo, "--mean", mean, "--std", std]);
        assert!(error.contains("3 channels"), "{error}");
    }
}

/// Kills a run after its first checkpoint, and lets it go on.
fn killed_and_resumed(folder: &Path, args: &[&str], out: &str) {
    let checkpoints = folder.join(out).join("checkpoints");
    let has_one = || {
        let entries = std::fs::read_dir(&checkpoints).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
    };
    let mut run = command(folder, args).spawn().unwrap();
    while !has_one() && run.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(run.try_wait().unwrap().is_none(), "the run ended before it was killed");
    run.kill().unwrap();
    run.wait().unwrap();
    let done = hetconv(folder, args);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

const TINY: [&str; 6] = ["--limit-train", "160", "--batch-size", "32", "--epochs", "2"];

#[test]
fn a_pruned_network_is_trained_further() {
    let here = here();
    let macs_of = |name: &str| json(here.path(), &["summary", name])["macs"].as_u64().unwrap();
    let trained = json(here.path(), &[&["train", "--model", "small-cifar", "--out", "whole"], &TINY[..]].concat());
    let file = "whole/model.safetensors";
    let prune = [&["prune", file, "--match", "small-cifar_p4"], &TINY[..], &["--lr", "0.01"]].concat();
    let pruned = json(here.path(), &[&prune[..], &["--out", "pruned"]].concat());

    let (macs, asked) = (pruned["macs"].as_u64().unwrap(), macs_of("small-cifar_p4"));
    assert!(macs <= asked && macs > asked * 9 / 10, "{macs} of {asked}");
    assert_eq!((&pruned["macs_before"], &pruned["model"]), (&trained["macs"], &"small-cifar_pruned".into()));
    assert_eq!(pruned["top1_before"], trained["eval_top1"]);
    let cost = |part: &str, of: &str| pruned[part][of].as_f64().unwrap();
    assert_eq!(cost("training", "images"), 320.0);
    assert_eq!(cost("training", "macs"), 320.0 * 3.0 * trained["macs"].as_f64().unwrap());
    assert_eq!(cost("fine_tuning", "macs"), 320.0 * 3.0 * macs as f64);
    for of in ["seconds", "images", "macs"] {
        assert!((cost("total", of) - cost("training", of) - cost("fine_tuning", of)).abs() < 1e-9);
    }
    let run = here.path().join("pruned");
    assert_eq!(serde_json::from_slice::<Value>(&bytes(run.join("pruned.json"))).unwrap(), pruned);
    let model = ModelFile::load(&run.join("model.safetensors")).unwrap();
    assert_eq!((model.graph.cost().unwrap().macs, model.graph.name.as_str()), (macs, "small-cifar_pruned"));
    for layer in pruned["layers"].as_array().unwrap() {
        let node = &model.graph.nodes[model.graph.find(layer["name"].as_str().unwrap()).unwrap()];
        let Op::Conv2d { out_channels, .. } = node.op else { panic!("{node:?}") };
        assert_eq!(layer["kept"], out_channels);
    }
    // What other commands make of it.
    let summary = json(here.path(), &["summary", "pruned/model.safetensors"]);
    assert_eq!((&summary["macs"], &summary["macs_standard"]), (&pruned["macs"], &trained["macs"]));
    let eval = json(here.path(), &["eval", "pruned/model.safetensors", "--data", "synthetic"]);
    assert!((eval["loss"].as_f64().unwrap() - last_loss(&run)).abs() < 1e-3, "{eval}");

    // A run that was killed ends with the same bytes, and its table is for people.
    let again = [&prune[..], &["--checkpoint-every", "1", "--resume", "--out", "again"]].concat();
    killed_and_resumed(here.path(), &again, "again");
    assert!(bytes(run.join("model.safetensors")) == bytes(here.path().join("again/model.safetensors")));
    let shown = hetconv(here.path(), &["prune", "--resume", "--out", "again"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(["fine-tuning", "conv4", "fewer", "Before: top-1"].iter().all(|text| shown.contains(text)), "{shown}");

    // Pruned once more, all three trainings count.
    let more = [&["prune", "pruned/model.safetensors", "--ratio", "0.2", "--out", "more"], &TINY[..]].concat();
    let more = json(here.path(), &more);
    assert_eq!(more["total"]["images"], 3 * 320);

    // Among results each is a run of its own, with all its training and the command that made it.
    let report =
        ["report", "whole", "pruned", "more", "./more", "--no-timing", "--results", "kept", "--out", "page.html"];
    assert_eq!(json(here.path(), &report)["runs"], 3, "each once");
    let page = std::fs::read_to_string(here.path().join("page.html")).unwrap();
    assert!(page.contains("pruned, recipe finetune"), "{page}");
    let has_spread = page.split("± ").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    assert!(!has_spread, "a mean over different networks");
    let mut kept = csv::Reader::from_path(here.path().join("kept/runs.csv")).unwrap();
    let kept: Vec<BTreeMap<String, String>> = kept.deserialize().map(Result::unwrap).collect();
    let commands = [
        "hetconv train --model small-cifar --data synthetic --recipe onecycle --epochs 2 --seed 0".to_owned(),
        format!("hetconv prune whole/model.safetensors --data synthetic --recipe finetune --epochs 2 --seed 0 --batch-size 32 --lr 0.01 --limit-train 160 --macs {asked}"),
        "hetconv prune pruned/model.safetensors --data synthetic --recipe finetune --epochs 2 --seed 0 --batch-size 32 --limit-train 160 --ratio 0.2".to_owned(),
    ];
    let totals =
        [&trained["macs"], &pruned["total"]["macs"], &more["total"]["macs"]].map(|macs| macs.as_u64().unwrap());
    for (command, total) in commands.iter().zip([totals[0] * 3 * 320, totals[1], totals[2]]) {
        let of_command = |line: &&BTreeMap<String, String>| line["command"].starts_with(command.as_str());
        let line = kept.iter().find(of_command).unwrap_or_else(|| panic!("{command} in {kept:?}"));
        assert_eq!(line["training_macs"], total.to_string(), "{command}");
    }
}

#[test]
fn only_runs_of_one_setting_are_compared_in_words() {
    let here = here();
    for (network, epochs, out) in
        [("small-cifar", "1", "standard"), ("small-cifar_p4", "1", "p4"), ("small-cifar_p4", "2", "longer")]
    {
        let settings = ["--epochs", epochs, "--limit-train", "64", "--batch-size", "32", "--out", out];
        json(here.path(), &[&["train", "--model", network][..], &settings].concat());
    }
    let has_words = |run: &str| {
        json(here.path(), &["report", "standard", run, "--no-timing", "--out", "page.html"]);
        std::fs::read_to_string(here.path().join("page.html")).unwrap().contains("fewer MACs, no extra stage")
    };
    assert!(has_words("p4") && !has_words("longer"));
}

fn last_loss(run: &Path) -> f64 {
    let summary: Value = serde_json::from_slice(&bytes(run.join("summary.json"))).unwrap();
    summary["eval_loss"].as_f64().unwrap()
}

#[test]
fn what_cannot_be_pruned_is_bad_usage() {
    let here = here();
    let tiny = [&["train", "--model", "small-cifar", "--out", "whole"], &TINY[..]].concat();
    assert!(hetconv(here.path(), &tiny).status.success());
    let file = "whole/model.safetensors";
    let prune = |more: &[&str]| failure(here.path(), 2, &[&["prune", file, "--out", "run"], more].concat());
    assert!(prune(&[]).contains("--ratio"));
    assert!(prune(&["--ratio", "0.5", "--macs", "1M"]).contains("--macs"));
    assert!(prune(&["--ratio", "1.5"]).contains("more than 0 and less than 1"));
    assert!(prune(&["--macs", "10M"]).contains("cannot be reached"));
    assert!(prune(&["--macs", "much"]).contains("105.8M"));
    assert!(prune(&["--match", "resnet57"]).contains("resnet56"));
    assert!(!here.path().join("run").exists());
    let error = failure(here.path(), 2, &["train", "--model", "small-cifar_pruned"]);
    assert!(error.contains("exists in files"), "{error}");
    let error = failure(here.path(), 2, &["prune", "--resume", "--out", "whole"]);
    assert!(error.contains("hetconv train --resume"), "{error}");
    assert!(
        hetconv(here.path(), &[&["prune", file, "--ratio", "0.5", "--out", "run"], &TINY[..]].concat())
            .status
            .success()
    );
    let error = failure(here.path(), 2, &["train", "--resume", "--out", "run"]);
    assert!(error.contains("hetconv prune --resume"), "{error}");
    let error = failure(here.path(), 2, &["prune", file, "--ratio", "0.6", "--out", "run", "--resume"]);
    assert!(error.contains("--ratio 0.6") && error.contains("says 0.5"), "{error}");
}

#[test]
fn a_network_of_any_name_is_pruned() {
    let here = here();
    let train = [&["train", "--model", "small-cifar", "--out", "whole"], &TINY[..]].concat();
    assert!(hetconv(here.path(), &train).status.success());
    // Two of its convolutions become HetConv; the others can be pruned.
    let convert = ["convert", "whole/model.safetensors", "-p", "4", "--exclude", "conv2", "-o", "p4.safetensors"];
    assert!(hetconv(here.path(), &convert).status.success());
    let prune = [&["prune", "p4.safetensors", "--ratio", "0.5", "--out", "run"], &TINY[..]].concat();
    let first = hetconv(here.path(), &prune);
    assert!(first.status.success(), "{}", stderr(&first));
    let again = hetconv(here.path(), &["prune", "--resume", "--out", "run"]);
    assert!(again.status.success(), "{}", stderr(&again));
    let report = hetconv(here.path(), &["report", "run", "whole", "--no-timing", "--out", "page.html"]);
    assert!(report.status.success(), "{}", stderr(&report));
}
