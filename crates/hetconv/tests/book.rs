//! The book: its examples run, and everything it includes or links to is there.

use std::path::{Path, PathBuf};

#[path = "../examples/choose_p.rs"]
mod choose_p;
#[path = "../examples/layer_in_burn.rs"]
mod layer_in_burn;
#[path = "../examples/onnx_round_trip.rs"]
mod onnx_round_trip;
#[path = "../examples/rewrite_network.rs"]
mod rewrite_network;
#[path = "../examples/train_and_run.rs"]
mod train_and_run;

#[test]
fn examples_run() {
    choose_p::main().unwrap();
    rewrite_network::main().unwrap();
    train_and_run::main().unwrap();
    layer_in_burn::main().unwrap();
    onnx_round_trip::main().unwrap();
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/book/src")
}

/// What stands between two texts, wherever they do.
fn between<'a>(text: &'a str, begin: &str, end: char) -> impl Iterator<Item = &'a str> {
    text.split(begin).skip(1).filter_map(move |rest| rest.split(end).next())
}

/// The files that a chapter includes or links to, with the folder it does so from.
fn referred(chapter: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(chapter).unwrap_or_else(|error| panic!("{}: {error}", chapter.display()));
    let folder = chapter.parent().unwrap();
    let path = |link: &str| folder.join(link.split('#').next().unwrap());
    let includes: Vec<PathBuf> =
        between(&text, "{{#include ", '}').map(|file| path(file.split(':').next().unwrap())).collect();
    // What is included is read in the chapter's place.
    let mut pages = vec![text.clone()];
    let is_page = |file: &&PathBuf| file.extension().is_some_and(|extension| extension == "md");
    pages.extend(includes.iter().filter(is_page).map(|file| std::fs::read_to_string(file).unwrap()));
    let links = pages.iter().flat_map(|page| between(page, "](", ')'));
    let links = links.filter(|link| !link.contains("://") && !link.starts_with('#'));
    links.map(path).chain(includes.iter().cloned()).collect()
}

#[test]
fn what_chapters_include_and_link_to_is_there() {
    let summary = sources().join("SUMMARY.md");
    let chapters = referred(&summary);
    assert!(chapters.len() >= 7, "{chapters:?}");
    for chapter in &chapters {
        for file in referred(chapter) {
            assert!(file.is_file(), "{} refers to {}", chapter.display(), file.display());
        }
    }
    // A file that no chapter names would be forgotten.
    for entry in std::fs::read_dir(sources()).unwrap() {
        let path = entry.unwrap().path();
        let is_chapter = path.extension().is_some_and(|extension| extension == "md") && path != summary;
        assert!(!is_chapter || chapters.contains(&path), "{} is not in SUMMARY.md", path.display());
    }
}
