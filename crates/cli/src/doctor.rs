//! `olora doctor`: what devices compute, against the CPU.
//!
//! Each device and setting is examined in a process of its own: how kernels
//! are made is fixed once per process, and a driver that crashes takes only
//! that process with it.

use std::{
    io::{BufRead, BufReader, IsTerminal, Write},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result};
use olora_devices::{Details, KernelOptions};
use olora_training::{Doctor, Finding, Verdict};
use serde_json::{Value, json};

use crate::{Usage, args::DoctorArgs, devices, progress::say};

/// How kernels are made in one examination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    /// For people.
    name: &'static str,
    fusion: bool,
    autotune: bool,
}

const FULL: Setting = Setting {
    name: "fusion and autotune on",
    fusion: true,
    autotune: true,
};
const NO_FUSION: Setting = Setting {
    name: "--no-fusion",
    fusion: false,
    autotune: true,
};
const NO_AUTOTUNE: Setting = Setting {
    name: "--no-autotune",
    fusion: true,
    autotune: false,
};
const NEITHER: Setting = Setting {
    name: "--no-fusion --no-autotune",
    fusion: false,
    autotune: false,
};

/// What one process found.
struct Examination {
    setting: Setting,
    findings: Vec<Finding>,
    /// The operations it was to examine, as (name, number format).
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
    if args.lengths.contains(&0) {
        return Err(Usage::new("--lengths takes lengths of at least 1"));
    }
    #[cfg(feature = "test-hooks")]
    if let Some(fault) = &args.fault
        && !Doctor::operations().contains(&fault.as_str())
    {
        let known = Doctor::operations().join("; ");
        return Err(Usage::new(&format!("--break takes one of: {known}")));
    }
    if args.worker {
        return work(args, kernels);
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
            write!(std::io::stdout(), "{}", report.table())?;
        }
        reports.push(report);
    }
    if args.json {
        let all: Vec<Value> = reports.iter().map(Report::to_json).collect();
        writeln!(std::io::stdout(), "{}", Value::Array(all))?;
    }
    Ok(ExitCode::from(u8::from(!good)))
}

/// What was found on one device.
struct Report {
    device: String,
    details: Option<Details>,
    /// The first is how `train` would use the device.
    examinations: Vec<Examination>,
    /// Why the device could not be examined.
    reason: Option<String>,
}

/// Examines a device as `train` would use it, then with fusion and autotune
/// off, and, if something was wrong, with each of them off alone.
fn examine(device: &str, args: &DoctorArgs, kernels: KernelOptions) -> Result<Report> {
    let mut report = Report {
        device: device.to_owned(),
        details: None,
        examinations: Vec::new(),
        reason: None,
    };
    // Among all devices there is the CPU, for which no such option is meant.
    let cpu_among_all = device == "cpu" && args.device.is_none();
    let mut settings = vec![if cpu_among_all {
        KernelOptions::default()
    } else {
        kernels
    }];
    while !settings.is_empty() {
        let options = settings.remove(0);
        let (details, examination, reason) = run_worker(device, args, options)?;
        let first = report.details.is_none();
        report.details = report.details.or(details);
        report.reason = report.reason.or(reason);
        let Some(examination) = examination else {
            return Ok(report);
        };
        let found_wrong = !examination.is_good();
        let setting = examination.setting;
        report.examinations.push(examination);
        let is_gpu = report.details.as_ref().is_some_and(|d| d.accelerator);
        if first && is_gpu {
            let others = if found_wrong {
                vec![NEITHER, NO_FUSION, NO_AUTOTUNE]
            } else {
                vec![NEITHER]
            };
            // Only what switches off more than the first setting does.
            settings = others
                .into_iter()
                .filter(|other| {
                    *other != setting
                        && (setting.fusion || !other.fusion)
                        && (setting.autotune || !other.autotune)
                })
                .map(|other| KernelOptions {
                    fusion: other.fusion,
                    autotune: Some(other.autotune),
                })
                .collect();
        }
    }
    Ok(report)
}

/// Runs one examination in a process of its own.
#[expect(
    clippy::type_complexity,
    reason = "three things, each named where it is taken"
)]
fn run_worker(
    device: &str,
    args: &DoctorArgs,
    options: KernelOptions,
) -> Result<(Option<Details>, Option<Examination>, Option<String>)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["doctor", "--worker", "--device", device, "--lengths"]);
    command.arg(
        args.lengths
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(","),
    );
    if !options.fusion {
        command.arg("--no-fusion");
    }
    match options.autotune {
        Some(true) => command.arg("--autotune"),
        Some(false) => command.arg("--no-autotune"),
        None => &mut command,
    };
    #[cfg(feature = "test-hooks")]
    if let Some(fault) = &args.fault {
        command.args(["--break", fault]);
    }
    let mut worker = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the process that examines the device")?;
    let lines = worker.stdout.take().context("the worker's output")?;
    // Drained on a thread of its own, so that a talkative driver cannot block the worker.
    let stderr = worker.stderr.take().context("the worker's errors")?;
    let stderr = std::thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default());

    let terminal = std::io::stderr().is_terminal();
    let (mut details, mut examination, mut running) = (None, None, None);
    for line in BufReader::new(lines).lines() {
        let line: Value = serde_json::from_str(&line?).context("reading the worker's findings")?;
        if let Some(found) = line.get("details") {
            let (name, autotune, fusion) = (
                found["text"].as_str().unwrap_or(device).to_owned(),
                found["autotune"].as_bool().unwrap_or(false),
                found["fusion"].as_bool().unwrap_or(false),
            );
            let accelerator = found["accelerator"].as_bool().unwrap_or(false);
            let setting = [FULL, NO_FUSION, NO_AUTOTUNE, NEITHER]
                .into_iter()
                .find(|setting| (setting.fusion, setting.autotune) == (fusion, autotune))
                .unwrap_or(NEITHER);
            if accelerator {
                say(&format!("examining {name}: {}", setting.name));
            } else {
                say(&format!("examining {name}"));
            }
            details = Some(Details {
                device: device.to_owned(),
                name,
                accelerator,
                ..Details::default()
            });
            examination = Some(Examination {
                setting,
                findings: Vec::new(),
                planned: line["planned"].as_u64().unwrap_or(0) as usize,
            });
        } else if let Some(start) = line.get("start") {
            let text = |key: &str| start[key].as_str().unwrap_or_default().to_owned();
            let (operation, dtype) = (text("operation"), text("dtype"));
            if terminal {
                let mut err = std::io::stderr();
                let _ = write!(err, "\r\x1b[K  {operation}, {dtype}");
                let _ = err.flush();
            }
            running = Some((operation, dtype));
        } else if let (Some(finding), Some(examination)) =
            (line.get("finding"), examination.as_mut())
        {
            examination
                .findings
                .push(serde_json::from_value(finding.clone())?);
            running = None;
        }
    }
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    let status = worker.wait()?;
    let said = stderr.join().unwrap_or_default();
    if status.success() {
        return Ok((details, examination, None));
    }
    let said = said.trim().trim_start_matches("error: ").to_owned();
    let reason = if said.is_empty() {
        format!("the process ended with {status}")
    } else {
        said
    };
    // It died in the middle of an operation: that one failed, the rest was not reached.
    if let (Some(examination), Some((operation, dtype))) = (examination.as_mut(), running) {
        examination.findings.push(Finding {
            operation,
            dtype,
            worst: None,
            place: "the process".to_owned(),
            tolerance: 0.0,
            verdict: Verdict::Failed,
            reason: Some(format!("{status}")),
        });
    }
    Ok((details, examination, Some(reason)))
}

/// Examines one device in this process and prints a line of JSON for each
/// thing that happens.
fn work(args: &DoctorArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let device = args.device.as_deref().unwrap_or_default();
    let opened = olora_devices::open(device, kernels)?;
    let reference = olora_devices::reference().context("this build has no CPU backend")?;
    let doctor = Doctor::new(&opened.device, &reference).with_lengths(args.lengths.clone());
    #[cfg(feature = "test-hooks")]
    let doctor = match &args.fault {
        Some(operation) => doctor.with_fault(operation),
        None => doctor,
    };
    let details = &opened.details;
    print(&json!({
        "details": {
            "text": devices::describe(details),
            "accelerator": details.accelerator,
            "autotune": details.autotune,
            "fusion": details.fusion,
        },
        "planned": doctor.n_findings(),
    }))?;
    let mut failed = None;
    doctor.examine(
        |operation, dtype| {
            let line = json!({ "start": { "operation": operation, "dtype": dtype } });
            failed = print(&line).err();
        },
        |finding| {
            let _ = print(&json!({ "finding": finding }));
        },
    );
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn print(line: &Value) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

impl Report {
    fn is_good(&self) -> bool {
        self.reason.is_none() && self.examinations.first().is_some_and(Examination::is_good)
    }

    /// The setting to recommend: the first that is right throughout.
    fn remedy(&self) -> Option<Setting> {
        let good = |wanted: Setting| {
            self.examinations
                .iter()
                .any(|examination| examination.setting == wanted && examination.is_good())
        };
        [NO_AUTOTUNE, NO_FUSION, NEITHER]
            .into_iter()
            .find(|setting| good(*setting))
    }

    fn table(&self) -> String {
        let name = self
            .details
            .as_ref()
            .map_or(&self.device, |details| &details.name);
        let mut text = format!("\n{name}\n");
        let Some(first) = self.examinations.first() else {
            let reason = self.reason.as_deref().unwrap_or("it did not answer");
            return text + &format!("  cannot be examined: {reason}\n");
        };
        let others = &self.examinations[1..];
        text += &format!(
            "  {:18} {:9} {:>11}  {:8}",
            "operation", "dtype", "worst error", "verdict"
        );
        for other in others {
            text += &format!("  with {}", other.setting.name);
        }
        text += "\n";
        for finding in &first.findings {
            text += &format!(
                "  {:18} {:9} {:>11}  {:8}",
                finding.operation,
                finding.dtype,
                error_of(finding),
                verdict_of(finding)
            );
            for other in others {
                let cell = match other.find(&finding.operation, &finding.dtype) {
                    Some(found) => format!("{} {}", error_of(found), verdict_of(found)),
                    None => "not reached".to_owned(),
                };
                text += &format!("  {cell:width$}", width = other.setting.name.len() + 5);
            }
            text = text.trim_end().to_owned() + "\n";
        }
        let missing = first.planned.saturating_sub(first.findings.len());
        if missing > 0 {
            text += &format!("  {missing} more were not reached\n");
        }
        for finding in first.findings.iter().filter(|f| !f.verdict.is_good()) {
            text += &format!("  ! {finding}\n");
        }
        if let Some(reason) = &self.reason {
            text += &format!("  ! the examination ended early: {reason}\n");
        }
        text + &self.conclusion(first)
    }

    fn conclusion(&self, first: &Examination) -> String {
        let device = &self.device;
        if self.is_good() {
            let coarse = first.findings.iter().any(|f| f.verdict == Verdict::Coarse);
            let note = if coarse {
                "; coarse: float32 products are rounded as by TF32"
            } else {
                ""
            };
            return format!("  {device} computes what the CPU computes{note}\n");
        }
        if let Some(setting) = self.remedy() {
            return format!(
                "  {device} is right with {0}: give {0} to `olora train` too\n",
                setting.name
            );
        }
        let wrong = |dtype: &str| {
            first
                .findings
                .iter()
                .any(|finding| finding.dtype == dtype && !finding.verdict.is_good())
        };
        let halves: Vec<_> = ["bfloat16", "float16"]
            .into_iter()
            .filter(|dtype| wrong(dtype))
            .collect();
        if first.findings.len() == first.planned && !wrong("float32") {
            return format!(
                "  {device} is wrong in {}: train there with model.dtype = \"float32\"\n",
                halves.join(" and ")
            );
        }
        format!("  do not train on {device}: no setting mends it. Please report this table\n")
    }

    fn to_json(&self) -> Value {
        let examinations: Vec<Value> = self
            .examinations
            .iter()
            .map(|examination| {
                json!({
                    "fusion": examination.setting.fusion,
                    "autotune": examination.setting.autotune,
                    "planned": examination.planned,
                    "findings": examination.findings,
                })
            })
            .collect();
        json!({
            "device": self.device,
            "description": self.details.as_ref().map(|details| &details.name),
            "good": self.is_good(),
            "remedy": if self.is_good() { None } else { self.remedy().map(|s| s.name) },
            "reason": self.reason,
            "examinations": examinations,
        })
    }
}

fn error_of(finding: &Finding) -> String {
    match (finding.worst, finding.verdict) {
        (_, Verdict::Failed) => "-".to_owned(),
        (Some(worst), _) => format!("{worst:.1e}"),
        (None, _) => "not finite".to_owned(),
    }
}

fn verdict_of(finding: &Finding) -> &'static str {
    match finding.verdict {
        Verdict::Right => "right",
        Verdict::Coarse => "coarse",
        Verdict::Wrong => "WRONG",
        Verdict::Failed => "FAILED",
    }
}
