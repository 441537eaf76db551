//! What can be in the way of a physical window, with the numbers and what to do about them.

use std::path::PathBuf;

use nix::errno::Errno;
use pageless::InvalidRange;

use crate::PageSize;

/// Why [`WindowBuilder::build`](crate::WindowBuilder::build) gave no window. Nothing has been taken and nothing written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// A window of no bytes.
    #[error("a window of {device} has to have a length, and 0 bytes were asked for")]
    Empty {
        /// The device.
        device: PathBuf,
    },
    /// The start or the length is no multiple of what the device maps at once.
    #[error("the window's {what} {value:#x} is no multiple of {unit:#x}, which is what {device} maps at once")]
    Unaligned {
        /// The device.
        device: PathBuf,
        /// `start` or `length`.
        what: &'static str,
        /// Its value, in bytes.
        value: u64,
        /// What it must be a multiple of, in bytes.
        unit: u64,
    },
    /// The window ends beyond what the processor can address.
    #[error(
        "{bytes:#x} bytes from {start:#x} end beyond the {bits} bits of physical address that this processor has (MAXPHYSADDR)"
    )]
    BeyondPhysicalAddresses {
        /// The first physical address.
        start: u64,
        /// The length in bytes.
        bytes: u64,
        /// How many bits a physical address has here.
        bits: u32,
    },
    /// A part of a device, or of a range, that is not that long.
    #[error("{bytes:#x} bytes from offset {offset:#x} end beyond the {size:#x} bytes of {device} that there are")]
    BeyondDevice {
        /// The device.
        device: PathBuf,
        /// Where the part begins in it, in bytes.
        offset: u64,
        /// The part's length in bytes.
        bytes: u64,
        /// The length of the device or the range, in bytes.
        size: u64,
    },
    /// The device does not exist.
    #[error("there is no {device}: {hint}")]
    NoDevice {
        /// The device.
        device: PathBuf,
        /// What is missing, and how to get it.
        hint: &'static str,
    },
    /// Something else has the device's name.
    #[error("{device} is not {expected}")]
    NotADevice {
        /// The path.
        device: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// The device may not be opened.
    #[error("{device} cannot be opened for reading and writing ({errno}): {hint}")]
    NoPermission {
        /// The device.
        device: PathBuf,
        /// What the kernel said.
        errno: Errno,
        /// What it takes.
        hint: &'static str,
    },
    /// The kernel uses part of the range as its own memory.
    #[error(
        "{from:#x}..{to:#x} of the window is System RAM, the kernel's own memory; set a range aside at boot, for instance with \
         memmap=512M$1G on the kernel command line (GRUB wants the $ escaped), and take only that"
    )]
    SystemRam {
        /// The first address that is.
        from: u64,
        /// The end of it, or of the window.
        to: u64,
    },
    /// Something that is not set aside lies in the range.
    #[error("{from:#x}..{to:#x} of the window belongs to '{owner}' in /proc/iomem; only ranges that are set aside are taken")]
    InUse {
        /// The first address that does.
        from: u64,
        /// The end of it, or of the window.
        to: u64,
        /// The name in /proc/iomem.
        owner: String,
    },
    /// The kernel has a `struct page` for a frame of the range, so it may pin it, and a proof by unmap would not cover that.
    #[error(
        "the kernel has struct pages at {address:#x}, though the range is set aside: it makes them for whole sections of 128 MiB \
         with any RAM in them; align start and length to that"
    )]
    HasStructPages {
        /// The first address found.
        address: u64,
    },
    /// The kernel opens the device and does not map the range.
    #[error(
        "{device} does not map {address:#x} ({errno}): CONFIG_STRICT_DEVMEM and CONFIG_IO_STRICT_DEVMEM forbid what is RAM or a \
         driver's, and kernel lockdown forbids all"
    )]
    Forbidden {
        /// The device.
        device: PathBuf,
        /// The physical address.
        address: u64,
        /// What the kernel said.
        errno: Errno,
    },
    /// Another window, here or in another process, has part of the range.
    #[error("another process, or another window of this one, has part of {bytes:#x} bytes at {start:#x} of {device}")]
    Taken {
        /// The device.
        device: PathBuf,
        /// Where the window begins in the device, in bytes.
        start: u64,
        /// Its length in bytes.
        bytes: u64,
    },
    /// Something that the kernel tells and that is needed to be sure cannot be read.
    #[error("{file} does not say what is needed: {why}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A devdax device of several pieces, whose frame numbers would not be contiguous.
    #[error("{device} is made of several pieces of physical memory; make one device of each")]
    Scattered {
        /// The device.
        device: PathBuf,
    },
    /// A devdax device with an alignment that no page has.
    #[error(
        "{device} maps {align:#x} bytes at once, which is none of {}, {} and {}",
        PageSize::Base4K,
        PageSize::Huge2M,
        PageSize::Huge1G
    )]
    Alignment {
        /// The device.
        device: PathBuf,
        /// Its `align`, in bytes.
        align: u64,
    },
    /// The frame numbers run beyond the last there is.
    #[error("no such frames")]
    Frames(#[from] InvalidRange),
    /// The kernel refused a step that has no better name here.
    #[error("{step} failed")]
    Os {
        /// The step.
        step: &'static str,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
}
