//! Leaky and sound programs, the second oracle, random programs and rule mutants, without torch.

mod build;
mod embedding;
mod leaky;
mod leaky_windows;
mod mutants;
mod oracle;
mod random;
mod scores;
mod sound;
mod sound_windows;
