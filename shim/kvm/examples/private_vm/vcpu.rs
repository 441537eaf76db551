//! A vCPU in long mode, and its exits: what is about memory goes to pageless, what the guest says to the [`Witness`].

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_MEMORY_EXIT_FLAG_PRIVATE, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::errno::Errno;
use pageless_kvm::{Answer, Guest, Handled};
use serde::Serialize;

use crate::guest::{ENOUGH, TABLES, Told};
use crate::machine::Machine;
use crate::witness::Witness;

/// A vCPU that makes no other exit for so long does not find its way.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the VMM is busy with other things before it answers a memory fault. The conversion that the touch met is over by
/// then, so what the guest meant and what it has really differ.
const LATE: Duration = Duration::from_millis(3);

/// How often `KVM_RUN` came back, and why.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub(crate) struct Exits {
    /// `KVM_EXIT_HYPERCALL`.
    pub(crate) hypercall: u64,
    /// `KVM_EXIT_MEMORY_FAULT` with `KVM_MEMORY_EXIT_FLAG_PRIVATE`.
    pub(crate) memory_fault_private: u64,
    /// `KVM_EXIT_MEMORY_FAULT` without it.
    pub(crate) memory_fault_shared: u64,
    /// EFAULT: a touch of shared memory while the host's address of it is not mapped. KVM does not say where.
    pub(crate) unmapped: u64,
    /// `KVM_EXIT_IO`.
    pub(crate) io: u64,
    /// `KVM_EXIT_HLT`.
    pub(crate) halt: u64,
}

/// A new vCPU with this number, which stands at `rip`.
pub(crate) fn create(machine: &Machine, number: u64, rip: u64) -> Result<VcpuFd> {
    let vcpu = machine.vm.vm.create_vcpu(number).context("KVM_CREATE_VCPU")?;
    vcpu.set_cpuid2(&machine.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut special = vcpu.get_sregs()?;
    // Flat segments, code in 64-bit mode: AMD64 volume 2, 4.8. Types: execute and read, accessed; read and write, accessed.
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..kvm_segment::default() };
    special.cs = kvm_segment { selector: 8, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: 16, type_: 0x3, db: 1, ..flat };
    (special.ds, special.es, special.ss) = (data, data, data);
    special.cr3 = TABLES;
    special.cr4 = 1 << 5; // PAE
    special.cr0 = 1 << 31 | 1 << 4 | 1; // PG, ET, PE
    special.efer = 1 << 10 | 1 << 8; // LMA, LME
    vcpu.set_sregs(&special)?;
    stand_at(&vcpu, rip, 0..0)?;
    Ok(vcpu)
}

/// Lets the vCPU go on at `rip`, with a range in rsi and rdi.
pub(crate) fn stand_at(vcpu: &VcpuFd, rip: u64, range: std::ops::Range<u64>) -> Result<()> {
    Ok(vcpu.set_regs(&kvm_regs { rip, rflags: 1 << 1, rsi: range.start, rdi: range.end, ..kvm_regs::default() })?)
}

/// Runs the vCPU until it rests.
pub(crate) fn run(vcpu: &mut VcpuFd, guest: &Guest, witness: &Witness<'_>) -> Result<Exits> {
    let mut exits = Exits::default();
    let mut heard = Instant::now();
    let mut said = None;
    loop {
        let mut exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) if error.errno() == Errno::EFAULT as i32 && heard.elapsed() < PATIENCE => {
                // Only a conversion takes shared memory away, and whoever converts maps what came of it.
                exits.unmapped += 1;
                std::thread::sleep(Duration::from_micros(200));
                continue;
            }
            Err(error) => bail!("KVM_RUN: {error} after {said:?} and {exits:?}"),
        };
        heard = Instant::now();
        let fault = match &exit {
            VcpuExit::MemoryFault { flags, .. } => {
                let private = flags & u64::from(KVM_MEMORY_EXIT_FLAG_PRIVATE) != 0;
                *(if private { &mut exits.memory_fault_private } else { &mut exits.memory_fault_shared }) += 1;
                std::thread::sleep(LATE);
                Some(private)
            }
            _ => None,
        };
        match &mut exit {
            VcpuExit::Hlt => {
                exits.halt += 1;
                return Ok(exits);
            }
            VcpuExit::IoOut(port, bytes) => {
                exits.io += 1;
                let told = Told::at(*port).with_context(|| format!("port {port:#x}"))?;
                said = Some(told);
                witness.hear(told, u32::from_le_bytes((*bytes).try_into().context("not 32 bits")?))?;
                continue;
            }
            VcpuExit::IoIn(ENOUGH, bytes) => {
                exits.io += 1;
                bytes.copy_from_slice(&u32::from(witness.has_seen_enough()).to_le_bytes());
                continue;
            }
            VcpuExit::Hypercall(_) => exits.hypercall += 1,
            _ => {}
        }
        match (guest.handle(&mut exit), fault) {
            (Handled::Resume, _) => {}
            (Handled::Converted { answer: Answer::Done { changed: true }, outcome: Some(Ok(_)) }, Some(to_private)) => {
                witness.implied(to_private);
            }
            (Handled::Converted { outcome, .. }, None) => witness.converted(outcome),
            (handled, _) => bail!("{exit:?} became {handled:?} after {said:?} and {exits:?}"),
        }
    }
}
