//! The durable ledger of a pool: a redb file, written by one thread with two-phase commits that several callers share.
//!
//! Read in this order: [`RedbLedger`], which a pool writes through; `tables`, what stands in the file; `slots`, how an opening
//! makes sure that it sees the newest commit; [`inspect`], which looks at a file while no pool has it open;
//! `image`, a whole pool as bytes for a live update.
#![forbid(unsafe_code)]

mod disk;
mod encode;
mod image;
mod inspect;
mod opened;
mod rice;
mod slots;
mod tables;
mod words;
mod writer;

pub use disk::{Disk, FileDisk, MemoryDisk};
pub use image::{IMAGE_VERSION, export_shared, from_image, to_image};
pub use inspect::{Inspection, inspect, inspect_bytes, replace_hardware};
pub use opened::FORMAT;
pub use writer::{Options, RedbLedger};
