//! What the end-to-end suites share. A suite runs software that nobody here wrote on memory from pageless: it fetches that
//! software from Debian, boots it, talks to it, and takes it down again.
//!
//! | module | what it does |
//! |---|---|
//! | `debian` | packages of the system's own release, fetched by a private apt and unpacked under `target/e2e` |
//! | `sources` | which sources that apt reads, and the configuration it obeys |
//! | `built_kernel` | a kernel with a configuration of our own, built from Debian's source |
//! | `kernel` | a kernel and its modules, out of its package |
//! | `initramfs` | what a kernel finds when it has booted |
//! | `machine` | a running QEMU: its serial console, its end |
//! | `qmp` | QEMU's control socket, with descriptors |
//! | `pattern` | contents that say which page they belong to, for both sides |
//!
//! The suites are the integration tests of this crate, each behind a feature of its name, so that `cargo test --workspace`
//! neither builds them nor fetches anything. `.cargo/config.toml` has a command for each: `cargo e2e-qemu`.
//!
//! Where something is missing, a test says so in a line `skipped: TEST: why` and does nothing: see [`or_skip`].
#![forbid(unsafe_code)]

mod built_kernel;
mod debian;
mod initramfs;
mod kernel;
mod machine;
mod pattern;
mod qmp;
mod sources;

pub use built_kernel::{BuiltKernel, NotBuilt};
pub use debian::{Debian, Missing, Package, Suite, Tree};
pub use initramfs::Initramfs;
pub use kernel::{Kernel, Module};
pub use machine::{Console, Machine, MachineBuilder, Qemu, Trouble};
pub use pageless_hugepages::skip;
pub use pattern::{answer, pattern};
pub use qmp::Qmp;

/// What was found, or a line on standard error that says what is missing.
pub fn or_skip<T>(test: &str, found: Result<T, Missing>) -> Option<T> {
    found.map_err(|why| skip(test, &why.to_string())).ok()
}
