//! The small VMM of `examples/mini_vmm`, run as a test.

#[path = "../../examples/mini_vmm/main.rs"]
#[allow(dead_code)] // its own `main`
mod mini_vmm;

use clap::Parser;

use crate::skip;

#[test]
fn the_small_vmm_holds_what_it_shows_on_every_backing_of_this_host() {
    if let Err(why) = pageless_kvm::probe() {
        return skip("the small VMM", &why.to_string());
    }
    let args = mini_vmm::Args::parse_from(["mini_vmm", "--rounds", "12"]);
    for (ground, outcome) in mini_vmm::outcomes(&args) {
        if let mini_vmm::Outcome::Skipped(why) = outcome.unwrap() {
            skip(&format!("the small VMM on {ground}"), &why);
        }
    }
}
