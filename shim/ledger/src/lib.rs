//! The durable ledger of a pool: a redb file, written by one thread with two-phase commits that several callers share.
//!
//! Read in this order: [`RedbLedger`], which a pool writes through; `tables`, what stands in the file; `slots`, how an opening
//! makes sure that it sees the newest commit; [`inspect`], which looks at a file while no pool has it open.
#![forbid(unsafe_code)]

mod disk;
mod encode;
mod inspect;
mod opened;
mod slots;
mod tables;
mod words;
mod writer;

pub use disk::{Disk, FileDisk, MemoryDisk};
pub use inspect::{Inspection, inspect, inspect_bytes, replace_hardware};
pub use opened::FORMAT;
pub use writer::{Options, RedbLedger};
