//! What the memory is made of: one answer for each name, or why this host has none.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use pageless_host::{PageSize, probe};

/// Every backing there is, by the name that `--backing` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Ground {
    /// memfd with 4 KiB pages.
    Memfd,
    /// memfd with transparent huge pages.
    MemfdThp,
    /// hugetlb pages of 2 MiB.
    #[value(name = "hugetlb-2m")]
    Hugetlb2M,
    /// hugetlb pages of 1 GiB.
    #[value(name = "hugetlb-1g")]
    Hugetlb1G,
    /// A plain file.
    File,
    /// The memory of one KVM virtual machine.
    GuestMemfd,
}

impl Ground {
    pub(crate) const ALL: [Self; 6] =
        [Self::Memfd, Self::MemfdThp, Self::Hugetlb2M, Self::Hugetlb1G, Self::File, Self::GuestMemfd];

    pub(crate) fn page(self) -> PageSize {
        match self {
            Self::Hugetlb2M => PageSize::Huge2M,
            Self::Hugetlb1G => PageSize::Huge1G,
            Self::Memfd | Self::MemfdThp | Self::File | Self::GuestMemfd => PageSize::Base4K,
        }
    }

    /// Whether a seal can be asked for: then a pin is seen when shared memory becomes private.
    pub(crate) fn takes_seals(self) -> bool {
        !matches!(self, Self::File | Self::GuestMemfd)
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        clap::ValueEnum::to_possible_value(self).map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

/// A setting of the kernel's, changed for as long as this lives. It is put back even when this process is killed: a child
/// waits for the end of a pipe and writes the old value.
pub(crate) struct Setting {
    restorer: Child,
    _others_wait: Option<Flock<File>>,
}

impl Setting {
    fn change(others_wait: Option<Flock<File>>, file: &str, to: &str, back: &str) -> Result<Self> {
        // Its own process group, so that ^C does not reach it.
        let mut restorer = Command::new("sh")
            .args(["-c", r#"trap "" INT TERM HUP; read -r _; echo "$1" > "$2""#, "restore", back, file])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("no shell to put a setting back")?;
        match fs::write(file, to) {
            Ok(()) => Ok(Self { restorer, _others_wait: others_wait }),
            Err(error) => {
                drop(restorer.stdin.take());
                let _ = restorer.wait();
                Err(error).with_context(|| format!("{file} cannot be set"))
            }
        }
    }
}

/// Whoever else of this project changes such settings waits for the same lock.
fn others_wait() -> Option<Flock<File>> {
    let path = std::env::temp_dir().join("pageless-hugepages.lock");
    let file = File::options().create(true).truncate(false).write(true).open(path).ok()?;
    Flock::lock(file, FlockArg::LockExclusive).ok()
}

impl Drop for Setting {
    fn drop(&mut self) {
        drop(self.restorer.stdin.take()); // the end of the pipe
        if let Err(error) = self.restorer.wait() {
            let _ = writeln!(std::io::stderr(), "a setting may not have been put back: {error}");
        }
    }
}

/// Makes sure that `bytes` of this page size are free, as root by reserving more.
pub(crate) fn reserve(page: PageSize, bytes: u64) -> Result<Option<Setting>> {
    let lock = others_wait();
    let answer = probe().into_iter().find(|answer| answer.page == page).context("no such page size")?;
    let Some(file) = page.reservation_file().filter(|_| answer.bytes < bytes) else { return Ok(None) };
    let why = answer.why_not.unwrap_or_else(|| format!("{} bytes of {page} pages are free, {bytes} wanted", answer.bytes));
    let old: u64 = fs::read_to_string(&file).context(why.clone())?.trim().parse()?;
    let more = (bytes - answer.bytes) / page.bytes();
    let setting = Setting::change(lock, &file.display().to_string(), &(old + more).to_string(), &old.to_string()).context(why)?;
    let free = probe().into_iter().find(|answer| answer.page == page).map_or(0, |answer| answer.bytes);
    anyhow::ensure!(free >= bytes, "{bytes} bytes of {page} pages cannot be reserved: memory is short or fragmented");
    Ok(Some(setting))
}

/// Lets memfds that ask have transparent huge pages.
pub(crate) fn advise_transparent() -> Result<Option<Setting>> {
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let lock = others_wait();
    let now = fs::read_to_string(FILE).context("this kernel has no transparent huge pages for memfds")?;
    let chosen = now.split(['[', ']']).nth(1).unwrap_or_default().to_owned();
    if matches!(chosen.as_str(), "always" | "within_size" | "advise" | "force") {
        return Ok(None);
    }
    Setting::change(lock, FILE, "advise", &chosen).map(Some)
}
