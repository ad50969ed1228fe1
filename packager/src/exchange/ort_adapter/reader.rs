//! Reads the file without believing it: every offset is checked, none is followed twice.

use half::f16;

const MAGIC: &[u8] = b"TORT";
/// More than two of each layer of the deepest model.
const MOST_PARAMETERS: usize = 4096;
const MOST_AXES: usize = 4;
const FLOAT: i32 = 1;
const FLOAT16: i32 = 10;

/// A named tensor.
pub(super) struct Parameter<'a> {
    pub name: &'a str,
    pub dims: Vec<usize>,
    kind: i32,
    data: &'a [u8],
}

impl Parameter<'_> {
    /// Its numbers; `None` where they are no floats or do not fill its dimensions.
    pub fn values(&self) -> Option<Vec<f32>> {
        let count = self
            .dims
            .iter()
            .try_fold(1usize, |product, &axis| product.checked_mul(axis))?;
        let values: Vec<f32> = match self.kind {
            FLOAT => self
                .data
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            FLOAT16 => self
                .data
                .as_chunks()
                .0
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect(),
            _ => return None,
        };
        let width = if self.kind == FLOAT { 4 } else { 2 };
        (values.len() == count && self.data.len() == count * width).then_some(values)
    }
}

/// The parameters of the file; `None` where it is no whole one.
pub(super) fn parameters(bytes: &[u8]) -> Option<Vec<Parameter<'_>>> {
    let buffer = Buffer(bytes);
    if bytes.get(4..8)? != MAGIC {
        return None;
    }
    let root = buffer.follow(0)?;
    let list = buffer.follow(buffer.field(root, 3)?)?;
    let count = buffer.u32(list)?;
    let parameters = (0..count).take(MOST_PARAMETERS).map(|index| {
        let table = buffer.follow(list.checked_add(4 + 4 * index)?)?;
        let name = buffer.vector(buffer.field(table, 0)?, 1)?;
        let dims = buffer.vector(buffer.field(table, 1)?, 8)?;
        let dims = dims
            .as_chunks()
            .0
            .iter()
            .map(|axis| usize::try_from(i64::from_le_bytes(*axis)).ok());
        Some(Parameter {
            name: std::str::from_utf8(name).ok()?,
            dims: dims
                .collect::<Option<Vec<_>>>()
                .filter(|dims| dims.len() <= MOST_AXES)?,
            kind: buffer
                .array(buffer.field(table, 2)?)
                .map(i32::from_le_bytes)?,
            data: buffer.vector(buffer.field(table, 3)?, 1)?,
        })
    });
    let parameters: Vec<_> = parameters.collect::<Option<_>>()?;
    (parameters.len() == count && count > 0).then_some(parameters)
}

struct Buffer<'a>(&'a [u8]);

impl<'a> Buffer<'a> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn u32(&self, at: usize) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(self.array(at)?)).ok()
    }

    fn u16(&self, at: usize) -> Option<usize> {
        Some(u16::from_le_bytes(self.array(at)?).into())
    }

    /// Where the offset at `at` leads.
    fn follow(&self, at: usize) -> Option<usize> {
        at.checked_add(self.u32(at)?)
    }

    /// Where the field of a table lies, by its place in the schema; `None` where it is absent.
    fn field(&self, table: usize, place: usize) -> Option<usize> {
        let back = i64::from(i32::from_le_bytes(self.array(table)?));
        let vtable = usize::try_from(i64::try_from(table).ok()?.checked_sub(back)?).ok()?;
        let entry = 4 + 2 * place;
        if entry.checked_add(2)? > self.u16(vtable)? {
            return None;
        }
        let offset = self.u16(vtable.checked_add(entry)?)?;
        table.checked_add(offset).filter(|_| offset > 0)
    }

    /// The bytes of the vector to which the offset at `at` leads, of elements of `width` bytes.
    fn vector(&self, at: usize, width: usize) -> Option<&'a [u8]> {
        let start = self.follow(at)?;
        let length = self.u32(start)?.checked_mul(width)?;
        let first = start.checked_add(4)?;
        self.0.get(first..first.checked_add(length)?)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::file, *};

    #[test]
    fn no_bytes_panic_the_reader_and_no_cut_file_is_whole() {
        let named = [("prompt_embeddings".to_owned(), vec![2, 3], vec![0.5; 6])];
        let bytes = file(&named);
        let read = parameters(&bytes).expect("whole");
        assert_eq!(
            (read[0].name, &read[0].dims[..], read[0].values()),
            ("prompt_embeddings", &[2, 3][..], Some(vec![0.5; 6]))
        );
        for end in 0..bytes.len() {
            let whole = parameters(&bytes[..end])
                .is_some_and(|read| read[0].values().is_some() && read[0].name.len() == 17);
            assert!(!whole || bytes.len() - end < 4, "{end}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let _ = parameters(&changed).map(|read| read.iter().map(Parameter::values).count());
            }
        }
    }
}
