//! How many parameters a model has, and how many of them train.

use burn::{module::Module, tensor::Device};
use olora_adapter::{
    AdapterError, Parameter, Placement, Role, factors, parameters_to_save, params, planned,
};
use olora_model::{Llama, ModelConfig};

use crate::{Recipe, RunError, recipe::Trained};

/// Parameters of a model and its adapter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// All but the anchors.
    pub(crate) params: usize,
    pub(crate) trained: usize,
    pub(crate) anchor: usize,
    pub(crate) adapted_layers: usize,
    /// Whether the vocabulary projection is adapted.
    pub(crate) adapted_output: bool,
    /// Whether the vocabulary projection trains whole.
    pub(crate) output_trains: bool,
    /// The largest rank.
    pub(crate) rank: usize,
    /// Elements of the largest tensor that trains.
    pub(crate) largest_trained: usize,
}

impl Counts {
    /// Counted from shapes: no weight is made or read.
    pub(crate) fn expected(recipe: &Recipe, config: &ModelConfig) -> Result<Self, RunError> {
        #[allow(
            clippy::default_trait_access,
            reason = "any device will do: nothing is put on it"
        )]
        let device: Device = Default::default();
        let model = config.init(&device);
        let base = model.num_params();
        let all = params(&model);
        let adapter = match recipe.adapter.trained(model.lm_head.is_some()) {
            Trained::Adapter(adapter) => adapter,
            Trained::Everything => {
                let sizes = all.iter().map(Parameter::num_elements);
                return Ok(Self {
                    params: base,
                    trained: base,
                    anchor: 0,
                    adapted_layers: 0,
                    adapted_output: false,
                    output_trains: true,
                    rank: 0,
                    largest_trained: sizes.max().unwrap_or(0),
                });
            }
        };
        // Finding layers by name looks at weights, so it is done on a model of the same layers
        // whose weights are as small as can be.
        let small = config.miniature().init(&device);
        let targets = planned(&small, &adapter)?;
        let (mut factors, mut magnitudes, mut largest_trained, mut rank) = (0, 0, 0, 0);
        for (target, shape) in &targets {
            let path = format!("{}.weight", target.path);
            let weight = all.iter().find(|param| param.path() == path);
            let Some(&[d_in, d_out]) = weight.map(Parameter::shape).as_deref() else {
                continue;
            };
            if shape.rank > d_in.min(d_out) {
                return Err(AdapterError::RankTooLarge {
                    rank: shape.rank,
                    path: target.path.clone(),
                    d_in,
                    d_out,
                }
                .into());
            }
            factors += shape.rank * (d_in + d_out);
            magnitudes += if adapter.dora { d_out } else { 0 };
            largest_trained = largest_trained.max(shape.rank * d_in.max(d_out));
            rank = rank.max(shape.rank);
        }
        let saved = parameters_to_save(&model, &adapter.modules_to_save);
        let is_tied = model.lm_head.is_none();
        let has = |name: &str| saved.iter().any(|param| param.path().contains(name));
        let sizes = || saved.iter().map(Parameter::num_elements);
        let anchored = adapter.method.is_anchored() && adapter.placement == Placement::Anchored;
        Ok(Self {
            params: base + factors + magnitudes,
            trained: factors + magnitudes + sizes().sum::<usize>(),
            anchor: if anchored { factors } else { 0 },
            adapted_layers: targets.len(),
            largest_trained: sizes().fold(largest_trained, usize::max),
            adapted_output: targets.iter().any(|(target, _)| target.path == "lm_head"),
            output_trains: saved
                .iter()
                .any(|param| param.path().starts_with("lm_head"))
                || is_tied && has("embed_tokens"),
            rank,
        })
    }

    /// As they are once the adapter is attached: a method may have chosen other
    /// ranks.
    pub(crate) fn attached(self, llama: &Llama) -> Self {
        let all = params(llama);
        let sum = |counts: &dyn Fn(Role, bool) -> bool| {
            let counted = all.iter().filter(|p| counts(p.role(), p.trains()));
            counted.map(Parameter::num_elements).sum::<usize>()
        };
        let anchor = sum(&|role, _| matches!(role, Role::AnchorA | Role::AnchorB));
        Self {
            params: llama.num_params() - anchor,
            trained: sum(&|_, trains| trains),
            anchor,
            adapted_layers: factors(llama).len(),
            ..self
        }
    }
}
