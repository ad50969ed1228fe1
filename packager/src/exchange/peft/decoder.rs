//! The prefix of an encoder-decoder, as PEFT deals it out to the layers of the decoder.
//!
//! `get_prompt` of peft_model.py puts the keys and values of all layers behind themselves, once for each half of the
//! model, and then gives every layer four of the row, of which the decoder's own attention takes the first two: those
//! that were stored for layer `2 i` of `layers`, counted around, are those of layer `i`. With an even number of layers
//! every other one is read twice, and the ones between never.

/// The stored layer that PEFT gives to layer `index` of `layers`.
fn dealt(index: usize, layers: usize) -> usize {
    2 * index % layers.max(1)
}

/// What each layer reads, of rows as they are stored: `[tokens, layers, width]`, both.
pub(in super::super) fn read(stored: &[f32], layers: usize, width: usize) -> Vec<f32> {
    let of_token = |row: &[f32]| {
        let layer = |index| {
            let start = dealt(index, layers) * width;
            row[start..start + width].to_vec()
        };
        (0..layers).flat_map(layer).collect::<Vec<f32>>()
    };
    let rows = stored.chunks_exact((layers * width).max(1));
    rows.flat_map(of_token).collect()
}

/// Rows that [`read`] makes `rows` of, zeros where no layer reads; else two layers that PEFT gives the same, and that are
/// not.
pub(in super::super) fn stored(
    rows: &[f32],
    layers: usize,
    width: usize,
) -> Result<Vec<f32>, [usize; 2]> {
    let mut stored = vec![0.0; rows.len()];
    let each = (layers * width).max(1);
    for (row, into) in rows.chunks_exact(each).zip(stored.chunks_exact_mut(each)) {
        for (index, values) in row.chunks_exact(width.max(1)).enumerate() {
            let start = dealt(index, layers) * width;
            into[start..start + width].copy_from_slice(values);
        }
    }
    let again = read(&stored, layers, width);
    match again.iter().zip(rows).position(|(one, other)| one != other) {
        None => Ok(stored),
        Some(at) => {
            let index = at / width.max(1) % layers.max(1);
            let same = |other: &usize| dealt(*other, layers) == dealt(index, layers);
            Err([index, (0..layers).rev().find(same).unwrap_or(index)])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_read_every_other_of_the_stored_ones() {
        let numbers: Vec<f32> = (1..=8).map(|number| number as f32).collect();
        let table: [(usize, usize, &[f32]); 4] = [
            (1, 4, &[1., 2., 3., 4., 5., 6., 7., 8.]),
            (2, 2, &[1., 2., 1., 2., 5., 6., 5., 6.]),
            (4, 1, &[1., 3., 1., 3., 5., 7., 5., 7.]),
            (8, 1, &[1., 3., 5., 7., 1., 3., 5., 7.]),
        ];
        for (layers, width, expected) in table {
            let rows = read(&numbers, layers, width);
            assert_eq!(rows, expected, "{layers} layers");
            let again = stored(&rows, layers, width).unwrap();
            assert_eq!(read(&again, layers, width), rows, "{layers} layers");
        }
        assert_eq!(read(&numbers[..6], 3, 1), [1., 3., 2., 4., 6., 5.]);
        assert_eq!(
            stored(&numbers[..6], 3, 1),
            Ok(vec![1., 3., 2., 4., 6., 5.])
        );
    }

    #[test]
    fn layers_that_read_the_same_cannot_differ() {
        assert_eq!(stored(&[1., 2., 1., 2.], 4, 1), Ok(vec![1., 0., 2., 0.]));
        assert_eq!(stored(&[1., 2., 1., 3.], 4, 1), Err([1, 3]));
        assert_eq!(stored(&[1., 2.], 2, 1), Err([0, 1]));
    }
}
