//! Temporary.
use hetconv_train::*; use std::io::Write;
fn main(){ let t=std::time::Instant::now(); let d=synthetic(&SyntheticOptions::default()).unwrap(); eprintln!("{:?}",t.elapsed());
 for (n,s) in [("train",&d.train),("test",&d.test)] { std::fs::File::create(format!("/tmp/tg-jax/{n}.bin")).unwrap().write_all(s.images().pixels()).unwrap();
 std::fs::write(format!("/tmp/tg-jax/{n}.lab"), s.labels().iter().map(|&l| l as u8).collect::<Vec<u8>>()).unwrap(); }}
