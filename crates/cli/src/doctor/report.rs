//! What was found on one device, for people and for scripts.

use std::fmt::{self, Write as _};

use olora_doctor::{Finding, Verdict};
use serde_json::{Value, json};

use super::{Examination, Setting};

/// What was found on one device.
pub(super) struct Report {
    /// As `--device` takes it.
    pub(super) device: String,
    /// What it is, once it has answered.
    pub(super) description: Option<String>,
    pub(super) accelerator: bool,
    /// The first is how `train` would use the device.
    pub(super) examinations: Vec<Examination>,
    /// Why the first one ended early, or did not begin.
    pub(super) reason: Option<String>,
}

impl Report {
    pub(super) fn new(device: &str) -> Self {
        Self {
            device: device.to_owned(),
            description: None,
            accelerator: false,
            examinations: Vec::new(),
            reason: None,
        }
    }

    pub(super) fn is_good(&self) -> bool {
        self.reason.is_none() && self.examinations.first().is_some_and(Examination::is_good)
    }

    /// The least that has to be switched off for everything to be right.
    fn remedy(&self) -> Option<Setting> {
        let good = |wanted: &Setting| {
            self.examinations
                .iter()
                .any(|examination| examination.setting == *wanted && examination.is_good())
        };
        [Setting::NO_AUTOTUNE, Setting::NO_FUSION, Setting::NEITHER]
            .into_iter()
            .find(good)
    }

    fn conclusion(&self, first: &Examination) -> String {
        let device = &self.device;
        if self.is_good() && !self.accelerator {
            return "the CPU is what others are compared with; its half precision rounds as expected"
                .to_owned();
        }
        if self.is_good() {
            let coarse = first.findings.iter().any(|f| f.verdict == Verdict::Coarse);
            let note = if coarse {
                "; coarse: float32 products are rounded as by TF32"
            } else {
                ""
            };
            return format!("{device} computes what the CPU computes{note}");
        }
        if first.is_good() {
            return format!(
                "{device} computes what the CPU computes, but its driver does not end well"
            );
        }
        if let Some(setting) = self.remedy() {
            let name = setting.name();
            return format!("{device} is right with {name}: give {name} to `olora train` too");
        }
        let is_wrong = |dtype: &str| {
            first
                .findings
                .iter()
                .any(|finding| finding.dtype == dtype && !finding.verdict.is_good())
        };
        if first.findings.len() == first.planned && !is_wrong("float32") {
            let halves: Vec<_> = ["bfloat16", "float16"]
                .into_iter()
                .filter(|dtype| is_wrong(dtype))
                .collect();
            return format!(
                "{device} is wrong in {}: train there with model.dtype = \"float32\"",
                halves.join(" and ")
            );
        }
        format!("do not train on {device}: no setting mends it. Please report this table")
    }

    pub(super) fn to_json(&self) -> Value {
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
        let remedy = if self.is_good() { None } else { self.remedy() };
        json!({
            "device": self.device,
            "description": self.description,
            "good": self.is_good(),
            "remedy": remedy.map(Setting::name),
            "reason": self.reason,
            "examinations": examinations,
        })
    }
}

/// The table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.description.as_ref().unwrap_or(&self.device))?;
        let Some((first, others)) = self.examinations.split_first() else {
            let reason = self.reason.as_deref().unwrap_or("it did not answer");
            return writeln!(f, "  cannot be examined: {reason}");
        };
        let mut header = line("operation", "dtype", "worst error", "verdict");
        for other in others {
            header += "  with ";
            header += other.setting.name();
        }
        writeln!(f, "{}", header.trim_end())?;
        for finding in &first.findings {
            let mut row = line(
                &finding.operation,
                &finding.dtype,
                &error_of(finding),
                verdict_of(finding),
            );
            for other in others {
                let cell = match other.find(&finding.operation, &finding.dtype) {
                    Some(found) => format!("{} {}", error_of(found), verdict_of(found)),
                    None => "not reached".to_owned(),
                };
                let width = "with ".len() + other.setting.name().len();
                write!(row, "  {cell:width$}")?;
            }
            writeln!(f, "{}", row.trim_end())?;
        }
        let missing = first.planned.saturating_sub(first.findings.len());
        if missing > 0 {
            writeln!(f, "  {missing} more were not reached")?;
        }
        for finding in first.findings.iter().filter(|f| !f.verdict.is_good()) {
            writeln!(f, "  ! {finding}")?;
        }
        if let Some(reason) = &self.reason {
            writeln!(f, "  ! the examination ended early: {reason}")?;
        }
        writeln!(f, "  {}", self.conclusion(first))
    }
}

fn line(operation: &str, dtype: &str, error: &str, verdict: &str) -> String {
    format!("  {operation:18} {dtype:9} {error:>11}  {verdict:8}")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(dtype: &str, verdict: Verdict) -> Finding {
        Finding {
            operation: "norm".to_owned(),
            dtype: dtype.to_owned(),
            worst: Some(0.5),
            place: "output, length 7".to_owned(),
            tolerance: 0.003,
            verdict,
            reason: None,
        }
    }

    /// A report of examinations, each a setting and what was found of one
    /// operation in f32 and in f16.
    fn report(examinations: &[(Setting, Verdict, Verdict)]) -> Report {
        let mut report = Report::new("cuda");
        report.accelerator = true;
        report.examinations = examinations
            .iter()
            .map(|(setting, full, half)| Examination {
                setting: *setting,
                findings: vec![finding("float32", *full), finding("float16", *half)],
                planned: 2,
            })
            .collect();
        report
    }

    #[test]
    fn what_to_switch_off_is_the_least_that_helps() {
        const FULL: Setting = Setting {
            fusion: true,
            autotune: true,
        };
        use Verdict::{Coarse, Right, Wrong};
        let neither = (Setting::NEITHER, Right, Right);
        let cases = [
            (
                vec![(FULL, Right, Right), neither],
                "computes what the CPU computes\n",
            ),
            (vec![(FULL, Coarse, Right), neither], "rounded as by TF32"),
            (
                vec![
                    (FULL, Wrong, Right),
                    neither,
                    (Setting::NO_FUSION, Right, Right),
                    (Setting::NO_AUTOTUNE, Wrong, Right),
                ],
                "give --no-fusion to",
            ),
            (
                vec![
                    (FULL, Wrong, Right),
                    neither,
                    (Setting::NO_FUSION, Wrong, Right),
                    (Setting::NO_AUTOTUNE, Wrong, Right),
                ],
                "give --no-fusion --no-autotune to",
            ),
            (
                vec![(FULL, Right, Wrong), (Setting::NEITHER, Right, Wrong)],
                "wrong in float16: train there with model.dtype = \"float32\"",
            ),
            (
                vec![(FULL, Wrong, Wrong), (Setting::NEITHER, Wrong, Wrong)],
                "do not train on cuda",
            ),
        ];
        for (examinations, expected) in cases {
            let text = report(&examinations).to_string();
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn an_examination_that_ended_early_is_never_good() {
        let mut report = report(&[(Setting::NEITHER, Verdict::Right, Verdict::Right)]);
        assert!(report.is_good());
        report.examinations[0].planned = 3;
        assert!(!report.is_good());
        assert!(report.to_string().contains("1 more were not reached"));
    }
}
