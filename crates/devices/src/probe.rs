//! What a GPU is. Opening one can fail in many ways, of which some are panics.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::{
    backend::{Backend, CubeDevice, DTypeUsage, Dispatch, DispatchDevice},
    tensor::{DType, Device},
};

use crate::{Details, DeviceError, KernelOptions, dtypes, kernels};

/// Whether a shared library can be loaded, which for a driver means that it is
/// installed.
pub(crate) fn can_load(name: &str) -> bool {
    // SAFETY: loading runs the library's initialisers. It is a graphics driver's public library,
    // which Burn is about to load in the same way, and no symbol of it is called here.
    unsafe { libloading::Library::new(name) }.is_ok()
}

fn cube(device: &DispatchDevice) -> Option<&CubeDevice> {
    match device {
        DispatchDevice::Cube(device) => Some(device),
        _ => None,
    }
}

/// Opens a GPU and describes it; `None` if the device is not a GPU.
pub(crate) fn details(
    device: &Device,
    mut details: Details,
    options: KernelOptions,
) -> Result<Option<Details>, DeviceError> {
    let plain = device.clone().inner();
    let Some(cube) = cube(plain.as_dispatch()) else {
        return Ok(None);
    };
    let fails = |reason: String| DeviceError::DoesNotOpen {
        device: details.device.clone(),
        reason,
    };

    let open = || {
        #[cfg(feature = "_wgpu")]
        let adapter = wgpu_adapter(cube)?;
        #[cfg(not(feature = "_wgpu"))]
        let adapter = None::<Adapter>;
        Ok::<_, String>((adapter, cube.client()))
    };
    let opened = catch_unwind(AssertUnwindSafe(open)).map_err(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        fails(said.unwrap_or_else(|| "its driver gave no reason".to_owned()))
    })?;
    let (adapter, client) = opened.map_err(fails)?;
    let properties = client.properties();
    details.name.clone_from(&properties.identity.name);
    client.name().clone_into(&mut details.runtime);
    details.memory = properties.memory.max_memory();
    details.accelerator = true;

    if let Some(adapter) = adapter {
        details.name = adapter.name;
        details.driver = Some(
            format!("{} {}", adapter.driver, adapter.driver_info)
                .trim()
                .to_owned(),
        );
        details.software = adapter.software;
        details.runtime = format!("{} over {}", client.name(), adapter.api);
    }
    #[cfg(feature = "cuda")]
    if let CubeDevice::Cuda(cuda) = cube {
        describe_nvidia(cuda.index, &mut details);
    }

    details.autotune = match options.autotune {
        Some(autotune) => autotune,
        None => !details.software || !kernels::may_take_first(),
    };
    details.fusion = options.fusion;
    let identity = format!("{} {}", details.name, properties.identity.fingerprint);
    kernels::keep_choices(&identity, options, details.autotune);
    if !details.autotune {
        kernels::take_first_kernels(&client);
    }

    details.dtypes = dtypes(&plain);
    let accelerated =
        |dtype| Dispatch::dtype_usage(plain.as_dispatch(), dtype).contains(DTypeUsage::Accelerated);
    details.tensor_core_dtypes = [("bfloat16", DType::BF16), ("float16", DType::F16)]
        .into_iter()
        .filter(|(_, dtype)| accelerated(*dtype))
        .map(|(name, _)| name)
        .collect();
    Ok(Some(details))
}

/// What wgpu says of the GPU behind a device.
struct Adapter {
    name: String,
    driver: String,
    driver_info: String,
    api: String,
    software: bool,
}

/// The adapter behind a wgpu device, which this opens; `None` for a device of
/// another runtime, or one that is open already.
#[cfg(feature = "_wgpu")]
fn wgpu_adapter(cube: &CubeDevice) -> Result<Option<Adapter>, String> {
    use burn::{
        backend::wgpu::{RuntimeOptions, graphics::AutoGraphicsApi, try_init_setup},
        tensor::wgpu::wgpu::DeviceType,
    };
    #[allow(
        irrefutable_let_patterns,
        reason = "which runtimes there are depends on the features"
    )]
    let CubeDevice::Wgpu(device) = cube else {
        return Ok(None);
    };
    let options = RuntimeOptions::try_default().map_err(|error| error.to_string())?;
    match try_init_setup::<AutoGraphicsApi>(device, options) {
        Ok(setup) => {
            let info = setup.adapter.get_info();
            Ok(Some(Adapter {
                name: info.name,
                driver: info.driver,
                driver_info: info.driver_info,
                api: format!("{:?}", info.backend),
                software: info.device_type == DeviceType::Cpu,
            }))
        }
        Err(burn::tensor::wgpu::WgpuInitError::Registration { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Driver version and free memory, which CUDA's runtime in Burn does not tell.
#[cfg(feature = "cuda")]
fn describe_nvidia(index: usize, details: &mut Details) {
    let Ok(nvml) = nvml_wrapper::Nvml::init() else {
        return;
    };
    details.driver = nvml
        .sys_driver_version()
        .ok()
        .map(|version| format!("NVIDIA {version}"));
    // NVML counts every card; CUDA only those that CUDA_VISIBLE_DEVICES leaves.
    if std::env::var_os("CUDA_VISIBLE_DEVICES").is_some() {
        return;
    }
    let memory = u32::try_from(index)
        .ok()
        .and_then(|index| nvml.device_by_index(index).ok()?.memory_info().ok());
    if let Some(memory) = memory {
        details.free_memory = Some(memory.free);
    }
}
