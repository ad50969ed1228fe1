//! `preface train --budget`: several designs, of which one is chosen.

mod bar;
mod lines;
mod race;
mod summary;

use preface_trainer::{
    methods::method,
    options::Options,
    search::{
        DESIGNS, Problem, Rung, Standing, choice, rates, rungs, spread, standard_error, table,
    },
    training::Outcome,
};

pub use {lines::Lines, summary::Search};

use self::race::{Race, Racer};
use super::{Arguments, Inputs};
use crate::output::Output;

/// Where the designs of the last rung are trained.
pub const FOLDER: &str = "search.partial";

/// Reads a size: bytes, or `KB`, `KiB`, `MB` or `MiB` behind a number.
///
/// # Errors
/// When it is none, or less than a byte.
pub fn bytes(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, f64); 6] = [
        ("", 1.0),
        ("b", 1.0),
        ("kb", 1e3),
        ("kib", 1024.0),
        ("mb", 1e6),
        ("mib", 1_048_576.0),
    ];
    let wrong = || {
        format!("{text:?} is no size; write bytes, or KB or KiB behind a number: 8192, 8KB, 8KiB")
    };
    let text = text.trim();
    let end = text
        .find(|letter: char| letter != '.' && !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| factor);
    let size = number
        .parse::<f64>()
        .ok()
        .zip(factor)
        .map(|(number, factor)| number * factor);
    match size {
        Some(size) if (1.0..=1e12).contains(&size) => Ok(size as usize),
        _ => Err(wrong()),
    }
}

/// The design that was chosen, trained.
pub struct Chosen {
    /// How.
    pub options: Options,
    /// What each seed gave.
    pub outcomes: Vec<Outcome>,
    /// The seed that is kept.
    pub kept: usize,
    /// What it was chosen from.
    pub search: Search,
}

/// Searches; the chosen design's journal is then that of the output folder.
pub fn run(
    arguments: &Arguments,
    inputs: &Inputs,
    options: &Options,
    budget: usize,
    output: &Output,
) -> anyhow::Result<Chosen> {
    let given = arguments.given();
    let problem = Problem::new(&inputs.base, &inputs.train, options);
    let fitting = problem.within(&given, budget)?;
    let mut racers = Vec::new();
    for contender in spread(&fitting, DESIGNS) {
        let own = method(&contender.design.method)?.learning_rate;
        racers.push(Racer {
            design: contender.design,
            rates: rates(given.learning_rate, own),
        });
    }
    let most_rates = racers
        .iter()
        .map(|racer| racer.rates.len())
        .max()
        .unwrap_or(1);
    let plan = rungs(racers.len(), most_rates, options.epochs);
    let (rows, seeds) = (inputs.train.examples.len(), options.candidates.len());
    let row_passes = plan.iter().map(|rung| rung.row_passes(rows, seeds)).sum();
    explain(
        &plan,
        fitting.len(),
        row_passes,
        options.epochs * rows * seeds,
        output,
    );
    let mut race = Race {
        arguments,
        inputs,
        options,
        budget,
        output,
        lines: Lines::open(&arguments.output, arguments.resume)?,
        finished: Vec::new(),
    };
    for (at, rung) in plan.iter().enumerate().take(plan.len() - 1) {
        race.early(&racers, rung, (at + 1, plan.len()))?;
        racers = race.survivors(at + 1, &plan[at + 1])?;
    }
    let mut finalists = race.last(&racers, &plan)?;
    let standings: Vec<Standing> = finalists.iter().map(|finalist| finalist.standing).collect();
    let examples = finalists
        .first()
        .map_or(0, |finalist| finalist.outcomes[0].dev.examples);
    let Some(chosen) = choice(&standings, examples) else {
        return Err(race.nothing_left(plan.len()));
    };
    let best = standings
        .iter()
        .map(|standing| standing.dev)
        .fold(0.0, f64::max);
    let finalist = finalists.swap_remove(chosen);
    race.keep_journal(&finalist.design)?;
    let search = Search {
        budget,
        fitting: fitting.len(),
        table: table(&race.finished, budget, &finalist.design),
        rungs: plan,
        row_passes,
        figure: finalist.outcomes[finalist.kept].dev.main,
        standard_error: standard_error(best, examples),
    };
    tell(&search, output);
    Ok(Chosen {
        options: finalist.options,
        outcomes: finalist.outcomes,
        kept: finalist.kept,
        search,
    })
}

/// Says what the search will cost.
fn explain(plan: &[Rung], fitting: usize, row_passes: usize, once: usize, output: &Output) {
    let tried = plan.first().map_or(0, |rung| rung.designs);
    output.note(format_args!(
        "{fitting} designs fit the budget, {tried} are tried:"
    ));
    for (at, rung) in plan.iter().enumerate() {
        let rows = rung
            .rows
            .map_or("all rows".into(), |rows| format!("at most {rows} rows"));
        output.note(format_args!(
            "  rung {}: {} designs, {} learning rates at once, {} epochs, {rows}",
            at + 1,
            rung.designs,
            rung.rates,
            rung.epochs
        ));
    }
    output.note(format_args!(
        "  epochs x rows x candidates: {row_passes} at most, {:.1} times one training",
        row_passes as f64 / once.max(1) as f64
    ));
}

fn tell(search: &Search, output: &Output) {
    search.lines().iter().for_each(|line| output.say(line));
    output.say(search.legend());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let table = [
            ("8192", Some(8192)),
            ("8KB", Some(8000)),
            ("8 KiB", Some(8192)),
            ("8kib", Some(8192)),
            ("1.5KiB", Some(1536)),
            ("1MiB", Some(1 << 20)),
            ("2mb", Some(2_000_000)),
            ("700 B", Some(700)),
            ("0", None),
            ("", None),
            ("KiB", None),
            ("-8KiB", None),
            ("8 gallons", None),
            ("1.2.3", None),
            ("9e99", None),
        ];
        for (text, expected) in table {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
        let error = bytes("8 gallons").unwrap_err();
        assert!(
            error.contains("8 gallons") && error.contains("8KiB"),
            "{error}"
        );
    }
}
