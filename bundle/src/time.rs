//! Times as people read them.

use core::fmt;

const DAY: u64 = 86_400;

/// Unix seconds, shown as `YYYY-MM-DDTHH:MM:SSZ`: what [`crate::unix_seconds`] reads, as far as the year 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UtcTime(pub u64);

impl fmt::Display for UtcTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days since 0000-03-01, in which leap days are the last of their years (H. Hinnant, "chrono-compatible
        // low-level date algorithms", civil_from_days).
        let days = self.0 / DAY + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 {
            shifted + 3
        } else {
            shifted - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let second = self.0 % DAY;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            formatter,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        )
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;
    use crate::unix_seconds;

    #[test]
    fn known_times_are_shown() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_646_400, "2024-12-31T12:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(UtcTime(seconds).to_string(), text);
        }
        assert!(!UtcTime(u64::MAX).to_string().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(seconds in 0u64..=253_402_300_799) {
            prop_assert_eq!(unix_seconds(&UtcTime(seconds).to_string()), Some(seconds));
        }
    }
}
