//! A small VMM on pageless, to be read in ten minutes.
//!
//! It boots a guest of a few dozen instructions on this host's KVM, from a pool's memory, once on every backing that the
//! kernel offers. Two vCPUs share a block with a device, get a reply, and take the block back, while a third touches the same
//! memory and a device without manners writes wherever it likes. In one round the device keeps a page: the kernel then does
//! not prove it unreachable, the guest is told so and goes on with other memory, and once the device lets go the pool gets
//! the frames back.
//!
//! Read `payload` (what the guest runs), `machine` (vCPUs, exits, the device), then `play` here. `ground` is about this host's
//! memory, `trial` about whether a hypercall arrives here. Exit code 0 means that everything which was run came out as it must.

mod ground;
mod machine;
mod payload;
mod trial;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use kvm_bindings::{KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM};
use kvm_ioctls::{Kvm, VmFd};
use pageless::{Mapping, Order, Pool, Request};
use pageless_host::{
    FileMemory, GuestMemfd, HostBacking, HostMapping, HostMemory, PageSize, ProofMethod, SealWitness, SharedSide, Vacant,
};
use pageless_kvm::{Binding, Guest, Layout, PC_HOLE, Privacy, SlotTable, Stage2, create_vm, descriptor_of, guest_ram, probe};

use ground::{Ground, Loan};
use machine::{Machine, Plan};
use payload::Asks;

/// A small VMM on pageless.
#[derive(Parser)]
pub(crate) struct Args {
    /// Only this backing; all of them unless told.
    #[arg(long)]
    backing: Option<Ground>,
    /// A software-protected VM: private memory by attributes, hypercalls, memory faults. Its backing is guest_memfd.
    #[arg(long)]
    protected: bool,
    /// How the guest asks for a conversion. Unless told: by hypercall where it arrives, and through a port elsewhere.
    #[arg(long)]
    asks: Option<Asks>,
    /// Make one hypercall and tell by the exit code whether it arrived.
    #[arg(long, hide = true)]
    try_hypercall: bool,
    /// How often each vCPU converts its block there and back.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..1_000_000))]
    rounds: u32,
}

/// Only on 1 GiB pages, where each conversion zeroes 1 GiB.
const ROUNDS_OF_GIBS: u64 = 3;

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.try_hypercall {
        return trial::try_hypercall();
    }
    match probe() {
        Ok(offer) => print!("{offer}"),
        Err(why) => {
            println!("skipped: everything: {why}");
            return Ok(());
        }
    }
    let arrives = || if args.protected || trial::hypercalls_arrive() { Asks::ByHypercall } else { Asks::ByPort };
    let asks = args.asks.unwrap_or_else(arrives);
    println!("conversions are asked for {asks}");
    args.asks = Some(asks);
    let mut failed = 0;
    for (ground, outcome) in outcomes(&args) {
        match outcome {
            Ok(Outcome::AsItMust) => println!("{ground}: all as it must be"),
            Ok(Outcome::Skipped(why)) => println!("skipped: {ground}: {why}"),
            Err(error) => {
                println!("FAILED: {ground}: {error:#}");
                failed += 1;
            }
        }
    }
    if failed > 0 { bail!("{failed} backings failed") } else { Ok(()) }
}

/// What became of the guest on one backing.
pub(crate) enum Outcome {
    AsItMust,
    Skipped(String),
}

/// Runs the guest on every backing that was asked for, one after another.
pub(crate) fn outcomes(args: &Args) -> impl Iterator<Item = (Ground, Result<Outcome>)> + '_ {
    let grounds = match (args.protected, args.backing) {
        (true, _) => vec![Ground::GuestMemfd],
        (false, Some(one)) => vec![one],
        (false, None) => Ground::ALL.to_vec(),
    };
    grounds.into_iter().map(|ground| (ground, run(ground, args)))
}

/// Runs the guest on one backing, if this host has it.
fn run(ground: Ground, args: &Args) -> Result<Outcome> {
    match prepare(ground, args) {
        Ok(_loan) => play(ground, args).map(|()| Outcome::AsItMust),
        Err(why) => Ok(Outcome::Skipped(format!("{why:#}"))),
    }
}

fn plan(ground: Ground, args: &Args) -> Plan {
    let asks = args.asks.unwrap_or(Asks::ByPort);
    let pinned_round = ground.takes_seals().then_some(2);
    match ground.page() {
        PageSize::Huge1G => {
            Plan { block: Order::GIB1.bytes(), converters: 1, rounds: ROUNDS_OF_GIBS.min(args.rounds.into()), pinned_round, asks }
        }
        _ => Plan { block: Order::MIB2.bytes(), converters: 2, rounds: args.rounds.into(), pinned_round, asks },
    }
}

/// Whether this host has the memory, and what it had to lend for it.
fn prepare(ground: Ground, args: &Args) -> Result<Loan> {
    let vm_type = if args.protected { KVM_X86_SW_PROTECTED_VM } else { KVM_X86_DEFAULT_VM };
    let offer = probe()?;
    let vm = offer.of_type(vm_type).with_context(|| format!("KVM makes no VM of type {vm_type} here"))?;
    match ground {
        Ground::Hugetlb2M | Ground::Hugetlb1G => ground::huge_pages(ground.page(), plan(ground, args).bytes()),
        Ground::MemfdThp => ground::transparent_huge_pages(),
        Ground::GuestMemfd if !vm.guest_memfd => bail!("this KVM binds no guest_memfd to a slot"),
        Ground::GuestMemfd if args.protected && !vm.attributes => bail!("this KVM has no memory attributes"),
        Ground::GuestMemfd if !args.protected && vm.guest_memfd_flags & 3 != 3 => bail!("this KVM maps no guest_memfd"),
        Ground::Memfd | Ground::File | Ground::GuestMemfd => Ok(Loan::Nothing),
    }
}

/// Makes the VM and its memory, and runs the guest on them.
fn play(ground: Ground, args: &Args) -> Result<()> {
    let kvm = Kvm::new()?;
    let vm = Arc::new(create_vm(&kvm, if args.protected { KVM_X86_SW_PROTECTED_VM } else { KVM_X86_DEFAULT_VM })?);
    vm.set_tss_address(0xfffb_d000)?; // three pages in the PC's hole, for real mode on older Intel processors
    let plan = plan(ground, args);
    if plan.asks == Asks::ByHypercall {
        trial::want_hypercalls(&vm).context("KVM_CAP_EXIT_HYPERCALL")?;
    }
    let bytes = plan.bytes();
    match ground {
        Ground::Memfd | Ground::MemfdThp | Ground::Hugetlb2M | Ground::Hugetlb1G => {
            let builder =
                HostMemory::builder().bytes(bytes).page(ground.page()).segment_bytes(plan.block).proof(ProofMethod::Seal);
            let builder = if ground == Ground::MemfdThp { builder.transparent_huge_pages() } else { builder };
            let memory = builder.build()?;
            let witness = SealWitness::of(&memory).context("memory without a seal")?;
            boot(&vm, &memory, plan, Some(witness), None)
        }
        Ground::File => {
            let directory = tempfile::tempdir()?;
            let memory = FileMemory::at(directory.path().join("memory")).bytes(bytes).build()?;
            println!("  no conversion fails here: a plain file takes no seals, so nobody can be asked about pins");
            boot(&vm, &memory, plan, None, None)
        }
        Ground::GuestMemfd => {
            let side = if args.protected { SharedSide::Beside } else { SharedSide::InPlace };
            println!("  no conversion fails here: a guest_memfd takes no seals, so nobody can be asked about pins");
            let memory = GuestMemfd::builder().bytes(bytes).shared_side(side).build(descriptor_of(&vm))?;
            boot(&vm, &memory, plan, None, Some(&memory))
        }
    }
}

fn boot<B: HostBacking + Clone + 'static>(
    vm: &Arc<VmFd>,
    memory: &B,
    plan: Plan,
    witness: Option<Arc<SealWitness>>,
    bound: Option<&GuestMemfd>,
) -> Result<()> {
    let pool = Pool::builder().backing(memory.clone()).build()?;
    let order = Order::largest_fit(pageless::Pfn::new(0), plan.block / pageless::FRAME_BYTES);
    let ram = pool.allocate(Request::bytes(plan.bytes()).order(order).owner("mini-vmm"))?;
    let layout = Layout::around(plan.bytes(), PC_HOLE)?;

    // Two views of the same frames: one that only the guest reaches, one for the host's devices.
    let view = Arc::new(HostMapping::of(memory, &ram)?);
    let host = Arc::new(HostMapping::of_with_vacant(memory, &ram, Vacant::Scratch)?);
    let slots = SlotTable::new(vm.clone());
    let stage2 = match bound {
        None => Stage2::new(&slots, view, layout.clone())?,
        Some(memory) => {
            let privacy = match memory.shared_side() {
                SharedSide::InPlace => Privacy::InPlace,
                SharedSide::Beside => Privacy::Attributes { faults_convert: false },
            };
            Stage2::bound(&slots, view, layout.clone(), &bindings(memory, &ram)?, privacy)?
        }
    };
    let last = witness.map(|witness| ("pins".to_owned(), witness as Arc<dyn Mapping>));
    let mut guest = Guest::new(ram, [], Arc::new(stage2), host, last)?;
    if let Some(memory) = bound.filter(|memory| memory.shared_side() == SharedSide::Beside) {
        guest = guest.shared_beside(memory.clone());
        guest.map(0..plan.bytes())?; // says which memory is private
    }
    let memory = guest_ram(guest.host(), &layout)?;
    let machine = Machine::new(guest, memory, plan);
    machine.load()?;
    let took = machine.run(vm)?;
    told(&machine, took);
    let (heard, sent) = (machine.figures.doorbells.load(Relaxed), plan.rounds * plan.converters);
    ensure!(heard == sent, "{sent} messages were sent and {heard} arrived");
    the_pinned_block(&pool, &machine)?;
    the_end(&pool, machine)
}

/// Where each frame lies in the guest_memfd.
fn bindings(memory: &GuestMemfd, ram: &pageless::Allocation) -> Result<Vec<Binding>> {
    let bind = |extent: pageless::Extent| {
        let file = memory.private_side(extent.frames.start()).context("a frame without a guest_memfd")?;
        Ok(Binding { offset: extent.offset, bytes: extent.frames.bytes(), file })
    };
    ram.extents().into_iter().map(bind).collect()
}

/// What happened, in figures of this run.
fn told(machine: &Machine, took: std::time::Duration) {
    let figure = |figure: &std::sync::atomic::AtomicU64| figure.load(Relaxed);
    let figures = &machine.figures;
    let done = figure(&figures.converted);
    println!(
        "  {} conversions of {} MiB by {} vCPUs in {took:.1?}, {:.1} us each; {} touches mapped on demand, {} by a neighbour",
        done,
        machine.plan.block >> 20,
        machine.plan.converters,
        figure(&figures.converting) as f64 / 1e3 / done.max(1) as f64,
        figure(&figures.faults),
        figure(&figures.neighbour_rounds),
    );
    println!(
        "  a device wrote {} times where memory was shared, and was refused {} times where it was not",
        figure(&figures.device_reached),
        figure(&figures.device_refused),
    );
    if figure(&figures.machine_checks) > 0 {
        println!("  a vCPU went on touching what was lost, and KVM did not say where: it was stopped");
    }
}

/// The block whose page the device kept: lost when the guest took it back, and back once the device let go.
fn the_pinned_block(pool: &Pool, machine: &Machine) -> Result<()> {
    let frames = machine.lost_frames();
    let Some(pin) = machine.pin.lock().take() else {
        ensure!(frames.is_empty(), "{} runs were lost and nobody held them", frames.len());
        return Ok(());
    };
    for lost in machine.lost.lock().iter() {
        println!("  lost while the guest went on: {lost}");
    }
    ensure!(frames.len() == 1 && frames[0].bytes() == machine.plan.block, "one block was pinned, {} runs lost", frames.len());
    ensure!(machine.figures.refused.load(Relaxed) == 1, "the guest was not told");
    let before = pool.retry(frames[0]);
    ensure!(before.recovered.is_empty(), "recovered although a page was pinned");
    let kept = pin.drain()?;
    ensure!(kept.len() == 64, "the pin held {} bytes", kept.len());
    let after = pool.retry(frames[0]);
    let back: u64 = after.recovered.runs().iter().map(|run| run.bytes()).sum();
    ensure!(back == machine.plan.block, "{back} bytes recovered of {}", machine.plan.block);
    println!("  recovered after the device let go: {} MiB", back >> 20);
    Ok(())
}

/// Everything goes back, and every frame is free again.
fn the_end(pool: &Pool, machine: Machine) -> Result<()> {
    let stage2 = Arc::clone(machine.guest.stage2());
    if stage2.privacy() == Privacy::InPlace {
        drop(machine);
        // A slot still binds the file, and so the guest could still reach it: that is no proof.
        let stuck = pool.reclaim();
        ensure!(!stuck.lost.is_empty(), "reclaimed although the slots still bind the guest_memfd");
        println!("  not reclaimed: {}", stuck.lost[0]);
        stage2.remove_slots()?;
        stuck.lost.iter().for_each(|lost| drop(pool.retry(lost.frames())));
    } else {
        drop(machine);
    }
    pool.reclaim();
    let stats = pool.stats();
    ensure!(stats.free == stats.frames, "{} of {} frames are free at the end", stats.free, stats.frames);
    let verified = pool.verify();
    println!("  released and reclaimed: {} of {} frames free; {verified:?}", stats.free, stats.frames);
    Ok(())
}
