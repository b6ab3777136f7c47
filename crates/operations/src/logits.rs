//! One pass over the logits of all rows, of which only some are there at once:
//! what [the loss](crate::loss) and [the log-likelihoods](crate::likelihood) of
//! tokens have in common.
//!
//! For a row `h` with target `t`, logits `z = h·W` and `p = softmax(z)`, the
//! gradient of `−log p_t` by the logits is `p − onehot(t)`. It is made while the
//! logits are there, and multiplied into the gradients of `h` and `W` at once,
//! so that no logits outlive their chunk (Liger Kernel's
//! `fused_linear_cross_entropy`, [arXiv 2410.10989](https://arxiv.org/abs/2410.10989),
//! section 3.2).

use burn::{
    backend::{
        Backend, FloatDType, Shape,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData},
};

use crate::{Weight, portable::Portable, stored::Stored};

/// Bytes of f32 logits that are there at once.
const LOGITS_BYTES: usize = 32 << 20;

/// The fewest rows of logits at once where the projection is packed.
pub const PACKED_ROWS: usize = 128;

/// How many rows of logits are there at once, unless the caller says: those of
/// 32 MiB, but 16 at least.
pub fn rows_at_once(vocab: usize) -> usize {
    (LOGITS_BYTES / 4 / vocab.max(1)).clamp(16, 1 << 16)
}

/// Refuses what does not fit each other, or would make a device read and write
/// beyond the logits.
///
/// # Panics
///
/// If the shapes do not fit each other, or a target is no token.
pub(crate) fn check(hidden: &Tensor<2>, weight: &Weight, targets: &[i32]) {
    let ([n, width], [rows_of_weight, vocab]) = (hidden.dims(), weight.dims());
    assert!(
        width == rows_of_weight && targets.len() == n,
        "{n} hidden states of width {width}, {} targets and a weight of {rows_of_weight} × {vocab} \
         do not fit each other",
        targets.len()
    );
    let stray = targets
        .iter()
        .find(|target| usize::try_from(**target).map_or(true, |target| target >= vocab));
    assert!(
        stray.is_none(),
        "the target {} is not a token of a vocabulary of {vocab}",
        stray.copied().unwrap_or_default()
    );
}

/// The targets on a device, `[n]`.
pub(crate) fn ids(targets: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(targets.to_vec(), [targets.len()]), device)
}

/// How logits are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogitsWay {
    /// What bends them, if anything does; see
    /// [`OutputHead`](crate::OutputHead).
    pub soft_cap: Option<f64>,
    /// How many rows of them are there at once.
    pub rows: usize,
}

/// Which gradients a pass makes beside the log-likelihoods.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WantedGradients {
    /// That of the hidden states.
    pub hidden: bool,
    /// That of the weight.
    pub weight: bool,
}

impl WantedGradients {
    /// Log-likelihoods alone.
    pub(crate) const NONE: Self = Self {
        hidden: false,
        weight: false,
    };

    /// Whether there is any.
    pub(crate) fn any(self) -> bool {
        self.hidden || self.weight
    }
}

/// What a pass over the logits gives.
pub(crate) struct LogitsPass<B: Backend> {
    /// The log-probability of each row's target, `[n, 1]`, f32.
    pub log_likelihoods: Portable<B>,
    /// The gradient of `−Σ scale·log-likelihood` by the hidden states, shaped
    /// like them, if wanted.
    pub grad_hidden: Option<FloatTensor<B>>,
    /// The same by the weight, shaped like it, if wanted.
    pub grad_weight: Option<FloatTensor<B>>,
}

/// A pass in tensor operations of any backend, some rows of logits at a time.
///
/// # Shapes
///
/// - hidden: `[n, width]`, weight: `[width, vocab]`, targets: `[n]`
/// - scales: `[n, 1]` in f32, what each row counts in the gradients; one each if
///   there are none
pub(crate) fn portable_pass<B: Backend>(
    hidden: FloatTensor<B>,
    weight: &Stored<B>,
    targets: &IntTensor<B>,
    scales: Option<&Portable<B>>,
    way: LogitsWay,
    wanted: WantedGradients,
) -> LogitsPass<B> {
    let hidden = Portable::<B>(hidden);
    let (dtype, device) = (hidden.dtype(), hidden.device());
    let n = hidden.shape()[0];
    let column = |n: usize| Shape::from(vec![n, 1]);
    let mut log_likelihoods = Vec::new();
    let mut grad_hidden = Vec::new();
    let mut grad_weight: Option<Portable<B>> = None;
    let mut start = 0;
    while start < n {
        let range = start..(start + way.rows).min(n);
        start = range.end;
        let chunk = hidden.clone().narrow(0, range.clone());
        let ids = B::int_slice(targets.clone(), &[range.clone().into()]);
        let ids = B::int_reshape(ids, column(range.len()));
        let mut logits = weight.multiplied(chunk.clone()).f32();
        let slope = way.soft_cap.map(|cap| {
            logits = logits.clone().soft_capped(cap);
            logits.clone().slope_of_cap(cap)
        });
        // As Burn's own log-softmax and then a gather, which fusion gets right. From the sums
        // themselves, `log Σ − x[target]`, it does not: see BENCHMARKS.md, "On software Vulkan".
        let shifted = logits.clone() - logits.max_dim(1);
        let sums = shifted.clone().exp().sum_dim(1);
        let log_probabilities = shifted - sums.log();
        let of_targets = B::float_gather(1, log_probabilities.0.clone(), ids.clone());
        log_likelihoods.push(Portable::<B>(of_targets));
        if !wanted.any() {
            continue;
        }
        let probabilities = log_probabilities.exp();
        let minus_one = B::float_full(
            column(range.len()),
            (-1.0_f32).into(),
            &device,
            FloatDType::F32,
        );
        let mut grad_logits = Portable::<B>(B::float_scatter(
            1,
            probabilities.0,
            ids,
            minus_one,
            IndexingUpdateOp::Add,
        ));
        if let Some(scales) = scales {
            grad_logits = grad_logits * scales.clone().narrow(0, range.clone());
        }
        if let Some(slope) = slope {
            grad_logits = grad_logits * slope;
        }
        let grad_logits = grad_logits.cast(dtype);
        if wanted.weight {
            let part = chunk.transpose().matmul(grad_logits.clone());
            // Added in f32, so that not every chunk rounds.
            let part = part.f32();
            grad_weight = Some(match grad_weight {
                None => part,
                Some(sum) => sum + part,
            });
        }
        if wanted.hidden {
            grad_hidden.push(weight.multiplied_back(grad_logits));
        }
    }
    LogitsPass {
        log_likelihoods: if log_likelihoods.is_empty() {
            Portable(B::float_zeros(column(0), &device, FloatDType::F32))
        } else {
            Portable::cat(log_likelihoods, 0)
        },
        grad_hidden: (!grad_hidden.is_empty()).then(|| Portable::cat(grad_hidden, 0).0),
        grad_weight: grad_weight.map(|sum| sum.cast(dtype).0),
    }
}
