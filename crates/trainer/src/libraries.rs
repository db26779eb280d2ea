//! Which shared libraries this process has loaded: the server measures them at boot, for its runtime claims
//! (rule A4).

use std::collections::BTreeSet;
use std::fs;
use std::io;

/// Paths of the files mapped executable into this process, but the program itself.
///
/// # Errors
/// When `/proc` is not there.
pub fn loaded() -> io::Result<Vec<String>> {
    let own = std::env::current_exe()?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let paths: BTreeSet<&str> = maps.lines().filter_map(executable_file).collect();
    Ok(paths
        .into_iter()
        .filter(|path| own.as_os_str() != *path)
        .map(str::to_owned)
        .collect())
}

/// Columns: address, permissions, offset, device, inode, path (proc(5)).
fn executable_file(line: &str) -> Option<&str> {
    let permissions = line.split_ascii_whitespace().nth(1)?;
    let path = &line[line.find('/')?..];
    permissions.contains('x').then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_is_among_the_loaded_libraries_and_each_is_a_file() {
        tch::set_num_threads(1); // keeps libtorch linked
        let paths = loaded().unwrap();
        assert!(
            paths.iter().any(|path| path.contains("libtorch_cpu")),
            "{paths:?}"
        );
        assert!(
            paths
                .iter()
                .all(|path| fs::metadata(path).is_ok_and(|file| file.is_file())),
            "{paths:?}"
        );
    }

    #[test]
    fn anonymous_and_data_mappings_are_no_libraries() {
        assert_eq!(
            executable_file("7f0-7f1 r-xp 00000000 fe:00 12   /usr/lib/lib a.so"),
            Some("/usr/lib/lib a.so")
        );
        assert_eq!(
            executable_file("7f0-7f1 r--p 00000000 fe:00 12   /usr/lib/liba.so"),
            None
        );
        assert_eq!(executable_file("7f0-7f1 r-xp 00000000 00:00 0    [vdso]"), None);
    }
}
