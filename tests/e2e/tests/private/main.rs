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

/// What the console says when the command succeeded.
const ENDED: &str = "as it must be, all of it";
/// The whole of it takes about ten seconds on an idle machine.
const TIME: Duration = Duration::from_secs(180);

/// What the machine is. SeaBIOS lists one processor for each socket. An emulated clock cannot be measured reliably on a busy
/// host, and a KVM that does not know its frequency never enters a guest: so the kernel is told one, and any will do.
const MACHINE: &str = "-M pc -accel tcg,thread=multi -cpu max,+svm -smp 2,sockets=2 -m 1024 -no-reboot";
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 tsc_early_khz=1000000";

#[test]
fn a_guest_converts_memory_that_the_host_cannot_reach_otherwise() {
    let Some(said) = boot("private and shared for real", "private_vm", "private_vm") else { return };
    let story = said.lines().find_map(|line| line.split_once("story ")).unwrap_or_else(|| panic!("no story in {said}"));
    let told: Value = serde_json::from_str(story.1).unwrap();
    let story: Story = serde_json::from_value(told.clone()).unwrap_or_else(|error| panic!("{error}: {told:#}"));
    println!("{told:#}"); // shown if something does not hold
    story.holds();
}

/// This kernel's KVM answers a touch of memory that is not mapped with a bare EFAULT.
#[test]
fn the_small_vmm_goes_on_where_kvm_does_not_say_which_memory_was_missing() {
    let command = "mini_vmm --backing memfd --rounds 10";
    let Some(said) = boot("the small VMM on an emulated KVM", "mini_vmm", command) else { return };
    assert!(said.contains("memfd: all as it must be"), "{said}");
    assert!(said.contains("lost while the guest went on"), "{said}");
}

/// Boots the kernel with one example of `shim/kvm` in it, runs the command, and answers what the console said; or nothing where
/// something is missing.
fn boot(test: &str, example: &str, command: &str) -> Option<String> {
    let debian = or_skip(test, Debian::beside(env!("CARGO_TARGET_TMPDIR")))?;
    let qemu = or_skip(test, Qemu::of(&debian))?;
    let kernel = match BuiltKernel::of(&debian, include_str!("kernel.config")) {
        Err(NotBuilt::Missing(why)) => {
            skip(test, &why.to_string());
            return None;
        }
        kernel => kernel.unwrap_or_else(|why| panic!("{why}")),
    };
    // Without ACPI the machine ends by a reboot that QEMU does not follow.
    let script = format!("{command} && echo {ENDED} || echo {command} ended with $?\nreboot -f");
    let mut initramfs = or_skip(test, Initramfs::with_busybox(&debian, &script))?;
    or_skip(test, initramfs.program(example, built(example).to_str().unwrap(), qemu.tree()))?;
    let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{example}.cpio"));
    std::fs::write(&archive, initramfs.finish().unwrap()).unwrap();

    let machine = or_skip(test, qemu.machine())?.words(MACHINE).word("-append").word(COMMAND_LINE);
    let machine = machine.word("-kernel").word(kernel.image().to_str().unwrap());
    let mut machine = machine.word("-initrd").word(archive.to_str().unwrap()).start().unwrap();
    let status = machine.wait(TIME).unwrap();
    let said = machine.console().transcript();
    assert!(status.success(), "{status}: {said}");
    assert!(said.contains(ENDED), "{said}");
    Some(said)
}

/// The example, built as every other program of the workspace.
fn built(example: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "pageless-kvm", "--example", example, "--target-dir"]).arg(target);
    assert!(cargo.status().unwrap().success(), "{example} does not build");
    target.join("debug/examples").join(example)
}
