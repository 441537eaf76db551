//! Released is gone: the handle is consumed.

use pageless::{MetadataOnly, Pool, Request};

fn main() {
    let pool = Pool::builder().backing(MetadataOnly::of_bytes(1 << 20)).build().unwrap();
    let ram = pool.allocate(Request::bytes(8192).owner("vm-42")).unwrap();
    ram.release().unwrap();
    ram.share(0..4096).unwrap();
}
