//! What `preface bench` measured, for scripts and for people.

use preface_runtime::Weights;
use serde::Serialize;

use crate::{memory::Memory, output::Output};

/// The middle of measured values, and what 95 of 100 do not exceed.
#[derive(Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p95: f64,
}

/// What was measured.
#[derive(Serialize)]
pub struct Report {
    pub engine: String,
    pub weights: Weights,
    pub tokens: f64,
    pub latency_ms: Percentiles,
    pub cpu_ms: Percentiles,
    pub text_latency_ms: Option<Percentiles>,
    pub tokens_per_second: f64,
    pub cpu_ms_per_token: Option<f64>,
    pub allocations_per_run: f64,
    pub allocations_per_text: Option<f64>,
    pub cold_start_ms: Option<f64>,
    pub load_us: f64,
    pub swap_us: f64,
    pub arena_bytes: usize,
    pub ceiling_bytes: Option<usize>,
    pub private_bytes: u64,
    pub shared_bytes: u64,
    pub processes: usize,
    pub image_bytes: usize,
    pub image: Memory,
}

/// Prints it for people.
pub fn say(report: &Report, output: &Output) {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let Report {
        latency_ms,
        cpu_ms,
        text_latency_ms,
        image,
        ..
    } = report;
    output.say(format_args!(
        "engine            {}, weights in {}",
        report.engine, report.weights
    ));
    output.say(format_args!(
        "latency           p50 {:.2} ms, p95 {:.2} ms at {:.0} tokens",
        latency_ms.p50, latency_ms.p95, report.tokens
    ));
    output.say(format_args!(
        "  processor time  p50 {:.2} ms, p95 {:.2} ms, of all threads",
        cpu_ms.p50, cpu_ms.p95
    ));
    if let Some(latency_ms) = text_latency_ms {
        output.say(format_args!(
            "  from text       p50 {:.2} ms, p95 {:.2} ms",
            latency_ms.p50, latency_ms.p95
        ));
    }
    output.say(format_args!(
        "tokens per second {:.0}",
        report.tokens_per_second
    ));
    if let Some(cpu_ms) = report.cpu_ms_per_token {
        output.say(format_args!(
            "  processor time  {cpu_ms:.2} ms a generated token, of all threads"
        ));
    }
    let per_text = report.allocations_per_text;
    output.say(format_args!(
        "allocations       {:.0} a run{}",
        report.allocations_per_run,
        per_text.map_or_else(String::new, |calls| format!(", {calls:.0} a text"))
    ));
    output.say(format_args!(
        "memory            {:.1} MiB private, {:.1} MiB shared, with {} processes",
        mebibytes(report.private_bytes),
        mebibytes(report.shared_bytes),
        report.processes
    ));
    output.say(format_args!(
        "  the image       {:.1} MiB resident, {:.1} MiB shared, {:.1} MiB written",
        mebibytes(image.resident_bytes),
        mebibytes(image.shared_bytes),
        mebibytes(image.private_dirty_bytes)
    ));
    output.say(format_args!(
        "arena             {:.1} MiB",
        mebibytes(report.arena_bytes as u64)
    ));
    if let Some(time_ms) = report.cold_start_ms {
        output.say(format_args!("cold start        {time_ms:.1} ms"));
    }
    output.say(format_args!("load a bundle     {:.0} us", report.load_us));
    output.say(format_args!("swap              {:.3} us", report.swap_us));
}

/// The nearest-rank percentiles of `times`, of which there is at least one.
pub fn percentiles(mut times: Vec<f64>) -> Percentiles {
    times.sort_by(f64::total_cmp);
    let at =
        |part: f64| times[((times.len() as f64 * part).ceil() as usize).clamp(1, times.len()) - 1];
    Percentiles {
        p50: at(0.5),
        p95: at(0.95),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let table = [
            (1, 1.0, 1.0),
            (2, 1.0, 2.0),
            (20, 10.0, 19.0),
            (100, 50.0, 95.0),
        ];
        for (count, p50, p95) in table {
            let times = (1..=count).rev().map(f64::from).collect();
            let found = percentiles(times);
            assert_eq!((found.p50, found.p95), (p50, p95), "{count}");
        }
    }
}
