//! TensorBoard's event files: protobuf messages in TFRecord frames.
//!
//! A frame is the length (u64, little-endian), its masked CRC-32C, the bytes, and their masked CRC-32C
//! (tensorflow/core/lib/io/record_writer.h); the messages are those of tensorflow/core/util/event.proto.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use crc::{CRC_32_ISCSI, Crc};
use prost::Message;

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".preface";

/// One event: the version of the file, or scalars of one step.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// An event file being written.
pub struct Events {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Events {
    /// Begins an event file in `folder` at `time`, in Unix seconds.
    pub fn create(folder: &Path, time: f64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{PREFIX}{:.0}{SUFFIX}", time.floor()));
        let mut events = Self {
            file: BufWriter::new(File::create(&path)?),
            path,
        };
        events.append(&Event {
            wall_time: time,
            file_version: Some("brain.Event:2".into()),
            ..Event::default()
        })?;
        Ok(events)
    }

    /// Adds scalars of one step.
    pub fn scalars<'a>(
        &mut self,
        time: f64,
        step: usize,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> io::Result<()> {
        let value = scalars
            .into_iter()
            .map(|(tag, value)| Scalar {
                tag: tag.to_owned(),
                simple_value: Some(value as f32),
            })
            .collect();
        self.append(&Event {
            wall_time: time,
            step: i64::try_from(step).unwrap_or(i64::MAX),
            file_version: None,
            summary: Some(Summary { value }),
        })
    }

    /// Hands everything to the operating system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn append(&mut self, event: &Event) -> io::Result<()> {
        let bytes = event.encode_to_vec();
        let length = (bytes.len() as u64).to_le_bytes();
        for part in [&length[..], &bytes] {
            self.file.write_all(part)?;
            self.file.write_all(&masked_crc(part).to_le_bytes())?;
        }
        Ok(())
    }
}

/// The event files of this program in `folder`, in the order of their names.
pub fn event_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// CRC-32C, rotated and offset, so that a CRC over bytes that hold CRCs stays sound.
fn masked_crc(bytes: &[u8]) -> u32 {
    CRC32C
        .checksum(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// What a test reads back: tag, step and value of every scalar.
#[cfg(test)]
pub fn read(path: &Path) -> Vec<(String, i64, f32)> {
    let bytes = fs::read(path).unwrap();
    let mut rest = &bytes[..];
    let mut checked = |length: usize| {
        let (part, tail) = rest.split_at_checked(length)?;
        let (crc, tail) = tail.split_at(4);
        assert_eq!(masked_crc(part).to_le_bytes(), crc);
        rest = tail;
        Some(part)
    };
    let mut events = Vec::new();
    while let Some(length) = checked(8) {
        let length = u64::from_le_bytes(length.try_into().unwrap());
        let part = checked(usize::try_from(length).unwrap()).unwrap();
        events.push(Event::decode(part).unwrap());
    }
    assert!(rest.is_empty());
    assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
    events
        .into_iter()
        .flat_map(|event| {
            let values = event.summary.unwrap_or_default().value.into_iter();
            values.map(move |value| (value.tag, event.step, value.simple_value.unwrap()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_the_check_value() {
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
        assert_eq!(
            masked_crc(b"123456789"),
            0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
    }

    #[test]
    fn frames_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 1700000000.25).unwrap();
        events
            .scalars(1700000001.0, 7, [("train/loss", 0.5), ("train/rate", 1e-3)])
            .unwrap();
        events.flush().unwrap();
        let path = folder.path().join("events.out.tfevents.1700000000.preface");
        assert_eq!(
            event_files(folder.path()).unwrap(),
            std::slice::from_ref(&path)
        );
        let expected = [
            ("train/loss".into(), 7, 0.5),
            ("train/rate".into(), 7, 1e-3),
        ];
        assert_eq!(read(&path), expected);
    }

    #[test]
    fn bytes_as_tensorflow_lays_them_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 1.0).unwrap();
        events.flush().unwrap();
        let bytes = fs::read(&events.path).unwrap();
        assert_eq!(bytes[..8], 24u64.to_le_bytes());
        assert_eq!(bytes[12..21], [&[0x09][..], &1f64.to_le_bytes()].concat());
        assert_eq!(bytes[21..36], *b"\x1a\x0dbrain.Event:2");
        assert_eq!(bytes.len(), 8 + 4 + 24 + 4);
    }
}
