//! guest_memfd of a real KVM virtual machine, where this host has /dev/kvm and its kernel the file.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use kvm_bindings::{KVM_MEM_GUEST_MEMFD, kvm_userspace_memory_region2};
use kvm_ioctls::{Kvm, VmFd};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use pageless::{AllocationId, Backing, Contents, FRAME_BYTES, Identity, Intent, Operation, OperationId, PfnRange, Pool, Verdict};
use pageless_host::{GuestMemfd, GuestMemfdSupport, HostBacking, HostError, HostMapping, SharedSide, keeper};

use crate::reservation::skip;
use crate::{byte_at, is_zero, map, owner, unique_base};

const MIB: u64 = 1 << 20;

/// A virtual machine for the length of a test.
pub(crate) struct Vm(VmFd);

impl Vm {
    /// Says why not, and answers nothing, where there is no KVM or it has no guest_memfd with such a shared side.
    pub(crate) fn with(test: &str, wanted: SharedSide) -> Option<Self> {
        let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(vm) => Self(vm),
            Err(error) => return skip_none(test, &format!("no virtual machine can be made here: {error}")),
        };
        let support = GuestMemfdSupport::of(vm.as_fd()).unwrap();
        match (support.shared_side(), wanted) {
            (None, _) | (Some(SharedSide::Beside), SharedSide::InPlace) => skip_none(test, &support.to_string()),
            _ => Some(vm),
        }
    }

    pub(crate) fn memory(&self, side: SharedSide, bytes: u64) -> GuestMemfd {
        GuestMemfd::builder().base(unique_base()).bytes(bytes).shared_side(side).build(self.as_fd()).unwrap()
    }

    /// Binds all of `memory` to slot 0 at guest physical address 0, as a VMM does.
    fn bind(&self, memory: &GuestMemfd, host: &HostMapping) {
        let private = memory.private_side(memory.frames().start()).unwrap();
        let region = kvm_userspace_memory_region2 {
            flags: KVM_MEM_GUEST_MEMFD,
            memory_size: memory.frames().bytes(),
            userspace_addr: host.address() as u64,
            guest_memfd_offset: private.offset(),
            guest_memfd: private.fd().as_raw_fd().try_into().unwrap(),
            ..Default::default()
        };
        // SAFETY: the addresses are the mapping's own and stay reserved until after the VM; no guest runs.
        unsafe { self.0.set_user_memory_region2(region) }.unwrap();
    }
}

impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open while `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

fn skip_none<T>(test: &str, why: &str) -> Option<T> {
    skip(test, why);
    None
}

fn operation(intent: Intent, frames: PfnRange) -> Operation {
    let (id, allocation) = (OperationId::new(0, 1), AllocationId::new(1));
    Operation { id, intent, contents: Contents::Zero, allocation, frames, guest_offset: 0 }
}

/// Takes pages on the private side, as a guest's touch would.
fn fill_private(memory: &GuestMemfd, frames: PfnRange) {
    let private = memory.private_side(frames.start()).unwrap();
    let (offset, bytes) = (private.offset().try_into().unwrap(), frames.bytes().try_into().unwrap());
    fallocate(private.fd(), FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, bytes).unwrap();
}

/// Pages of guest_memfds are unevictable: the only sign of them outside the file, for the whole host.
fn unevictable() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Unevictable:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn blocks(memory: &GuestMemfd) -> i64 {
    nix::sys::stat::fstat(memory.segment(memory.frames().start()).unwrap().fd()).unwrap().st_blocks
}

#[test]
fn memory_in_place_is_mapped_bound_punched_and_read_as_zeroes() {
    let Some(vm) = Vm::with("guest_memfd in place", SharedSide::InPlace) else { return };
    let memory = vm.memory(SharedSide::InPlace, 4 * MIB);
    assert_eq!((memory.identity(), memory.shared_side()), (Identity::Synthetic, SharedSide::InPlace));
    assert_eq!((memory.proof().granule_frames, memory.granule(memory.frames().start()).frames()), (1, 1));
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let guest = owner(&pool, &memory);
    vm.bind(&memory, &guest);
    guest.write(0, &vec![7; 4 << 20]).unwrap();
    guest.ram.share(MIB..2 * MIB).unwrap();
    assert!(guest.read(MIB, &mut [0]).is_err(), "unmapped by the conversion");
    map(&guest, memory.frames()).unwrap();
    let bytes = [MIB - 1, MIB, 2 * MIB - 1, 2 * MIB].map(|offset| byte_at(&guest, offset));
    assert_eq!(bytes, [7, 0, 0, 7], "zeroed before it was shared, and no neighbour with it");
    guest.ram.unshare(MIB..2 * MIB).unwrap();
    drop(guest);
    assert_eq!(pool.reclaim().freed, [memory.frames()].into_iter().collect());
    let guest = owner(&pool, &memory);
    assert!(is_zero(&guest), "the next owner reads zeroes");
}

#[test]
fn a_frame_is_an_offset_in_the_guest_memfd() {
    let Some(vm) = Vm::with("guest_memfd offsets", SharedSide::InPlace) else { return };
    let memory = vm.memory(SharedSide::InPlace, MIB);
    let frame = memory.frames().start().add(3);
    let (private, shared) = (memory.private_side(frame).unwrap(), memory.segment(frame).unwrap());
    assert_eq!((private.offset(), private.frames().frames()), (3 * FRAME_BYTES, 253));
    assert_eq!(private.fd().as_raw_fd(), shared.fd().as_raw_fd());
    assert!(memory.private_side(memory.frames().end()).is_none() && memory.segment(memory.frames().end()).is_none());
    let path = format!("/proc/self/fd/{}", private.fd().as_raw_fd());
    let reopened = std::fs::File::open(path).unwrap_err();
    assert_eq!(reopened.raw_os_error(), Some(Errno::ENXIO as i32), "a VMM that takes paths cannot use it");
}

#[test]
fn a_mapping_that_nobody_attached_prevents_the_proof() {
    for side in [SharedSide::InPlace, SharedSide::Beside] {
        let Some(vm) = Vm::with(&format!("guest_memfd {side}, forgotten mapping"), side) else { continue };
        let memory = vm.memory(side, MIB);
        let pool = Pool::builder().backing(memory.clone()).build().unwrap();
        let guest = owner(&pool, &memory);
        let forgotten = HostMapping::of(&memory, &guest.ram).unwrap();
        let guard = guest.ram.map_guard("host", 0..MIB).unwrap();
        forgotten.map(&guard, memory.frames()).unwrap();
        drop(guard);
        drop(guest);
        let pass = pool.reclaim();
        assert!(pass.freed.is_empty() && pass.lost[0].cause().to_string().contains("256 frames"), "{pass:?}");
        assert_eq!(memory.withdrawn().runs(), [memory.frames()]);
        drop(forgotten);
        assert_eq!(pool.retry(memory.frames()).freed.frames(), 256);
    }
}

#[test]
fn each_conversion_gives_back_the_side_that_is_left() {
    let Some(vm) = Vm::with("guest_memfd beside", SharedSide::Beside) else { return };
    let bytes = 64 * MIB;
    let memory = vm.memory(SharedSide::Beside, bytes);
    let whole = memory.frames();
    assert_ne!(
        memory.private_side(whole.start()).unwrap().fd().as_raw_fd(),
        memory.segment(whole.start()).unwrap().fd().as_raw_fd()
    );
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let guest = owner(&pool, &memory);
    vm.bind(&memory, &guest);
    let before = unevictable();
    fill_private(&memory, whole);
    assert!(unevictable() > before + bytes / 2, "a guest has touched its private memory");
    guest.ram.share(0..bytes).unwrap();
    assert!(unevictable() < before + bytes / 2, "nothing private is left");
    map(&guest, memory.frames()).unwrap();
    guest.write(0, &vec![7; 64 << 20]).unwrap();
    assert_eq!(blocks(&memory), 64 << 11);
    guest.ram.unshare(0..bytes).unwrap();
    memory.drop_shared_side(whole).unwrap();
    assert_eq!(blocks(&memory), 0, "nothing shared is left");
    fill_private(&memory, whole);
    drop(guest);
    assert_eq!(pool.reclaim().freed.runs(), [whole]);
    assert!(unevictable() < before + bytes / 2, "a proof takes both sides");
}

#[test]
fn a_withdrawn_frame_keeps_both_its_pages_until_the_mark_is_lifted() {
    let Some(vm) = Vm::with("guest_memfd kept shut", SharedSide::InPlace) else { return };
    for side in [SharedSide::InPlace, SharedSide::Beside] {
        let memory = vm.memory(side, MIB);
        let pool = Pool::builder().backing(memory.clone()).build().unwrap();
        let guest = owner(&pool, &memory);
        guest.write(0, &vec![7; 1 << 20]).unwrap();
        let marked = memory.frames().sub(9, 1).unwrap();
        memory.keep_shut(marked);
        for intent in [Intent::Share, Intent::Reclaim] {
            let stuck = memory.scrub(&operation(intent, memory.frames()), memory.frames()).unwrap_err();
            assert_eq!((stuck.at, matches!(stuck.verdict, Verdict::Retry { .. })), (marked, true), "{stuck}");
        }
        let bytes = [8, 9, 10].map(|frame| byte_at(&guest, frame * FRAME_BYTES));
        assert_eq!(bytes, [0, 7, 7], "{side}: what lies before the mark is done, nothing else is");
        assert!(memory.drop_shared_side(marked).is_err());
        memory.lift(marked);
        memory.scrub(&operation(Intent::Reclaim, marked), marked).unwrap();
        assert_eq!(byte_at(&guest, 9 * FRAME_BYTES), 0);
        drop(guest);
        let held = keeper::held();
        memory.keep_shut(marked);
        drop((pool, memory));
        assert_eq!(keeper::held() - held, if side == SharedSide::Beside { 2 } else { 1 });
    }
}

#[test]
fn the_page_that_a_pin_holds_is_never_the_next_owners() {
    let Some(vm) = Vm::with("guest_memfd pin", SharedSide::InPlace) else { return };
    let memory = vm.memory(SharedSide::InPlace, MIB);
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let guest = owner(&pool, &memory);
    guest.write(0, b"secret").unwrap();
    let pin = pageless_host::pin::KernelPin::vmsplice(&guest, 0, 6).unwrap();
    drop(guest);
    assert_eq!(pool.reclaim().freed.runs(), [memory.frames()]);
    let guest = owner(&pool, &memory);
    guest.write(0, b"public").unwrap();
    assert_eq!(pin.drain().unwrap(), b"secret");
}

#[test]
fn wrong_descriptors_and_sizes_are_named() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let build = |bytes| GuestMemfd::builder().bytes(bytes).build(&null).unwrap_err();
    assert_eq!(build(0), HostError::Empty);
    assert!(matches!(build(4097), HostError::Unaligned { what: "bytes", value: 4097, unit: 4096, .. }));
    assert_eq!(build(4096), HostError::NotAVm { step: "KVM_CHECK_EXTENSION", errno: Errno::ENOTTY });
}

#[test]
fn the_descriptor_of_kvm_itself_is_no_vms() {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return skip("guest_memfd of /dev/kvm", &format!("it cannot be opened: {error}")),
    };
    // SAFETY: the descriptor is open while `kvm` lives.
    let system = unsafe { BorrowedFd::borrow_raw(kvm.as_raw_fd()) };
    let refused = GuestMemfd::builder().bytes(4096).build(system).unwrap_err();
    assert!(matches!(refused, HostError::NotAVm { .. } | HostError::NoGuestMemfd { .. }), "{refused}");
}
