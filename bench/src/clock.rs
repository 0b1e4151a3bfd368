//! The thread's own CPU time.

use std::time::Duration;

/// Measures CPU time of the thread that started it.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    began: Duration,
}

impl Stopwatch {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Stopwatch { began: thread_cpu_time() }
    }

    /// CPU time since the start. Only on the thread that started it.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        thread_cpu_time() - self.began
    }
}

#[allow(unsafe_code)]
fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that outlives the call, which writes nothing else.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_while_the_thread_computes() {
        let watch = Stopwatch::start();
        while watch.elapsed() < Duration::from_micros(200) {
            std::hint::spin_loop();
        }
    }
}
