//! [`Progress`] of taking huge pages: the kernel zeroes each, 56 us for 2 MiB and 150 ms for 1 GiB, so a large memory takes
//! minutes.

use std::fmt;
use std::sync::Arc;

/// How far one commit has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes taken so far by this commit.
    pub filled: u64,
    /// Bytes that this commit takes in all. What was there before is not counted.
    pub wanted: u64,
}

/// Whom to tell.
#[derive(Clone)]
pub(crate) struct Watcher(pub(crate) Arc<dyn Fn(Progress) + Send + Sync>);

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}
