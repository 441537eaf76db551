//! QEMU as a client that nobody here wrote.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use pageless_e2e::{Debian, Initramfs, Kernel, Missing, Qemu, Suite, or_skip};

fn fetched() -> Result<(Qemu, Kernel, Vec<u8>), Missing> {
    let debian = Debian::beside(env!("CARGO_TARGET_TMPDIR"))?;
    let initramfs = Initramfs::with_busybox(&debian, "echo booted $(uname -r)\nread line\necho heard $line")?;
    Ok((Qemu::of(&debian)?, Kernel::cloud(&debian, Suite::Release)?, initramfs.finish()?))
}

#[test]
fn a_stock_kernel_boots_to_user_space_and_hears_its_console() {
    let Some((qemu, kernel, initramfs)) = or_skip("a_stock_kernel_boots_to_user_space", fetched()) else { return };
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boots.cpio");
    std::fs::write(&file, initramfs).unwrap();
    let machine = qemu.machine().unwrap().words("-accel tcg -cpu max -m 512M -no-reboot -kernel");
    let machine = machine.word(kernel.image().unwrap().display().to_string()).words("-initrd").word(file.display().to_string());
    let mut machine = machine.words("-append").word("console=ttyS0 panic=-1 quiet").start().unwrap();
    assert_eq!(machine.console().wait_for("booted ", Duration::from_secs(60)).unwrap(), kernel.release());
    machine.console().send("the suite").unwrap();
    machine.console().wait_for("heard the suite", Duration::from_secs(10)).unwrap();
    assert!(machine.wait(Duration::from_secs(10)).unwrap().success());
}
