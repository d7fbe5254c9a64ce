//! Shares of a limit that are worth telling when use crosses them.
//!
//! Pure.

use super::decision::Limit;

/// The shares, in per cent, in the order in which they are crossed.
pub const THRESHOLDS: [i16; 2] = [80, 100];

/// Whether `used` has reached `percent` of the limit. Nothing used reaches nothing, and unlimited has no shares; of a
/// limit of 0 the first unit reaches them all.
fn reached(limit: i64, percent: i16, used: i64) -> bool {
    used > 0 && i128::from(used) * 100 >= i128::from(limit) * i128::from(percent)
}

/// The thresholds that lie between what was used before, exclusive, and what is used after. Without a `before` those
/// that are reached.
pub fn crossed(limit: Limit, before: Option<i64>, after: i64) -> impl Iterator<Item = i16> {
    let is_crossed = move |percent: &i16| {
        limit.is_some_and(|limit| {
            reached(limit, *percent, after) && !before.is_some_and(|before| reached(limit, *percent, before))
        })
    };
    THRESHOLDS.into_iter().filter(is_crossed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(limit: Limit, before: i64, after: i64) -> Vec<i16> {
        crossed(limit, Some(before), after).collect()
    }

    #[test]
    fn a_threshold_is_crossed_by_the_unit_that_reaches_it() {
        assert_eq!(of(Some(10), 0, 7), [0i16; 0]);
        assert_eq!(of(Some(10), 7, 8), [80]);
        assert_eq!(of(Some(10), 8, 9), [0i16; 0]);
        assert_eq!(of(Some(10), 9, 10), [100]);
        assert_eq!(of(Some(10), 0, 500), [80, 100]);
        assert_eq!(of(Some(10), 10, 11), [0i16; 0]);
        // 80 % of 3 is 2.4.
        assert_eq!(of(Some(3), 1, 2), [0i16; 0]);
        assert_eq!(of(Some(3), 2, 3), [80, 100]);
    }

    #[test]
    fn less_use_crosses_nothing() {
        assert_eq!(of(Some(10), 10, 8), [0i16; 0]);
        assert_eq!(of(Some(10), 9, 9), [0i16; 0]);
    }

    #[test]
    fn unlimited_has_no_thresholds() {
        assert_eq!(of(None, 0, i64::MAX), [0i16; 0]);
    }

    #[test]
    fn of_a_limit_of_0_the_first_unit_crosses_all() {
        assert_eq!(of(Some(0), 0, 0), [0i16; 0]);
        assert_eq!(of(Some(0), 0, 1), [80, 100]);
        assert_eq!(of(Some(0), 1, 2), [0i16; 0]);
    }

    #[test]
    fn without_a_before_what_is_reached_counts() {
        assert_eq!(crossed(Some(10), None, 9).collect::<Vec<_>>(), [80]);
        assert_eq!(crossed(Some(10), None, 7).count(), 0);
    }

    proptest! {
        #[test]
        fn steps_cross_what_the_whole_way_does(
            limit in proptest::option::of(0..=i64::MAX),
            mut stops in proptest::collection::vec(0..=i64::MAX, 2..6),
        ) {
            stops.sort();
            let steps: Vec<i16> = stops.windows(2).flat_map(|step| of(limit, step[0], step[1])).collect();
            prop_assert_eq!(steps, of(limit, stops[0], stops[stops.len() - 1]));
        }
    }
}
