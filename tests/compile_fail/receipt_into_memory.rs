//! A receipt for lost frames names them, and nothing turns it back into memory: it cannot be copied, it is not a
//! set of frames, and no verb takes it.

use pageless::{Allocation, Lost, Pool, RunSet};

fn copied(lost: &Lost) -> Lost {
    lost.clone()
}

fn as_frames(lost: Vec<Lost>) -> RunSet {
    lost.into_iter().collect()
}

fn as_done(lost: Lost) -> RunSet {
    RunSet::from(lost)
}

fn given_back(pool: &Pool, ram: &Allocation, lost: Lost) {
    let _ = ram.share(lost);
    pool.put(lost);
}

fn main() {}
