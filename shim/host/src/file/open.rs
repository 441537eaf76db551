//! Opening a file as memory: by path or descriptor, checked, locked, and recognised when it is opened again.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};
use pageless::{FRAME_BYTES, Pfn, PfnRange, RunSet};

use super::FileMemory;
use crate::builder::allow_file_size;
use crate::{HostError, PageSize};

/// Builds a [`FileMemory`]. Begun by [`FileMemory::at`] or [`FileMemory::on`].
#[derive(Debug)]
#[must_use]
pub struct FileMemoryBuilder {
    source: Source,
    bytes: Option<u64>,
    base: Option<Pfn>,
}

#[derive(Debug)]
enum Source {
    Path(PathBuf),
    Descriptor(OwnedFd),
}

impl FileMemoryBuilder {
    pub(super) fn at(path: &Path) -> Self {
        Self { source: Source::Path(path.to_owned()), bytes: None, base: None }
    }

    pub(super) fn on(file: OwnedFd) -> Self {
        Self { source: Source::Descriptor(file), bytes: None, base: None }
    }

    /// How much of the file is memory, in bytes from its start: a multiple of its page size. All of it unless told. A file that
    /// is shorter is lengthened, and a path that does not exist is made.
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// The number of the first frame, a multiple of the page size in frames. 0 unless told.
    pub fn base(mut self, base: Pfn) -> Self {
        self.base = Some(base);
        self
    }

    /// Opens, checks and locks the file. Its contents stay; space is reserved by [`commit`](pageless::Backing::commit).
    pub fn build(self) -> Result<FileMemory, HostError> {
        let (file, path) = match &self.source {
            Source::Path(path) => (open_path(path, self.bytes.is_some())?, path.clone()),
            Source::Descriptor(given) => reopen(given)?,
        };
        if !file.metadata().map_err(os("fstat"))?.is_file() {
            return Err(HostError::NotAFile { path });
        }
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => HostError::FileInUse { path },
            errno => HostError::Os { step: "flock", errno },
        })?;
        // Under the lock: an owner who had it until now may have lengthened the file and written to it.
        let metadata = file.metadata().map_err(os("fstat"))?;
        let page = page_of(&file)?;
        let bytes = self.bytes.unwrap_or(metadata.len());
        let frames = self.frames(bytes, page)?;
        // Before the file is lengthened: what is beyond its end now reads as zeroes.
        let written = written(&file, &metadata, frames, page)?;
        if metadata.len() < bytes {
            allow_file_size(bytes)?;
            file.set_len(bytes).map_err(os("ftruncate"))?;
        }
        tracing::debug!(bytes, %page, written = written.frames(), "file opened as memory");
        Ok(FileMemory::new(file, name_of(&metadata), frames, page, written))
    }

    fn frames(&self, bytes: u64, page: PageSize) -> Result<PfnRange, HostError> {
        let base = self.base.unwrap_or(Pfn::new(0));
        let unit = page.order().frames();
        match bytes {
            0 => Err(HostError::Empty),
            _ if !bytes.is_multiple_of(page.bytes()) => {
                Err(HostError::Unaligned { what: "bytes", value: bytes, unit: page.bytes(), unit_name: "bytes", page })
            }
            _ if !base.is_aligned(page.order()) => {
                Err(HostError::Unaligned { what: "base", value: base.get(), unit, unit_name: "frames", page })
            }
            _ => Ok(PfnRange::from_len(base, bytes / FRAME_BYTES)?),
        }
    }
}

fn os(step: &'static str) -> impl Fn(std::io::Error) -> HostError {
    move |error| HostError::Os { step, errno: errno(&error) }
}

/// EINVAL where no system call was made, as for a path with a zero byte in it.
fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

fn open_path(path: &Path, make: bool) -> Result<File, HostError> {
    // A pipe or a device is not opened: that alone may wait or do something.
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() || metadata.file_type().is_fifo() || is_device(&metadata) => {
            return Err(HostError::NotAFile { path: path.to_owned() });
        }
        _ => {}
    }
    // 0600: what guests keep in memory is nobody else's.
    let opened = OpenOptions::new().read(true).write(true).create(make).truncate(false).mode(0o600).open(path);
    opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound if !make => HostError::NoSuchFile { path: path.to_owned() },
        _ => HostError::NotOpened { path: path.to_owned(), errno: errno(&error) },
    })
}

fn is_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_block_device() || metadata.file_type().is_char_device() || metadata.file_type().is_socket()
}

/// The file of a descriptor, opened anew: a lock belongs to an opening, and this one shall be nobody else's.
fn reopen(given: &OwnedFd) -> Result<(File, PathBuf), HostError> {
    let link = PathBuf::from(format!("/proc/self/fd/{}", given.as_raw_fd()));
    let path = fs::read_link(&link).unwrap_or_else(|_| link.clone());
    let given = File::from(given.try_clone().map_err(os("fcntl(F_DUPFD_CLOEXEC)"))?);
    if !given.metadata().map_err(os("fstat"))?.is_file() {
        return Err(HostError::NotAFile { path });
    }
    let flags = fcntl(&given, FcntlArg::F_GETFL).map_err(|errno| HostError::Os { step: "fcntl(F_GETFL)", errno })?;
    if OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE != OFlag::O_RDWR {
        return Err(HostError::NotReadWrite { path });
    }
    let file = OpenOptions::new().read(true).write(true).open(&link).map_err(os("open(/proc/self/fd)"))?;
    Ok((file, path))
}

/// The size of the pages behind the file: that of its mount on hugetlbfs, 4 KiB elsewhere.
fn page_of(file: &File) -> Result<PageSize, HostError> {
    let about = fstatfs(file).map_err(|errno| HostError::Os { step: "fstatfs", errno })?;
    if about.filesystem_type() != HUGETLBFS_MAGIC {
        return Ok(PageSize::Base4K);
    }
    let bytes = u64::try_from(about.block_size()).unwrap_or(0);
    let known = PageSize::DESCENDING.into_iter().find(|page| page.is_huge() && page.bytes() == bytes);
    known.ok_or_else(|| HostError::PageUnsupported {
        page: PageSize::Huge2M,
        why: format!("the file's hugetlbfs has pages of {bytes} bytes"),
    })
}

/// The frames in which the file may hold something: everything but its holes, in whole pages. A filesystem that does not
/// tell its holes has none.
fn written(file: &File, metadata: &Metadata, frames: PfnRange, page: PageSize) -> Result<RunSet, HostError> {
    let mut written = RunSet::new();
    let length = metadata.len().min(frames.bytes());
    if metadata.blocks() == 0 && page.is_huge() {
        return Ok(written); // hugetlbfs tells no holes, but counts its pages truly
    }
    let seek = |from: u64, whence| {
        let from = i64::try_from(from).map_err(|_| Errno::EFBIG)?;
        lseek(file, from, whence).map(|at| u64::try_from(at).unwrap_or(0))
    };
    let mut at = 0;
    while at < length {
        let data = match seek(at, Whence::SeekData) {
            Err(Errno::ENXIO) => break, // no data from here to the end
            Err(Errno::EINVAL) => at,
            other => other.map_err(|errno| HostError::Os { step: "lseek(SEEK_DATA)", errno })?,
        };
        let hole = seek(data, Whence::SeekHole).unwrap_or(length).clamp(data + 1, length.max(data + 1));
        let (first, end) = (data / page.bytes() * page.bytes(), hole.min(length).next_multiple_of(page.bytes()));
        if let Some(run) = frames.sub(first / FRAME_BYTES, end.saturating_sub(first).min(frames.bytes() - first) / FRAME_BYTES) {
            written.insert(run);
        }
        at = hole;
    }
    Ok(written)
}

/// What the file is called when it is opened again, under whatever path: its device and inode, and when the inode was made,
/// so that another file which got the same number later is another memory.
fn name_of(metadata: &Metadata) -> String {
    let made = metadata.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    let made = made.map_or_else(|| "an unknown time".to_owned(), |made| made.as_nanos().to_string());
    format!("file {} on device {:#x}, made at {made}", metadata.ino(), metadata.dev())
}
