//! Packages of the system's own release, fetched and unpacked under a private folder, as root or not.
//!
//! [`Debian::unpack`] makes a [`Tree`]: the contents of some packages side by side, as in the root of a small system. A tree
//! is made once and kept in `target/e2e`, under a name that says what is in it. Programs in it run with its own libraries,
//! whatever the system has installed: [`Tree::program`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use xxhash_rust::xxh3::xxh3_64;

use crate::sources::{codename, configure};

/// How long lists of packages serve before they are read again.
const LISTS_LAST: Duration = Duration::from_secs(24 * 3600);

/// What a suite needs and does not get: a reason to skip it, and no defect of pageless.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Missing {
    /// No Debian or Ubuntu, or not quite.
    #[error("packages are fetched from Debian or Ubuntu, and this is neither: {0}")]
    NotDebian(&'static str),
    /// A program of the system is not there.
    #[error("{program} cannot be started: {why}")]
    NoProgram {
        /// The program.
        program: String,
        /// What the system says.
        why: std::io::Error,
    },
    /// A step failed: offline, or the release has no such package.
    #[error("{step} failed: {said}")]
    Failed {
        /// The command.
        step: String,
        /// The end of what it said.
        said: String,
    },
    /// None of the system's sources answered, now or before.
    #[error("no source of packages can be reached: {0}")]
    Unreachable(String),
    /// A package does not have what it should have.
    #[error("{0} is not among the unpacked files")]
    NoFile(String),
    /// The private folder cannot be written.
    #[error("the folder for packages: {0}")]
    Folder(#[from] std::io::Error),
}

/// Where in the release a package is taken from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Suite {
    /// The release itself, with its updates.
    Release,
    /// Newer packages made for the release.
    Backports,
}

/// A package to be unpacked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Package {
    /// With all it depends on.
    Whole(String),
    /// Without what it depends on.
    Alone(String),
}

impl Package {
    /// With all it depends on, down to the C library: for programs.
    #[must_use]
    pub fn whole(name: &str) -> Self {
        Self::Whole(name.to_owned())
    }

    /// Without what it depends on: for data, and static programs.
    #[must_use]
    pub fn alone(name: &str) -> Self {
        Self::Alone(name.to_owned())
    }
}

/// A private apt.
#[derive(Debug)]
pub struct Debian {
    folder: PathBuf,
    configuration: PathBuf,
    codename: String,
}

impl Debian {
    /// Under `target/e2e`. A suite gives `env!("CARGO_TARGET_TMPDIR")`, cargo's folder beside it.
    pub fn beside(tmp: &str) -> Result<Self, Missing> {
        let folder = Path::new(tmp).parent().unwrap_or(Path::new(tmp)).join("e2e");
        fs::create_dir_all(&folder)?;
        let codename = codename()?;
        let configuration = {
            let _lock = lock(&folder)?;
            configure(&folder.join("apt"), &codename)?
        };
        Ok(Self { folder, configuration, codename })
    }

    /// A folder for what suites make out of packages, as kernels that they build. It is kept.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The release if its `package` is at least `version`, and backports otherwise.
    pub fn suite_with(&self, package: &str, version: &str) -> Result<Suite, Missing> {
        let _lock = lock(&self.folder)?;
        self.update_if_old()?;
        let said = run(&mut self.apt("apt-cache"), &["policy", package])?;
        let candidate = said.lines().find_map(|line| line.trim().strip_prefix("Candidate: ")).unwrap_or("(none)");
        let enough = Command::new("dpkg").args(["--compare-versions", upstream(candidate), "ge", version]).status();
        let enough = candidate != "(none)" && enough.is_ok_and(|status| status.success());
        Ok(if enough { Suite::Release } else { Suite::Backports })
    }

    /// The packages that `package` depends on itself. A metapackage's way to say which one it stands for now.
    pub fn depends(&self, package: &str, suite: Suite) -> Result<Vec<String>, Missing> {
        let _lock = lock(&self.folder)?;
        self.update_if_old()?;
        let target = format!("APT::Default-Release={}", self.suite(suite));
        let said = run(&mut self.apt("apt-cache"), &["-o", &target, "show", "--no-all-versions", package])?;
        let line = said.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        let name = |part: &str| part.split_whitespace().next().unwrap_or_default().to_owned();
        Ok(line.split([',', '|']).map(name).collect())
    }

    /// The contents of `packages` side by side. From the private folder if they have been unpacked before; fetched otherwise.
    pub fn unpack(&self, name: &str, suite: Suite, packages: &[Package]) -> Result<Tree, Missing> {
        let contents = xxh3_64(format!("{} {suite:?} {packages:?}", self.codename).as_bytes());
        let root = self.folder.join("trees").join(format!("{name}-{contents:016x}"));
        let _lock = lock(&self.folder)?;
        if !root.is_dir() {
            self.update_if_old()?;
            let part = root.with_extension("part");
            for folder in [&part, &self.archives()] {
                let _ = fs::remove_dir_all(folder);
            }
            fs::create_dir_all(self.archives().join("partial"))?;
            fs::create_dir_all(&part)?;
            if self.fetch(suite, packages).is_err() {
                self.update()?; // the server may have newer ones only
                self.fetch(suite, packages)?;
            }
            for archive in files_in(&self.archives(), "deb") {
                run(Command::new("dpkg").arg("-x").arg(archive), &[&part.display().to_string()])?;
            }
            let _ = fs::remove_dir_all(self.archives());
            fs::rename(&part, &root)?; // whole, or not there
        }
        Ok(Tree { root })
    }

    fn fetch(&self, suite: Suite, packages: &[Package]) -> Result<(), Missing> {
        let target = self.suite(suite);
        let names = |wanted: fn(&Package) -> Option<&str>| packages.iter().filter_map(wanted).collect::<Vec<_>>();
        let whole = names(|package| if let Package::Whole(name) = package { Some(name) } else { None });
        let alone = names(|package| if let Package::Alone(name) = package { Some(name) } else { None });
        if !whole.is_empty() {
            run(self.apt("apt-get").args(["install", "--download-only", "-q", "-y", "-t", &target]), &whole)?;
        }
        if !alone.is_empty() {
            let mut download = self.apt("apt-get");
            run(download.current_dir(self.archives()).args(["download", "-q", "-t", &target]), &alone)?;
        }
        Ok(())
    }

    /// Reads the sources again if that was long ago. Old lists are better than none.
    fn update_if_old(&self) -> Result<(), Missing> {
        let age = fs::metadata(self.updated()).and_then(|file| file.modified()).ok().and_then(|time| time.elapsed().ok());
        if self.has_lists() && age.is_some_and(|age| age < LISTS_LAST) { Ok(()) } else { self.update() }
    }

    /// Some sources may fail and what is needed still be there, so an update fails only where there are no lists at all.
    fn update(&self) -> Result<(), Missing> {
        match run(&mut self.apt("apt-get"), &["update", "-q", "-o", "APT::Update::Error-Mode=any"]) {
            Err(Missing::Failed { .. }) if self.has_lists() => Ok(()),
            Err(Missing::Failed { said, .. }) => Err(Missing::Unreachable(said)),
            Err(other) => Err(other),
            Ok(_) => Ok(fs::write(self.updated(), "")?),
        }
    }

    fn updated(&self) -> PathBuf {
        self.folder.join("apt/updated")
    }

    fn has_lists(&self) -> bool {
        let lists = fs::read_dir(self.folder.join("apt/state/lists")).into_iter().flatten().flatten();
        lists.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    }

    fn suite(&self, suite: Suite) -> String {
        match suite {
            Suite::Release => self.codename.clone(),
            Suite::Backports => format!("{}-backports", self.codename),
        }
    }

    fn archives(&self) -> PathBuf {
        self.folder.join("apt/cache/archives")
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.configuration).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        command
    }
}

/// The contents of some packages, side by side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The folder that stands for `/`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file, by its path from `/` without the first slash.
    pub fn file(&self, path: &str) -> Result<PathBuf, Missing> {
        let file = self.root.join(path);
        if file.exists() { Ok(file) } else { Err(Missing::NoFile(path.to_owned())) }
    }

    /// How a program of [whole](Package::Whole) packages is started: by their dynamic linker, with their libraries. The
    /// program and its first arguments.
    pub fn program(&self, path: &str) -> Result<Vec<String>, Missing> {
        let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
        let libraries = ["lib", "usr/lib"].map(|lib| self.root.join(lib).join(&machine));
        let mut linkers = libraries.iter().map(|folder| folder.join("ld-linux-x86-64.so.2"));
        let linker = linkers.find(|file| file.exists()).ok_or_else(|| Missing::NoFile("ld-linux".to_owned()))?;
        let search = libraries.map(|folder| folder.display().to_string()).join(":");
        Ok(vec![linker.display().to_string(), "--library-path".to_owned(), search, self.file(path)?.display().to_string()])
    }
}

/// Runs a command to its end and answers what it printed.
pub(crate) fn run(command: &mut Command, arguments: &[&str]) -> Result<String, Missing> {
    command.args(arguments).stdin(Stdio::null());
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|why| Missing::NoProgram { program, why })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(3).collect();
    let said = last.into_iter().rev().collect::<Vec<_>>().join("; ");
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy());
    Err(Missing::Failed { step: words.collect::<Vec<_>>().join(" "), said })
}

/// The files in `folder` that end in `.end`, in the order of their names.
pub(crate) fn files_in(folder: &Path, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|file| file.extension().is_some_and(|found| found == end)).collect();
    files.sort();
    files
}

/// A version without its epoch: `1:10.0.2+ds-2` is QEMU 10.0.2.
fn upstream(version: &str) -> &str {
    version.split_once(':').map_or(version, |(_, rest)| rest)
}

/// Suites of other processes wait here.
fn lock(folder: &Path) -> Result<Flock<File>, Missing> {
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Missing::Folder(errno.into()))
}
