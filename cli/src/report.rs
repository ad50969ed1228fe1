//! The report of a training: one HTML file that needs nothing beside it.

mod chart;
mod figures;
mod markup;
mod tables;

use std::collections::BTreeMap;

use preface_trainer::record::Record;

use self::{
    chart::{Chart, Floor, Series},
    markup::{Element, element},
};

const STYLE: &str = include_str!("report/style.css");
/// Metrics that one chart draws.
const LINES: usize = 3;

/// The report of `record`: a whole document, without scripts and without references to anything outside.
pub fn html(record: &Record) -> String {
    let head = element("head")
        .child(element("meta").with("charset", "utf-8"))
        .child(
            element("meta")
                .with("name", "viewport")
                .with("content", "width=device-width, initial-scale=1"),
        )
        .child(
            element("meta")
                .with("name", "color-scheme")
                .with("content", "light dark"),
        )
        .child(element("title").text(format_args!("{}: training report", record.title)))
        .child(element("style").style(STYLE));
    let sections = [
        notes(record),
        curves(record),
        beside([tables::metrics(record), tables::token_budget(record)]),
        tables::confusion(record),
        beside([tables::confused_pairs(record), tables::labels(record)]),
        tables::mistakes(record),
        tables::setup(record),
    ];
    let body = element("body").child(
        element("main")
            .child(header(record))
            .children(sections.into_iter().flatten())
            .child(footer()),
    );
    let document = element("html").with("lang", "en").child(head).child(body);
    format!("<!DOCTYPE html>\n{document}\n")
}

/// A part of the report under its own heading.
fn section(title: &str) -> Element {
    element("section").child(element("h2").text(title))
}

fn header(record: &Record) -> Element {
    element("header")
        .child(element("p").class("kind").text("Training report"))
        .child(element("h1").with("dir", "auto").text(&record.title))
        .child(element("p").class("lead").text(lead(record)))
        .child(element("dl").class("headline").children(headline(record)))
}

/// The training in one line.
fn lead(record: &Record) -> String {
    let base = match record.base.name.as_str() {
        "" => String::new(),
        name => format!("on {name}"),
    };
    let tokens = match record.tokens {
        0 => String::new(),
        1 => "1 virtual token".to_owned(),
        tokens => format!("{tokens} virtual tokens"),
    };
    let named = |name: &str, value: &str| match value {
        "" => String::new(),
        value => format!("{name} {value}"),
    };
    let parts = [
        named(&record.method, &base),
        tokens,
        named("layers:", &record.layers),
        named("head:", &record.head),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" · ")
}

fn headline(record: &Record) -> Vec<Element> {
    let best = |metrics: &BTreeMap<String, f64>, on: &str| {
        let name = figures::metric_order(metrics.keys()).into_iter().next()?;
        let value = figures::metric(metrics[name]);
        Some((format!("{on} {}", figures::metric_name(name)), value))
    };
    let last = record.epochs.iter().map(|epoch| epoch.epoch).max();
    let epochs = last.map(|last| {
        let value = format!("{} of {last}", record.best_epoch);
        ("Best epoch".to_owned(), value)
    });
    let fixed = [
        record
            .bundle_bytes
            .map(|bytes| ("Bundle, 8-bit", figures::bytes(bytes as u64))),
        Some((
            "Trained numbers",
            figures::count(record.trained_parameters as u64),
        )),
        Some(("Time", figures::duration(record.seconds))),
    ];
    let fixed = fixed.map(|fixed| fixed.map(|(name, value)| (name.to_owned(), value)));
    [best(&record.test, "Test"), best(&record.dev, "Dev"), epochs]
        .into_iter()
        .chain(fixed)
        .flatten()
        .map(|(name, value)| {
            element("div")
                .child(element("dt").text(name))
                .child(element("dd").text(value))
        })
        .collect()
}

/// Sections side by side where there is room.
fn beside(sections: [Option<Element>; 2]) -> Option<Element> {
    let sections: Vec<Element> = sections.into_iter().flatten().collect();
    let is_empty = sections.is_empty();
    (!is_empty).then(|| element("div").class("beside").children(sections))
}

fn notes(record: &Record) -> Option<Element> {
    let items = record.notes.iter().map(|note| element("li").text(note));
    let list = element("ul").children(items);
    (!record.notes.is_empty()).then(|| section("Advice").class("notes").child(list))
}

fn curves(record: &Record) -> Option<Element> {
    let charts = [
        ("Loss", "mean cross-entropy", loss_chart(record)),
        ("Dev metrics", "after each epoch", metric_chart(record)),
    ];
    let figures: Vec<Element> = charts
        .into_iter()
        .filter_map(|(name, what, chart)| {
            let caption = element("figcaption")
                .child(element("strong").text(name))
                .child(element("span").text(what));
            let svg = chart.svg()?;
            Some(element("figure").child(caption).child(svg))
        })
        .collect();
    let curves = || element("div").class("curves").children(figures);
    (!record.epochs.is_empty()).then(|| section("Curves").child(curves()))
}

fn loss_chart(record: &Record) -> Chart {
    let epochs = || record.epochs.iter();
    let series = |name: &str, class, points| Series {
        name: name.into(),
        class,
        points,
    };
    Chart {
        title: "Loss on train and dev data by epoch".into(),
        unit: "nats".into(),
        floor: Floor::Zero,
        series: vec![
            series(
                "train",
                "second",
                epochs().map(|at| (at.epoch, at.train_loss)).collect(),
            ),
            series(
                "dev",
                "first",
                epochs().map(|at| (at.epoch, at.dev_loss)).collect(),
            ),
        ],
        marked: 1,
        best_epoch: record.best_epoch,
    }
}

/// The most telling metric, and others on its scale.
fn metric_chart(record: &Record) -> Chart {
    let classes = ["first", "third", "second"];
    let names = figures::metric_order(record.epochs.iter().flat_map(|epoch| epoch.dev.keys()));
    let points = |name: &str| -> Vec<(usize, f64)> {
        let epochs = record.epochs.iter();
        let value = |epoch: &BTreeMap<String, f64>| epoch.get(name).copied().unwrap_or(f64::NAN);
        epochs
            .map(|epoch| (epoch.epoch, value(&epoch.dev)))
            .collect()
    };
    let is_share = |name: &str| {
        let values = points(name).into_iter().map(|point| point.1);
        let mut finite = values.filter(|value| value.is_finite());
        finite.all(|value| (0.0..=1.0).contains(&value))
    };
    let scale = names.first().is_some_and(|name| is_share(name));
    let drawn: Vec<&str> = names
        .into_iter()
        .filter(|name| *name != "loss" && is_share(name) == scale)
        .take(LINES)
        .collect();
    let series = drawn.iter().zip(classes).map(|(name, class)| Series {
        name: figures::metric_name(name),
        class,
        points: points(name),
    });
    Chart {
        title: format!("{} on dev data by epoch", drawn.join(", ")),
        unit: if scale { "share".into() } else { String::new() },
        floor: Floor::Data,
        series: series.collect(),
        marked: 0,
        best_epoch: record.best_epoch,
    }
}

fn footer() -> Element {
    let version = env!("CARGO_PKG_VERSION");
    element("footer").child(element("p").text(format_args!("Written by preface {version}.")))
}

#[cfg(test)]
mod tests {
    use preface_trainer::{
        budget::Cost,
        progress::EpochFigures,
        record::{DataFile, Mistake, Setting, confusion, worst},
    };

    use super::*;

    const HOSTILE: &str = "<script>alert(\"1\")</script> & 'two' ]]> \u{0} \u{202e}";

    fn record(classes: usize) -> Record {
        let labels: Vec<String> = (0..classes)
            .map(|label| format!("label <{label}>"))
            .collect();
        let answers = (0..classes * 10).map(|text| {
            let truth = text % classes;
            (truth, (truth + usize::from(text % 7 == 0)) % classes)
        });
        let epoch = |epoch: usize| EpochFigures {
            candidate: 0,
            epoch,
            train_loss: 2.0 / epoch as f64,
            dev_loss: 2.5 / epoch as f64,
            dev: BTreeMap::from([("accuracy".into(), 1.0 - 0.5 / epoch as f64)]),
            best: true,
            seconds: 1.0,
        };
        let mistake = Mistake {
            text: HOSTILE.into(),
            truth: labels[0].clone(),
            found: HOSTILE.into(),
            score: 0.75,
            loss: 3.5,
        };
        Record {
            title: HOSTILE.into(),
            method: HOSTILE.into(),
            confusion: confusion(answers, classes),
            labels,
            epochs: (1..=20).map(epoch).collect(),
            best_epoch: 20,
            dev: BTreeMap::from([("accuracy".into(), 0.975), (HOSTILE.into(), 0.5)]),
            measured_on: "dev".into(),
            mistakes: worst([mistake]),
            notes: vec![HOSTILE.into()],
            options: vec![Setting {
                name: HOSTILE.into(),
                value: HOSTILE.into(),
            }],
            data: vec![DataFile {
                role: "train".into(),
                path: HOSTILE.into(),
                examples: 1234,
            }],
            token_budget: vec![Cost {
                part: HOSTILE.into(),
                tokens: 8,
                multiply_adds: 1000,
                share: 0.25,
            }],
            positions: Some(512),
            ..Record::default()
        }
    }

    fn records() -> Vec<Record> {
        let sizes = [1, 2, 3, 14, 30, 31, 150];
        let bare = Record::default();
        sizes.map(record).into_iter().chain([bare]).collect()
    }

    /// Reads `document` as strictly as an XML parser would, and gives its start tags with their attributes.
    fn start_tags(document: &str) -> Vec<(String, Vec<(String, String)>)> {
        let mut rest = document.strip_prefix("<!DOCTYPE html>\n").unwrap();
        let (mut open, mut tags) = (Vec::new(), Vec::new());
        while let Some(at) = rest.find('<') {
            check_text(&rest[..at]);
            let end = rest[at..].find('>').unwrap() + at;
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let is_void = tag.ends_with('/');
            let (name, attributes) = tag
                .trim_end_matches('/')
                .split_once(' ')
                .unwrap_or((tag, ""));
            if !is_void {
                open.push(name.to_owned());
            }
            tags.push((name.to_owned(), attribute_list(attributes)));
        }
        assert!(open.is_empty() && rest == "\n", "{open:?} {rest:?}");
        tags
    }

    fn attribute_list(mut text: &str) -> Vec<(String, String)> {
        let mut attributes: Vec<(String, String)> = Vec::new();
        while !text.trim().is_empty() {
            let (name, tail) = text.split_once("=\"").unwrap();
            let (value, tail) = tail.split_once('"').unwrap();
            check_text(value);
            let name = name.trim().to_owned();
            assert!(
                name.chars()
                    .all(|letter| letter.is_ascii_alphanumeric() || letter == '-')
            );
            assert!(
                attributes.iter().all(|(other, _)| *other != name),
                "{name} twice"
            );
            attributes.push((name, value.to_owned()));
            text = tail;
        }
        attributes
    }

    fn check_text(text: &str) {
        for part in text.split('&').skip(1) {
            let entity = part.split(';').next().unwrap();
            assert!(
                ["amp", "lt", "gt", "quot", "#39"].contains(&entity),
                "{entity}"
            );
        }
        assert!(!text.contains(|letter: char| letter.is_control() && letter != '\n'));
    }

    #[test]
    fn every_report_is_well_formed_and_accessible() {
        for record in records() {
            let document = html(&record);
            let tags = start_tags(&document);
            let count = |name: &str| tags.iter().filter(|(tag, _)| tag == name).count();
            for (tag, attributes) in &tags {
                let has = |name: &str| attributes.iter().any(|(other, _)| other == name);
                assert!(tag != "th" || has("scope"));
                assert!(tag != "svg" || has("role"));
            }
            assert_eq!(count("h1"), 1);
            assert_eq!(count("svg"), count("desc"));
            assert_eq!(count("svg"), if record.epochs.is_empty() { 0 } else { 2 });
        }
    }

    #[test]
    fn whatever_is_told_is_escaped() {
        let document = html(&record(3));
        assert!(!document.contains("<script") && !document.contains("label <"));
        assert!(
            document
                .matches("&lt;script&gt;alert(&quot;1&quot;)")
                .count()
                >= 9
        );
    }

    #[test]
    fn nothing_is_fetched() {
        for record in records() {
            let document = html(&record);
            for reference in [
                "src=", "href=", "url(", "@import", "http:", "https:", "<link",
            ] {
                assert!(!document.contains(reference), "{reference}");
            }
        }
    }

    #[test]
    fn every_label_is_there() {
        for record in records() {
            let document = html(&record);
            for label in 0..record.labels.len() {
                assert!(document.contains(&format!(">label &lt;{label}&gt;<")));
            }
        }
    }

    #[test]
    fn a_matrix_up_to_thirty_labels_and_pairs_beyond() {
        let cells = |classes: usize| html(&record(classes)).matches("--depth:").count();
        assert_eq!([cells(3), cells(30), cells(31)], [9, 900, 0]);
        assert!(html(&record(31)).contains("31 labels are too many"));
    }

    #[test]
    fn figures_are_told() {
        let document = html(&record(3));
        for told in [
            "best epoch 20: 0.9750",
            "<td class=\"number\">1,234</td>",
            "3.50",
            "512 positions",
        ] {
            assert!(document.contains(told), "{told}");
        }
    }
}
