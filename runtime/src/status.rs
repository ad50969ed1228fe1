//! How a call of a program in another language went, as a number.

use std::ffi::CStr;

use crate::{Error, LoadError, store::StoreError};

/// How a call went: a stable contract with programs in other languages, whose header has the meaning of each. From 10 to
/// 21 they are the exit codes of `preface verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// A value that the interface does not name or that is outside its range.
    InvalidArgument = 1,
    /// The caller's room is too small.
    BufferTooSmall = 2,
    /// No such task, or none is active.
    NoTask = 3,
    /// Another thread is in a call with the session.
    Busy = 4,
    /// A fault of the library.
    Panicked = 5,
    /// The session saw [`Status::Panicked`] before.
    Poisoned = 6,
    /// No bundle or no base image, or cut short.
    Malformed = 10,
    /// Not signed by enough keys of the trust store.
    Untrusted = 11,
    /// Changed after it was signed.
    BadSignature = 12,
    /// Bytes do not match their digest.
    Changed = 13,
    /// Another base, tokenizer, namespace or runtime.
    MadeForAnother = 14,
    /// Older than the trust store allows.
    Rollback = 15,
    /// Past its last day.
    Expired = 16,
    /// The trust store revokes the bundle or its key.
    Revoked = 17,
    /// The trust store is missing or invalid.
    TrustStore = 18,
    /// The bundle or the image cannot be read.
    Unreadable = 20,
    /// Others could have written the trust store.
    UnsafePermissions = 21,
    /// The image was compiled for another machine or build.
    Unfit = 30,
    /// Verified, but not for this base or this version.
    Unsupported = 31,
    /// More tokens than fit.
    TooLong = 32,
    /// No tokens.
    Empty = 33,
    /// One text where the task reads two, or two where it reads one.
    Inputs = 34,
    /// A token or a token type that the base does not have.
    Token = 35,
    /// The answer's scores are no numbers.
    NotANumber = 36,
    /// The image's tokenizer failed.
    Tokenizer = 37,
    /// The engine failed.
    Engine = 38,
    /// Labels where text is asked for, or text where labels are.
    OtherAnswer = 39,
}

impl Status {
    /// All of them, in the order of their numbers, with their names in the header.
    pub const ALL: [(Self, &CStr); 28] = [
        (Self::Ok, c"PREFACE_OK"),
        (Self::InvalidArgument, c"PREFACE_INVALID_ARGUMENT"),
        (Self::BufferTooSmall, c"PREFACE_BUFFER_TOO_SMALL"),
        (Self::NoTask, c"PREFACE_NO_TASK"),
        (Self::Busy, c"PREFACE_BUSY"),
        (Self::Panicked, c"PREFACE_PANICKED"),
        (Self::Poisoned, c"PREFACE_POISONED"),
        (Self::Malformed, c"PREFACE_MALFORMED"),
        (Self::Untrusted, c"PREFACE_UNTRUSTED"),
        (Self::BadSignature, c"PREFACE_BAD_SIGNATURE"),
        (Self::Changed, c"PREFACE_CHANGED"),
        (Self::MadeForAnother, c"PREFACE_MADE_FOR_ANOTHER"),
        (Self::Rollback, c"PREFACE_ROLLBACK"),
        (Self::Expired, c"PREFACE_EXPIRED"),
        (Self::Revoked, c"PREFACE_REVOKED"),
        (Self::TrustStore, c"PREFACE_TRUST_STORE"),
        (Self::Unreadable, c"PREFACE_UNREADABLE"),
        (Self::UnsafePermissions, c"PREFACE_UNSAFE_PERMISSIONS"),
        (Self::Unfit, c"PREFACE_UNFIT"),
        (Self::Unsupported, c"PREFACE_UNSUPPORTED"),
        (Self::TooLong, c"PREFACE_TOO_LONG"),
        (Self::Empty, c"PREFACE_EMPTY"),
        (Self::Inputs, c"PREFACE_INPUTS"),
        (Self::Token, c"PREFACE_TOKEN"),
        (Self::NotANumber, c"PREFACE_NOT_A_NUMBER"),
        (Self::Tokenizer, c"PREFACE_TOKENIZER"),
        (Self::Engine, c"PREFACE_ENGINE"),
        (Self::OtherAnswer, c"PREFACE_OTHER_ANSWER"),
    ];

    /// The number that the caller sees.
    pub fn code(self) -> i32 {
        // The numbers are the variants' own.
        self as i32
    }

    /// Its name without `PREFACE_`.
    pub fn name(self) -> &'static str {
        let named = Self::of_code(self.code());
        let name = named.and_then(|(_, name)| name.to_str().ok());
        name.map_or("", |name| name.trim_start_matches("PREFACE_"))
    }

    /// The status of that number.
    pub fn of_code(code: i32) -> Option<(Self, &'static CStr)> {
        Self::ALL
            .into_iter()
            .find(|(status, _)| status.code() == code)
    }

    /// What an error of the runtime is to the caller.
    pub fn of_error(error: &Error) -> Self {
        match error {
            Error::Read { .. } => Self::Unreadable,
            Error::NotAnImage { .. }
            | Error::Version { .. }
            | Error::Length { .. }
            | Error::Inconsistent { .. } => Self::Malformed,
            Error::Damaged { .. } => Self::Changed,
            Error::Unfit { .. } | Error::NoEngine { .. } => Self::Unfit,
            Error::Task { .. } | Error::NoPast | Error::NoLogits => Self::Unsupported,
            Error::NoTask | Error::Withdrawn { .. } => Self::NoTask,
            Error::Sampling { .. } | Error::EmptyStop | Error::Constraint { .. } => {
                Self::InvalidArgument
            }
            Error::NoText { .. } | Error::Generates { .. } => Self::OtherAnswer,
            Error::TooLong { .. } | Error::Room { .. } => Self::TooLong,
            Error::Empty => Self::Empty,
            Error::OneText { .. } | Error::TwoTexts { .. } => Self::Inputs,
            Error::Token { .. }
            | Error::TokenType { .. }
            | Error::Padding { .. }
            | Error::NoMask => Self::Token,
            Error::NotANumber => Self::NotANumber,
            Error::Tokenizer { .. } | Error::Spelling { .. } => Self::Tokenizer,
            Error::Engine { .. }
            | Error::Threads { .. }
            | Error::Memory { .. }
            | Error::NothingAllowed => Self::Engine,
            // Of compiling, which these programs cannot.
            Error::Write { .. } | Error::NoEngineRuns { .. } | Error::Compile { .. } => {
                Self::Engine
            }
            #[cfg(feature = "compile")]
            Error::Graph(_) | Error::PlanWeights { .. } => Self::Engine,
        }
    }

    /// What an error of following a store is to the caller.
    pub fn of_store(error: &StoreError) -> Self {
        match error {
            StoreError::Bundle(error) => Self::of_load(error),
            error => {
                let known = Self::of_code(error.exit_code().into());
                known.map_or(Self::Unreadable, |(status, _)| status)
            }
        }
    }

    /// What an error of loading is to the caller.
    pub fn of_load(error: &LoadError) -> Self {
        match error {
            LoadError::DoesNotFit { source, .. } => Self::of_error(source),
            error => {
                let known = error
                    .exit_code()
                    .and_then(|code| Self::of_code(code.into()));
                known.map_or(Self::Malformed, |(status, _)| status)
            }
        }
    }
}

/// What an error says, with its causes, parted by colons.
pub fn explained(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.extend([": ", &error.to_string()]);
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_have_the_exit_codes_of_verify() {
        let fault = preface_bundle::Error::PayloadDigest;
        for (code, status) in [
            (preface_bundle::Error::NotABundle, Status::Malformed),
            (fault, Status::Changed),
            (
                preface_bundle::Error::PublicKey { rule: "" },
                Status::TrustStore,
            ),
        ] {
            let error = LoadError::NotVerified {
                path: "x".into(),
                source: code,
            };
            assert_eq!(Status::of_load(&error), status);
            assert_eq!(i32::from(code.exit_code()), status.code());
        }
    }

    #[test]
    fn stores_have_the_exit_codes_of_install() {
        let path = || "x".into();
        let older = StoreError::OlderTrust {
            found: 1,
            required: 2,
        };
        for (error, status) in [
            (StoreError::NoStore { path: path() }, Status::Unreadable),
            (StoreError::NoState { path: path() }, Status::TrustStore),
            (StoreError::Replaced { path: path() }, Status::Changed),
            (older, Status::Rollback),
        ] {
            assert_eq!(Status::of_store(&error), status);
            assert_eq!(i32::from(error.exit_code()), status.code());
        }
    }
}
