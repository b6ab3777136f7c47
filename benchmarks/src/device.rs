//! The device that a suite runs on.

use anyhow::Context;
use burn::tensor::Device;
use olora_devices::{KernelOptions, open};
use olora_training::DeviceTraits;

/// A device by its name, such as `cpu` or `cuda:1`.
pub(crate) fn device(name: &str) -> anyhow::Result<(Device, DeviceTraits)> {
    let opened =
        open(name, KernelOptions::default()).with_context(|| format!("--backend {name}"))?;
    let details = opened.details;
    let traits = DeviceTraits {
        name: format!("{} ({})", details.device, details.name),
        accelerator: details.accelerator,
        memory: details.memory,
        autotune: details.autotune,
    };
    Ok((opened.device, traits))
}
