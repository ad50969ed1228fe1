//! Advice on what was trained: whether the prompt is too small, and whether worked examples are worth their tokens.

use anyhow::bail;
use preface_graph::Kind;
use preface_runtime::compile::Prospect;
use preface_trainer::{
    advice::{is_stuck, underfit},
    budget::Rates,
    data::{Dataset, Example, Target},
    encode::{MASK, TEXT},
    heads::{Reads, head, usual},
    options::Options,
    search::standard_error,
    training::{self, Outcome},
};

use super::{Bar, Inputs, arguments::spelled, best};
use crate::output::Output;

/// Takes `count` examples out of the training data, of as many labels as there are, the shortest first, and writes them
/// as they stand before every text.
pub fn take_examples(train: &mut Dataset, count: usize) -> anyhow::Result<String> {
    if count == 0 {
        return Ok(String::new());
    }
    // In a template these would stand for something else.
    let is_plain = |example: &Example| {
        let written = shown(example);
        !written.contains(TEXT) && !written.contains(MASK)
    };
    let order = (0..train.examples.len()).filter(|&index| is_plain(&train.examples[index]));
    let mut order: Vec<usize> = order.collect();
    order.sort_by_key(|&index| train.examples[index].text.len());
    let mut taken: Vec<usize> = Vec::new();
    while taken.len() < count {
        let before = taken.len();
        let mut seen: Vec<&Target> = Vec::new();
        for &index in &order {
            let target = &train.examples[index].target;
            if taken.len() < count && !taken.contains(&index) && !seen.contains(&target) {
                seen.push(target);
                taken.push(index);
            }
        }
        if taken.len() == before {
            bail!(
                "--few-shot {count}: there are only {before} training examples, those with {TEXT} or {MASK} left out"
            );
        }
    }
    let text = taken
        .iter()
        .map(|&index| shown(&train.examples[index]))
        .collect();
    let mut index = 0;
    train.examples.retain(|_| {
        index += 1;
        !taken.contains(&(index - 1))
    });
    if train.examples.is_empty() {
        bail!("--few-shot {count} leaves no example to learn from");
    }
    Ok(text)
}

/// An example as a line of a template.
fn shown(example: &Example) -> String {
    let second = example.text2.iter().map(|text2| format!(" | {text2}"));
    let second: String = second.collect();
    let answer = spelled(&example.target);
    format!("{}{second} => {answer}\n", example.text)
}

/// What keeps a bundle with this head from running, which is better known before it is trained.
pub fn of_image(inputs: &Inputs, options: &Options) -> anyhow::Result<Option<String>> {
    let described = &inputs.base.description;
    let head = match &options.head {
        Some(name) => head(name)?,
        None => usual(inputs.train.kind()),
    };
    let whole = described.kind == Kind::EncoderDecoder;
    if head.reads == Reads::Hidden && !whole {
        return Ok(None);
    }
    let prospect = Prospect::of_base(&inputs.base);
    let lacking = match (&prospect.refused, &prospect.unlowered) {
        (Some(reason), _) => format!("no base image can be made of this base ({reason})"),
        _ if head.reads == Reads::Hidden || prospect.scores => return Ok(None),
        (None, Some(reason)) => format!(
            "images of this base make no scores of its vocabulary, which the head {} reads ({reason})",
            head.name
        ),
        (None, None) => format!(
            "images of this base make no scores of its vocabulary, which the head {} reads (the executor has no steps for them)",
            head.name
        ),
    };
    Ok(Some(format!(
        "{lacking}: the adapter will run with `preface eval --adapter` alone; export the base another way, or take another --head"
    )))
}

/// What makes the figures say less than they seem to: inputs of dev or test that are learned from, and inputs with
/// several answers.
pub fn of_data(inputs: &Inputs) -> Vec<String> {
    let Inputs { train, dev, .. } = inputs;
    let measured = [("dev", Some(dev)), ("test", inputs.test.as_ref())];
    let shared = measured.into_iter().filter_map(|(role, data)| {
        let data = data?;
        let lines = data.lines_in(train);
        let (first, count) = (lines.first()?, lines.len());
        Some(format!(
            "{count} of the {} inputs of {} stand in {} too, first that of line {first}: the figure on {role} says less about new ones",
            data.examples.len(),
            data.path.display(),
            train.path.display()
        ))
    });
    let contradictions = train.contradictions();
    let several = contradictions.first().map(|(one, other)| {
        format!(
            "{} lines of {} have another answer than an earlier line with the same input, first lines {one} and {other}",
            contradictions.len(),
            train.path.display()
        )
    });
    let all = [train, dev].into_iter().chain(&inputs.test);
    let begun = all.filter_map(|data| {
        let (count, first) = data.begun?;
        Some(format!(
            "{count} entities of {} begin with I-, first that of line {first}: they are read, learned and answered as beginning with B-",
            data.path.display()
        ))
    });
    several.into_iter().chain(shared).chain(begun).collect()
}

/// Whether worked examples bring more than they cost: the same training without them, measured on dev.
pub fn of_examples(
    inputs: &Inputs,
    options: &Options,
    with: &Outcome,
    output: &Output,
) -> anyhow::Result<Option<String>> {
    if options.examples.is_empty() {
        return Ok(None);
    }
    let without = Options {
        examples: String::new(),
        ..options.clone()
    };
    let mut bar = Bar::new(output, "without the examples");
    let outcomes = training::train(
        &inputs.base,
        &inputs.library,
        &inputs.train,
        &inputs.dev,
        &without,
        None,
        &mut bar,
    )?;
    let Some(without) = best(&outcomes, |_| true).map(|kept| &outcomes[kept]) else {
        return Ok(None);
    };
    let card = &with.adapter.card;
    let costs = card.token_budget.costs(&card.form, Rates::of(&inputs.base));
    let share = costs
        .iter()
        .find(|cost| cost.part == "examples")
        .map_or(0.0, |cost| cost.share);
    let (gain, score) = (with.dev.score() - without.dev.score(), without.dev.score());
    let error = standard_error(score, with.dev.examples);
    let figures = format!(
        "the worked examples take {:.0} % of the compute and move dev {} from {score:.4} to {:.4}",
        100.0 * share,
        with.dev.main,
        with.dev.score()
    );
    let cost = "they cost more than they bring; leave --few-shot out";
    Ok(Some(if gain > error {
        format!("{figures}, up by more than its standard error of {error:.4}")
    } else if gain < 0.0 {
        format!("{figures}, down: {cost}")
    } else {
        format!("{figures}, up by no more than its standard error of {error:.4}: {cost}")
    }))
}

/// Whether the prompt is too small for its task.
pub fn of_size(
    inputs: &Inputs,
    options: &Options,
    outcome: &Outcome,
    output: &Output,
) -> anyhow::Result<Option<String>> {
    if is_stuck(&inputs.train, outcome) {
        output.note("the training loss stays high: training others beside it to see whether the prompt is too small (--no-advice leaves that out)");
    }
    let found = underfit(
        &inputs.base,
        &inputs.library,
        &inputs.train,
        options,
        outcome,
    )?;
    Ok(found.map(|found| found.text(options.tokens)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples of a text, a second one where there is any, and a label.
    fn data(examples: &[(&str, Option<&str>, &str)]) -> Dataset {
        let example =
            |(line, &(text, text2, label)): (usize, &(&str, Option<&str>, &str))| Example {
                text: text.into(),
                text2: text2.map(Into::into),
                target: Target::Label(label.into()),
                line,
            };
        Dataset {
            path: "t".into(),
            examples: examples.iter().enumerate().map(example).collect(),
            sha256: String::new(),
            begun: None,
        }
    }

    #[test]
    fn worked_examples_of_pairs_have_both_texts() {
        let mut data = data(&[("so", Some("what"), "x"), ("so", Some("what"), "x")]);
        assert_eq!(take_examples(&mut data, 1).unwrap(), "so | what => x\n");
    }

    #[test]
    fn examples_are_of_different_labels_and_not_learned_from() {
        let texts = [("aa", "x"), ("b", "x"), ("ccc", "y"), ("dddd", "y")];
        let mut data = data(&texts.map(|(text, label)| (text, None, label)));
        assert!(take_examples(&mut data.clone(), 4).is_err());
        assert_eq!(take_examples(&mut data, 2).unwrap(), "b => x\nccc => y\n");
        let left: Vec<&str> = data
            .examples
            .iter()
            .map(|example| example.text.as_str())
            .collect();
        assert_eq!(left, ["aa", "dddd"]);
    }

    #[test]
    fn an_example_with_a_place_of_the_template_is_not_shown() {
        let texts = ["{text}", "a {mask}", "longer text"];
        let mut data = data(&texts.map(|text| (text, None, "x")));
        assert!(take_examples(&mut data.clone(), 2).is_err());
        assert_eq!(take_examples(&mut data, 1).unwrap(), "longer text => x\n");
    }
}
