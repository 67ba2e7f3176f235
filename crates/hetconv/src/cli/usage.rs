//! Which errors are the person's way of asking, and which a run's failing.

use std::error::Error;
use std::path::PathBuf;

use hetconv::burn::ModuleError;
use hetconv::calibrate::CalibrateError;
use hetconv::graph::{GraphError, NameError, PruneError};
use hetconv::kernels::IsaError;
use hetconv::runtime::CompileError;
use hetconv::train::{ConfigError, DataError, LoaderError, TrainError};

use super::files::place;

/// Something asked for that cannot be meant; the message says what would be accepted.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Usage {}

/// 2 for bad usage, 1 for a failed run.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(is_bad_usage) { 2 } else { 1 }
}

fn is_bad_usage(cause: &(dyn Error + 'static)) -> bool {
    // What is inside a transparent error does not stand in the chain.
    match cause.downcast_ref() {
        Some(TrainError::Device(_) | TrainError::DoesNotFit { .. } | TrainError::Name(_)) => return true,
        Some(TrainError::Config(error)) => return is_bad_usage(error),
        Some(TrainError::Isa(error)) => return is_bad_usage(error),
        Some(TrainError::Graph(error)) => return is_bad_usage(error),
        Some(TrainError::Loader(error)) => return is_bad_usage(error),
        Some(TrainError::Module(error)) => return is_bad_usage(error),
        _ => {}
    }
    match cause.downcast_ref() {
        Some(CalibrateError::Isa(error)) => return is_bad_usage(error),
        Some(CalibrateError::Compile(error)) => return is_bad_usage(error),
        _ => {}
    }
    if let Some(ModuleError::Graph(error)) = cause.downcast_ref() {
        return is_bad_usage(error);
    }
    cause.is::<Usage>()
        || cause.is::<NameError>()
        || cause.is::<IsaError>()
        || matches!(cause.downcast_ref(), Some(ModuleError::Isa(_)))
        || matches!(cause.downcast_ref(), Some(CompileError::Isa(_)))
        || matches!(cause.downcast_ref(), Some(GraphError::Pruned { .. } | GraphError::NoClassifier { .. }))
        || matches!(
            cause.downcast_ref(),
            Some(
                PruneError::Ratio(_)
                    | PruneError::TooLittle { .. }
                    | PruneError::Nothing { .. }
                    | PruneError::Macs { .. }
            )
        )
        || matches!(cause.downcast_ref(), Some(DataError::UnknownName { .. } | DataError::ImageSize { .. }))
        || matches!(cause.downcast_ref(), Some(DataError::HoldOut { .. } | DataError::AlreadySplit { .. }))
        || matches!(cause.downcast_ref(), Some(ConfigError::Setting { .. }))
        || matches!(cause.downcast_ref(), Some(LoaderError::TooFewSamples { .. }))
}

/// Ends a command with a [`Usage`] error.
macro_rules! bad_usage {
    ($($message:tt)*) => {
        return Err($crate::cli::usage::Usage(format!($($message)*)).into())
    };
}
pub(in crate::cli) use bad_usage;

/// Whether files that will be written are none of those that are read, and each another one.
pub fn keep_apart<'a>(written: &[PathBuf], read: impl IntoIterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    // A pipe or a device may take several results, and nothing is replaced there.
    let places: Vec<(&PathBuf, PathBuf)> =
        written.iter().filter(|path| path.is_file() || !path.exists()).map(|path| (path, place(path))).collect();
    for path in read {
        if places.iter().any(|(_, written)| *written == place(path)) {
            bad_usage!("{} is read, and would be replaced; choose another --output", path.display());
        }
    }
    for (index, (path, written)) in places.iter().enumerate() {
        if places[..index].iter().any(|(_, other)| other == written) {
            bad_usage!("{} is named twice; each result needs an --output of its own", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hetconv::train::Device;

    #[test]
    fn what_cannot_be_meant_is_2_however_it_is_wrapped() {
        let isa = || IsaError::Unavailable { name: "avx512", available: "portable".to_owned() };
        let no_classifier =
            || GraphError::NoClassifier { name: "net".to_owned(), inputs: 2, outputs: "10 features".to_owned() };
        let few = || LoaderError::TooFewSamples { samples: 10, batch_size: 128 };
        let setting = ConfigError::Setting { setting: "epochs", value: "0".to_owned(), accepted: "at least 1" };
        let errors: Vec<anyhow::Error> = vec![
            Usage("no".to_owned()).into(),
            "resnet2O".parse::<hetconv::graph::ModelName>().unwrap_err().into(),
            isa().into(),
            ModuleError::Isa(isa()).into(),
            CompileError::Isa(isa()).into(),
            TrainError::Isa(isa()).into(),
            CalibrateError::Isa(isa()).into(),
            CalibrateError::Compile(CompileError::Isa(isa())).into(),
            TrainError::Module(ModuleError::Isa(isa())).into(),
            few().into(),
            TrainError::Loader(few()).into(),
            TrainError::Config(setting).into(),
            TrainError::Device(Device::Metal).into(),
            DataError::ImageSize { size: 0, limit: 4096 }.into(),
            PruneError::Ratio(2.0).into(),
            GraphError::Pruned { name: "resnet20_pruned".to_owned() }.into(),
            no_classifier().into(),
            ModuleError::Graph(no_classifier()).into(),
            TrainError::Graph(no_classifier()).into(),
            TrainError::Module(ModuleError::Graph(no_classifier())).into(),
            TrainError::Name("resnet2O".parse::<hetconv::graph::ModelName>().unwrap_err()).into(),
        ];
        for error in errors {
            assert_eq!(exit_code(&error.context("training failed")), 2);
        }
        let failed = TrainError::Loader(LoaderError::Failed("the disk is on fire".to_owned()));
        assert_eq!(exit_code(&failed.into()), 1);
        assert_eq!(exit_code(&anyhow::anyhow!("the moon is full")), 1);
    }
}
