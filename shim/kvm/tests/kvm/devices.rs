//! Device tables: believed only when they say everything.

use std::sync::Arc;
use std::time::Duration;

use pageless::{Backing, Convert, FRAME_BYTES, Pool, Request, RunSet, Verdict};
use pageless_host::{HostBacking, HostMemory, SegmentHandle};
use pageless_kvm::{Iommu, IommuError, IommuFault, IommuMapping};
use parking_lot::Mutex;

use crate::{MIB, memory};

/// Cannot unmap the byte at one I/O address, and says why, or does not.
#[derive(Default)]
struct Table {
    mapped: Mutex<Vec<(u64, u64)>>,
    sticks_at: Option<u64>,
    says_why: Option<Verdict>,
    exaggerates: bool,
    panics: bool,
}

impl Iommu for Table {
    fn map(&self, iova: u64, bytes: u64, _: &SegmentHandle) -> Result<(), IommuFault> {
        self.mapped.lock().push((iova, bytes));
        assert!(!self.panics, "after it has mapped them");
        Ok(())
    }

    fn unmap(&self, iova: u64, bytes: u64) -> Result<u64, IommuFault> {
        let gone = self.sticks_at.and_then(|at| at.checked_sub(iova)).map_or(bytes, |before| before.min(bytes));
        let gone = if self.exaggerates { bytes + FRAME_BYTES } else { gone };
        match &self.says_why {
            Some(verdict) if gone < bytes => {
                let (step, meaning) = ("VFIO_IOMMU_UNMAP_DMA".into(), "a page is in use".into());
                Err(IommuFault { step, status: 0x10, meaning, unmapped: gone, verdict: verdict.clone() })
            }
            _ => Ok(gone),
        }
    }
}

fn device(table: Table) -> (Pool, HostMemory, pageless::Allocation, Arc<IommuMapping<Table>>) {
    let memory = memory(MIB);
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let ram = pool.allocate(Request::bytes(MIB).owner("guest")).unwrap();
    memory.commit(memory.frames()).unwrap();
    let mapping = Arc::new(IommuMapping::new(table, 1 << 32));
    ram.attach("iommu", mapping.clone()).unwrap();
    (pool, memory, ram, mapping)
}

fn map(ram: &pageless::Allocation, mapping: &IommuMapping<Table>, memory: &HostMemory, range: std::ops::Range<u64>) {
    mapping.map(&ram.map_guard("iommu", range).unwrap(), memory).unwrap();
}

#[test]
fn what_is_mapped_is_unmapped_where_the_guest_has_it_and_no_more() {
    let (_pool, memory, ram, mapping) = device(Table::default());
    map(&ram, &mapping, &memory, 0x2000..0x6000);
    map(&ram, &mapping, &memory, 0x1000..0x7000);
    assert_eq!(
        mapping.table().mapped.lock().as_slice(),
        [(0x1_0000_2000, 0x4000), (0x1_0000_1000, 0x1000), (0x1_0000_6000, 0x1000)]
    );
    ram.share(0x3000..0x4000).unwrap();
    assert_eq!(mapping.mapped().frames(), 5);
    assert!(!mapping.mapped().contains(memory.frames().start().add(3)));
}

#[test]
fn a_table_that_stops_is_stuck_at_exactly_that_frame_and_is_asked_about_the_rest() {
    for (says_why, lasts) in
        [(Some(Verdict::Never), true), (Some(Verdict::Retry { after: Duration::ZERO }), false), (None, false)]
    {
        let (status, silent) = (if says_why.is_some() { 0x10 } else { 2048 }, says_why.is_none());
        let sticks_at = Some((1 << 32) + 2 * FRAME_BYTES + 2048);
        let (_pool, memory, ram, mapping) = device(Table { says_why, sticks_at, ..Table::default() });
        map(&ram, &mapping, &memory, 0..5 * FRAME_BYTES);
        let Err(Convert::Torn { done, lost }) = ram.share(0..5 * FRAME_BYTES) else { panic!("not torn") };
        let third = memory.frames().sub(2, 1).unwrap();
        assert_eq!((done.frames(), lost.len(), lost[0].frames()), (4, 1, third));
        assert_eq!((lost[0].cause().status, lost[0].retry_after().is_none()), (status, lasts), "{}", lost[0]);
        assert_eq!(mapping.mapped(), RunSet::from(third), "silent: {silent}");
    }
}

#[test]
fn a_table_that_claims_more_than_it_was_asked_for_is_not_believed() {
    let (_pool, memory, ram, mapping) = device(Table { exaggerates: true, ..Table::default() });
    map(&ram, &mapping, &memory, 0..2 * FRAME_BYTES);
    let Err(Convert::Torn { done, lost }) = ram.share(0..2 * FRAME_BYTES) else { panic!("not torn") };
    assert!(done.is_empty() && lost[0].retry_after().is_none());
    assert_eq!(mapping.mapped(), RunSet::from(memory.frames().sub(0, 2).unwrap()));
}

#[test]
fn what_a_table_may_have_mapped_when_it_panicked_is_unmapped_all_the_same() {
    let (_pool, memory, ram, mapping) = device(Table { panics: true, ..Table::default() });
    let guard = ram.map_guard("iommu", 0..FRAME_BYTES).unwrap();
    let map = || mapping.map(&guard, &memory);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(map)).is_err());
    drop(guard);
    assert_eq!(mapping.mapped(), RunSet::from(memory.frames().sub(0, 1).unwrap()));
    ram.share(0..FRAME_BYTES).unwrap();
    assert!(mapping.mapped().is_empty());
}

#[test]
fn frames_beyond_the_last_address_are_refused_and_none_shares_an_address() {
    let (_pool, memory, ram, _) = device(Table::default());
    let base = u64::MAX - 0x2000;
    let mapping = Arc::new(IommuMapping::new(Table::default(), base));
    ram.attach("high", mapping.clone()).unwrap();
    let guard = ram.map_guard("high", 0x2000..0x4000).unwrap();
    let refused = mapping.map(&guard, &memory).unwrap_err();
    assert_eq!(refused, IommuError::TooHigh { base, offset: 0x2000, bytes: 0x2000 });
    assert!(mapping.mapped().is_empty() && mapping.table().mapped.lock().is_empty());
}
