//! The guest: where its memory lies, what it says, and the bytes that the host writes for it before it runs.
//!
//! The program itself is `guest.s`. It gets every address and number from here, so the two cannot disagree.

use std::iter;

use anyhow::{Result, ensure};
use pageless::FRAME_BYTES;

/// A page, in bytes.
const PAGE: u64 = FRAME_BYTES;
/// Memory ends here, and goes on at [`ABOVE`], in bytes of guest-physical address.
pub(crate) const HOLE: u64 = 8 << 20;
/// Memory above the hole begins here.
pub(crate) const ABOVE: u64 = 16 << 20;
/// How much of it there is, in bytes.
pub(crate) const ABOVE_BYTES: u64 = 8 << 20;
/// All memory, in bytes.
pub(crate) const RAM: u64 = HOLE + ABOVE_BYTES;

/// What the host writes before a guest runs, and so must be shared: the gate, the code, three page tables; a page each.
pub(crate) const WINDOW: u64 = 0x10_0000;
/// The length of the window, in bytes.
pub(crate) const WINDOW_BYTES: u64 = 5 * PAGE;
/// The code within the window, which the guest takes out of the host's hands.
pub(crate) const CODE: u64 = WINDOW + PAGE;
/// The page tables within the window: level 4, 3 and 2 of AMD's long mode, which map the first GiB to itself.
pub(crate) const TABLES: u64 = WINDOW + 2 * PAGE;
/// Where the code lives in private memory.
const HOME: u64 = 0x20_0000;
/// How often the second vCPU has read the block's last page, and whether it goes on; in private memory.
const READS: u64 = HOME + PAGE;
const READING: u64 = READS + 4;
/// The page that goes from private to shared and back under the host's eyes.
pub(crate) const STEPPED: u64 = 0x30_0000;
/// Four pages, one of which a device does not let go of.
pub(crate) const TORN: u64 = 0x31_0000;
/// That one.
pub(crate) const LOST: u64 = TORN + 2 * PAGE;
/// Two pages of the second vCPU's.
pub(crate) const OWN: u64 = 0x32_0000;
/// Their length in bytes.
pub(crate) const OWN_BYTES: u64 = 2 * PAGE;
/// What one vCPU converts while the other reads it.
pub(crate) const BLOCK: u64 = 0x40_0000;
/// Its length in pages: one order for KVM, and a walk over 512 attributes, which is long enough to be met in the middle.
pub(crate) const BLOCK_PAGES: u64 = 512;
/// How often the second vCPU converts its own pages.
pub(crate) const ROUNDS: u32 = 100;

/// What the guest writes where the host must not see it.
pub(crate) const FROM_GUEST: u32 = 0x5ec2_e700;
/// What the guest writes for the host.
pub(crate) const TO_HOST: u32 = 0x0be1_1e70;
/// What the host writes for the guest.
pub(crate) const FROM_HOST: u32 = 0x4057_4057;
/// What the guest fills memory with.
const PATTERN: u64 = 0x5ec2_e700_5ec2_e700;

/// What the guest tells the host, with a number; each is an I/O port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum Told {
    /// The code runs in private memory: the answer to giving up the host's copy of it.
    AtHome = 0x10,
    /// What it reads where it has written [`FROM_GUEST`].
    PrivateRead,
    /// The answer to sharing that page.
    ShareAnswer,
    /// What it finds there then.
    SharedRead,
    /// It has written [`TO_HOST`] there.
    SharedWritten,
    /// What it reads after the host has written.
    HostWrote,
    /// The answer to taking the page back.
    UnshareAnswer,
    /// What it finds there then.
    UnsharedRead,
    /// It has written [`FROM_GUEST`] there again.
    UnsharedWritten,
    /// Now come requests that no guest should make.
    HostileBegin,
    /// The answer to each.
    HostileAnswer,
    /// That was all of them.
    HostileEnd,
    /// The answer to sharing four pages of which one does not come.
    TornAnswer,
    /// What it reads from that one.
    LostRead,
    /// What it reads from the one behind.
    TornRead,
    /// The answer to sharing that one once more.
    LostAnswer,
    /// How many hypercalls this vCPU has made.
    Hypercalls,
    /// Bits that were left over from the other state, or of an error, in all rounds of the second vCPU.
    LeftOver,
    /// How many words of the memory that it looked at are not zero.
    NotZero,
}

/// Where the guest asks whether the host has seen enough: a number that is zero until then.
pub(crate) const ENOUGH: u16 = 0x80;

impl Told {
    const ALL: [Self; 19] = [
        Self::AtHome,
        Self::PrivateRead,
        Self::ShareAnswer,
        Self::SharedRead,
        Self::SharedWritten,
        Self::HostWrote,
        Self::UnshareAnswer,
        Self::UnsharedRead,
        Self::UnsharedWritten,
        Self::HostileBegin,
        Self::HostileAnswer,
        Self::HostileEnd,
        Self::TornAnswer,
        Self::LostRead,
        Self::TornRead,
        Self::LostAnswer,
        Self::Hypercalls,
        Self::LeftOver,
        Self::NotZero,
    ];

    /// What a port means.
    pub(crate) fn at(port: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|told| *told as u16 == port)
    }
}

/// Where a vCPU begins, in bytes of guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entries {
    /// The first vCPU, in the window.
    pub(crate) first: u64,
    /// The second, in private memory.
    pub(crate) second: u64,
    /// A later guest's, in the window.
    pub(crate) scan: u64,
}

/// The window as the host writes it, and where to begin in it.
pub(crate) fn window() -> Result<(Vec<u8>, Entries)> {
    let program = program::bytes();
    let mut window = program.code.to_vec();
    // Present, writable and accessed (bits 0, 1 and 5); in the last table each entry is a page of 2 MiB, dirty already (bits 7
    // and 6), so that no processor writes to the tables: AMD64 volume 2, 5.3 and 5.4.
    let first_entry = |next: u64| iter::once(next | 0x23);
    window.extend(table(first_entry(TABLES + PAGE)));
    window.extend(table(first_entry(TABLES + 2 * PAGE)));
    window.extend(table((0..512).map(|block| (block << 21) | 0xe3)));
    ensure!(window.len() as u64 == WINDOW_BYTES, "the guest's code is longer than its page");
    let entries = Entries { first: CODE, second: HOME + program.second, scan: CODE + program.scan };
    Ok((window, entries))
}

/// A page table with these entries first, and none after them.
fn table(entries: impl Iterator<Item = u64>) -> impl Iterator<Item = u8> {
    entries.chain(iter::repeat(0)).take(512).flat_map(u64::to_le_bytes)
}

/// The assembled program. It is data of this process, in a section of its own, and never runs here.
#[allow(unsafe_code)] // an assembler's symbols have no Rust type
mod program {
    use super::*;

    std::arch::global_asm!(
        include_str!("guest.s"),
        PAGE = const PAGE,
        HOLE = const HOLE,
        ABOVE = const ABOVE,
        ABOVE_BYTES = const ABOVE_BYTES,
        WINDOW = const WINDOW,
        CODE = const CODE,
        HOME = const HOME,
        READS = const READS,
        READING = const READING,
        STEPPED = const STEPPED,
        TORN = const TORN,
        OWN = const OWN,
        BLOCK = const BLOCK,
        BLOCK_PAGES = const BLOCK_PAGES,
        ROUNDS = const ROUNDS,
        FROM_GUEST = const FROM_GUEST,
        TO_HOST = const TO_HOST,
        PATTERN = const PATTERN,
        MAP_GPA_RANGE = const pageless_kvm::HYPERCALL_MAP_GPA_RANGE,
        SHARED = const 0,
        PRIVATE = const pageless_kvm::MAP_GPA_RANGE_ENCRYPTED,
        REST_IN_GATE = const 16,
        ENOUGH = const ENOUGH,
        AT_HOME = const Told::AtHome as u16,
        PRIVATE_READ = const Told::PrivateRead as u16,
        SHARE_ANSWER = const Told::ShareAnswer as u16,
        SHARED_READ = const Told::SharedRead as u16,
        SHARED_WRITTEN = const Told::SharedWritten as u16,
        HOST_WROTE = const Told::HostWrote as u16,
        UNSHARE_ANSWER = const Told::UnshareAnswer as u16,
        UNSHARED_READ = const Told::UnsharedRead as u16,
        UNSHARED_WRITTEN = const Told::UnsharedWritten as u16,
        HOSTILE_BEGIN = const Told::HostileBegin as u16,
        HOSTILE_ANSWER = const Told::HostileAnswer as u16,
        HOSTILE_END = const Told::HostileEnd as u16,
        TORN_ANSWER = const Told::TornAnswer as u16,
        LOST_READ = const Told::LostRead as u16,
        TORN_READ = const Told::TornRead as u16,
        LOST_ANSWER = const Told::LostAnswer as u16,
        HYPERCALLS = const Told::Hypercalls as u16,
        LEFT_OVER = const Told::LeftOver as u16,
        NOT_ZERO = const Told::NotZero as u16,
    );

    unsafe extern "C" {
        static private_guest_start: u8;
        static private_guest_code: u8;
        static private_guest_second: u8;
        static private_guest_scan: u8;
        static private_guest_end: u8;
    }

    /// The program, and where its entries lie from the start of the code.
    pub(super) struct Program {
        pub(super) code: &'static [u8],
        pub(super) second: u64,
        pub(super) scan: u64,
    }

    pub(super) fn bytes() -> Program {
        let (start, end) = (&raw const private_guest_start, &raw const private_guest_end);
        let from_code = |entry: *const u8| (entry.addr() - (&raw const private_guest_code).addr()) as u64;
        // SAFETY: both are symbols of one section that the assembler laid out in this order and nobody writes.
        let code = unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) };
        Program { code, second: from_code(&raw const private_guest_second), scan: from_code(&raw const private_guest_scan) }
    }
}
