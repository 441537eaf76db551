//! Why an operation makes frames unreachable: a mapping and a quarantine both need to know.

use std::fmt;

/// Why an operation makes frames unreachable. Recorded with every quarantine, because a later proof completes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Intent {
    /// Private to shared: the private translations must go.
    Share,
    /// Shared to private: the shared translations must go.
    Unshare,
    /// The owner has given the frames up: every translation must go, and the contents with them.
    Reclaim,
    /// One mapping is being detached: its translations must go, the others' may stay.
    Detach,
    /// Larger leaves are being cut or joined: nothing becomes unreachable.
    Resize,
}

impl fmt::Display for Intent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Share => "share",
            Self::Unshare => "unshare",
            Self::Reclaim => "reclaim",
            Self::Detach => "detach",
            Self::Resize => "resize",
        })
    }
}
