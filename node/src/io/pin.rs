//! One core thread, one CPU.

use std::io;

use super::sys;

/// How many CPUs this process may use.
///
/// # Errors
/// What `sched_getaffinity` says.
pub fn allowed_cpu_count() -> io::Result<usize> {
    Ok(sys::allowed_cpus()?.len())
}

/// Keeps the calling thread on the `index`-th CPU it may use, counted round where there are fewer; which one.
///
/// Threads that it starts later inherit the restriction; those that a host starts leave it again.
///
/// # Errors
/// What `sched_getaffinity` or `sched_setaffinity` say.
pub fn pin_to_allowed_cpu(index: usize) -> io::Result<usize> {
    let cpus = sys::allowed_cpus()?;
    let cpu = cpus[index % cpus.len()];
    sys::pin_to_cpu(cpu)?;
    Ok(cpu)
}

/// Lets the calling thread run wherever the process's first thread may, whatever it inherited.
pub(super) fn leave_the_cores_cpu() {
    // A refusal leaves it where it is, which is slower and otherwise right.
    let _ = sys::allow_cpus_of_the_process();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_use_one_cpu_and_indexes_wrap() {
        let count = allowed_cpu_count().unwrap();
        let pinned = |index| {
            std::thread::spawn(move || (pin_to_allowed_cpu(index).unwrap(), sys::allowed_cpus().unwrap()))
                .join()
                .unwrap()
        };
        let (first, allowed) = pinned(0);
        assert_eq!(allowed, [first]);
        assert_eq!(pinned(count).0, first);
    }
}
