//! The running kernel itself: sealing an unmapped memfd against writing reads the reference count of every page of it.
//!
//! `F_ADD_SEALS(F_SEAL_WRITE)` is the seed problem, live: with one page pinned the kernel cannot tell stuck from transient,
//! and says EBUSY when it has rescanned long enough.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, SpliceFFlags, fallocate, fcntl, vmsplice};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;

use crate::bench::Bench;
use crate::contest::{Contest, Trial, hot, nanos};
use crate::guest::Guest;
use crate::machine::available;
use pageless::Order;

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &["kernel.scan", "kernel.pinned"];

const BYTES: u64 = 1 << 30;
const SCAN: &str = "kernel's own scan (F_SEAL_WRITE)";

/// A page size, and what stands in its way here.
struct Size {
    name: &'static str,
    flags: MFdFlags,
    /// Its folder under /sys/kernel/mm/hugepages, and how many pages make a GiB.
    huge: Option<(&'static str, u64)>,
}

fn sizes() -> [Size; 3] {
    let huge = MFdFlags::MFD_HUGETLB;
    [
        Size { name: "4K", flags: MFdFlags::empty(), huge: None },
        Size { name: "2M", flags: huge | MFdFlags::MFD_HUGE_2MB, huge: Some(("hugepages-2048kB", 512)) },
        Size { name: "1G", flags: huge | MFdFlags::MFD_HUGE_1GB, huge: Some(("hugepages-1048576kB", 1)) },
    ]
}

impl Size {
    /// Why it cannot be measured here, if it cannot.
    fn missing(&self) -> Option<String> {
        let Some((folder, pages)) = self.huge else {
            let free = available("MemAvailable:").unwrap_or(0);
            return (free < 3 * BYTES).then(|| format!("{} MiB of memory are available, 3 GiB are wanted", free >> 20));
        };
        let path = format!("/sys/kernel/mm/hugepages/{folder}/free_hugepages");
        let free = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
        (free < pages).then(|| format!("{free} free pages of {}, {pages} are wanted ({path})", self.name))
    }

    /// Bytes of a page.
    fn bytes(&self) -> usize {
        self.huge.map_or(4096, |(_, pages)| 1 << (30 - pages.trailing_zeros()))
    }

    fn file(&self) -> anyhow::Result<OwnedFd> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | self.flags;
        let fd = memfd_create("pageless-bench", flags).context("memfd_create")?;
        nix::unistd::ftruncate(&fd, i64::try_from(BYTES)?).context("ftruncate")?;
        fallocate(&fd, FallocateFlags::empty(), 0, i64::try_from(BYTES)?).context("fallocate")?;
        Ok(fd)
    }
}

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    if !TASKS.iter().fold(false, |any, task| bench.wants(task) | any) {
        return Ok(());
    }
    let guest = Guest::new(1)?;
    for size in sizes() {
        if bench.wants("kernel.scan") {
            let state = format!("a GiB of {} pages, not mapped, nothing pinned", size.name);
            let ours = || guest.ram.promotable(0, Order::GIB1).is_ok();
            let contest = Contest::new("is anybody using this GiB?", state).entry("pageless", hot(ours));
            match size.missing() {
                Some(why) => {
                    bench.skip(&contest, SCAN, &why);
                }
                None => bench.run(contest.entry(SCAN, seal(&size)))?,
            }
        }
    }
    if bench.wants("kernel.pinned") {
        for size in sizes() {
            pinned(bench, &guest, &size)?;
        }
    }
    Ok(())
}

/// Seals a fresh file each time: a seal cannot be taken off.
fn seal(size: &Size) -> Trial<'_> {
    Box::new(|| {
        let file = size.file()?;
        let start = Instant::now();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).context("the kernel refused to seal an unused file")?;
        Ok(nanos(start.elapsed()))
    })
}

/// One page is pinned: what does each side say, after how long?
fn pinned(bench: &mut Bench, guest: &Guest, size: &Size) -> anyhow::Result<()> {
    let hold = guest.ram.hold(0..4096, "pipe")?;
    let answer = guest.ram.share(0..BYTES);
    let names = answer.as_ref().is_err_and(|why| why.to_string().contains("pipe"));
    anyhow::ensure!(names, "pageless did not name the holder: {answer:?}");
    let ours = || guest.ram.share(0..BYTES).is_err();
    let state = format!("a GiB of {} pages, one pinned; the kernel says EBUSY, pageless names the holder", size.name);
    let contest = Contest::new("is anybody using this GiB?", state).entry("pageless", hot(ours));
    match size.missing() {
        Some(why) => bench.skip(&contest, SCAN, &why),
        None => {
            let file = size.file()?;
            let _pin = pin(&file, size.bytes())?;
            let busy = Box::new(|| {
                let start = Instant::now();
                let answer = fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
                let elapsed = nanos(start.elapsed());
                if answer != Err(Errno::EBUSY) {
                    bail!("with a pinned page the kernel said {answer:?}");
                }
                Ok(elapsed)
            });
            bench.run(contest.entry(SCAN, busy))?;
        }
    }
    drop(hold);
    Ok(())
}

/// Pins the file's first page by reference in a pipe, and unmaps it again.
fn pin(file: &OwnedFd, page: usize) -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
    let map = crate::rival::frame_alloc::map_page(&File::from(file.try_clone()?), page)?;
    let spliced = vmsplice(&writer, &[IoSlice::new(&map[..4096])], SpliceFFlags::empty()).context("vmsplice")?;
    anyhow::ensure!(spliced == 4096, "{spliced} bytes were pinned through {}", reader.as_raw_fd());
    Ok((reader, writer))
}
