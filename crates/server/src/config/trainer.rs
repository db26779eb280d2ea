//! `[trainer]`: how runs are executed.

use super::at_least;
use crate::machine;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where runs are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// The first GPU that the NVIDIA driver shows.
    Cuda,
}

/// How runs are executed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainerConfig {
    /// The trainer's program; without it `bastionai-trainer` beside the running program.
    pub path: Option<PathBuf>,
    /// Where runs are computed. A device that cannot be used is an error at the start, never replaced by another.
    pub device: DeviceKind,
    /// What `device = "cuda"` needs as well, as long as no evidence of a GPU is appraised: records and models reach it, and
    /// whoever can read its memory, in the clear. Becomes a claim that clients refuse by default.
    pub insecure_unattested_gpu: bool,
    /// Threads of one trainer; 0: all cores over `limits.concurrent_runs`.
    pub threads: u32,
    /// From spawn to ready.
    pub start_timeout_ms: u64,
    /// Longest silence between two steps; then the trainer is killed and the run failed.
    pub step_timeout_ms: u64,
    /// From ready to the last weight; then the trainer is killed and the run failed, charged in full.
    pub run_timeout_ms: u64,
    /// Largest memory estimate of a run that is accepted, and the most private memory a trainer gets; 0: three quarters
    /// of what the machine has at the start, over `limits.concurrent_runs`.
    pub memory_bytes: u64,
    /// Progress is made durable and released this often, and after the last step, each time with a checkpoint of the
    /// run: for models whose state (parameters and optimizer) has at most 16 MiB.
    pub commit_ms: u64,
    /// The same for larger models, whose checkpoints take seconds.
    pub checkpoint_ms: u64,
    /// Refuse to start on a kernel without Landlock, rather than say `insecure-trainer-sandbox` in the claims.
    pub require_landlock: bool,
    /// At shutdown, running trainers get this long to finish a step and hand over a checkpoint; then they are killed, and
    /// the next boot goes on from the checkpoint before.
    pub drain_timeout_ms: u64,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            path: None,
            device: DeviceKind::Cpu,
            insecure_unattested_gpu: false,
            threads: 0,
            start_timeout_ms: 120_000,
            step_timeout_ms: 300_000,
            run_timeout_ms: 24 * 3_600_000,
            memory_bytes: 0,
            commit_ms: 500,
            checkpoint_ms: 60_000,
            require_landlock: false,
            drain_timeout_ms: 20_000,
        }
    }
}

impl TrainerConfig {
    /// The trainer's program.
    ///
    /// # Errors
    /// When it isn't configured and this program's own path is unknown.
    pub fn program(&self) -> std::io::Result<PathBuf> {
        if let Some(path) = &self.path {
            return Ok(path.clone());
        }
        Ok(std::env::current_exe()?.with_file_name("bastionai-trainer"))
    }

    /// Threads of one trainer when `concurrent` may run at once.
    pub fn threads_for(&self, concurrent: u32) -> u32 {
        if self.threads > 0 {
            return self.threads;
        }
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        (cores / concurrent.max(1)).max(1)
    }

    /// Memory of one trainer when `concurrent` may run at once: what is stated, or what this machine has now.
    pub(crate) fn memory_for(&self, concurrent: u32) -> u64 {
        if self.memory_bytes > 0 {
            return self.memory_bytes;
        }
        machine::memory_for_one_of(concurrent)
    }

    pub(super) fn check(&self, problems: &mut Vec<String>) {
        for (name, value, minimum) in [
            ("start_timeout_ms", self.start_timeout_ms, 100),
            ("step_timeout_ms", self.step_timeout_ms, 100),
            ("run_timeout_ms", self.run_timeout_ms, 100),
            ("commit_ms", self.commit_ms, 1),
            ("checkpoint_ms", self.checkpoint_ms, 1),
        ] {
            at_least(problems, "trainer", name, value, minimum);
        }
        if self.device == DeviceKind::Cuda && !self.insecure_unattested_gpu {
            problems.push(
                "trainer.device = \"cuda\" hands records and models to a GPU that this version cannot attest: set \
                 trainer.insecure_unattested_gpu = true to accept that (clients see `insecure-unattested-gpu` and refuse it \
                 unless they name it), or trainer.device = \"cpu\""
                    .to_owned(),
            );
        }
        if self.memory_bytes != 0 {
            at_least(problems, "trainer", "memory_bytes", self.memory_bytes, 1 << 20);
        }
        if self.threads > 4096 {
            problems.push(format!(
                "trainer.threads = {} is beyond any machine: use 0 for all cores",
                self.threads
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_trainer_is_what_is_stated_or_a_share_of_the_machines() {
        let mut trainer = TrainerConfig::default();
        let derived = trainer.memory_for(1);
        assert!(derived > 1 << 20, "{derived} bytes of this machine");
        assert!(trainer.memory_for(8) < derived / 4, "eight at once share it");
        trainer.memory_bytes = 5 << 30;
        assert_eq!((trainer.memory_for(1), trainer.memory_for(8)), (5 << 30, 5 << 30));
    }
}
