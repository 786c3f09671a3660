//! Durations in ISO 8601 (`P7D`, `PT30S`), in configuration and API alike. Invariant: what is formatted reads back as
//! the same duration. Never takes months or years: they have no fixed length.

use std::time::Duration;

use jiff::SignedDuration;

/// A day as a duration has it: 24 hours, whatever the calendar does.
const DAY_SECONDS: u64 = 86_400;
/// The longest duration that is read: a hundred years, which every sum of times here can hold.
const DURATION_MAX: Duration = Duration::from_secs(36_525 * DAY_SECONDS);

/// Reads a duration such as `P7D`, `PT30S`, `P1DT12H` or `PT0.5S`.
///
/// # Errors
/// A sentence for whoever wrote it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a duration such as P7D, PT30S or PT1H30M");
    if !text.starts_with(['P', 'p']) || text.len() > 64 {
        return Err(wrong());
    }
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(format!("'{text}' uses years or months, which have no fixed length; say days (P30D)"));
    }
    let days = i64::from(span.get_weeks()) * 7 + i64::from(span.get_days());
    let rest = span.weeks(0).days(0);
    let whole = SignedDuration::try_from(rest)
        .ok()
        .and_then(|rest| rest.checked_add(SignedDuration::from_secs(days.checked_mul(DAY_SECONDS as i64)?)))
        .ok_or_else(wrong)?;
    let duration = Duration::try_from(whole).map_err(|_| format!("'{text}' is negative"))?;
    if duration > DURATION_MAX {
        return Err(format!("'{text}' is longer than 100 years"));
    }
    Ok(duration)
}

/// Writes a duration as ISO 8601, in days, hours, minutes and seconds: `P7D`, `PT1M30S`, `PT0.25S`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS / 3600);
    let (minutes, rest, nanos) = (seconds % 3600 / 60, seconds % 60, duration.subsec_nanos());
    let mut time = String::new();
    let mut part = |value: u64, unit: char| {
        if value > 0 {
            time.push_str(&format!("{value}{unit}"));
        }
    };
    part(hours, 'H');
    part(minutes, 'M');
    if nanos > 0 {
        let fraction = format!("{nanos:09}");
        time.push_str(&format!("{rest}.{}S", fraction.trim_end_matches('0')));
    } else {
        part(rest, 'S');
    }
    match (days, time.as_str()) {
        (0, "") => "PT0S".to_owned(),
        (0, time) => format!("PT{time}"),
        (days, "") => format!("P{days}D"),
        (days, time) => format!("P{days}DT{time}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_iso_8601() {
        for (text, seconds) in [
            ("P7D", 604_800.0),
            ("P1W", 604_800.0),
            ("PT30S", 30.0),
            ("PT1H30M", 5400.0),
            ("P1DT12H", 129_600.0),
            ("PT0.5S", 0.5),
            ("PT0S", 0.0),
            ("pt5m", 300.0),
            ("PT90000S", 90_000.0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for bad in
            ["", "P", "PT", "7D", "7 days", "P1M", "P1Y", "-PT5S", "P-1D", "PT5", "P200Y", "P99999999D", "60", "PT5S "]
        {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_written_short() {
        for (seconds, text) in
            [(0.0, "PT0S"), (604_800.0, "P7D"), (90.0, "PT1M30S"), (0.25, "PT0.25S"), (129_600.5, "P1DT12H0.5S")]
        {
            assert_eq!(format_duration(Duration::from_secs_f64(seconds)), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(seconds in 0..36_525 * DAY_SECONDS, nanos in 0..1_000_000_000_u32) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
