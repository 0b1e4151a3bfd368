//! Quantities as people write them: `64MiB`, `500k/s`, `1m30s`.
//!
//! A number may have a decimal fraction, and a quantity must come out whole: `1.5KiB` is 1,536 bytes, `0.3KiB` is
//! refused. Units that mean different things to different people, as a bare `M` of bytes does, are refused too.

use std::time::Duration;

/// What is wrong with a quantity; the text says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No number at the start.
    #[error("{0:?} does not start with a number; write for example {1}")]
    NoNumber(String, &'static str),
    /// Less than nothing.
    #[error("{0:?} is negative, and a duration cannot be; write for example {1}")]
    Negative(String, &'static str),
    /// A unit that this quantity does not have.
    #[error("{}; write for example {example}", if unit.is_empty() { "a unit is missing".to_owned() } else { format!("{unit:?} is not a unit here") })]
    Unit {
        /// As it was given.
        unit: String,
        /// A value that would be taken.
        example: &'static str,
    },
    /// Not a whole number of the smallest unit, or beyond 64 bits.
    #[error("{0:?} is too large or too finely divided")]
    Inexact(String),
}

const BYTES_EXAMPLE: &str = "64MiB, 16GiB or 4096";
const RATE_EXAMPLE: &str = "500k/s or 2000/s";
const DURATION_EXAMPLE: &str = "200us, 10s or 1m30s";

/// Reads a size in bytes: a number with `B`, `KiB`, `MiB`, `GiB`, `TiB`, `kB`, `MB`, `GB`, `TB`, or none for bytes.
///
/// # Errors
/// [`UnitError`].
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split_number(text, BYTES_EXAMPLE)?;
    let scale: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(UnitError::Unit { unit: unit.to_owned(), example: BYTES_EXAMPLE }),
    };
    number.times(scale).ok_or_else(|| UnitError::Inexact(text.to_owned()))
}

/// Reads a rate in events per second: a number with `k` or `M` or none, and `/s`, which may be left out.
///
/// # Errors
/// [`UnitError`].
pub fn parse_rate(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split_number(text, RATE_EXAMPLE)?;
    let scale = match unit.strip_suffix("/s").unwrap_or(unit) {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        _ => return Err(UnitError::Unit { unit: unit.to_owned(), example: RATE_EXAMPLE }),
    };
    number.times(scale).ok_or_else(|| UnitError::Inexact(text.to_owned()))
}

/// Reads a duration down to the microsecond: one or more numbers, each with `us`, `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// [`UnitError`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    if text.starts_with('-') {
        return Err(UnitError::Negative(text.to_owned(), DURATION_EXAMPLE));
    }
    let mut total_us: u64 = 0;
    let mut rest = text;
    loop {
        let (number, after) = split_number(rest, DURATION_EXAMPLE)?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let scale_us = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" => 60_000_000,
            "h" => 3_600_000_000,
            "d" => 86_400_000_000,
            "" if text == "0" => 1,
            _ => return Err(UnitError::Unit { unit: unit.to_owned(), example: DURATION_EXAMPLE }),
        };
        total_us = number
            .times(scale_us)
            .and_then(|us| total_us.checked_add(us))
            .ok_or_else(|| UnitError::Inexact(text.to_owned()))?;
        if next.is_empty() {
            return Ok(Duration::from_micros(total_us));
        }
        rest = next;
    }
}

/// Writes a size in the largest binary unit that divides it.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(scale, _)| bytes != 0 && bytes.is_multiple_of(*scale)) {
        Some((scale, unit)) => format!("{}{unit}", bytes / scale),
        None => format!("{bytes}B"),
    }
}

/// `digits` divided by ten to the `decimals`.
#[derive(Clone, Copy)]
struct Number {
    digits: u64,
    decimals: u32,
}

impl Number {
    fn times(self, scale: u64) -> Option<u64> {
        let divisor = 10u128.checked_pow(self.decimals)?;
        let product = u128::from(self.digits) * u128::from(scale);
        product.is_multiple_of(divisor).then(|| u64::try_from(product / divisor).ok()).flatten()
    }
}

fn split_number<'a>(text: &'a str, example: &'static str) -> Result<(Number, &'a str), UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if !whole.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('.') || fraction.contains('.') {
        return Err(UnitError::NoNumber(text.to_owned(), example));
    }
    let whole = whole.replace('_', "");
    let digits = format!("{whole}{fraction}").parse().map_err(|_| UnitError::Inexact(text.to_owned()))?;
    Ok((Number { digits, decimals: fraction.len() as u32 }, rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("1.5 KiB", 1536),
            ("16GiB", 16 << 30),
            ("2MB", 2_000_000),
            ("1_000B", 1000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "64M", "64mib", "0.3KiB", "1..5KiB", "-1", "99999999999TiB", "1.", "_1"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_read_as_they_are_written() {
        for (text, per_s) in [("500k/s", 500_000), ("1.5M/s", 1_500_000), ("20", 20), ("0", 0), ("7k", 7_000)]
        {
            assert_eq!(parse_rate(text), Ok(per_s), "{text}");
        }
        for text in ["k/s", "5/m", "1.5", "5K/s"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_they_are_written() {
        for (text, us) in [
            ("10s", 10_000_000),
            ("250ms", 250_000),
            ("1m30s", 90_000_000),
            ("1.5h", 5_400_000_000),
            ("200us", 200),
            ("7d", 7 * 86_400_000_000),
            ("0", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(us)), "{text}");
        }
        for text in ["10", "s", "1m30", "10 parsecs", "0.5us", "1s-2s", ""] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_that_was_written_reads_back() {
        for bytes in [0, 1, 1023, 4096, 64 << 20, (1 << 30) + 1, 3 << 40] {
            assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
    }
}
