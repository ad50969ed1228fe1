//! The tensors of a bundle, in the order of its tensor table.

use preface_bundle::{Dtype, Role};

use crate::{
    Encoding, Error,
    adapter::Adapter,
    description::{Form, Layer},
    quantise::{FloatTensor, Quantised},
};

/// Quantises the adapter's tensors, one after the other.
///
/// Numbers that change nothing, a bias or gates of zeros, are left out.
pub(crate) fn quantise(adapter: &Adapter, encoding: Encoding) -> Result<Vec<Quantised>, Error> {
    let mut offset = 0;
    let mut quantised = Vec::new();
    for tensor in float_tensors(adapter) {
        let dtype = dtype_of(&tensor, encoding.dtype(tensor.role));
        let one = Quantised::new(&tensor, dtype, encoding.scales, offset)?;
        offset += one.bytes.len();
        quantised.push(one);
    }
    Ok(quantised)
}

/// The number format of a tensor where `wanted` is asked for: a few numbers that each count keep half precision, and
/// an odd number of values does not go into pairs.
fn dtype_of(tensor: &FloatTensor, wanted: Dtype) -> Dtype {
    let counts = matches!(tensor.role, Role::HeadBias | Role::Gate);
    match wanted {
        Dtype::F32 => Dtype::F32,
        _ if counts => Dtype::F16,
        Dtype::I4 if !tensor.values.len().is_multiple_of(2) => Dtype::I8,
        wanted => wanted,
    }
}

/// The adapter's tensors in the order of the tensor table.
fn float_tensors(adapter: &Adapter) -> Vec<FloatTensor> {
    let description = &adapter.description;
    let mut tensors = match &description.form {
        Form::Embeddings { tokens, hidden } => vec![FloatTensor {
            role: Role::Embeddings,
            layer: 0,
            dims: vec![*tokens, *hidden],
            values: adapter.prompt.clone(),
            rows: vec![usize::from(*hidden)],
        }],
        Form::KeyValues {
            tokens,
            first_layer,
            layers,
            ..
        } => key_values(&adapter.prompt, *tokens, *first_layer, layers),
    };
    let head = description.head;
    let (classes, hidden, rank) = (head.classes, head.width(), head.rank.unwrap_or(0));
    let matrix = |role, layer, dims: [u16; 2], values: &[f32], rows: &[usize]| FloatTensor {
        role,
        layer,
        dims: dims.to_vec(),
        values: values.to_vec(),
        rows: rows.to_vec(),
    };
    let whole_or = |row: u16, values: &[f32]| vec![usize::from(row), values.len()];
    let [first, second] = &adapter.head_factors;
    let (first_rows, second_rows) = (whole_or(rank, first), whole_or(hidden, second));
    let row = [usize::from(hidden)];
    tensors.extend([
        matrix(
            Role::HeadWeight,
            0,
            [classes, hidden],
            &adapter.head_weight,
            &row,
        ),
        few(Role::HeadBias, &adapter.head_bias),
        matrix(Role::HeadFactor, 0, [classes, rank], first, &first_rows),
        matrix(Role::HeadFactor, 1, [rank, hidden], second, &second_rows),
        few(Role::Gate, &adapter.gates),
    ]);
    tensors.retain(|tensor| !tensor.values.is_empty());
    tensors
}

/// A tensor of one dimension, without values where all of them are zero.
fn few(role: Role, values: &[f32]) -> FloatTensor {
    let idle = values.iter().all(|value| *value == 0.0);
    FloatTensor {
        role,
        layer: 0,
        dims: vec![u16::try_from(values.len()).unwrap_or(u16::MAX)],
        values: if idle { vec![] } else { values.to_vec() },
        rows: vec![],
    }
}

/// One tensor `[layers, 2, kv_heads, tokens, head_dim]` for each run of layers that are alike, from
/// rows `[tokens, layers * 2 * kv_heads * head_dim]`.
fn key_values(prompt: &[f32], tokens: u16, first_layer: u16, layers: &[Layer]) -> Vec<FloatTensor> {
    let width: usize = layers.iter().map(Layer::width).sum();
    let (mut first, mut column) = (usize::from(first_layer), 0usize);
    let mut tensors = Vec::new();
    for run in layers.chunk_by(|one, other| one == other) {
        let Some(Layer { kv_heads, head_dim }) = run.first().copied() else {
            continue;
        };
        let head = usize::from(head_dim);
        let heads = run.len() * 2 * usize::from(kv_heads);
        let columns = (0..heads).map(|at| column + at * head);
        let vector = |(column, token): (usize, usize)| {
            let start = token * width + column;
            prompt
                .get(start..start + head)
                .unwrap_or_default()
                .iter()
                .copied()
        };
        let by_head =
            columns.flat_map(|column| (0..usize::from(tokens)).map(move |token| (column, token)));
        tensors.push(FloatTensor {
            role: Role::KeyValues,
            layer: u16::try_from(first).unwrap_or(u16::MAX),
            dims: vec![
                u16::try_from(run.len()).unwrap_or(u16::MAX),
                2,
                kv_heads,
                tokens,
                head_dim,
            ],
            values: by_head.flat_map(vector).collect(),
            rows: vec![head, head * usize::from(tokens)],
        });
        first += run.len();
        column += heads * head;
    }
    tensors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_values_are_transposed_and_split_where_layers_differ() {
        let wide = Layer {
            kv_heads: 2,
            head_dim: 2,
        };
        let narrow = Layer {
            kv_heads: 1,
            head_dim: 2,
        };
        let layers = [wide, narrow, narrow];
        let width = 8 + 4 + 4;
        let prompt: Vec<f32> = (0..3)
            .flat_map(|token| (0..width).map(move |column| (100 * token + column) as f32))
            .collect();
        let tensors = key_values(&prompt, 3, 4, &layers);
        assert_eq!(tensors.len(), 2);
        assert_eq!(
            (tensors[0].layer, tensors[0].dims.as_slice()),
            (4, &[1, 2, 2, 3, 2][..])
        );
        assert_eq!(
            (tensors[1].layer, tensors[1].dims.as_slice()),
            (5, &[2, 2, 1, 3, 2][..])
        );
        assert_eq!(
            tensors[0].values[..8],
            [0., 1., 100., 101., 200., 201., 2., 3.]
        );
        let values_of_layer_2 = &tensors[1].values[2 * 6 + 6..];
        assert_eq!(values_of_layer_2, [14., 15., 114., 115., 214., 215.]);
        assert_eq!(
            tensors
                .iter()
                .map(|tensor| tensor.values.len())
                .sum::<usize>(),
            prompt.len()
        );
    }

    #[test]
    fn few_numbers_keep_their_precision_and_odd_counts_do_not_pair() {
        let tensor = |role, count: usize| FloatTensor {
            values: vec![1.0; count],
            ..few(role, &[1.0])
        };
        let table = [
            (Role::HeadWeight, 6, Dtype::I8, Dtype::I8),
            (Role::HeadWeight, 6, Dtype::I4, Dtype::I4),
            (Role::HeadFactor, 3, Dtype::I4, Dtype::I8),
            (Role::HeadBias, 3, Dtype::I4, Dtype::F16),
            (Role::Gate, 3, Dtype::Bf16, Dtype::F16),
            (Role::Gate, 3, Dtype::F32, Dtype::F32),
        ];
        for (role, count, wanted, expected) in table {
            assert_eq!(
                dtype_of(&tensor(role, count), wanted),
                expected,
                "{role:?} {wanted:?}"
            );
        }
        assert!(few(Role::Gate, &[0.0, -0.0]).values.is_empty());
        assert_eq!(few(Role::Gate, &[0.0, 1.0]).dims, [2]);
    }
}
