//! Durations as the broker's API writes them: ISO 8601, `PT10M`, `P1DT12H`.
//! Invariant: what is read is more than nothing and at most [`WINDOW_MAX`]. Never reads years and months, which have no length.

use std::time::Duration;

/// A longer window is a mistake: every value of it would be kept for over a year.
pub(crate) const WINDOW_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

const DATE: [(char, u64); 2] = [('W', 7 * 24 * 60 * 60), ('D', 24 * 60 * 60)];
const TIME: [(char, u64); 3] = [('H', 60 * 60), ('M', 60), ('S', 1)];

pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no ISO 8601 duration such as PT10M or P1DT12H");
    let rest = text.strip_prefix('P').ok_or_else(wrong)?;
    let (date, time) = match rest.split_once('T') {
        Some((_, "")) => return Err(wrong()),
        Some((date, time)) => (date, time),
        None => (rest, ""),
    };
    let seconds = part(date, &DATE).zip(part(time, &TIME)).ok_or_else(wrong)?;
    let window = Duration::from_secs(seconds.0.checked_add(seconds.1).ok_or_else(wrong)?);
    if window.is_zero() {
        return Err("it is empty".into());
    }
    if window > WINDOW_MAX {
        return Err(format!("{text} is more than P366D"));
    }
    Ok(window)
}

/// The seconds of `1D2H`-like text, its units in the order of `units`, each once at most.
fn part(mut text: &str, units: &[(char, u64)]) -> Option<u64> {
    let (mut seconds, mut units) = (0_u64, units.iter());
    while !text.is_empty() {
        let end = text.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = text[..end].parse().ok()?;
        let unit = text[end..].chars().next()?;
        let (_, length) = units.by_ref().find(|(known, _)| *known == unit)?;
        seconds = seconds.checked_add(count.checked_mul(*length)?)?;
        text = &text[end + unit.len_utf8()..];
    }
    Some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_the_api_writes_them() {
        for (text, seconds) in [
            ("PT10M", 600),
            ("P1DT12H", 129_600),
            ("PT1H30M5S", 5405),
            ("P1W", 604_800),
            ("PT90S", 90),
            ("P366D", 31_622_400),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in [
            "",
            "P",
            "PT",
            "10M",
            "PT10",
            "P1Y",
            "P1M",
            "PTM",
            "PT5S1M",
            "PT1M1M",
            "PT-1S",
            "PT1.5S",
            "P1DT",
            "PT0S",
            "P367D",
            "PT99999999999999999999S",
            "P9223372036854775807W",
            "PT1é",
        ] {
            parse(bad).expect_err(bad);
        }
    }
}
