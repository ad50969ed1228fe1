//! The numbers in a tensor, wherever the format keeps them.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;
use half::{bf16, f16};

use crate::{
    Error,
    onnx::{StringStringEntryProto, TensorProto, data_type},
};

const EXTERNAL: i32 = 1;

/// Bytes of one element of `data_type`; `None` for types that are packed or of variable size.
pub fn element_bytes(data_type: i32) -> Option<usize> {
    Some(match data_type {
        data_type::BOOL | data_type::INT8 | data_type::UINT8 => 1,
        data_type::FLOAT16 | data_type::BFLOAT16 => 2,
        data_type::FLOAT | data_type::INT32 => 4,
        data_type::INT64 | data_type::DOUBLE => 8,
        _ => return None,
    })
}

impl TensorProto {
    /// A tensor of 64-bit integers.
    pub fn of_ints(name: &str, dims: &[i64], values: &[i64]) -> Self {
        let raw = values.iter().flat_map(|value| value.to_le_bytes());
        Self::of_raw(name, data_type::INT64, dims, raw.collect())
    }

    /// A tensor of 32-bit floats.
    pub fn of_floats(name: &str, dims: &[i64], values: &[f32]) -> Self {
        let raw = values.iter().flat_map(|value| value.to_le_bytes());
        Self::of_raw(name, data_type::FLOAT, dims, raw.collect())
    }

    /// A tensor of little-endian bytes.
    pub fn of_raw(name: &str, data_type: i32, dims: &[i64], raw: Vec<u8>) -> Self {
        Self {
            name: Some(name.to_owned()),
            data_type: Some(data_type),
            dims: dims.to_vec(),
            raw_data: Some(raw.into()),
            ..Self::default()
        }
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        let product = self.dims.iter().map(|&dim| dim.max(0) as usize);
        product.product()
    }

    /// Whether the numbers lie in a file beside the model.
    pub fn is_external(&self) -> bool {
        self.data_location() == EXTERNAL
    }

    /// The elements as little-endian bytes, read from beside the model in `folder` where they lie there.
    ///
    /// # Errors
    /// When the data is missing, has the wrong length, or lies outside `folder`.
    pub fn little_endian(&self, folder: &Path) -> Result<Bytes, Error> {
        let bytes = if self.is_external() {
            self.read_external(folder, None)?
        } else if let Some(raw) = &self.raw_data {
            raw.clone()
        } else {
            self.typed_bytes()
        };
        let expected = element_bytes(self.data_type()).map(|size| size * self.elements());
        if expected.is_some_and(|expected| expected != bytes.len()) {
            return Err(self.error(format!(
                "{} bytes of data for shape {:?}",
                bytes.len(),
                self.dims
            )));
        }
        Ok(bytes)
    }

    /// The elements, floats of 16 or 32 bits, as 32-bit floats.
    ///
    /// # Errors
    /// When the data cannot be read or the element type is another.
    pub fn floats(&self, folder: &Path) -> Result<Vec<f32>, Error> {
        let number = match self.data_type() {
            data_type::FLOAT => return Ok(floats(&self.little_endian(folder)?)),
            data_type::FLOAT16 => |pair| f16::from_le_bytes(pair).to_f32(),
            data_type::BFLOAT16 => |pair| bf16::from_le_bytes(pair).to_f32(),
            other => return Err(self.error(format!("element type {other} is not float"))),
        };
        let bytes = self.little_endian(folder)?;
        let pairs = bytes.as_chunks().0.iter();
        Ok(pairs.copied().map(number).collect())
    }

    /// Row `index` of a matrix of 32-bit floats; where they lie in a file, nothing else of it is read.
    ///
    /// # Errors
    /// When the tensor is no such matrix, has no such row, or the row cannot be read.
    pub fn row(&self, folder: &Path, index: usize) -> Result<Vec<f32>, Error> {
        let (&[rows, width], data_type::FLOAT) = (&self.dims[..], self.data_type()) else {
            return Err(self.error(format!("shape {:?} is no matrix of floats", self.dims)));
        };
        if index >= rows as usize {
            return Err(self.error(format!("row {index} of {rows}")));
        }
        let row_bytes = width as usize * size_of::<f32>();
        let start = index * row_bytes;
        let bytes = match self.is_external() {
            true => self.read_external(folder, Some(start as u64..(start + row_bytes) as u64))?,
            false => self.little_endian(folder)?.slice(start..start + row_bytes),
        };
        match bytes.len() == row_bytes {
            true => Ok(floats(&bytes)),
            false => Err(self.error(format!("row {index} lies behind the end of the data"))),
        }
    }

    /// The elements as numbers, for small tensors that lie in the model itself.
    pub fn numbers(&self, at_most: usize) -> Option<Vec<f64>> {
        if self.elements() > at_most || self.is_external() {
            return None;
        }
        let bytes = self.little_endian(Path::new("")).ok()?;
        Some(match self.data_type() {
            data_type::BOOL | data_type::UINT8 => {
                bytes.iter().map(|&byte| f64::from(byte)).collect()
            }
            data_type::INT8 => bytes.iter().map(|&byte| f64::from(byte as i8)).collect(),
            data_type::FLOAT => each(&bytes, |chunk| f64::from(f32::from_le_bytes(chunk))),
            data_type::DOUBLE => each(&bytes, f64::from_le_bytes),
            data_type::INT32 => each(&bytes, |chunk| f64::from(i32::from_le_bytes(chunk))),
            data_type::INT64 => each(&bytes, |chunk| i64::from_le_bytes(chunk) as f64),
            _ => return None,
        })
    }

    fn typed_bytes(&self) -> Bytes {
        let narrow = element_bytes(self.data_type()).unwrap_or(4).min(4);
        let ints = self.int32_data.iter();
        let mut bytes: Vec<u8> = ints
            .flat_map(|value| value.to_le_bytes().into_iter().take(narrow))
            .collect();
        bytes.extend(self.float_data.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(
            self.double_data
                .iter()
                .flat_map(|value| value.to_le_bytes()),
        );
        bytes.extend(self.int64_data.iter().flat_map(|value| value.to_le_bytes()));
        bytes.into()
    }

    /// The file beside the model in `folder` that holds the numbers.
    ///
    /// # Errors
    /// When none is named, or it lies outside `folder`.
    pub(crate) fn external_path(&self, folder: &Path) -> Result<PathBuf, Error> {
        let location = self
            .external_entry("location")
            .ok_or_else(|| self.error("external data without a location".into()))?;
        if !Path::new(location)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        {
            return Err(self.error(format!(
                "external data {location} lies outside the model's folder"
            )));
        }
        Ok(folder.join(location))
    }

    /// Drops the numbers for a reference to them in a file: [`TensorProto::relocate`] says in which.
    pub(crate) fn refer(&mut self, range: &[(&str, usize)]) {
        self.raw_data = None;
        self.data_location = Some(EXTERNAL);
        let entry = |(key, value): &(&str, usize)| entry(key, value.to_string());
        self.external_data = range.iter().map(entry).collect();
    }

    /// Names the file of a tensor's numbers.
    ///
    /// # Errors
    /// When the name is not UTF-8, which ONNX cannot say.
    pub(crate) fn relocate(&mut self, file: &Path) -> Result<(), Error> {
        let name = file
            .to_str()
            .map(str::to_owned)
            .ok_or_else(|| self.error(format!("the name of {} is not UTF-8", file.display())))?;
        self.external_data.retain(|entry| entry.key() != "location");
        self.external_data.insert(0, entry("location", name));
        Ok(())
    }

    fn external_entry(&self, key: &str) -> Option<&str> {
        let mut entries = self.external_data.iter();
        entries
            .find(|entry| entry.key() == key)
            .map(StringStringEntryProto::value)
    }

    /// The numbers in a file, or `within` them, counted in bytes.
    fn read_external(&self, folder: &Path, within: Option<Range<u64>>) -> Result<Bytes, Error> {
        let number = |key: &str| match self.external_entry(key) {
            None => Ok(None),
            Some(text) => text
                .parse::<u64>()
                .map(Some)
                .map_err(|_| self.error(format!("{key} {text} is not a number"))),
        };
        let path = self.external_path(folder)?;
        let failed = |source| Error::Read {
            path: path.clone(),
            source,
        };
        let mut file = File::open(&path).map_err(failed)?;
        let rest = file.metadata().map_err(failed)?.len();
        let length = number("length")?.unwrap_or(rest);
        let within = within.unwrap_or(0..length);
        file.seek(SeekFrom::Start(
            number("offset")?.unwrap_or(0).saturating_add(within.start),
        ))
        .map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(within.end.min(length).saturating_sub(within.start))
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        Ok(bytes.into())
    }

    fn error(&self, reason: String) -> Error {
        Error::Tensor {
            tensor: self.name().to_owned(),
            reason,
        }
    }
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.as_chunks().0.iter();
    numbers.map(|&chunk| f32::from_le_bytes(chunk)).collect()
}

fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|&chunk| number(chunk))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn external(entries: &[(&str, &str)]) -> TensorProto {
        let entry = |&(key, value): &(&str, &str)| entry(key, value.to_owned());
        TensorProto {
            name: Some("w".into()),
            dims: vec![2],
            data_type: Some(data_type::FLOAT),
            data_location: Some(EXTERNAL),
            external_data: entries.iter().map(entry).collect(),
            ..TensorProto::default()
        }
    }

    #[test]
    fn external_data_is_read_at_its_offset() {
        let folder = tempfile::tempdir().unwrap();
        let values: Vec<u8> = [9f32, 1.5, -2.0, 7.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        std::fs::write(folder.path().join("w.bin"), values).unwrap();
        let tensor = external(&[("location", "w.bin"), ("offset", "4"), ("length", "8")]);
        assert_eq!(tensor.floats(folder.path()).unwrap(), [1.5, -2.0]);
    }

    #[test]
    fn short_floats_become_long_ones() {
        let values = [1.5f32, -2.0, 0.25];
        let short = |data_type, pairs: [[u8; 2]; 3]| {
            TensorProto::of_raw("w", data_type, &[3], pairs.concat())
        };
        for tensor in [
            short(
                data_type::FLOAT16,
                values.map(|v| f16::from_f32(v).to_le_bytes()),
            ),
            short(
                data_type::BFLOAT16,
                values.map(|v| bf16::from_f32(v).to_le_bytes()),
            ),
            TensorProto::of_floats("w", &[3], &values),
        ] {
            assert_eq!(tensor.floats(Path::new("")).unwrap(), values);
        }
        let ints = TensorProto::of_ints("w", &[1], &[1]);
        assert!(ints.floats(Path::new("")).is_err());
    }

    #[test]
    fn a_row_is_that_of_the_whole_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let inside = TensorProto::of_floats("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let mut file = vec![0; 4];
        file.extend_from_slice(&inside.raw_data.clone().unwrap());
        std::fs::write(folder.path().join("w.bin"), &file).unwrap();
        let mut beside = external(&[("location", "w.bin"), ("offset", "4"), ("length", "16")]);
        beside.dims = vec![2, 2];
        for tensor in [inside, beside.clone()] {
            assert_eq!(tensor.row(folder.path(), 0).unwrap(), [1.0, 2.0]);
            assert_eq!(tensor.row(folder.path(), 1).unwrap(), [3.0, 4.0]);
            let error = tensor.row(folder.path(), 2).unwrap_err();
            assert!(error.to_string().contains("row 2 of 2"), "{error}");
        }
        std::fs::write(folder.path().join("w.bin"), &file[..16]).unwrap();
        let error = beside.row(folder.path(), 1).unwrap_err();
        assert!(error.to_string().contains("behind the end"), "{error}");
    }

    #[test]
    fn external_data_stays_inside_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        for location in ["../w.bin", "/etc/passwd"] {
            let error = external(&[("location", location)])
                .floats(folder.path())
                .unwrap_err();
            assert!(
                error.to_string().contains("outside the model's folder"),
                "{error}"
            );
        }
    }

    #[test]
    fn numbers_of_every_storage() {
        let int32 = TensorProto {
            dims: vec![2],
            data_type: Some(data_type::BOOL),
            int32_data: vec![1, 0],
            ..TensorProto::default()
        };
        assert_eq!(int32.numbers(8), Some(vec![1.0, 0.0]));
        assert_eq!(
            TensorProto::of_ints("i", &[1], &[-3]).numbers(8),
            Some(vec![-3.0])
        );
        assert_eq!(
            TensorProto::of_floats("f", &[2], &[0.5, 2.0]).numbers(1),
            None
        );
    }
}
