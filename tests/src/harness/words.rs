//! What a test is told by its environment, and what it says.

use std::io::Write;
use std::str::FromStr;

/// The value of an environment variable, or `default` where it is not set.
///
/// # Panics
/// If what is set can't be read.
#[must_use]
pub fn setting<T: FromStr>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, and a number is needed"))
}

/// Printed even where the test passes: figures, and what a failure is repeated by.
///
/// # Panics
/// If standard error is closed.
pub fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("standard error is open");
}
