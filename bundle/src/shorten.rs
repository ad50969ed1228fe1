//! Which tokens go where texts are too long.

/// Takes `over` tokens from two texts of so many, or from one where the second has none: from the longer until both are
/// alike, then from both. Trainer and device cut by this rule.
pub fn shorten([first, second]: [usize; 2], over: usize) -> [usize; 2] {
    let apart = over.min(first.abs_diff(second));
    let rest = over.saturating_sub(apart);
    let from_longer = apart.saturating_add(rest.div_ceil(2));
    let from_other = rest / 2;
    match first >= second {
        true => [
            first.saturating_sub(from_longer),
            second.saturating_sub(from_other),
        ],
        false => [
            first.saturating_sub(from_other),
            second.saturating_sub(from_longer),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::shorten;

    #[test]
    fn the_longer_text_loses_first() {
        for (counts, over, left) in [
            ([9, 0], 4, [5, 0]),
            ([9, 0], 9, [0, 0]),
            ([9, 2], 4, [5, 2]),
            ([2, 9], 7, [2, 2]),
            ([2, 9], 8, [2, 1]),
            ([2, 9], 9, [1, 1]),
            ([5, 5], 1, [4, 5]),
            ([5, 5], 6, [2, 2]),
            ([5, 7], 99, [0, 0]),
            ([3, 4], 0, [3, 4]),
        ] {
            assert_eq!(shorten(counts, over), left, "{counts:?} {over}");
        }
    }
}
