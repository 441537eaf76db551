//! A VMM that embeds pageless, in one page: `cargo run -p pageless --example embedding`.
//!
//! The part between the markers is what README.md shows. Around it stands what a real VMM brings along: the memory, the
//! mappings, and a guest, here one that asks for five things and meets every answer there is.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use pageless::{
    Cause, Convert, HolderId, Lost, Mapping, MetadataOnly, Operation, Order, Pfn, PfnRange, Pool, Reclaimed, Refusal, Request,
    RunSet, Stuck, Verdict,
};

/// A buffer that a device uses, in bytes of the guest's memory.
const DMA: Range<u64> = 0x20_0000..0x20_1000;

/// What the guest asks to share, in bytes of its memory.
const REQUESTS: [Range<u64>; 5] = [
    0x40_0000..0x80_0000,         // nothing in the way
    0x1000_0000..0x1000_1000,     // the second stage is busy there
    0x1f_f000..0x20_2000,         // around the device's buffer
    0x8000_0000..0x8000_4000,     // one of these four frames will not let go
    0x4_0000_0000..0x4_0000_1000, // beyond its 16 GiB
];

fn embed(backing: MetadataOnly, [iommu, ept, host]: [Arc<dyn Mapping>; 3], vm: &Vm) -> Result<Reclaimed, Box<dyn Error>> {
    // <embedding>
    let pool = Pool::builder().backing(backing).build()?;
    // Or: not enough, and what could be built.
    let ram = pool.allocate(Request::bytes(16 << 30).order(Order::GIB1).owner("vm-42"))?;
    // Asked for a proof in this order, every time.
    ram.attach("iommu", iommu)?;
    ram.attach("ept", ept)?;
    ram.attach("host", host)?;

    // A device uses a buffer: while it does, nobody converts, releases or reclaims the frames.
    let nic = ram.hold(DMA, "nic-0")?;

    // The guest asks to share a range with the host (MapGPA, PSC, KVM_HC_MAP_GPA_RANGE).
    while let Some(range) = vm.next_request() {
        match ram.share(range) {
            Ok(shared) => vm.map_shared(shared.frames()),
            // Nothing changed, and it is worth asking again: later, or when the holder is done.
            Err(Convert::Busy { after }) => vm.answer_retry(after),
            Err(Convert::Held { holder, .. }) => vm.answer_retry_when(&holder),
            // Every frame is in exactly one of the two.
            Err(Convert::Torn { done, lost }) => {
                vm.map_shared(&done);
                // Receipts: nothing turns them back into memory.
                vm.report(&lost);
            }
            // Asking again will not help, and it says why.
            Err(refused) => vm.answer_error(refused.errno()),
        }
    }

    drop(nic);
    drop(ram); // released, not free
    let told = pool.reclaim(); // frames return as every mapping ever attached proves them unreachable
    // </embedding>
    let stats = pool.stats();
    assert_eq!((stats.free, stats.failed), ((16 << 18) - 1, 1), "one frame is lost, and all the others are back");
    assert_eq!(stats.buildable.gib1, 15);
    assert_eq!(
        pool.withdrawn()[0].cause.to_string(),
        "ept: TDH.MEM.PAGE.REMOVE gave 0xc0000b0d00000000, EPT_ENTRY_STATE_INCORRECT"
    );
    Ok(told)
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let vm = Vm { requests: RefCell::new(REQUESTS.into()), said: RefCell::default() };
    let mappings: [Arc<dyn Mapping>; 3] = [Arc::new(Table), Arc::new(SecondStage), Arc::new(Table)];
    let told = embed(MetadataOnly::of_bytes(16 << 30), mappings, &vm)?;

    let said = vm.said.take();
    said.iter().for_each(|line| println!("{line}"));
    assert_eq!(
        said,
        [
            "maps pfn:0x400..0x800 (1024 frames)",
            "answers: again in 50µs",
            "answers: again when nic-0 is done",
            "maps pfn:0x80000..0x80002, pfn:0x80003..0x80004 (3 frames)",
            "reports pfn:0x80002..0x80003 at offset 0x80002000 is failed: ept: TDH.MEM.PAGE.REMOVE gave 0xc0000b0d00000000, \
             EPT_ENTRY_STATE_INCORRECT",
            "answers: error 34",
        ]
    );
    let lost = PfnRange::single(STUCK);
    assert_eq!(told.freed, RunSet::from(PfnRange::from_len(Pfn::new(0), 16 << 18)?).difference(&lost.into()));
    assert_eq!(told.withdrawn, lost.into());
    Ok(())
}

/// The guest, and what its VMM answers it.
struct Vm {
    requests: RefCell<VecDeque<Range<u64>>>,
    said: RefCell<Vec<String>>,
}

impl Vm {
    fn next_request(&self) -> Option<Range<u64>> {
        self.requests.borrow_mut().pop_front()
    }

    fn map_shared(&self, frames: &RunSet) {
        self.said.borrow_mut().push(format!("maps {frames}"));
    }

    fn answer_retry(&self, after: Duration) {
        self.said.borrow_mut().push(format!("answers: again in {after:?}"));
    }

    fn answer_retry_when(&self, holder: &HolderId) {
        self.said.borrow_mut().push(format!("answers: again when {holder} is done"));
    }

    fn answer_error(&self, errno: i32) {
        self.said.borrow_mut().push(format!("answers: error {errno}"));
    }

    fn report(&self, lost: &[Lost]) {
        self.said.borrow_mut().extend(lost.iter().map(|run| format!("reports {run}")));
    }
}

/// A table that always lets go.
struct Table;

impl Mapping for Table {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _op: &Operation, _frames: PfnRange) -> Result<(), Stuck> {
        Ok(())
    }
}

/// The frame that the second stage never lets go of.
const STUCK: Pfn = Pfn::new(0x80002);

/// A second stage that is busy at one place and fails at another.
struct SecondStage;

impl Mapping for SecondStage {
    fn prepare(&self, op: &Operation) -> Result<(), Refusal> {
        if op.guest_offset == REQUESTS[1].start { Err(Refusal::Busy { after: Duration::from_micros(50) }) } else { Ok(()) }
    }

    fn invalidate(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        if !frames.contains(STUCK) {
            return Ok(());
        }
        let cause = Cause::new("TDH.MEM.PAGE.REMOVE", 0xc000_0b0d_0000_0000, "EPT_ENTRY_STATE_INCORRECT");
        Err(Stuck { at: PfnRange::single(STUCK), verdict: Verdict::Never, cause })
    }
}
