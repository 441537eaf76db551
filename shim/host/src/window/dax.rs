//! A devdax device, as /sys/bus/dax tells of it (Linux, drivers/dax/bus.c).

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use super::WindowError;
use crate::PageSize;

/// What a devdax device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DaxFacts {
    /// Physical address of its first byte.
    pub(super) start: u64,
    /// Its length in bytes.
    pub(super) bytes: u64,
    /// What it maps at once.
    pub(super) page: PageSize,
    /// The NUMA node of its memory.
    pub(super) node: u32,
}

/// Reads about `device`, such as /dev/dax0.0, in the folder of dax devices.
pub(super) fn look_up(devices: &Path, device: &Path) -> Result<DaxFacts, WindowError> {
    let folder = devices.join(device.file_name().unwrap_or(OsStr::new("")));
    if folder.join("mapping1").exists() {
        return Err(WindowError::Scattered { device: device.to_owned() });
    }
    let align = number(&folder.join("align"))?;
    let page = PageSize::DESCENDING.into_iter().find(|page| page.bytes() == align);
    let page = page.ok_or_else(|| WindowError::Alignment { device: device.to_owned(), align })?;
    // -1 where the memory has no node of its own, and no file on old kernels.
    let node = text(&folder.join("target_node")).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(DaxFacts { start: number(&folder.join("resource"))?, bytes: number(&folder.join("size"))?, page, node })
}

fn text(file: &Path) -> Result<String, WindowError> {
    let told = fs::read_to_string(file);
    let told = told.map_err(|error| WindowError::Unreadable { file: file.to_owned(), why: error.to_string() })?;
    Ok(told.trim().to_owned())
}

/// A decimal number, or a hexadecimal one behind `0x`.
fn number(file: &Path) -> Result<u64, WindowError> {
    let told = text(file)?;
    let parsed = told.strip_prefix("0x").map_or_else(|| u64::from_str(&told), |digits| u64::from_str_radix(digits, 16));
    parsed.map_err(|_| WindowError::Unreadable { file: file.to_owned(), why: format!("'{told}' is no number") })
}
