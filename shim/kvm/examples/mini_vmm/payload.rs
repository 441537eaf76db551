//! What the guest runs: two programs in real mode, with 32-bit addresses (the data segment's limit is 4 GiB).
//!
//! Registers are set before the first instruction: `esi` and `edi` hold guest-physical addresses of blocks, `ebp` the number
//! of rounds. Ports are the VMM's: see the constants.

use std::fmt;

use pageless_kvm::{HYPERCALL_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED};

/// Out: a message lies at the start of the block at `esi`, which is shared.
pub(crate) const DOORBELL: u8 = 0x10;
/// Out: the block at `edi` was lost; the guest goes on with the one at `esi`.
pub(crate) const LOST: u8 = 0x11;
/// Out: the guest found something wrong and stops.
pub(crate) const WRONG: u8 = 0x12;
/// Out, then in: `KVM_HC_MAP_GPA_RANGE` with its arguments in `ebx`, `ecx` and `edx`, and its answer. For a KVM that does not
/// deliver the hypercall to user space.
pub(crate) const CONVERT: u8 = 0x20;
/// In: not 0 when the neighbour shall stop.
pub(crate) const STOP: u8 = 0x30;

/// How the guest asks for a conversion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Asks {
    /// By `vmcall`, which KVM replaces by what the processor has.
    ByHypercall,
    /// Through a port of this VMM's.
    ByPort,
}

impl fmt::Display for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ByHypercall => "by hypercall",
            Self::ByPort => "through a port: no hypercall arrives here, or none is wanted",
        })
    }
}

/// Shares its block, leaves a message for the device, reads the reply, takes the block back, and again: `ebp` times. What
/// cannot be taken back is given up for the block at `edi`.
pub(crate) fn converter(asks: Asks, block_pages: u32) -> Vec<u8> {
    let mut code = Code::default();
    let top = code.here();
    code.emit(&[0x66, 0x67, 0x89, 0x2e]); // mov [esi], ebp       private: the first touch maps it
    code.convert(asks, block_pages, 0);
    code.emit(&[0x66, 0x85, 0xc0]); // test eax, eax
    let not_shared = code.jump_if_not_zero();
    code.emit(&[0x66, 0x67, 0x89, 0x2e]); // mov [esi], ebp       the message
    code.emit(&[0xe6, DOORBELL]); // out DOORBELL, al
    code.emit(&[0x66, 0x67, 0x8b, 0x46, 0x04]); // mov eax, [esi+4]  the reply: the message with every bit turned
    code.emit(&[0x66, 0xf7, 0xd0]); // not eax
    code.emit(&[0x66, 0x39, 0xe8]); // cmp eax, ebp
    let wrong_reply = code.jump_if_not_zero();
    code.convert(asks, block_pages, u32::try_from(MAP_GPA_RANGE_ENCRYPTED).unwrap_or(0));
    code.emit(&[0x66, 0x85, 0xc0]); // test eax, eax
    let private = code.jump_if_zero();
    code.emit(&[0x66, 0x87, 0xf7]); // xchg esi, edi         lost: other memory
    code.emit(&[0xe6, LOST]); // out LOST, al
    code.land(private);
    code.emit(&[0x66, 0x67, 0x89, 0x2e]); // mov [esi], ebp       private again
    code.emit(&[0x66, 0x67, 0x8b, 0x06]); // mov eax, [esi]
    code.emit(&[0x66, 0x39, 0xe8]); // cmp eax, ebp
    let not_kept = code.jump_if_not_zero();
    code.emit(&[0x66, 0x4d]); // dec ebp
    code.jump_back_if_not_zero(top);
    code.emit(&[0xf4]); // hlt
    [not_shared, wrong_reply, not_kept].into_iter().for_each(|jump| code.land(jump));
    code.emit(&[0xe6, WRONG, 0xf4]); // out WRONG, al; hlt
    code.0
}

/// Counts in the blocks at `esi` and `edi`, which others convert meanwhile, until it is told to stop.
pub(crate) fn neighbour() -> Vec<u8> {
    let mut code = Code::default();
    let top = code.here();
    code.emit(&[0x66, 0x67, 0xff, 0x46, 0x40]); // inc dword [esi+64]
    code.emit(&[0x66, 0x67, 0xff, 0x47, 0x40]); // inc dword [edi+64]
    code.emit(&[0x66, 0x45]); // inc ebp
    code.emit(&[0xe4, STOP]); // in al, STOP
    code.emit(&[0x84, 0xc0]); // test al, al
    code.jump_back_if_zero(top);
    code.emit(&[0xf4]); // hlt
    code.0
}

/// Machine code under construction.
#[derive(Default)]
struct Code(Vec<u8>);

/// A jump whose target comes later: where its displacement lies.
struct Jump(usize);

impl Code {
    fn emit(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    fn here(&self) -> usize {
        self.0.len()
    }

    fn jump_if_zero(&mut self) -> Jump {
        self.emit(&[0x0f, 0x84, 0, 0]); // jz rel16
        Jump(self.here() - 2)
    }

    fn jump_if_not_zero(&mut self) -> Jump {
        self.emit(&[0x0f, 0x85, 0, 0]); // jnz rel16
        Jump(self.here() - 2)
    }

    fn jump_back_if_zero(&mut self, target: usize) {
        let jump = self.jump_if_zero();
        self.land_at(jump, target);
    }

    fn jump_back_if_not_zero(&mut self, target: usize) {
        let jump = self.jump_if_not_zero();
        self.land_at(jump, target);
    }

    fn land(&mut self, jump: Jump) {
        let here = self.here();
        self.land_at(jump, here);
    }

    fn land_at(&mut self, jump: Jump, target: usize) {
        let displacement = i16::try_from(target.cast_signed() - (jump.0 + 2).cast_signed()).unwrap_or(0); // the code is short
        self.0[jump.0..jump.0 + 2].copy_from_slice(&displacement.to_le_bytes());
    }

    /// Asks for the block at `esi`; the answer comes in `eax`.
    fn convert(&mut self, asks: Asks, pages: u32, attributes: u32) {
        self.emit(&[0x66, 0x89, 0xf3]); // mov ebx, esi
        self.emit(&[0x66, 0xb9]); // mov ecx, pages
        self.emit(&pages.to_le_bytes());
        self.emit(&[0x66, 0xba]); // mov edx, attributes
        self.emit(&attributes.to_le_bytes());
        self.emit(&[0x66, 0xb8]); // mov eax, KVM_HC_MAP_GPA_RANGE
        self.emit(&u32::try_from(HYPERCALL_MAP_GPA_RANGE).unwrap_or(0).to_le_bytes());
        match asks {
            Asks::ByHypercall => self.emit(&[0x0f, 0x01, 0xc1]), // vmcall
            Asks::ByPort => self.emit(&[0x66, 0xe7, CONVERT, 0x66, 0xe5, CONVERT]), // out CONVERT, eax; in eax, CONVERT
        }
    }
}
