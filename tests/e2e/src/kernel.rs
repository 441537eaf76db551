//! A kernel of Debian's and its modules, out of the package: nothing is installed, and depmod never ran.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::debian::files_in;
use crate::{Debian, Missing, Package, Suite, Tree};

/// The cloud kernel of a suite: small, and with what a virtual machine needs built in.
#[derive(Clone, Debug)]
pub struct Kernel {
    tree: Tree,
    release: String,
}

/// A kernel module, ready to be loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Module {
    /// Its name, as in `/proc/modules`.
    pub name: String,
    /// The ELF file.
    pub bytes: Vec<u8>,
}

impl Kernel {
    /// The current cloud kernel: Debian's metapackage names it.
    pub fn cloud(debian: &Debian, suite: Suite) -> Result<Self, Missing> {
        let names = debian.depends("linux-image-cloud-amd64", suite)?;
        let name = names.into_iter().find(|name| name.starts_with("linux-image-"));
        let name = name.ok_or_else(|| Missing::NoFile("a kernel's name in linux-image-cloud-amd64".to_owned()))?;
        let release = name.trim_start_matches("linux-image-").to_owned();
        Ok(Self { tree: debian.unpack("kernel", suite, &[Package::Alone(name)])?, release })
    }

    /// What `uname -r` says in it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The compressed kernel, to be booted.
    pub fn image(&self) -> Result<PathBuf, Missing> {
        self.tree.file(&format!("boot/vmlinuz-{}", self.release))
    }

    /// The kernel's configuration, as `CONFIG_X=y` lines.
    pub fn configuration(&self) -> Result<String, Missing> {
        Ok(fs::read_to_string(self.tree.file(&format!("boot/config-{}", self.release))?)?)
    }

    /// The modules named and those they depend on, in the order in which they have to be loaded. A module that is built in
    /// has no file, and is an error.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>, Missing> {
        let folder = ["lib", "usr/lib"].iter().find_map(|lib| self.tree.file(&format!("{lib}/modules/{}", self.release)).ok());
        let folder = folder.ok_or_else(|| Missing::NoFile(format!("lib/modules/{}", self.release)))?;
        let mut files = HashMap::new();
        find_modules(&folder, &mut files);
        let mut ordered = Vec::new();
        names.iter().try_for_each(|name| load(name, &files, &mut ordered))?;
        Ok(ordered)
    }
}

/// Every module below `folder`, by name: a file's name may have a dash where the module's has an underscore.
fn find_modules(folder: &Path, files: &mut HashMap<String, PathBuf>) {
    for file in files_in(folder, "ko").into_iter().chain(files_in(folder, "xz")) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let name = name.split('.').next().unwrap_or_default().replace('-', "_");
        files.insert(name, file);
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .for_each(|entry| find_modules(&entry.path(), files));
}

/// Appends a module after all that it depends on.
fn load(name: &str, files: &HashMap<String, PathBuf>, ordered: &mut Vec<Module>) -> Result<(), Missing> {
    if ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let file = files.get(name).ok_or_else(|| Missing::NoFile(format!("the module {name}")))?;
    let mut bytes = fs::read(file)?;
    if file.extension().is_some_and(|end| end == "xz") {
        let mut plain = Vec::new();
        let damaged = |error| Missing::Failed { step: format!("decompressing {}", file.display()), said: format!("{error:?}") };
        lzma_rs::xz_decompress(&mut bytes.as_slice(), &mut plain).map_err(damaged)?;
        bytes = plain;
    }
    for needed in depends(&bytes) {
        load(&needed.replace('-', "_"), files, ordered)?;
    }
    ordered.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// What a module says of itself: its `.modinfo` section has `depends=a,b` between zero bytes (scripts/mod/modpost.c).
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(depends(b"\x7fELF..license=GPL\0depends=kvm,irqbypass\0name=kvm_amd\0"), ["kvm", "irqbypass"]);
        assert_eq!(depends(b"\x7fELF..license=GPL\0depends=\0name=kvm\0"), Vec::<String>::new());
    }
}
