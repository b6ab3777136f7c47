//! `[objective]`: what is minimised.

use std::sync::Arc;

use olora_data::Answers;
use olora_training::{CrossEntropy, Dpo, DpoLoss, Kto, Objective, Orpo, SimPo};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Recipe,
    bounds::{Problems, is_single},
};

/// `[objective]`. A key that is not given has the method's own default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveSection {
    /// Supervised fine-tuning, or learning from answers that were judged. `data.train_on_prompt`
    /// goes with `cross-entropy` only.
    #[serde(default)]
    pub method: Method,
    /// How much a reward counts. Not with `cross-entropy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0), extend("x-default" = "`0.1`; `simpo`: `2.0`"))]
    pub beta: Option<f64>,
    /// `dpo` only: what is made of a difference of rewards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`\"sigmoid\"`"))]
    pub loss: Option<PairLoss>,
    /// `dpo` and `simpo`: the share of pairs that are the wrong way around. Not with `hinge` and
    /// `ipo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 0.5), extend("x-default" = "`0.0`"))]
    pub label_smoothing: Option<f64>,
    /// `dpo` and `simpo`: how much of the chosen answers' cross-entropy is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("x-default" = "`0.0`"))]
    pub rpo_alpha: Option<f64>,
    /// `simpo`: the margin that is to be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("x-default" = "`1.0`"))]
    pub gamma: Option<f64>,
    /// `kto`: what the loss of a good and of a bad answer counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("x-default" = "`1.0`"))]
    pub desirable_weight: Option<f64>,
    /// `kto`: what the loss of a good and of a bad answer counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("x-default" = "`1.0`"))]
    pub undesirable_weight: Option<f64>,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The cross-entropy of what is trained: supervised fine-tuning.
    #[default]
    CrossEntropy,
    /// Direct preference optimisation.
    Dpo,
    /// Odds-ratio preference optimisation.
    Orpo,
    /// Simple preference optimisation.
    #[serde(rename = "simpo")]
    SimPo,
    /// Kahneman-Tversky optimisation.
    Kto,
}

impl Method {
    /// As a recipe has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CrossEntropy => "cross-entropy",
            Self::Dpo => "dpo",
            Self::Orpo => "orpo",
            Self::SimPo => "simpo",
            Self::Kto => "kto",
        }
    }

    /// Whether the model is compared with a reference.
    pub(crate) fn has_reference(self) -> bool {
        matches!(self, Self::Dpo | Self::Kto)
    }
}

/// What DPO makes of a difference of rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PairLoss {
    /// [`DpoLoss::Sigmoid`].
    #[default]
    Sigmoid,
    /// [`DpoLoss::SigmoidNorm`].
    SigmoidNorm,
    /// [`DpoLoss::Hinge`].
    Hinge,
    /// [`DpoLoss::Ipo`].
    Ipo,
    /// [`DpoLoss::Robust`].
    Robust,
}

impl From<PairLoss> for DpoLoss {
    fn from(loss: PairLoss) -> Self {
        match loss {
            PairLoss::Sigmoid => Self::Sigmoid,
            PairLoss::SigmoidNorm => Self::SigmoidNorm,
            PairLoss::Hinge => Self::Hinge,
            PairLoss::Ipo => Self::Ipo,
            PairLoss::Robust => Self::Robust,
        }
    }
}

impl ObjectiveSection {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What records are to hold.
    pub fn answers(&self) -> Answers {
        match self.method {
            Method::CrossEntropy => Answers::One,
            Method::Dpo | Method::Orpo | Method::SimPo => Answers::Pair,
            Method::Kto => Answers::Labelled,
        }
    }

    /// What is minimised, of samples of at most `max_length` tokens, with lengths
    /// padded to a multiple.
    pub fn objective(&self, max_length: usize, padding_multiple: usize) -> Arc<dyn Objective> {
        let label_smoothing = self.label_smoothing.unwrap_or(0.0);
        let rpo_alpha = self.rpo_alpha.unwrap_or(0.0);
        match self.method {
            Method::CrossEntropy => Arc::new(CrossEntropy),
            Method::Dpo => Arc::new(Dpo {
                beta: self.beta.unwrap_or(Dpo::default().beta),
                loss: self.loss.unwrap_or_default().into(),
                label_smoothing,
                rpo_alpha,
            }),
            Method::Orpo => Arc::new(Orpo {
                beta: self.beta.unwrap_or(Orpo::default().beta),
            }),
            Method::SimPo => Arc::new(SimPo {
                beta: self.beta.unwrap_or(SimPo::default().beta),
                gamma: self.gamma.unwrap_or(SimPo::default().gamma),
                label_smoothing,
                rpo_alpha,
            }),
            Method::Kto => Arc::new(Kto {
                beta: self.beta.unwrap_or(0.1),
                desirable_weight: self.desirable_weight.unwrap_or(1.0),
                undesirable_weight: self.undesirable_weight.unwrap_or(1.0),
                max_length,
                padding_multiple,
            }),
        }
    }

    /// Its keys that were given, as a person would say them: `dpo, beta 0.1`.
    pub fn described(&self) -> String {
        let mut all = vec![self.method.name().to_owned()];
        if let Some(loss) = self.loss
            && let Ok(serde_json::Value::String(name)) = serde_json::to_value(loss)
        {
            all.push(format!("loss {name}"));
        }
        let numbers = self.numbers().into_iter();
        all.extend(numbers.filter_map(|(name, value)| Some(format!("{name} {}", value?))));
        all.join(", ")
    }

    fn numbers(&self) -> [(&'static str, Option<f64>); 6] {
        [
            ("beta", self.beta),
            ("label_smoothing", self.label_smoothing),
            ("rpo_alpha", self.rpo_alpha),
            ("gamma", self.gamma),
            ("desirable_weight", self.desirable_weight),
            ("undesirable_weight", self.undesirable_weight),
        ]
    }

    /// Adds everything that cannot be meant.
    fn check(&self, problems: &mut Problems) {
        use Method::{Dpo, Kto, Orpo, SimPo};
        let method = self.method;
        let takes: [(&str, &[Method]); 6] = [
            ("beta", &[Dpo, Orpo, SimPo, Kto]),
            ("label_smoothing", &[Dpo, SimPo]),
            ("rpo_alpha", &[Dpo, SimPo]),
            ("gamma", &[SimPo]),
            ("desirable_weight", &[Kto]),
            ("undesirable_weight", &[Kto]),
        ];
        for ((name, of), (_, value)) in takes.iter().zip(self.numbers()) {
            problems.check(
                value.is_none() || of.contains(&method),
                &format!(
                    "`objective.{name}` has no use with `method = \"{}\"`: remove it",
                    method.name()
                ),
            );
        }
        problems.check(
            self.loss.is_none() || method == Dpo,
            &format!(
                "`objective.loss` has no use with `method = \"{}\"`: remove it",
                method.name()
            ),
        );
        let loss = self.loss.unwrap_or_default();
        for (name, value) in self.numbers() {
            let Some(value) = value else { continue };
            let key = format!("objective.{name}");
            match name {
                "beta" => problems.number(
                    &key,
                    value,
                    value > 0.0 && is_single(value) && is_single(1.0 / value),
                    "above 0: at 0 nothing of a preference would count, and below it the rejected answer would be learnt",
                ),
                "label_smoothing" => problems.number(
                    &key,
                    value,
                    (0.0..0.5).contains(&value),
                    "at least 0 and below 0.5: it is the share of pairs that are the wrong way around",
                ),
                _ => problems.number(
                    &key,
                    value,
                    value >= 0.0 && is_single(value),
                    "0 or more, and so in 32 bits",
                ),
            }
        }
        let smooths = !matches!(loss, PairLoss::Hinge | PairLoss::Ipo);
        problems.check(
            self.label_smoothing.is_none() || smooths,
            "`objective.label_smoothing` has no use with `loss = \"hinge\"` and `\"ipo\"`: remove it",
        );
    }
}

impl Recipe {
    /// What the objective asks of other sections.
    pub(super) fn check_objective(&self, problems: &mut Problems) {
        let objective = &self.objective;
        objective.check(problems);
        if objective.answers() == Answers::One {
            return;
        }
        let name = objective.method.name();
        problems.check(
            !self.data.train_on_prompt,
            &format!(
                "`data.train_on_prompt` has no use with `objective.method = \"{name}\"`, which compares answers{}: \
                 remove it",
                if objective.method == Method::Orpo {
                    " and takes the cross-entropy of the chosen one with its prompt"
                } else {
                    ""
                }
            ),
        );
        problems.check(
            objective.method != Method::Kto || self.training.batch_size > 1,
            "`objective.method = \"kto\"` needs `training.batch_size` of at least 2: what the model gains in general \
             is estimated from each prompt with the answer to another one of the micro-batch",
        );
    }
}
