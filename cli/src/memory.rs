//! What the kernel says about this process's memory.

use std::{fs, io, path::Path};

/// Memory of a process or of a part of it, as `/proc/self/smaps` counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Pages that are in memory.
    pub resident_bytes: u64,
    /// Of which pages that no other process has.
    pub private_bytes: u64,
    /// Of which this process wrote.
    pub private_dirty_bytes: u64,
    /// Pages that other processes have too.
    pub shared_bytes: u64,
    /// Resident pages, each divided by the number of processes that have it.
    pub proportional_bytes: u64,
}

impl Memory {
    /// The whole process.
    ///
    /// # Errors
    /// Where there is no `/proc/self/smaps_rollup`.
    pub fn of_process() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/self/smaps_rollup")?;
        Ok(text.lines().fold(Self::default(), Self::and))
    }

    /// The mappings of the file at `path`.
    ///
    /// # Errors
    /// Where there is no `/proc/self/smaps`, or no such file.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string("/proc/self/smaps")?;
        let path = fs::canonicalize(path)?;
        Ok(Self::of_mappings(&text, &path.to_string_lossy()))
    }

    fn of_mappings(smaps: &str, path: &str) -> Self {
        let mut total = Self::default();
        let mut inside = false;
        for line in smaps.lines() {
            let first = line.split(' ').next().unwrap_or_default();
            if first.ends_with(':') {
                total = if inside { total.and(line) } else { total };
            } else {
                inside = path_of(line) == path;
            }
        }
        total
    }

    /// Adds one line of a table: `Private_Clean:        40 kB`.
    fn and(mut self, line: &str) -> Self {
        let mut words = line.split_ascii_whitespace();
        let name = words.next().unwrap_or_default();
        let bytes = words
            .next()
            .and_then(|word| word.parse::<u64>().ok())
            .unwrap_or(0)
            * 1024;
        match name {
            "Rss:" => self.resident_bytes += bytes,
            "Pss:" => self.proportional_bytes += bytes,
            "Private_Clean:" => self.private_bytes += bytes,
            "Private_Dirty:" => {
                self.private_bytes += bytes;
                self.private_dirty_bytes += bytes;
            }
            "Shared_Clean:" | "Shared_Dirty:" => self.shared_bytes += bytes,
            _ => {}
        }
        self
    }
}

/// The path in the first line of a mapping: what follows address, permissions, offset, device and inode.
fn path_of(line: &str) -> &str {
    (0..5).fold(line, |rest, _| {
        rest.split_once(' ')
            .map_or("", |(_, rest)| rest.trim_start())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_one_file_add_up() {
        let smaps = "\
55e0-55e1 r--p 00000000 08:01 11 /a/x.base
Rss:                  40 kB
Pss:                  20 kB
Shared_Clean:         36 kB
Private_Clean:         4 kB
55e2-55e3 rw-p 00000000 00:00 0 [heap]
Rss:                   8 kB
Private_Dirty:         8 kB
55e3-55e4 r--p 00000000 08:01 12                         /b/a/x.base
Rss:                  16 kB
55e4-55e5 r--p 00000000 08:01 11                         /a/x.base
Rss:                   4 kB
Private_Dirty:         4 kB
VmFlags: rd mr mw me
";
        let expected = Memory {
            resident_bytes: 44 << 10,
            private_bytes: 8 << 10,
            private_dirty_bytes: 4 << 10,
            shared_bytes: 36 << 10,
            proportional_bytes: 20 << 10,
        };
        assert_eq!(Memory::of_mappings(smaps, "/a/x.base"), expected);
    }

    #[test]
    fn this_process_has_memory() {
        let memory = Memory::of_process().expect("the kernel counts memory");
        assert!(memory.resident_bytes >= memory.private_bytes && memory.private_bytes > 0);
    }
}
