//! The rivals: other people's crates behind one trait each, and models of what Linux does. Measured, never used.

pub mod buddy_slab;
pub mod frame_alloc;
pub mod pages;
pub mod plane;
pub mod simd;
pub mod taker;
pub mod tlsf;
