//! KVM beside pageless: a guest's memory slots, its second stage as a mapping, its requests as conversions, and its memory as
//! rust-vmm's devices take it.
//!
//! | module | what it knows |
//! |---|---|
//! | `layout` | where an allocation's bytes lie in guest-physical addresses; a pure function ([`Layout`]) |
//! | `vm` | what is asked of a virtual machine: slots and attributes ([`Vm`]); the real one is kvm-ioctls' `VmFd` |
//! | `slots` | memory slots, made together or not at all ([`SlotTable`]) |
//! | `stage2` | the guest's second stage as a mapping ([`Stage2`]) |
//! | `in_place` | in-place conversion of a guest_memfd, provisional and never run |
//! | `iommu` | any device table as a mapping ([`IommuMapping`]) |
//! | `request`, `answer` | what a guest asks, and what it is told |
//! | `guest`, `exits` | all of it together: conversions, translations, and a vCPU's exits carried out ([`Guest`]) |
//! | `missing` | what to do when KVM does not say which memory was missing |
//! | `memory` | vm-memory's traits over the host's view ([`guest_ram`]) |
//! | `probe` | what this `/dev/kvm` offers ([`probe()`]) |
//!
//! **Two views of one allocation.** The guest has addresses of its own in this process that memory slots point at and nobody
//! else touches, and device emulation has others, where only shared frames are mapped. Each is a mapping of the allocation, so
//! a conversion takes both away and proves it. Devices first, then the guest, then the host.
//!
//! From nothing to a converted page:
//!
//! ```
//! # use std::sync::Arc;
//! # use kvm_bindings::KVM_X86_DEFAULT_VM;
//! # use kvm_ioctls::Kvm;
//! # if let Err(why) = pageless_kvm::probe() {
//! #     eprintln!("skipped: from nothing to a converted page: {why}");
//! #     return Ok(());
//! # }
//! use pageless::{Pool, Request};
//! use pageless_host::{HostMapping, HostMemory, ProofMethod, Vacant};
//! use pageless_kvm::{Guest, Layout, MAP_GPA_RANGE_ENCRYPTED, PC_HOLE, SlotTable, Stage2, create_vm, guest_ram};
//! use vm_memory::{Bytes, GuestAddress};
//!
//! const RAM: u64 = 64 << 20;
//!
//! // Memory of this process, a pool over it, and what this guest gets of it.
//! let memory = HostMemory::builder().bytes(RAM).proof(ProofMethod::ProcessUnmap).build()?;
//! let pool = Pool::builder().backing(memory.clone()).build()?;
//! let ram = pool.allocate(Request::bytes(RAM).owner("vm-42"))?;
//!
//! // A machine, with memory slots that point at the guest's own addresses in this process.
//! let vm = Arc::new(create_vm(&Kvm::new()?, KVM_X86_DEFAULT_VM)?);
//! let layout = Layout::around(RAM, PC_HOLE)?;
//! let view = Arc::new(HostMapping::of(&memory, &ram)?);
//! let stage2 = Arc::new(Stage2::new(&SlotTable::new(vm.clone()), view, layout.clone())?);
//!
//! // The host's addresses: shared frames only. Devices take them as vm-memory's guest memory.
//! let host = Arc::new(HostMapping::of_with_vacant(&memory, &ram, Vacant::Scratch)?);
//! let guest = Guest::new(ram, [], stage2, host, [])?;
//! let devices = guest_ram(guest.host(), &layout)?;
//! assert!(devices.write_obj(7_u32, GuestAddress(1 << 20)).is_err(), "private, as all of it is at first");
//!
//! // The guest asks to share a page. In a VMM this is `guest.handle(&mut vcpu.run()?)`, for hypercalls and faults alike.
//! let (answer, outcome) = guest.map_gpa_range(1 << 20, 1, 0);
//! assert_eq!((answer.hypercall(), outcome.is_some_and(|outcome| outcome.is_ok())), (0, true));
//! devices.write_obj(7_u32, GuestAddress(1 << 20))?;
//!
//! // And to take it back: nobody but the guest reaches it any more, and it says so.
//! let (answer, _) = guest.map_gpa_range(1 << 20, 1, MAP_GPA_RANGE_ENCRYPTED);
//! assert_eq!(answer.hypercall(), 0);
//! assert!(devices.read_obj::<u32>(GuestAddress(1 << 20)).is_err());
//!
//! drop(guest); // released, not free
//! assert_eq!(pool.reclaim().freed.frames() << 12, RAM);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `unsafe` is fenced into `vm` (ioctls that name addresses or have no wrapper) and `memory` (one slice).
#![deny(unsafe_code)]

mod answer;
mod exits;
mod guest;
pub mod in_place;
mod iommu;
mod layout;
#[allow(unsafe_code)] // one slice over addresses that its mapping reserves
mod memory;
mod missing;
mod probe;
mod request;
mod slots;
mod stage2;
#[allow(unsafe_code)] // two ioctls that name addresses of this process, one without a wrapper, and a descriptor borrowed
mod vm;

pub use answer::Answer;
pub use exits::Handled;
pub use guest::{FaultError, Guest, HOST, STAGE2};
pub use iommu::{Iommu, IommuError, IommuFault, IommuMapping};
pub use layout::{Layout, LayoutError, NotMemory, PC_HOLE, Piece};
pub use memory::{GuestRam, GuestRamError, RamRegion, guest_ram};
pub use missing::Missing;
pub use probe::{NoKvm, Offer, VmOffer, create_vm, of as offer_of, probe};
pub use request::{BadRequest, HYPERCALL_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED, Request};
pub use slots::{Binding, SlotError, SlotSet, SlotTable};
pub use stage2::{Privacy, Stage2, Stage2Error};
pub use vm::{Bound, Slot, Vm, descriptor_of};
