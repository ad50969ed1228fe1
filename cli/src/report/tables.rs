//! The tables of a report.

use preface_trainer::record::{ConfusedPair, LabelFigures, Mistake, Record};

use super::{
    figures::{self, NONE},
    markup::{Element, element},
    section,
};

/// Labels up to which the whole confusion matrix is shown.
const MATRIX: usize = 30;
/// Labels up to which column headings lie flat.
const FLAT: usize = 5;
/// Confused pairs shown.
const PAIRS: usize = 20;
/// Labels shown at once; the others are folded away.
const SHOWN: usize = 30;
/// Depth of colour from which text on it is light.
const DEEP: f64 = 0.55;

/// Metrics on dev and test data side by side.
pub fn metrics(record: &Record) -> Option<Element> {
    let names = figures::metric_order(record.dev.keys().chain(record.test.keys()));
    let value = |value: Option<&f64>| value.map_or(NONE.into(), |&value| figures::metric(value));
    let rows = names.iter().map(|name| {
        element("tr")
            .child(row_head(figures::metric_name(name)))
            .child(number(value(record.dev.get(*name))))
            .children((!record.test.is_empty()).then(|| number(value(record.test.get(*name)))))
    });
    let heads = ["Metric", "Dev"].into_iter();
    let heads = heads.chain((!record.test.is_empty()).then_some("Test"));
    let table = table(&heads.collect::<Vec<_>>(), 1, rows);
    (!names.is_empty()).then(|| section("Metrics").child(scrolled("Metrics", table)))
}

/// The confusion matrix, where it is small enough.
pub fn confusion(record: &Record) -> Option<Element> {
    if !record.has_confusion() || record.labels.len() > MATRIX {
        return None;
    }
    let note = format!(
        "Texts of the {} data. A row holds the texts of one label, a column one answer. Depth of colour is the share of \
         the row: right answers blue; wrong answers orange, on a square-root scale so that few are seen too.",
        record.measured_on
    );
    let rows = record.confusion.iter().enumerate().map(|(truth, row)| {
        let support: usize = row.iter().sum();
        let cells = row.iter().enumerate().map(|(found, &count)| {
            let cell = cell(count, support, truth == found);
            cell.with(
                "title",
                format!(
                    "{} answered as {}",
                    record.labels[truth], record.labels[found]
                ),
            )
        });
        element("tr")
            .child(row_head(&record.labels[truth]).with("dir", "auto"))
            .children(cells)
            .child(number(support).class("sum"))
    });
    let turned = if record.labels.len() > FLAT {
        "turned"
    } else {
        "flat"
    };
    let labels = record.labels.iter().map(|label| {
        let text = element("span").with("dir", "auto").text(label);
        column_head().class(turned).with("title", label).child(text)
    });
    let top = element("tr")
        .child(column_head().with("rowspan", 2).text("True label"))
        .child(
            element("th")
                .with("scope", "colgroup")
                .with("colspan", record.labels.len())
                .text("Answer"),
        )
        .child(column_head().with("rowspan", 2).class("sum").text("Texts"));
    let head = element("thead")
        .child(top)
        .child(element("tr").children(labels));
    let table = element("table")
        .class("matrix")
        .child(head)
        .child(element("tbody").children(rows));
    Some(
        section("Confusion")
            .child(hint(&note))
            .child(scrolled("Confusion matrix", table)),
    )
}

/// The pairs of labels that are confused most, where the matrix is too large.
pub fn confused_pairs(record: &Record) -> Option<Element> {
    if !record.has_confusion() || record.labels.len() <= MATRIX {
        return None;
    }
    let pairs = record.confused_pairs();
    let note = format!(
        "{} labels are too many for a matrix: the {} most frequent of {} pairs that were confused in the {} data.",
        record.labels.len(),
        PAIRS.min(pairs.len()),
        pairs.len(),
        record.measured_on
    );
    let row = |pair: &ConfusedPair| {
        let share = pair.count as f64 / pair.support as f64;
        element("tr")
            .child(row_head(&pair.truth).with("dir", "auto"))
            .child(element("td").with("dir", "auto").text(&pair.found))
            .child(number(format_args!("{} of {}", pair.count, pair.support)))
            .child(number(figures::percent(share)))
    };
    let heads = ["True label", "Answer", "Times", "Share"];
    let table = table(&heads, 2, pairs.iter().take(PAIRS).map(row));
    Some(
        section("Confusion")
            .child(hint(&note))
            .child(scrolled("Confused pairs", table)),
    )
}

/// Precision, recall and F1 of each label, the weakest first.
pub fn labels(record: &Record) -> Option<Element> {
    let mut labels = record.label_figures();
    if labels.is_empty() {
        return None;
    }
    let strength = |label: &LabelFigures| label.f1.unwrap_or(f64::INFINITY);
    labels.sort_by(|one, other| strength(one).total_cmp(&strength(other)));
    let note = format!(
        "On the {} data, the weakest label first. A figure that has nothing to count is left open.",
        record.measured_on
    );
    let (shown, folded) = labels.split_at(SHOWN.min(labels.len()));
    let section = section("Labels")
        .child(hint(&note))
        .child(scrolled("Labels", label_table(shown)));
    if folded.is_empty() {
        return Some(section);
    }
    let summary = element("summary").text(format_args!("{} further labels", folded.len()));
    let rest = element("details")
        .child(summary)
        .child(scrolled("Further labels", label_table(folded)));
    Some(section.child(rest))
}

fn label_table(labels: &[LabelFigures]) -> Element {
    let figure = |value: Option<f64>| value.map_or(NONE.into(), |value| format!("{value:.3}"));
    let rows = labels.iter().map(|label| {
        element("tr")
            .child(row_head(&label.label).with("dir", "auto"))
            .child(number(figure(label.precision)))
            .child(number(figure(label.recall)))
            .child(bar(label.f1.unwrap_or(0.0), figure(label.f1)).class("bar right"))
            .child(number(label.support))
    });
    table(&["Label", "Precision", "Recall", "F1", "Texts"], 1, rows)
}

/// The worst mistakes.
pub fn mistakes(record: &Record) -> Option<Element> {
    if record.mistakes.is_empty() {
        return None;
    }
    let note = format!(
        "The {} worst on the {} data: those whose right answer was least expected. Score is the probability of the answer \
         that was given; loss is that of the right answer, in nats.",
        record.mistakes.len(),
        record.measured_on
    );
    let row = |mistake: &Mistake| {
        element("tr")
            .child(
                element("td")
                    .class("text")
                    .with("dir", "auto")
                    .text(&mistake.text),
            )
            .child(named("Truth", "truth", &mistake.truth))
            .child(named("Answer", "found", &mistake.found))
            .child(number(format_args!("{:.3}", mistake.score)).with("data-name", "Score"))
            .child(number(figures::small(mistake.loss)).with("data-name", "Loss"))
    };
    let heads = ["Text", "Truth", "Answer", "Score", "Loss"];
    let table = table(&heads, 3, record.mistakes.iter().map(row)).class("mistakes");
    Some(section("Worst mistakes").child(hint(&note)).child(table))
}

fn named(name: &str, class: &str, text: &str) -> Element {
    element("td")
        .class(class)
        .with("data-name", name)
        .with("dir", "auto")
        .text(text)
}

/// Where positions and compute go.
pub fn token_budget(record: &Record) -> Option<Element> {
    if record.token_budget.is_empty() {
        return None;
    }
    let note = match record.positions {
        Some(positions) => format!(
            "Tokens against the {} positions of the base, and the share of the compute that each part costs.",
            figures::count(positions as u64)
        ),
        None => "Tokens, and the share of the compute that each part costs.".to_owned(),
    };
    let rows = record.token_budget.iter().map(|row| {
        element("tr")
            .child(row_head(&row.part))
            .child(number(figures::count(row.tokens as u64)))
            .child(bar(row.share, figures::percent(row.share)).class("bar neutral"))
    });
    let table = table(&["Part", "Tokens", "Compute"], 1, rows);
    Some(
        section("Token budget")
            .child(hint(&note))
            .child(scrolled("Token budget", table)),
    )
}

/// What the training was given.
pub fn setup(record: &Record) -> Option<Element> {
    let own = [
        ("Base", record.base.name.clone()),
        (
            "Frozen parameters",
            figures::parameters(record.base.parameters),
        ),
        ("Base id", record.base.id.clone()),
        ("Method", record.method.clone()),
        ("Initialisation", record.init.clone()),
        ("Form", record.form.clone()),
        ("Virtual tokens", record.tokens.to_string()),
        ("Layers", record.layers.clone()),
        ("Head", record.head.clone()),
        ("Seed", record.seed.to_string()),
    ];
    let own = own.iter().map(|(name, value)| (*name, value.as_str()));
    let options = record.options.iter();
    let options = options.map(|option| (option.name.as_str(), option.value.as_str()));
    let settings = own.chain(options).filter(|(_, value)| !value.is_empty());
    let pairs = settings.map(|(name, value)| {
        element("div")
            .child(element("dt").text(name))
            .child(element("dd").text(value))
    });
    let list = element("dl").class("settings").children(pairs);
    Some(section("Set-up").child(list).children(data(record)))
}

fn data(record: &Record) -> Option<Element> {
    let rows = record.data.iter().map(|file| {
        element("tr")
            .child(row_head(&file.role))
            .child(element("td").class("path").text(&file.path))
            .child(number(figures::count(file.examples as u64)))
    });
    let table = table(&["Data", "File", "Examples"], 2, rows);
    (!record.data.is_empty()).then(|| scrolled("Data", table))
}

/// A table whose first `words` columns hold words and whose others hold numbers.
fn table(heads: &[&str], words: usize, rows: impl Iterator<Item = Element>) -> Element {
    let heads = heads.iter().enumerate().map(|(index, head)| {
        let cell = column_head().text(head);
        match index < words {
            true => cell,
            false => cell.class("number"),
        }
    });
    element("table")
        .child(element("thead").child(element("tr").children(heads)))
        .child(element("tbody").children(rows))
}

/// What scrolls by itself where it is wider than the page.
fn scrolled(name: &str, table: Element) -> Element {
    element("div")
        .class("scrolled")
        .with("role", "region")
        .with("aria-label", name)
        .with("tabindex", 0)
        .child(table)
}

fn hint(text: &str) -> Element {
    element("p").class("hint").text(text)
}

fn row_head(text: impl std::fmt::Display) -> Element {
    element("th").with("scope", "row").text(text)
}

fn column_head() -> Element {
    element("th").with("scope", "col")
}

fn number(text: impl std::fmt::Display) -> Element {
    element("td").class("number").text(text)
}

/// A number with a bar of length `share` under it.
fn bar(share: f64, text: impl std::fmt::Display) -> Element {
    let share = share.clamp(0.0, 1.0);
    element("td")
        .with("style", format!("--share:{share:.4}"))
        .text(text)
}

/// A cell of the matrix.
fn cell(count: usize, support: usize, is_right: bool) -> Element {
    let share = count as f64 / support.max(1) as f64;
    let (side, depth) = match is_right {
        true => ("right", share),
        false => ("wrong", share.sqrt()),
    };
    let class = match depth {
        0.0 => format!("{side} zero"),
        depth if depth >= DEEP => format!("{side} deep"),
        _ => side.to_owned(),
    };
    element("td")
        .class(class)
        .with("style", format!("--depth:{depth:.3}"))
        .text(count)
}
