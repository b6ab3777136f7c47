//! Devices by name: `cpu`, `cuda`, `cuda:1`, `wgpu`, `vulkan:0`, `metal`, `rocm`.
//!
//! Burn compiles backends in by feature and picks one at run time. This crate
//! is the only library that names them. It finds a device, opens it with the
//! kernel options asked for, and says what it is: [`find`], [`open`], [`list`].
//! It computes nothing; whether a device computes *right* is the business of
//! `Doctor`, above this crate.
//!
//! ```
//! use burn::tensor::Tensor;
//! use olora_devices::{DeviceError, KernelOptions, open};
//!
//! # #[cfg(feature = "flex")] {
//! let cpu = open("cpu", KernelOptions::default())?;
//! assert!(!cpu.details.accelerator);
//! let sum = Tensor::<1>::from_floats([1.0, 2.0], &cpu.device).sum();
//! assert_eq!(sum.into_scalar::<f32>(), 3.0);
//! # }
//! // What cannot be had says why, and what to do.
//! assert!(matches!(olora_devices::find("tpu"), Err(DeviceError::Unknown { .. })));
//! # Ok::<(), DeviceError>(())
//! ```

mod error;
#[cfg(feature = "_gpu")]
mod kernels;
pub mod launches;
#[cfg(feature = "_gpu")]
mod probe;
pub mod threads;

use burn::tensor::{DType, Device, DeviceType};
use olora_files::size;
use serde::Serialize;

pub use error::DeviceError;

/// Has the examples of `README.md` compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// How kernels are made, on devices that make them at run time. What is asked
/// for holds for the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// Fuse neighbouring operations into one kernel.
    pub fusion: bool,
    /// Measure which of several kernels is fastest, once per shape; `false`
    /// takes the first that works. If not given, software rasterisers do
    /// without: there the measuring takes minutes.
    pub autotune: Option<bool>,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            fusion: true,
            autotune: None,
        }
    }
}

/// A device that answers, and what it is.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The device, without autodiff.
    pub device: Device,
    /// What it is.
    pub details: Details,
}

/// What a device is and can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own about the device"
)]
pub struct Details {
    /// As `--device` takes it.
    pub device: String,
    /// The part, as its driver calls it.
    pub name: String,
    /// How kernels get there, such as `wgpu<spirv>`.
    pub runtime: String,
    /// The driver and its version, where it is known.
    pub driver: Option<String>,
    /// Memory in bytes, where it is known.
    pub memory: Option<u64>,
    /// Free memory in bytes at the time of asking, where it is known.
    pub free_memory: Option<u64>,
    /// The number formats that it computes in: `float32`, `bfloat16`,
    /// `float16`.
    pub dtypes: Vec<&'static str>,
    /// Those of them that its matrix units take.
    pub tensor_core_dtypes: Vec<&'static str>,
    /// Whether it is no GPU but a program that imitates one.
    pub software: bool,
    /// Whether kernels are made at run time: everything but the CPU.
    pub accelerator: bool,
    /// Whether kernels are chosen by measuring.
    pub autotune: bool,
    /// Whether neighbouring operations are fused.
    pub fusion: bool,
}

impl Details {
    /// The part's name, how it is reached, and what it can do, in a line.
    pub fn facts(&self) -> String {
        let mut parts = vec![self.name.clone()];
        if self.software {
            parts.push("a software rasteriser".to_owned());
        }
        if self.accelerator {
            parts.push(self.runtime.clone());
        }
        parts.extend(self.driver.clone());
        match (self.memory, self.free_memory) {
            (Some(memory), Some(free)) => {
                parts.push(format!("{} ({} free)", size(memory), size(free)));
            }
            (Some(memory), None) => parts.push(size(memory)),
            (None, _) => {}
        }
        parts.push(self.dtypes.join(" "));
        if !self.tensor_core_dtypes.is_empty() {
            let dtypes = self.tensor_core_dtypes.join(" ");
            parts.push(format!("matrix units for {dtypes}"));
        }
        if self.accelerator {
            let off: Vec<_> = [("fusion", self.fusion), ("autotune", self.autotune)]
                .into_iter()
                .filter(|(_, on)| !on)
                .map(|(name, _)| format!("{name} off"))
                .collect();
            parts.extend(off);
        }
        parts.join(", ")
    }
}

/// In a line: what `--device` calls it, and what it is. Empty if nothing is
/// known.
impl std::fmt::Display for Details {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.device.is_empty() {
            return Ok(());
        }
        write!(f, "{} ({})", self.device, self.facts())
    }
}

/// A backend: what `--device` calls it, the feature that compiles it in, and
/// what it is called in Burn.
#[derive(Debug)]
struct Backend {
    name: &'static str,
    feature: &'static str,
    about: &'static str,
    /// What has to be on the machine.
    needs: &'static str,
    /// The driver's library, on Linux and on Windows.
    #[cfg_attr(
        not(feature = "_gpu"),
        expect(dead_code, reason = "no driver is needed")
    )]
    libraries: &'static [&'static str],
    kind: Option<DeviceType>,
}

/// Every backend that there is, compiled in or not.
fn backends() -> Vec<Backend> {
    macro_rules! backend {
        ($name:literal, $feature:literal, $kind:ident, $about:literal, $needs:literal, $libraries:expr) => {{
            #[cfg(feature = $feature)]
            let kind = Some(DeviceType::$kind);
            #[cfg(not(feature = $feature))]
            let kind = None;
            Backend {
                name: $name,
                feature: $feature,
                about: $about,
                needs: $needs,
                libraries: &$libraries,
                kind,
            }
        }};
    }
    vec![
        backend!("cpu", "flex", Flex, "any CPU, pure Rust", "nothing", []),
        backend!(
            "cuda",
            "cuda",
            Cuda,
            "NVIDIA GPUs",
            "an NVIDIA GPU and its driver (`nvidia-smi` lists both), and the CUDA toolkit",
            ["libcuda.so.1", "libcuda.so", "nvcuda.dll"]
        ),
        backend!(
            "wgpu",
            "wgpu",
            Wgpu,
            "any GPU, portable shaders",
            "a Vulkan, Metal or DirectX 12 driver (on Linux `vulkaninfo --summary` lists them)",
            ["libvulkan.so.1", "libvulkan.so", "vulkan-1.dll"]
        ),
        backend!(
            "vulkan",
            "vulkan",
            Vulkan,
            "any GPU, SPIR-V shaders",
            "a Vulkan driver (`vulkaninfo --summary` lists them)",
            ["libvulkan.so.1", "libvulkan.so", "vulkan-1.dll"]
        ),
        backend!("metal", "metal", Metal, "Apple GPUs", "macOS", []),
        backend!(
            "rocm",
            "rocm",
            Rocm,
            "AMD GPUs",
            "an AMD GPU and ROCm (`rocminfo` lists both)",
            ["libamdhip64.so", "amdhip64.dll"]
        ),
    ]
}

/// The CPU, which gradients are compared with; `None` in a build without the
/// `flex` feature.
pub fn reference() -> Option<Device> {
    let kind = backends().into_iter().find(|b| b.name == "cpu")?.kind?;
    Device::enumerate(kind).into_vec().into_iter().next()
}

/// Sets two variables of the environment, where they are not set:
///
/// - `BURN_DEVICE`, by which Burn chooses its default device, to the CPU if the
///   build has it. The default is otherwise a GPU's backend, also on a machine
///   without a GPU, where even a model of which only the shapes are asked for
///   would fail on it.
/// - `XDG_RUNTIME_DIR`, which Mesa's EGL wants to know when GPUs are looked for,
///   to the directory for temporary files. Mesa prints an error each time
///   without it, as on a Linux machine that nobody is logged in to. Nothing
///   depends on it but what is on the terminal; only builds with a backend over
///   wgpu set it.
///
/// Both are of this process and of those that it starts.
///
/// # Safety
///
/// It may write to the environment, and code that is not Rust, such as a
/// driver, reads that without a lock. While this runs, no other thread may read
/// or write the environment: call it first thing in `main`, before any thread
/// has been started and before any other function of this crate or of Burn.
pub unsafe fn set_environment() {
    const DEFAULT: &str = "BURN_DEVICE";
    const DIRECTORY: &str = "XDG_RUNTIME_DIR";
    if cfg!(feature = "flex") && std::env::var_os(DEFAULT).is_none() {
        // SAFETY: no other thread reads or writes the environment meanwhile, which the caller
        // answers for.
        unsafe { std::env::set_var(DEFAULT, "flex") };
    }
    let asks_egl = cfg!(all(feature = "_wgpu", target_os = "linux"));
    if asks_egl && std::env::var_os(DIRECTORY).is_none() {
        // SAFETY: as above.
        unsafe { std::env::set_var(DIRECTORY, std::env::temp_dir()) };
    }
}

/// Sets how kernels are made. Call it before anything else of this crate or of
/// Burn but [`set_environment`]: what is set is read once.
///
/// # Errors
///
/// [`DeviceError::TooLate`] if a device was in use already.
pub fn prepare(options: KernelOptions) -> Result<(), DeviceError> {
    #[cfg(feature = "_gpu")]
    return kernels::prepare(options);
    #[cfg(not(feature = "_gpu"))]
    {
        let _ = options;
        Ok(())
    }
}

/// Finds a device by name, without opening it.
///
/// # Errors
///
/// See [`DeviceError`].
pub fn find(text: &str) -> Result<Device, DeviceError> {
    let (name, index) = match text.split_once(':') {
        None => (text, 0),
        Some((name, index)) => match index.parse::<usize>() {
            Ok(index) => (name, index),
            Err(_) => {
                return Err(DeviceError::NotANumber {
                    text: text.to_owned(),
                    index: index.to_owned(),
                    name: name.to_owned(),
                });
            }
        },
    };
    let mut backends = backends();
    let Some(at) = backends.iter().position(|backend| backend.name == name) else {
        return Err(DeviceError::Unknown {
            name: name.to_owned(),
            known: backends.iter().map(|backend| backend.name).collect(),
        });
    };
    let compiled_in: Vec<_> = backends
        .iter()
        .filter(|backend| backend.kind.is_some())
        .map(|backend| backend.name)
        .collect();
    let features = backends
        .iter()
        .filter(|other| other.kind.is_some() && other.feature != "flex")
        .map(|other| other.feature)
        .chain([backends[at].feature])
        .collect::<Vec<_>>()
        .join(",");
    let backend = backends.swap_remove(at);
    let Some(kind) = backend.kind.clone() else {
        return Err(DeviceError::NotCompiledIn {
            name: backend.name,
            compiled_in,
            features,
        });
    };
    let found = Device::enumerate(kind).into_vec();
    match found.get(index) {
        Some(device) => Ok(device.clone()),
        None if found.is_empty() => Err(none_found(&backend)),
        None => Err(DeviceError::NoSuchNumber {
            text: text.to_owned(),
            found: found.len(),
        }),
    }
}

fn none_found(backend: &Backend) -> DeviceError {
    #[cfg(feature = "_gpu")]
    if !backend.libraries.is_empty() && !backend.libraries.iter().any(|name| probe::can_load(name))
    {
        return DeviceError::NoDriver {
            name: backend.name,
            libraries: backend.libraries,
            needs: backend.needs,
        };
    }
    DeviceError::NoneFound {
        name: backend.name,
        needs: backend.needs,
    }
}

/// Finds a device by name and opens it.
///
/// # Errors
///
/// Those of [`find`], [`DeviceError::DoesNotOpen`] with what its driver said,
/// and [`DeviceError::NoUse`] if the device has no use for an option.
pub fn open(text: &str, options: KernelOptions) -> Result<Opened, DeviceError> {
    let device = find(text)?;
    details(text, &device, options).map(|details| Opened { device, details })
}

fn details(text: &str, device: &Device, options: KernelOptions) -> Result<Details, DeviceError> {
    let details = Details {
        device: text.to_owned(),
        ..Details::default()
    };
    #[cfg(feature = "_gpu")]
    if let Some(details) = probe::details(device, details.clone(), options)? {
        return Ok(details);
    }
    let no_use = |option| {
        Err(DeviceError::NoUse {
            option,
            device: text.to_owned(),
        })
    };
    if !options.fusion {
        return no_use("--no-fusion");
    }
    match options.autotune {
        Some(true) => return no_use("--autotune"),
        Some(false) => return no_use("--no-autotune"),
        None => {}
    }
    Ok(Details {
        name: cpu_name(),
        runtime: "flex".to_owned(),
        dtypes: dtypes(device),
        ..details
    })
}

/// The number formats that a device computes in.
fn dtypes(device: &Device) -> Vec<&'static str> {
    [
        ("float32", DType::F32),
        ("bfloat16", DType::BF16),
        ("float16", DType::F16),
    ]
    .into_iter()
    .filter(|(_, dtype)| device.supports_dtype(*dtype))
    .map(|(name, _)| name)
    .collect()
}

fn cpu_name() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let name = std::fs::read_to_string("/proc/cpuinfo").ok();
    let name = name.as_deref().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let name = name.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("{name}, {threads} threads")
}

/// What `--device` may be given in this build on this machine. Opens none of
/// them.
pub fn names() -> Vec<String> {
    let names_of = |backend: Backend| {
        let found = backend.kind.map_or(0, |kind| Device::enumerate(kind).len());
        let name = backend.name;
        match found {
            1 => vec![name.to_owned()],
            n => (0..n).map(|index| format!("{name}:{index}")).collect(),
        }
    };
    backends().into_iter().flat_map(names_of).collect()
}

/// A backend, and what was found for it.
#[derive(Debug)]
pub struct Listing {
    /// As `--device` takes it.
    pub name: &'static str,
    /// The Cargo feature that compiles it in.
    pub feature: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// Whether it is compiled in.
    pub compiled_in: bool,
    /// The devices found, or why one does not answer.
    pub devices: Vec<Result<Opened, DeviceError>>,
    /// Why none was found.
    pub none: Option<DeviceError>,
}

/// Every backend and its devices. Opens all of them.
pub fn list(options: KernelOptions) -> Vec<Listing> {
    let list_one = |backend: Backend| {
        let found = backend
            .kind
            .clone()
            .map_or_else(Vec::new, |kind| Device::enumerate(kind).into_vec());
        let none = (backend.kind.is_some() && found.is_empty()).then(|| none_found(&backend));
        let several = found.len() > 1;
        // The options are for GPUs, the list is of everything.
        let options = if backend.name == "cpu" {
            KernelOptions::default()
        } else {
            options
        };
        let open = |(index, device): (usize, Device)| {
            let text = if several {
                format!("{}:{index}", backend.name)
            } else {
                backend.name.to_owned()
            };
            details(&text, &device, options).map(|details| Opened { device, details })
        };
        Listing {
            name: backend.name,
            feature: backend.feature,
            about: backend.about,
            compiled_in: backend.kind.is_some(),
            devices: found.into_iter().enumerate().map(open).collect(),
            none,
        }
    };
    backends().into_iter().map(list_one).collect()
}
