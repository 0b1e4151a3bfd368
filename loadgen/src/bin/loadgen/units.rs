//! Texts of arguments: rates, numbers, durations, shares, sizes of delay.

use std::time::Duration;

use escapement_loadgen::DelayLaw;

/// How fast events are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rate {
    PerSecond(u64),
    /// As fast as they are taken.
    Max,
}

/// Reads `500k/s`, `1.5M/s`, `20000` or `max`.
pub(crate) fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate::Max);
    }
    let (number, factor) = scaled(text.strip_suffix("/s").unwrap_or(text));
    match number.parse::<f64>() {
        Ok(value) if (1.0..=1e9).contains(&(value * factor)) => Ok(Rate::PerSecond((value * factor) as u64)),
        _ => Err("write a rate such as 500k/s, 1.5M/s or 20000/s, from 1/s up to 1000M/s, or max".to_owned()),
    }
}

/// Reads `100M`, `200k` or `5000`.
pub(crate) fn count(text: &str) -> Result<u64, String> {
    let (number, factor) = scaled(text);
    match number.parse::<f64>() {
        Ok(value) if (1.0..=1e10).contains(&(value * factor)) => Ok((value * factor).round() as u64),
        _ => Err("write a number such as 100M, 200k or 5000, from 1 up to 10000M".to_owned()),
    }
}

/// A number and what its last letter multiplies it by.
fn scaled(text: &str) -> (&str, f64) {
    match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'M')) => (&text[..at], 1e6),
        _ => (text, 1.0),
    }
}

/// Reads `5ms`, `0.3ms`, `200us`, `30s`, `2m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a duration such as 200us, 5ms, 30s or 2m".to_owned();
    let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let seconds = match &text[at..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = text[..at].parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// Reads a duration in whole ms.
fn milliseconds(text: &str) -> Result<u64, String> {
    Ok(duration(text)?.as_millis() as u64)
}

/// Reads `0s`, `2s`, `uniform:1s..5s` or `exp:5s`.
pub(crate) fn delay(text: &str) -> Result<DelayLaw, String> {
    if let Some(range) = text.strip_prefix("uniform:") {
        let (least, most) =
            range.split_once("..").ok_or("write uniform:SHORTEST..LONGEST, such as uniform:1s..5s")?;
        let (least, most) = (milliseconds(least)?, milliseconds(most)?);
        return if least <= most {
            Ok(DelayLaw::Uniform(least, most))
        } else {
            Err("the shortest delay comes first: uniform:SHORTEST..LONGEST".to_owned())
        };
    }
    match text.strip_prefix("exp:") {
        Some(mean) => Ok(DelayLaw::Exponential(milliseconds(mean)?)),
        None => Ok(DelayLaw::Fixed(milliseconds(text)?)),
    }
}

/// Reads `1%`, `0.5%`, in thousandths.
pub(crate) fn permille(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    match number {
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok((percent * 10.0).round() as u32),
        _ => Err("write a share such as 1% or 0.5%, up to 100%".to_owned()),
    }
}

/// Reads a certificate's SHA-256.
pub(crate) fn sha256(text: &str) -> Result<[u8; 32], String> {
    let wrong = || "write the 64 hexadecimal digits that the node printed at its start".to_owned();
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong());
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_durations_delays_and_shares_are_read_as_people_write_them() {
        assert_eq!(rate("500k/s"), Ok(Rate::PerSecond(500_000)));
        assert_eq!(rate("1.5M/s"), Ok(Rate::PerSecond(1_500_000)));
        assert_eq!(rate("20000"), Ok(Rate::PerSecond(20_000)));
        assert_eq!(rate("max"), Ok(Rate::Max));
        assert_eq!([count("100M"), count("0.2k"), count("7")], [Ok(100_000_000), Ok(200), Ok(7)]);
        assert_eq!(duration("0.3ms"), Ok(Duration::from_micros(300)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(delay("0s"), Ok(DelayLaw::Fixed(0)));
        assert_eq!(delay("uniform:1s..5s"), Ok(DelayLaw::Uniform(1_000, 5_000)));
        assert_eq!(delay("exp:5s"), Ok(DelayLaw::Exponential(5_000)));
        assert_eq!(permille("0.5%"), Ok(5));
        assert_eq!(sha256(&"0f".repeat(32)), Ok([15; 32]));
    }

    #[test]
    fn what_is_not_one_is_refused_with_an_example() {
        for text in ["", "0", "-5/s", "fast", "5x/s", "2000M/s"] {
            assert!(rate(text).is_err_and(|why| why.contains("500k/s")), "{text}");
        }
        for text in ["", "0", "k", "1e99", "-5", "many", "20000M"] {
            assert!(count(text).is_err_and(|why| why.contains("100M")), "{text}");
        }
        for text in ["", "5", "ms", "5 parsecs", "-1s"] {
            assert!(duration(text).is_err_and(|why| why.contains("5ms")), "{text}");
        }
        for text in ["uniform:1s", "uniform:2s..1s", "exp:", "never"] {
            assert!(delay(text).is_err(), "{text}");
        }
        for text in ["1", "101%", "-1%", "%"] {
            assert!(permille(text).is_err(), "{text}");
        }
        for text in ["", "0f", &"g".repeat(64), &"é".repeat(32)] {
            assert!(sha256(text).is_err(), "{text}");
        }
    }
}
