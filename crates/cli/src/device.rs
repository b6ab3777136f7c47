//! Devices by name. This is the only file of the library and binary crates
//! that names a backend.

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use burn::tensor::{Device, DeviceType};

use crate::Usage;

/// A name, the feature that compiles it in, and what it is called in Burn.
struct Backend {
    name: &'static str,
    feature: &'static str,
    about: &'static str,
    kind: Option<DeviceType>,
}

/// Every backend that there is, compiled in or not.
fn backends() -> Vec<Backend> {
    macro_rules! backend {
        ($name:literal, $feature:literal, $kind:ident, $about:literal) => {{
            #[cfg(feature = $feature)]
            let kind = Some(DeviceType::$kind);
            #[cfg(not(feature = $feature))]
            let kind = None;
            Backend {
                name: $name,
                feature: $feature,
                about: $about,
                kind,
            }
        }};
    }
    vec![
        backend!("cpu", "flex", Flex, "any CPU, pure Rust"),
        backend!("cuda", "cuda", Cuda, "NVIDIA GPUs"),
        backend!("wgpu", "wgpu", Wgpu, "any GPU, portable shaders"),
        backend!("vulkan", "vulkan", Vulkan, "any GPU, SPIR-V shaders"),
        backend!("metal", "metal", Metal, "Apple GPUs"),
        backend!("rocm", "rocm", Rocm, "AMD GPUs"),
    ]
}

/// Finds `cpu`, `cuda`, `cuda:1`, `wgpu`, `vulkan:0`, …
pub(crate) fn find(text: &str) -> Result<Device> {
    let (name, index) = match text.split_once(':') {
        None => (text, 0),
        Some((name, index)) => match index.parse::<usize>() {
            Ok(index) => (name, index),
            Err(_) => {
                return refuse(format!(
                    "`{index}` in `{text}` is not a device number; write for example {name}:0"
                ));
            }
        },
    };
    let backends = backends();
    let compiled: Vec<_> = backends
        .iter()
        .filter(|b| b.kind.is_some())
        .map(|b| b.name)
        .collect();
    let Some(backend) = backends.iter().find(|backend| backend.name == name) else {
        let all: Vec<_> = backends.iter().map(|backend| backend.name).collect();
        return refuse(format!(
            "there is no device `{name}`; there are {}",
            all.join(", ")
        ));
    };
    let Some(kind) = &backend.kind else {
        return refuse(format!(
            "`{name}` is not compiled into this build, which has {}. Add it with:\n  \
             cargo install --path crates/cli --features {}",
            compiled.join(", "),
            backend.feature
        ));
    };
    let found = Device::enumerate(kind.clone()).into_vec();
    match found.get(index) {
        Some(device) => Ok(device.clone()),
        None if found.is_empty() => refuse(format!(
            "no {name} device was found on this machine; see `olora devices`"
        )),
        None => refuse(format!(
            "there is no `{name}:{index}`: {} found; see `olora devices`",
            found.len()
        )),
    }
}

fn refuse(reason: impl AsRef<str>) -> Result<Device> {
    Err(Usage::new(reason.as_ref()))
}

/// `olora devices`.
pub(crate) fn list() -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for backend in backends() {
        let Some(kind) = backend.kind else {
            writeln!(
                out,
                "{:8} not compiled in ({}); add it with --features {}",
                backend.name, backend.about, backend.feature
            )?;
            continue;
        };
        let found = Device::enumerate(kind).into_vec();
        if found.is_empty() {
            writeln!(
                out,
                "{:8} compiled in ({}), none found",
                backend.name, backend.about
            )?;
        }
        for (index, device) in found.iter().enumerate() {
            let name = if found.len() == 1 {
                backend.name.to_owned()
            } else {
                format!("{}:{index}", backend.name)
            };
            writeln!(out, "{name:8} {} ({device:?})", backend.about)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
