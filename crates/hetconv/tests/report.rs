//! The report page: well-formed, complete, self-contained, and safe with any name.

mod common;

use std::path::Path;

use common::Browser;
use hetconv::core::HetPattern;
use hetconv::report::{Epoch, Report, Run, Variant};

fn variant(label: &str, macs: u64, top1: f64, seeds: u64) -> Variant {
    let run = |seed: u64| {
        let epoch = |i: u64| Epoch {
            seconds: 3.0 * i as f64,
            train_loss: 2.0 / i as f64,
            eval_loss: 2.5 / i as f64,
            eval_top1: top1 * i as f64 / 4.0,
        };
        Run { seed, top1: top1 + seed as f64, seconds: 12.0, epochs: (1..=4).map(epoch).collect() }
    };
    Variant {
        label: label.into(),
        params: macs / 30,
        macs,
        macs_reduction_percent: Some(100.0 * (1.0 - macs as f64 / 3_400_000.0)),
        stages: 4,
        layers: vec![("conv1".into(), 400_000), ("conv2".into(), macs - 400_000)],
        pattern: (label == "p4").then(|| (HetPattern::shifted(32, 64, 4).unwrap(), 3)),
        ms_per_image: Some(0.02),
        runs: (0..seeds).map(run).collect(),
    }
}

/// What the page of [`report`] shows.
const FIGURES: [&str; 7] = [
    "Accuracy against MACs",
    "Accuracy against measured time",
    "Accuracy against training time",
    "Training loss",
    "Held-out loss",
    "MACs of every layer: standard and p4",
    "Filter bank: M = 32, N = 64, P = 4",
];

fn report() -> Report {
    Report {
        title: "small-cifar".into(),
        subtitle: "Side by side.".into(),
        setup: vec![("Data".into(), "synthetic".into())],
        variants: vec![
            variant("standard", 3_400_000, 80.0, 2),
            variant("p4", 1_280_000, 79.0, 2),
            variant("gwc4_pwc", 1_300_000, 76.0, 2),
        ],
        reference: Some(0),
    }
}

/// Checks that every element is closed in the right order, and gives the texts of all `text` and table cells.
fn elements(page: &str) -> Vec<(String, String)> {
    const VOID: [&str; 2] = ["meta", "!doctype"];
    let mut open: Vec<String> = Vec::new();
    let mut found = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag that ends");
        let text = &rest[..start];
        assert!(
            !text.contains('>') || open.last().is_some_and(|name| name == "style" || name == "script"),
            "stray > in {text:?}"
        );
        if let Some(name) = open.last().filter(|_| !text.trim().is_empty()) {
            found.push((name.clone(), text.to_owned()));
        }
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default().to_owned();
        assert!(!name.is_empty(), "an element without a name: <{tag}>");
        assert!(tag.matches('"').count().is_multiple_of(2), "unbalanced quotes in <{tag}>");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</…> closes what was opened last");
        } else if !tag.ends_with('/') && !VOID.contains(&name.as_str()) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    found
}

#[test]
fn the_page_is_well_formed_and_complete() {
    let page = report().page();
    let texts = elements(&page);
    let count = |name: &str, text: &str| texts.iter().filter(|(n, t)| n == name && t == text).count();
    for label in ["standard", "p4", "gwc4_pwc"] {
        // A label in each of five charts and a row of the table; two of them name the bars.
        let bars = usize::from(label != "gwc4_pwc");
        assert_eq!(count("text", label), 5 + bars, "{label}");
        assert_eq!(count("th", label), 1, "{label}");
    }
    for title in FIGURES {
        assert_eq!(count("h3", title), 1, "{title}");
    }
    assert_eq!(count("h1", "small-cifar"), 1);
    for cell in ["3.400 M", "6.800 M", "62.35 %", "79.5 ± 0.5 %", "12.0 s", "0.0200 ms"] {
        assert!(count("td", cell) >= 1, "{cell}");
    }
    assert_eq!(count("dd", "synthetic"), 1);
    assert!(texts.iter().any(|(_, t)| t.contains("62.4 % fewer MACs, no extra stage")), "a sentence about p4");
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let page = report().page();
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "fetch(", "import("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("name=\"viewport\"") && page.contains("prefers-color-scheme: dark"));
}

#[test]
fn series_differ_in_more_than_colour() {
    let page = report().page();
    let shapes: Vec<&str> = page
        .split("aria-hidden=\"true\"><path class=\"marker\" d=\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    let dashes: Vec<&str> =
        page.split("stroke-dasharray=\"").skip(1).take(3).map(|rest| rest.split('"').next().unwrap()).collect();
    for differ in [shapes, dashes] {
        assert_eq!(differ.len(), 3);
        assert!(differ[0] != differ[1] && differ[1] != differ[2] && differ[0] != differ[2], "{differ:?}");
    }
}

#[test]
fn any_text_is_only_text() {
    let evil = "<script>alert(\"1\")</script>&'\u{7}";
    let mut report = report();
    report.title = evil.into();
    report.subtitle = evil.into();
    report.setup = vec![(evil.into(), evil.into())];
    report.variants[0].label = evil.into();
    report.variants[1].label = evil.into();
    let page = report.page();
    elements(&page);
    assert_eq!(page.matches("<script").count(), 1, "only the page's own");
    assert!(!page.contains('\u{7}'));
    assert!(page.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;\u{fffd}"));
}

#[test]
fn missing_numbers_leave_gaps_not_nonsense() {
    let mut report = report();
    report.variants[0].runs.clear();
    report.variants[0].ms_per_image = None;
    report.variants[1].runs[0].epochs[2].train_loss = f64::NAN;
    report.variants[2].runs[0].epochs.clear();
    let page = report.page();
    elements(&page);
    assert!(!page.contains("NaN") && !page.replace("inference", "").contains("inf"), "no number that is none");
    // Without an accuracy there is nothing to compare with.
    assert!(!page.contains("In short"));

    let empty = Report { title: "Nothing".into(), ..Default::default() }.page();
    elements(&empty);
    assert!(!empty.contains("<svg"));
}

#[test]
fn one_number_everywhere_still_makes_a_chart() {
    let mut report = report();
    report.variants.truncate(1);
    report.variants[0].runs.truncate(1);
    report.variants[0].runs[0].epochs.truncate(1);
    report.variants[0].runs[0].epochs[0] = Epoch::default();
    let page = report.page();
    elements(&page);
    assert!(!page.contains("NaN") && !page.replace("inference", "").contains("inf"));
    // Five charts, and the filter bank if it were HetConv; there is no other network to set beside this one.
    assert_eq!(page.matches("<figure>").count(), 5);
}

/// Sorts by top-1, and writes into the page what there is to be seen.
const PROBE: &str = r#"<script>
const head = [...document.querySelectorAll("thead button")].find((b) => b.textContent === "Top-1");
head.click();
const order = [...document.querySelectorAll("tbody th")].map((th) => th.textContent).join(" ");
const figures = [...document.querySelectorAll("figure")].map((figure) => {
  const box = figure.querySelector("svg").getBoundingClientRect();
  return figure.querySelector("h3").textContent + ": " + (box.width > 200 && box.height > 50 ? "seen" : "missing");
});
const fits = document.documentElement.scrollWidth === document.documentElement.clientWidth;
const style = getComputedStyle(document.body);
// Relative luminance, and the contrast of two colours, as WCAG has them.
const light = (colour) => colour.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255)
  .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, i) => sum + [0.2126, 0.7152, 0.0722][i] * part, 0);
const [ink, page] = [light(style.color), light(style.backgroundColor)];
const contrast = (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
const lines = ["order " + order, "sort " + head.parentElement.ariaSort, "fits " + fits,
  page < 0.2 ? "dark page" : "light page", contrast >= 7 ? "readable" : "contrast " + contrast,
  document.documentElement.clientWidth <= 360 ? "phone" : "desk", ...figures];
document.body.append(Object.assign(document.createElement("pre"), { textContent: lines.join("\n") }));
if (parent !== window) parent.postMessage(lines.join("\n"), "*");
</script></body>"#;

/// A page around another one, as narrow as a phone, which no window of a browser is.
const PHONE: &str = r#"<!doctype html><title>phone</title><body><script>
addEventListener("message", (event) =>
  document.body.append(Object.assign(document.createElement("pre"), { textContent: event.data })));
</script><iframe src="page.html" style="width: 360px; height: 800px; border: 0"></iframe></body>"#;

#[test]
fn a_browser_shows_every_figure_and_sorts_the_table() {
    let Some(browser) = Browser::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("page.html");
    std::fs::write(path, report().page().replace("</body>", PROBE)).unwrap();
    let phone: &Path = &folder.path().join("phone.html");
    std::fs::write(phone, PHONE).unwrap();
    for (width, place, seen) in [
        (1280, "light page\nreadable\ndesk", browser.dom(path, 1280)),
        (500, "light page\nreadable\ndesk", browser.dom(path, 500)),
        (500, "dark page\nreadable\ndesk", browser.dark_dom(path, 500)),
        (360, "light page\nreadable\nphone", browser.dom(phone, 500)),
    ] {
        assert_eq!(seen.console, "", "{width}");
        // 76.5, 79.5 and 80.5 per cent; ascending.
        let found = format!("order gwc4_pwc p4 standard\nsort ascending\nfits true\n{place}\n");
        assert!(seen.dom.contains(&found), "{width}: {}", seen.tail());
        for figure in FIGURES {
            assert!(seen.dom.contains(&format!("{figure}: seen")), "{width}: {figure}: {}", seen.tail());
        }
    }
    let pdf = browser.print(path);
    assert!(pdf.starts_with(b"%PDF") && pdf.len() > 20_000, "{} bytes", pdf.len());
}
