//! Tags of words: BIO (Ramshaw and Marcus 1995), where an entity begins with `B-TYPE` and goes on with `I-TYPE`.

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

/// What may stand before a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Any tag, or none.
    Any,
    /// A tag of the entity that goes on: the places of its `B-TYPE` and `I-TYPE` among the tags.
    Entity([usize; 2]),
}

impl Before {
    /// What may stand before each of `tags`. Where they have no `B-TYPE`, an `I-TYPE` may begin.
    pub fn each<'a>(tags: impl Iterator<Item = &'a str> + Clone) -> impl Iterator<Item = Self> {
        let places = tags.clone().enumerate();
        places.map(move |(place, tag)| Self::of(tag, place, tags.clone()))
    }

    fn of<'a>(tag: &str, place: usize, mut tags: impl Iterator<Item = &'a str>) -> Self {
        let Tag::GoesOn(kind) = Tag::of(tag) else {
            return Self::Any;
        };
        match tags.position(|tag| Tag::of(tag) == Tag::Begins(kind)) {
            Some(begins) => Self::Entity([begins, place]),
            None => Self::Any,
        }
    }
}

/// The likeliest sequence of tags, from the last word to the first: of those in which every tag stands behind one that
/// may stand before it, the one whose logits have the greatest sum (Viterbi 1967).
///
/// `logits` are `[words, tags]`, and overwritten; `before` says for each tag what may stand before it.
pub fn likeliest<'a>(
    logits: &'a mut [f32],
    before: &'a [Before],
) -> impl Iterator<Item = usize> + use<'a> {
    let tags = before.len().max(1);
    let mut rows = logits.chunks_exact_mut(tags);
    if let Some(mut done) = rows.next() {
        let begins = done.iter_mut().zip(before);
        begins
            .filter(|(_, before)| **before != Before::Any)
            .for_each(|(logit, _)| *logit = f32::NEG_INFINITY);
        for row in rows {
            // The greatest sum so far counts as 0, so that sums stay as exact as logits.
            let (_, greatest) = best(done, Before::Any);
            for (logit, before) in row.iter_mut().zip(before) {
                if *before != Before::Any {
                    *logit += best(done, *before).1 - greatest;
                }
            }
            done = row;
        }
    }
    let mut behind = Before::Any;
    logits.chunks_exact(tags).rev().map(move |sums| {
        let (tag, _) = best(sums, behind);
        behind = before.get(tag).copied().unwrap_or(Before::Any);
        tag
    })
}

/// The tag with the greatest of `sums` among those that `allowed` names, the first of equals, and its sum.
fn best(sums: &[f32], allowed: Before) -> (usize, f32) {
    let better = |best: (usize, f32), (tag, sum): (usize, f32)| {
        if sum > best.1 { (tag, sum) } else { best }
    };
    let least = (0, f32::NEG_INFINITY);
    match allowed {
        Before::Any => sums.iter().copied().enumerate().fold(least, better),
        Before::Entity([begins, goes_on]) => {
            let sum = |tag: usize| (tag, sums.get(tag).copied().unwrap_or(f32::NEG_INFINITY));
            better(sum(begins), sum(goes_on))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGS: [&str; 5] = ["B-a", "B-b", "I-a", "I-b", "O"];

    fn before<const COUNT: usize>(tags: &[&str; COUNT]) -> [Before; COUNT] {
        let mut each = Before::each(tags.iter().copied());
        core::array::from_fn(|_| each.next().unwrap())
    }

    #[test]
    fn an_entity_goes_on_behind_its_own_type() {
        let any = Before::Any;
        let expected = [
            any,
            any,
            Before::Entity([0, 2]),
            Before::Entity([1, 3]),
            any,
        ];
        assert_eq!(before(&TAGS), expected);
        assert_eq!(before(&["I-a", "I-b", "O", "B-", "X-a"]), [any; 5]);
    }

    /// The sequence that the greatest sum of all legal ones has, by trying them all.
    fn by_trial(logits: &[[f32; 5]; 4], before: &[Before; 5]) -> [usize; 4] {
        let mut best = ([0; 4], f32::NEG_INFINITY);
        for number in 0..5_usize.pow(4) {
            let tags: [usize; 4] =
                core::array::from_fn(|word| number / 5_usize.pow(word as u32) % 5);
            let legal = (0..4).all(|word| match before[tags[word]] {
                Before::Any => true,
                Before::Entity(two) => word > 0 && two.contains(&tags[word - 1]),
            });
            let sum = (0..4).map(|word| logits[word][tags[word]]).sum();
            if legal && sum > best.1 {
                best = (tags, sum);
            }
        }
        best.0
    }

    #[test]
    fn the_sequence_is_the_best_of_all_legal_ones() {
        let before = before(&TAGS);
        let mut changed = 0;
        for seed in 1..200_u32 {
            let mut state = seed;
            let mut number = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) as f32 / 16_384.0
            };
            let logits: [[f32; 5]; 4] =
                core::array::from_fn(|_| core::array::from_fn(|_| number()));
            let mut sums = logits;
            let mut found = [0; 4];
            let from_last = likeliest(sums.as_flattened_mut(), &before);
            found
                .iter_mut()
                .rev()
                .zip(from_last)
                .for_each(|(slot, tag)| *slot = tag);
            assert_eq!(found, by_trial(&logits, &before), "{logits:?}");
            let greatest: [usize; 4] =
                core::array::from_fn(|word| best(&logits[word], Before::Any).0);
            changed += usize::from(found != greatest);
        }
        assert!(changed > 50, "{changed}");
    }

    #[test]
    fn long_texts_lose_no_precision_and_odd_numbers_do_no_harm() {
        let before = before(&["B-a", "I-a", "O"]);
        let mut logits = [0.0; 3 * 3000];
        for row in logits.chunks_exact_mut(3) {
            row.copy_from_slice(&[1000.0, 1000.0, 1000.001]);
        }
        assert!(likeliest(&mut logits, &before).all(|tag| tag == 2));
        let mut odd = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            1.0,
            2.0,
        ];
        assert_eq!(likeliest(&mut odd, &before).count(), 2);
        assert_eq!(likeliest(&mut [], &before).count(), 0);
        assert_eq!(likeliest(&mut [], &[]).count(), 0);
    }
}
