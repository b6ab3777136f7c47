//! `olora doctor`: what devices compute, against the CPU.
//!
//! Each device and setting is examined in a process of its own: how kernels
//! are made is fixed once per process, and a driver that crashes takes only
//! that process with it.

mod report;
mod worker;

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use olora_devices::KernelOptions;
use olora_doctor::Finding;
use serde_json::Value;

use self::report::Report;
use crate::{Usage, args::DoctorArgs, terminal::out};

/// How kernels are made in one examination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    fusion: bool,
    autotune: bool,
}

impl Setting {
    const NO_FUSION: Self = Self {
        fusion: false,
        autotune: true,
    };
    const NO_AUTOTUNE: Self = Self {
        fusion: true,
        autotune: false,
    };
    const NEITHER: Self = Self {
        fusion: false,
        autotune: false,
    };

    /// As it is asked for on the command line.
    fn name(self) -> &'static str {
        match (self.fusion, self.autotune) {
            (true, true) => "fusion and autotune on",
            (false, true) => "--no-fusion",
            (true, false) => "--no-autotune",
            (false, false) => "--no-fusion --no-autotune",
        }
    }

    /// Whether this switches off what `other` has on, and nothing on.
    fn is_less_than(self, other: Self) -> bool {
        self != other && (other.fusion || !self.fusion) && (other.autotune || !self.autotune)
    }
}

impl From<Setting> for KernelOptions {
    fn from(setting: Setting) -> Self {
        Self {
            fusion: setting.fusion,
            autotune: Some(setting.autotune),
        }
    }
}

/// What one process found.
struct Examination {
    setting: Setting,
    findings: Vec<Finding>,
    /// How many findings there should be.
    planned: usize,
}

impl Examination {
    fn is_good(&self) -> bool {
        self.findings.len() == self.planned && self.findings.iter().all(|f| f.verdict.is_good())
    }

    fn find(&self, operation: &str, dtype: &str) -> Option<&Finding> {
        self.findings
            .iter()
            .find(|finding| finding.operation == operation && finding.dtype == dtype)
    }
}

pub(crate) fn doctor(args: &DoctorArgs, kernels: KernelOptions) -> Result<ExitCode> {
    #[cfg(feature = "test-hooks")]
    if let Some(fault) = &args.fault
        && !olora_doctor::Doctor::operations().contains(&fault.as_str())
    {
        let known = olora_doctor::Doctor::operations().join("; ");
        return Err(Usage::new(&format!("--break takes one of: {known}")));
    }
    if args.worker {
        return worker::work(args, kernels);
    }
    // Wrong names are refused before anything runs.
    let devices = match &args.device {
        Some(device) => {
            olora_devices::find(device)?;
            vec![device.clone()]
        }
        None => olora_devices::names(),
    };
    if olora_devices::reference().is_none() {
        return Err(Usage::new(
            "`doctor` compares with the CPU, which this build has not got: build it with the \
             `flex` feature too",
        ));
    }
    let (mut reports, mut good) = (Vec::new(), true);
    for device in &devices {
        let report = examine(device, args, kernels)?;
        good &= report.is_good();
        if !args.json {
            write!(out(), "{report}")?;
        }
        reports.push(report);
    }
    if args.json {
        let all: Vec<Value> = reports.iter().map(Report::to_json).collect();
        writeln!(out(), "{}", Value::Array(all))?;
    }
    Ok(ExitCode::from(u8::from(!good)))
}

/// Examines a device as `train` would use it, then with fusion and autotune
/// off, and, if something was wrong, with each of them off alone.
fn examine(device: &str, args: &DoctorArgs, kernels: KernelOptions) -> Result<Report> {
    // Among all devices there is the CPU, for which no such option is meant.
    let cpu_among_all = device == "cpu" && args.device.is_none();
    let first = if cpu_among_all {
        KernelOptions::default()
    } else {
        kernels
    };
    let mut report = Report::new(device);
    worker::run(&mut report, args, first)?;
    let Some(as_trained) = report.examinations.first() else {
        return Ok(report);
    };
    if !report.accelerator {
        return Ok(report);
    }
    let candidates = if as_trained.is_good() {
        &[Setting::NEITHER][..]
    } else {
        &[Setting::NEITHER, Setting::NO_FUSION, Setting::NO_AUTOTUNE]
    };
    let first = as_trained.setting;
    for setting in candidates
        .iter()
        .filter(|setting| setting.is_less_than(first))
    {
        worker::run(&mut report, args, (*setting).into())?;
    }
    Ok(report)
}
