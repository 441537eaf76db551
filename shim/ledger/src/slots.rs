//! The header of a redb file, as far as it says which commit counts.
//!
//! redb (file format 3) keeps the roots of its last two commits in two slots with a checksum each, and one byte that no
//! checksum covers says which of them counts:
//!
//! ```text
//! byte   0..9    magic number
//! byte   9       bit 0: which slot counts; bit 1: not closed cleanly; bit 2: two-phase commit
//! byte  64..192  slot 0: byte 0 format, bytes 104..112 the commit's number, bytes 112..128 XXH3-128 of what precedes
//! byte 192..320  slot 1
//! ```
//!
//! One flipped bit of that byte would bring back the commit before the last, whole and consistent, without what the last one
//! acknowledged. So an opening looks at both slots itself. A newer commit in the slot that does not count is either one whose
//! second phase was cut off, or one that was hidden. It is tried first: taking up a commit that nobody was told of is safe,
//! dropping one that somebody was told of is not.

use xxhash_rust::xxh3::xxh3_128;

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 320;
/// Where the byte stands that says which slot counts.
pub(crate) const FLAGS_AT: usize = 9;

const MAGIC: [u8; FLAGS_AT] = *b"redb\x1a\x0a\xa9\x0d\x0a";
const SLOT_AT: [usize; 2] = [64, 192];
const SLOT_BYTES: usize = 128;
const NUMBER_AT: usize = 104;
const CHECKSUM_AT: usize = 112;
const SECOND_COUNTS: u8 = 1;
const NOT_CLOSED: u8 = 2;
const TWO_PHASE: u8 = 4;

/// What the header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slots {
    flags: u8,
    /// The numbers of the commits; none where the checksum is wrong.
    commits: [Option<u64>; 2],
}

/// Why a file is not one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotRedb {
    /// Not even a header long.
    Short,
    /// Another kind of file.
    Foreign,
}

impl Slots {
    pub(crate) fn read(header: &[u8]) -> Result<Self, NotRedb> {
        let header: &[u8; HEADER_BYTES] = header.first_chunk().ok_or(NotRedb::Short)?;
        if header[..FLAGS_AT] != MAGIC {
            return Err(NotRedb::Foreign);
        }
        let commit = |at: usize| {
            let slot = &header[at..at + SLOT_BYTES];
            let sum = u128::from_le_bytes(slot[CHECKSUM_AT..].try_into().ok()?);
            let number = u64::from_le_bytes(slot[NUMBER_AT..CHECKSUM_AT].try_into().ok()?);
            (xxh3_128(&slot[..CHECKSUM_AT]) == sum).then_some(number)
        };
        Ok(Self { flags: header[FLAGS_AT], commits: SLOT_AT.map(commit) })
    }

    /// The slot that counts.
    pub(crate) const fn counting(self) -> usize {
        (self.flags & SECOND_COUNTS) as usize
    }

    /// Whether the slot that counts can be read.
    pub(crate) const fn is_readable(self) -> bool {
        self.commits[self.counting()].is_some()
    }

    /// The flags byte under which the newer commit counts, if that is not the one that counts now. It must be verified: so
    /// the flags say that the file was not closed.
    pub(crate) fn newer(self) -> Option<u8> {
        let (this, other) = (self.commits[self.counting()], self.commits[1 - self.counting()]);
        // A slot that counts and cannot be read was damaged: the other one is older then, whatever it says.
        (this.is_some() && other > this).then_some((self.flags ^ SECOND_COUNTS) | NOT_CLOSED | TWO_PHASE)
    }

    /// Byte offset of the slot that counts.
    pub(crate) const fn offset(self) -> usize {
        SLOT_AT[self.counting()]
    }
}
