//! What the cross-crate tests and the benchmarks need and no product crate should carry.
//!
//! Only [`counting`] lives here: an allocator that counts. The tests themselves are the files beside this one.

pub mod counting;
