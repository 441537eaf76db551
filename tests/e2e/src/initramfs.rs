//! What a kernel finds when it has booted: a cpio archive in memory (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};

use crate::{Debian, Missing, Module, Package, Suite, Tree};

/// File type bits of a mode, cpio(5).
const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// The lines that every init script begins with.
const BEGINNING: &str = "#!/bin/busybox sh\n\
    /bin/busybox mkdir -p /proc /sys /dev /tmp /bin /sbin /usr/bin /usr/sbin\n\
    /bin/busybox mount -t proc proc /proc\n\
    /bin/busybox mount -t sysfs sys /sys\n\
    /bin/busybox mount -t devtmpfs dev /dev\n\
    /bin/busybox mount -t tmpfs tmp /tmp\n\
    /bin/busybox --install -s\n\
    export PATH=/bin:/sbin:/usr/bin:/usr/sbin\n\
    stty -echo\n";

/// An archive that is being put together.
pub struct Initramfs {
    archive: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl std::fmt::Debug for Initramfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initramfs").field("entries", &self.entries).field("bytes", &self.archive.len()).finish()
    }
}

impl Initramfs {
    /// With a static busybox, all its commands on the path, `/proc`, `/sys`, `/dev` and `/tmp` mounted, and then `script`.
    /// The console does not echo what it is sent. When the script ends, so does the machine.
    pub fn with_busybox(debian: &Debian, script: &str) -> Result<Self, Missing> {
        let busybox = debian.unpack("busybox", Suite::Release, &[Package::alone("busybox-static")])?;
        let file = busybox.file("bin/busybox").or_else(|_| busybox.file("usr/bin/busybox"))?;
        let mut this = Self { archive: Vec::new(), folders: BTreeSet::new(), entries: 0 };
        this.file("bin/busybox", 0o755, &fs::read(file)?)?;
        this.folder("dev")?;
        this.entry("dev/console", CHARACTER | 0o600, (5, 1), &[])?; // Documentation/admin-guide/devices.txt
        this.file("init", 0o755, format!("{BEGINNING}{script}\npoweroff -f\n").as_bytes())?;
        Ok(this)
    }

    /// Adds a file, and the folders it is in. The path is without the first slash.
    pub fn file(&mut self, path: &str, permissions: u32, bytes: &[u8]) -> io::Result<()> {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder)?;
        }
        self.entry(path, REGULAR | permissions, (0, 0), bytes)
    }

    /// Adds a program of this workspace as `/bin/NAME`, and what a Rust program is linked to: the C library out of `tree`,
    /// which has to be of the release that built the program.
    pub fn program(&mut self, name: &str, file: &str, tree: &Tree) -> Result<(), Missing> {
        self.file(&format!("bin/{name}"), 0o755, &fs::read(file)?)?;
        for library in ["ld-linux-x86-64.so.2", "libc.so.6", "libgcc_s.so.1"] {
            let found = ["lib", "usr/lib"].iter().find_map(|lib| tree.file(&format!("{lib}/x86_64-linux-gnu/{library}")).ok());
            let bytes = fs::read(found.ok_or_else(|| Missing::NoFile(library.to_owned()))?)?;
            // Where the kernel looks for the linker, and the linker for the others.
            let folder = if library.starts_with("ld-") { "lib64" } else { "lib/x86_64-linux-gnu" };
            self.file(&format!("{folder}/{library}"), 0o755, &bytes)?;
        }
        Ok(())
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder)?;
        }
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds modules as `/modules/NN-NAME.ko`, to be loaded by `for m in /modules/*; do insmod $m; done`.
    pub fn modules(&mut self, modules: &[Module]) -> io::Result<()> {
        modules
            .iter()
            .enumerate()
            .try_for_each(|(at, module)| self.file(&format!("modules/{at:02}-{}.ko", module.name), 0o644, &module.bytes))
    }

    /// The archive, uncompressed.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        cpio::newc::trailer(self.archive)
    }

    fn folder(&mut self, path: &str) -> io::Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent)?;
        }
        if self.folders.insert(path.to_owned()) { self.entry(path, FOLDER | 0o755, (0, 0), &[]) } else { Ok(()) }
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), bytes: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let header = cpio::newc::Builder::new(path).ino(self.entries).nlink(1).mode(mode).rdev_major(major).rdev_minor(minor);
        let size = u32::try_from(bytes.len()).map_err(|_| io::Error::other(format!("{path} is 4 GiB or more")))?;
        let mut writer = header.write(&mut self.archive, size);
        writer.write_all(bytes)?;
        writer.finish().map(drop)
    }
}
