//! Programs that cargo builds beside the tests.

use std::path::PathBuf;

/// The example of this name; `cargo` builds it.
pub fn example(name: &str, cargo: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(|tests| tests.parent()).unwrap();
    let program = folder.join("examples").join(name);
    assert!(
        program.is_file(),
        "{} is missing: `{cargo}` builds it",
        program.display()
    );
    program
}

/// Of this crate.
pub fn own_example(name: &str) -> PathBuf {
    example(name, "cargo test -p bastionai-server")
}
