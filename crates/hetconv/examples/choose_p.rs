//! What each number of parts leaves of a network.

use std::error::Error;

use hetconv::graph::{ModelName, zoo};
use hetconv::units::count;

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let macs = |name: &str| -> Result<u64, Box<dyn Error>> {
        let name: ModelName = name.parse()?;
        Ok(zoo::build(&name, name.usual_classes())?.cost()?.macs)
    };
    let standard = macs("vgg16-cifar")?;
    for parts in [2, 4, 8, 16, 32, 64] {
        let macs = macs(&format!("vgg16-cifar_p{parts}"))?;
        let fewer = 100.0 * (1.0 - macs as f64 / standard as f64);
        println!("P = {parts:2}: {} MACs, {fewer:.1} % fewer", count(macs));
    }
    Ok(())
}
