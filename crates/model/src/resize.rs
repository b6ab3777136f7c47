//! More rows for the vocabulary: an embedding, and the projection that is not
//! tied to it, for tokens that were added to a tokenizer.

use burn::{
    module::Param,
    tensor::{DType, Device, Tensor, TensorData},
};
use olora_adapter::to_dtype;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde_json::Value;

use crate::{Llama, ModelConfig};

/// The covariance of new rows in those of the old ones, as in transformers'
/// `_init_added_embeddings_weights_with_mean`.
const COVARIANCE: f64 = 1e-9;
/// Rows that are gone through at once, in f32.
const CHUNK: usize = 4096;

/// What rows that were added start as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewRows {
    /// Drawn around the mean of the old ones, with a billionth of their covariance.
    Drawn,
    /// The mean of the old ones: fewer rows than columns have no covariance to
    /// draw with.
    Mean,
}

impl ModelConfig {
    /// The configuration of this model with as many tokens.
    #[must_use]
    pub fn with_vocabulary(mut self, rows: usize) -> Self {
        self.vocab_size = rows;
        self.json.insert("vocab_size".to_owned(), Value::from(rows));
        self
    }
}

impl Llama {
    /// Adds rows to the embedding, and to the vocabulary projection if it has
    /// weights of its own, until there are `rows`. Gives what the new ones are;
    /// `None` where there are as many already.
    ///
    /// New rows are drawn as transformers' `resize_token_embeddings` does with
    /// `mean_resizing`, which is its default: from a normal distribution with the
    /// mean of the old rows and `1e-9` times their covariance, on the CPU and from
    /// the seed alone. Where there are no more rows than columns, the covariance is
    /// not positive definite, and the new rows are the mean. (transformers finds
    /// that by a decomposition in f32, and so may take the mean of a table that is
    /// just not singular too; both starts differ by some `3e-5` of a row's
    /// deviation.)
    ///
    /// Packed ends become dense.
    pub fn resize_embeddings(&mut self, rows: usize, seed: u64) -> Option<NewRows> {
        let [before, width] = self.model.embed_tokens.weight.lazy_shape().dims();
        if rows <= before {
            return None;
        }
        let start = if before > width {
            NewRows::Drawn
        } else {
            NewRows::Mean
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut grow = |param: &Param<Tensor<2>>, transposed: bool| {
            let value = param.val();
            let tracked = value.is_autodiff();
            let value = if tracked { value.inner() } else { value };
            let grown = if transposed {
                grown(&value.transpose(), rows, start, &mut rng).transpose()
            } else {
                grown(&value, rows, start, &mut rng)
            };
            let grown = if tracked {
                Tensor::from_inner(grown)
            } else {
                grown
            };
            let mut grown = Param::from_tensor(grown);
            grown.id = param.id;
            grown
        };
        self.model.embed_tokens.weight = grow(&self.model.embed_tokens.weight, false);
        if let Some(head) = &mut self.lm_head {
            head.weight = grow(&head.weight, true);
        }
        Some(start)
    }
}

/// A table with more rows.
///
/// # Shapes
///
/// - table: `[before, width]`
/// - output: `[rows, width]`
fn grown(table: &Tensor<2>, rows: usize, start: NewRows, rng: &mut ChaCha8Rng) -> Tensor<2> {
    let [before, width] = table.dims();
    let (n_new, device, dtype) = (rows - before, table.device(), table.dtype());
    let chunks = || {
        (0..before).step_by(CHUNK).map(|first| {
            let n = CHUNK.min(before - first);
            to_dtype(table.clone().narrow(0, first, n), DType::F32)
        })
    };
    let zeros = |n: usize| Tensor::<2>::zeros([n, width], (&device, DType::F32));
    let sum = chunks().fold(zeros(1), |sum, chunk| sum + chunk.sum_dim(0));
    let mean = sum.div_scalar(before as f64);
    let mut added = mean.clone().expand([n_new, width]);
    if start == NewRows::Drawn {
        // Σ gᵢ·(xᵢ − mean) over the old rows has the sum of their squares as covariance, for normal gᵢ:
        // neither a covariance nor its root is needed.
        let moved = chunks().fold(zeros(n_new), |moved, chunk| {
            let n = chunk.dims()[0];
            moved + normal([n_new, n], rng, &device).matmul(chunk - mean.clone())
        });
        added = added + moved.mul_scalar((COVARIANCE / before as f64).sqrt());
    }
    Tensor::cat(vec![table.clone(), to_dtype(added, dtype)], 0)
}

fn normal(shape: [usize; 2], rng: &mut ChaCha8Rng, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..shape[0] * shape[1])
        .map(|_| rng.sample(StandardNormal))
        .collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn model(vocab: usize, width: usize, tied: bool) -> Llama {
        let json = serde_json::json!({
            "model_type": "llama", "vocab_size": vocab, "hidden_size": width, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": tied,
        });
        let Value::Object(json) = json else {
            unreachable!()
        };
        let config = ModelConfig::from_json(json, Path::new("config.json")).unwrap();
        config.init(&Device::flex())
    }

    /// By rows, of the embedding and of the head.
    fn ends(model: &Llama) -> Vec<Vec<Vec<f32>>> {
        let embedding = model.model.embed_tokens.weight.val();
        let head = model
            .lm_head
            .as_ref()
            .map(|head| head.weight.val().transpose());
        let rows = |table: Tensor<2>| {
            let width = table.dims()[1];
            let values: Vec<f32> = table.into_data().try_into_vec().unwrap();
            values.chunks(width).map(<[f32]>::to_vec).collect()
        };
        [Some(embedding), head]
            .into_iter()
            .flatten()
            .map(rows)
            .collect()
    }

    /// The mean of each column, and the mean of the products of each two.
    fn moments(rows: &[Vec<f32>]) -> (Vec<f64>, Vec<f64>) {
        let (n, width) = (rows.len() as f64, rows[0].len());
        let column = |j: usize| rows.iter().map(move |row| f64::from(row[j]));
        let mean: Vec<f64> = (0..width).map(|j| column(j).sum::<f64>() / n).collect();
        let products = (0..width).flat_map(|j| (0..width).map(move |k| (j, k)));
        let covariance = products.map(|(j, k)| {
            let both = column(j).zip(column(k));
            both.map(|(x, y)| (x - mean[j]) * (y - mean[k]))
                .sum::<f64>()
                / n
        });
        let covariance = covariance.collect();
        (mean, covariance)
    }

    #[test]
    fn new_rows_have_the_mean_and_a_billionth_of_the_covariance_of_the_old() {
        let mut model = model(5000, 4, false);
        // Columns that go together, around nothing, so that f32 keeps what is drawn.
        let mixed = Tensor::<2>::from_data(
            [
                [100.0, 80.0, 0.0, 0.0],
                [0.0, 60.0, 0.0, 0.0],
                [0.0, 0.0, 20.0, 0.0],
                [0.0, 0.0, 0.0, 50.0],
            ],
            &Device::flex(),
        );
        let embedding = &mut model.model.embed_tokens.weight;
        let mixed = embedding.val().matmul(mixed);
        *embedding = Param::from_tensor(mixed.clone() - mixed.mean_dim(0));
        let before = ends(&model);
        assert_eq!(model.resize_embeddings(13_000, 3), Some(NewRows::Drawn));
        let after = ends(&model);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(after.len(), 13_000);
            assert_eq!(before[..], after[..5000]);
        }
        let ((mean, covariance), (new_mean, new_covariance)) =
            (moments(&before[0]), moments(&after[0][5000..]));
        let largest = covariance.iter().copied().fold(0.0, f64::max);
        for (mean, new) in mean.iter().zip(new_mean) {
            assert!((mean - new).abs() < 1e-3 * largest.sqrt(), "{mean} {new}");
        }
        for (old, new) in covariance.iter().zip(new_covariance) {
            assert!((old - new * 1e9).abs() < 0.05 * largest, "{old} {new}");
        }
    }

    #[test]
    fn rows_follow_from_the_seed_alone() {
        let drawn = |seed| {
            let mut model = model(40, 8, true);
            let table: Vec<f32> = (0..320u16).map(|i| f32::from(i).sin()).collect();
            let table = TensorData::new(table, [40, 8]);
            let table = Tensor::<2>::from_data(table, &Device::flex());
            model.model.embed_tokens.weight = Param::from_tensor(table);
            model.resize_embeddings(42, seed);
            ends(&model)
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_eq!(drawn(1).len(), 1, "tied ends are one");
    }

    /// transformers' own, `fixtures/make_resized.py`.
    #[test]
    fn fewer_rows_than_columns_are_continued_as_transformers_does() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fixtures/peft/resized-start.safetensors");
        let bytes = std::fs::read(file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let table = |name: &str| {
            let view = tensors.tensor(name).unwrap();
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
            let shape = view.shape().to_vec();
            Tensor::<2>::from_data(TensorData::new(values, shape), &Device::flex())
        };
        let mut model = model(24, 32, false);
        model.model.embed_tokens.weight = Param::from_tensor(table("embed_tokens.before"));
        let head = table("lm_head.before").transpose();
        model.lm_head.as_mut().unwrap().weight = Param::from_tensor(head);
        assert_eq!(model.resize_embeddings(27, 0), Some(NewRows::Mean));
        let ours = [
            model.model.embed_tokens.weight.val(),
            model.lm_head.unwrap().weight.val().transpose(),
        ];
        for (ours, theirs) in ours
            .into_iter()
            .zip(["embed_tokens.after", "lm_head.after"])
        {
            let theirs = table(theirs);
            assert_eq!(ours.dims(), theirs.dims());
            let difference = (ours - theirs).abs().max().into_scalar::<f32>();
            assert!(difference < 1e-7, "{difference}");
        }
    }

    #[test]
    fn fewer_rows_than_columns_are_continued_with_their_mean() {
        let mut model = model(6, 8, false);
        assert_eq!(model.resize_embeddings(6, 1), None);
        assert_eq!(model.resize_embeddings(9, 1), Some(NewRows::Mean));
        for rows in ends(&model) {
            for j in 0..8 {
                let mean = rows[..6].iter().map(|row| row[j]).sum::<f32>() / 6.0;
                assert!(rows[6..].iter().all(|row| (row[j] - mean).abs() < 1e-6));
            }
        }
    }
}
