//! Against this host's own KVM.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use kvm_bindings::KVM_X86_DEFAULT_VM;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;
use pageless::{Convert, FRAME_BYTES, Pool, Shareability};
use pageless_host::{GuestMemfd, HostBacking, HostMapping};
use pageless_kvm::in_place::InPlace;
use pageless_kvm::{
    Answer, Guest, Handled, Layout, NoKvm, Piece, Request, SlotError, SlotTable, create_vm, descriptor_of, offer_of, probe,
};

use crate::{MIB, World, memory, skip};

fn vm(test: &str) -> Option<Arc<VmFd>> {
    let opened = Kvm::new().map_err(|error| NoKvm::Unopened(Errno::from_raw(error.errno())));
    match opened.and_then(|kvm| create_vm(&kvm, KVM_X86_DEFAULT_VM)) {
        Ok(vm) => Some(Arc::new(vm)),
        Err(why) => {
            skip(test, &why.to_string());
            None
        }
    }
}

/// A vCPU in real mode that stands at the start of `code`, which is put at guest-physical 0x1000.
fn vcpu(vm: &VmFd, guest: &Guest, code: &[u8]) -> VcpuFd {
    guest.map(0..guest.ram().bytes()).unwrap();
    guest.stage2().view().write(0x1000, code).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector, sregs.ds.base, sregs.ds.selector) = (0, 0, 0, 0);
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    (regs.rip, regs.rflags, regs.rcx) = (0x1000, 2, 0);
    vcpu.set_regs(&regs).unwrap();
    vcpu
}

#[test]
fn the_probe_says_what_an_ordinary_vm_has() {
    let offer = match probe() {
        Ok(offer) => offer,
        Err(why) => return skip("the probe", &why.to_string()),
    };
    let ordinary = offer.of_type(KVM_X86_DEFAULT_VM).unwrap();
    assert!(ordinary.slots >= 32, "{ordinary}");
    assert!(ordinary.follows_host, "without MMU notifiers an unmapped view proves nothing: {ordinary}");
    assert!(offer.to_string().starts_with("ordinary VM: "));
}

/// Touches memory that is not mapped: read, write, and the instruction itself.
#[test]
fn a_vcpu_that_touches_unmapped_memory_is_mapped_and_goes_on() {
    let Some(vm) = vm("a vCPU that touches unmapped memory") else { return };
    let world = World::on(vm.clone(), MIB);
    let code = [
        0xa0, 0x00, 0x50, // mov al, [0x5000]
        0x04, 0x01, // add al, 1
        0xa2, 0x00, 0x60, // mov [0x6000], al
        0xe9, 0xf5, 0x6f, // jmp 0x8000
    ];
    let mut vcpu = vcpu(&vm, &world.guest, &code);
    let view = world.guest.stage2().view();
    view.write(0x5000, &[41]).unwrap();
    view.write(0x8000, &[0xf4]).unwrap(); // hlt
    for page in [5, 6, 8] {
        view.unmap(HostBacking::frames(&world.memory).sub(page, 1).unwrap()).unwrap();
    }
    let mut touches = 0;
    loop {
        let mut exit = vcpu.run().unwrap();
        match world.guest.handle(&mut exit) {
            Handled::Resume => touches += 1,
            Handled::NotMemory => match exit {
                VcpuExit::Hlt => break,
                VcpuExit::InternalError => {
                    let handled = world.guest.handle_unfetched(&vcpu);
                    assert!(matches!(handled, Handled::Resume), "{handled:?}");
                    touches += 1;
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
        assert!(touches < 20, "it must not come here again and again");
    }
    assert!(touches >= 3, "{touches}");
    let mut written = [0];
    view.read(0x6000, &mut written).unwrap();
    assert_eq!(written, [42]);
    drop(vcpu);
    world.end();
}

struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The vCPU counts in a page that another thread converts there and back; every instruction either counts or waits.
#[test]
fn a_vcpu_that_touches_a_range_while_it_converts_waits_and_goes_on() {
    let Some(vm) = vm("a vCPU that touches a range while it converts") else { return };
    let world = World::on(vm.clone(), MIB);
    let code = [
        0xfe, 0x06, 0x00, 0x50, // inc byte [0x5000]
        0x66, 0x41, // inc ecx
        0x66, 0x81, 0xf9, 0x00, 0x08, 0x00, 0x00, // cmp ecx, 2048
        0x75, 0xf1, // jnz 0x1000
        0xf4, // hlt
    ];
    let mut vcpu = vcpu(&vm, &world.guest, &code);
    let (guest, done, conversions) = (&world.guest, AtomicBool::new(false), AtomicU32::new(0));
    // The guest may be through before the other thread has begun: it counts anew until there was something to meet.
    const MEETINGS: u32 = 16;
    std::thread::scope(|scope| {
        let stop = StopWhenDropped(&done); // also when the test fails, or the scope would wait for ever
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for to in [Shareability::Shared, Shareability::Private] {
                    let (answer, outcome) = guest.convert(&Request { offsets: 0x5000..0x6000, to });
                    assert!(matches!(answer, Answer::Done { .. }), "{outcome:?}");
                    conversions.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let count = loop {
            let mut exit = vcpu.run().unwrap();
            match guest.handle(&mut exit) {
                Handled::Resume => {}
                Handled::NotMemory if matches!(exit, VcpuExit::Hlt) => {
                    let mut regs = vcpu.get_regs().unwrap();
                    if conversions.load(Ordering::Relaxed) > MEETINGS {
                        break regs.rcx;
                    }
                    assert_eq!(regs.rcx, 2048);
                    (regs.rip, regs.rcx) = (0x1000, 0);
                    vcpu.set_regs(&regs).unwrap();
                }
                other => panic!("{other:?}"),
            }
        };
        drop(stop);
        assert_eq!(count, 2048);
    });
    drop(vcpu);
    world.end();
}

#[test]
fn kvm_agrees_about_slots_and_takes_them_back() {
    let Some(vm) = vm("slots") else { return };
    let memory = memory(2 * MIB);
    let view = Arc::new(HostMapping::new(&memory, [(0, HostBacking::frames(&memory))]).unwrap());
    let table = SlotTable::new(vm.clone());
    let layout = Layout::new([Piece { gpa: 0, offset: 0, bytes: MIB }, Piece { gpa: 4 * MIB, offset: MIB, bytes: MIB }]).unwrap();
    let set = table.add(&view, &layout, &[]).unwrap();
    // Another table of the same VM does not know of them: KVM itself refuses, and nothing is left behind.
    let blind = SlotTable::new(vm);
    let elsewhere =
        Layout::new([Piece { gpa: 2 * MIB, offset: 0, bytes: MIB }, Piece { gpa: 4 * MIB, offset: MIB, bytes: MIB }]).unwrap();
    drop(set);
    let again = table.add(&view, &layout, &[]).unwrap();
    drop(again);
    let other = blind.add(&view, &elsewhere, &[]).unwrap();
    assert!(matches!(blind.add(&view, &elsewhere, &[]), Err(SlotError::Overlap { .. })));
    drop(other);
}

/// The page-table entry that KVM made for a frame goes with the view, so a frame that was converted is not the guest's old one.
#[test]
fn after_an_invalidation_the_guest_does_not_read_the_old_page() {
    let Some(vm) = vm("the guest does not read the old page") else { return };
    let world = World::on(vm.clone(), MIB);
    let code = [0xa0, 0x00, 0x50, 0xe6, 0x10, 0xeb, 0xf9]; // mov al, [0x5000]; out 0x10, al; jmp 0x1000
    let mut vcpu = vcpu(&vm, &world.guest, &code);
    world.guest.stage2().view().write(0x5000, &[77]).unwrap();
    let mut read = || loop {
        let mut exit = vcpu.run().unwrap();
        if let Handled::NotMemory = world.guest.handle(&mut exit) {
            let VcpuExit::IoOut(0x10, bytes) = exit else { panic!("{exit:?}") };
            break bytes[0];
        }
    };
    assert_eq!(read(), 77);
    world.guest.convert(&Request { offsets: 0x5000..0x5000 + FRAME_BYTES, to: Shareability::Shared }).1.unwrap();
    assert_eq!(read(), 0, "private bytes were zeroed, and the guest sees the new page");
    world.guest.host().write(0x5000, &[5]).unwrap();
    assert_eq!(read(), 5, "the guest and the host see the same shared page");
    drop(vcpu);
    world.end();
}

/// Nobody has a kernel with in-place conversion: what the ioctl meets here is a kernel that does not know it, and then nothing
/// is believed.
#[test]
fn a_kernel_without_in_place_conversion_says_so_and_proves_nothing() {
    let Some(vm) = vm("in-place conversion") else { return };
    let memory = match GuestMemfd::builder().bytes(MIB).build(descriptor_of(&vm)) {
        Ok(memory) => memory,
        Err(why) => return skip("in-place conversion of a guest_memfd", &format!("no guest_memfd: {why}")),
    };
    if offer_of(&vm, KVM_X86_DEFAULT_VM).in_place {
        return skip(
            "in-place conversion of a guest_memfd",
            "no guest_memfd: this kernel has it, and then this test says nothing",
        );
    }
    let frames = HostBacking::frames(&memory);
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let ram = pool.allocate(pageless::Request::bytes(MIB).owner("guest")).unwrap();
    let in_place = InPlace::new(memory.private_side(frames.start()).unwrap(), frames);
    ram.attach("in place", Arc::new(in_place)).unwrap();
    let Err(Convert::Torn { done, lost }) = ram.share(0..FRAME_BYTES) else { panic!("believed") };
    assert!(done.is_empty());
    assert_eq!(lost[0].cause().step, "KVM_SET_MEMORY_ATTRIBUTES2");
    assert_eq!((lost[0].cause().status, lost[0].retry_after()), (Errno::ENOTTY as u64, None));
}
