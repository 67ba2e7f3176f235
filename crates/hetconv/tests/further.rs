//! Training the network of a file further: `train --from`.

mod command;

use std::path::Path;

use command::{failure, json, json_and_messages};
use hetconv::graph::{ConvKind, ModelFile, Op};
use serde_json::Value;

fn model(folder: &Path, file: &str) -> ModelFile {
    ModelFile::load(&folder.join(file)).unwrap()
}

const FEW: [&str; 2] = ["--limit-train", "256"];
const MANY: [&str; 4] = ["--limit-train", "2048", "--epochs", "2"];

/// A folder with a trained network in `whole`, and its HetConv form as `het.safetensors` and, with its batch-norms,
/// `het.onnx`.
fn converted() -> tempfile::TempDir {
    let here = tempfile::tempdir().unwrap();
    let folder = here.path();
    json(folder, &["train", "--model", "small-cifar", "--epochs", "3", "--limit-train", "4096", "--out", "whole"]);
    let whole = "whole/model.safetensors";
    json(folder, &["convert", whole, "-p", "2", "-o", "het.safetensors", "--calibrate", "synthetic"]);
    json(folder, &["export", whole, "--keep-batch-norm", "-o", "whole.onnx"]);
    json(folder, &["convert", "whole.onnx", "-p", "2", "-o", "het.onnx", "--calibrate", "synthetic"]);
    here
}

fn further<'a>(file: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--from", file, "--out", out], more].concat()
}

fn report<'a>(runs: &[&'a str]) -> Vec<&'a str> {
    [&["report"], runs, &["--no-timing", "--results", "kept", "--out", "page.html"]].concat()
}

#[test]
fn a_converted_network_is_trained_on_from_its_weights() {
    let here = converted();
    let folder = here.path();
    // At a rate of nearly nothing the weights stay what they were, and with them what the network knows.
    let still =
        json(folder, &further("het.safetensors", "still", &[&FEW[..], &["--epochs", "1", "--lr", "1e-9"]].concat()));
    let (before, after) = (model(folder, "het.safetensors"), model(folder, "still/model.safetensors"));
    assert_eq!((&before.graph, &before.normalisation), (&after.graph, &after.normalisation));
    for (name, tensor) in before.weights.iter().filter(|(name, _)| !name.contains("running")) {
        let moved = tensor.data.iter().zip(&after.weights.get(name).unwrap().data).map(|(a, b)| (a - b).abs());
        assert!(moved.fold(0.0, f32::max) < 1e-5, "{name}");
    }
    let top1 = |result: &Value| result["eval_top1"].as_f64().unwrap();
    assert!(top1(&still) > 0.3, "nothing of what it had learned is left: {still}");

    // At its own rate it learns, and a file of the other kind does as well.
    for (file, out) in [("het.safetensors", "a"), ("het.onnx", "b")] {
        let learned = json(folder, &further(file, out, &MANY));
        assert!(top1(&learned) > top1(&still) + 0.02, "{file}: {learned}");
        let after = model(folder, &format!("{out}/model.safetensors"));
        assert_eq!((&after.classes, &after.normalisation), (&before.classes, &before.normalisation), "{file}");
        let is_het = |op: &Op| matches!(op, Op::Conv2d { kind: ConvKind::Het(_), .. });
        assert_eq!(after.graph.nodes.iter().filter(|node| is_het(&node.op)).count(), 3, "{file}");
        let eval = json(folder, &["eval", &format!("{out}/model.safetensors"), "--data", "synthetic"])["top1"].as_f64();
        assert_eq!(eval, Some(top1(&learned)), "{file}");
    }

    // A stopped run goes on from its own checkpoint: with the same settings there is nothing left to do.
    let bytes = |out: &str| std::fs::read(folder.join(out).join("model.safetensors")).unwrap();
    let a = bytes("a");
    for name in ["model.safetensors", "summary.json"] {
        std::fs::remove_file(folder.join("a").join(name)).unwrap();
    }
    json(folder, &["train", "--resume", "--out", "a"]);
    assert!(bytes("a") == a);
    // A finished one makes a model again that was lost.
    std::fs::remove_file(folder.join("a/model.safetensors")).unwrap();
    json(folder, &["train", "--resume", "--out", "a"]);
    assert!(bytes("a") == a);
    json(folder, &further("het.safetensors", "one", &[&MANY[..], &["--threads", "1"]].concat()));
    assert!(bytes("one") == a, "threads change a bit");

    // Among results it is a run of its own, whatever the network is called, and what came before is not known.
    json(folder, &report(&["whole", "a", "b"]));
    let page = std::fs::read_to_string(folder.join("page.html")).unwrap();
    assert!(page.contains("trained on from het.safetensors") && page.contains("trained on from het.onnx"));
    let kept = std::fs::read_to_string(folder.join("kept/runs.csv")).unwrap();
    let lines: Vec<&str> = kept.lines().collect();
    assert_eq!(lines.len(), 4, "{kept}");
    assert!(lines.iter().any(|line| line.contains("hetconv train --from het.onnx --data synthetic")), "{kept}");
    let mut kept = csv::Reader::from_path(folder.join("kept/runs.csv")).unwrap();
    for line in kept.deserialize::<std::collections::BTreeMap<String, String>>().map(Result::unwrap) {
        assert_eq!(line["training_macs"].is_empty(), line["command"].contains("--from"), "{line:?}");
        let settings = [("synthetic-onecycle-e3-limit-train4096", "--model"), ("-from-het.", "--from")];
        let is_told = |(end, flag): &(&str, &str)| line["setting"].contains(end) && line["command"].contains(flag);
        assert!(settings.iter().any(is_told), "{line:?}");
        assert!(!line["setting"].contains("lr") && !line["setting"].contains("batch"), "{line:?}");
    }

    // Files of one name are told apart: two networks are not one with two seeds, and neither replaces the other.
    for parts in ["2", "4"] {
        let file = format!("p{parts}/het.onnx");
        std::fs::create_dir(folder.join(format!("p{parts}"))).unwrap();
        json(folder, &["convert", "whole.onnx", "-p", parts, "-o", &file]);
        json(folder, &further(&file, &format!("r{parts}"), &[&FEW[..], &["--epochs", "1"]].concat()));
    }
    json(folder, &report(&["r2", "r4"]));
    let page = std::fs::read_to_string(folder.join("page.html")).unwrap();
    assert!(page.contains("from p2/het.onnx") && page.contains("from p4/het.onnx"));
    assert_eq!(std::fs::read_to_string(folder.join("kept/runs.csv")).unwrap().lines().count(), 6);
    std::fs::remove_dir_all(folder.join("p2")).unwrap();
    json(folder, &["train", "--resume", "--out", "r2"]);
}

#[test]
fn without_batch_norms_a_network_is_trained_in_small_steps() {
    let here = converted();
    let folder = here.path();
    json(folder, &["export", "whole/model.safetensors", "-o", "folded.onnx"]);
    let epoch = [&FEW[..], &["--epochs", "1"]].concat();
    let (summary, said) = json_and_messages(folder, &further("folded.onnx", "run", &epoch));
    assert!(said.contains("no batch-norms") && said.contains("0.003"), "{said}");
    assert!(summary["eval_top1"].as_f64().unwrap() > 0.3, "nothing of what it had learned is left: {summary}");
    let (_, said) =
        json_and_messages(folder, &further("folded.onnx", "slow", &[&epoch[..], &["--lr", "0.001"]].concat()));
    assert!(!said.contains("batch-norms"), "{said}");
    let (_, said) = json_and_messages(folder, &further("het.onnx", "with", &epoch));
    assert!(!said.contains("batch-norms"), "{said}");
}

#[test]
fn what_a_run_cannot_begin_with_is_said() {
    let here = converted();
    let folder = here.path();
    let error = failure(folder, 2, &["train", "--from", "het.onnx"]);
    assert!(error.contains("--out"), "{error}");
    let error = failure(folder, 2, &further("het.onnx", "run", &["--model", "small-cifar"]));
    assert!(error.contains("--model"), "{error}");
    let error = failure(folder, 1, &further("none.onnx", "run", &[]));
    assert!(error.contains("none.onnx"), "{error}");
    let error = failure(folder, 2, &further("het.onnx", "run", &["--mean", "0.5,0.5", "--std", "1,1"]));
    assert!(error.contains("each of the 3 channels"), "{error}");
    let numbers = ["--mean", "0.5,0.5,0.5", "--std", "1,1,1"];
    let error = failure(folder, 2, &[&["train", "--model", "small-cifar", "--out", "run"][..], &numbers].concat());
    assert!(error.contains("--from"), "{error}");
    let mut other = model(folder, "het.safetensors");
    other.classes.reverse();
    other.save(&folder.join("other.safetensors")).unwrap();
    let error = failure(folder, 2, &further("other.safetensors", "run", &[]));
    assert!(error.contains("other classes"), "{error}");
    let error = failure(folder, 2, &["train", "--resume", "--out", "run"]);
    assert!(error.contains("--from"), "{error}");
    assert!(!folder.join("run").exists());

    // The file's own normalisation, another one, and a run that goes on.
    json(folder, &further("het.onnx", "run", &[&FEW[..], &["--epochs", "1"], &numbers].concat()));
    let normalisation = model(folder, "run/model.safetensors").normalisation;
    assert_eq!((&normalisation.mean, &normalisation.std), (&vec![0.5; 3], &vec![1.0; 3]));
    let resume = ["train", "--resume", "--out", "run"];
    json(folder, &[&resume[..], &numbers].concat());
    let others: [&[&str]; 3] =
        [&["--from", "het.safetensors"], &["--mean", "0.4,0.4,0.4", "--std", "1,1,1"], &["--model", "small-cifar"]];
    for more in others {
        let error = failure(folder, 2, &[&resume[..], more].concat());
        assert!(error.contains(more[0]), "{error}");
    }
}
