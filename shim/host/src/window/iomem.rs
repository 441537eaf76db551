//! What the kernel knows of physical addresses: who has them (/proc/iomem), how many bits they have (/proc/cpuinfo), and
//! behind which of them it keeps a `struct page` (/proc/kpageflags).

use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pageless::{Order, Pfn, PfnRange};

use super::WindowError;

/// Names in /proc/iomem of memory that the kernel has set aside and does not use (arch/x86/kernel/e820.c,
/// `e820_type_to_string`). What has no name at all is memory beyond a `mem=` limit.
const SET_ASIDE: [&str; 4] = ["Reserved", "Soft Reserved", "Persistent Memory", "Persistent Memory (legacy)"];
/// Bits of a physical address where the processor does not tell: the most that x86-64 and Arm have.
const MOST_BITS: u32 = 52;
/// `KPF_NOPAGE` (Linux, include/uapi/linux/kernel-page-flags.h): no page frame exists at the number.
const KPF_NOPAGE: u64 = 1 << 20;

/// One line of /proc/iomem, a nested one too.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Resource {
    addresses: Range<u64>,
    name: String,
}

/// Refuses addresses that are the kernel's own memory, or anything else but memory that is set aside.
pub(super) fn check_owner(file: &Path, window: Range<u64>) -> Result<(), WindowError> {
    let unreadable = |why: String| WindowError::Unreadable { file: file.to_owned(), why };
    let text = fs::read_to_string(file).map_err(|error| unreadable(error.to_string()))?;
    let resources = parse(&text).ok_or_else(|| unreadable("its lines are not 'start-end : name'".to_owned()))?;
    if resources.iter().all(|resource| resource.addresses == (0..1)) {
        return Err(unreadable("it shows addresses only to CAP_SYS_ADMIN".to_owned()));
    }
    for Resource { addresses, name } in resources {
        let (from, to) = (addresses.start.max(window.start), addresses.end.min(window.end));
        if from >= to || SET_ASIDE.contains(&name.as_str()) {
            continue;
        }
        // "System RAM (kmem)" and the like begin with it, too.
        return Err(if name.starts_with("System RAM") {
            WindowError::SystemRam { from, to }
        } else {
            WindowError::InUse { from, to, owner: name }
        });
    }
    Ok(())
}

fn parse(text: &str) -> Option<Vec<Resource>> {
    let address = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let line = |line: &str| {
        let (addresses, name) = line.split_once(" : ")?;
        let (first, last) = addresses.trim().split_once('-')?;
        Some(Resource { addresses: address(first)?..address(last)?.saturating_add(1), name: name.trim().to_owned() })
    };
    text.lines().filter(|text| !text.trim().is_empty()).map(line).collect()
}

/// Refuses addresses beyond MAXPHYSADDR, as /proc/cpuinfo has it.
pub(super) fn check_bits(cpuinfo: &Path, start: u64, bytes: u64) -> Result<(), WindowError> {
    let bits = fs::read_to_string(cpuinfo).ok().and_then(|text| physical_bits(&text)).unwrap_or(MOST_BITS);
    let fits = start.checked_add(bytes).is_some_and(|end| end <= 1_u64.checked_shl(bits).unwrap_or(u64::MAX));
    if fits { Ok(()) } else { Err(WindowError::BeyondPhysicalAddresses { start, bytes, bits }) }
}

/// `address sizes : 46 bits physical, 48 bits virtual`.
fn physical_bits(cpuinfo: &str) -> Option<u32> {
    let line = cpuinfo.lines().find(|line| line.starts_with("address sizes"))?;
    let bits = line.split_once(':')?.1.split_whitespace().next()?.parse().ok()?;
    (12..=MOST_BITS).contains(&bits).then_some(bits)
}

/// Refuses frames that have a `struct page`, where /proc/kpageflags can be read. The kernel makes them for 2 MiB together
/// at the least (`PAGES_PER_SUBSECTION`, include/linux/mmzone.h), so one frame of each block tells for all.
pub(super) fn check_without_pages(kpageflags: &Path, frames: PfnRange) -> Result<(), WindowError> {
    let Ok(file) = File::open(kpageflags) else { return Ok(()) };
    for block in frames.pieces(Order::MIB2) {
        if has_page(&file, block.start()).map_err(|error| unreadable(kpageflags, &error))? {
            return Err(WindowError::HasStructPages { address: block.start().get() * pageless::FRAME_BYTES });
        }
    }
    Ok(())
}

/// A number beyond the end of the file has no page (`kpageflags_read`, fs/proc/page.c).
fn has_page(kpageflags: &File, pfn: Pfn) -> std::io::Result<bool> {
    let mut flags = [0; 8];
    match kpageflags.read_exact_at(&mut flags, pfn.get() * 8) {
        Ok(()) => Ok(u64::from_ne_bytes(flags) & KPF_NOPAGE == 0),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> WindowError {
    WindowError::Unreadable { file: file.to_owned(), why: error.to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const IOMEM: &str = "\
00000000-00000fff : Reserved
00001000-3fffffff : System RAM
  01000000-01ffffff : Kernel code
40000000-5fffffff : Reserved
60000000-bffdffff : System RAM
c0000000-febfffff : PCI Bus 0000:00
  fd000000-fdffffff : 0000:00:02.0
100000000-13fffffff : System RAM
";

    fn told(start: u64, end: u64, text: &str) -> Result<(), WindowError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        check_owner(file.path(), start..end)
    }

    #[test]
    fn only_what_is_set_aside_may_be_taken() {
        assert_eq!(told(0x4000_0000, 0x6000_0000, IOMEM), Ok(()));
        assert_eq!(told(0x2_0000_0000, 0x3_0000_0000, IOMEM), Ok(()), "beyond all RAM that the kernel was given");
        let ram = |from, to| Err(WindowError::SystemRam { from, to });
        assert_eq!(told(0x4000_0000, 0x6000_1000, IOMEM), ram(0x6000_0000, 0x6000_1000));
        assert_eq!(told(0x3fff_f000, 0x4000_1000, IOMEM), ram(0x3fff_f000, 0x4000_0000));
        assert_eq!(told(0x0, 1 << 40, IOMEM), ram(0x1000, 0x4000_0000));
        let used = told(0xfd00_0000, 0xfd00_1000, IOMEM).unwrap_err().to_string();
        assert!(used.contains("PCI Bus 0000:00"), "{used}");
        let nested = "40000000-5fffffff : Reserved\n  40000000-5fffffff : dax0.0\n    40000000-5fffffff : System RAM (kmem)\n";
        assert_eq!(told(0x4000_0000, 0x4000_1000, "40000000-5fffffff : Reserved\n  50000000-50000fff : IOAPIC 0\n"), Ok(()));
        assert!(matches!(told(0x4000_0000, 0x6000_0000, nested), Err(WindowError::InUse { owner, .. }) if owner == "dax0.0"));
    }

    #[test]
    fn a_table_that_hides_its_addresses_is_no_table() {
        let hidden = "00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n";
        for text in [hidden, "", "garbage\n"] {
            assert!(matches!(told(0, 4096, text), Err(WindowError::Unreadable { .. })), "{text}");
        }
        assert!(matches!(check_owner(Path::new("/nowhere/iomem"), 0..1), Err(WindowError::Unreadable { .. })));
    }

    #[test]
    fn a_window_ends_within_the_physical_address_bits() {
        assert_eq!(physical_bits("model name : x\naddress sizes\t: 40 bits physical, 48 bits virtual\n"), Some(40));
        for text in ["", "address sizes\t: many", "address sizes\t: 99 bits physical"] {
            assert_eq!(physical_bits(text), None, "{text}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "address sizes\t: 40 bits physical, 48 bits virtual\n").unwrap();
        assert_eq!(check_bits(file.path(), (1 << 40) - 4096, 4096), Ok(()));
        let beyond = Err(WindowError::BeyondPhysicalAddresses { start: (1 << 40) - 4096, bytes: 8192, bits: 40 });
        assert_eq!(check_bits(file.path(), (1 << 40) - 4096, 8192), beyond);
        assert!(check_bits(file.path(), u64::MAX - 4095, 8192).is_err(), "and the sum may be more than 64 bits");
    }

    #[test]
    fn one_frame_with_a_struct_page_refuses_the_window() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let frames = PfnRange::from_len(Pfn::new(512), 1536).unwrap();
        let mut flags = vec![KPF_NOPAGE; 2048];
        let check = |flags: &[u64]| {
            fs::write(file.path(), flags.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
            check_without_pages(file.path(), frames)
        };
        assert_eq!(check(&flags), Ok(()));
        assert_eq!(check(&flags[..512]), Ok(()), "beyond the last page frame there is none");
        flags[1024..1536].fill(0x400);
        assert_eq!(check(&flags), Err(WindowError::HasStructPages { address: 4 << 20 }));
        assert_eq!(check_without_pages(Path::new("/nowhere/kpageflags"), frames), Ok(()));
    }
}
