//! The report page: well-formed, complete, self-contained, and safe with any name.

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
        ms_per_image: Some(0.02),
        runs: (0..seeds).map(run).collect(),
    }
}

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
        assert!(!text.contains('>') || open.last().is_some_and(|name| name == "style"), "stray > in {text:?}");
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
        // A label in each of four charts and a row of the table.
        assert_eq!(count("text", label), 4, "{label}");
        assert_eq!(count("th", label), 1, "{label}");
    }
    for title in ["Accuracy against MACs", "Accuracy against training time", "Training loss", "Held-out loss"] {
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
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
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
    assert_eq!(shapes.len(), 3);
    assert!(shapes[0] != shapes[1] && shapes[1] != shapes[2] && shapes[0] != shapes[2], "{shapes:?}");
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
    assert!(!page.contains("<script") && !page.contains('\u{7}'));
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
    assert!(!page.contains("NaN") && !page.contains("inf"), "no number that is none");
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
    assert!(!page.contains("NaN") && !page.contains("inf"));
    assert_eq!(page.matches("<figure>").count(), 4);
}
