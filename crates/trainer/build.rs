//! Checks that the libtorch at hand is the pinned one, compiles the shim, and sets the run path.

use std::env;
use std::path::{Path, PathBuf};

/// Names the pinned torch in one place for Python and Rust; `tch` in the workspace's Cargo.toml is its partner.
const REQUIREMENTS: &str = "../../requirements.txt";

fn main() {
    let sources = ["shim.cpp", "recurrence.cpp", "products.cpp", "convolution.cpp"];
    let headers = [
        "shim.h",
        "recurrence.h",
        "cells.h",
        "products.h",
        "products_kernels.h",
        "convolution.h",
        "convolution_kernels.h",
    ];
    for file in sources.iter().chain(&headers) {
        println!("cargo:rerun-if-changed=shim/{file}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = libtorch_folder();
    check_version(&libtorch);
    compile_shim(&libtorch);
    // For a device of the tests' own, which they compile.
    println!("cargo:rustc-env=BASTIONAI_LIBTORCH={}", libtorch.display());
    println!(
        "cargo:rustc-link-arg=-Wl,-rpath,{}",
        libtorch.join("lib").display()
    );
}

/// `LIBTORCH` is set by `.cargo/config.toml`, relative to the workspace.
fn libtorch_folder() -> PathBuf {
    let set = env::var("LIBTORCH").unwrap_or_else(|_| {
        panic!("LIBTORCH is not set: build from inside the repository, whose .cargo/config.toml sets it")
    });
    let folder = Path::new(&set);
    std::fs::canonicalize(folder)
        .unwrap_or_else(|error| panic!("no libtorch at {}: {error}; run `make setup`", folder.display()))
}

fn check_version(libtorch: &Path) {
    let pinned = pinned_version();
    let file = libtorch.join("version.py");
    println!("cargo:rerun-if-changed={}", file.display());
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}; run `make setup`", file.display()));
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix("__version__ = '"))
        .and_then(|rest| rest.split(['+', '\'']).next())
        .unwrap_or("unknown");
    assert!(
        found == pinned,
        "{} is torch {found}, but the engine is pinned to torch {pinned}: run `make setup`, \
         or `.venv/bin/pip install torch=={pinned}`",
        libtorch.display()
    );
}

fn pinned_version() -> String {
    println!("cargo:rerun-if-changed={REQUIREMENTS}");
    let text = std::fs::read_to_string(REQUIREMENTS)
        .unwrap_or_else(|error| panic!("cannot read {REQUIREMENTS}, which pins torch: {error}"));
    let version = text.lines().find_map(|line| line.strip_prefix("torch=="));
    version
        .unwrap_or_else(|| panic!("{REQUIREMENTS} has no line `torch==VERSION`"))
        .trim()
        .to_owned()
}

fn compile_shim(libtorch: &Path) {
    let include = libtorch.join("include");
    cc::Build::new()
        .cpp(true)
        .file("shim/shim.cpp")
        .file("shim/recurrence.cpp")
        .file("shim/products.cpp")
        .file("shim/convolution.cpp")
        .include("shim")
        .flag("-isystem")
        .flag(include.to_str().expect("the path to libtorch is UTF-8"))
        .flag("-isystem")
        .flag(
            include
                .join("torch/csrc/api/include")
                .to_str()
                .expect("the path to libtorch is UTF-8"),
        )
        .flag("-std=c++17")
        // Without it at::parallel_for runs on one thread. The threads are those of libtorch: one libgomp serves both.
        .flag("-fopenmp")
        // After what the environment's CXXFLAGS say: bounds of rounding rest on the order that is written.
        .flag("-fno-fast-math")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .warnings(true)
        .flag_if_supported("-Wno-unused-parameter")
        .compile("bastion_shim");
    println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
    println!(
        "cargo:rustc-link-search=native={}",
        libtorch.join("lib").display()
    );
}
