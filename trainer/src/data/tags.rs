//! Which tags a file may have: BIO, where an entity begins with `B-` and goes on with `I-`, or plain ones, each the
//! tag of one word.

use std::collections::BTreeSet;

use preface_bundle::Tag;

use super::{Example, Target};

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

/// Lets every entity begin with `B-`, where the tags know one: in some files (IOB, Ramshaw and Marcus 1995) it stands only
/// between entities of one type. Returns how many began with `I-`, and the first line of one.
pub fn begin_entities(examples: &mut [Example]) -> Option<(usize, usize)> {
    let lists = || {
        examples.iter().filter_map(|example| match &example.target {
            Target::Tags(tags) => Some(tags),
            _ => None,
        })
    };
    let kinds: BTreeSet<String> = lists()
        .flatten()
        .filter_map(|tag| match Tag::of(tag) {
            Tag::Begins(kind) => Some(kind.to_owned()),
            _ => None,
        })
        .collect();
    let mut begun = None;
    for example in examples {
        let Target::Tags(tags) = &mut example.target else {
            continue;
        };
        let mut open = None;
        for tag in tags {
            let goes_on = match Tag::of(tag) {
                Tag::GoesOn(kind) if open.as_deref() == Some(kind) => continue,
                Tag::GoesOn(kind) if kinds.contains(kind) => Some(kind.to_owned()),
                _ => None,
            };
            if let Some(kind) = goes_on {
                *tag = format!("B-{kind}");
                begun.get_or_insert((0, example.line)).0 += 1;
            }
            open = match Tag::of(tag) {
                Tag::Begins(kind) | Tag::GoesOn(kind) => Some(kind.to_owned()),
                Tag::Outside | Tag::Plain(_) => None,
            };
        }
    }
    begun
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(line: usize, tags: &[&str]) -> Example {
        Example {
            text: "x".into(),
            text2: None,
            target: Target::Tags(tags.iter().map(|&tag| tag.into()).collect()),
            line,
        }
    }

    #[test]
    fn entities_begin_with_b_where_there_is_one() {
        let table: &[(&[&str], &[&str], usize)] = &[
            (&["O", "B-a", "I-a"], &["O", "B-a", "I-a"], 0),
            (&["I-a", "I-a", "B-a"], &["B-a", "I-a", "B-a"], 1),
            (&["I-a", "O", "I-a"], &["B-a", "O", "B-a"], 2),
            (&["B-b", "I-a", "I-b"], &["B-b", "B-a", "B-b"], 2),
            (&["I-c", "O", "I-c"], &["I-c", "O", "I-c"], 0),
        ];
        for (tags, expected, count) in table {
            let mut examples = [example(1, &["B-a", "B-b"]), example(7, tags)];
            let begun = begin_entities(&mut examples);
            assert_eq!(examples[1].target.names(), *expected);
            assert_eq!(begun, (*count > 0).then_some((*count, 7)), "{tags:?}");
        }
    }

    #[test]
    fn plain_tags_stand_alone() {
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
