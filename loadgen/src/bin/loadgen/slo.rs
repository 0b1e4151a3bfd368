//! Objectives: what a run must keep to, such as `p99(lateness)<5ms`.

use std::fmt;
use std::time::Duration;

use crate::units::duration;

/// What is measured of each event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// From an event's due time to the arrival of its first push.
    Lateness,
    /// From its intended send to the arrival of its receipt.
    PublishAck,
    /// From its intended send to the moment at which it was handed to the transport.
    GeneratorLag,
}

impl Metric {
    pub(crate) const ALL: [Metric; 3] = [Metric::Lateness, Metric::PublishAck, Metric::GeneratorLag];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Metric::Lateness => "lateness",
            Metric::PublishAck => "publish_ack",
            Metric::GeneratorLag => "generator_lag",
        }
    }
}

/// Shares of a distribution that are reported, each with its name.
pub(crate) const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// One objective.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slo {
    pub(crate) metric: Metric,
    pub(crate) quantile: f64,
    pub(crate) below: Duration,
    text: String,
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads `QUANTILE(METRIC)<DURATION`.
pub(crate) fn slo(text: &str) -> Result<Slo, String> {
    let wrong = || {
        "write QUANTILE(METRIC)<DURATION, such as 'p99(lateness)<5ms'; quantiles: p50 p90 p99 p99.9 max; metrics: \
         lateness publish_ack generator_lag"
            .to_owned()
    };
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = compact.split_once('<').ok_or_else(wrong)?;
    let (quantile, metric) =
        left.strip_suffix(')').and_then(|left| left.split_once('(')).ok_or_else(wrong)?;
    let (_, quantile) = QUANTILES.iter().find(|(name, _)| *name == quantile).ok_or_else(wrong)?;
    let metric = Metric::ALL.into_iter().find(|known| known.name() == metric).ok_or_else(wrong)?;
    let below = duration(right)?;
    Ok(Slo { metric, quantile: *quantile, below, text: compact })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read() {
        let read = slo(" p99.9( lateness ) < 5ms").expect("an objective");
        assert_eq!((read.metric, read.quantile), (Metric::Lateness, 0.999));
        assert_eq!(read.below, Duration::from_millis(5));
        assert_eq!(read.to_string(), "p99.9(lateness)<5ms");
    }

    #[test]
    fn what_is_not_one_is_refused_with_all_that_can_be_written() {
        for text in ["", "p99(lateness)", "p98(lateness)<5ms", "p99(speed)<5ms", "p99 lateness<5ms"] {
            assert!(slo(text).is_err_and(|why| why.contains("publish_ack")), "{text}");
        }
        assert!(slo("p99(lateness)<soon").is_err_and(|why| why.contains("200us")));
    }
}
