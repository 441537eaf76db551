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
//! | `memory` | vm-memory's traits over the host's view ([`guest_ram`]) |
//! | `probe` | what this `/dev/kvm` offers ([`probe()`]) |
//!
//! **Two views of one allocation.** The guest has addresses of its own in this process that memory slots point at and nobody
//! else touches, and device emulation has others, where only shared frames are mapped. Each is a mapping of the allocation, so
//! a conversion takes both away and proves it. Devices first, then the guest, then the host.
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
pub use probe::{NoKvm, Offer, VmOffer, create_vm, of as offer_of, probe};
pub use request::{BadRequest, HYPERCALL_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED, Request};
pub use slots::{Binding, SlotError, SlotSet, SlotTable};
pub use stage2::{Privacy, Stage2, Stage2Error};
pub use vm::{Bound, Slot, Vm, descriptor_of};
