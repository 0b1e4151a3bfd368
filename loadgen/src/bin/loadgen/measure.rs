//! Distributions, by second and in all.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::slo::Metric;

/// Longest time that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(3_600);

/// One distribution for each metric, in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Distributions {
    lateness: Histogram<u64>,
    publish_ack: Histogram<u64>,
    generator_lag: Histogram<u64>,
}

impl Distributions {
    pub(crate) fn new() -> Self {
        let empty = || {
            Histogram::new_with_bounds(1, LONGEST.as_micros() as u64, 3)
                .expect("three digits over an hour are a legal histogram")
        };
        Distributions { lateness: empty(), publish_ack: empty(), generator_lag: empty() }
    }

    pub(crate) fn of(&self, metric: Metric) -> &Histogram<u64> {
        match metric {
            Metric::Lateness => &self.lateness,
            Metric::PublishAck => &self.publish_ack,
            Metric::GeneratorLag => &self.generator_lag,
        }
    }

    fn of_mut(&mut self, metric: Metric) -> &mut Histogram<u64> {
        match metric {
            Metric::Lateness => &mut self.lateness,
            Metric::PublishAck => &mut self.publish_ack,
            Metric::GeneratorLag => &mut self.generator_lag,
        }
    }

    /// Records a time; one longer than an hour counts as an hour.
    pub(crate) fn record(&mut self, metric: Metric, time_ns: u64) {
        self.of_mut(metric).saturating_record(time_ns / 1_000);
    }

    /// Adds what `second` holds, and empties it.
    pub(crate) fn absorb(&mut self, second: &mut Distributions) {
        for metric in Metric::ALL {
            let all = self.of_mut(metric);
            all.add(second.of(metric)).expect("both have the same bounds");
            second.of_mut(metric).reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_add_up_and_begin_empty() {
        let (mut all, mut second) = (Distributions::new(), Distributions::new());
        for round in 1..=3 {
            second.record(Metric::Lateness, round * 1_000_000);
            second.record(Metric::PublishAck, u64::MAX);
            all.absorb(&mut second);
            assert_eq!(second.of(Metric::Lateness).len(), 0);
        }
        assert_eq!(all.of(Metric::Lateness).len(), 3);
        assert_eq!(all.of(Metric::Lateness).value_at_quantile(0.5), 2_000);
        assert!(all.of(Metric::PublishAck).max() >= 3_600_000_000);
    }
}
