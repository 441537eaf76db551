//! The right to map ends with the allocation.

use pageless::{MapGuard, MetadataOnly, Pool, Request};

fn kept() -> MapGuard<'static> {
    let pool = Pool::builder().backing(MetadataOnly::of_bytes(1 << 20)).build().unwrap();
    let ram = pool.allocate(Request::bytes(8192).owner("vm-42")).unwrap();
    ram.map_guard("ept", 0..4096).unwrap()
}

fn kept_over_a_release() {
    let pool = Pool::builder().backing(MetadataOnly::of_bytes(1 << 20)).build().unwrap();
    let ram = pool.allocate(Request::bytes(8192).owner("vm-42")).unwrap();
    let guard = ram.map_guard("ept", 0..4096).unwrap();
    ram.release().unwrap();
    drop(guard);
}

fn main() {}
