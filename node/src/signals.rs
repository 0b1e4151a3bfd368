//! The operating system's wish that this process end.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::serve::Control;

/// Exit status of a process that a signal ended, by the shell's convention.
const ENDED_BY_SIGNAL: i32 = 128;

/// From now on SIGTERM and SIGINT drain the node that `control` belongs to, and a second one ends the process at once.
///
/// `on_notice` hears of each, on a thread that lives as long as the process.
///
/// # Errors
/// Of the operating system, where no handler or thread could be had.
pub fn drain_on_signals(control: Arc<Control>, on_notice: impl Fn(&str) + Send + 'static) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    drop(entered);
    let listen = async move {
        let mut draining = false;
        loop {
            let (name, kind) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
            };
            if draining {
                on_notice(&format!("{name} again: ending at once; running attempts will be redelivered"));
                std::process::exit(ENDED_BY_SIGNAL + kind.as_raw_value());
            }
            draining = true;
            on_notice(&format!("{name}: draining; send it again to end at once"));
            control.drain();
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(listen))?;
    Ok(())
}
