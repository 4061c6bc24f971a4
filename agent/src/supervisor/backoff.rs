//! How long to wait before a process that ended is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// The pause after the `end_count`th end in a row, which counts from one: it doubles from 100 ms to
/// 10 s, plus up to a quarter that depends on `salt`, so that devices that failed together do not
/// come back together.
pub(crate) fn pause(end_count: usize, salt: u64) -> Duration {
    let doublings = u32::try_from(end_count.saturating_sub(1)).unwrap_or(u32::MAX);
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let base = FIRST.saturating_mul(factor).min(LONGEST);
    let sixteenths = u32::try_from(salt.rotate_left(doublings.wrapping_mul(4)) % 16).unwrap_or(0);
    base + base / 4 * sixteenths / 16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses: Vec<_> = (1..=9).map(|it| pause(it, 0).as_millis()).collect();
        assert_eq!(
            pauses,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
    }

    #[test]
    fn devices_that_failed_together_come_back_one_after_the_other() {
        for count in [1, 4, 9] {
            // Salts that differ in each digit.
            let salts = (0..16).map(|digit| digit * 0x1111_1111_1111_1111);
            let pauses: BTreeSet<_> = salts.map(|salt| pause(count, salt)).collect();
            assert_eq!(pauses.len(), 16, "{pauses:?}");
        }
    }

    #[test]
    fn no_count_and_no_salt_exceed_the_longest_and_a_quarter() {
        for count in [0, 1, 7, 31, 32, 33, usize::MAX] {
            for salt in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
                assert!(pause(count, salt) <= LONGEST + LONGEST / 4);
                assert!(pause(count, salt) >= FIRST);
            }
        }
    }
}
