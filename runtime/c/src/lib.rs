//! The runtime for programs in C: what `include/preface.h` declares.
//!
//! Every entry is one function of the header, and the header says what it owes its caller: no pointer is believed to
//! be set, no panic leaves, and an answer allocates nothing that the engine does not.

#![cfg_attr(test, allow(clippy::unwrap_used))]

// Reads and writes what the caller points at: see the SAFETY comments there.
#[allow(unsafe_code)]
mod answer;
#[allow(unsafe_code)]
mod border;
mod failure;
#[allow(unsafe_code)]
mod follow;
#[allow(unsafe_code)]
mod generate;
mod guard;
#[allow(unsafe_code)]
mod image;
#[allow(unsafe_code)]
mod session;

#[cfg(test)]
mod tests {
    use preface_runtime::Status;

    #[test]
    fn the_header_has_every_status_and_no_other() {
        let header = include_str!("../include/preface.h");
        let section = header.split_once("enum preface_status {").unwrap().1;
        let section = section.split_once("};").unwrap().0;
        let named = section.lines().filter_map(|line| {
            let (name, rest) = line.trim().split_once(" = ")?;
            let number = rest.split([',', ' ']).next()?.parse().ok()?;
            Some((number, name.to_owned()))
        });
        let ours = Status::ALL.map(|(status, name)| {
            let name = name.to_str().unwrap().to_owned();
            (status.code(), name)
        });
        assert!(ours.is_sorted());
        assert_eq!(named.collect::<Vec<(i32, String)>>(), ours);
    }
}
