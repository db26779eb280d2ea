//! Where a run computes: on the CPU, or on a GPU whose libraries are loaded at run time.
//!
//! All that knows of devices is here, in `accelerated` (the engine's own kernels, composed of libtorch's operators) and in
//! one line of each place that has a kernel for the CPU. A tensor's memory is read in `ffi` alone, which refuses tensors
//! that are not in host memory: what was forgotten is an error, never a wrong number.
//!
//! On a device are parameters, constants, batches, activations and gradients. In host memory are, as on the CPU: norms,
//! clip factors, the integer grid, noise, the optimizer and the parameters it updates ([`crate::state`]).

use crate::error::{EngineError, Result};
use crate::ffi;
use crate::libraries;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Where a run computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The first GPU that the NVIDIA driver shows.
    Cuda,
    /// What somebody registered with libtorch as `PrivateUse1`: tests do, with memory that only operators may touch.
    #[doc(hidden)]
    Registered,
}

/// c10's numbers of device types (c10/core/DeviceType.h).
const CPU: i32 = 0;
const CUDA: i32 = 1;
const PRIVATE_USE: i32 = 20;

/// An f32 product of a few hundred terms is off by well under this; TF32 is off by 3e-4, bf16 by 4e-3.
const TRUE_F32_ERROR: f64 = 2e-5;

/// Least memory with which anything can be trained: CUDA's own context takes about half of it.
const LEAST_MEMORY_BYTES: u64 = 1 << 30;

/// The driver's part of CUDA, which no libtorch brings along.
const DRIVER: &str = "libcuda.so.1";

/// What a device is, as far as a server wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// All of it.
    pub memory_bytes: u64,
    /// What nothing uses yet.
    pub free_bytes: u64,
}

/// Why a device that was asked for cannot be used. There is no falling back to another.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A libtorch for the CPU alone.
    #[error(
        "this libtorch has no CUDA: there is no {0}; install the CUDA build of the pinned torch (the one PyPI has for Linux), \
         or set trainer.device = \"cpu\""
    )]
    NoLibrary(PathBuf),
    /// The library is there, but cannot be loaded.
    #[error(
        "{library} cannot be loaded: {why}; install the nvidia-* packages that torch depends on, or set \
         trainer.device = \"cpu\""
    )]
    Loading {
        /// What was to be loaded.
        library: PathBuf,
        /// The loader's words.
        why: String,
    },
    /// No driver.
    #[error(
        "there is no NVIDIA driver: {DRIVER} cannot be loaded ({0}); install the driver on the host and pass it into the \
         guest or container, or set trainer.device = \"cpu\""
    )]
    NoDriver(String),
    /// CUDA does not start, or shows no device.
    #[error(
        "the NVIDIA driver shows no usable GPU ({0}); check `nvidia-smi`, that /dev/nvidiactl, /dev/nvidia-uvm and \
         /dev/nvidia0 are there and open to the server's user, and that the driver is new enough for this libtorch, or set \
         trainer.device = \"cpu\""
    )]
    NoDevice(String),
    /// Others have its memory.
    #[error(
        "the GPU has {free_bytes} bytes of free memory, at least {LEAST_MEMORY_BYTES} are needed: stop what else runs on it"
    )]
    Memory {
        /// What is free.
        free_bytes: u64,
    },
    /// It is there, but computes wrongly or not at all.
    #[error("the GPU does not compute as it must: {0}")]
    Wrong(String),
}

impl Device {
    /// By its name in a configuration.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda),
            _ => None,
        }
    }

    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Registered => "registered",
        }
    }

    /// Whether it computes in host memory.
    pub fn is_cpu(self) -> bool {
        self == Self::Cpu
    }

    /// c10's number.
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Cpu => CPU,
            Self::Cuda => CUDA,
            Self::Registered => PRIVATE_USE,
        }
    }

    /// Loads its libraries into this process: before anything asks libtorch for devices, which it remembers for good, and
    /// before [`crate::sandbox::harden`], which leaves readable what is beside the loaded libraries.
    ///
    /// # Errors
    /// [`DeviceError`] says what is missing and what to do.
    pub fn load(self) -> std::result::Result<(), DeviceError> {
        if self != Self::Cuda {
            return Ok(());
        }
        ffi::load_library(Path::new(DRIVER)).map_err(DeviceError::NoDriver)?;
        let library = libtorch_folder().join("libtorch_cuda.so");
        if !library.is_file() {
            return Err(DeviceError::NoLibrary(library));
        }
        ffi::load_library(&library).map_err(|why| DeviceError::Loading { library, why })
    }

    /// Starts it, with kernels that are true f32 and deterministic, fixed for the whole process (rules G1, T2).
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn start(self) -> std::result::Result<Option<DeviceFacts>, DeviceError> {
        if self != Self::Cuda {
            return Ok(None);
        }
        let [memory_bytes, free_bytes] =
            ffi::start_cuda().map_err(|_| DeviceError::NoDevice(first_line(&ffi::last_error())))?;
        if free_bytes < LEAST_MEMORY_BYTES {
            return Err(DeviceError::Memory { free_bytes });
        }
        Ok(Some(DeviceFacts {
            memory_bytes,
            free_bytes,
        }))
    }

    /// Computes a little of everything and compares it with the host: products that must be true f32, a convolution, a
    /// backward pass, sums in f64. Libraries that are loaded on demand are loaded then.
    ///
    /// # Errors
    /// [`DeviceError::Wrong`].
    pub fn exercise(self) -> std::result::Result<(), DeviceError> {
        if self.is_cpu() {
            return Ok(());
        }
        let wrong = |error: EngineError| {
            let detail = error.detail().map(first_line);
            DeviceError::Wrong(detail.unwrap_or_else(|| error.to_string()))
        };
        for (what, difference) in self.differences().map_err(wrong)? {
            if difference.is_nan() || difference >= TRUE_F32_ERROR {
                return Err(DeviceError::Wrong(format!(
                    "{what} differs from the host's by {difference:.1e} of its norm, true f32 by less than {TRUE_F32_ERROR:.0e}"
                )));
            }
        }
        Ok(())
    }

    /// Relative differences to the host's results in f64.
    fn differences(self) -> Result<Vec<(&'static str, f64)>> {
        type Work = fn(&[Tensor]) -> std::result::Result<Tensor, tch::TchError>;
        const WORKS: [(&str, [&[i64]; 2], Work); 5] = [
            ("a matrix product", [&[192, 512], &[512, 96]], |of| {
                of[0].f_mm(&of[1])
            }),
            ("a product of batches", [&[4, 96, 512], &[4, 512, 96]], |of| {
                of[0].f_bmm(&of[1])
            }),
            ("a linear layer", [&[8, 24, 512], &[96, 512]], |of| {
                of[0].f_linear::<Tensor>(&of[1], None)
            }),
            ("a convolution", [&[4, 8, 16, 16], &[12, 8, 3, 3]], |of| {
                of[0].f_conv2d::<Tensor>(&of[1], None, [1, 1], [1, 1], [1, 1], 1)
            }),
            ("a gradient", [&[64, 512], &[96, 512]], |of| {
                let input = of[0].f_detach()?.f_set_requires_grad(true)?;
                let loss = input
                    .f_linear::<Tensor>(&of[1], None)?
                    .f_tanh()?
                    .f_sum(None::<Kind>)?;
                let mut gradients = Tensor::f_run_backward(&[loss], &[&input], false, false)?;
                Ok(gradients.swap_remove(0))
            }),
        ];
        let mut differences = Vec::with_capacity(WORKS.len());
        for (what, shapes, work) in WORKS {
            let made_up = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, tch::Device::Cpu));
            let operands = [made_up(shapes[0])?, made_up(shapes[1])?];
            let exact = operands.each_ref().map(|each| each.f_to_kind(Kind::Double));
            let exact = work(&exact.into_iter().collect::<std::result::Result<Vec<_>, _>>()?)?;
            let placed = operands.iter().map(|each| self.place(each));
            let found = to_host(&work(&placed.collect::<Result<Vec<_>>>()?)?)?;
            let error = found.f_to_kind(Kind::Double)?.f_sub(&exact)?.f_norm()?;
            differences.push((what, f64::try_from(error.f_div(&exact.f_norm()?)?)?));
        }
        Ok(differences)
    }

    /// The tensor on this device: itself where it is there already.
    ///
    /// # Errors
    /// [`EngineError::Torch`] when memory is short.
    pub(crate) fn place(self, tensor: &Tensor) -> Result<Tensor> {
        ffi::place(tensor, self.number()).map_err(|_| EngineError::Torch {
            detail: ffi::last_error(),
        })
    }
}

/// Whether a tensor's memory is the host's, so that kernels for the CPU may read it.
pub(crate) fn is_on_host(tensor: &Tensor) -> bool {
    tensor.device() == tch::Device::Cpu
}

/// The tensor in host memory: itself where it is there already. Waits for what the device still has to do for it.
///
/// # Errors
/// [`EngineError::Torch`].
pub(crate) fn to_host(tensor: &Tensor) -> Result<Tensor> {
    Device::Cpu.place(tensor)
}

/// The tensor where another is.
///
/// # Errors
/// [`EngineError::Torch`] when memory is short.
pub(crate) fn beside(tensor: &Tensor, other: &Tensor) -> Result<Tensor> {
    ffi::place_beside(tensor, other).map_err(|_| EngineError::Torch {
        detail: ffi::last_error(),
    })
}

/// Where the libtorch of this process lies.
fn libtorch_folder() -> PathBuf {
    let loaded = libraries::loaded().unwrap_or_default();
    let own = loaded.iter().map(Path::new);
    let is_libtorch = |path: &&Path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so");
    let folder = own.clone().find(is_libtorch).and_then(Path::parent);
    folder.map_or_else(PathBuf::new, Path::to_path_buf)
}

/// libtorch's exceptions bring a trace of C++ after the first line.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_configuration() {
        for device in [Device::Cpu, Device::Cuda] {
            assert_eq!(Device::named(device.name()), Some(device));
        }
        assert_eq!(Device::named("gpu"), None);
        assert_eq!(Device::named("registered"), None);
    }

    #[test]
    fn on_the_cpu_nothing_is_copied() {
        let tensor = Tensor::ones([3], (Kind::Float, tch::Device::Cpu));
        let placed = Device::Cpu.place(&tensor).unwrap();
        assert_eq!(placed.data_ptr(), tensor.data_ptr());
        assert_eq!(to_host(&placed).unwrap().data_ptr(), tensor.data_ptr());
        assert!(is_on_host(&placed));
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_of_libtorch_not_a_crash() {
        let tensor = Tensor::ones([3], (Kind::Float, tch::Device::Cpu));
        if !tch::Cuda::is_available() {
            assert!(matches!(
                Device::Cuda.place(&tensor),
                Err(EngineError::Torch { .. })
            ));
        }
    }

    #[test]
    fn the_library_is_looked_for_beside_libtorch() {
        tch::set_num_threads(1); // keeps libtorch linked
        assert!(libtorch_folder().join("libc10.so").is_file());
    }
}
