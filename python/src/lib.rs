//! The PyO3 module `bastionai._internal`.
