//! The device that a suite runs on.

use anyhow::Context;
use burn::tensor::Device;
use olora_devices::{Details, KernelOptions, open};

/// A device by its name, such as `cpu` or `cuda:1`.
pub(crate) fn device(name: &str) -> anyhow::Result<(Device, Details)> {
    let opened =
        open(name, KernelOptions::default()).with_context(|| format!("--backend {name}"))?;
    Ok((opened.device, opened.details))
}
