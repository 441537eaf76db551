//! Only `detach` gives a mapping back, and only after its proof: a refusal has no mapping in it, and the list is closed.

use std::sync::Arc;

use pageless::{Allocation, Detach, Mapping};

fn out_of_a_refusal(ram: &Allocation) -> Arc<dyn Mapping> {
    match ram.detach("ept") {
        Ok(detached) => detached.into_mapping(),
        Err(Detach::Torn { mapping, .. }) => mapping,
        Err(refused) => refused.into_mapping(),
    }
}

fn without_asking(ram: &Allocation) {
    ram.owned.mappings.store(Default::default());
}

fn main() {}
