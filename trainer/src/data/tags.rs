//! Which tags a file may have: BIO, where an entity begins with `B-` and goes on with `I-`, or plain ones, each the
//! tag of one word.

use super::{Example, Target};

/// A tag as BIO reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag<'a> {
    /// In no entity.
    Outside,
    /// The first word of an entity of this type.
    Begins(&'a str),
    /// A further word of one.
    GoesOn(&'a str),
    /// A tag that is not one of BIO's.
    Plain(&'a str),
}

impl<'a> Tag<'a> {
    /// Reads a tag.
    pub fn of(tag: &'a str) -> Self {
        match tag.split_once('-') {
            _ if tag == "O" => Self::Outside,
            Some(("B", kind)) if !kind.is_empty() => Self::Begins(kind),
            Some(("I", kind)) if !kind.is_empty() => Self::GoesOn(kind),
            _ => Self::Plain(tag),
        }
    }
}

/// Refuses plain tags among those of BIO: they are misspelled, or of BIOES, whose entities would be counted in pieces.
///
/// # Errors
/// The line and the reason.
pub fn refuse_mixed(examples: &[Example]) -> Result<(), (usize, String)> {
    let tags = || {
        examples.iter().flat_map(|example| match &example.target {
            Target::Tags(tags) => tags
                .iter()
                .map(|tag| (example.line, Tag::of(tag)))
                .collect(),
            _ => Vec::new(),
        })
    };
    let is_bio = tags().any(|(_, tag)| matches!(tag, Tag::Begins(_) | Tag::GoesOn(_)));
    let plain = tags().find_map(|(line, tag)| match tag {
        Tag::Plain(name) => Some((line, name)),
        _ => None,
    });
    match plain {
        Some((line, name)) if is_bio => Err((
            line,
            format!(
                "the tag {name:?} is none of O, B-TYPE and I-TYPE as others of the file are; of BIOES, write S- as B- and E- as I-"
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_tags_stand_alone() {
        let example = |line, tags: &[&str]| Example {
            text: "x".into(),
            text2: None,
            target: Target::Tags(tags.iter().map(|&tag| tag.into()).collect()),
            line,
        };
        let bio = example(1, &["O", "B-a", "I-a"]);
        assert_eq!(refuse_mixed(std::slice::from_ref(&bio)), Ok(()));
        assert_eq!(refuse_mixed(&[example(1, &["NOUN", "X-a", "O"])]), Ok(()));
        for name in ["a", "B-", "b-a", "E-a", "B"] {
            let (line, reason) = refuse_mixed(&[bio.clone(), example(2, &[name])]).unwrap_err();
            assert!(
                line == 2 && reason.contains(&format!("{name:?}")),
                "{reason}"
            );
        }
    }
}
