//! The guest's first and only file system: a cpio archive of the `newc` kind, uncompressed.
//!
//! Format: <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>

use super::kernel::Kernel;
use super::tools;
use crate::artifacts::libraries;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
/// Where init mounts file systems.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "sys", "tmp", "run"];

/// Writes an archive with `init` as /init, the tools that tests run, the libraries of both, and the kernel's modules as
/// `/modules/NNN-name.ko` in the order in which init loads them. `filter` becomes `/filter`: test names hold
/// spaces, which a kernel command line would split.
///
/// # Errors
/// Names the file that could not be read or written.
pub fn write(image: &Path, init: &Path, kernel: &Kernel, filter: Option<&str>) -> Result<()> {
    let file = File::create(image).with_context(|| format!("create {}", image.display()))?;
    let mut archive = Archive {
        out: BufWriter::new(file),
        inode: 0,
        folders: BTreeSet::new(),
        files: BTreeSet::new(),
    };
    for folder in MOUNT_POINTS {
        archive.folder(Path::new(folder))?;
    }
    // The kernel opens it for init's standard streams before anything is mounted.
    archive.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[])?;
    archive.file(Path::new("init"), init)?;
    let mut files = tools::files()?;
    let below = |path: PathBuf| (path.strip_prefix("/").unwrap_or(&path).to_owned(), path);
    files.extend(libraries(init)?.into_iter().map(below));
    for (name, source) in files {
        archive.file(&name, &source)?;
    }
    for (number, module) in kernel.modules.iter().enumerate() {
        let name = module.file_name().context("a module without a name")?.to_string_lossy();
        archive.file(&PathBuf::from(format!("modules/{number:03}-{name}")), module)?;
    }
    if let Some(filter) = filter {
        archive.entry("filter", PROGRAM, (0, 0), filter.as_bytes())?;
    }
    archive.entry("TRAILER!!!", 0, (0, 0), &[])?;
    archive.out.flush().with_context(|| format!("write {}", image.display()))
}

struct Archive<W> {
    out: W,
    inode: u32,
    folders: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    /// Adds a file, once.
    fn file(&mut self, name: &Path, source: &Path) -> Result<()> {
        if !self.files.insert(name.to_owned()) {
            return Ok(());
        }
        let content = fs::read(source).with_context(|| format!("read {}", source.display()))?;
        if let Some(parent) = name.parent() {
            self.folder(parent)?;
        }
        self.entry(&name.to_string_lossy(), PROGRAM, (0, 0), &content)
    }

    /// Adds a folder and those it lies in, once.
    fn folder(&mut self, folder: &Path) -> Result<()> {
        if folder.as_os_str().is_empty() || !self.folders.insert(folder.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = folder.parent() {
            self.folder(parent)?;
        }
        self.entry(&folder.to_string_lossy(), DIRECTORY, (0, 0), &[])
    }

    /// One header, name and content, each padded to four bytes.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
        let name_size = u32::try_from(name.len() + 1).context("a name is too long")?;
        let (major, minor) = device;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        let mut header = "070701".to_owned();
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        header.push_str(name);
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(content)
    }

    fn padded(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.write_all(&[0; 3][..padding])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_parents_come_before_their_files() {
        let mut archive =
            Archive { out: Vec::new(), inode: 0, folders: BTreeSet::new(), files: BTreeSet::new() };
        archive.folder(Path::new("lib/deep")).expect("a folder");
        archive.folder(Path::new("lib")).expect("a folder known already");
        archive.entry("init", PROGRAM, (0, 0), b"12345").expect("a file");
        let text = String::from_utf8(archive.out).expect("ASCII");
        assert_eq!(text.len() % 4, 0);
        let names: Vec<_> = text.split("070701").skip(1).map(|entry| &entry[104..]).collect();
        assert_eq!(names.len(), 3);
        for (name, expected) in names.iter().zip(["lib\0", "lib/deep\0", "init\0"]) {
            assert!(name.starts_with(expected), "{name:?}");
        }
    }
}
