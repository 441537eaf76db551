//! Whether a guest's hypercall arrives. KVM says that it can be an exit; whether the instruction gets so far, only trying
//! tells: KVM_PVM, which emulates, patches the instruction and begins anew for ever.
//!
//! So it is tried in a process of its own, which is ended when nothing comes.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kvm_bindings::{KVM_CAP_EXIT_HYPERCALL, KVM_X86_DEFAULT_VM, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use pageless::{FRAME_BYTES, Pool, Request};
use pageless_host::{HostMapping, HostMemory, ProofMethod, Vacant};
use pageless_kvm::{Guest, HYPERCALL_MAP_GPA_RANGE, Layout, SlotTable, Stage2, create_vm};

/// How long a hypercall may take to arrive: thousands of times what it takes.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether it arrives here. Where it cannot be tried, it does not.
pub(crate) fn hypercalls_arrive() -> bool {
    let trial = std::env::current_exe().and_then(|program| {
        Command::new(program).arg("--try-hypercall").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    });
    let Ok(mut trial) = trial else { return false };
    let until = Instant::now() + PATIENCE;
    loop {
        match trial.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => {
                let _ = trial.kill();
                let _ = trial.wait();
                return false;
            }
        }
    }
}

/// Lets KVM hand over `KVM_HC_MAP_GPA_RANGE`.
pub(crate) fn want_hypercalls(vm: &VmFd) -> Result<()> {
    let mut exits = kvm_enable_cap { cap: KVM_CAP_EXIT_HYPERCALL, ..kvm_enable_cap::default() };
    exits.args[0] = 1 << HYPERCALL_MAP_GPA_RANGE;
    Ok(vm.enable_cap(&exits)?)
}

/// Makes one hypercall from real mode. This process may not come back.
pub(crate) fn try_hypercall() -> Result<()> {
    let vm = Arc::new(create_vm(&Kvm::new()?, KVM_X86_DEFAULT_VM)?);
    want_hypercalls(&vm)?;
    let memory = HostMemory::builder().bytes(2 * FRAME_BYTES).proof(ProofMethod::ProcessUnmap).build()?;
    let pool = Pool::builder().backing(memory.clone()).build()?;
    let ram = pool.allocate(Request::bytes(2 * FRAME_BYTES).owner("trial"))?;
    let view = Arc::new(HostMapping::of(&memory, &ram)?);
    let host = Arc::new(HostMapping::of_with_vacant(&memory, &ram, Vacant::Scratch)?);
    let stage2 = Stage2::new(&SlotTable::new(vm.clone()), view.clone(), Layout::around(2 * FRAME_BYTES, 0..0)?)?;
    let guest = Guest::new(ram, [], Arc::new(stage2), host, [])?;
    guest.map(0..2 * FRAME_BYTES)?;
    view.write(0, &[0x0f, 0x01, 0xc1, 0xf4])?; // vmcall; hlt
    let mut vcpu = vm.create_vcpu(0)?;
    let (mut sregs, mut regs) = (vcpu.get_sregs()?, vcpu.get_regs()?);
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    (regs.rip, regs.rflags, regs.rax, regs.rbx, regs.rcx, regs.rdx) = (0, 2, HYPERCALL_MAP_GPA_RANGE, FRAME_BYTES, 1, 0);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)?;
    let exit = vcpu.run()?;
    ensure!(matches!(&exit, VcpuExit::Hypercall(call) if call.nr == HYPERCALL_MAP_GPA_RANGE), "{exit:?}");
    Ok(())
}
