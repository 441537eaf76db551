//! Names of memory, for [`Backing::instance`](pageless::Backing::instance): two backings of one name are the same memory.

use std::hash::{BuildHasher, RandomState};

/// A name that no other memory has, on no host and at no time: for files that have none and end with their process.
pub(crate) fn anonymous() -> String {
    let [high, low] = [RandomState::new(), RandomState::new()].map(|random| random.hash_one(std::process::id()));
    format!("anonymous memory {high:016x}{low:016x}")
}
