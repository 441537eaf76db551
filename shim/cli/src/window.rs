//! A physical window, as it is written on the command line: `/dev/mem@0x40000000+512M`, `/dev/dax0.0`, `/dev/dax0.0@2G+1G`.

use std::fmt;
use std::str::FromStr;

use pageless_host::{PhysicalWindow, WindowBuilder};

use crate::figures::{self, SizeError};

const DEV_MEM: &str = "/dev/mem";
const DEV_DAX: &str = "/dev/dax";

/// A device that shows physical memory, and which part of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WindowSpec {
    device: String,
    /// Offset in the device and length, in bytes. In /dev/mem the offset is the physical address.
    part: Option<(u64, u64)>,
}

/// Why a text names no window.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WindowSpecError {
    /// Neither of the devices that show physical memory.
    #[error(
        "'{0}' is no window: write /dev/mem@0x40000000+512M (a physical address and a length), /dev/dax0.0, or /dev/dax0.0@2G+1G"
    )]
    Device(String),
    /// All of /dev/mem, most of which is the kernel's own.
    #[error("'{DEV_MEM}' needs the range that was set aside at boot, such as {DEV_MEM}@0x40000000+512M for memmap=512M$1G")]
    WithoutRange,
    /// Something after the `@` that is no offset and length.
    #[error("'{0}' is no part of a device: write its offset and its length, such as 0x40000000+512M")]
    Part(String),
    /// One of the two numbers.
    #[error(transparent)]
    Size(#[from] SizeError),
}

impl WindowSpec {
    /// The length, where it was written.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.part.map(|(_, bytes)| bytes)
    }

    /// What builds it.
    pub fn builder(&self) -> WindowBuilder {
        match self.part {
            Some((start, bytes)) if self.device == DEV_MEM => PhysicalWindow::devmem(start, bytes),
            Some((offset, bytes)) => PhysicalWindow::devdax(&self.device).part(offset, bytes),
            None => PhysicalWindow::devdax(&self.device),
        }
    }
}

impl FromStr for WindowSpec {
    type Err = WindowSpecError;

    fn from_str(text: &str) -> Result<Self, WindowSpecError> {
        let (device, part) = text.split_once('@').map_or((text, None), |(device, part)| (device, Some(part)));
        let dax = device.strip_prefix(DEV_DAX).is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()));
        if device != DEV_MEM && !dax {
            return Err(WindowSpecError::Device(text.to_owned()));
        }
        let part = part.map(|part| {
            let (offset, length) = part.split_once('+').ok_or_else(|| WindowSpecError::Part(part.to_owned()))?;
            Ok::<_, WindowSpecError>((offset_of(offset)?, figures::parse_size(length)?))
        });
        match part.transpose()? {
            None if !dax => Err(WindowSpecError::WithoutRange),
            part => Ok(Self { device: device.to_owned(), part }),
        }
    }
}

/// A hexadecimal number behind `0x`, or a size.
fn offset_of(text: &str) -> Result<u64, WindowSpecError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).map_err(|_| WindowSpecError::Part(text.to_owned())),
        None => Ok(figures::parse_size(text)?),
    }
}

impl fmt::Display for WindowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device)?;
        self.part.map_or(Ok(()), |(offset, bytes)| write!(f, "@{offset:#x}+{bytes}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_a_device_an_offset_and_a_length() {
        let read = |text: &str| text.parse::<WindowSpec>().unwrap();
        assert_eq!(read("/dev/mem@0x40000000+512M").part, Some((1 << 30, 512 << 20)));
        assert_eq!(read("/dev/mem@1G+512MiB"), read("/dev/mem@0x40000000+536870912"));
        assert_eq!((read("/dev/dax0.0").device.as_str(), read("/dev/dax0.0").bytes()), ("/dev/dax0.0", None));
        assert_eq!(read("/dev/dax1.2@0+2G").bytes(), Some(2 << 30));
        for text in ["/dev/mem@0x40000000+536870912", "/dev/dax0.0", "/dev/dax0.0@0x0+4096"] {
            assert_eq!(read(text).to_string(), text);
            assert_eq!(read(&read(text).to_string()), read(text));
        }
    }

    #[test]
    fn what_is_no_window_says_what_one_looks_like() {
        let told = |text: &str| text.parse::<WindowSpec>().unwrap_err();
        for text in ["", "banana", "/dev/sda@0+1G", "/dev/dax", "/dev/daxes", "/dev/memory@0+1G", "0x40000000+512M"] {
            assert_eq!(told(text), WindowSpecError::Device(text.to_owned()));
            assert!(told(text).to_string().contains("/dev/mem@0x40000000+512M"));
        }
        assert_eq!(told("/dev/mem"), WindowSpecError::WithoutRange);
        assert_eq!(told("/dev/mem@0x40000000"), WindowSpecError::Part("0x40000000".into()));
        assert_eq!(told("/dev/mem@0xg+1G"), WindowSpecError::Part("0xg".into()));
        assert!(matches!(told("/dev/mem@0x0+banana"), WindowSpecError::Size(SizeError::Unreadable { .. })));
        assert!(matches!(told("/dev/mem@0x0+99999999T"), WindowSpecError::Size(SizeError::TooLarge { .. })));
    }
}
