//! Inference stands alone.
#![allow(missing_docs)]

use std::process::Command;

#[test]
fn burn_is_no_dependency() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["tree", "--package", "hetconv-runtime", "--edges", "normal,build", "--prefix", "none"];
    let output = Command::new(cargo).args(arguments).args(["--locked", "--offline"]).output().unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"hetconv-runtime") && names.contains(&"hetconv-kernels"), "{tree}");
    assert!(!names.iter().any(|name| name.contains("burn")), "{tree}");
}
