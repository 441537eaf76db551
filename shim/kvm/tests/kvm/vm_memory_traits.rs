//! An allocation through vm-memory's own traits, while it converts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pageless::{FRAME_BYTES, Shareability};
use pageless_host::{HostBacking, HostMapping};
use pageless_kvm::{GuestRamError, Layout, Piece, Request, guest_ram};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
};

use crate::fake::FakeVm;
use crate::{MIB, World};

fn convert(world: &World, offsets: std::ops::Range<u64>, to: Shareability) {
    world.guest.convert(&Request { offsets, to }).1.unwrap();
}

#[test]
fn shared_memory_is_read_and_written_and_private_memory_is_an_error() {
    let world = World::on(FakeVm::with_slots(4), 2 * MIB);
    let memory = guest_ram(world.guest.host(), world.guest.stage2().layout()).unwrap();
    assert!(matches!(memory.read_obj::<u64>(GuestAddress(0)), Err(GuestMemoryError::HostAddressNotAvailable)));
    convert(&world, 0..8192, Shareability::Shared);
    memory.write_obj(0x1234_5678_u64, GuestAddress(4096 - 4)).unwrap();
    assert_eq!(memory.read_obj::<u64>(GuestAddress(4096 - 4)).unwrap(), 0x1234_5678);
    let mut seen = [0; 8];
    world.guest.stage2().offsets(4092, 8).unwrap();
    world.guest.map(0..8192).unwrap();
    world.guest.stage2().view().read(4092, &mut seen).unwrap();
    assert_eq!(u64::from_ne_bytes(seen), 0x1234_5678, "the guest reads the same");
    // Over the edge of what is shared: an error, and nothing of it is written.
    assert!(memory.write_slice(&[7; 64], GuestAddress(8192 - 32)).is_err());
    assert_eq!(memory.read_obj::<u32>(GuestAddress(8192 - 32)).unwrap(), 0);
    assert!(memory.get_host_address(GuestAddress(4096)).is_ok() && memory.get_host_address(GuestAddress(8192)).is_err());
    memory.store(9_u32, GuestAddress(16), Ordering::SeqCst).unwrap();
    assert_eq!(memory.load::<u32>(GuestAddress(16), Ordering::SeqCst).unwrap(), 9);
    let mut file: &[u8] = b"from a file";
    memory.read_exact_volatile_from(GuestAddress(64), &mut file, 11).unwrap();
    let mut out = Vec::new();
    memory.write_all_volatile_to(GuestAddress(64), &mut out, 11).unwrap();
    assert_eq!(out, b"from a file");
    world.end();
}

#[test]
fn of_a_large_range_exactly_the_shared_frames_are_mapped_for_the_host() {
    let world = World::on(FakeVm::with_slots(4), 8 * MIB);
    // Within a block, a whole block, the edges of blocks, and the last frame.
    let shared = [5..9, 512..1024, 1535..1537, 2047..2048];
    for frames in &shared {
        convert(&world, frames.start * FRAME_BYTES..frames.end * FRAME_BYTES, Shareability::Shared);
    }
    for mapping in [world.guest.host(), world.guest.stage2().view()] {
        mapping.unmap(world.memory.frames()).unwrap();
    }
    world.guest.map(0..8 * MIB).unwrap();
    for frame in 0..2048 {
        let is_shared = shared.iter().any(|frames| frames.contains(&frame));
        assert_eq!(world.guest.host().is_mapped_at(frame * FRAME_BYTES, FRAME_BYTES), is_shared, "frame {frame}");
        assert!(world.guest.stage2().view().is_mapped_at(frame * FRAME_BYTES, FRAME_BYTES), "frame {frame}");
    }
    world.end();
}

#[test]
fn regions_follow_the_layout_and_are_what_rust_vmm_passes_around() {
    let world = World::on(FakeVm::with_slots(4), 2 * MIB);
    let piece = |gpa, offset| Piece { gpa, offset, bytes: MIB };
    let layout = Layout::new([piece(MIB, 0), piece(8 * MIB, MIB)]).unwrap();
    let memory = guest_ram(world.guest.host(), &layout).unwrap();
    assert_eq!(memory.num_regions(), 2);
    assert_eq!(memory.last_addr(), GuestAddress(9 * MIB - 1));
    assert!(memory.find_region(GuestAddress(0)).is_none());
    convert(&world, MIB - 4096..MIB + 4096, Shareability::Shared);
    let atomic = GuestMemoryAtomic::new(memory);
    atomic.memory().write_slice(b"above", GuestAddress(8 * MIB)).unwrap();
    let mut seen = [0; 5];
    world.guest.host().read(MIB, &mut seen).unwrap();
    assert_eq!(&seen, b"above");
    let region = atomic.memory().find_region(GuestAddress(8 * MIB)).map(GuestMemoryRegion::len);
    assert_eq!(region, Some(MIB));
}

#[test]
fn a_mapping_without_scratch_pages_is_refused() {
    let world = World::on(FakeVm::with_slots(4), MIB);
    let layout = Layout::around(MIB, 0..0).unwrap();
    assert!(matches!(guest_ram(world.guest.stage2().view(), &layout), Err(GuestRamError::NoScratch)));
    let long = Layout::around(2 * MIB, 0..0).unwrap();
    assert!(matches!(guest_ram(world.guest.host(), &long), Err(GuestRamError::BeyondMapping { .. })));
}

#[test]
fn a_slice_kept_too_long_writes_into_a_void() {
    let world = World::on(FakeVm::with_slots(4), MIB);
    convert(&world, 0..4096, Shareability::Shared);
    let memory = guest_ram(world.guest.host(), world.guest.stage2().layout()).unwrap();
    let late = memory.get_slice(GuestAddress(0), 8).unwrap();
    late.write_obj(1_u64, 0).unwrap();
    convert(&world, 0..4096, Shareability::Private);
    late.write_obj(0xbad_u64, 0).unwrap();
    let mut private = [0; 8];
    world.guest.stage2().view().read(0, &mut private).unwrap();
    assert_ne!(u64::from_ne_bytes(private), 0xbad, "the private page has not been written");
    assert!(memory.read_obj::<u64>(GuestAddress(0)).is_err(), "and there is no new way in");
    convert(&world, 0..4096, Shareability::Shared);
    assert_eq!(late.read_obj::<u64>(0).unwrap(), 0, "shared again: the new page, which is zeroed");
    world.end();
}

/// Devices hammer memory of which others convert everything all the time, some with slices that they keep.
#[test]
fn devices_hammer_memory_that_converts_and_nobody_crashes_and_nothing_leaks() {
    const FRAMES: u64 = 64;
    let world = World::on(FakeVm::with_slots(4), FRAMES * FRAME_BYTES);
    let memory = guest_ram(world.guest.host(), world.guest.stage2().layout()).unwrap();
    let (stop, served, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let leaked = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for device in 0..3_u64 {
            let (memory, stop, served, refused) = (&memory, &stop, &served, &refused);
            scope.spawn(move || {
                let mut kept = None;
                for step in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let at = GuestAddress((step * 7 + device) % FRAMES * FRAME_BYTES);
                    match memory.get_slice(at, 4096) {
                        Ok(slice) => {
                            served.fetch_add(1, Ordering::Relaxed);
                            slice.write_obj(0xdead_u64, 8).unwrap();
                            kept = Some(slice);
                        }
                        Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    }
                    // What was reachable a while ago.
                    if let Some(late) = &kept {
                        late.write_obj(0xdead_u64, 16).unwrap();
                    }
                }
            });
        }
        for _ in 0..120 {
            convert(&world, 0..FRAMES * FRAME_BYTES, Shareability::Shared);
            std::thread::yield_now();
            convert(&world, 0..FRAMES * FRAME_BYTES, Shareability::Private);
            // Private now: what a device writes from here on must not arrive.
            let view = world.guest.stage2().view();
            for frame in 0..FRAMES {
                view.write(frame * FRAME_BYTES, &[0; 64]).unwrap();
            }
            std::thread::yield_now();
            for frame in 0..FRAMES {
                let mut seen = [0xff; 64];
                view.read(frame * FRAME_BYTES, &mut seen).unwrap();
                leaked.fetch_add(u64::from(seen != [0; 64]), Ordering::Relaxed);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(leaked.into_inner(), 0, "a device wrote into private memory");
    assert!(served.into_inner() > 0 && refused.into_inner() > 0);
    world.end();
}

#[test]
fn dropping_the_mapping_while_regions_live_keeps_the_addresses() {
    let world = World::on(FakeVm::with_slots(4), MIB);
    let host: Arc<HostMapping> = Arc::clone(world.guest.host());
    let memory = guest_ram(&host, world.guest.stage2().layout()).unwrap();
    convert(&world, 0..4096, Shareability::Shared);
    let late = memory.get_slice(GuestAddress(0), 8).unwrap();
    drop(host);
    let pool = world.pool.clone();
    drop(world.guest);
    assert_eq!(pool.reclaim().freed.frames(), MIB / FRAME_BYTES);
    late.write_obj(1_u64, 0).unwrap();
    assert!(memory.read_obj::<u64>(GuestAddress(0)).is_err());
}
