//! `hetconv list`

use anyhow::Result;
use hetconv::graph::zoo;

use super::output::{Output, table};

/// List the architectures and their variants
#[derive(clap::Args)]
#[command(after_help = "Example:\n  hetconv list --format json | head")]
pub struct Args {}

pub fn run(_: &Args, output: &Output) -> Result<()> {
    output.result(&zoo::known_names(), |_| text())
}

fn text() -> String {
    let mut architectures = table(&["ARCH", "classes", "description"], &["ARCH", "description"]);
    for known in zoo::architectures() {
        architectures.add_row([known.name, &known.classes.to_string(), known.description]);
    }
    let heads = ["NAME", "its convolutions with K > 1, all but the first"];
    let mut variants = table(&heads, &heads);
    for (name, meaning) in [
        ("ARCH", "standard"),
        ("ARCH_pP", "HetConv with P parts: K×K on a P-th of the channels, 1×1 on the others; P = 2, 4, 8, …"),
        ("ARCH_pc", "HetConv with P = M: one K×K kernel in each filter"),
        ("ARCH_gwcG_pwc", "grouped with G groups, then pointwise"),
        ("ARCH_dwc_pwc", "depthwise, then pointwise"),
        ("…_se", "any of these, with squeeze-and-excitation"),
    ] {
        variants.add_row([name, meaning]);
    }
    format!("{architectures}\n\n{variants}\n\nFor example vgg16-cifar_p4, resnet56_gwc4_pwc, vgg16-cifar_p8_se.")
}
