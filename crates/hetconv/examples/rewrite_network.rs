//! A network of one's own, and what becomes of it with HetConv.

use std::error::Error;

use hetconv::core::Conv2dGeometry;
use hetconv::graph::{GraphBuilder, RewriteOptions, Selection, Substitution, rewrite};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let mut b = GraphBuilder::new("mine");
    let x = b.input("input", [3, 64, 64]);
    let x = b.conv_bn_relu("stem", x, 32, Conv2dGeometry::same(3, 2));
    let x = b.conv_bn_relu("conv1", x, 64, Conv2dGeometry::same(3, 1));
    let x = b.conv_bn_relu("conv2", x, 128, Conv2dGeometry::same(3, 2));
    let x = b.global_avg_pool("pool", x);
    let x = b.flatten("flatten", x);
    let x = b.linear("classifier", x, 10, true);
    let standard = b.finish([x])?;

    // Every 3×3 convolution but the first, conv2 with a P of its own.
    let selection = Selection::default().with_parts(|name| name == "conv2", 8);
    let options = RewriteOptions { selection, ..RewriteOptions::new(Substitution::Het { parts: 4 }) };
    let (het, notes) = rewrite(&standard, &options)?;
    for note in notes {
        println!("{note}");
    }
    let (before, after) = (standard.cost()?, het.cost()?);
    println!("{} MACs in {} stages became {} in {}", before.macs, before.stages, after.macs, after.stages);
    assert!(after.macs < before.macs && after.stages == before.stages);
    Ok(())
}
