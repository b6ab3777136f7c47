//! One examination in a process of its own, and what it says on the way: a
//! line of JSON for each thing that happens.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result};
use olora_devices::KernelOptions;
use olora_doctor::{Doctor, Finding, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Examination, Setting, report::Report};
use crate::{
    Usage,
    args::DoctorArgs,
    devices,
    terminal::{draws_bars, emit, say, tagged},
};

/// How long one operation may take: on a software rasteriser, which is what is
/// slowest, none takes a minute.
const PATIENCE: Duration = Duration::from_mins(15);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The device answers.
    Opened {
        description: String,
        accelerator: bool,
        fusion: bool,
        autotune: bool,
        /// How many findings there will be.
        planned: usize,
    },
    /// An operation is about to run.
    Start { operation: String, dtype: String },
    /// It has run.
    Found(Finding),
}

/// Examines one device with one setting in a new process, and adds what it
/// finds to the report.
pub(super) fn run(report: &mut Report, args: &DoctorArgs, options: KernelOptions) -> Result<()> {
    let mut worker = start(&report.device, args, options)
        .context("starting the process that examines the device")?;
    let stdout = worker.stdout.take().context("the worker's output")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // What a driver prints there is not ours.
            if let Ok(line) = serde_json::from_str::<Line>(&line)
                && sender.send(line).is_err()
            {
                return;
            }
        }
    });
    let mut errors = worker.stderr.take().context("the worker's errors")?;
    // Drained on a thread of its own, so that a talkative driver cannot block the worker.
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read is told; there is no more to be had.
        let _ = errors.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });

    let (mut examination, mut running) = (None, None);
    let mut timed_out = false;
    loop {
        let line = match lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                timed_out = true;
                worker.kill()?;
                break;
            }
        };
        match line {
            Line::Opened {
                description,
                accelerator,
                fusion,
                autotune,
                planned,
            } => {
                let setting = Setting { fusion, autotune };
                report.accelerator = accelerator;
                tell_opened(report, &description, setting, planned);
                report.description.get_or_insert(description);
                examination = Some(Examination {
                    setting,
                    findings: Vec::new(),
                    planned,
                });
            }
            Line::Start { operation, dtype } => {
                status(&format!("  {operation}, {dtype}"));
                running = Some((operation, dtype));
            }
            Line::Found(finding) => {
                running = None;
                let mut event = tagged("finding", &finding);
                event["device"] = json!(report.device);
                emit(&event);
                if let Some(examination) = &mut examination {
                    examination.findings.push(finding);
                }
            }
        }
    }
    status("");
    let ended = worker.wait()?;
    let errors = errors.join().unwrap_or_default();
    if !ended.success() {
        let said = errors.trim().trim_start_matches("error: ");
        if ended.code() == Some(2) {
            return Err(Usage::new(said));
        }
        let reason = if timed_out {
            format!("it did not answer for {} minutes", PATIENCE.as_secs() / 60)
        } else if said.is_empty() {
            format!("the process ended with {ended}")
        } else {
            said.to_owned()
        };
        // It died in the middle of an operation: that one failed, the rest was not reached.
        if let (Some(examination), Some((operation, dtype))) = (&mut examination, running) {
            examination.findings.push(Finding {
                operation,
                dtype,
                worst: None,
                place: "the driver".to_owned(),
                tolerance: 0.0,
                verdict: Verdict::Failed,
                reason: Some(reason.clone()),
            });
        }
        // Only how the device is trained on decides whether it is good.
        if report.examinations.is_empty() {
            report.reason = Some(reason);
        }
    }
    report.examinations.extend(examination);
    Ok(())
}

/// Says what is examined, and how.
fn tell_opened(report: &Report, description: &str, setting: Setting, planned: usize) {
    if report.accelerator {
        say(&format!("examining {description}: {}", setting.name()));
    } else {
        say(&format!("examining {description}"));
    }
    emit(&json!({
        "event": "examining", "device": report.device, "description": description,
        "fusion": setting.fusion, "autotune": setting.autotune, "operations": planned,
    }));
}

fn start(device: &str, args: &DoctorArgs, options: KernelOptions) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    let lengths: Vec<_> = args.lengths.iter().map(ToString::to_string).collect();
    // What it says is taken apart here.
    command.args(["doctor", "--worker", "--color", "never", "--device", device]);
    command.args(["--lengths", &lengths.join(",")]);
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
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// What is running, on a terminal; the next one takes its place.
fn status(text: &str) {
    let mut err = std::io::stderr();
    if draws_bars() {
        let _ = write!(err, "\r\x1b[K{text}");
        let _ = err.flush();
    }
}

/// Examines one device in this process and prints what happens.
pub(super) fn work(args: &DoctorArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let device = args.device.as_deref().unwrap_or_default();
    let opened = devices::open(device, kernels)?;
    let reference = olora_devices::reference().context("this build has no CPU backend")?;
    let doctor = Doctor::new(&opened.device, &reference).with_lengths(args.lengths.clone());
    #[cfg(feature = "test-hooks")]
    let doctor = match &args.fault {
        Some(operation) => doctor.with_fault(operation),
        None => doctor,
    };
    let cases = doctor.cases();
    print(&Line::Opened {
        description: opened.details.to_string(),
        accelerator: opened.details.accelerator,
        fusion: opened.details.fusion,
        autotune: opened.details.autotune,
        planned: cases.len(),
    })?;
    for case in cases {
        print(&Line::Start {
            operation: case.operation().to_owned(),
            dtype: case.dtype().to_owned(),
        })?;
        print(&Line::Found(doctor.examine(case)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(line: &Line) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(line)?)?;
    Ok(out.flush()?)
}
