//! Opens a window, and checks everything that could be wrong with it before a byte is written.

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::stat::{major, minor};
use pageless::{FRAME_BYTES, NodeFrames, Pfn, PfnRange};

use super::{Device, DeviceKind, PhysicalWindow, WindowError, dax, iomem, wipe};
use crate::{PageSize, Zeroing};

const DEV_MEM: &str = "/dev/mem";
/// Major and minor number of /dev/mem (Linux, Documentation/admin-guide/devices.txt).
const DEV_MEM_NUMBER: (u64, u64) = (1, 1);

/// Describes a [`PhysicalWindow`]: begin with [`PhysicalWindow::devmem`] or [`PhysicalWindow::devdax`].
#[derive(Clone, Debug)]
#[must_use]
pub struct WindowBuilder {
    source: Source,
    part: Option<(u64, u64)>,
    node: Option<u32>,
    zeroing: Zeroing,
    root: PathBuf,
}

#[derive(Clone, Debug)]
enum Source {
    DevMem { start: u64, bytes: u64 },
    DevDax(PathBuf),
}

/// Where a window lies: in its device, and in physical memory.
struct Place {
    kind: DeviceKind,
    path: PathBuf,
    page: PageSize,
    /// Bytes from the start of the device.
    offset: u64,
    /// Physical address.
    start: u64,
    bytes: u64,
    node: u32,
}

impl WindowBuilder {
    pub(super) fn devmem(start: u64, bytes: u64) -> Self {
        Self::of(Source::DevMem { start, bytes })
    }

    pub(super) fn devdax(device: PathBuf) -> Self {
        Self::of(Source::DevDax(device))
    }

    fn of(source: Source) -> Self {
        Self { source, part: None, node: None, zeroing: Zeroing::On, root: PathBuf::from("/") }
    }

    /// Only `bytes` bytes from `offset` on, of a devdax device or of the range of /dev/mem; all of it unless told. On devdax
    /// both are multiples of the device's alignment.
    pub fn part(mut self, offset: u64, bytes: u64) -> Self {
        self.part = Some((offset, bytes));
        self
    }

    /// The NUMA node that the memory is reported as. Unless told, what sysfs says of a devdax device, and 0 for /dev/mem.
    pub fn node(mut self, node: u32) -> Self {
        self.node = Some(node);
        self
    }

    /// Whether frames are zeroed at all. Leave it [`Zeroing::On`].
    pub fn zeroing(mut self, zeroing: Zeroing) -> Self {
        self.zeroing = zeroing;
        self
    }

    /// Where /dev, /proc and /sys are looked for, `/` unless told. Under another root the device may be an ordinary file that
    /// stands for the memory: for tests, and for rehearsing a layout.
    pub fn root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = root.into();
        self
    }

    /// Checks the range against the device, the processor and what the kernel says of its physical memory; opens the device and
    /// locks the range in it, so that no second window has part of it. Writes nothing.
    pub fn build(self) -> Result<PhysicalWindow, WindowError> {
        let place = self.locate()?;
        let device = || place.path.clone();
        if place.bytes == 0 {
            return Err(WindowError::Empty { device: device() });
        }
        for (what, value) in [("start", place.start), ("start in the device", place.offset), ("length", place.bytes)] {
            let unit = place.page.bytes();
            if !value.is_multiple_of(unit) {
                return Err(WindowError::Unaligned { device: device(), what, value, unit });
            }
        }
        iomem::check_bits(&self.under("/proc/cpuinfo"), place.start, place.bytes)?;
        let frames = PfnRange::from_len(Pfn::new(place.start / FRAME_BYTES), place.bytes / FRAME_BYTES)?;
        // Without O_DSYNC, which would make the memory uncached (`phys_mem_access_prot`, arch/x86/mm/pat/memtype.c).
        let opened = OpenOptions::new().read(true).write(true).open(&place.path);
        let file = opened.map_err(|error| opening(place.kind, &place.path, &error))?;
        if place.kind == DeviceKind::DevMem {
            iomem::check_owner(&self.under("/proc/iomem"), place.start..place.start + place.bytes)?;
            iomem::check_without_pages(&self.under("/proc/kpageflags"), frames)?;
        }
        lock(&file, &place)?;
        for at in [0, place.bytes - place.page.bytes()] {
            wipe::try_map(&file, place.offset + at, place.page.bytes()).map_err(|errno| WindowError::Forbidden {
                device: device(),
                address: place.start + at,
                errno,
            })?;
        }
        tracing::debug!(device = %place.path.display(), start = place.start, bytes = place.bytes, "physical window");
        let node = NodeFrames { node: self.node.unwrap_or(place.node), frames };
        let instance = self.machine();
        let device = Device { file: file.into(), kind: place.kind, path: place.path, page: place.page, offset: place.offset };
        Ok(PhysicalWindow::new(device, node, self.zeroing, instance))
    }

    fn under(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn locate(&self) -> Result<Place, WindowError> {
        let mut place = match &self.source {
            &Source::DevMem { start, bytes } => {
                let (kind, path) = (DeviceKind::DevMem, self.under(DEV_MEM));
                self.check_device(kind, &path)?;
                Place { kind, path, page: PageSize::Base4K, offset: start, start, bytes, node: 0 }
            }
            Source::DevDax(device) => {
                let (kind, path) = (DeviceKind::DevDax, self.under(device));
                self.check_device(kind, &path)?;
                let dax::DaxFacts { start, bytes, page, node } = dax::look_up(&self.under("/sys/bus/dax/devices"), &path)?;
                Place { kind, path, page, offset: 0, start, bytes, node }
            }
        };
        if let Some((offset, bytes)) = self.part {
            if offset.checked_add(bytes).is_none_or(|end| end > place.bytes) {
                return Err(WindowError::BeyondDevice { device: place.path, offset, bytes, size: place.bytes });
            }
            place.offset = place.offset.saturating_add(offset);
            place.start = place.start.saturating_add(offset);
            place.bytes = bytes;
        }
        Ok(place)
    }

    /// Refuses what only has the device's name. Under another root anything may stand for it.
    fn check_device(&self, kind: DeviceKind, path: &Path) -> Result<(), WindowError> {
        let told = fs::metadata(path).map_err(|error| opening(kind, path, &error))?;
        let number = (major(told.rdev()), minor(told.rdev()));
        let (real, expected) = match kind {
            DeviceKind::DevMem => (number == DEV_MEM_NUMBER, "the character device 1:1, physical memory"),
            DeviceKind::DevDax => (true, "a devdax device"),
        };
        if (real && told.file_type().is_char_device()) || self.root != Path::new("/") {
            return Ok(());
        }
        Err(WindowError::NotADevice { device: path.to_owned(), expected })
    }

    /// Names the machine by its board, which is what physical memory belongs to; the installation's own number would change
    /// with the disk. Where firmware tells none, nobody knows, and a ledger keeps every mark.
    fn machine(&self) -> Option<String> {
        let uuid = fs::read_to_string(self.under("/sys/class/dmi/id/product_uuid")).ok()?;
        let uuid = uuid.trim().to_ascii_lowercase();
        let blank = uuid.chars().all(|letter| matches!(letter, '0' | 'f' | '-'));
        (!blank).then(|| format!("physical memory of the machine {uuid}"))
    }
}

/// Keeps a second window, of this process or of another, from the range: an open-file lock, which ends with the last copy of
/// the descriptor and the last mapping made through it.
fn lock(file: &File, place: &Place) -> Result<(), WindowError> {
    let long = |value: u64| i64::try_from(value).map_err(|_| WindowError::Os { step: "F_OFD_SETLK", errno: Errno::EOVERFLOW });
    let short = |value: libc::c_int| libc::c_short::try_from(value).unwrap_or_default();
    let range = libc::flock {
        l_type: short(libc::F_WRLCK),
        l_whence: short(libc::SEEK_SET),
        l_start: long(place.offset)?,
        l_len: long(place.bytes)?,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            Err(WindowError::Taken { device: place.path.clone(), start: place.offset, bytes: place.bytes })
        }
        Err(errno) => Err(WindowError::Os { step: "F_OFD_SETLK", errno }),
    }
}

fn opening(kind: DeviceKind, device: &Path, error: &std::io::Error) -> WindowError {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
    let device = device.to_owned();
    match errno {
        Errno::ENOENT | Errno::ENXIO | Errno::ENODEV => no_device(kind, device),
        Errno::EACCES | Errno::EPERM => {
            let hint = match kind {
                DeviceKind::DevMem => "it takes root with CAP_SYS_RAWIO, and a kernel that is not locked down",
                DeviceKind::DevDax => "it takes root, or a group that the device was given to",
            };
            WindowError::NoPermission { device, errno, hint }
        }
        _ => WindowError::Os { step: "open", errno },
    }
}

fn no_device(kind: DeviceKind, device: PathBuf) -> WindowError {
    let hint = match kind {
        DeviceKind::DevMem => {
            "this kernel is built without CONFIG_DEVMEM, or /dev is not populated; it also takes a range set aside at boot \
             (memmap=512M$1G on the kernel command line)"
        }
        DeviceKind::DevDax => {
            "no driver offers it; for memory set aside with memmap=3G!4G make one with `ndctl create-namespace --mode devdax`, for \
             other memory with `daxctl reconfigure-device --mode devdax`"
        }
    };
    WindowError::NoDevice { device, hint }
}

/// The physical addresses of frames.
pub(super) fn addresses(frames: PfnRange) -> Range<u64> {
    frames.start().get() * FRAME_BYTES..frames.end().get() * FRAME_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_opened_says_what_it_takes() {
        let told = |kind, errno: Errno| opening(kind, Path::new(DEV_MEM), &errno.into()).to_string();
        for errno in [Errno::EACCES, Errno::EPERM] {
            assert!(told(DeviceKind::DevMem, errno).contains("CAP_SYS_RAWIO"));
            assert!(told(DeviceKind::DevDax, errno).contains("a group that the device was given to"));
        }
        for errno in [Errno::ENOENT, Errno::ENXIO] {
            assert!(told(DeviceKind::DevMem, errno).contains("CONFIG_DEVMEM"));
            assert!(told(DeviceKind::DevDax, errno).contains("ndctl"));
        }
        assert_eq!(
            opening(DeviceKind::DevMem, Path::new(DEV_MEM), &Errno::EMFILE.into()),
            WindowError::Os { step: "open", errno: Errno::EMFILE }
        );
    }
}
