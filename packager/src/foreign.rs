//! Public keys as other programs write them.

use base64ct::{Base64, Encoding};
use preface_bundle::PublicKey;

use crate::Error;

const PEM_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const PEM_END: &str = "-----END PUBLIC KEY-----";
/// SubjectPublicKeyInfo of an Ed25519 key up to its bytes (RFC 8410).
const DER_HEAD: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
/// Algorithm and key as OpenSSH writes them, up to the key's bytes (RFC 8709).
const SSH_HEAD: &[u8] = b"\0\0\0\x0bssh-ed25519\0\0\0\x20";
const MINISIGN_COMMENT: &str = "untrusted comment:";
/// Algorithm, and a key number of 8 bytes.
const MINISIGN_HEAD_BYTES: usize = 2 + 8;

/// Our own spelling of a key that OpenSSL, OpenSSH or minisign wrote; other text as it is.
pub(crate) fn own_spelling(text: &str) -> Result<String, Error> {
    let text = text.trim();
    let base64 = |text: &str| Base64::decode_vec(text).unwrap_or_default();
    let bytes = if let Some(rest) = text.strip_prefix(PEM_BEGIN) {
        let digits = rest.strip_suffix(PEM_END).unwrap_or_default();
        let digits: String = digits.split_ascii_whitespace().collect();
        base64(&digits).strip_prefix(DER_HEAD).map(<[u8]>::to_vec)
    } else if let Some(rest) = text.strip_prefix("ssh-ed25519 ") {
        let digits = rest.split(' ').next().unwrap_or_default();
        base64(digits).strip_prefix(SSH_HEAD).map(<[u8]>::to_vec)
    } else if text.starts_with(MINISIGN_COMMENT) {
        let bytes = text.lines().nth(1).map(base64).unwrap_or_default();
        let key = bytes.get(MINISIGN_HEAD_BYTES..);
        key.filter(|_| bytes.starts_with(b"Ed")).map(<[u8]>::to_vec)
    } else {
        return Ok(text.to_owned());
    };
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    let bytes = bytes.ok_or_else(|| Error::Option {
        option: "--key",
        problem: "not the public key of an Ed25519 pair".into(),
    })?;
    let key = PublicKey::admit(bytes).map_err(|source| Error::Trust { source })?;
    Ok(key.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SecretKey, minisign::minisign_key};

    #[test]
    fn keys_of_other_programs_are_read_and_other_kinds_of_key_are_not() {
        let key = SecretKey::from_seed(&[1; 32]).public();
        let base64 = |head: &[u8]| Base64::encode_string(&[head, key.as_bytes()].concat());
        let pem = |head| format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", base64(head));
        let good = [
            pem(DER_HEAD),
            format!("ssh-ed25519 {} me@here\n", base64(SSH_HEAD)),
            minisign_key(&key),
        ];
        for text in good {
            assert_eq!(
                own_spelling(&text).expect("a key"),
                key.to_string(),
                "{text}"
            );
        }
        let x25519 = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x6e\x03\x21\x00";
        let bad = [
            pem(x25519),
            pem(&DER_HEAD[1..]),
            format!("ssh-ed25519 {}", base64(b"")),
            format!("{MINISIGN_COMMENT} x\n{}\n", base64(b"ED01234567")),
            format!("{MINISIGN_COMMENT} x\n"),
        ];
        for text in bad {
            assert!(own_spelling(&text).is_err(), "{text}");
        }
    }
}
