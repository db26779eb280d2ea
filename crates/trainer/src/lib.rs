//! The DP training engine over libtorch; a process of its own.
