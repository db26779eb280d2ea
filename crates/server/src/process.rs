//! What the server's own process gives away when it fails: no memory image, no words of a panic.

use crate::log::Event;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use std::panic::Location;

/// Forbids core dumps and reading this process's memory by others of the same user, and reduces every panic to
/// its place: a panic's message may quote data (rule G4). For programs that only serve; call it before the
/// server starts, so before there are keys. What the system refuses is logged and skipped.
pub fn harden_process() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if rustix::process::setrlimit(Resource::Core, none).is_err() {
        Event::NotHardened { what: "core-limit" }.emit();
    }
    if rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_err() {
        Event::NotHardened { what: "not-dumpable" }.emit();
    }
    std::panic::set_hook(Box::new(|panic| {
        let (file, line) = panic.location().map_or(("unknown", 0), place);
        Event::Panicked { file, line }.emit();
    }));
}

fn place<'a>(location: &'a Location<'_>) -> (&'a str, u32) {
    (location.file(), location.line())
}
