//! A small VMM on memory whose private side is really private: `cargo e2e-private` boots a kernel for it and judges what it
//! prints, one line of JSON.
//!
//! The VM is of KVM's software-protected kind (`KVM_X86_SW_PROTECTED_VM`): private memory comes from a guest_memfd that nobody
//! can map, shared memory from a memfd beside it, and KVM's memory attributes say which of the two the guest has at an
//! address. Two vCPUs convert by hypercall and by touch; a device does not let go of one page; then the guest ends, and
//! another one gets the same memory.
//!
//! | file | what is in it |
//! |---|---|
//! | `guest.s`, `guest.rs` | the guest's program, its memory, what it says |
//! | `machine.rs` | the VM, the pool, a guest's memory put together |
//! | `vcpu.rs` | a vCPU and its exits |
//! | `device.rs` | a device that does not let go |
//! | `witness.rs` | what the host sees when the guest says something |
#![deny(unsafe_code)]

mod device;
mod guest;
mod machine;
mod vcpu;
mod witness;

use std::sync::{Arc, mpsc};
use std::thread;

use anyhow::{Context, Result, anyhow};
use pageless::{FRAME_BYTES, Pfn, PfnRange, Request};
use pageless_kvm::Guest;
use serde::Serialize;

use crate::device::Device;
use crate::guest::{ABOVE, Entries, HOLE, LOST, RAM, WINDOW, WINDOW_BYTES};
use crate::machine::{Devices, Machine};
use crate::vcpu::Exits;
use crate::witness::{Testimony, Witness};

/// All that is printed.
#[derive(Debug, Serialize)]
struct Story {
    first: Testimony,
    /// Of each vCPU.
    exits: Vec<Exits>,
    /// `KVM_SET_MEMORY_ATTRIBUTES` that KVM carried out while the first guest lived.
    attributes: Attributes,
    between: Between,
}

#[derive(Debug, Serialize)]
struct Attributes {
    to_private: usize,
    to_shared: usize,
}

/// What became of the memory when the first guest had ended.
#[derive(Debug, Serialize)]
struct Between {
    frames: u64,
    freed: u64,
    free: u64,
    failed: u64,
    withdrawn_is_the_lost_one: bool,
    /// Whether the second guest, which got every free frame, has the lost one.
    handed_out_again: bool,
    /// Whether there was one more frame to be had.
    one_more: bool,
    /// Frames that the second guest looked at, and words in them that were not zero.
    scanned: u64,
    not_zero: u64,
}

fn main() -> Result<()> {
    let machine = Machine::new(RAM)?;
    let mut lost = None;
    let (guest, entries) = machine.guest("first", RAM, |ram| {
        let clings_to = ram.frame(LOST)?; // below the hole an address of the guest's is an offset of its allocation
        lost = Some(clings_to);
        Ok(Devices::from([("device".to_owned(), Arc::new(Device { clings_to }) as _)]))
    })?;
    let lost = lost.context("no frame was chosen")?;
    let (first, exits) = first_life(&machine, &guest, entries)?;
    let changes = machine.vm.changes();
    let to_private = changes.iter().filter(|change| change.to_private).count();
    let attributes = Attributes { to_private, to_shared: changes.len() - to_private };
    let between = afterwards(&machine, guest, lost)?;
    println!("story {}", serde_json::to_string(&Story { first, exits, attributes, between })?);
    Ok(())
}

/// Two vCPUs, from the first instruction to the last. The second begins when the first says that its code is at home.
fn first_life(machine: &Machine, guest: &Guest, entries: Entries) -> Result<(Testimony, Vec<Exits>)> {
    let (at_home, is_at_home) = mpsc::channel();
    let witness = Witness::new(machine, guest, Some(at_home));
    let run = &|number, rip| {
        let exits = vcpu::create(machine, number, rip).and_then(|mut vcpu| vcpu::run(&mut vcpu, guest, &witness));
        // The other one may wait for this one for ever, in the guest, where nobody can tell it.
        exits.unwrap_or_else(|error| {
            eprintln!("vCPU {number}: {error:#}");
            std::process::exit(1)
        })
    };
    let exits = thread::scope(|scope| {
        let second = scope.spawn(move || is_at_home.recv().map(|()| run(1, entries.second)));
        let first = run(0, entries.first);
        let second = second.join().map_err(|_| anyhow!("the second vCPU panicked"))?;
        Ok::<_, anyhow::Error>(vec![first, second?])
    })?;
    Ok((witness.testimony(), exits))
}

/// The guest ends, its memory is reclaimed, and another guest gets all that is free and looks at all of it.
fn afterwards(machine: &Machine, guest: Guest, lost: Pfn) -> Result<Between> {
    let stage2 = guest.stage2().clone();
    drop(guest); // released, not free
    let reclaimed = machine.pool.reclaim();
    stage2.remove_slots()?;
    let (stats, withdrawn) = (machine.pool.stats(), machine.pool.withdrawn());

    let (guest, entries) = machine.guest("second", stats.free * FRAME_BYTES, |_| Ok(Devices::new()))?;
    let one_more = machine.pool.allocate(Request::bytes(FRAME_BYTES).owner("third")).is_ok();
    let witness = Witness::new(machine, &guest, None);
    let mut vcpu = vcpu::create(machine, 2, entries.scan)?;
    let above = ABOVE..ABOVE + guest.ram().bytes() - HOLE;
    let ranges = [0..WINDOW, WINDOW + WINDOW_BYTES..HOLE, above];
    for range in &ranges {
        vcpu::stand_at(&vcpu, entries.scan, range.clone())?;
        vcpu::run(&mut vcpu, &guest, &witness)?;
    }
    Ok(Between {
        frames: stats.frames,
        freed: reclaimed.freed.frames(),
        free: stats.free,
        failed: stats.failed,
        withdrawn_is_the_lost_one: withdrawn.iter().map(|run| run.frames).eq([PfnRange::single(lost)]),
        handed_out_again: guest.ram().extents().iter().any(|extent| extent.frames.contains(lost)),
        one_more,
        scanned: ranges.iter().map(|range| (range.end - range.start) / FRAME_BYTES).sum(),
        not_zero: witness.testimony().not_zero,
    })
}
