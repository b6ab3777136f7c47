//! The feed-forward networks of all families.

use burn::{
    module::{Initializer, Module, Param},
    nn::Linear,
    tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData, activation::softmax},
};
use olora_adapter::{Project, project_each, to_dtype};
use olora_operations::project;

use crate::{Activation, Experts, ModelConfig};

/// What follows attention in a block. In a checkpoint's names the kinds are no
/// level.
#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a model has a few of these, and their tensors are elsewhere"
)]
pub enum FeedForward {
    /// One network.
    One(Mlp),
    /// One network, whose gate and up are one projection (Phi-3).
    Fused(FusedMlp),
    /// Several, of which each token goes through a few (Mixtral, Qwen3-MoE).
    Mixture(Mixture),
    /// One network of a model whose other blocks have experts. It takes no
    /// adapter: PEFT takes the names of its layers for those of experts, and
    /// would lose what was trained.
    Alone(Alone),
}

/// `down(act(gate(x)) · up(x))`, or without a gate `down(act(up(x)))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[hidden_size, intermediate_size]`; `None` without a gate (OPT).
    pub gate_proj: Option<Linear>,
    /// `[hidden_size, intermediate_size]`.
    pub up_proj: Linear,
    /// `[intermediate_size, hidden_size]`.
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

/// `down(act(gate) · up)` with gate and up from one projection.
#[derive(Module, Debug)]
pub struct FusedMlp {
    /// Gate, then up, `[hidden_size, 2 · intermediate_size]`.
    pub gate_up_proj: Linear,
    /// `[intermediate_size, hidden_size]`.
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

/// Experts and what chooses among them, `Σ p_e(x)·expert_e(x)` over the
/// `per_token` most probable (`modeling_mixtral.py`, `modeling_qwen3_moe.py`).
///
/// Neither router nor experts are layers that an adapter can be put on: PEFT has
/// no names for them that all versions of transformers share.
#[derive(Module, Debug)]
pub struct Mixture {
    /// The router.
    pub gate: Plain,
    /// The experts.
    pub experts: Vec<Expert>,
    per_token: usize,
    normalised: bool,
    #[module(skip)]
    activation: Activation,
}

/// `down(act(gate(x)) · up(x))`, without adapters.
#[derive(Module, Debug)]
pub struct Alone {
    /// To the inner width.
    pub gate_proj: Plain,
    /// To the inner width.
    pub up_proj: Plain,
    /// Back from it.
    pub down_proj: Plain,
    #[module(skip)]
    activation: Activation,
}

/// One expert: `down(act(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct Expert {
    /// To the inner width.
    pub gate_proj: Plain,
    /// To the inner width.
    pub up_proj: Plain,
    /// Back from it.
    pub down_proj: Plain,
}

/// A linear map that takes no adapter.
#[derive(Module, Debug)]
pub struct Plain {
    /// `[d_out, d_in]`, as checkpoints have it.
    pub weight: Param<Tensor<2>>,
}

impl Plain {
    fn new([d_in, d_out]: [usize; 2], initializer: &Initializer, device: &Device) -> Self {
        let weight = initializer.init([d_out, d_in], device);
        Self { weight }
    }

    /// `x·Wᵀ`, in the dtype of `x`.
    fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        let weight = to_dtype(self.weight.val(), x.dtype());
        project(x, weight.transpose(), None, None)
    }
}

impl FeedForward {
    /// The network of one block, `dense` making its linear layers.
    pub(crate) fn new(
        config: &ModelConfig,
        layer_idx: usize,
        dense: impl Fn(usize, usize, bool) -> Linear,
        initializer: &Initializer,
        device: &Device,
    ) -> Self {
        let (d_model, inner) = (config.hidden_size, config.intermediate_size);
        let activation = config.activation;
        let experts = config.experts.as_ref();
        let here = |experts: &&Experts| experts.layers.get(layer_idx) == Some(&true);
        if let Some(experts) = experts.filter(here) {
            let inner = experts.intermediate_size;
            let plain = |shape| Plain::new(shape, initializer, device);
            let expert = |_| Expert {
                gate_proj: plain([d_model, inner]),
                up_proj: plain([d_model, inner]),
                down_proj: plain([inner, d_model]),
            };
            return Self::Mixture(Mixture {
                gate: plain([d_model, experts.count]),
                experts: (0..experts.count).map(expert).collect(),
                per_token: experts.per_token,
                normalised: experts.normalised,
                activation,
            });
        }
        if experts.is_some() {
            let plain = |shape| Plain::new(shape, initializer, device);
            return Self::Alone(Alone {
                gate_proj: plain([d_model, inner]),
                up_proj: plain([d_model, inner]),
                down_proj: plain([inner, d_model]),
                activation,
            });
        }
        let down_proj = dense(inner, d_model, config.mlp_bias);
        if config.fused {
            return Self::Fused(FusedMlp {
                gate_up_proj: dense(d_model, 2 * inner, config.mlp_bias),
                down_proj,
                activation,
            });
        }
        Self::One(Mlp {
            gate_proj: config.gated.then(|| dense(d_model, inner, config.mlp_bias)),
            up_proj: dense(d_model, inner, config.mlp_bias),
            down_proj,
            activation,
        })
    }

    /// Its linear layers.
    pub fn linear_layers(&self) -> Vec<&Linear> {
        match self {
            Self::One(Mlp {
                gate_proj,
                up_proj,
                down_proj,
                ..
            }) => gate_proj.iter().chain([up_proj, down_proj]).collect(),
            Self::Fused(FusedMlp {
                gate_up_proj,
                down_proj,
                ..
            }) => vec![gate_up_proj, down_proj],
            Self::Mixture(_) | Self::Alone(_) => Vec::new(),
        }
    }

    /// # Shapes
    ///
    /// - x, output: `[batch, seq, hidden_size]`
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::One(mlp) => mlp.forward(x),
            Self::Fused(mlp) => mlp.forward(x),
            Self::Mixture(mixture) => {
                let [batch, seq, width] = x.dims();
                let mixed = mixture.forward(&x.reshape([batch * seq, width]));
                mixed.reshape([batch, seq, width])
            }
            Self::Alone(alone) => {
                let [batch, seq, width] = x.dims();
                let found = alone.forward(&x.reshape([batch * seq, width]));
                found.reshape([batch, seq, width])
            }
        }
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.gate_proj {
            Some(gate_proj) => {
                let [gate, up] = project_each([gate_proj, &self.up_proj], &x);
                self.activation.projected(gate, up, &self.down_proj)
            }
            None => {
                let inner = self.activation.forward(self.up_proj.project(x));
                self.down_proj.project(inner)
            }
        }
    }
}

impl FusedMlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let both = self.gate_up_proj.project(x);
        let inner = both.dims()[2] / 2;
        let (gate, up) = (
            both.clone().narrow(2, 0, inner),
            both.narrow(2, inner, inner),
        );
        self.activation.projected(gate, up, &self.down_proj)
    }
}

/// Which experts the tokens go through.
struct Routes {
    /// For each token, its experts, best first, `[n · per_token]`.
    experts: Vec<usize>,
    /// What each of them counts, `[n · per_token]`, f32.
    weights: Tensor<1>,
}

impl Mixture {
    /// # Shapes
    ///
    /// - x, output: `[n, hidden_size]`
    fn forward(&self, x: &Tensor<2>) -> Tensor<2> {
        let (device, dtype) = (x.device(), x.dtype());
        let routes = self.routes(x.clone());
        let mut mixed = Tensor::zeros_like(x);
        for (expert_idx, expert) in self.experts.iter().enumerate() {
            let chosen = routes.experts.iter().enumerate();
            let places: Vec<usize> = chosen
                .filter_map(|(place, chosen)| (*chosen == expert_idx).then_some(place))
                .collect();
            if places.is_empty() {
                continue;
            }
            let ids = |of: &dyn Fn(usize) -> usize| {
                let ids: Vec<i32> = places.iter().map(|place| of(*place) as i32).collect();
                let data = TensorData::new(ids, [places.len()]);
                Tensor::<1, Int>::from_data(data, &device)
            };
            let tokens = ids(&|place| place / self.per_token);
            let weights = routes.weights.clone().select(0, ids(&|place| place));
            let weights = weights.reshape([places.len(), 1]);
            let found = expert.forward(x.clone().select(0, tokens.clone()), self.activation);
            let part = to_dtype(to_dtype(found, DType::F32) * weights, dtype);
            mixed = mixed.select_assign(0, tokens, part, IndexingUpdateOp::Add);
        }
        mixed
    }

    /// The device is waited for: which rows an expert is given is decided here.
    fn routes(&self, x: Tensor<2>) -> Routes {
        let [n, _] = x.dims();
        let (count, k) = (self.experts.len(), self.per_token);
        let device = x.device();
        let logits = to_dtype(self.gate.apply(x), DType::F32);
        let probabilities = softmax(logits, 1);
        let values: Vec<f32> = probabilities
            .clone()
            .without_autodiff()
            .into_data()
            .iter::<f32>()
            .collect();
        let experts: Vec<usize> = values
            .chunks(count)
            .flat_map(|row| most_probable(row, k))
            .collect();
        let ids: Vec<i32> = experts.iter().map(|expert| *expert as i32).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [n, k]), &device);
        let mut weights = probabilities.gather(1, ids);
        if self.normalised {
            weights = weights.clone() / weights.sum_dim(1);
        }
        Routes {
            experts,
            weights: weights.reshape([n * k]),
        }
    }
}

/// The places of the `k` largest values, the largest first, of equal ones the
/// first.
fn most_probable(values: &[f32], k: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    places.truncate(k);
    places
}

impl Alone {
    fn forward(&self, x: &Tensor<2>) -> Tensor<2> {
        let gate = self.gate_proj.apply(x.clone());
        let inner = self.activation.gated(gate, self.up_proj.apply(x.clone()));
        self.down_proj.apply(inner)
    }
}

impl Expert {
    fn forward(&self, x: Tensor<2>, activation: Activation) -> Tensor<2> {
        let gate = self.gate_proj.apply(x.clone());
        let inner = activation.gated(gate, self.up_proj.apply(x));
        self.down_proj.apply(inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_come_first_and_of_equals_the_first() {
        assert_eq!(most_probable(&[0.1, 0.4, 0.2, 0.3], 2), [1, 3]);
        assert_eq!(most_probable(&[0.5, 0.5, 0.5], 2), [0, 1]);
        assert_eq!(most_probable(&[f32::NAN, 0.5], 2).len(), 2);
    }
}
