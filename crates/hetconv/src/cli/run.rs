//! `hetconv run`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use hetconv::runtime::{Options, Plan, Session, Team};
use serde::Serialize;

use super::give_memory_back;
use super::model::{self, Model, Size};
use super::npy::{self, Array};
use super::output::Output;
use super::usage::{bad_usage, keep_apart};

/// Run a network once on arrays from files
#[derive(clap::Args)]
#[command(after_help = "\
Arrays are NumPy's .npy files of f32: images, channels, height, width. Nothing is normalised: the network gets the numbers \
as they are. Where an ONNX file leaves height and width of its images open, they are those of the first array.

Examples:
  hetconv run runs/p4/model.safetensors --input x.npy --output y.npy
  hetconv run network.onnx --input x.npy --output y.npy
  hetconv run two_inputs.safetensors --input left=l.npy --input right=r.npy --output y.npy")]
pub struct Args {
    /// A model file, the folder of its run, or an ONNX file
    #[arg(value_parser = model::file_argument())]
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
    let given: Vec<(Option<&str>, &Path)> =
        args.input.iter().map(|input| named_file(input, args.input.len() == 1)).collect();
    let arrays = given.iter().map(|&(_, file)| file.to_owned()).collect::<Vec<_>>();
    keep_apart(&args.output, model::files_of(&args.file).iter().chain(&arrays))?;
    let mut arrays: Vec<Array> = given.iter().map(|(_, file)| npy::read(file)).collect::<Result<_>>()?;
    let size = match arrays.first().map(|array| array.shape.as_slice()) {
        Some(&[_, _, height, width]) => Size::IfOpen([height, width]),
        _ => Size::Own,
    };
    let opened = match args.file.to_str().map(|name| model::open(name, size)).transpose()? {
        Some(Model::File(opened)) => *opened,
        Some(Model::Name(name)) => bad_usage!("{name} is a network's name; a model file or an ONNX file is needed"),
        None => model::open_file(&args.file, size)?,
    };
    let file = opened.file;
    let names: Vec<&str> = file.graph.inputs().map(|(id, _)| file.graph.nodes[id].name.as_str()).collect();
    let given_names: Vec<Option<&str>> = given.iter().map(|&(name, _)| name).collect();
    let places = places(&given_names, &names)?;
    let arrays: Vec<Array> = places.iter().map(|&place| std::mem::take(&mut arrays[place])).collect();
    let batch = arrays.first().and_then(|array| array.shape.first()).copied().unwrap_or(0);
    if args.output.len() != file.graph.outputs.len() {
        bad_usage!("the network has {} outputs, but {} files were named", file.graph.outputs.len(), args.output.len());
    }
    let options = Options { batch: batch.max(1), exact: args.exact, ..Options::default() };
    let plan = Plan::compile_owned(&file.graph, file.weights, &options);
    let plan = Arc::new(plan.with_context(|| args.file.display().to_string())?);
    let inputs = names.iter().zip(plan.input_shapes());
    for ((array, place), (name, [channels, height, width])) in arrays.iter().zip(places).zip(inputs) {
        let (file, shape) = (given[place].1.display(), &array.shape);
        if batch == 0 || shape[..] != [batch, channels, height, width] {
            let least = match (batch, shape.len()) {
                (0, _) => "images: at least one".to_owned(),
                (_, 4) => format!("images: {batch}, as in the first array"),
                _ => "of four dimensions, for a single image, too".to_owned(),
            };
            bad_usage!(
                "{file} has the shape {shape:?}; the input {name:?} is (images, {channels}, {height}, {width}), {least}"
            );
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

/// `NAME=FILE` or `FILE`; where there is no other, a file may have `=` in its name.
fn named_file(given: &str, alone: bool) -> (Option<&str>, &Path) {
    match given.split_once('=') {
        Some((name, file)) if !(alone && Path::new(given).exists()) => (Some(name), Path::new(file)),
        _ => (None, Path::new(given)),
    }
}

/// Which of the given arrays, by their names if they have any, is for each of the network's inputs.
fn places(given: &[Option<&str>], names: &[&str]) -> Result<Vec<usize>> {
    if let ([None], [_]) = (given, names) {
        return Ok(vec![0]);
    }
    let find = |name: &&str| {
        let mut found = given.iter().enumerate().filter(|(_, given)| **given == Some(*name));
        match (found.next(), found.next()) {
            (Some((place, _)), None) => Ok(place),
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
    fn arrays_are_given_by_name_or_alone() {
        assert_eq!(named_file("x.npy", true), (None, Path::new("x.npy")));
        assert_eq!(named_file("a=x=y.npy", true), (Some("a"), Path::new("x=y.npy")));
        assert_eq!(places(&[None], &["a"]).unwrap(), [0]);
        assert_eq!(places(&[Some("a")], &["a"]).unwrap(), [0]);
        assert_eq!(places(&[Some("b"), Some("a")], &["a", "b"]).unwrap(), [1, 0]);
        let wrong: [(&[Option<&str>], &[&str]); 4] = [
            (&[None], &["a", "b"]),
            (&[None, None], &["a", "b"]),
            (&[Some("a"), Some("a")], &["a", "b"]),
            (&[Some("c")], &["a"]),
        ];
        for (given, names) in wrong {
            assert!(places(given, names).is_err(), "{given:?} for {names:?}");
        }
    }

    #[test]
    fn a_file_with_an_equals_sign_in_its_name_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a=x.npy");
        std::fs::write(&path, []).unwrap();
        let given = path.to_string_lossy();
        assert_eq!(named_file(&given, true), (None, path.as_path()));
        assert!(named_file(&given, false).0.is_some());
    }
}
