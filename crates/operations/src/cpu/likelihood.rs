//! The log-probability of each token, some rows of logits at a time.

use burn::backend::{Flex, flex::FlexTensor};

use super::{
    all_f32, contiguous,
    frozen::Straight,
    logits::{host_ids, pass},
    shape, tensor, values,
};
use crate::{
    likelihood::{LikelihoodKernel, portable_backward, portable_forward},
    logits::{LogitsWay, WantedGradients},
    stored::Stored,
};

impl LikelihoodKernel for Flex {
    fn likelihood_forward(
        hidden: FlexTensor,
        weight: Stored<Self>,
        targets: FlexTensor,
        way: LogitsWay,
        with_grad_hidden: bool,
    ) -> (FlexTensor, Option<FlexTensor>) {
        let ids = host_ids(&targets).filter(|_| all_f32([&hidden]));
        let Some((ids, straight)) = ids.zip(Straight::of(&weight)) else {
            return portable_forward::<Self>(hidden, &weight, &targets, way, with_grad_hidden);
        };
        let hidden = contiguous(hidden);
        let wanted = WantedGradients {
            hidden: with_grad_hidden,
            weight: false,
        };
        let matrix = straight.frozen();
        let found = pass(values(&hidden), matrix, &ids, None, way, wanted);
        let grad_hidden = found.grad_hidden.map(|grad| tensor(grad, shape(&hidden)));
        (tensor(found.log_likelihoods, [ids.len()]), grad_hidden)
    }

    fn likelihood_backward(
        hidden: FlexTensor,
        weight: Stored<Self>,
        targets: FlexTensor,
        way: LogitsWay,
        grad: FlexTensor,
        wanted: WantedGradients,
    ) -> [Option<FlexTensor>; 2] {
        let ids = host_ids(&targets).filter(|_| all_f32([&hidden, &grad]));
        let Some((ids, straight)) = ids.zip(Straight::of(&weight)) else {
            return portable_backward::<Self>(hidden, &weight, &targets, way, grad, wanted);
        };
        let (hidden, grad) = (contiguous(hidden), contiguous(grad));
        let scales: Vec<f32> = values(&grad).iter().map(|grad| -grad).collect();
        let matrix = straight.frozen();
        let found = pass(values(&hidden), matrix, &ids, Some(&scales), way, wanted);
        [
            found.grad_hidden.map(|grad| tensor(grad, shape(&hidden))),
            found.grad_weight.map(|grad| tensor(grad, weight.dims())),
        ]
    }
}
