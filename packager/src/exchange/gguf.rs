//! GGUF files are looked at and refused.

use std::{fs::File, io::Read, path::Path};

use super::foreign;
use crate::Error;

const MAGIC: &[u8] = b"GGUF";
/// Enough of the file for the first of its metadata.
const LOOK_BYTES: u64 = 64 << 10;
/// Where the metadata says what the file is.
const KIND: &[u8] = b"general.type";

/// Refuses a GGUF file, whatever its name.
///
/// # Errors
/// [`Error::Foreign`] with what the file is, and the way out; [`Error::Read`].
pub fn refuse_gguf(path: &Path) -> Result<(), Error> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LOOK_BYTES).read_to_end(&mut head))
        .map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
    match head.starts_with(MAGIC) {
        true => Err(foreign(path, reason(&head))),
        false => Ok(()),
    }
}

fn reason(head: &[u8]) -> String {
    let version = head
        .get(4..8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    let holds = match kind(head) {
        Some("adapter") => "a LoRA adapter",
        _ => "the weights of a whole model",
    };
    format!(
        "a GGUF file (version {version}) with {holds}: the format has no place for a soft prompt, so there is none to \
         import; export the model to ONNX as a base, and train a prompt for it or import the PEFT folder that the \
         prompt came from"
    )
}

/// What `general.type` says: a key, the type 8 of a string, and its length as 64 bits.
fn kind(head: &[u8]) -> Option<&str> {
    let at = head.windows(KIND.len()).position(|bytes| bytes == KIND)?;
    let value = head.get(at + KIND.len()..)?;
    let (kind, rest) = value.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let is_text = u32::from_le_bytes(*kind) == 8;
    std::str::from_utf8(rest.get(..length)?)
        .ok()
        .filter(|_| is_text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_gguf_file_is_refused_for_what_it_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x");
        let header = [
            &b"GGUF"[..],
            &3u32.to_le_bytes(),
            &0u64.to_le_bytes(),
            &1u64.to_le_bytes(),
        ]
        .concat();
        let lora = [
            &header[..],
            &12u64.to_le_bytes(),
            KIND,
            &8u32.to_le_bytes(),
            &7u64.to_le_bytes(),
            b"adapter",
        ]
        .concat();
        for (bytes, expected) in [
            (header, "whole model"),
            (lora, "LoRA"),
            (b"GGUF".to_vec(), "whole model"),
        ] {
            fs::write(&path, bytes).expect("written");
            let said = refuse_gguf(&path).expect_err("refused").to_string();
            assert!(
                said.contains(expected) && said.contains("export the model to ONNX"),
                "{said}"
            );
        }
        fs::write(&path, b"GG").expect("written");
        assert!(refuse_gguf(&path).is_ok());
    }
}
