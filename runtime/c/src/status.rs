//! What an entry returns.

use std::ffi::CStr;

use preface_runtime::{Error, LoadError};

/// How a call went: a stable contract with programs. From 10 to 21 they are the exit codes of `preface verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    Ok = 0,
    InvalidArgument = 1,
    BufferTooSmall = 2,
    NoTask = 3,
    Busy = 4,
    Panicked = 5,
    Poisoned = 6,
    Malformed = 10,
    Untrusted = 11,
    BadSignature = 12,
    Changed = 13,
    MadeForAnother = 14,
    Rollback = 15,
    Expired = 16,
    Revoked = 17,
    TrustStore = 18,
    Unreadable = 20,
    UnsafePermissions = 21,
    Unfit = 30,
    Unsupported = 31,
    TooLong = 32,
    Empty = 33,
    Inputs = 34,
    Token = 35,
    NotANumber = 36,
    Tokenizer = 37,
    Engine = 38,
}

impl Status {
    /// All of them, in the order of their numbers, with their names in the header.
    pub const ALL: [(Self, &CStr); 27] = [
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
    ];

    /// The number that the caller sees.
    pub fn code(self) -> i32 {
        // The numbers are the variants' own.
        self as i32
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
            Error::Task { .. } => Self::Unsupported,
            Error::NoTask => Self::NoTask,
            Error::TooLong { .. } | Error::Room { .. } => Self::TooLong,
            Error::Empty => Self::Empty,
            Error::OneText { .. } | Error::TwoTexts { .. } => Self::Inputs,
            Error::Token { .. } | Error::TokenType { .. } | Error::Padding { .. } => Self::Token,
            Error::NotANumber => Self::NotANumber,
            Error::Tokenizer { .. } => Self::Tokenizer,
            _ => Self::Engine,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_every_status_and_no_other() {
        let header = include_str!("../include/preface.h");
        let section = header.split_once("enum preface_status {").unwrap().1;
        let section = section.split_once("};").unwrap().0;
        let named = section.lines().filter_map(|line| {
            let (name, rest) = line.trim().split_once(" = ")?;
            let number = rest.split([',', ' ']).next()?.parse().ok()?;
            Some((number, name.to_owned()))
        });
        let ours = Status::ALL.map(|(status, name)| {
            let name = name.to_str().unwrap().to_owned();
            (status.code(), name)
        });
        assert!(ours.is_sorted());
        assert_eq!(named.collect::<Vec<(i32, String)>>(), ours);
    }

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
}
