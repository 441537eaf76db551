//! The command line: what may be said, and what it means.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pageless::Order;

use crate::figures::{self, SizeError};
use crate::ledger::LedgerCommand;
use crate::lend::LendArgs;
use crate::paint::ColorChoice;
use crate::window::WindowSpec;

/// The least memory the tour takes: two guests with their bounce buffers, a pinned segment and room for pressure.
pub const MIN_MEMORY: u64 = 1 << 30;

/// The same for a physical window, which is set aside at boot and dear: less of everything, and nothing is pinned.
pub const MIN_WINDOW: u64 = 512 << 20;

/// The size of the pool unless somebody says otherwise.
const USUAL_MEMORY: u64 = 8 << 30;

/// The most memory the tour takes. Its address space is really mapped, once for each guest and once for the host, and a
/// process on x86-64 has 128 TiB.
pub const MAX_MEMORY: u64 = 16 << 40;

/// Where the page is written unless somebody says otherwise.
pub const DEFAULT_HTML: &str = "pageless-tour.html";

/// A PFN range allocator for confidential-VM memory.
#[derive(Parser, Debug)]
#[command(name = "pageless", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// When to use colour; auto obeys NO_COLOR
    #[arg(long, value_enum, value_name = "WHEN", default_value_t, global = true)]
    pub color: ColorChoice,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `pageless` can do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Shows on real memory what pageless does, step by step
    ///
    /// Two guests get memory from one pool, convert it, and give it back. On the way a page is really pinned by the kernel and
    /// invalidations fail; the tour shows what a VMM is told, that a frame without proof is never handed out again, and what
    /// one check costs beside a scan of reference counts. It needs no root and no huge pages.
    Tour(TourArgs),
    /// Lends memory to a command, and takes it back with proof when the command has ended
    ///
    /// The memory is a range of a file: its path, offset and length are put into the arguments in the places {path}, {offset} and
    /// {bytes}, and stand in PAGELESS_PATH, PAGELESS_OFFSET and PAGELESS_BYTES. When the command and all that it started has
    /// ended, the memory is reclaimed, zeroed and read; the account is told on standard error. Exit code 1 when the command
    /// failed or a frame was lost.
    Lend(LendArgs),
    /// Looks at a pool's ledger while no pool has it open
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// The second process of the tour, which the tour kills
    #[command(hide = true)]
    TourWorker {
        /// Its ledger.
        file: PathBuf,
        /// The frames of its allocation that get stuck.
        frames: Vec<u64>,
    },
}

/// The arguments of `pageless tour`, as written.
#[derive(Args, Debug)]
pub struct TourArgs {
    /// Size of the pool: bytes, or a number with K, M, G or T, all powers of two (G means GiB): 3G, 12 GiB, 4096M
    /// [default: 8GiB, or the window]
    #[arg(long, value_name = "SIZE", num_args = 1..=2, action = clap::ArgAction::Set, env = "PAGELESS_MEMORY")]
    memory: Option<Vec<String>>,
    /// Seed of everything that is drawn: scattered conversions and injected failures
    #[arg(long, value_name = "N", default_value_t = 1, env = "PAGELESS_SEED")]
    seed: u64,
    /// Print one JSON object on standard output, and nothing else
    #[arg(long)]
    json: bool,
    /// Write the page with the map and the comparison here [default: pageless-tour.html]
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write no page
    #[arg(long, conflicts_with = "html")]
    no_html: bool,
    /// The memory to use; auto takes huge pages where enough are reserved
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    backing: BackingChoice,
    /// The physical window to use: a device that shows memory set aside at boot, with offset and length, such as
    /// /dev/mem@0x40000000+512M, or /dev/dax0.0
    #[arg(long, value_name = "DEVICE[@OFFSET+LENGTH]")]
    window: Option<WindowSpec>,
    /// Do not zero memory between owners: shows that the tour would notice
    #[arg(long)]
    without_zeroing: bool,
}

/// Which memory the tour runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum BackingChoice {
    /// The largest huge pages of which enough are reserved, else memfd.
    #[default]
    Auto,
    /// Ordinary 4 KiB pages in memfds.
    Memfd,
    /// Huge pages of 2 MiB.
    #[value(name = "hugetlb-2m")]
    Hugetlb2m,
    /// Huge pages of 1 GiB.
    #[value(name = "hugetlb-1g")]
    Hugetlb1g,
    /// Physical memory outside the kernel's page map, given by --window.
    Physical,
}

/// Where the page goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HtmlTarget {
    /// Nowhere.
    Off,
    /// To the usual file. If it cannot be written, that is told, and no error.
    Usual(PathBuf),
    /// To a file somebody asked for. If it cannot be written, that is an error.
    Asked(PathBuf),
}

/// How the tour speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Voice {
    /// In sentences, for people.
    Prose,
    /// As one JSON object, for programs.
    Json,
}

/// Whether memory is zeroed between owners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zeroing {
    /// It is: what pageless is for.
    On,
    /// It is not: for showing that the tour notices.
    Off,
}

/// The arguments of `pageless tour`, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TourSettings {
    /// Size of the pool in bytes: whole 2 MiB blocks, from [`MIN_MEMORY`] to [`MAX_MEMORY`]. Nothing where the window says it.
    pub memory: Option<u64>,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// How the tour speaks.
    pub voice: Voice,
    /// Where the page goes.
    pub html: HtmlTarget,
    /// Which memory to use.
    pub backing: BackingChoice,
    /// Which physical window; only with [`BackingChoice::Physical`], and always then.
    pub window: Option<WindowSpec>,
    /// Whether memory is zeroed between owners.
    pub zeroing: Zeroing,
}

/// Why the arguments make no tour.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UsageError {
    /// The size cannot be read.
    #[error("--memory: {0}")]
    Size(#[from] SizeError),
    /// Too little memory for the story.
    #[error("--memory {text} is too small: the tour needs at least {min} for two guests, a pinned segment and some pressure; try --memory 8G", min = figures::bytes(MIN_MEMORY))]
    TooSmall {
        /// What was written.
        text: String,
    },
    /// More memory than can be mapped.
    #[error("--memory {text} is too large: the tour really maps its pool and can do so up to {max}; try --memory 8G", max = figures::bytes(MAX_MEMORY))]
    TooLarge {
        /// What was written.
        text: String,
    },
    /// A physical window without its place.
    #[error(
        "--backing physical needs --window, such as --window /dev/mem@0x40000000+512M for memory set aside with memmap=512M$1G"
    )]
    NoWindow,
    /// A physical window, and other memory.
    #[error("--window is for --backing physical, and --backing {} was asked for", .backing.to_possible_value().map_or_else(String::new, |name| name.get_name().to_owned()))]
    WindowForOther {
        /// The memory asked for.
        backing: BackingChoice,
    },
    /// A size beside a window.
    #[error(
        "--window {window} is the pool, so --memory (or PAGELESS_MEMORY) has nothing to say; leave it out, or give a shorter window"
    )]
    WindowHasSize {
        /// The window.
        window: String,
    },
    /// Too small a window for the story.
    #[error("--window {window} is too small: the tour needs at least {min} for two guests and some pressure", min = figures::bytes(MIN_WINDOW))]
    WindowTooSmall {
        /// The window.
        window: String,
    },
    /// Not whole 2 MiB blocks.
    #[error("--memory {text} is not a whole number of 2 MiB blocks; the next smaller one is {below}M")]
    Uneven {
        /// What was written.
        text: String,
        /// The next smaller whole size, in MiB.
        below: u64,
    },
}

impl TourArgs {
    /// Checks the arguments against each other and against what the tour can do.
    pub fn settings(&self) -> Result<TourSettings, UsageError> {
        let html = match (&self.html, self.no_html) {
            (Some(file), _) => HtmlTarget::Asked(file.clone()),
            (None, true) => HtmlTarget::Off,
            (None, false) => HtmlTarget::Usual(PathBuf::from(DEFAULT_HTML)),
        };
        let (memory, backing, window) = self.ground()?;
        Ok(TourSettings {
            memory,
            seed: self.seed,
            voice: if self.json { Voice::Json } else { Voice::Prose },
            html,
            backing,
            window,
            zeroing: if self.without_zeroing { Zeroing::Off } else { Zeroing::On },
        })
    }
}

impl TourArgs {
    /// The memory: its size unless a window has it, its kind, and the window.
    fn ground(&self) -> Result<(Option<u64>, BackingChoice, Option<WindowSpec>), UsageError> {
        let memory = self.memory.as_ref().map(|words| pool_size(&words.join(" "))).transpose()?;
        match (&self.window, self.backing) {
            (None, BackingChoice::Physical) => Err(UsageError::NoWindow),
            (None, backing) => Ok((Some(memory.unwrap_or(USUAL_MEMORY)), backing, None)),
            (Some(window), BackingChoice::Auto | BackingChoice::Physical) if memory.is_some() => {
                Err(UsageError::WindowHasSize { window: window.to_string() })
            }
            (Some(window), BackingChoice::Auto | BackingChoice::Physical) => {
                if window.bytes().is_some_and(|bytes| bytes < MIN_WINDOW) {
                    return Err(UsageError::WindowTooSmall { window: window.to_string() });
                }
                Ok((None, BackingChoice::Physical, Some(window.clone())))
            }
            (Some(_), backing) => Err(UsageError::WindowForOther { backing }),
        }
    }
}

/// The size of the pool that `text` names, if the tour can use it.
fn pool_size(text: &str) -> Result<u64, UsageError> {
    let bytes = figures::parse_size(text)?;
    let text = text.trim().to_owned();
    if bytes < MIN_MEMORY {
        Err(UsageError::TooSmall { text })
    } else if bytes > MAX_MEMORY {
        Err(UsageError::TooLarge { text })
    } else if !bytes.is_multiple_of(Order::MIB2.bytes()) {
        Err(UsageError::Uneven { text, below: bytes / Order::MIB2.bytes() * 2 })
    } else {
        Ok(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn settings(words: &[&str]) -> Result<TourSettings, UsageError> {
        let cli = Cli::try_parse_from(["pageless", "tour"].iter().chain(words)).unwrap();
        let Command::Tour(args) = cli.command else { panic!("no tour") };
        args.settings()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_size_may_be_one_word_or_two() {
        assert_eq!(settings(&["--memory", "12", "GiB", "--json"]).unwrap().memory, Some(12 << 30));
        assert_eq!(settings(&["--memory", "12 GiB"]).unwrap().memory, Some(12 << 30));
        assert_eq!(settings(&["--memory=12GiB"]).unwrap().memory, Some(12 << 30));
        assert_eq!(settings(&["--memory", "3G", "--seed", "7"]).unwrap().seed, 7);
        assert_eq!(settings(&[]).unwrap().memory, Some(8 << 30));
    }

    #[test]
    fn a_size_the_story_cannot_use_is_refused_with_the_bounds() {
        let told = |text: &str| settings(&["--memory", text]).unwrap_err().to_string();
        assert!(told("banana").contains("'banana'"));
        assert!(told("1K").contains("1K") && told("1K").contains("at least 1 GiB"));
        assert!(told("900T").contains("900T") && told("900T").contains("16 TiB"));
        assert_eq!(
            told("1073741825"),
            "--memory 1073741825 is not a whole number of 2 MiB blocks; the next smaller one is 1024M"
        );
        assert!(settings(&["--memory", "1G"]).is_ok() && settings(&["--memory", "16T"]).is_ok());
    }

    #[test]
    fn a_window_is_the_pool_and_stands_alone() {
        let window = "/dev/mem@0x40000000+512M";
        let physical = settings(&["--backing", "physical", "--window", window]).unwrap();
        assert_eq!((physical.memory, physical.window.clone()), (None, window.parse().ok()));
        assert_eq!(settings(&["--window", window]).unwrap(), physical);
        assert_eq!(settings(&["--backing", "physical"]), Err(UsageError::NoWindow));
        let told = |words: &[&str]| settings(words).unwrap_err().to_string();
        assert!(told(&["--window", window, "--backing", "hugetlb-2m"]).contains("--backing hugetlb-2m was asked for"));
        assert!(told(&["--window", window, "--memory", "1G"]).contains("leave it out"));
        assert!(told(&["--window", "/dev/mem@0x40000000+256M"]).contains("at least 512 MiB"));
        assert!(Cli::try_parse_from(["pageless", "tour", "--window", "banana"]).is_err());
    }

    #[test]
    fn the_page_goes_where_it_was_asked_to() {
        assert_eq!(settings(&[]).unwrap().html, HtmlTarget::Usual(DEFAULT_HTML.into()));
        assert_eq!(settings(&["--html", "x.html"]).unwrap().html, HtmlTarget::Asked("x.html".into()));
        assert_eq!(settings(&["--no-html"]).unwrap().html, HtmlTarget::Off);
        assert!(Cli::try_parse_from(["pageless", "tour", "--no-html", "--html", "x"]).is_err());
    }
}
