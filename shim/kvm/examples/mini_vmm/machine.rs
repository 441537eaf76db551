//! The machine: memory from a pool, vCPUs in threads, one device, and the loop that carries out what the vCPUs exit for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use pageless::{Convert, FRAME_BYTES, Lost, PfnRange, Shareability};
use pageless_host::pin::KernelPin;
use pageless_kvm::{Answer, Guest, GuestRam, HYPERCALL_MAP_GPA_RANGE, Handled, Request};
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};

use super::payload::{self, Asks};

/// Where the programs lie: in block 0, which stays shared, as firmware does. One page for each.
const CODE: u64 = 0x1000;
/// How long a vCPU may find memory missing without KVM saying which.
const PATIENCE: Duration = Duration::from_secs(5);

/// What happened, in figures.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) converted: AtomicU64,
    pub(crate) converting: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) lost_touches: AtomicU64,
    pub(crate) machine_checks: AtomicU64,
    pub(crate) doorbells: AtomicU64,
    pub(crate) device_reached: AtomicU64,
    pub(crate) device_refused: AtomicU64,
    pub(crate) neighbour_rounds: AtomicU64,
}

/// What is to be run.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// Length of the blocks that the guest converts, in bytes.
    pub(crate) block: u64,
    /// vCPUs that convert; one more is the neighbour.
    pub(crate) converters: u64,
    /// How often each converts its block there and back.
    pub(crate) rounds: u64,
    /// The round, counted down, in which the device keeps a pin of the first converter's block.
    pub(crate) pinned_round: Option<u64>,
    /// How the guest asks.
    pub(crate) asks: Asks,
}

impl Plan {
    /// Block 0 for the code; then one block for each converter and one to go on with.
    pub(crate) fn bytes(&self) -> u64 {
        self.block * (1 + 2 * self.converters)
    }

    fn own_block(&self, converter: u64) -> u64 {
        self.block * (1 + 2 * converter)
    }
}

/// The machine. vCPU threads and the device share it.
pub(crate) struct Machine {
    pub(crate) guest: Guest,
    pub(crate) memory: GuestRam,
    pub(crate) plan: Plan,
    pub(crate) figures: Figures,
    /// What the device holds a reference to although the guest took it back.
    pub(crate) pin: Mutex<Option<KernelPin>>,
    pub(crate) lost: Mutex<Vec<Lost>>,
    stop: AtomicBool,
}

impl Machine {
    pub(crate) fn new(guest: Guest, memory: GuestRam, plan: Plan) -> Self {
        let (figures, pin, lost) = (Figures::default(), Mutex::default(), Mutex::default());
        Self { guest, memory, plan, figures, pin, lost, stop: AtomicBool::new(false) }
    }

    /// Puts the programs into block 0, through the very interface that a boot loader of rust-vmm uses.
    pub(crate) fn load(&self) -> Result<()> {
        let (answer, outcome) = self.guest.convert(&Request { offsets: 0..self.plan.block, to: Shareability::Shared });
        ensure!(answer == Answer::Done { changed: true }, "block 0 was not shared: {outcome:?}");
        let pages = u32::try_from(self.plan.block / FRAME_BYTES)?;
        let converter = payload::converter(self.plan.asks, pages);
        self.memory.write_slice(&converter, GuestAddress(CODE)).context("loading the converters' program")?;
        self.memory.write_slice(&payload::neighbour(), GuestAddress(2 * CODE)).context("loading the neighbour's program")
    }

    /// Runs every vCPU to its end, with a device beside them that reaches for all of the guest's memory all the time.
    pub(crate) fn run(&self, vm: &VmFd) -> Result<Duration> {
        let mut vcpus = Vec::new();
        for number in 0..=self.plan.converters {
            vcpus.push(self.vcpu(vm, number).with_context(|| format!("vCPU {number}"))?);
        }
        let began = Instant::now();
        std::thread::scope(|scope| -> Result<()> {
            let neighbour = vcpus.pop().context("there is no vCPU")?;
            let neighbour = scope.spawn(move || self.run_vcpu(neighbour));
            let device = scope.spawn(|| self.reach_for_everything());
            let converters: Vec<_> = vcpus.into_iter().map(|vcpu| scope.spawn(move || self.run_vcpu(vcpu))).collect();
            let ended: Vec<Result<u64>> =
                converters.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("panicked"))).collect();
            self.stop.store(true, Relaxed);
            let rounds = neighbour.join().unwrap_or_else(|_| bail!("the neighbour panicked"))?;
            self.figures.neighbour_rounds.store(rounds, Relaxed);
            ensure!(device.join().is_ok(), "the device panicked");
            for (number, left) in ended.into_iter().enumerate() {
                let left = left.with_context(|| format!("vCPU {number}"))?;
                ensure!(left == 0, "vCPU {number} stopped with {left} of {} rounds left", self.plan.rounds);
            }
            Ok(())
        })?;
        Ok(began.elapsed())
    }

    /// A vCPU at the start of its program, in real mode with segments of 4 GiB.
    fn vcpu(&self, vm: &VmFd, number: u64) -> Result<VcpuFd> {
        let vcpu = vm.create_vcpu(number)?;
        let mut sregs = vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
            (segment.base, segment.limit, segment.g) = (0, u32::MAX, 1);
        }
        vcpu.set_sregs(&sregs)?;
        let mut regs = vcpu.get_regs()?;
        regs.rflags = 2; // bit 1 is always set
        if number < self.plan.converters {
            regs.rsi = self.plan.own_block(number);
            (regs.rip, regs.rdi, regs.rbp) = (CODE, regs.rsi + self.plan.block, self.plan.rounds);
        } else {
            let last = self.plan.own_block(self.plan.converters - 1);
            (regs.rip, regs.rsi, regs.rdi, regs.rbp) = (2 * CODE, self.plan.own_block(0), last, 0);
        }
        vcpu.set_regs(&regs)?;
        Ok(vcpu)
    }

    /// The loop of one vCPU. Answers `ebp` at its end.
    fn run_vcpu(&self, mut vcpu: VcpuFd) -> Result<u64> {
        let mut answer = 0; // of the last conversion that was asked for through the port
        let mut unsaid = Instant::now();
        loop {
            let began = Instant::now();
            let mut exit = match vcpu.run() {
                Ok(exit) => exit,
                Err(error) if error.errno() == libc_eintr() => continue,
                // Some KVMs do not say which memory was missing: never mapped, or being converted just now.
                Err(error) if error.errno() == nix::errno::Errno::EFAULT as i32 && unsaid.elapsed() < PATIENCE => {
                    let missing = self.guest.map_missing();
                    self.figures.faults.fetch_add(u64::from(missing.mapped > 0), Relaxed);
                    std::thread::sleep(missing.busy.unwrap_or(Duration::from_micros(200)));
                    continue;
                }
                // It touches what is lost for good. Where KVM names the place, it is a bus where nobody answers; where it does not,
                // all that is left is what a machine check does.
                Err(error) if error.errno() == nix::errno::Errno::EFAULT as i32 && !self.lost.lock().is_empty() => {
                    self.figures.machine_checks.fetch_add(1, Relaxed);
                    break;
                }
                Err(error) => bail!("KVM_RUN: {error}"),
            };
            unsaid = Instant::now();
            let port = match self.guest.handle(&mut exit) {
                Handled::Resume => {
                    self.figures.faults.fetch_add(1, Relaxed);
                    continue;
                }
                Handled::Converted { answer, outcome } => {
                    self.note(began, answer, outcome);
                    continue;
                }
                Handled::Lost { error, .. } if matches!(exit, VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => {
                    // As on a bus where nobody answers: writes vanish and reads are all ones.
                    tracing::debug!(%error, "a touch of lost memory");
                    if let VcpuExit::MmioRead(_, bytes) = exit {
                        bytes.fill(0xff);
                    }
                    self.figures.lost_touches.fetch_add(1, Relaxed);
                    continue;
                }
                Handled::Lost { gpa, error } => bail!("a touch of guest-physical {gpa:#x}: {error}"),
                Handled::NotMemory => match exit {
                    VcpuExit::Hlt => break,
                    VcpuExit::IoOut(port, _) => port,
                    VcpuExit::IoIn(port, bytes) => {
                        let value = if port == u16::from(payload::STOP) { u64::from(self.stop.load(Relaxed)) } else { answer };
                        bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(to, byte)| *to = byte);
                        continue;
                    }
                    VcpuExit::InternalError => match self.guest.handle_unfetched(&vcpu) {
                        Handled::Resume => continue,
                        other => bail!("KVM could not go on: {other:?}"),
                    },
                    other => bail!("an exit that nobody expected: {other:?}"),
                },
            };
            let regs = vcpu.get_regs()?;
            match u8::try_from(port) {
                Ok(payload::CONVERT) if regs.rax == HYPERCALL_MAP_GPA_RANGE => {
                    let began = Instant::now();
                    let (told, outcome) = self.guest.map_gpa_range(regs.rbx, regs.rcx, regs.rdx);
                    answer = told.hypercall();
                    self.note(began, told, outcome);
                }
                Ok(payload::DOORBELL) => self.serve(regs.rsi, regs.rbp)?,
                Ok(payload::LOST) => {
                    self.figures.refused.fetch_add(1, Relaxed);
                }
                _ => bail!("the guest found something wrong in round {}: eax {:#x}, esi {:#x}", regs.rbp, regs.rax, regs.rsi),
            }
        }
        Ok(vcpu.get_regs()?.rbp)
    }

    fn note(&self, began: Instant, answer: Answer, outcome: Option<Result<pageless::Converted, Convert>>) {
        if let Answer::Done { .. } = answer {
            let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.figures.converting.fetch_add(took, Relaxed);
            self.figures.converted.fetch_add(1, Relaxed);
        }
        if let Some(Err(Convert::Torn { lost, .. })) = outcome {
            self.lost.lock().extend(lost);
        }
    }

    /// The device: reads the message, replies, and in one round keeps a reference to the page, as a DMA engine that was not
    /// told to stop.
    fn serve(&self, block: u64, round: u64) -> Result<()> {
        let message: u32 = self.memory.read_obj(GuestAddress(block)).context("the device reads the message")?;
        ensure!(u64::from(message) == round, "the device read {message} in round {round}");
        self.memory.write_obj(!message, GuestAddress(block + 4)).context("the device replies")?;
        self.figures.doorbells.fetch_add(1, Relaxed);
        if self.plan.pinned_round == Some(round) && block == self.plan.own_block(0) {
            let offsets = self.guest.stage2().offsets(block, 64)?;
            *self.pin.lock() = Some(KernelPin::vmsplice(self.guest.host(), offsets.start, 64)?);
        }
        Ok(())
    }

    /// A device that nobody controls: it writes into every block, private or shared, until the guest is done. What is not shared
    /// at that moment must be an error, and never a fault.
    fn reach_for_everything(&self) {
        let mut at = 0;
        while !self.stop.load(Relaxed) {
            at = (at + self.plan.block) % self.plan.bytes();
            let reached = self.memory.write_obj(at, GuestAddress(at + 0x800)).is_ok();
            let figure = if reached { &self.figures.device_reached } else { &self.figures.device_refused };
            figure.fetch_add(1, Relaxed);
            std::thread::yield_now();
        }
    }

    /// The frames that were lost, as runs.
    pub(crate) fn lost_frames(&self) -> Vec<PfnRange> {
        self.lost.lock().iter().map(Lost::frames).collect()
    }
}

/// A signal came: nothing has happened.
const fn libc_eintr() -> i32 {
    nix::errno::Errno::EINTR as i32
}
