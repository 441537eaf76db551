//! QEMU, which nobody here wrote, runs a guest on frames that pageless lends it by their physical address.

use std::fs;

use pageless_e2e::{Initramfs, Missing, Tree, or_skip};
use serde_json::Value;

use crate::inside::{PATIENCE, Parts, WINDOW, WITHOUT_PAGES, pack_program, program_in};

/// Guest-physical addresses in 2 MiB that the inner kernel leaves alone: what its guest writes, and what it reads.
const WRITTEN: u64 = 0x600_0000;
const READ: u64 = 0x610_0000;

/// The guest in the guest: writes a word at a guest-physical address, and says what it finds at another.
const INNERMOST: &str = r#"
echo "innermost runs $(uname -r) with $(awk '/MemTotal/ { print $2 }' /proc/meminfo) kB"
devmem WRITTEN 32 0x1de5f00d
echo "innermost reads $(devmem READ 32)"
"#;

/// What is lent the memory: stock QEMU, with words of the loan in its arguments, and a look at the memory before and after.
const BORROWER: &str = r#"
echo "lent: $PAGELESS_PATH $PAGELESS_OFFSET $PAGELESS_BYTES"
devmem $((PAGELESS_OFFSET + READ)) 32 0xcafe0042
QEMU -L /firmware -nodefaults -no-user-config -display none \
    -serial stdio -no-reboot -accel kvm -cpu host -machine q35,memory-backend=m0 -m 256M \
    -object "$1" -kernel /inner/vmlinuz -initrd /inner/initramfs -append 'console=ttyS0 panic=-1 quiet memmap=2M$0x6000000'
echo "the inner machine ended: $?"
echo "at the physical address: $(devmem $((PAGELESS_OFFSET + WRITTEN)) 32)"
"#;

const SCRIPT: &str = r#"
for module in /modules/*; do insmod $module || echo "no $module"; done
mount -t tmpfs shm /tmp
pageless lend --window WINDOW --memory 256M --json -- sh /borrower memory-backend-file,id=m0,mem-path={path},offset={offset},size={bytes},share=on \
    2>/tmp/account
echo "exit code: $?"
cat /tmp/account
echo "account: $(tail -n 1 /tmp/account)"
offset=$(sed -n 's/.*"offset":\([0-9]*\).*/\1/p' /tmp/account)
echo "left at the physical address: $(devmem $((offset + WRITTEN)) 32)"
echo "bytes that are not zero: $(dd if=/dev/mem bs=1M skip=$((offset / 1048576)) count=256 2>/dev/null | tr -d '\0' | wc -c)"
pageless lend --window WINDOW --ledger /tmp/ledger -- sh -c 'echo "the orphan: $$"; exec sleep 1000' 2>/tmp/killed & lender=$!
while [ ! -s /tmp/ledger ] || ! grep -q sleep /proc/[0-9]*/comm; do sleep 1; done
kill -9 $lender
pageless lend --window WINDOW --ledger /tmp/ledger --memory 4K -- echo "lent it again" 2>/tmp/again
echo "after a killed lender: $? $(tr '\n' ' ' </tmp/again)"
"#;

fn script(text: &str) -> String {
    text.replace("WRITTEN", &format!("{WRITTEN:#x}")).replace("READ", &format!("{READ:#x}")).replace("WINDOW", WINDOW)
}

#[test]
fn stock_qemu_boots_linux_on_frames_that_it_was_lent() {
    let Some((parts, initramfs)) = or_skip("stock_qemu_boots_linux_on_frames_that_it_was_lent", packed()) else { return };
    let mut machine = parts.boot("lent", &WITHOUT_PAGES, initramfs);
    let mut said = |what: &str| machine.console().wait_for(what, PATIENCE).unwrap().trim().to_owned();

    let lent = said("lent:");
    let words: Vec<&str> = lent.split_whitespace().collect();
    assert_eq!((words[0], words[2]), ("/dev/mem", "268435456"));
    let offset: u64 = words[1].parse().unwrap();
    assert!((1 << 30..(1 << 30) + (256 << 20) + 1).contains(&offset) && offset.is_multiple_of(2 << 20), "{offset:#x}");
    assert!(said("innermost runs").starts_with(parts.kernel.release()));
    assert_eq!(said("innermost reads"), "0xCAFE0042", "what lay at the physical address before it booted");
    assert_eq!(said("the inner machine ended:"), "0");
    assert_eq!(said("at the physical address:"), "0x1DE5F00D", "what the guest wrote at its own address {WRITTEN:#x}");

    assert_eq!(said("exit code:"), "0");
    let account: Value = serde_json::from_str(&said("account:")).unwrap();
    assert_eq!((&account["offset"], &account["pfn"]), (&offset.into(), &(offset / 4096).into()));
    assert_eq!((&account["frames"], &account["proven_frames"]), (&65_536.into(), &65_536.into()));
    assert_eq!((&account["bytes_checked"], &account["stale_bytes"]), (&(256_u64 << 20).into(), &0.into()));
    assert_eq!(said("left at the physical address:"), "0x00000000");
    assert_eq!(said("bytes that are not zero:"), "0", "seen by another opener of /dev/mem");

    let refused = said("after a killed lender:");
    assert!(
        refused.starts_with("1 ") && refused.contains("0 of 1G, 0 of 2M, 0 of 4K"),
        "its command still has all of the window: {refused}"
    );
    assert!(machine.wait(PATIENCE).unwrap().success());
}

/// The archive with QEMU, KVM's modules, and the kernel and archive of the guest in the guest.
fn packed() -> Result<(Parts, Initramfs), Missing> {
    let parts = Parts::fetch()?;
    let mut initramfs = parts.initramfs(&script(SCRIPT))?;
    initramfs.modules(&parts.kernel.modules(&["kvm_amd"])?)?;
    pack_program(&mut initramfs, parts.qemu.tree(), "usr/bin/qemu-system-x86_64", "qemu")?;
    initramfs.file("borrower", 0o644, script(BORROWER).replace("QEMU", &program_in("qemu")).as_bytes())?;
    let inner = Initramfs::with_busybox(&parts.debian, &script(INNERMOST))?;
    initramfs.file("inner/initramfs", 0o644, &inner.finish()?)?;
    initramfs.file("inner/vmlinuz", 0o644, &fs::read(parts.kernel.image()?)?)?;
    pack_firmware(parts.qemu.tree(), &mut initramfs)?;
    Ok((parts, initramfs))
}

/// The firmware of a PC without a display.
fn pack_firmware(tree: &Tree, initramfs: &mut Initramfs) -> Result<(), Missing> {
    for name in ["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin"] {
        let found = ["usr/share/qemu", "usr/share/seabios"].iter().find_map(|folder| tree.file(&format!("{folder}/{name}")).ok());
        let file = found.ok_or_else(|| Missing::NoFile(name.to_owned()))?;
        initramfs.file(&format!("firmware/{name}"), 0o644, &fs::read(file)?)?;
    }
    Ok(())
}
