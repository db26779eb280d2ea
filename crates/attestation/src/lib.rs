//! Evidence bytes to verified to appraised; no network, no async, time passed in.
