//! Runs inside a guest, as root: has some pages, tells where in the guest's physical memory they are, and reads them again.
//!
//! `guest-pages SEED COUNT` prints `pages SEED FRAME,FRAME,…` (guest frame numbers, hexadecimal, in the order of the pages)
//! and obeys the lines on its standard input:
//!
//! | line | what it does |
//! |---|---|
//! | `check` | compares each page with the owner's answer, and prints `answer SEED COUNT same` or how many are not |
//! | `write` | writes its own pattern again, and prints `written SEED` |
//! | `end` | ends |
//!
//! The pages are ordinary memory of a process; from which NUMA node they come, its cpuset says.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, BufRead, Error};
use std::os::unix::fs::FileExt;

use pageless_e2e::{answer, pattern};

const PAGE: u64 = 4096;
/// `/proc/PID/pagemap`: 8 bytes for each page, bit 63 "present", bits 0-54 the frame (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

struct Pages {
    seed: u64,
    count: u64,
    /// Where they begin in `memory`, in bytes.
    skip: usize,
    memory: Vec<u8>,
}

impl Pages {
    fn new(seed: u64, count: u64) -> Result<Self, Error> {
        let bytes = usize::try_from((count + 1) * PAGE).map_err(Error::other)?;
        let memory = vec![0; bytes];
        let skip = memory.as_ptr().align_offset(4096);
        Ok(Self { seed, count, skip, memory })
    }

    fn address(&self, page: u64) -> u64 {
        self.memory.as_ptr() as u64 + self.skip as u64 + page * PAGE
    }

    fn write(&mut self) {
        let pages = self.memory[self.skip..].chunks_exact_mut(4096);
        for (page, bytes) in (0..self.count).zip(pages) {
            bytes.copy_from_slice(&pattern(self.seed, page));
        }
    }

    /// Where the pages are in the guest's physical memory, in frames.
    fn frames(&self) -> Result<Vec<u64>, Error> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let mut frames = Vec::new();
        for page in 0..self.count {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, self.address(page) / PAGE * 8)?;
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT == 0 || entry & FRAME == 0 {
                return Err(Error::other(format!("page {page} has no frame that this user may see: {entry:#x}")));
            }
            frames.push(entry & FRAME);
        }
        Ok(frames)
    }

    /// How many pages hold the owner's answer. Read through the kernel: to the compiler nobody has written here.
    fn answered(&self) -> Result<u64, Error> {
        let memory = File::open("/proc/self/mem")?;
        let mut same = 0;
        for page in 0..self.count {
            let mut bytes = vec![0; 4096];
            memory.read_exact_at(&mut bytes, self.address(page))?;
            same += u64::from(bytes == answer(self.seed, page));
        }
        Ok(same)
    }
}

fn main() -> Result<(), Error> {
    let numbers: Vec<u64> = std::env::args().skip(1).map_while(|argument| argument.parse().ok()).collect();
    let [seed, count] = numbers[..] else { return Err(Error::other("usage: guest-pages SEED COUNT")) };
    let mut pages = Pages::new(seed, count)?;
    pages.write();
    let frames = pages.frames()?;
    println!("pages {seed} {}", frames.iter().map(|frame| format!("{frame:x}")).collect::<Vec<_>>().join(","));
    for line in io::stdin().lock().lines() {
        match line?.as_str() {
            "check" => match pages.answered()? {
                _ if pages.frames()? != frames => println!("answer {seed}: the guest has moved the pages"),
                same if same == count => println!("answer {seed} {count} same"),
                same => println!("answer {seed}: {same} of {count} same"),
            },
            "write" => {
                pages.write();
                println!("written {seed}");
            }
            "end" => break,
            other => println!("guest-pages does not know {other:?}"),
        }
    }
    Ok(())
}
