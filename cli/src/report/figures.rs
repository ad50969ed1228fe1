//! How figures are written.

/// Metrics that name what a training is about, the most telling first; others follow by name.
const METRICS: [&str; 6] = [
    "micro_f1",
    "accuracy",
    "entity_f1",
    "exact_match",
    "macro_f1",
    "rouge_l",
];

/// What stands for a figure that is not there.
pub const NONE: &str = "–";

/// The names of metrics, the most telling first, without repetition.
pub fn metric_order<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.into_iter().map(String::as_str).collect();
    let rank = |name: &str| METRICS.iter().position(|metric| *metric == name);
    names.sort_by_key(|name| (rank(name).unwrap_or(METRICS.len()), *name));
    names.dedup();
    names
}

/// A metric's name for people: `macro_f1` is `macro F1`.
pub fn metric_name(name: &str) -> String {
    let words = name.split('_').map(|word| match word {
        "f1" | "bleu" | "rouge" | "oos" => word.to_uppercase(),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A metric: four digits behind the point up to 1, as the program prints it, else two.
pub fn metric(value: f64) -> String {
    match value {
        value if !value.is_finite() => NONE.into(),
        value if value.abs() <= 1.0 => format!("{value:.4}"),
        value => format!("{value:.2}"),
    }
}

/// A loss or another small number: three digits that count.
pub fn small(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => NONE.into(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    match share.is_finite() {
        true => format!("{:.1} %", 100.0 * share),
        false => NONE.into(),
    }
}

/// A whole number with commas between thousands.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in bytes.
pub fn bytes(value: u64) -> String {
    match value {
        0..1024 => format!("{value} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", value as f64 / 1024.0),
        _ => format!("{:.1} MiB", value as f64 / 1_048_576.0),
    }
}

/// A number of parameters.
pub fn parameters(value: u64) -> String {
    match value {
        0..1_000_000 => count(value),
        1_000_000..1_000_000_000 => format!("{:.1} million", value as f64 / 1e6),
        _ => format!("{:.2} billion", value as f64 / 1e9),
    }
}

/// A span of time.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return NONE.into();
    }
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    match hours {
        0 => format!("{minutes} min {seconds} s"),
        _ => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_as_people_write_them() {
        let cases = [
            (count(0), "0"),
            (count(999), "999"),
            (count(22_713_216), "22,713,216"),
            (bytes(1023), "1023 bytes"),
            (bytes(6400), "6.2 KiB"),
            (parameters(22_713_216), "22.7 million"),
            (parameters(12_678), "12,678"),
            (duration(12.34), "12.3 s"),
            (duration(59.97), "1 min 0 s"),
            (duration(7384.0), "2 h 3 min"),
            (duration(f64::NAN), NONE),
            (metric(0.938), "0.9380"),
            (metric(41.257), "41.26"),
            (small(0.012345), "0.0123"),
            (small(2.3456), "2.35"),
            (small(0.0), "0.00"),
            (percent(0.5), "50.0 %"),
            (metric_name("macro_f1"), "macro F1"),
        ];
        for (found, expected) in cases {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_most_telling_metric_first() {
        let names = ["zeta", "accuracy", "macro_f1", "bleu", "accuracy"].map(String::from);
        let order = metric_order(&names);
        assert_eq!(order, ["accuracy", "macro_f1", "bleu", "zeta"]);
    }
}
