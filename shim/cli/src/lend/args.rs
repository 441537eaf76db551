//! What may be said after `pageless lend`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pageless_host::PageSize;

use crate::args::BackingChoice;
use crate::figures::{self, SizeError};
use crate::window::WindowSpec;

/// The arguments of `pageless lend`, as written.
#[derive(Args, Debug)]
pub struct LendArgs {
    /// Take the memory from this physical window, such as /dev/mem@0x40000000+512M or /dev/dax0.0
    #[arg(long, value_name = "DEVICE[@OFFSET+LENGTH]")]
    window: Option<WindowSpec>,
    /// The memory to use; auto is the window where one is given, and memfd otherwise
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    backing: BackingChoice,
    /// How much: bytes, or a number with K, M, G or T, all powers of two. All of the window unless told
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Keep what must not be forgotten here, withdrawn frames above all: each run opens it again
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Give the account as one line of JSON
    #[arg(long)]
    json: bool,
    /// The command and its arguments, behind --; {path}, {offset} and {bytes} in them say where the memory is
    #[arg(value_name = "COMMAND", required = true, last = true)]
    command: Vec<OsString>,
}

/// The memory that is lent from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Window(WindowSpec),
    Pages(PageSize),
}

/// The arguments of `pageless lend`, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LendSettings {
    pub(super) source: Source,
    /// In bytes; nothing where it is all of the window.
    pub(super) memory: Option<u64>,
    pub(super) ledger: Option<PathBuf>,
    pub(super) json: bool,
    pub(super) command: Vec<OsString>,
}

/// Why the arguments make no loan.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LendUsage {
    /// The size cannot be read.
    #[error("--memory: {0}")]
    Size(#[from] SizeError),
    /// No size, and no window that has one.
    #[error("--memory says how much is lent, such as --memory 256M; only a window may be lent as a whole")]
    NoSize,
    /// Not whole pages.
    #[error("--memory {text} is not a positive number of whole {page} pages")]
    Uneven {
        /// What was written.
        text: String,
        /// The pages of the memory.
        page: PageSize,
    },
    /// A physical window without its place.
    #[error("--backing physical needs --window, such as --window /dev/mem@0x40000000+512M")]
    NoWindow,
    /// A physical window, and other memory.
    #[error("--window is for --backing physical, and --backing {0} was asked for")]
    WindowForOther(String),
}

impl LendArgs {
    pub(super) fn settings(&self) -> Result<LendSettings, LendUsage> {
        let name = || self.backing.to_possible_value().map_or_else(String::new, |name| name.get_name().to_owned());
        let source = match (&self.window, self.backing) {
            (Some(window), BackingChoice::Auto | BackingChoice::Physical) => Source::Window(window.clone()),
            (Some(_), _) => return Err(LendUsage::WindowForOther(name())),
            (None, BackingChoice::Physical) => return Err(LendUsage::NoWindow),
            (None, BackingChoice::Auto | BackingChoice::Memfd) => Source::Pages(PageSize::Base4K),
            (None, BackingChoice::Hugetlb2m) => Source::Pages(PageSize::Huge2M),
            (None, BackingChoice::Hugetlb1g) => Source::Pages(PageSize::Huge1G),
        };
        // A devdax device's own page is known when it is open; the pool refuses what does not fit it.
        let page = if let Source::Pages(page) = source { page } else { PageSize::Base4K };
        let memory = self.memory.as_ref().map(|text| {
            let bytes = figures::parse_size(text)?;
            let whole = bytes > 0 && bytes.is_multiple_of(page.bytes());
            if whole { Ok(bytes) } else { Err(LendUsage::Uneven { text: text.clone(), page }) }
        });
        let memory = memory.transpose()?;
        if memory.is_none() && matches!(source, Source::Pages(_)) {
            return Err(LendUsage::NoSize);
        }
        Ok(LendSettings { source, memory, ledger: self.ledger.clone(), json: self.json, command: self.command.clone() })
    }
}

/// `argument` with `{path}`, `{offset}` and `{bytes}` in it replaced. Other braces stay: QEMU takes JSON.
pub(super) fn fill(argument: &OsStr, values: &[(&str, String)]) -> OsString {
    let mut rest = argument.as_bytes();
    let mut filled = Vec::with_capacity(rest.len());
    while let Some((byte, after)) = rest.split_first() {
        let found = values.iter().find_map(|(name, value)| {
            let after = rest.strip_prefix(b"{")?.strip_prefix(name.as_bytes())?.strip_prefix(b"}")?;
            Some((value, after))
        });
        match found {
            Some((value, after)) => {
                filled.extend_from_slice(value.as_bytes());
                rest = after;
            }
            None => {
                filled.push(*byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(filled)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn settings(words: &[&str]) -> Result<LendSettings, LendUsage> {
        let cli = Cli::try_parse_from(["pageless", "lend"].iter().chain(words).chain(&["--", "true"])).unwrap();
        let Command::Lend(args) = cli.command else { panic!("no loan") };
        args.settings()
    }

    #[test]
    fn a_loan_is_of_a_window_or_of_so_many_pages() {
        let lent = settings(&["--memory", "256M"]).unwrap();
        assert_eq!((lent.source, lent.memory), (Source::Pages(PageSize::Base4K), Some(256 << 20)));
        let window = "/dev/mem@0x40000000+512M";
        let lent = settings(&["--window", window]).unwrap();
        assert_eq!((lent.source, lent.memory), (Source::Window(window.parse().unwrap()), None));
        let huge = settings(&["--memory", "4M", "--backing", "hugetlb-2m"]).unwrap();
        assert_eq!(huge.source, Source::Pages(PageSize::Huge2M));
        assert_eq!(settings(&[]), Err(LendUsage::NoSize));
        assert_eq!(settings(&["--backing", "physical"]), Err(LendUsage::NoWindow));
        let told = |words: &[&str]| settings(words).unwrap_err().to_string();
        assert!(told(&["--window", window, "--backing", "memfd"]).contains("--backing memfd was asked for"));
        assert!(
            told(&["--memory", "0"]).contains("--memory 0 is not a positive number of whole 4K pages"),
            "{}",
            told(&["--memory", "0"])
        );
        assert!(told(&["--memory", "3M", "--backing", "hugetlb-2m"]).contains("whole 2M pages"));
        assert!(told(&["--memory", "banana"]).contains("'banana'"));
        assert!(Cli::try_parse_from(["pageless", "lend", "--memory", "1G"]).is_err(), "no command");
    }

    #[test]
    fn only_the_three_places_are_filled_in() {
        let values = [("path", "/dev/mem".to_owned()), ("offset", "4096".to_owned())];
        let filled = |text: &str| fill(OsStr::new(text), &values).into_string().unwrap();
        assert_eq!(filled("mem-path={path},offset={offset}"), "mem-path=/dev/mem,offset=4096");
        assert_eq!(filled("{\"a\": {\"path\": 1}} {path {} {bytes} }"), "{\"a\": {\"path\": 1}} {path {} {bytes} }");
        assert_eq!(filled("{{path}}"), "{/dev/mem}");
        assert_eq!(fill(OsStr::from_bytes(b"\xff{path}"), &values).as_bytes(), b"\xff/dev/mem");
    }
}
