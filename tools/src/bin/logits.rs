//! Writes the logits of a model with its adapter, for `fixtures/check_peft.py`
//! to compare with what PEFT and transformers compute.
//!
//! ```text
//! cargo run --release -p olora-tools --bin logits -- MODEL RUN/adapter RUN/logits.safetensors "a prompt"
//! python fixtures/check_peft.py --base MODEL --tolerance 1e-3 RUN
//! ```

use std::{fs, path::Path};

use anyhow::{Context, bail};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use olora_adapter::PeftAdapter;
use olora_data::Tokenizer;
use olora_model::{Dtype, load};
use safetensors::{Dtype, tensor::TensorView};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, adapter, out, prompt] = arguments.as_slice() else {
        bail!("give a model directory, an adapter directory, the file to write and a prompt");
    };
    let base = Path::new(base);
    let device = Device::default();
    let (model, _) = load(base, Dtype::F32, &device)?;
    let model = PeftAdapter::read(Path::new(adapter))?.attach(model)?;

    let tokens = Tokenizer::from_path(base)?.encode(prompt, true)?;
    let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    let shape = [1, ids.len()];
    let input = Tensor::<2, Int>::from_data(TensorData::new(ids.clone(), shape), &device);
    let logits = model.forward(input).into_data_dtype(DType::F32);
    let logits: Vec<f32> = logits
        .try_into_vec()
        .ok()
        .context("the logits are not f32")?;

    let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    let n_vocab = logits.len() / shape[1];
    let tensors = [
        (
            "input_ids",
            TensorView::new(Dtype::I32, shape.to_vec(), &ids)?,
        ),
        (
            "logits",
            TensorView::new(Dtype::F32, vec![1, shape[1], n_vocab], &bytes)?,
        ),
    ];
    fs::write(out, safetensors::serialize(tensors, None)?)?;
    Ok(())
}
