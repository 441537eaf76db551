//! The machine with memory set aside: which part, and with what it boots.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pageless_e2e::{Debian, Initramfs, Kernel, Machine, Missing, Qemu, Tree};

/// A machine's memory, and what its kernel's command line sets aside of it.
pub(crate) struct SetAside {
    memory: &'static str,
    memmap: &'static str,
}

/// Without struct pages: 512 MiB from 1 GiB on.
pub(crate) const WITHOUT_PAGES: SetAside = SetAside { memory: "2G", memmap: "memmap=512M$1G" };
/// The same as `--window` takes it.
pub(crate) const WINDOW: &str = "/dev/mem@0x40000000+512M";
/// As persistent memory, of which a devdax device can be made: 1 GiB from 4 GiB on. A PC has 3 GiB below and the rest there.
pub(crate) const PERSISTENT: SetAside = SetAside { memory: "5G", memmap: "memmap=1G!4G" };
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
    pub(crate) fn boot(&self, name: &str, set_aside: &SetAside, initramfs: Initramfs) -> Machine {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.cpio"));
        fs::write(&file, initramfs.finish().unwrap()).unwrap();
        let machine = self.qemu.machine().unwrap().words("-accel tcg -cpu max,+svm -no-reboot -m").word(set_aside.memory);
        let machine = machine.words("-kernel").word(self.kernel.image().unwrap().display().to_string());
        let machine = machine.words("-initrd").word(file.display().to_string());
        let machine = machine.words("-append").word(format!("console=ttyS0 panic=-1 quiet {}", set_aside.memmap));
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

/// The words that start the program packed into this folder.
pub(crate) fn program_in(folder: &str) -> String {
    format!("/{folder}/ld.so --library-path /{folder}/lib /{folder}/program")
}

/// Packs a program of Debian's with the libraries that its linker says it loads, into a folder of its own.
pub(crate) fn pack_program(initramfs: &mut Initramfs, tree: &Tree, path: &str, folder: &str) -> Result<(), Missing> {
    let program = tree.program(path)?;
    let [linker, .., binary] = program.as_slice() else { return Err(Missing::NoFile(path.to_owned())) };
    let listing = Command::new(linker).arg("--list").args(&program[1..]).output()?;
    for line in String::from_utf8_lossy(&listing.stdout).lines() {
        let Some((name, library)) = line.trim().split_once(" => ") else { continue };
        let library = library.split(" (").next().unwrap_or_default();
        initramfs.file(&format!("{folder}/lib/{name}"), 0o755, &fs::read(library)?)?;
    }
    initramfs.file(&format!("{folder}/ld.so"), 0o755, &fs::read(linker)?)?;
    Ok(initramfs.file(&format!("{folder}/program"), 0o755, &fs::read(binary)?)?)
}
