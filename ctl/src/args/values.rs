//! Values of flags, with their units.

use std::time::Duration;

/// A number of seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds")?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|it| !it.is_zero() && *it <= Duration::from_secs(86400))
        .ok_or_else(|| "must be more than 0 and at most 86400".into())
}

/// A size that both VMMs read the same way.
pub(super) fn size(text: &str) -> Result<String, String> {
    let digits = text.strip_suffix(['K', 'M', 'G']);
    match digits.is_some_and(|it| it.parse::<u64>().is_ok_and(|it| it > 0)) {
        true => Ok(text.to_owned()),
        false => Err("must be a whole number with K, M or G, as 512M".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_checked() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("0").is_err() && seconds("-1").is_err() && seconds("nan").is_err());
        assert!(size("1G").is_ok());
        assert!(size("G").is_err() && size("1,x").is_err() && size("0M").is_err());
    }
}
