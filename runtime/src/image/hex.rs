//! Ids in JSON: 64 lower-case hexadecimal digits.

use preface_bundle::Id;
use serde::{Deserialize, Deserializer, Serializer, de};

pub(super) fn serialize<S: Serializer>(id: &Id, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
    let text = String::deserialize(deserializer)?;
    Id::from_hex(&text)
        .ok_or_else(|| de::Error::custom("an id is 64 lower-case hexadecimal digits"))
}
