//! Text as it grows.

use super::stops::Stops;

/// A text that grows by the pieces of its tokens, and how much of it was given out.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    text: String,
    /// The first bytes of a character that is not yet whole.
    begun: Vec<u8>,
    /// Bytes of the text that were given out.
    given: usize,
}

impl Stream {
    /// Makes room for texts of so many bytes of pieces.
    pub fn reserve(&mut self, bytes: usize) {
        self.restart();
        // A byte that is no text becomes a character of three.
        self.text
            .reserve(bytes * char::REPLACEMENT_CHARACTER.len_utf8());
        self.begun.reserve(char::MAX.len_utf8());
    }

    /// Bytes of that room.
    pub fn bytes(&self) -> usize {
        self.text.capacity() + self.begun.capacity()
    }

    /// Begins another text.
    pub fn restart(&mut self) {
        self.text.clear();
        self.begun.clear();
        self.given = 0;
    }

    /// The whole text, without the stop that ended it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Goes on with the bytes of `piece` and gives `hear` all that is certain by now: whole characters that can no
    /// longer become part of a stop. Bytes that are no text become U+FFFD as in [`String::from_utf8_lossy`]. Whether
    /// a stop ended the text.
    pub fn push(&mut self, piece: &[u8], stops: &Stops, hear: &mut dyn FnMut(&str)) -> bool {
        let old = self.text.len();
        for &byte in piece {
            self.begun.push(byte);
            self.take_characters();
        }
        self.cut(old, stops, hear)
    }

    /// Gives `hear` the rest, with U+FFFD for a character that is not whole.
    pub fn end(&mut self, stops: &Stops, hear: &mut dyn FnMut(&str)) {
        let old = self.text.len();
        if !self.begun.is_empty() {
            self.begun.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        if !self.cut(old, stops, hear) {
            self.give(self.text.len(), hear);
        }
    }

    /// Ends the text behind what was given out.
    pub fn end_here(&mut self) {
        self.text.truncate(self.given);
        self.begun.clear();
    }

    /// Moves what is whole, or no beginning of a character, from `begun` to the text.
    fn take_characters(&mut self) {
        while !self.begun.is_empty() {
            let taken = match str::from_utf8(&self.begun) {
                Ok(whole) => {
                    self.text.push_str(whole);
                    whole.len()
                }
                Err(error) => {
                    let Some(wrong) = error.error_len() else {
                        return;
                    };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    wrong
                }
            };
            self.begun.drain(..taken);
        }
    }

    /// Ends the text before a stop that ends behind its first `old` bytes. Whether there was one.
    fn cut(&mut self, old: usize, stops: &Stops, hear: &mut dyn FnMut(&str)) -> bool {
        let stop = stops.find(&self.text, old);
        if let Some(stop) = stop {
            self.text.truncate(stop);
            self.begun.clear();
            self.give(stop, hear);
        } else {
            self.give(stops.certain(&self.text), hear);
        }
        stop.is_some()
    }

    fn give(&mut self, until: usize, hear: &mut dyn FnMut(&str)) {
        if until > self.given {
            hear(&self.text[self.given..until]);
            self.given = until;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generation::testing::allocations_of;

    /// What is heard of `pieces`, one by one, and the whole text.
    fn heard(pieces: &[&[u8]], stops: &[&str]) -> (Vec<String>, String) {
        let stops = Stops::new(stops).unwrap();
        let (mut stream, mut heard) = (Stream::default(), Vec::new());
        let mut hear = |text: &str| heard.push(text.to_owned());
        let stopped = pieces
            .iter()
            .any(|piece| stream.push(piece, &stops, &mut hear));
        if !stopped {
            stream.end(&stops, &mut hear);
        }
        (heard, stream.text().to_owned())
    }

    #[test]
    fn whole_characters_are_given_as_they_come() {
        let table: [(&[&[u8]], &[&str]); 5] = [
            (&[b"a", b"b"], &["a", "b"]),
            (&[b"a\xe2", b"\x82", b"\xacb"], &["a", "€b"]),
            (&[b"\xe2\x82", b"c"], &["\u{fffd}c"]),
            (
                &[b"\xff", b"d", b"\xf0\x9f"],
                &["\u{fffd}", "d", "\u{fffd}"],
            ),
            (&[b"", b"e"], &["e"]),
        ];
        for (pieces, expected) in table {
            let (heard, whole) = heard(pieces, &[]);
            assert_eq!(heard, expected);
            assert_eq!(whole, String::from_utf8_lossy(&pieces.concat()));
        }
    }

    #[test]
    fn a_stop_ends_a_text_and_is_not_given() {
        let table: [(&[&[u8]], &[&str]); 4] = [
            (&[b"on", b" EN", b"D off"], &["on", " "]),
            (&[b"on E", b"N", b"S"], &["on ", "ENS"]),
            (&[b"on E"], &["on ", "E"]),
            (&[b"END"], &[]),
        ];
        for (pieces, expected) in table {
            let (heard, whole) = heard(pieces, &["END"]);
            assert_eq!(heard, expected);
            assert_eq!(whole, expected.concat());
        }
    }

    #[test]
    fn a_text_ends_behind_what_was_given() {
        let stops = Stops::new(&["END"]).unwrap();
        let mut stream = Stream::default();
        stream.push(b"on E\xe2\x82", &stops, &mut |_| ());
        stream.end_here();
        assert_eq!(stream.text(), "on ");
        stream.end(&stops, &mut |rest| panic!("{rest:?}"));
        assert_eq!(stream.text(), "on ");
    }

    proptest! {
        #[test]
        fn how_a_text_is_split_does_not_matter(
            bytes in prop::collection::vec(prop::sample::select(&b"aab\xc3\xa9\xe2\x82\xac"[..]), 0..24),
            cuts in prop::collection::vec(0usize..24, 0..6),
            stops in prop::collection::vec("[abé€\u{fffd}]{1,3}", 0..3),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let (split, whole) = heard(&pieces, &stops);
            prop_assert_eq!(&split.concat(), &whole);
            let text = String::from_utf8_lossy(&bytes);
            let stop = Stops::new(&stops).unwrap().find(&text, 0);
            prop_assert_eq!(&whole, &text[..stop.unwrap_or(text.len())]);
        }
    }

    #[test]
    fn a_text_takes_no_memory() {
        let made = || {
            let mut stream = Stream::default();
            stream.reserve(40);
            (stream, Stops::new(&["stop"]).unwrap())
        };
        let allocations = allocations_of(made, |(stream, stops)| {
            for _ in 0..2 {
                stream.restart();
                (0..10).for_each(|_| {
                    stream.push(b"a\xffs\xe2", stops, &mut |_| ());
                });
                stream.end(stops, &mut |_| ());
            }
        });
        assert_eq!(allocations, 0);
    }
}
