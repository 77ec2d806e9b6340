//! The key that a gate writes for the commands of its machine: whoever may read it looks after the gate.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::store::Secret;

const FILE: &str = "cli.key";

/// Puts a new one in the place of the one that an earlier process wrote.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_command_key(folder: &Path, key: &Secret) -> io::Result<PathBuf> {
    let (path, beside) = (folder.join(FILE), folder.join(".cli.key.new"));
    // One that was left there may be anybody's to read.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    writeln!(file, "{}", key.as_str())?;
    fs::rename(&beside, &path)?;
    Ok(path)
}

/// # Errors
/// Where there is none, or we may not read it.
pub fn read_command_key(folder: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(folder.join(FILE))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn each_process_has_its_own_and_nobody_else_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let keys = [Secret::draw().unwrap(), Secret::draw().unwrap()];
        for key in &keys {
            let path = write_command_key(folder.path(), key).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(read_command_key(folder.path()).unwrap(), key.as_str());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
