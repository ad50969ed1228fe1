//! Numpy's `.npy` files (NEP 1): numbers of one array behind a header that is a Python literal.

use std::path::Path;

use half::f16;

use super::foreign;
use crate::Error;

const MAGIC: &[u8] = b"\x93NUMPY";
/// A prompt has at most tasks, tokens and width, and a batch.
const MOST_AXES: usize = 4;

/// An array.
pub(super) struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Reads an array of floats in C order from `bytes`, the content of `path`.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Array, Error> {
    let refuse = |problem: String| foreign(path, problem);
    if bytes.starts_with(b"PK") {
        return Err(refuse(
            "a .npz archive; save the prompt alone with numpy.save as .npy".into(),
        ));
    }
    let (header, data) = split(bytes)
        .ok_or_else(|| refuse("no whole .npy file; save the prompt with numpy.save".into()))?;
    let kind = quoted(header, "descr").unwrap_or_default();
    if kind.contains('O') {
        return Err(refuse("holds Python objects (a pickle), which are never read; save the prompt as an array of float32".into()));
    }
    if !header.contains("'fortran_order': False") {
        return Err(refuse(
            "is in Fortran order; save numpy.ascontiguousarray of it".into(),
        ));
    }
    let shape = shape(header)
        .ok_or_else(|| refuse(format!("its shape is none of a prompt: {header:?}")))?;
    let values: Vec<f32> = match kind {
        "<f4" => data
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        "<f2" => data
            .as_chunks()
            .0
            .iter()
            .map(|b| f16::from_le_bytes(*b).to_f32())
            .collect(),
        "<f8" => data
            .as_chunks()
            .0
            .iter()
            .map(|b| f64::from_le_bytes(*b) as f32)
            .collect(),
        _ => {
            return Err(refuse(format!(
                "holds {kind:?}, not float32, float16 or float64; save it with .astype('float32')"
            )));
        }
    };
    let width: usize = kind
        .chars()
        .last()
        .and_then(|digit| digit.to_digit(10))
        .map_or(1, |digit| digit as usize);
    let count = shape
        .iter()
        .try_fold(1usize, |product, &axis| product.checked_mul(axis));
    if count != Some(values.len()) || data.len() % width != 0 {
        return Err(refuse(format!(
            "{} bytes of numbers do not fill {shape:?} of {kind}: the file is cut short or damaged; copy it again",
            data.len()
        )));
    }
    Ok(Array { shape, values })
}

/// Header and data.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    let (length, rest) = match version[0] {
        1 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (u16::from_le_bytes(*length).into(), rest)
        }
        _ => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            (u32::from_le_bytes(*length), rest)
        }
    };
    let (header, data) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

/// What stands behind a key of the header.
fn behind<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}':"))?;
    Some(rest.trim_start())
}

fn quoted<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    Some(behind(header, key)?.strip_prefix('\'')?.split_once('\'')?.0)
}

fn shape(header: &str) -> Option<Vec<usize>> {
    let (inner, _) = behind(header, "shape")?
        .strip_prefix('(')?
        .split_once(')')?;
    let axes = inner
        .split(',')
        .map(str::trim)
        .filter(|axis| !axis.is_empty());
    let axes: Vec<usize> = axes.map(|axis| axis.parse().ok()).collect::<Option<_>>()?;
    (1..=MOST_AXES).contains(&axes.len()).then_some(axes)
}

/// An array of float32 as `numpy.save` writes it.
pub(super) fn write(shape: &[usize], values: &[f32]) -> Vec<u8> {
    let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}",
        axes.join(", ")
    );
    let before = MAGIC.len() + 4;
    let padding = (before + header.len() + 1).next_multiple_of(64) - before - header.len() - 1;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let length = u16::try_from(header.len()).unwrap_or(u16::MAX);
    let mut bytes = [MAGIC, &[1, 0], &length.to_le_bytes(), header.as_bytes()].concat();
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes = write(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(bytes.len(), 128 + 24);
        let array = read(Path::new("x"), &bytes).expect("readable");
        assert_eq!((array.shape, array.values.len()), (vec![2, 3], 6));
    }

    #[test]
    fn what_is_no_array_of_floats_is_refused_with_the_way_out() {
        let good = write(&[2, 3], &[0.5; 6]);
        let swapped = |from: &str, to: &str| {
            let at = good
                .windows(from.len())
                .position(|bytes| bytes == from.as_bytes())
                .expect("there");
            let mut bytes = good.clone();
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            bytes
        };
        let cases: [(Vec<u8>, &str); 9] = [
            (good[..good.len() - 1].to_vec(), "cut short"),
            (good[..20].to_vec(), "no whole .npy file"),
            (b"PK\x03\x04".to_vec(), "archive"),
            (swapped("<f4", "|O8"), "pickle"),
            (swapped("<f4", "<i4"), "astype"),
            (swapped("False", "True "), "Fortran"),
            (swapped("(2, 3)", "(2,-3)"), "shape"),
            (swapped("(2, 3)", "(9, 3)"), "do not fill"),
            ([&good[..], &[0; 3]].concat(), "do not fill"),
        ];
        for (bytes, expected) in cases {
            let said = read(Path::new("prompt.npy"), &bytes)
                .err()
                .expect(expected)
                .to_string();
            assert!(
                said.starts_with("prompt.npy: ") && said.contains(expected),
                "{said}"
            );
        }
    }
}
