//! A run that is killed at any moment and resumed, or that has another number of threads, ends with the very same model.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use hetconv::train::{Checkpoint, Purpose, stream, uniform};

fn train(out: &Path, threads: &str, more: &[&str]) -> Command {
    train_network("small-cifar_p4", out, threads, more)
}

fn train_network(name: &str, out: &Path, threads: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hetconv"));
    command.args(["--threads", threads, "train", "--model", name, "--data", "synthetic"]);
    command.args(["--limit-train", "320", "--batch-size", "32", "--seed", "7"]);
    command.arg("--out").arg(out).args(more).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn finish(mut command: Command) -> Output {
    command.output().expect("the program starts")
}

fn model(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("model.safetensors")).expect("a model file")
}

/// Lines of metrics.csv without the two columns of time.
fn metrics(out: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(out.join("metrics.csv")).expect("metrics");
    text.lines().map(|line| line.rsplitn(3, ',').last().unwrap_or_default().to_owned()).collect()
}

/// The newest checkpoint of a run.
fn newest(out: &Path) -> Option<OsString> {
    let entries = std::fs::read_dir(out.join("checkpoints")).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok().map(|entry| entry.file_name()));
    names.filter(|name| name.to_string_lossy().starts_with("step-")).max()
}

/// Kills a run, and says whether it had not come to its end.
fn kill(mut run: Child) -> bool {
    let running = run.try_wait().expect("a child").is_none();
    run.kill().expect("a signal");
    run.wait().expect("a child");
    running
}

/// Lets a run go on until something is so.
fn wait(run: &mut Child, until: impl Fn() -> bool) {
    while !until() && run.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets a run go on until it has made a checkpoint, and a little longer.
fn kill_later(mut run: Child, out: &Path, extra: Duration) -> bool {
    let before = newest(out);
    wait(&mut run, || newest(out) != before);
    std::thread::sleep(extra);
    kill(run)
}

/// Trains three epochs at one go, and again with kills on the way; both must end with the same bytes.
fn killed_and_resumed(settings: &[&str], steps: u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    let once = [settings, &["--epochs", "3"]].concat();
    let done = finish(train(&whole, "2", &once));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let summary = std::fs::read(whole.join("summary.json")).expect("a summary");
    let summary: serde_json::Value = serde_json::from_slice(&summary).expect("JSON");
    assert_eq!(summary["steps"], steps);

    let broken = folder.path().join("broken");
    let more = [&once[..], &["--checkpoint-every", "2", "--resume"]].concat();
    let mut killed = 0;
    for extra in [0, 3, 11, 29, 47, 5, 17] {
        let run = train(&broken, "2", &more).spawn().expect("the program starts");
        killed += usize::from(kill_later(run, &broken, Duration::from_millis(extra)));
    }
    assert!(killed >= 3, "only {killed} runs were killed on the way");
    let done = finish(train(&broken, "1", &more));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(model(&whole) == model(&broken), "{killed} kills changed the model");
    assert_eq!(metrics(&whole), metrics(&broken));
    assert_eq!(metrics(&whole).len(), 4);
}

#[test]
fn killed_and_resumed_runs_end_with_the_same_bytes() {
    killed_and_resumed(&[], 30);
}

/// The same command, hearing signals that whoever runs the tests ignores, as background jobs do.
#[cfg(target_os = "linux")]
fn hearing(command: &Command) -> Command {
    let mut hearing = Command::new("env");
    hearing.args(["--default-signal=INT,HUP"]).arg(command.get_program()).args(command.get_args());
    hearing.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    hearing
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_asked_to_end_makes_a_checkpoint_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let [whole, broken] = ["whole", "broken"].map(|name| folder.path().join(name));
    assert!(finish(train(&whole, "2", &["--epochs", "3"])).status.success());
    // Nothing but the signal makes a checkpoint within an epoch.
    let more = ["--epochs", "3", "--resume"];
    let mut run = hearing(&train(&broken, "2", &more)).spawn().expect("the program starts");
    wait(&mut run, || broken.join("metrics.csv").exists());
    let asked = Command::new("kill").args(["-INT", &run.id().to_string()]).status().expect("kill");
    assert!(asked.success());
    let ended = run.wait_with_output().expect("a child");
    let error = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{error}");
    assert!(error.contains("stopping with a checkpoint") && error.contains("with --resume) goes on"), "{error}");
    assert!(newest(&broken).is_some(), "a checkpoint");
    assert!(!broken.join("model.safetensors").exists());
    assert!(finish(train(&broken, "2", &more)).status.success());
    assert!(model(&whole) == model(&broken));

    // A checkpoint stands for its network wherever a model file does.
    let judged = |file: &Path| {
        let mut eval = Command::new(env!("CARGO_BIN_EXE_hetconv"));
        eval.args(["--format", "json", "eval"]).arg(file).args(["--data", "synthetic"]);
        let found: serde_json::Value = serde_json::from_slice(&finish(eval).stdout).expect("JSON");
        [found["loss"].as_f64().expect("a loss"), found["top1"].as_f64().expect("an accuracy")]
    };
    let last = whole.join("checkpoints").join(newest(&whole).expect("a checkpoint"));
    assert_eq!(judged(&last), judged(&whole));
}

#[cfg(target_os = "linux")]
#[test]
fn a_closed_terminal_asks_twice_and_a_run_that_is_to_outlive_it_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let more = ["--epochs", "3"];
    let hang_up = |run: &mut Child, out: &Path| {
        wait(run, || out.join("metrics.csv").exists());
        for _ in 0..2 {
            assert!(Command::new("kill").args(["-HUP", &run.id().to_string()]).status().expect("kill").success());
        }
    };
    let out = folder.path().join("closed");
    let mut run = hearing(&train(&out, "2", &more)).spawn().expect("the program starts");
    hang_up(&mut run, &out);
    assert_eq!(run.wait().expect("a child").code(), Some(1));
    assert!(newest(&out).is_some(), "a checkpoint");

    let out = folder.path().join("nohup");
    let command = train(&out, "2", &more);
    let mut deaf = Command::new("sh");
    deaf.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    let mut run = deaf.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    hang_up(&mut run, &out);
    assert!(run.wait().expect("a child").success());
    assert!(out.join("model.safetensors").exists());
}

#[test]
fn so_do_those_that_accumulate_gradients_and_average_weights() {
    // Ten batches an epoch make three steps; the tenth is dropped, and the next epoch begins with its own first.
    killed_and_resumed(&["--accumulate", "3", "--ema", "0.7"], 9);
}

#[test]
fn runs_killed_at_any_moment_from_their_start_end_with_the_same_bytes() {
    let seed = std::env::var("HETCONV_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_micros() as u64
    });
    println!("HETCONV_TEST_SEED={seed}");
    let mut random = stream(seed, 0, 0, Purpose::Permutation);
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    let more = ["--epochs", "2", "--checkpoint-every", "3", "--resume"];
    let started = Instant::now();
    assert!(finish(train(&whole, "2", &more)).status.success());
    let took = started.elapsed();
    let mut killed = 0;
    for round in 0..4 {
        let broken = folder.path().join(format!("broken {round}"));
        let moments: Vec<f32> = (0..3).map(|_| 0.8 * uniform(&mut random)).collect();
        for &moment in &moments {
            let run = train(&broken, "2", &more).spawn().expect("the program starts");
            std::thread::sleep(took.mul_f32(moment));
            killed += usize::from(kill(run));
        }
        let done = finish(train(&broken, "2", &more));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert!(model(&whole) == model(&broken), "killed at {moments:?} of {took:?}");
        assert_eq!(metrics(&whole), metrics(&broken));
    }
    assert!(killed >= 4, "only {killed} runs were killed on the way");
}

#[test]
fn a_run_killed_before_its_first_checkpoint_begins_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    let more = ["--epochs", "1", "--resume"];
    assert!(finish(train(&whole, "2", &more)).status.success());
    let broken = folder.path().join("broken");
    let mut run = train(&broken, "2", &more).spawn().expect("the program starts");
    wait(&mut run, || broken.join("config.toml").exists());
    assert!(kill(run), "the run ended before it was killed");
    assert_eq!(newest(&broken), None);
    assert!(finish(train(&broken, "2", &more)).status.success());
    assert!(model(&whole) == model(&broken));
    assert_eq!(metrics(&whole), metrics(&broken));
}

/// The same command in a process whose files cannot grow beyond some KiB, which is what a full disk looks like.
#[cfg(unix)]
fn with_small_files(command: &Command) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"]);
    limited.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    limited
}

#[cfg(unix)]
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_good_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let more = ["--epochs", "3", "--checkpoint-every", "2", "--resume"];
    assert!(finish(train(&whole, "2", &more)).status.success());
    let run = train(&broken, "2", &more).spawn().expect("the program starts");
    assert!(kill_later(run, &broken, Duration::ZERO), "the run ended before it was killed");
    let checkpoints = || {
        let entries = std::fs::read_dir(broken.join("checkpoints")).expect("checkpoints");
        let mut files: Vec<(OsString, Vec<u8>)> = entries
            .map(|entry| entry.expect("an entry"))
            .map(|entry| (entry.file_name(), std::fs::read(entry.path()).expect("a checkpoint")))
            .collect();
        files.sort();
        files
    };
    let before = checkpoints();
    assert!(before.iter().any(|(_, bytes)| bytes.len() > 1 << 14), "checkpoints that fit the limit prove nothing");
    let done = finish(with_small_files(&train(&broken, "2", &more)));
    let error = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{error}");
    assert!(error.contains("checkpoints/step-") && error.contains("too large"), "{error}");
    assert!(checkpoints() == before, "nothing is lost, and nothing half-written is left");
    assert!(finish(train(&broken, "2", &more)).status.success());
    assert!(model(&whole) == model(&broken));
}

#[test]
fn threads_change_no_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let variants = ["", "_p4", "_p4_se", "_gwc4_pwc", "_dwc_pwc"].map(|variant| format!("small-cifar{variant}"));
    for name in variants.iter().map(String::as_str).chain(["resnet20_p4"]) {
        let run = |threads: &str| {
            let out = folder.path().join(name).join(threads);
            let done = finish(train_network(name, &out, threads, &["--epochs", "1"]));
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            model(&out)
        };
        assert!(run("1") == run("3"), "{name}: three threads give another model than one");
    }
}

#[test]
fn a_diverging_run_stops_and_keeps_its_last_good_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let done = finish(train(&out, "2", &["--epochs", "3", "--checkpoint-every", "1", "--lr", "1e9"]));
    let error = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{error}");
    assert!(error.contains("diverged") && error.contains("epoch 1, step "), "{error}");
    assert!(!out.join("model.safetensors").exists());
    let (path, checkpoint) =
        Checkpoint::latest(&out.join("checkpoints")).expect("readable checkpoints").expect("a checkpoint from before");
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert!(checkpoint.model.weights.iter().all(|(_, tensor)| tensor.data.iter().all(|v| v.is_finite())));
}

#[test]
fn a_run_whose_network_overflows_is_no_result() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hetconv"));
    command.args(["train", "--model", "small-cifar", "--data", "synthetic", "--epochs", "1", "--lr", "1e20"]);
    command.args(["--limit-train", "100", "--batch-size", "100", "--out"]).arg(&out).stderr(Stdio::piped());
    let done = finish(command);
    let error = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{error}");
    assert!(error.contains("diverged: the held-out loss is NaN in epoch 1, step 1"), "{error}");
    assert!(!out.join("summary.json").exists());
}

#[test]
fn a_folder_with_a_run_is_not_overwritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    assert!(finish(train(&out, "2", &["--epochs", "1"])).status.success());
    let before = model(&out);
    let again = finish(train(&out, "2", &["--epochs", "1"]));
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("already holds a run"));
    let other = finish(train(&out, "2", &["--epochs", "2", "--resume"]));
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&other.stderr).contains("config.toml says 1"));
    // What has come to its end stays as it was written, whoever asks for it again.
    let summary = std::fs::read(out.join("summary.json")).unwrap();
    assert!(finish(train(&out, "1", &["--epochs", "1", "--resume"])).status.success());
    assert!(std::fs::read(out.join("summary.json")).unwrap() == summary);
    assert!(model(&out) == before);
    // So does what is said of it when a model that was lost is made again.
    std::fs::remove_file(out.join("model.safetensors")).unwrap();
    assert!(finish(train(&out, "1", &["--epochs", "1", "--resume"])).status.success());
    assert!(std::fs::read(out.join("summary.json")).unwrap() == summary);
    assert!(model(&out) == before);
}

#[test]
fn a_folder_with_other_files_is_not_overwritten() {
    for (name, text) in [("config.toml", "theme = \"dark\"\n"), ("metrics.csv", "day,visitors\n1,2\n")] {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(name), text).unwrap();
        let done = finish(train(folder.path(), "1", &["--epochs", "1"]));
        assert_eq!(done.status.code(), Some(1));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(said.contains(name) && said.contains("no file of a run"), "{said}");
        assert_eq!(std::fs::read_to_string(folder.path().join(name)).unwrap(), text);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn nobody_has_to_listen() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut child = train(&out, "1", &["--epochs", "1"]).spawn().unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert!(!model(&out).is_empty());
}
