//! Every board profile under `targets/boards` is complete and consistent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Board {
    name: String,
    triple: String,
    cpu: Cpu,
    memory: Memory,
    software: Software,
    runtime: Runtime,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cpu {
    core: String,
    part: String,
    cores: u32,
    mhz: u32,
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    ram_mb: u32,
    budget_mb: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Software {
    glibc_max: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Runtime {
    threads: u32,
}

/// Triples that `targets/setup.sh` sets up.
const TRIPLES: &[&str] = &["aarch64-unknown-linux-gnu"];

/// Core, its part number (MIDR_EL1.PartNum, as `/proc/cpuinfo` prints it) and whether it implements Armv8.2's
/// half-precision and dot-product instructions.
const CORES: &[(&str, &str, bool)] = &[
    ("cortex-a53", "0xd03", false),
    ("cortex-a72", "0xd08", false),
    ("cortex-a76", "0xd0b", true),
];

/// Names of arm64 hardware capabilities up to Armv8.2, as `/proc/cpuinfo` prints them.
const FEATURES: &[&str] = &[
    "aes", "asimd", "asimddp", "asimdhp", "asimdrdm", "atomics", "cpuid", "crc32", "dcpop",
    "evtstrm", "fp", "fphp", "lrcpc", "pmull", "sha1", "sha2",
];

/// What is wrong with a profile; empty if nothing.
fn faults(board: &Board) -> Vec<String> {
    let Board {
        name,
        triple,
        cpu,
        memory,
        software,
        runtime,
    } = board;
    let features: BTreeSet<&str> = cpu.features.iter().map(String::as_str).collect();
    let core = CORES.iter().find(|(core, ..)| *core == cpu.core);
    let has = |feature| features.contains(feature);
    let unknown: Vec<_> = features
        .iter()
        .filter(|feature| !FEATURES.contains(feature))
        .collect();
    let checks = [
        (!name.trim().is_empty(), "name is empty".to_string()),
        (
            TRIPLES.contains(&triple.as_str()),
            format!("unknown triple {triple}"),
        ),
        (core.is_some(), format!("unknown core {}", cpu.core)),
        (
            core.is_none_or(|(_, part, _)| *part == cpu.part),
            format!("{} is not part {}", cpu.core, cpu.part),
        ),
        (
            (1..=64).contains(&cpu.cores),
            format!("{} cores", cpu.cores),
        ),
        ((100..=5000).contains(&cpu.mhz), format!("{} MHz", cpu.mhz)),
        (unknown.is_empty(), format!("unknown features {unknown:?}")),
        (
            features.len() == cpu.features.len(),
            "a feature is listed twice".to_string(),
        ),
        (
            has("fp") && has("asimd"),
            "every arm64 board has fp and asimd".to_string(),
        ),
        (
            has("fphp") == has("asimdhp"),
            "fphp and asimdhp come together".to_string(),
        ),
        (
            core.is_none_or(|(.., v8_2)| has("asimdhp") == *v8_2 && has("asimddp") == *v8_2),
            format!(
                "{} and its half-precision or dot-product features disagree",
                cpu.core
            ),
        ),
        (
            memory.ram_mb.is_multiple_of(256) && memory.ram_mb > 0,
            format!("{} MB of memory", memory.ram_mb),
        ),
        (
            (1..=memory.ram_mb / 2).contains(&memory.budget_mb),
            format!(
                "a budget of {} MB is not within half the memory",
                memory.budget_mb
            ),
        ),
        (
            glibc_version(&software.glibc_max).is_some(),
            format!("glibc {}", software.glibc_max),
        ),
        (
            (1..=cpu.cores).contains(&runtime.threads),
            format!("{} threads", runtime.threads),
        ),
    ];
    checks
        .into_iter()
        .filter(|(holds, _)| !holds)
        .map(|(_, fault)| fault)
        .collect()
}

/// Minor version of a glibc `2.minor`.
fn glibc_version(text: &str) -> Option<u32> {
    text.strip_prefix("2.")?.parse().ok()
}

fn profiles() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../targets/boards");
    let entries = std::fs::read_dir(&folder).expect("targets/boards can be read");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_profile_is_complete_and_consistent() {
    let paths = profiles();
    assert!(!paths.is_empty(), "no profile in targets/boards");
    let mut names = BTreeSet::new();
    for path in &paths {
        assert_eq!(
            path.extension().and_then(|e| e.to_str()),
            Some("toml"),
            "{} is no profile",
            path.display()
        );
        let board: Board = toml::from_str(&read(path))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(faults(&board), Vec::<String>::new(), "{}", path.display());
        assert!(
            names.insert(board.name.clone()),
            "{}: the name {} is taken",
            path.display(),
            board.name
        );
    }
}

#[test]
fn a_wrong_profile_is_named() {
    let good = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../targets/boards/rpi4.toml"));
    let cases = [
        (
            "aarch64-unknown-linux-gnu",
            "aarch64-unknown-linux",
            "unknown triple",
        ),
        ("0xd08", "0xd03", "is not part"),
        ("cortex-a72", "cortex-a7", "unknown core"),
        ("\"crc32\"", "\"crc\"", "unknown features"),
        ("\"crc32\"", "\"asimd\"", "listed twice"),
        ("\"asimd\", ", "", "fp and asimd"),
        ("\"crc32\"", "\"asimddp\"", "disagree"),
        ("cores = 4", "cores = 0", "0 cores"),
        ("budget_mb = 512", "budget_mb = 2048", "half the memory"),
        ("\"2.36\"", "\"3.1\"", "glibc"),
        ("threads = 4", "threads = 5", "threads"),
    ];
    for (from, to, fault) in cases {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from} is not in the profile");
        let board: Board = toml::from_str(&text).unwrap_or_else(|error| panic!("{from}: {error}"));
        let found = faults(&board);
        assert!(
            found.iter().any(|f| f.contains(fault)),
            "{from} -> {to}: {found:?}"
        );
    }
}

#[test]
fn a_profile_has_every_field_and_no_other() {
    let good = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../targets/boards/rpi4.toml"));
    let keys = good.lines().filter(|line| line.contains(" = "));
    for line in keys {
        let without = good.replacen(line, "", 1);
        assert!(
            toml::from_str::<Board>(&without).is_err(),
            "a profile without `{line}` was read"
        );
    }
    let headings = good.lines().filter(|line| line.starts_with('['));
    for heading in headings.chain(["name = \"Raspberry Pi 4 Model B\""]) {
        let with = good.replacen(heading, &format!("{heading}\nsurprise = 1"), 1);
        assert!(
            toml::from_str::<Board>(&with).is_err(),
            "an unknown key after `{heading}` was read"
        );
    }
}
