//! The mappings of an allocation, in the order of attachment, and the list in which every conversion reads them.
//!
//! The list is never edited: a new one takes its place. Whoever converts in a quiet GiB finds it in the GiB's record, where the
//! last conversion left it: it takes the list along and leaves it there again, so that nobody counts references (ADR 0010).

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use pageless_metadata::{PfnRange, RunSet};
use smallvec::{SmallVec, smallvec};

use crate::mapping::Mapping;
use crate::sync::{AtomicUsize, Ordering};

/// A mapping, and the name it was attached under.
#[derive(Clone)]
pub(crate) struct Attached {
    pub(crate) name: Arc<str>,
    pub(crate) mapping: Arc<dyn Mapping>,
    /// Detached while these frames were released or withdrawn: its proof for them is still needed, and for them only.
    pub(crate) retired: Option<RunSet>,
    /// Attached before the pool was reopened, and nobody answers for it yet.
    pub(crate) unanswered: bool,
}

impl Attached {
    /// Whether translations may still be established through it.
    pub(crate) const fn is_attached(&self) -> bool {
        self.retired.is_none()
    }

    /// Whether the two are one attachment. The same mapping may be attached again, even under the same name.
    pub(crate) fn is_the_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.name, &other.name)
    }

    /// Whether some of `frames` need its proof.
    #[inline]
    pub(crate) fn is_needed_for(&self, frames: PfnRange) -> bool {
        self.retired.as_ref().is_none_or(|rest| rest.clipped(frames).next().is_some())
    }

    /// The parts of `frames` that need its proof.
    pub(crate) fn needed_for(&self, frames: PfnRange) -> SmallVec<[PfnRange; 1]> {
        self.retired.as_ref().map_or_else(|| smallvec![frames], |rest| rest.clipped(frames).collect())
    }
}

/// The mappings of an allocation, in the order of attachment.
pub(crate) type Mappings = Vec<Attached>;

/// The list of an allocation's mappings, and its successors.
pub(crate) struct MappingList {
    list: ArcSwap<Mappings>,
    /// Where the list lies, which nobody can read from the list without counting a reference.
    address: AtomicUsize,
}

impl MappingList {
    pub(crate) fn new() -> Self {
        let list = Arc::new(Mappings::new());
        Self { address: AtomicUsize::new(address_of(&list)), list: ArcSwap::new(list) }
    }

    /// The list as it is now.
    pub(crate) fn load(&self) -> Guard<Arc<Mappings>> {
        self.list.load()
    }

    /// The list as it is now, for longer.
    pub(crate) fn load_full(&self) -> Arc<Mappings> {
        self.list.load_full()
    }

    /// Puts a list in the place of the one before. The caller lets nobody else do so meanwhile.
    pub(crate) fn store(&self, list: Arc<Mappings>) {
        let address = address_of(&list);
        // No list is current meanwhile: whoever is in the new one may be given a guard at once, and must be asked from then on.
        // Relaxed: the list, and then the lock of the GiB of the guarded frames, hand it on.
        self.address.store(0, Ordering::Relaxed);
        self.list.store(list);
        // Release: whoever sees the address sees what was attached before it.
        self.address.store(address, Ordering::Release);
    }

    /// Whether `list` is the list as it is now. Where it lies says so: as long as somebody has it, no other list lies there.
    #[inline]
    pub(crate) fn is_current(&self, list: &Arc<Mappings>) -> bool {
        self.address.load(Ordering::Acquire) == address_of(list)
    }
}

#[inline]
fn address_of(list: &Arc<Mappings>) -> usize {
    Arc::as_ptr(list).addr()
}
