//! Detached signatures that stock `minisign -V` accepts, for people who have no other verifier.
//!
//! The prehashed form alone: a signature of the file itself would be one of a bundle's statement where the
//! file is that statement. Format: <https://jedisct1.github.io/minisign/#signature-format>.

use base64ct::{Base64, Encoding};
use blake2::{Blake2b512, Digest};
use preface_bundle::{Manifest, PublicKey};

use crate::{Error, SecretKey};

/// Algorithm of the key, and of signatures of the file itself.
const KEY: &[u8] = b"Ed";
/// Algorithm of signatures of the file's BLAKE2b-512.
const PREHASHED: &[u8] = b"ED";

/// The text of `FILE.minisig` for a bundle: its trusted comment names task, sequence and base.
///
/// # Errors
/// [`Error::Signature`].
pub fn minisign(file: &[u8], manifest: &Manifest<'_>, key: &SecretKey) -> Result<String, Error> {
    let Manifest {
        task,
        sequence,
        base_id,
        ..
    } = manifest;
    let comment = format!("task={task} sequence={sequence} base={base_id}");
    let signature = key.sign(&Blake2b512::digest(file))?;
    let of_comment = key.sign(&[&signature, comment.as_bytes()].concat())?;
    let (id, name) = minisign_id(&key.public());
    Ok(format!(
        "untrusted comment: signature by preface key {name}\n{}\ntrusted comment: {comment}\n{}\n",
        Base64::encode_string(&[PREHASHED, &id, &signature].concat()),
        Base64::encode_string(&of_comment),
    ))
}

/// The text of a public key as minisign reads it.
pub fn minisign_key(key: &PublicKey) -> String {
    let (id, name) = minisign_id(key);
    let bytes = [KEY, &id, key.as_bytes()].concat();
    format!(
        "untrusted comment: minisign public key {name}\n{}\n",
        Base64::encode_string(&bytes)
    )
}

/// The first eight bytes of the key's id, and how minisign prints them.
fn minisign_id(key: &PublicKey) -> ([u8; 8], String) {
    let id = key.id().0.first_chunk().copied().unwrap_or_default();
    (id, format!("{:016X}", u64::from_le_bytes(id)))
}
