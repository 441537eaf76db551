//! A kernel with a configuration of our own, built from Debian's source package.
//!
//! It is built once: what comes of it is kept in `target/e2e/kernels`, under a name that stands for the configuration and the
//! source. gcc, make and binutils are the system's, as a Rust compiler needs them anyway; flex, bison, bc and libelf come from
//! packages that are unpacked privately.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};
use xxhash_rust::xxh3::xxh3_64;

use crate::{Debian, Missing, Package, Suite, Tree};

/// The long-term series of Debian 13, which Debian 12 has in its backports.
const SERIES: &str = "6.12";
/// What of a log an error shows, in lines.
const TAIL: usize = 15;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotBuilt {
    /// A reason to skip.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// Kconfig left lines out: an option is gone, or what it depends on is not set.
    #[error("the kernel's configuration has not kept: {0}")]
    NotKept(String),
    /// The build stopped.
    #[error("{step} failed; {log} ends with:\n{tail}")]
    Failed {
        /// The command.
        step: String,
        /// Where it said what.
        log: String,
        /// The end of that.
        tail: String,
    },
}

impl From<std::io::Error> for NotBuilt {
    fn from(error: std::io::Error) -> Self {
        Self::Missing(error.into())
    }
}

/// A kernel that was built here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BuiltKernel {
    image: PathBuf,
}

impl BuiltKernel {
    /// The kernel whose configuration is `allnoconfig` with the lines of `fragment`. If it is not there it is built, which
    /// takes some minutes, two gigabytes for as long, and is said on standard error.
    pub fn of(debian: &Debian, fragment: &str) -> Result<Self, NotBuilt> {
        let package = format!("linux-source-{SERIES}");
        let suite = debian.suite_with(&package, SERIES)?;
        let source = debian.unpack("kernel-source", suite, &[Package::alone(&package)])?;
        let archive = source.file(&format!("usr/src/{package}.tar.xz"))?;
        let found = fs::metadata(&archive)?;
        let stamp = xxh3_64(format!("{package} {} {} {fragment}", found.len(), found.mtime()).as_bytes());

        let kernels = debian.folder().join("kernels");
        fs::create_dir_all(&kernels)?;
        let lock = File::options().create(true).truncate(false).write(true).open(kernels.join("lock"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| std::io::Error::from(errno))?;
        let image = kernels.join(format!("{stamp:016x}/bzImage"));
        if !image.exists() {
            let building = kernels.join("building");
            let _ = fs::remove_dir_all(&building);
            fs::create_dir_all(&building)?;
            // Straight to the descriptor: the test harness holds back what is printed.
            writeln!(std::io::stderr(), "building a kernel, which takes some minutes: {}", building.join("log").display())?;
            let built = Build { source: building.join(&package), tools: Tools::unpack(debian, &building)?, folder: building };
            built.run(&archive, fragment)?;
            keep(&built.folder, &image)?;
            fs::remove_dir_all(&built.folder)?;
        }
        Ok(Self { image })
    }

    /// The compressed kernel, to be booted.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }
}

/// Puts the kernel and its configuration where they stay: whole, or not at all.
fn keep(building: &Path, image: &Path) -> Result<(), NotBuilt> {
    let kept = image.parent().unwrap_or(image);
    let part = kept.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part)?;
    fs::copy(building.join("out/arch/x86/boot/bzImage"), part.join("bzImage"))?;
    fs::copy(building.join("out/.config"), part.join("config"))?;
    Ok(fs::rename(part, kept)?)
}

struct Build {
    folder: PathBuf,
    source: PathBuf,
    tools: Tools,
}

impl Build {
    fn run(&self, archive: &Path, fragment: &str) -> Result<(), NotBuilt> {
        let wanted = self.folder.join("fragment");
        fs::write(&wanted, fragment)?;
        self.step(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&self.folder))?;
        self.step(self.make().arg(format!("KCONFIG_ALLCONFIG={}", wanted.display())).arg("allnoconfig"))?;
        let config = fs::read_to_string(self.folder.join("out/.config"))?;
        let lost = left_out(fragment, &config);
        if !lost.is_empty() {
            return Err(NotBuilt::NotKept(lost.join(", ")));
        }
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.step(self.make().arg(format!("-j{jobs}")).arg("bzImage"))
    }

    fn make(&self) -> Command {
        let mut make = Command::new("make");
        make.arg("-C").arg(&self.source).arg(format!("O={}", self.folder.join("out").display()));
        make.args(self.tools.words());
        make
    }

    /// Runs a command with the tools on the path. What it says goes to the log.
    fn step(&self, command: &mut Command) -> Result<(), NotBuilt> {
        let log = self.folder.join("log");
        let output = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let program = command.get_program().to_string_lossy().into_owned();
        let status = self.tools.on_the_path(command).status().map_err(|why| Missing::NoProgram { program, why })?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read_to_string(&log)?;
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        Err(NotBuilt::Failed { step: format!("{command:?}"), log: log.display().to_string(), tail })
    }
}

/// The lines of a fragment that a configuration does not have. A comment is none; `# X is not set` is one.
fn left_out<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let wanted = fragment.lines().filter(|line| line.starts_with("CONFIG_") || line.ends_with(" is not set"));
    wanted.filter(|wanted| !config.lines().any(|line| line == *wanted)).collect()
}

/// Programs and a library that a kernel's build needs and a system without kernel developers does not have.
struct Tools {
    /// A folder for the path: each program as a script, since it needs the libraries it came with.
    bin: PathBuf,
    bison: PathBuf,
    libelf: Tree,
}

impl Tools {
    const PROGRAMS: [&str; 5] = ["bc", "bison", "flex", "m4", "xz"];

    fn unpack(debian: &Debian, folder: &Path) -> Result<Self, Missing> {
        let programs =
            debian.unpack("kernel-tools", Suite::Release, &["bc", "bison", "flex", "m4", "xz-utils"].map(Package::whole))?;
        let bin = folder.join("bin");
        fs::create_dir_all(&bin)?;
        for name in Self::PROGRAMS {
            let words = quoted(&programs.program(&format!("usr/bin/{name}"))?);
            fs::write(bin.join(name), format!("#!/bin/sh\nexec {words} \"$@\"\n"))?;
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))?;
        }
        // Alone, since what is linked to it runs with the system's other libraries. Its own name differs between releases.
        let needed = debian.depends("libelf-dev", Suite::Release)?;
        let library = needed.into_iter().find(|name| name.starts_with("libelf1"));
        let library = library.ok_or_else(|| Missing::NoFile("libelf1 among what libelf-dev depends on".to_owned()))?;
        let libelf = debian.unpack("libelf", Suite::Release, &[Package::alone("libelf-dev"), Package::Alone(library)])?;
        Ok(Self { bin, bison: programs.file("usr/share/bison")?, libelf })
    }

    fn on_the_path<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.bin.display()));
        command.env("M4", self.bin.join("m4")).env("BISON_PKGDATADIR", &self.bison).env("LC_ALL", "C.UTF-8")
    }

    /// Where the programs that a kernel is built with find libelf: words for make.
    fn words(&self) -> [String; 2] {
        let usr = self.libelf.root().join("usr");
        let (include, library) = (usr.join("include"), usr.join("lib/x86_64-linux-gnu"));
        let (include, library) = (include.display(), library.display());
        [format!("HOSTCFLAGS=-idirafter {include}"), format!("HOSTLDFLAGS=-L{library} -Wl,-rpath,{library}")]
    }
}

/// Words as a shell takes them.
fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_kconfig_drops_are_named_and_comments_are_not() {
        let fragment = "# Because of this.\nCONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n";
        assert_eq!(left_out(fragment, "CONFIG_A=y\n# CONFIG_C is not set\n"), ["CONFIG_B=y"]);
        assert_eq!(
            left_out(fragment, "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n"),
            ["CONFIG_B=y", "# CONFIG_C is not set"]
        );
    }
}
