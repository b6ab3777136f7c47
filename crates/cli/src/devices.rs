//! `olora devices`, and what a device's failure means.

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use olora_devices::{Details, DeviceError, KernelOptions, Listing, Opened};
use olora_model::ModelError;
use olora_runs::RunError;
use olora_tasks::TaskError;
use olora_training::{DeviceErrors, TrainError, listening, on_device};
use serde_json::{Value, json};

use crate::{args::DevicesArgs, terminal::out};

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

/// Runs something on a device; its failures are told as what they are.
pub(crate) fn guarded<T>(
    details: &Details,
    advice: &str,
    part: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Details {
        accelerator,
        memory,
        ..
    } = *details;
    on_device(accelerator, memory, advice, || part().map_err(Failure))
        .map_err(|Failure(error)| error)
}

/// Whatever failed.
struct Failure(anyhow::Error);

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        Self(error.into())
    }
}

impl DeviceErrors for Failure {
    fn into_train(self) -> Result<TrainError, Self> {
        let error = match self.0.downcast::<ModelError>() {
            Ok(error) => return Ok(error.into()),
            Err(error) => error,
        };
        let error = match error.downcast::<RunError>() {
            Ok(RunError::Train(error)) => return Ok(error),
            Ok(error) => return Err(Self(error.into())),
            Err(error) => error,
        };
        match error.downcast::<TaskError>() {
            Ok(TaskError::Train(error)) => Ok(error),
            Ok(error) => Err(Self(error.into())),
            Err(error) => error.downcast::<TrainError>().map_err(Self),
        }
    }
}

/// `olora devices`.
pub(crate) fn list(args: &DevicesArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let listings = olora_devices::list(kernels);
    let mut out = out();
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
                    opened.details.facts()
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
