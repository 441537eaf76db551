//! There is one handle: a second one could use frames that the first has released.

fn twice(ram: &pageless::Allocation) -> (pageless::Allocation, pageless::Allocation) {
    (ram.clone(), *ram)
}

fn main() {}
