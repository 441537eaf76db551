//! The invariants of docs/INVARIANTS.md that the pool keeps, one file each. Every test names the line of production code that
//! keeps its invariant, and was seen to fail with that line broken.
//!
//! I5 and I6 have more in `outcomes`, I8 in the workspace's `bounded_pool`, I10 beside `verify`, I11 in `no_way_back`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "invariants/accounted.rs"]
mod accounted;
#[path = "invariants/exact_loss.rs"]
mod exact_loss;
#[path = "invariants/kept_shut.rs"]
mod kept_shut;
#[path = "invariants/planes_are_independent.rs"]
mod planes_are_independent;
#[path = "invariants/proof_before_free.rs"]
mod proof_before_free;
#[path = "invariants/refusal_is_free.rs"]
mod refusal_is_free;
mod scripted;
#[path = "invariants/sound_only.rs"]
mod sound_only;
#[path = "invariants/terminal.rs"]
mod terminal;
