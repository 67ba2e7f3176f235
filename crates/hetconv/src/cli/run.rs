//! `hetconv run`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use hetconv::runtime::{Options, Plan, Session, Team};
use serde::Serialize;

use super::give_memory_back;
use super::model::{self, Model};
use super::npy::{self, Array};
use super::output::Output;
use super::usage::bad_usage;

/// Run a network once on arrays from files
#[derive(clap::Args)]
#[command(after_help = "\
Arrays are NumPy's .npy files of f32: images, channels, height, width. Nothing is normalised: the network gets the numbers
as they are.

Examples:
  hetconv run runs/p4/model.safetensors --input x.npy --output y.npy
  hetconv run two_inputs.safetensors --input left=l.npy --input right=r.npy --output y.npy")]
pub struct Args {
    /// The model file
    file: PathBuf,

    /// An array for each of the network's inputs, by its name if there are several
    #[arg(long, value_name = "[NAME=]FILE", required = true)]
    input: Vec<String>,

    /// Where the result is written; with several outputs, one file for each
    #[arg(long, value_name = "FILE", required = true)]
    output: Vec<PathBuf>,

    /// Leave out Winograd's algorithm, whose results differ by rounding
    #[arg(long)]
    exact: bool,
}

#[derive(Serialize)]
struct Written {
    model: String,
    outputs: Vec<OneOutput>,
}

#[derive(Serialize)]
struct OneOutput {
    file: String,
    shape: Vec<usize>,
}

pub fn run(args: &Args, output: &Output) -> Result<()> {
    give_memory_back();
    let Model::File(file) = model::open(&args.file.to_string_lossy())? else {
        bad_usage!("{} is a network's name; a model file is needed", args.file.display());
    };
    let file = *file;
    let batch = |arrays: &[Array]| arrays.first().and_then(|array| array.shape.first()).copied().unwrap_or(0);
    let names: Vec<&str> = {
        let inputs = file.graph.nodes.iter().filter(|node| matches!(node.op, hetconv::graph::Op::Input { .. }));
        inputs.map(|node| node.name.as_str()).collect()
    };
    let arrays: Vec<Array> = find_inputs(&args.input, &names)?.into_iter().map(npy::read).collect::<Result<_>>()?;
    if args.output.len() != file.graph.outputs.len() {
        bad_usage!("the network has {} outputs, but {} files were named", file.graph.outputs.len(), args.output.len());
    }
    let batch = batch(&arrays);
    let options = Options { batch: batch.max(1), exact: args.exact, ..Options::default() };
    let plan = Arc::new(Plan::compile_owned(&file.graph, file.weights, &options)?);
    for (array, [channels, height, width]) in arrays.iter().zip(plan.input_shapes()) {
        if batch == 0 || array.shape != [batch, channels, height, width] {
            bad_usage!("an array of shape {:?} for an input of (images, {channels}, {height}, {width})", array.shape);
        }
    }
    let mut session = Session::with_team(&plan, batch, &Arc::new(Team::new(rayon::current_num_threads())))?;
    let inputs: Vec<&[f32]> = arrays.iter().map(|array| array.data.as_slice()).collect();
    session.run_all(&inputs)?;
    let shapes = file.graph.shapes()?;
    let mut outputs = Vec::new();
    for (number, (path, &value)) in args.output.iter().zip(&file.graph.outputs).enumerate() {
        let shape = match shapes[value] {
            hetconv::graph::Shape::Image { channels, height, width } => vec![batch, channels, height, width],
            hetconv::graph::Shape::Features(features) => vec![batch, features],
        };
        npy::write(path, &Array { shape: shape.clone(), data: session.output(number).to_vec() })?;
        outputs.push(OneOutput { file: path.display().to_string(), shape });
    }
    output.result(&Written { model: file.graph.name, outputs }, |written| {
        let lines = written.outputs.iter().map(|one| format!("{}: {:?}", one.file, one.shape));
        lines.collect::<Vec<_>>().join("\n")
    })
}

/// The file for each of the network's inputs.
fn find_inputs<'a>(given: &'a [String], names: &[&str]) -> Result<Vec<&'a Path>> {
    if let ([one], [_]) = (given, names)
        && (!one.contains('=') || Path::new(one).exists())
    {
        return Ok(vec![Path::new(one)]);
    }
    let find = |name: &&str| {
        let mut found = given.iter().filter_map(|given| given.split_once('=')).filter(|(given, _)| given == name);
        match (found.next(), found.next()) {
            (Some((_, file)), None) => Ok(Path::new(file)),
            _ => bad_usage!("--input {name}=FILE is needed once; the inputs are {}", names.join(", ")),
        }
    };
    if given.len() != names.len() {
        bad_usage!("{} arrays for the inputs {}", given.len(), names.join(", "));
    }
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_found_by_name() {
        let given = |given: &[&str]| given.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
        let (one, two) = (given(&["x.npy"]), given(&["b=y.npy", "a=x.npy"]));
        assert_eq!(find_inputs(&one, &["a"]).unwrap(), [Path::new("x.npy")]);
        assert_eq!(find_inputs(&two, &["a", "b"]).unwrap(), [Path::new("x.npy"), Path::new("y.npy")]);
        assert_eq!(find_inputs(&given(&["a=x.npy"]), &["a"]).unwrap(), [Path::new("x.npy")]);
        for (wrong, names) in [(&["x.npy"][..], &["a", "b"][..]), (&["a=x", "a=y"], &["a", "b"]), (&["c=x"], &["a"])] {
            assert!(find_inputs(&given(wrong), names).is_err());
        }
    }
}
