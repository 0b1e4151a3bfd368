//! The process's limit of open files: a node keeps every segment file of its logs open.

use std::error::Error;
use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the limit as far as this process may. The lower one that shells and service managers set is for programs
/// that cannot take more.
pub(crate) fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // Without it a small log still fits, and one that does not says so when it is opened.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// An error in words, with what to do where it comes from the limit of open files.
pub(crate) fn explained(error: &(dyn Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(cause) = next {
        let code = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if matches!(code, Some(libc::EMFILE | libc::ENFILE)) {
            return format!(
                "{error}: a node keeps every segment file open; raise the limit of open files, with `ulimit -n` in a shell \
                 or LimitNOFILE= under systemd"
            );
        }
        next = cause.source();
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::DataDirError;

    #[test]
    fn the_limit_of_open_files_is_named_however_deep_the_error_lies() {
        let refused = |code| DataDirError::Io {
            action: "open",
            path: "LOCK".into(),
            source: io::Error::from_raw_os_error(code),
        };
        assert!(explained(&refused(libc::EMFILE)).contains("ulimit -n"));
        assert!(!explained(&refused(libc::EACCES)).contains("ulimit -n"));
    }
}
