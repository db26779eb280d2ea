//! Which shared libraries this process has loaded: the server measures them at boot, for its runtime claims
//! (rule A4).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

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

/// What a run on a device can load besides: all shared objects beside libtorch's and NVIDIA's own libraries, which open one
/// another by name when a shape first needs them, and the driver's beside `libcuda.so.1`.
///
/// # Errors
/// When `/proc` or a library's folder cannot be read.
pub fn loadable() -> io::Result<Vec<String>> {
    let loaded = loaded()?;
    let mut paths: BTreeSet<String> = loaded.iter().cloned().collect();
    for path in loaded.iter().map(Path::new) {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            continue;
        };
        let wanted: &[&str] = if name.starts_with("libcuda.so") {
            &["libcuda", "libnvidia-"]
        } else if OWN_FOLDER.iter().any(|own| name.starts_with(own)) {
            &["lib", "nvshmem_"]
        } else {
            continue;
        };
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_wanted = name.contains(".so") && wanted.iter().any(|prefix| name.starts_with(prefix));
            // Links lead to files that are listed themselves, or to nothing.
            if is_wanted && entry.file_type()?.is_file() {
                paths.extend(entry.path().to_str().map(str::to_owned));
            }
        }
    }
    Ok(paths.into_iter().collect())
}

/// Libraries that lie among their own kind in a Python installation of torch, not among the system's.
const OWN_FOLDER: [&str; 6] = [
    "libtorch_cpu",
    "libcudart",
    "libcudnn",
    "libnccl",
    "libcusparseLt",
    "libnvshmem",
];

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
