//! Secret keys under a passphrase: Argon2id (RFC 9106) and XChaCha20-Poly1305.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use preface_bundle::Id;
use zeroize::Zeroizing;

use crate::Error;

/// What the second line of a sealed key file begins with.
pub(crate) const SEALED_WORD: &str = "ed25519-sealed ";

/// RFC 9106's choice for machines without gigabytes to spare: 64 MiB, 3 passes, 4 lanes.
const COST: Cost = Cost {
    kibibytes: 64 << 10,
    passes: 3,
    lanes: 4,
};
/// Most that a key file may ask for: 1 GiB, 64 passes, 16 lanes.
const MOST: Cost = Cost {
    kibibytes: 1 << 20,
    passes: 64,
    lanes: 16,
};
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 24;
const BOX_BYTES: usize = 32 + 16;

/// What guards a secret key. Not empty; wiped from memory when dropped; never shown.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Takes a passphrase: text as it is, or the one line of a file.
    ///
    /// # Errors
    /// [`Error::Option`] when it is empty or has several lines.
    pub fn new(text: &str) -> Result<Self, Error> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() || line.contains('\n') {
            let problem = "it is one line of text and not empty; keygen --no-passphrase makes a key without one";
            return Err(Error::Option {
                option: "passphrase",
                problem: problem.into(),
            });
        }
        Ok(Self(Zeroizing::new(line.to_owned())))
    }
}

impl PartialEq for Passphrase {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// What guessing a passphrase costs.
#[derive(Clone, Copy)]
struct Cost {
    kibibytes: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    /// `argon2id:KIBIBYTES:PASSES:LANES`, at most [`MOST`].
    fn read(text: &str) -> Option<Self> {
        let mut numbers = text.strip_prefix("argon2id:")?.split(':');
        let mut next = |most: u32| {
            let number = numbers.next()?.parse().ok()?;
            (1..=most).contains(&number).then_some(number)
        };
        let cost = Self {
            kibibytes: next(MOST.kibibytes)?,
            passes: next(MOST.passes)?,
            lanes: next(MOST.lanes)?,
        };
        numbers.next().is_none().then_some(cost)
    }

    fn text(self) -> String {
        format!("argon2id:{}:{}:{}", self.kibibytes, self.passes, self.lanes)
    }

    /// The key that a passphrase stands for; `None` for numbers that Argon2 does not allow.
    fn key(self, passphrase: &Passphrase, salt: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        let params = Params::new(self.kibibytes, self.passes, self.lanes, Some(32)).ok()?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut key = Zeroizing::new([0; 32]);
        argon2
            .hash_password_into(passphrase.0.as_bytes(), salt, key.as_mut())
            .ok()?;
        Some(key)
    }
}

/// The line of a key file that holds a seed under a passphrase:
/// `ed25519-sealed COST SALT NONCE BOX`. All that is before the nonce is authenticated.
pub(crate) fn seal(seed: &[u8; 32], passphrase: &Passphrase) -> Result<String, Error> {
    let (mut salt, mut nonce) = ([0; SALT_BYTES], [0; NONCE_BYTES]);
    for random in [&mut salt[..], &mut nonce] {
        getrandom::fill(random).map_err(|source| Error::Random { source })?;
    }
    let head = format!("{SEALED_WORD}{} {}", COST.text(), Id(salt));
    let key = COST
        .key(passphrase, &salt)
        .expect("the cost is one that Argon2 allows");
    let payload = Payload {
        msg: seed,
        aad: head.as_bytes(),
    };
    let sealed: [u8; BOX_BYTES] = XChaCha20Poly1305::new((&*key).into())
        .encrypt((&nonce).into(), payload)
        .ok()
        .and_then(|sealed| sealed.try_into().ok())
        .expect("32 bytes are sealed in 48");
    Ok(format!("{head} {} {}", Id(nonce), Id(sealed)))
}

/// Opens what [`seal`] wrote; `None` inside for a wrong passphrase or a changed line, `None` outside for a
/// line that is none.
pub(crate) fn unseal(line: &str, passphrase: &Passphrase) -> Option<Option<Zeroizing<[u8; 32]>>> {
    let mut words = line.strip_prefix(SEALED_WORD)?.split(' ');
    let cost = Cost::read(words.next()?)?;
    let salt = Id::<SALT_BYTES>::from_hex(words.next()?)?;
    let nonce = Id::<NONCE_BYTES>::from_hex(words.next()?)?;
    let sealed = Id::<BOX_BYTES>::from_hex(words.next()?)?;
    if words.next().is_some() {
        return None;
    }
    let head = format!("{SEALED_WORD}{} {salt}", cost.text());
    let key = cost.key(passphrase, &salt.0)?;
    let payload = Payload {
        msg: &sealed.0[..],
        aad: head.as_bytes(),
    };
    let opened = XChaCha20Poly1305::new((&*key).into())
        .decrypt((&nonce.0).into(), payload)
        .map(Zeroizing::new);
    let mut seed = Zeroizing::new([0; 32]);
    Some(
        opened
            .ok()
            .filter(|opened| opened.len() == 32)
            .map(|opened| {
                seed.copy_from_slice(&opened);
                seed
            }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_passphrase_and_the_whole_line_open_it() {
        let passphrase = Passphrase::new("correct horse\n").expect("a passphrase");
        let line = seal(&[7; 32], &passphrase).expect("sealed");
        assert_eq!(
            unseal(&line, &passphrase).flatten().as_deref(),
            Some(&[7; 32])
        );
        assert!(!line.contains(&"07".repeat(32)));
        let other = Passphrase::new("correct horse ").expect("a passphrase");
        assert!(unseal(&line, &other).expect("a line").is_none());
        let at = line.len() - 1;
        let last = if line.ends_with('0') { "1" } else { "0" };
        let cheaper = line.replace(":3:4", ":2:4");
        for changed in [format!("{}{last}", &line[..at]), cheaper] {
            assert!(unseal(&changed, &passphrase).expect("a line").is_none());
        }
        let dear = line.replace("65536", "4294967295");
        for no_line in [&line[..at], &dear, &format!("{line} 00"), "ed25519-seed 00"] {
            assert!(unseal(no_line, &passphrase).is_none(), "{no_line}");
        }
    }

    #[test]
    fn two_seals_share_nothing() {
        let passphrase = Passphrase::new("p").expect("a passphrase");
        let lines = [(); 2].map(|()| seal(&[7; 32], &passphrase).expect("sealed"));
        let [one, two] = lines
            .each_ref()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        assert_eq!(one[..2], two[..2]);
        assert!((2..5).all(|word| one[word] != two[word]));
    }

    #[test]
    fn passphrases_are_one_line() {
        for bad in ["", "\n", "\r\n", "a\nb"] {
            assert!(Passphrase::new(bad).is_err(), "{bad:?}");
        }
    }
}
