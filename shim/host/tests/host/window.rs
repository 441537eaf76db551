//! A physical window over a file that stands for physical memory: everything but the kernel's own part, which the end-to-end
//! suite shows on a machine with memory set aside.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use pageless::ledger::Kept;
use pageless::{
    Allocation, Backing, Cause, Identity, Mapping, Operation, Pfn, PfnRange, Pool, Refusal, Request, RetryPolicy, Stuck,
    Withdrawal,
};
use pageless_host::{HostBacking, HostMapping, PageSize, PhysicalWindow, WindowBuilder, WindowError, Zeroing};
use tempfile::TempDir;

const START: u64 = 1 << 30;
const BYTES: u64 = 16 << 20;
const FRAMES: u64 = BYTES / 4096;
const IOMEM: &str = "00001000-3fffffff : System RAM\n40000000-7fffffff : Reserved\n80000000-ffffffff : System RAM\n";

/// A root folder with files in the places of the kernel's own.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(TempDir::new().unwrap());
        machine.write("proc/iomem", IOMEM);
        machine.write("proc/cpuinfo", "address sizes\t: 40 bits physical, 48 bits virtual\n");
        machine.write("sys/class/dmi/id/product_uuid", "4C4C4544-0042-3510-8052-B4C04F435831\n");
        machine.write("dev/mem", "");
        machine.memory("dev/mem").set_len(START + BYTES).unwrap();
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn memory(&self, device: &str) -> File {
        File::options().read(true).write(true).open(self.0.path().join(device)).unwrap()
    }

    fn dax(&self, align: u64) {
        self.write("dev/dax0.0", "");
        self.memory("dev/dax0.0").set_len(BYTES).unwrap();
        for (name, value) in [("resource", "0x140000000"), ("size", "16777216"), ("target_node", "1")] {
            self.write(&format!("sys/bus/dax/devices/dax0.0/{name}"), value);
        }
        self.write("sys/bus/dax/devices/dax0.0/align", &align.to_string());
    }

    fn here(&self, builder: WindowBuilder) -> WindowBuilder {
        builder.root(self.0.path())
    }

    fn window(&self) -> PhysicalWindow {
        self.here(PhysicalWindow::devmem(START, BYTES)).build().unwrap()
    }

    /// The bytes at a physical address, seen through a descriptor of one's own.
    fn at(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut seen = vec![0xee; bytes];
        self.memory("dev/mem").read_exact_at(&mut seen, address).unwrap();
        seen
    }

    fn all_zero(&self) -> bool {
        self.at(START, usize::try_from(BYTES).unwrap()).iter().all(|byte| *byte == 0)
    }
}

fn pool(window: &PhysicalWindow) -> Pool {
    let never_alone = RetryPolicy { at_once: 0, ..RetryPolicy::default() };
    Pool::builder().backing(window.clone()).retry(never_alone).build().unwrap()
}

/// An owner whose memory is mapped and written all over.
fn owner(pool: &Pool, window: &PhysicalWindow, bytes: u64) -> (Allocation, Arc<HostMapping>) {
    let ram = pool.allocate(Request::bytes(bytes).owner("guest")).unwrap();
    let host = Arc::new(HostMapping::of(window, &ram).unwrap());
    ram.attach("host", host.clone()).unwrap();
    fill(&ram, &host);
    (ram, host)
}

fn fill(ram: &Allocation, host: &HostMapping) {
    let guard = ram.map_guard("host", 0..ram.bytes()).unwrap();
    guard.extents().iter().for_each(|run| host.map(&guard, run.frames).unwrap());
    drop(guard);
    host.write(0, &vec![7; usize::try_from(ram.bytes()).unwrap()]).unwrap();
}

fn frame(ram: &Allocation, offset: u64) -> PfnRange {
    PfnRange::single(ram.frame(offset).unwrap())
}

#[test]
fn frames_are_physical_and_their_bytes_lie_at_their_address() {
    let machine = Machine::new();
    let window = machine.window();
    assert_eq!((window.identity(), window.page(), window.has_struct_pages()), (Identity::Physical, PageSize::Base4K, false));
    assert_eq!(window.frames(), PfnRange::from_len(Pfn::new(START / 4096), FRAMES).unwrap());
    assert_eq!(window.proof().granule_frames, 1);
    let pool = pool(&window);
    let (ram, host) = owner(&pool, &window, 1 << 20);
    host.write(0x3004, b"secret").unwrap();
    let pfn = ram.frame(0x3000).unwrap();
    assert_eq!(window.segment(pfn).unwrap().offset(), pfn.get() * 4096);
    assert_eq!(machine.at(pfn.get() * 4096 + 4, 6), b"secret");
    drop(ram);
    assert!(pool.reclaim().lost.is_empty() && machine.all_zero());
    assert!(host.read(0, &mut [0]).is_err(), "unmapped by the reclaim");
}

#[test]
fn every_frame_is_zeroed_once_before_each_reuse() {
    let machine = Machine::new();
    machine.memory("dev/mem").write_all_at(&vec![0xaa; usize::try_from(BYTES).unwrap()], START).unwrap();
    let window = machine.window();
    let pool = pool(&window);
    assert_eq!((window.zeroed_frames(), machine.at(START, 1)), (0, vec![0xaa]), "a window is built without writing");
    let ram = pool.allocate(Request::bytes(BYTES).owner("first")).unwrap();
    assert!(machine.all_zero(), "nobody knows what a new window held");
    assert_eq!(window.zeroed_frames(), FRAMES);
    ram.release().unwrap();
    pool.reclaim();
    assert_eq!(window.zeroed_frames(), 2 * FRAMES);
    let (ram, host) = owner(&pool, &window, BYTES);
    assert_eq!(window.zeroed_frames(), 2 * FRAMES, "zero since the proof");
    ram.share(0..4096).unwrap();
    assert_eq!(window.zeroed_frames(), 2 * FRAMES + 1, "nothing private leaks to the host");
    fill(&ram, &host);
    ram.unshare(0..4096).unwrap();
    drop(ram);
    pool.reclaim();
    assert!(machine.all_zero());
    assert_eq!(window.zeroed_frames(), 3 * FRAMES + 1);
}

#[test]
fn what_comes_back_without_a_proof_is_zeroed_when_it_is_next_handed_out() {
    let machine = Machine::new();
    let window = machine.window();
    let pool = pool(&window);
    drop(owner(&pool, &window, BYTES));
    pool.reclaim();
    // Free, zero, and then broken; the new module holds whatever it likes.
    let bad = PfnRange::single(Pfn::new(START / 4096 + 9));
    pool.poison(bad, Cause::new("machine check", 1, "told by EDAC"));
    pool.hardware_replaced(bad, "DIMM 3 replaced").unwrap();
    machine.memory("dev/mem").write_all_at(&[0xaa; 4096], bad.start().get() * 4096).unwrap();
    let _all = pool.allocate(Request::bytes(BYTES).owner("next")).unwrap();
    assert!(machine.all_zero());
    assert_eq!(window.zeroed_frames(), 2 * FRAMES + 1);
}

#[test]
fn what_a_dead_process_had_is_zeroed_at_its_proof_and_not_again() {
    let (machine, ledger) = (Machine::new(), Kept::new());
    let window = machine.window();
    let pool = Pool::builder().backing(window.clone()).ledger(ledger.clone()).build().unwrap();
    let ram = pool.allocate(Request::bytes(BYTES).owner("guest")).unwrap();
    let when_killed = Kept::holding(None, ledger.book());
    drop((ram, pool, window));
    let window = machine.window();
    let pool = Pool::builder().backing(window.clone()).ledger(when_killed).build().unwrap();
    assert_eq!((pool.stats().free, window.zeroed_frames()), (0, 0));
    assert_eq!(pool.reclaim().freed.frames(), FRAMES);
    let _next = pool.allocate(Request::bytes(BYTES).owner("next")).unwrap();
    assert_eq!(window.zeroed_frames(), FRAMES);
}

#[test]
fn without_zeroing_the_next_owner_reads_the_last_ones_bytes() {
    let machine = Machine::new();
    let window = machine.here(PhysicalWindow::devmem(START, BYTES)).zeroing(Zeroing::Off).build().unwrap();
    let pool = pool(&window);
    drop(owner(&pool, &window, BYTES));
    pool.reclaim();
    assert!(!machine.all_zero() && window.zeroed_frames() == 0);
    assert_eq!(pool.stats().free, FRAMES);
}

#[test]
fn a_withdrawn_frame_is_not_touched_again() {
    let machine = Machine::new();
    let window = machine.window();
    let pool = pool(&window);
    let (ram, _host) = owner(&pool, &window, BYTES);
    let poisoned = frame(&ram, 5 * 4096);
    pool.poison(poisoned, Cause::new("machine check", 0xbd00_0000_0000_00c0, "told by EDAC"));
    assert_eq!(window.withdrawn().runs(), [poisoned]);
    assert!(window.segment(poisoned.start()).is_none());
    let before = window.segment(ram.frame(0).unwrap()).unwrap();
    assert_eq!(before.frames().frames(), 5, "what is mapped together ends before it");
    drop(ram);
    pool.reclaim();
    assert_eq!(pool.stats().free, FRAMES - 1);
    assert_eq!(machine.at(poisoned.start().get() * 4096, 4096), [7; 4096], "neither zeroed nor anything else");
    assert_eq!(machine.at(poisoned.end().get() * 4096, 4096), [0; 4096]);
    let everything = pool.allocate(Request::bytes((FRAMES - 1) * 4096).owner("next")).unwrap();
    assert!(everything.extents().iter().all(|extent| !extent.frames.overlaps(poisoned)));
    assert_eq!(machine.at(poisoned.start().get() * 4096, 4096), [7; 4096]);
    everything.release().unwrap();
    pool.reclaim();
    pool.hardware_replaced(poisoned, "DIMM 3 replaced").unwrap();
    pool.reclaim();
    let replaced = pool.allocate(Request::bytes(BYTES).owner("last")).unwrap();
    assert_eq!(replaced.bytes(), BYTES);
    assert!(machine.all_zero(), "new memory is zeroed before anybody has it");
}

/// Says that it unmapped, and did not.
struct Liar;

impl Mapping for Liar {
    fn prepare(&self, _: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _: &Operation, _: PfnRange) -> Result<(), Stuck> {
        Ok(())
    }
}

#[test]
fn one_frame_that_is_still_mapped_costs_one_frame() {
    let machine = Machine::new();
    let window = machine.window();
    let pool = pool(&window);
    let ram = pool.allocate(Request::bytes(BYTES).owner("guest")).unwrap();
    let left = frame(&ram, 7 * 4096);
    ram.attach("host", Arc::new(Liar)).unwrap();
    let host = HostMapping::of(&window, &ram).unwrap();
    let guard = ram.map_guard("host", 0..BYTES).unwrap();
    host.map(&guard, left).unwrap();
    drop(guard);
    host.write(7 * 4096, b"still here").unwrap();
    drop(ram);
    let told = pool.reclaim();
    assert_eq!(told.lost.iter().map(pageless::Lost::frames).collect::<Vec<_>>(), [left]);
    assert_eq!(told.lost[0].state(), Withdrawal::Quarantined);
    assert_eq!(told.freed.frames(), FRAMES - 1);
    assert_eq!(machine.at(left.start().get() * 4096, 10), b"still here");
    host.unmap(left).unwrap();
    assert_eq!(pool.retry(left).freed.frames(), 1);
    assert!(machine.all_zero());
}

#[test]
fn no_second_window_has_part_of_the_range_while_anything_of_the_first_lives() {
    let machine = Machine::new();
    let first = machine.here(PhysicalWindow::devmem(START, BYTES / 2)).build().unwrap();
    let taken = |start, bytes| machine.here(PhysicalWindow::devmem(start, bytes)).build().err();
    assert!(matches!(taken(START + BYTES / 4, BYTES / 2), Some(WindowError::Taken { .. })));
    assert_eq!(taken(START + BYTES / 2, BYTES / 2), None);
    let handle = first.segment(Pfn::new(START / 4096)).unwrap();
    drop(first);
    assert!(matches!(taken(START, 4096), Some(WindowError::Taken { .. })), "somebody still has the descriptor");
    drop(handle);
    assert_eq!(taken(START, 4096), None);
}

#[test]
fn the_same_memory_keeps_its_marks_and_another_machines_ledger_is_refused() {
    let machine = Machine::new();
    let ledger = Kept::new();
    let reopen = |machine: &Machine| {
        let window = machine.window();
        Pool::builder().backing(window.clone()).ledger(ledger.clone()).build().map(|pool| (window, pool))
    };
    let bad = PfnRange::single(Pfn::new(START / 4096 + 9));
    let (window, pool) = reopen(&machine).unwrap();
    pool.poison(bad, Cause::new("machine check", 1, "told by EDAC"));
    drop((window, pool));
    let (window, pool) = reopen(&machine).unwrap();
    assert_eq!(pool.withdrawn().iter().map(|run| (run.frames, run.state)).collect::<Vec<_>>(), [(bad, Withdrawal::Poisoned)]);
    assert_eq!(window.withdrawn().runs(), [bad], "the window is told, so the frame stays untouched");
    drop((window, pool));
    let other = Machine::new();
    other.write("sys/class/dmi/id/product_uuid", "99999999-0042-3510-8052-B4C04F435831\n");
    assert!(reopen(&other).is_err());
    for unset in ["00000000-0000-0000-0000-000000000000\n", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF\n"] {
        other.write("sys/class/dmi/id/product_uuid", unset);
        assert_eq!(other.window().instance(), None, "nobody knows, so marks stay");
    }
}

#[test]
fn a_devdax_device_is_mapped_and_lost_by_its_alignment_and_may_be_pinned() {
    let machine = Machine::new();
    machine.dax(2 << 20);
    let window = machine.here(PhysicalWindow::devdax("/dev/dax0.0")).build().unwrap();
    assert_eq!(window.frames(), PfnRange::from_len(Pfn::new(0x14_0000), FRAMES).unwrap());
    assert_eq!((window.page(), window.nodes()[0].node), (PageSize::Huge2M, 1));
    assert_eq!(window.segment(Pfn::new(0x14_0001)).unwrap().offset(), 4096);
    assert!(window.has_struct_pages() && window.proof().blind_to.contains("pins"));
    assert_eq!(window.granule(Pfn::new(0x14_0201)).start(), Pfn::new(0x14_0200));
    let pool = pool(&window);
    let (ram, host) = owner(&pool, &window, BYTES);
    drop(ram);
    assert_eq!(pool.reclaim().freed.frames(), FRAMES);
    drop((pool, host, window));
    let part = machine.here(PhysicalWindow::devdax("/dev/dax0.0").part(4 << 20, 2 << 20)).build().unwrap();
    assert_eq!(part.frames(), PfnRange::from_len(Pfn::new(0x14_0400), 512).unwrap());
    assert_eq!(part.segment(Pfn::new(0x14_0400)).unwrap().offset(), 4 << 20);
    let part = machine.here(PhysicalWindow::devmem(START, BYTES).part(4096, 8192)).build().unwrap();
    assert_eq!(part.frames(), PfnRange::from_len(Pfn::new(START / 4096 + 1), 2).unwrap());
    assert_eq!(part.segment(part.frames().start()).unwrap().offset(), START + 4096);
}

#[test]
fn each_refusal_has_a_name_and_says_what_would_be_right() {
    let machine = Machine::new();
    let refused = |start, bytes| machine.here(PhysicalWindow::devmem(start, bytes)).build().unwrap_err();
    let told = |error: WindowError, words: &[&str]| {
        let text = error.to_string();
        words.iter().for_each(|word| assert!(text.contains(word), "{word}: {text}"));
    };
    told(refused(START, 0), &["/dev/mem", "0 bytes"]);
    told(refused(START + 1, 4096), &["start 0x40000001", "0x1000"]);
    told(refused(START, 4097), &["length 0x1001", "0x1000"]);
    told(refused(1 << 40, 4096), &["40 bits", "MAXPHYSADDR"]);
    told(refused(u64::MAX - 4095, 8192), &["40 bits"]);
    told(refused(START - 4096, BYTES), &["0x3ffff000..0x40000000", "System RAM", "memmap=512M$1G"]);
    machine.write("proc/kpageflags", &"\0".repeat(8 * usize::try_from(START / 4096 + FRAMES).unwrap()));
    told(refused(START, BYTES), &["struct pages at 0x40000000", "128 MiB"]);
    fs::remove_file(machine.0.path().join("proc/kpageflags")).unwrap();
    fs::remove_file(machine.0.path().join("proc/iomem")).unwrap();
    told(refused(START, BYTES), &["proc/iomem"]);
    fs::remove_file(machine.0.path().join("dev/mem")).unwrap();
    told(refused(START, BYTES), &["there is no", "/dev/mem", "CONFIG_DEVMEM", "memmap=512M$1G"]);
    let dax = || machine.here(PhysicalWindow::devdax("/dev/dax0.0"));
    told(dax().build().unwrap_err(), &["there is no", "/dev/dax0.0", "ndctl"]);
    machine.dax(2 << 20);
    told(dax().part(4096, 2 << 20).build().unwrap_err(), &["start", "0x200000"]);
    told(dax().part(BYTES, 2 << 20).build().unwrap_err(), &["beyond", "0x1000000"]);
    machine.write("sys/bus/dax/devices/dax0.0/align", "16384");
    told(dax().build().unwrap_err(), &["0x4000"]);
    machine.write("sys/bus/dax/devices/dax0.0/mapping1/start", "0x0");
    told(dax().build().unwrap_err(), &["several pieces"]);
}

#[test]
fn what_only_has_the_devices_name_is_no_device() {
    let told = PhysicalWindow::devdax("/etc/hostname").build().unwrap_err();
    assert!(matches!(told, WindowError::NotADevice { .. }), "{told}");
    if !Path::new("/dev/mem").exists() {
        let told = PhysicalWindow::devmem(START, BYTES).build().unwrap_err();
        assert!(matches!(told, WindowError::NoDevice { .. }), "{told}");
    }
}
