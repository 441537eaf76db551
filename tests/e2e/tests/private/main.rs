//! Private and shared for real: a VM whose private memory nobody but its guest can reach, on KVM.
//!
//! Hardware that keeps memory private is rare, and no kernel of Debian's lets KVM do without (`CONFIG_KVM_SW_PROTECTED_VM`).
//! So a kernel that does is built from Debian's source, once, and booted in an emulated machine with SVM. In it runs a small
//! VMM on a pool, the example `private_vm` of `shim/kvm`, which prints what the guest and the host saw; what they should have
//! seen is said here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod story;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pageless_e2e::{BuiltKernel, Debian, Initramfs, NotBuilt, Qemu, or_skip, skip};
use serde_json::Value;

use story::Story;

const TEST: &str = "private and shared for real";
/// The whole of it takes about ten seconds on an idle machine.
const TIME: Duration = Duration::from_secs(180);

/// What the machine is. SeaBIOS lists one processor for each socket. An emulated clock cannot be measured reliably on a busy
/// host, and a KVM that does not know its frequency never enters a guest: so the kernel is told one, and any will do.
const MACHINE: &str = "-M pc -accel tcg,thread=multi -cpu max,+svm -smp 2,sockets=2 -m 1024 -no-reboot";
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 tsc_early_khz=1000000";

/// Without ACPI the machine ends by a reboot that QEMU does not follow.
const SCRIPT: &str = "private_vm || echo private_vm ended with $?
    reboot -f";

#[test]
fn a_guest_converts_memory_that_the_host_cannot_reach_otherwise() {
    let Some(told) = boot() else { return };
    let story: Story = serde_json::from_value(told.clone()).unwrap_or_else(|error| panic!("{error}: {told:#}"));
    println!("{told:#}"); // shown if something does not hold
    story.holds();
}

/// What `private_vm` printed, or nothing where something is missing.
fn boot() -> Option<Value> {
    let debian = or_skip(TEST, Debian::beside(env!("CARGO_TARGET_TMPDIR")))?;
    let qemu = or_skip(TEST, Qemu::of(&debian))?;
    let kernel = match BuiltKernel::of(&debian, include_str!("kernel.config")) {
        Err(NotBuilt::Missing(why)) => {
            skip(TEST, &why.to_string());
            return None;
        }
        kernel => kernel.unwrap_or_else(|why| panic!("{why}")),
    };
    let mut initramfs = or_skip(TEST, Initramfs::with_busybox(&debian, SCRIPT))?;
    or_skip(TEST, initramfs.program("private_vm", vmm().to_str().unwrap(), qemu.tree()))?;
    let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join("private.cpio");
    std::fs::write(&archive, initramfs.finish().unwrap()).unwrap();

    let machine = or_skip(TEST, qemu.machine())?.words(MACHINE).word("-append").word(COMMAND_LINE);
    let machine = machine.word("-kernel").word(kernel.image().to_str().unwrap());
    let mut machine = machine.word("-initrd").word(archive.to_str().unwrap()).start().unwrap();
    let story = machine.console().wait_for("story ", TIME).unwrap_or_else(|trouble| panic!("{trouble}"));
    let status = machine.wait(TIME).unwrap();
    assert!(status.success(), "{status}");
    let said = machine.console().transcript();
    assert!(!said.contains("private_vm ended with"), "{said}");
    Some(serde_json::from_str(&story).unwrap())
}

/// The VMM, built as every other program of the workspace.
fn vmm() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "pageless-kvm", "--example", "private_vm", "--target-dir"]).arg(target);
    assert!(cargo.status().unwrap().success(), "the VMM does not build");
    target.join("debug/examples/private_vm")
}
