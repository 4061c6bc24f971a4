//! Values of flags, with their units.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use proto::v1::{Device, attachment, condition, device_status::State};

/// What `vfuctl wait` waits for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Goal {
    /// The device is in this state.
    State(State),
    /// A VMM has it that it was plugged into.
    Plugged,
    /// It is in no VMM, and none is connected.
    Unplugged,
    /// There is no such device.
    Deleted,
    /// A condition of this type has this status.
    Condition(String, condition::Status),
}

impl Goal {
    /// Whether `device`, which exists, is so.
    pub(crate) fn is_met(&self, device: &Device) -> bool {
        let Some(status) = &device.status else {
            return false;
        };
        match self {
            Self::State(state) => status.state() == *state,
            Self::Plugged => {
                let attachment = status.attachment.as_ref();
                attachment.is_some_and(|it| it.state() == attachment::State::Plugged)
            }
            Self::Unplugged => status.attachment.is_none() && status.client.is_none(),
            Self::Deleted => false,
            Self::Condition(kind, wanted) => {
                let mut conditions = status.conditions.iter();
                conditions.any(|it| it.r#type.eq_ignore_ascii_case(kind) && it.status() == *wanted)
            }
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => f.write_str(state.as_str_name()),
            Self::Plugged => f.write_str("plugged"),
            Self::Unplugged => f.write_str("unplugged"),
            Self::Deleted => f.write_str("deleted"),
            Self::Condition(kind, status) => write!(f, "{kind}={}", status.as_str_name()),
        }
    }
}

/// What to wait for.
pub(super) fn goal(text: &str) -> Result<Goal, String> {
    match text.split_once('=') {
        None => match text {
            "plugged" => Ok(Goal::Plugged),
            "unplugged" => Ok(Goal::Unplugged),
            "deleted" => Ok(Goal::Deleted),
            _ => Err(
                "must be state=STATE, plugged, unplugged, deleted or condition=TYPE[=STATUS]"
                    .into(),
            ),
        },
        Some(("state", name)) => {
            let state = State::from_str_name(&name.to_ascii_uppercase());
            let state = state.filter(|it| *it != State::Unspecified);
            state.map(Goal::State).ok_or_else(|| {
                let names = (1..).map_while(|it| State::try_from(it).ok());
                let names: Vec<_> = names.map(|it| it.as_str_name()).collect();
                format!("the state must be one of {}", names.join(", "))
            })
        }
        Some(("condition", rest)) => {
            let (kind, status) = rest.split_once('=').unwrap_or((rest, "true"));
            let status = condition::Status::from_str_name(&status.to_ascii_uppercase());
            match status.filter(|it| *it != condition::Status::Unspecified) {
                Some(status) if !kind.is_empty() => Ok(Goal::Condition(kind.to_owned(), status)),
                _ => Err("a condition is TYPE, or TYPE=true, TYPE=false or TYPE=unknown".into()),
            }
        }
        Some((what, _)) => Err(format!("there is state= and condition=, and no {what}=")),
    }
}

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

/// A number of bytes. `K`, `M`, `G` and `T` are powers of 1024, as for `vfuctl cmdline --memory`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let why =
        "must be a whole number with or without K, M, G or T (powers of 1024), as 64M, or none";
    if text == "none" {
        return Ok(0);
    }
    let number = text.strip_suffix('B').unwrap_or(text);
    let number = number.strip_suffix('i').unwrap_or(number);
    let unit = number.trim_start_matches(|c: char| c.is_ascii_digit());
    let shift = match unit {
        "" if number == text => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(why.into()),
    };
    let digits = &number[..number.len() - unit.len()];
    let number: u64 = digits.parse().map_err(|_| why)?;
    match number.checked_mul(1 << shift) {
        None | Some(0) => Err(why.into()),
        Some(bytes) => Ok(bytes),
    }
}

/// Thousandths of a processor, given as in Kubernetes.
pub(super) fn cpu_millis(text: &str) -> Result<u32, String> {
    let why =
        "must be a number of processors or, with m, of thousandths of one, as 0.5 or 500m, or none";
    if text == "none" {
        return Ok(0);
    }
    let millis = match text.strip_suffix('m') {
        Some(millis) => millis.parse().map_err(|_| why)?,
        None => {
            let millis = text.parse::<f64>().map_err(|_| why)? * 1000.0;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "what is out of range becomes 0 or the largest number"
            )]
            let whole = millis.round() as u32;
            if (f64::from(whole) - millis).abs() > 1e-6 {
                return Err(why.into());
            }
            whole
        }
    };
    match millis {
        0 => Err(why.into()),
        millis => Ok(millis),
    }
}

/// A number that is not 0, which the API has for no limit.
pub(super) fn count(text: &str) -> Result<u32, String> {
    match text.parse() {
        _ if text == "none" => Ok(0),
        Ok(count) if count > 0 => Ok(count),
        _ => Err("must be a whole number from 1 on, or none".into()),
    }
}

/// Permission bits, in octal as chmod has them.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok();
    mode.filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "must be permission bits in octal, 0 to 777, as 660".into())
}

/// A span of time with its units.
pub(super) fn span(text: &str) -> Result<prost_types::Duration, String> {
    let span = humantime::parse_duration(text)
        .map_err(|why| format!("must be a time with units, as 500ms or 1m30s: {why}"))?;
    prost_types::Duration::try_from(span).map_err(|why| why.to_string())
}

/// A point in time: so long ago, or as RFC 3339 has it.
pub(super) fn since(text: &str) -> Result<prost_types::Timestamp, String> {
    since_before(text, SystemTime::now())
}

fn since_before(text: &str, now: SystemTime) -> Result<prost_types::Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let why =
        "must be a time with units, as 10m or 1h30m, or a point in time, as 2026-01-31T12:00:00Z";
    let span = humantime::parse_duration(text).map_err(|_| why)?;
    let time = now.checked_sub(span).ok_or(why)?;
    Ok(time.into())
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

    #[test]
    fn limits_have_units() {
        assert_eq!(bytes("4096"), Ok(4096));
        for text in ["64M", "64Mi", "64MiB", "64MB"] {
            assert_eq!(bytes(text), Ok(64 << 20), "{text}");
        }
        assert_eq!(bytes("1T"), Ok(1 << 40));
        assert_eq!(
            (bytes("none"), count("none"), cpu_millis("none")),
            (Ok(0), Ok(0), Ok(0))
        );
        for text in [
            "",
            "0",
            "M",
            "-1",
            "1.5M",
            "64m",
            "16777216T",
            "1iB",
            "1B",
            "1Mx",
            "٣",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert_eq!(
            (cpu_millis("500m"), cpu_millis("0.5"), cpu_millis("2")),
            (Ok(500), Ok(500), Ok(2000))
        );
        for text in ["", "0", "-1", "nan", "inf", "1e20", "0.0001", "m", "1.5m"] {
            assert!(cpu_millis(text).is_err(), "{text}");
        }
        assert_eq!(count("256"), Ok(256));
        assert!(count("0").is_err() && count("-1").is_err() && count("all").is_err());
        assert_eq!((mode("660"), mode("0660")), (Ok(0o660), Ok(0o660)));
        assert!(mode("1000").is_err() && mode("68").is_err() && mode("rw").is_err());
    }

    #[test]
    fn goals_are_states_conditions_and_places() {
        assert_eq!(goal("state=connected"), Ok(Goal::State(State::Connected)));
        assert_eq!(goal("unplugged"), Ok(Goal::Unplugged));
        let condition = |status| Ok(Goal::Condition("Ready".into(), status));
        assert_eq!(goal("condition=Ready"), condition(condition::Status::True));
        let said = goal("condition=Ready=False");
        assert_eq!(said, condition(condition::Status::False));
        let states = goal("state=BUSY").unwrap_err();
        assert!(
            states.contains("READY, CONNECTED") && states.contains("STOPPED"),
            "{states}"
        );
        for text in [
            "",
            "Plugged",
            "state",
            "state=",
            "state=STATE_UNSPECIFIED",
            "condition=",
            "condition==true",
            "condition=Ready=maybe",
            "label=x",
        ] {
            assert!(goal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_spans_or_points() {
        let span = |text| span(text).map(|it| (it.seconds, it.nanos));
        assert_eq!(span("1m30s"), Ok((90, 0)));
        assert_eq!(span("500ms"), Ok((0, 500_000_000)));
        assert!(span("5").unwrap_err().contains("1m30s"));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(3600);
        let since = |text| since_before(text, now).map(|it| it.seconds);
        assert_eq!(since("10m"), Ok(3000));
        assert_eq!(since("1970-01-01T00:00:07Z"), Ok(7));
        assert_eq!(since("1970-01-01T01:00:07+01:00"), Ok(7));
        assert!(since("yesterday").is_err() && since("10").is_err());
    }
}
