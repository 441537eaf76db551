//! What a conversion says of its frames can be read, and neither taken nor changed.

use pageless::{Converted, RunSet};

fn moved(converted: &Converted) -> RunSet {
    *converted.frames()
}

fn changed(mut converted: Converted) {
    converted.frames = RunSet::new();
    converted.frames().insert(pageless::PfnRange::single(pageless::Pfn::new(1)));
}

fn main() {}
