//! Any bytes are an error or a network that holds together, and never a panic.
//!
//! Half of the inputs are mutated as bytes, the other half as what they mean: see [`mutate`].
#![no_main]

use hetconv_onnx::{ConvertOptions, ExportOptions, ImportOptions, Selection, Style, convert, export, import};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

mod mutate;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    match mutate::mutate(&data[..size], seed) {
        Some(mutated) if mutated.len() <= max_size => {
            data[..mutated.len()].copy_from_slice(&mutated);
            mutated.len()
        }
        _ => fuzzer_mutate(data, size, max_size),
    }
});

fuzz_target!(|bytes: &[u8]| {
    let options = ImportOptions { image_size: Some([8, 8]), ..ImportOptions::default() };
    let _ = import(bytes, None, &ImportOptions { as_written: true, ..options.clone() });
    if let Ok(imported) = import(bytes, None, &options) {
        // What was read can be stored,
        imported.model.to_bytes().expect("an imported network is a model file");
        // and what can be written can be read.
        for style in [Style::Standard, Style::Dense, Style::Function] {
            let options = ExportOptions { style, ..ExportOptions::default() };
            if let Ok(onnx) = export(&imported.model, &options) {
                import(&onnx.bytes, None, &ImportOptions::default()).expect("an exported network is read");
            }
        }
    }
    if let Ok(converted) = convert(bytes, None, &ConvertOptions { selection: Selection::all(), ..ConvertOptions::new(2) }) {
        // It was an ONNX file, and still is one.
        if import(bytes, None, &options).is_ok() {
            import(&converted.bytes, None, &options).expect("a converted network is read");
        }
    }
});
