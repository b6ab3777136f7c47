//! `olora devices`, and a device in a line.

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use olora_devices::{Details, DeviceError, KernelOptions, Listing, Opened};
use olora_model::ModelError;
use olora_training::{DeviceTraits, TrainError, listening, on_device, size};
use serde_json::{Value, json};

use crate::args::DevicesArgs;

/// A device in a line: what `--device` calls it, and what it is.
pub(crate) fn describe(details: &Details) -> String {
    format!("{} ({})", details.device, facts(details))
}

/// The part's name, how it is reached, and what it can do.
fn facts(details: &Details) -> String {
    let mut parts = vec![details.name.clone()];
    if details.software {
        parts.push("a software rasteriser".to_owned());
    }
    if details.accelerator {
        parts.push(details.runtime.clone());
    }
    parts.extend(details.driver.clone());
    match (details.memory, details.free_memory) {
        (Some(memory), Some(free)) => {
            parts.push(format!("{} ({} free)", size(memory), size(free)));
        }
        (Some(memory), None) => parts.push(size(memory)),
        (None, _) => {}
    }
    parts.push(details.dtypes.join(" "));
    if !details.tensor_core_dtypes.is_empty() {
        let dtypes = details.tensor_core_dtypes.join(" ");
        parts.push(format!("matrix units for {dtypes}"));
    }
    if details.accelerator {
        let off: Vec<_> = [("fusion", details.fusion), ("autotune", details.autotune)]
            .into_iter()
            .filter(|(_, on)| !on)
            .map(|(name, _)| format!("{name} off"))
            .collect();
        parts.extend(off);
    }
    parts.join(", ")
}

/// Opens a device by name.
///
/// A driver that refuses says so on a thread of its own, so what was heard
/// there meanwhile is part of the reason.
pub(crate) fn open(name: &str, kernels: KernelOptions) -> Result<Opened> {
    let (opened, heard) = listening(|| olora_devices::open(name, kernels));
    opened.map_err(|error| match error {
        DeviceError::DoesNotOpen { device, reason } if !heard.is_empty() => {
            let reason = format!("{} ({reason})", heard.join("; "));
            DeviceError::DoesNotOpen { device, reason }.into()
        }
        error => error.into(),
    })
}

/// What the training crate has to know of a device.
pub(crate) fn traits(details: &Details) -> DeviceTraits {
    DeviceTraits {
        name: describe(details),
        accelerator: details.accelerator,
        memory: details.memory,
        autotune: details.autotune,
    }
}

/// Runs something on a device; its failures are told as what they are.
pub(crate) fn guarded<T>(
    details: &Details,
    advice: &str,
    part: impl FnOnce() -> Result<T>,
) -> Result<T> {
    // An error that is not the device's goes through as it is.
    let result = on_device(&traits(details), advice, || match part() {
        Ok(value) => Ok(Ok(value)),
        Err(error) => match error.downcast::<TrainError>() {
            Ok(error) => Err(error),
            Err(error) => match error.downcast::<ModelError>() {
                Ok(error) => Err(error.into()),
                Err(error) => Ok(Err(error)),
            },
        },
    });
    result?
}

/// `olora devices`.
pub(crate) fn list(args: &DevicesArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let listings = olora_devices::list(kernels);
    let mut out = std::io::stdout().lock();
    if args.json {
        let all: Vec<Value> = listings.iter().map(to_json).collect();
        writeln!(out, "{}", Value::Array(all))?;
        return Ok(ExitCode::SUCCESS);
    }
    for listing in listings {
        let Listing { name, about, .. } = listing;
        if !listing.compiled_in {
            writeln!(
                out,
                "{name:8} not compiled in ({about}); add it with --features {}",
                listing.feature
            )?;
        }
        if let Some(reason) = listing.none {
            writeln!(out, "{name:8} compiled in ({about}), none found: {reason}")?;
        }
        for device in listing.devices {
            match device {
                Ok(opened) => writeln!(
                    out,
                    "{:8} {}",
                    opened.details.device,
                    facts(&opened.details)
                )?,
                Err(error) => writeln!(out, "{name:8} {error}")?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn to_json(listing: &Listing) -> Value {
    let devices: Vec<Value> = listing
        .devices
        .iter()
        .map(|device| match device {
            Ok(opened) => json!(opened.details),
            Err(error) => json!({ "error": error.to_string() }),
        })
        .collect();
    json!({
        "backend": listing.name,
        "feature": listing.feature,
        "compiled_in": listing.compiled_in,
        "devices": devices,
        "none_found": listing.none.as_ref().map(ToString::to_string),
    })
}
