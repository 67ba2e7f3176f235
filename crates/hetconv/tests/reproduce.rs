//! `hetconv reproduce`: counts, published figures, runs and where they come from.

mod command;
mod common;

use std::path::Path;

use command::{failure, hetconv, json, json_and_messages, stderr};
use common::Browser;
use serde_json::Value;

/// The rows of the one table or figure that was asked for.
#[track_caller]
fn rows(folder: &Path, args: &[&str]) -> Vec<Value> {
    let found = json(folder, &[&["reproduce"], args].concat());
    assert_eq!(found.as_array().unwrap().len(), 1);
    found[0]["rows"].as_array().unwrap().clone()
}

fn row<'a>(rows: &'a [Value], network: &str) -> &'a Value {
    rows.iter().find(|row| row["network"] == network).unwrap_or_else(|| panic!("{network} in {rows:?}"))
}

/// Ten classes of a few images.
fn images(folder: &Path) {
    for class in 0..10u8 {
        for (split, number) in [("train", 2), ("test", 1)] {
            let folder = folder.join(split).join(format!("class{class}"));
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..number {
                // A BMP of 32×32 pixels: headers of 54 bytes, then blue, green and red of each.
                let mut file = b"BM".to_vec();
                for word in [54 + 3072u32, 0, 54, 40, 32, 32, 1 | 24 << 16, 0, 3072, 2835, 2835, 0, 0] {
                    file.extend(word.to_le_bytes());
                }
                file.extend((0..3072u32).map(|p| (p * (u32::from(class) + 2) * 7 + i * 31) as u8));
                std::fs::write(folder.join(format!("{i}.bmp")), file).unwrap();
            }
        }
    }
}

#[test]
fn tables_without_results_count_and_quote() {
    let here = tempfile::tempdir().unwrap();
    let first = rows(here.path(), &["table1"]);
    let p4 = row(&first, "vgg16-cifar_p4");
    assert_eq!((&p4["macs"], &p4["stages"]), (&105_845_760.into(), &13.into()));
    assert_eq!((&p4["status"], &p4["top1"], &p4["ms_batch_1"]), (&"no run".into(), &Value::Null, &Value::Null));
    assert_eq!(p4["published"], "93.93 % [1]; 93.74 % [2]");
    assert_eq!(row(&first, "vgg16-cifar_pc")["published"], "");

    let second = rows(here.path(), &["table2"]);
    assert_eq!(row(&second, "vgg16-cifar, pruned")["status"], "no run");
    let sixth = rows(here.path(), &["table6"]);
    assert_eq!(row(&sixth, "NISP")["published"], "43.76 % fewer FLOPs [1]");
    assert_eq!(row(&sixth, "resnet34_p4")["status"], "not trained here");
    let percent = row(&sixth, "resnet34_p4")["macs_reduction_percent"].as_f64().unwrap();
    assert!((percent - 64.16).abs() < 0.01, "{percent}");

    let csv = std::fs::read_to_string(here.path().join("reproduced/table6.csv")).unwrap();
    assert!(csv.starts_with("table,network,params,macs,") && csv.lines().count() == 4, "{csv}");
    let svg = std::fs::read_to_string(here.path().join("reproduced/table6-layers.svg")).unwrap();
    assert!(svg.starts_with("<svg xmlns") && svg.contains("resnet34_p4"));
    assert!(!here.path().join("reproduced/table6-accuracy-macs.svg").exists(), "there is no accuracy to draw");
}

#[test]
fn figures_are_drawn() {
    let here = tempfile::tempdir().unwrap();
    let kernels = rows(here.path(), &["fig3", "--bank", "8,6,4"]);
    assert_eq!(kernels.len(), 48);
    for kernel in &kernels {
        let [filter, channel, size] = ["filter", "channel", "kernel"].map(|key| kernel[key].as_i64().unwrap());
        assert_eq!(size == 3, (channel - filter).rem_euclid(4) == 0, "{kernel}");
    }
    let forms = rows(here.path(), &["fig4"]);
    assert_eq!(forms.len(), 14);
    for form in &forms {
        let two = ["GWC", "DWC", "Inception"].iter().any(|name| form["form"].as_str().unwrap().contains(name));
        assert_eq!(form["stages"], if two { 2 } else { 1 }, "{form}");
        let equal = if form["form"] == "standard" { 3.0 } else { 1.0 };
        assert!((form["macs_ratio"].as_f64().unwrap() - equal).abs() < 0.04, "{form}");
        assert_eq!(form["ms"], Value::Null);
    }
    let speedups = rows(here.path(), &["fig5"]);
    assert_eq!(
        (&speedups[0]["theory"], &speedups[2]["parts"], &speedups[2]["theory"]),
        (&1.0.into(), &4.into(), &3.0.into())
    );
    assert!(here.path().join("reproduced/fig5-speedup.svg").exists());
}

#[test]
fn bad_usage_is_2_and_says_what_would_do() {
    let here = tempfile::tempdir().unwrap();
    for (args, said) in [
        (&["table9"][..], "did you mean `table"),
        (&["fig3", "--bank", "4,8"], "three numbers"),
        (&["table1", "--bank", "16,8,4"], "not asked for"),
        (&["fig3", "--measure"], "fig3 has none"),
        (&["fig3", "--bank", "4,8,5"], "P must be 1 to 4"),
        (&["fig3", "--bank", "400,8,4"], "at most 64"),
        (&["table1", "--results", "nowhere"], "no such folder"),
        (&["table1", "--run", "--time=-1"], "minutes"),
        (&["table1", "--epochs", "3"], "need --run"),
        (&["table5", "fig4", "--run"], "none of which is asked for"),
        (&["table1", "--seeds", "1,2"], "--run"),
    ] {
        let error = failure(here.path(), 2, &[&["reproduce"], args].concat());
        assert!(error.contains(said), "{args:?}: {error}");
    }
}

#[test]
fn runs_are_made_found_and_kept() {
    let here = tempfile::tempdir().unwrap();
    images(&here.path().join("images"));
    let settings = ["--data", "images", "--epochs", "1", "--batch-size", "8"];
    let run = |more: &[&str]| {
        json_and_messages(here.path(), &[&["reproduce", "table4", "--run"], &settings[..], more].concat())
    };

    let (found, said) = run(&["--time", "0"]);
    assert!(said.contains("time is up; left to train: mobilenet-cifar seed 0, mobilenet-cifar_p32 seed 0"), "{said}");
    assert!(found[0]["rows"].as_array().unwrap().iter().all(|row| row["status"] == "no run"));

    let (found, _) = run(&[]);
    let trained = found[0]["rows"].as_array().unwrap();
    let p32 = row(trained, "mobilenet-cifar_p32");
    assert_eq!((&p32["seeds"], &p32["epochs"], &p32["data"]), (&1.into(), &1.into(), &"images".into()));
    assert_eq!(p32["files"], "runs/reproduce/mobilenet-cifar_p32-s0-e1/summary.json");
    let names: Vec<&str> = found[0]["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    assert!(names.contains(&"reproduced/table4-accuracy-macs.svg"), "{names:?}");

    // A run that was cut short is told as what it is, and goes on.
    let summary = here.path().join("runs/reproduce/mobilenet-cifar_p32-s0-e1/summary.json");
    let kept = std::fs::read(&summary).unwrap();
    std::fs::remove_file(&summary).unwrap();
    assert_eq!(row(&rows(here.path(), &["table4"]), "mobilenet-cifar_p32")["status"], "1 of 1 epochs done");
    let (_, said) = run(&[]);
    assert!(said.contains("mobilenet-cifar_se seed 0: already trained"), "{said}");
    assert!(!said.contains("mobilenet-cifar_se seed 0 ("), "others are kept: {said}");
    let [before, after]: [Value; 2] =
        [kept, std::fs::read(&summary).unwrap()].map(|bytes| serde_json::from_slice(&bytes).unwrap());
    assert_eq!(before["eval_loss"], after["eval_loss"]);

    // What is kept in tables says the same, without the folders, and nothing of this machine's.
    let report = ["report", "runs/reproduce", "--results", "kept", "--no-timing"];
    assert_eq!(json(here.path(), &report)["runs"], 4);
    assert_eq!(json(here.path(), &report)["runs"], 4, "adding them again changes nothing");
    let lines = std::fs::read_to_string(here.path().join("kept/runs.csv")).unwrap();
    assert_eq!(lines.lines().count(), 5, "{lines}");
    assert!(lines.contains("hetconv train --model mobilenet-cifar_p32 --data images --recipe onecycle --epochs 1 --seed 0 --batch-size 8"), "{lines}");
    assert!(!lines.contains(&here.path().display().to_string()));
    let kept = rows(here.path(), &["table4", "--runs", "nowhere", "--results", "kept"]);
    for name in ["mobilenet-cifar", "mobilenet-cifar_p32"] {
        assert_eq!(row(&kept, name)["top1"], row(trained, name)["top1"], "{name}");
        assert!(row(&kept, name)["files"].as_str().unwrap().starts_with("kept/runs.csv:"), "{name}");
    }
    assert_eq!(std::fs::read_to_string(here.path().join("kept/epochs.csv")).unwrap().lines().count(), 5);
}

#[test]
fn what_is_trained_is_pruned_as_well() {
    let here = tempfile::tempdir().unwrap();
    images(&here.path().join("images"));
    let run = |more: &[&str]| {
        let settings = ["table2", "--run", "--data", "images", "--epochs", "1", "--batch-size", "8"];
        json_and_messages(here.path(), &[&["reproduce"], &settings[..], more].concat())
    };
    let (found, _) = run(&[]);
    let rows = found[0]["rows"].as_array().unwrap();
    for name in ["vgg16-cifar", "resnet56"] {
        let [whole, p4, pruned] = ["", "_p4", ", pruned"].map(|of| row(rows, &format!("{name}{of}")));
        assert_eq!(pruned["files"], format!("runs/reproduce/{name}_pruned-s0-e1/summary.json"));
        let [all, asked, left] = [whole, p4, pruned].map(|row| row["macs"].as_u64().unwrap());
        assert!(left <= asked && left > asked * 9 / 10, "{left} of {asked} MACs");
        // An image costs both networks three passes: the whole one before it is pruned, and what is left after.
        assert_eq!(pruned["training_macs"], 3 * 16 * (all + left));
    }
    let (_, said) = run(&["--time", "0"]);
    assert!(said.contains("vgg16-cifar_pruned seed 0: already trained") && !said.contains("left to train"), "{said}");

    // Cut short before its report, a run lacks that only, and its folder may be spelled otherwise.
    let report = here.path().join("runs/reproduce/resnet56_pruned-s0-e1/pruned.json");
    let kept = std::fs::read(&report).unwrap();
    std::fs::remove_file(&report).unwrap();
    let (_, said) = run(&["--runs", "./runs/reproduce"]);
    assert!(!said.contains("resnet56_pruned seed 0: already trained"), "{said}");
    assert_eq!(std::fs::read(&report).unwrap(), kept);
    let weights = here.path().join("runs/reproduce/resnet56-s0-e1/model.safetensors");
    std::fs::rename(&weights, weights.with_extension("kept")).unwrap();
    std::fs::remove_file(&report).unwrap();
    let settings = ["--data", "images", "--epochs", "1", "--batch-size", "8"];
    let refused = hetconv(here.path(), &[&["reproduce", "table2", "--run"], &settings[..]].concat());
    assert!(stderr(&refused).contains("without its weights"), "{}", stderr(&refused));
    std::fs::rename(weights.with_extension("kept"), &weights).unwrap();

    // Of a run that only a table tells of there are no weights to prune.
    let whole = ["runs/reproduce/vgg16-cifar-s0-e1", "runs/reproduce/resnet56-s0-e1"];
    json(here.path(), &[&["report"], &whole[..], &["--results", "kept", "--no-timing"]].concat());
    let (_, said) = run(&["--runs", "elsewhere", "--results", "kept", "--time", "0"]);
    assert!(said.contains("vgg16-cifar seed 0: trained once more"), "{said}");
    assert!(said.contains("vgg16-cifar seed 0, vgg16-cifar_pruned seed 0, resnet56 seed 0, resnet56_pruned"), "{said}");
}

#[test]
fn a_run_with_other_settings_is_never_taken_up() {
    let here = tempfile::tempdir().unwrap();
    images(&here.path().join("images"));
    let run = |lr: &str| {
        let settings = ["--data", "images", "--epochs", "1", "--batch-size", "8", "--lr", lr, "--time", "0"];
        hetconv(here.path(), &[&["reproduce", "table4", "--run"], &settings[..]].concat())
    };
    assert!(run("0.1").status.success());
    let folder = here.path().join("runs/reproduce/mobilenet-cifar-s0-e1");
    std::fs::create_dir_all(&folder).unwrap();
    let config = "model = \"mobilenet-cifar\"\ndata = \"images\"\nrecipe = \"onecycle\"\nepochs = 1\nbatch_size = 8\nlr = 0.2\nseed = 0\n";
    std::fs::write(folder.join("config.toml"), config).unwrap();
    let settings = ["--data", "images", "--epochs", "1", "--batch-size", "8", "--lr", "0.1"];
    let output = hetconv(here.path(), &[&["reproduce", "table4", "--run"], &settings[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("other settings"), "{}", stderr(&output));
}

#[test]
fn what_is_measured_is_kept_and_shown() {
    let here = tempfile::tempdir().unwrap();
    let measured = rows(here.path(), &["fig4", "--measure", "--threads", "1"]);
    assert!(!measured.is_empty() && measured.iter().all(|row| row["ms"].as_f64() > Some(0.0)), "{measured:?}");
    let lines = std::fs::read_to_string(here.path().join("reproduced/measurements.csv")).unwrap();
    let line = lines.lines().find(|line| line.starts_with("inference,8 × standard of 64@56,1,")).unwrap();
    assert!(line.ends_with(",hetconv reproduce fig4 --measure"), "{line}");
    assert_eq!(rows(here.path(), &["fig4"]), measured);
}

#[test]
fn the_page_of_everything_has_every_table_and_figure() {
    let here = tempfile::tempdir().unwrap();
    // The project's own results, or none where only the package is.
    let results = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/results"));
    let more: &[&str] = if results.is_dir() { &["--results", results.to_str().unwrap()] } else { &[] };
    let found = json(here.path(), &[&["reproduce", "all", "--html", "page.html"], more].concat());
    assert_eq!(found.as_array().unwrap().len(), 10);
    if results.is_dir() {
        let of = |table: usize, network: &str| row(found[table]["rows"].as_array().unwrap(), network).clone();
        let [standard, p4] = [of(0, "vgg16-cifar"), of(0, "vgg16-cifar_p4")];
        assert!([&standard, &p4].iter().all(|row| row["top1"].is_number() && row["files"].is_string()), "{p4}");
    }
    let path = here.path().join("page.html");
    let page = std::fs::read_to_string(&path).unwrap();
    for heading in ["Table 1: VGG-16 on CIFAR-10", "Table 7: ResNet-50 on ImageNet", "Figure 3: ", "Figure 5: "] {
        assert!(page.contains(&format!("<h2>{heading}")), "{heading}");
    }
    let Some(browser) = Browser::find() else { return };
    let dark = browser.dark_dom(&path, 500);
    assert_eq!(dark.console, "", "{}", dark.tail());
    assert!(browser.print(&path).starts_with(b"%PDF"));
    let seen = browser.dom(&path, 500);
    assert_eq!(seen.console, "", "{}", seen.tail());
    assert_eq!(seen.dom.matches("<figure>").count(), page.matches("<figure>").count());
    assert!(seen.dom.contains("<button type=\"button\">fewer</button>"), "tables sort");
}
