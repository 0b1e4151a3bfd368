//! Moments as people write them: RFC 3339, or milliseconds since the Unix epoch.
//!
//! Days are counted by the calendar arithmetic of Howard Hinnant, "chrono-compatible low-level date algorithms".

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use escapement_protocol::WallMs;

const DAY_S: u64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAY: u64 = 719_468;
/// Days in 400 years.
const ERA_DAYS: u64 = 146_097;

/// What [`Moment::from_str`] answers to a text that is no moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a moment: write RFC 3339 as in 2031-05-17T08:30:00Z or 2031-05-17T08:30:00.250+02:00, or ms since 1970"
)]
pub(super) struct MomentError;

/// A moment from 1970 on, as given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment(pub(super) WallMs);

impl FromStr for Moment {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Self, MomentError> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(|ms| Moment(WallMs(ms))).map_err(|_| MomentError);
        }
        parse(text).map(|ms| Moment(WallMs(ms))).ok_or(MomentError)
    }
}

fn parse(text: &str) -> Option<u64> {
    let (date, time) = (text.get(..10)?, text.get(11..)?);
    if !matches!(text.as_bytes()[10], b'T' | b't' | b' ') {
        return None;
    }
    let (year, month, day) = (digits(date, 0, 4)?, digits(date, 5, 2)?, digits(date, 8, 2)?);
    let (hour, minute, second) = (digits(time, 0, 2)?, digits(time, 3, 2)?, digits(time, 6, 2)?);
    let separators = [date.as_bytes()[4], date.as_bytes()[7], time.as_bytes()[2], time.as_bytes()[5]];
    // A leap second is taken for the second after it.
    if separators != *b"--::" || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if !(1..=12).contains(&month) || day == 0 || day > days_of_month(year, month) {
        return None;
    }
    let rest = &time[8..];
    let (fraction_ms, zone) = match rest.strip_prefix('.') {
        None => (0, rest),
        Some(fraction) => {
            let count = fraction.bytes().take_while(u8::is_ascii_digit).count();
            let (digits, zone) = fraction.split_at(count);
            let padded: String = digits.chars().chain("00".chars()).take(3).collect();
            (if count == 0 { return None } else { padded.parse().ok()? }, zone)
        }
    };
    let local_s =
        i64::try_from(days_before(year, month, day)? * DAY_S + hour * 3_600 + minute * 60 + second).ok()?;
    let utc_s = u64::try_from(local_s - zone_s(zone)?).ok()?;
    Some(utc_s * 1_000 + fraction_ms)
}

fn zone_s(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hour, minute) = (digits(zone, 1, 2)?, digits(zone, 4, 2)?);
    if zone.len() != 6 || zone.as_bytes()[3] != b':' || hour > 23 || minute > 59 {
        return None;
    }
    Some(sign * (hour * 3_600 + minute * 60) as i64)
}

fn digits(text: &str, at: usize, count: usize) -> Option<u64> {
    let part = text.get(at..at + count)?;
    if part.bytes().all(|b| b.is_ascii_digit()) { part.parse().ok() } else { None }
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01, `None` before it. A year begins in March here, so that the leap day is its last.
fn days_before(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * ERA_DAYS + day_of_era).checked_sub(EPOCH_DAY)
}

/// RFC 3339 in UTC with milliseconds.
pub(super) fn rfc3339(moment: WallMs) -> String {
    let (seconds, ms) = (moment.0 / 1_000, moment.0 % 1_000);
    let (days, second) = (seconds / DAY_S + EPOCH_DAY, seconds % DAY_S);
    let (era, day_of_era) = (days / ERA_DAYS, days % ERA_DAYS);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// This machine's wall clock.
pub(super) fn now() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_the_rfc_has_them() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("0", 0),
            ("1795000000123", 1_795_000_000_123),
            // The RFC's own examples.
            ("1985-04-12T23:20:50.52Z", 482_196_050_520),
            ("1996-12-19T16:39:57-08:00", 851_042_397_000),
            ("1990-12-31T23:59:60Z", 662_688_000_000),
            ("2000-02-29t12:00:00.123456z", 951_825_600_123),
            ("2100-03-01 00:00:00+00:00", 4_107_542_400_000),
        ] {
            assert_eq!(text.parse(), Ok(Moment(WallMs(ms))), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "tomorrow",
            "2031-05-17",
            "2031-05-17T08:30:00",
            "2031-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2031-13-01T00:00:00Z",
            "2031-00-01T00:00:00Z",
            "2031-01-00T00:00:00Z",
            "2031-05-17T24:00:00Z",
            "2031-05-17T08:60:00Z",
            "2031-05-17T08:30:00.Z",
            "2031-05-17T08:30:00+2:00",
            "2031-05-17T08:30:00+02:00x",
            "1969-12-31T23:59:59Z",
            "2031é05-17T08:30:00Z",
            "-5",
        ] {
            assert_eq!(text.parse::<Moment>(), Err(MomentError), "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let day_ms = DAY_S * 1_000;
        for day in (0..200_000).step_by(13) {
            let moment = WallMs(day * day_ms + day * 431 % day_ms);
            assert_eq!(rfc3339(moment).parse(), Ok(Moment(moment)), "{}", rfc3339(moment));
        }
        assert_eq!(rfc3339(WallMs(951_825_600_123)), "2000-02-29T12:00:00.123Z");
    }
}
