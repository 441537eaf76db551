//! The machine with memory set aside: 2 GiB, of which 512 MiB from 1 GiB on have no `struct page`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pageless_e2e::{Debian, Initramfs, Kernel, Machine, Missing, Qemu};

/// The window that the kernel's command line sets aside, as `--window` takes it.
pub(crate) const WINDOW: &str = "/dev/mem@0x40000000+512M";
const APPEND: &str = "console=ttyS0 panic=-1 quiet memmap=512M$1G";
/// The least kernel: the facts about memory without struct pages were taken on it.
const KERNEL: &str = "6.12";
/// The longest that anything in the guest may take: TCG is slow, and its host may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// All that it takes to boot one.
pub(crate) struct Parts {
    pub(crate) qemu: Qemu,
    pub(crate) kernel: Kernel,
    pub(crate) debian: Debian,
}

impl Parts {
    /// Fetches Debian's QEMU and kernel, unless that has been done before.
    pub(crate) fn fetch() -> Result<Self, Missing> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(Missing::NotDebian("the machine is an x86-64 one, and pageless is built for its host"));
        }
        let debian = Debian::beside(env!("CARGO_TARGET_TMPDIR"))?;
        let suite = debian.suite_with("linux-image-cloud-amd64", KERNEL)?;
        Ok(Self { qemu: Qemu::of(&debian)?, kernel: Kernel::cloud(&debian, suite)?, debian })
    }

    /// An archive with `pageless` on the path and this script for the guest.
    pub(crate) fn initramfs(&self, script: &str) -> Result<Initramfs, Missing> {
        let mut initramfs = Initramfs::with_busybox(&self.debian, script)?;
        initramfs.file("bin/pageless", 0o755, &fs::read(static_binary(self.debian.folder()))?)?;
        Ok(initramfs)
    }

    /// Boots. The processor has SVM, so that the guest can have guests.
    pub(crate) fn boot(&self, name: &str, initramfs: Initramfs) -> Machine {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.cpio"));
        fs::write(&file, initramfs.finish().unwrap()).unwrap();
        let machine = self.qemu.machine().unwrap().words("-accel tcg -cpu max,+svm -m 2G -no-reboot -kernel");
        let machine = machine.word(self.kernel.image().unwrap().display().to_string());
        let machine = machine.words("-initrd").word(file.display().to_string()).words("-append").word(APPEND);
        machine.start().unwrap()
    }
}

/// `pageless`, linked statically, since the guest has no libraries. In a folder of its own, so that the workspace is not built
/// anew for its flags; without link-time optimisation, which takes longer than it saves.
fn static_binary(folder: &Path) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let folder = folder.join("static");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--package", "pageless-cli", "--target", TARGET, "--target-dir"]).arg(&folder);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env("RUSTFLAGS", "-C target-feature=+crt-static");
    for (setting, value) in [("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "false"), ("STRIP", "true")] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }
    assert!(cargo.status().unwrap().success(), "pageless does not build statically");
    folder.join(TARGET).join("release/pageless")
}
