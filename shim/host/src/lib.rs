//! Memory of this host behind pageless: what the frames are made of, and what the kernel can be made to prove about them.
//!
//! Read bottom-up:
//!
//! | module | what it knows |
//! |---|---|
//! | `page` | the three page sizes and which of them this host can provide now ([`probe`]) |
//! | `numa` | asking the kernel for pages of one node |
//! | `backing` | [`HostBacking`], what every memory here is and yours can be: frames behind descriptors |
//! | `capacity` | how much there is and could be had, asked of the kernel now |
//! | `holes`, `stuck`, `instance` | what every backing is made of: taking pages and giving them back, saying why not, names |
//! | `segment` | one memfd and the frames behind it |
//! | `revoke` | taking a segment away from everybody who maps it |
//! | `keeper` | descriptors that outlive their memory, because a withdrawn page must stay shut (I12) |
//! | `transparent` | whether the kernel gives huge pages to memory that asks |
//! | `progress` | watching a long commit |
//! | `builder` | cutting memory into segments, and every limit that can be in the way |
//! | `memory` | [`HostMemory`], the backing: commit, scrub, prove, keep shut |
//! | `guest_memfd` | [`GuestMemfd`], the memory of one KVM virtual machine, with a private and a shared side |
//! | `file` | [`FileMemory`], a plain file on any filesystem |
//! | `window` | [`PhysicalWindow`], memory outside the kernel's page map, where frame numbers are physical |
//! | `region` | reserved addresses, really mapped and unmapped; copies that cannot fault |
//! | `mapping` | [`HostMapping`], this process's page tables as a mapping |
//! | `witness` | [`SealWitness`], a mapping that looks for pins before shared memory becomes private |
//! | `pin` | real kernel pins, to show what a proof sees |
//!
//! On memfd and hugetlb the kernel chooses the physical pages, so frame numbers are *synthetic*: a frame is an offset in a
//! segment's file. In a physical window they are physical. `unsafe` is fenced into `region`, `numa`, `guest_memfd::kvm` and
//! `window::wipe`.
//!
//! ```
//! use std::sync::Arc;
//!
//! use pageless::{Pool, Request};
//! use pageless_host::{HostMapping, HostMemory, ProofMethod, pin::KernelPin};
//!
//! let memory = HostMemory::builder().bytes(16 << 20).proof(ProofMethod::Seal).build()?;
//! let pool = Pool::builder().backing(memory.clone()).build()?;
//! let ram = pool.allocate(Request::bytes(16 << 20).owner("vm-42"))?;
//! let host = Arc::new(HostMapping::of(&memory, &ram)?);
//! ram.attach("host", host.clone())?;
//!
//! let guard = ram.map_guard("host", 0..16 << 20)?;
//! guard.extents().iter().try_for_each(|run| host.map(&guard, run.frames))?;
//! drop(guard);
//! host.write(4096, b"guest memory")?;
//!
//! // Somebody keeps a reference to a page, as a device does. Its owner goes, and the kernel does not let the segment be
//! // sealed: no proof, so its frames are not free.
//! let pin = KernelPin::vmsplice(&host, 4096, 12)?;
//! drop(ram);
//! let reclaimed = pool.reclaim();
//! let lost = &reclaimed.lost[0];
//! assert_eq!(lost.cause().step, "F_ADD_SEALS(F_SEAL_WRITE)");
//! assert_eq!(pool.stats().quarantined, lost.frames().frames());
//!
//! assert_eq!(pin.drain()?, b"guest memory");
//! pool.retry(lost.frames());
//! assert_eq!(pool.stats().free, pool.stats().frames);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod backing;
mod builder;
mod capacity;
mod error;
mod file;
mod guest_memfd;
mod holes;
mod instance;
pub mod keeper;
mod mapping;
mod memory;
#[allow(unsafe_code)] // three system calls without a safe wrapper: mbind, get_mempolicy, set_mempolicy
mod numa;
mod page;
pub mod pin;
mod progress;
#[allow(unsafe_code)] // maps, unmaps and copies: the addresses are its own reservation
mod region;
mod revoke;
mod segment;
mod stuck;
mod transparent;
mod window;
mod witness;

pub use backing::{HostBacking, LocalMappings, SegmentHandle};
pub use builder::HostMemoryBuilder;
pub use capacity::Capacity;
pub use error::{HostError, MapError};
pub use file::{FileMemory, FileMemoryBuilder};
pub use guest_memfd::{GuestMemfd, GuestMemfdBuilder, GuestMemfdSupport, SharedSide};
pub use mapping::{HostMapping, Vacant};
pub use memory::{HostMemory, ProofMethod, Zeroing};
pub use page::{PageAvailability, PageSize, probe};
pub use progress::Progress;
pub use window::{PhysicalWindow, WindowBuilder, WindowError};
pub use witness::SealWitness;
