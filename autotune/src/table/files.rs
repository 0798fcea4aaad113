//! Tables as files: read whole, written whole, by one tuner at a time.

use super::Table;
use bitsmith_compiler::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// Reads a table.
pub fn read(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::invalid(format!("{}: cannot be read: {error}; check the path", path.display())))?;
    Table::parse(&text, &path.display().to_string())
}

/// Writes a table: to another name first, which is then renamed, so that no reader ever finds half of it.
pub fn write(path: &Path, table: &Table) -> Result<()> {
    let fault = |error: std::io::Error| Error::invalid(format!("{}: cannot be written: {error}", path.display()));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(fault)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(name);
    let whole = || {
        let mut file = File::create(&temporary)?;
        std::io::Write::write_all(&mut file, table.to_text().map_err(std::io::Error::other)?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    whole().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        fault(error)
    })
}

/// The journal that belongs to a table.
pub fn journal_path(table: &Path) -> PathBuf {
    table.with_extension("journal")
}

/// Keeps a second tuner away from a table. The system lets go of it when its holder ends, however that comes about.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a table, or says that somebody has it.
    pub fn take(table: &Path) -> Result<Lock> {
        let path = table.with_extension("lock");
        let fault = |error: std::io::Error| Error::invalid(format!("{}: cannot be written: {error}", path.display()));
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(fault)?;
        }
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(&path).map_err(fault)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::invalid(format!(
                "{}: another tuner is at work on this table; wait for it, or write to another --out",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => Err(fault(error)),
        }
    }
}
