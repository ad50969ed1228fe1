//! What a prompt gives away: which tokens its vectors are near to, and whether they spell a text.

use std::ops::Range;

/// The cosine from which on a vector reads as a token: one that started there and hardly moved.
pub const READABLE_COSINE: f32 = 0.9;
/// The fewest tokens in a row that count as a part of a text.
const FEWEST_TOKENS: usize = 3;

/// A row of a vocabulary's embeddings beside a vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// The row's number, which is the token's id.
    pub token: usize,
    /// Cosine of the angle between them.
    pub cosine: f32,
}

/// For each vector of a prompt `[tokens, hidden]` the nearest `count` rows of `table` `[vocabulary, hidden]` by cosine,
/// the nearest first.
pub fn neighbours(
    prompt: &[f32],
    table: &[f32],
    hidden: usize,
    count: usize,
) -> Vec<Vec<Neighbour>> {
    let vectors: Vec<&[f32]> = prompt.chunks_exact(hidden.max(1)).collect();
    let norms: Vec<f32> = vectors.iter().map(|vector| norm(vector)).collect();
    let mut found = vec![Vec::with_capacity(count + 1); vectors.len()];
    for (token, row) in table.chunks_exact(hidden.max(1)).enumerate() {
        let length = norm(row);
        for ((vector, norm), nearest) in vectors.iter().zip(&norms).zip(&mut found) {
            let product = length * norm;
            let cosine = match product > 0.0 {
                true => inner(vector, row) / product,
                false => 0.0,
            };
            insert(nearest, Neighbour { token, cosine }, count);
        }
    }
    found
}

/// Puts a neighbour in its place among the nearest, of which `count` stay.
fn insert(nearest: &mut Vec<Neighbour>, new: Neighbour, count: usize) {
    let place = nearest.partition_point(|one| one.cosine >= new.cosine);
    if place < count {
        nearest.insert(place, new);
        nearest.truncate(count);
    }
}

/// Where three or more `tokens` in a row stand so in one of the texts; no two of the ranges overlap.
pub fn spelled(tokens: &[usize], texts: &[Vec<usize>]) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut rest = tokens;
    while !rest.is_empty() {
        let start = tokens.len() - rest.len();
        let lengths = texts
            .iter()
            .flat_map(|text| (0..text.len()).filter_map(|at| text.get(at..)))
            .map(|text| rest.iter().zip(text).take_while(|(a, b)| a == b).count());
        let longest = lengths.max().unwrap_or(0);
        let taken = match longest >= FEWEST_TOKENS {
            true => {
                runs.push(start..start + longest);
                longest
            }
            false => 1,
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    runs
}

fn inner(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

fn norm(vector: &[f32]) -> f32 {
    inner(vector, vector).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rows_are_those_of_the_same_direction() {
        let table = [1.0, 0.0, 0.0, 1.0, 3.0, 3.0, 0.0, 0.0];
        let prompt = [0.1, 0.0, 2.0, 1.9, 0.0, -5.0];
        let found = neighbours(&prompt, &table, 2, 2);
        let tokens: Vec<Vec<usize>> = found
            .iter()
            .map(|nearest| nearest.iter().map(|one| one.token).collect())
            .collect();
        assert_eq!(tokens, [[0, 2], [2, 0], [0, 3]]);
        assert_eq!(found[0][0].cosine, 1.0);
        assert!((found[0][1].cosine - 0.5f32.sqrt()).abs() < 1e-6);
        assert!(found[1][0].cosine > READABLE_COSINE && found[2][0].cosine == 0.0);
    }

    #[test]
    fn runs_of_three_tokens_of_one_text_are_found() {
        let texts = [vec![5, 1, 2, 3, 4, 9], vec![7, 8, 9], vec![2, 3]];
        type Run = (usize, usize);
        let table: [(&[usize], &[Run]); 7] = [
            (&[1, 2, 3], &[(0, 3)]),
            (&[0, 1, 2, 3, 4, 0], &[(1, 5)]),
            (&[1, 2, 3, 7, 8, 9], &[(0, 3), (3, 6)]),
            (&[1, 2, 7, 8, 2, 3], &[]),
            (&[3, 2, 1], &[]),
            (&[1, 2], &[]),
            (&[4, 9, 7, 8], &[]),
        ];
        for (tokens, runs) in table {
            let found = spelled(tokens, &texts).into_iter();
            let found: Vec<_> = found.map(|run| (run.start, run.end)).collect();
            assert_eq!(found, runs, "{tokens:?}");
        }
        assert!(spelled(&[1, 2, 3], &[]).is_empty());
    }
}
