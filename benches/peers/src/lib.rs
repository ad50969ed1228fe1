//! What the programs of the peers share: their command line, and how a run is measured.

use std::{
    error::Error,
    io::{Read, stdin},
    path::PathBuf,
    time::Instant,
};

use rustix::time::{ClockId, clock_gettime};

const WARM_UPS: usize = 5;
/// The word that the benches' texts are made of, in the vocabulary of BERT.
const TOKEN: i64 = 2422;

/// An error of a peer, a file or the command line.
pub type Failure = Box<dyn Error>;

/// What is asked of a peer: `MODEL [--tokens N] [--runs N] [--threads N] [--packed] [--hold]`.
pub struct Arguments {
    /// The ONNX file.
    pub model: PathBuf,
    /// Length of the text.
    pub tokens: usize,
    /// How many runs are timed.
    pub runs: usize,
    /// Threads that answer.
    pub threads: usize,
    /// Whether the weights are laid out for the products when they are loaded.
    pub packed: bool,
    /// Whether to answer once, say so, and wait until standard input closes.
    pub hold: bool,
}

impl Arguments {
    /// Reads the command line.
    ///
    /// # Errors
    /// When it has an unknown option, no number where one belongs, or no model.
    pub fn read() -> Result<Self, Failure> {
        let mut found = Self {
            model: PathBuf::new(),
            tokens: 16,
            runs: 40,
            threads: 1,
            packed: false,
            hold: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || {
                words
                    .next()
                    .ok_or("a number is missing")?
                    .parse::<usize>()
                    .map_err(Failure::from)
            };
            match &*word {
                "--tokens" => found.tokens = number()?,
                "--runs" => found.runs = number()?,
                "--threads" => found.threads = number()?,
                "--packed" => found.packed = true,
                "--hold" => found.hold = true,
                option if option.starts_with("--") => {
                    return Err(format!("unknown option {option}").into());
                }
                model => found.model = model.into(),
            }
        }
        if found.model.as_os_str().is_empty() {
            return Err(
                "usage: MODEL [--tokens N] [--runs N] [--threads N] [--packed] [--hold]".into(),
            );
        }
        Ok(found)
    }

    /// The values of the base's input `name`, `[1, tokens]`.
    pub fn input(&self, name: &str) -> Vec<i64> {
        let value = match name {
            "input_ids" => TOKEN,
            "attention_mask" => 1,
            _ => 0,
        };
        vec![value; self.tokens]
    }

    /// Measures `run` and prints the medians, or answers once and waits.
    ///
    /// # Errors
    /// When a run fails.
    pub fn measure(&self, mut run: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
        if self.hold {
            run()?;
            println!("ready");
            stdin().read_to_end(&mut Vec::new())?;
            return Ok(());
        }
        let (mut wall, mut processor) = (Vec::new(), Vec::new());
        for number in 0..WARM_UPS + self.runs {
            let (start, before) = (Instant::now(), processor_ms());
            run()?;
            if number >= WARM_UPS {
                processor.push(processor_ms() - before);
                wall.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        println!(
            "{{\"latency_ms\": {}, \"cpu_ms\": {}}}",
            median(wall),
            median(processor)
        );
        Ok(())
    }
}

/// Processor time of all threads so far.
fn processor_ms() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
