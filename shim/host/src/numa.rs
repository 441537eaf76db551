//! Asks the kernel for pages of one NUMA node.
//!
//! Pages of an ordinary memfd follow the file's own policy, which `mbind` on any shared mapping of it sets and which stays
//! with the file. hugetlb files have none: there the policy of the calling thread decides, so it is set around the fill.

use std::os::fd::AsFd;
use std::{fs, ptr};

use memmap2::MmapOptions;
use nix::errno::Errno;
use nix::libc;

use crate::segment::SegmentFile;

/// Nodes that a policy can name here: the kernel's largest CONFIG_NODES_SHIFT is 10.
const NODES: usize = 1024;
const WORDS: usize = NODES / 64;
/// From include/uapi/linux/mempolicy.h: only the nodes named.
const MPOL_BIND: libc::c_int = 2;

/// Whether the host has a node of this number with memory. Without NUMA in the kernel there is node 0 alone.
pub(crate) fn has_memory(node: u32) -> bool {
    match fs::read_to_string("/sys/devices/system/node/has_memory") {
        Ok(list) => in_list(list.trim(), node),
        Err(_) => node == 0,
    }
}

fn in_list(list: &str, node: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.parse::<u32>(), last.parse::<u32>()), (Ok(first), Ok(last)) if (first..=last).contains(&node))
    })
}

fn mask(node: u32) -> Result<[u64; WORDS], Errno> {
    let node = usize::try_from(node).map_err(|_| Errno::EINVAL)?;
    let mut mask = [0; WORDS];
    *mask.get_mut(node / 64).ok_or(Errno::EINVAL)? = 1 << (node % 64);
    Ok(mask)
}

/// Makes every page that `file` gets from now on a page of `node`. For files of 4 KiB pages.
pub(crate) fn bind_file(file: &SegmentFile, node: u32) -> Result<(), Errno> {
    let mask = mask(node)?;
    let bytes = usize::try_from(file.frames().bytes()).map_err(|_| Errno::EFBIG)?;
    let window = MmapOptions::new()
        .len(bytes)
        .map_raw(&file.as_fd())
        .map_err(|error| error.raw_os_error().map_or(Errno::ENOMEM, Errno::from_raw))?;
    // SAFETY: the address and length are those of `window`, which lives until after the call; mbind reads NODES bits of
    // `mask` (maxnode counts one more than is used) and changes no memory of this process.
    let result = unsafe { libc::syscall(libc::SYS_mbind, window.as_mut_ptr(), bytes, MPOL_BIND, mask.as_ptr(), NODES + 1, 0) };
    Errno::result(result).map(|_| ())
}

/// Runs `work` with this thread's new pages coming from `node` only, then restores the thread's policy.
pub(crate) fn with_node<T>(node: u32, work: impl FnOnce() -> T) -> Result<T, Errno> {
    let wanted = mask(node)?;
    let mut old_mode: libc::c_int = 0;
    let mut old_mask = [0_u64; WORDS];
    // SAFETY: get_mempolicy writes one int and at most NODES bits, which is what the two pointers have room for; with a null
    // address and no flags it reports the thread's own policy.
    let got = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, &raw mut old_mode, old_mask.as_mut_ptr(), NODES, ptr::null::<libc::c_void>(), 0)
    };
    Errno::result(got)?;
    set_policy(MPOL_BIND, &wanted)?;
    let restore = Restore { mode: old_mode, mask: old_mask };
    let result = work();
    drop(restore);
    Ok(result)
}

fn set_policy(mode: libc::c_int, mask: &[u64; WORDS]) -> Result<(), Errno> {
    // The kernel wants no nodes at all with MPOL_DEFAULT (0) and MPOL_LOCAL (4).
    let empty = mask.iter().all(|word| *word == 0);
    let (pointer, bits) = if empty { (ptr::null(), 0) } else { (mask.as_ptr(), NODES + 1) };
    // SAFETY: set_mempolicy reads at most NODES bits of `mask`, or none through a null pointer.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) };
    Errno::result(result).map(|_| ())
}

struct Restore {
    mode: libc::c_int,
    mask: [u64; WORDS],
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Err(errno) = set_policy(self.mode, &self.mask) {
            tracing::warn!(%errno, "could not restore this thread's NUMA policy");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_list_of_nodes_is_read_with_its_ranges() {
        assert!(in_list("0-1,4", 1) && in_list("0-1,4", 4));
        assert!(!in_list("0-1,4", 2) && !in_list("", 0));
    }

    #[test]
    fn a_node_number_beyond_the_kernels_largest_is_refused() {
        assert_eq!(mask(1024), Err(Errno::EINVAL));
    }
}
