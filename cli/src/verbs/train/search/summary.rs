//! What a search tells: for people, for scripts, for the report.

use preface_trainer::search::{Row, Rung};
use serde::Serialize;

/// What was tried under a budget, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Search {
    /// Bytes that the bundle may take.
    pub budget: usize,
    /// Designs that fit it.
    pub fitting: usize,
    /// The rungs.
    pub rungs: Vec<Rung>,
    /// Times that a training row was to be learned from.
    pub row_passes: usize,
    /// The name of the dev figure that chose.
    pub figure: &'static str,
    /// The standard error of the best figure.
    pub standard_error: f64,
    /// What was tried.
    pub table: Vec<Row>,
}

impl Search {
    /// The table for people, a line each.
    pub fn lines(&self) -> Vec<String> {
        let head = format!(
            "   {:>6}  {:>8}  {:<44} {:>8} {:>6} {:>6} {:>8}",
            "bytes", "dev", "design", "rate", "epochs", "rows", "seconds"
        );
        let line = |row: &Row| {
            let marks = [(row.chosen, '>'), (row.pareto, '*')]
                .map(|(is, mark)| if is { mark } else { ' ' });
            let bytes = row.bytes.map_or("-".into(), |bytes| bytes.to_string());
            let dev = row.dev.map_or("-".into(), |dev| format!("{dev:.4}"));
            let rate = row
                .learning_rate
                .map_or("-".into(), |rate| format!("{rate:.1e}"));
            let reason = row
                .failure
                .as_ref()
                .map_or(String::new(), |reason| format!("  {reason}"));
            format!(
                "{}{} {bytes:>6}  {dev:>8}  {:<44} {rate:>8} {:>6} {:>6} {:>8.1}{reason}",
                marks[0], marks[1], row.name, row.epochs, row.rows, row.seconds
            )
        };
        [head]
            .into_iter()
            .chain(self.table.iter().map(line))
            .collect()
    }

    /// What the marks mean.
    pub fn legend(&self) -> String {
        format!(
            "* no smaller design is as good; > chosen: the smallest of the last rung within one standard error ({:.4}) of \
             the best dev {}",
            self.standard_error,
            self.figure.replace('_', " ")
        )
    }

    /// Each design and what came of it, for the report.
    pub fn settings(&self) -> Vec<(String, String)> {
        let value = |row: &Row| {
            let figures = row
                .bytes
                .zip(row.dev)
                .map(|(bytes, dev)| format!("{bytes} bytes, dev {dev:.4}"));
            let text = figures.or_else(|| row.failure.clone()).unwrap_or_default();
            let rate = row
                .learning_rate
                .map_or(String::new(), |rate| format!(", learning rate {rate}"));
            let mark = if row.chosen { ", chosen" } else { "" };
            format!(
                "{text}{rate}, {} epochs, {} rows{mark}",
                row.epochs, row.rows
            )
        };
        let lines = self
            .table
            .iter()
            .map(|row| (format!("search: {}", row.name), value(row)));
        [("budget".into(), format!("{} bytes", self.budget))]
            .into_iter()
            .chain(lines)
            .collect()
    }
}
