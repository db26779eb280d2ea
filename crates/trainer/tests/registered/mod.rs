//! Compiles and loads `device.cpp`, as CUDA's library is loaded: at run time, into a program that knows nothing of it.
#![allow(unsafe_code, dead_code)]

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// The device is there afterwards. Once a process; compiled when the source or the compiler's target folder is newer.
pub(crate) fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let library = compiled();
        let name = CString::new(library.as_os_str().as_encoded_bytes()).expect("a path has no zero");
        // SAFETY: the string ends in a zero; the library's constructors register with libtorch and do nothing else.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        assert!(!handle.is_null(), "{} cannot be loaded", library.display());
    });
}

fn compiled() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/registered/device.cpp");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libregistered_device.so");
    let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    if changed(&library) >= changed(&source) {
        return library;
    }
    let libtorch = Path::new(env!("BASTIONAI_LIBTORCH"));
    let own = library.with_extension(std::process::id().to_string());
    let made = Command::new("c++")
        .args([
            "-shared",
            "-fPIC",
            "-O1",
            "-std=c++17",
            "-D_GLIBCXX_USE_CXX11_ABI=1",
            "-isystem",
        ])
        .arg(libtorch.join("include"))
        .arg("-isystem")
        .arg(libtorch.join("include/torch/csrc/api/include"))
        .arg(&source)
        .arg("-o")
        .arg(&own)
        .status()
        .expect("a C++ compiler, as the build needs one");
    assert!(made.success(), "{} does not compile", source.display());
    // In one step: other tests may look for it at the same time.
    std::fs::rename(&own, &library).expect("the target folder can be written");
    library
}
