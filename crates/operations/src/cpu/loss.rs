//! Cross-entropy from hidden states, some rows of logits at a time.

use burn::backend::{Flex, flex::FlexTensor};

use super::{
    all_f32, contiguous,
    frozen::Straight,
    logits::{host_ids, pass},
    shape, tensor, values,
};
use crate::{
    logits::{LogitsWay, WantedGradients},
    loss::{LossAndGradients, LossKernel, portable},
    stored::Stored,
};

impl LossKernel for Flex {
    fn loss_and_gradients(
        hidden: FlexTensor,
        weight: Stored<Self>,
        targets: FlexTensor,
        n_trained: usize,
        soft_cap: Option<f64>,
        rows: usize,
        wanted: WantedGradients,
    ) -> LossAndGradients<Self> {
        let ids = host_ids(&targets).filter(|_| all_f32([&hidden]));
        let Some((ids, straight)) = ids.zip(Straight::of(&weight)) else {
            return portable::<Self>(hidden, &weight, &targets, n_trained, soft_cap, rows, wanted);
        };
        let hidden = contiguous(hidden);
        let matrix = straight.frozen();
        let found = pass(
            values(&hidden),
            matrix,
            &ids[..n_trained],
            None,
            LogitsWay { soft_cap, rows },
            wanted,
        );
        // In f64, chunk by chunk.
        let loss = found.log_likelihoods.chunks(rows).fold(0.0, |loss, chunk| {
            loss - chunk.iter().map(|one| f64::from(*one)).sum::<f64>()
        });
        LossAndGradients {
            loss: tensor(vec![loss as f32], [1]),
            grad_hidden: found.grad_hidden.map(|grad| tensor(grad, shape(&hidden))),
            grad_weight: found.grad_weight.map(|grad| tensor(grad, weight.dims())),
        }
    }
}
