//! VM_PFNMAP for real: Debian's kernel boots with part of its memory set aside (`memmap=512M$1G`), under TCG, and pageless
//! runs in it on that part.
//!
//! `inside` is the machine: what is fetched, built and packed, and how it is booted. Each test gives it a script for the
//! guest's shell, and judges what the guest then says on its console.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod inside;
mod lent;
mod tour;
