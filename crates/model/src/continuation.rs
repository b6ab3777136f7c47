//! A text that is being continued, by itself or together with others.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use olora_operations::{at_once, rows_apart};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    KvCache, Llama, ModelError, Sampling, first_not_finite, generate::check_positions,
    sampling::choose,
};

/// Tokens that are read as single rows: to unpack all weights for a product of few takes longer than
/// the product. On two cores of a Xeon with AVX-512 a prompt of 12 tokens took a 135M model 0.12 s so.
const FEW: usize = 32;

/// A prompt, what has been generated after it, and what the model keeps of both.
///
/// Of its tokens the first are [read](Self::read), which puts them into the cache.
/// Logits of the next token are those after the last, so that all others are read
/// before.
#[derive(Debug)]
pub struct Continuation {
    tokens: Vec<u32>,
    n_prompt: usize,
    cache: KvCache,
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Continuation {
    /// Of a prompt that has been read by nobody, to be continued by up to
    /// `max_new_tokens`.
    ///
    /// # Errors
    ///
    /// [`ModelError::OutOfRange`] for an empty prompt, a prompt token beyond the
    /// vocabulary, more tokens than the model has positions, where it has an end of
    /// them, or impossible sampling options.
    pub fn new(
        model: &Llama,
        prompt: &[u32],
        max_new_tokens: usize,
        sampling: Sampling,
    ) -> Result<Self, ModelError> {
        sampling.validate()?;
        let n_vocab = model.vocab_size();
        if prompt.is_empty() {
            return Err(ModelError::OutOfRange {
                key: "prompt",
                found: "empty".to_owned(),
                expected: "at least one token".to_owned(),
            });
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= n_vocab) {
            return Err(ModelError::OutOfRange {
                key: "prompt",
                found: format!("token {id}"),
                expected: format!(
                    "tokens below the model's vocabulary size of {n_vocab}; is this its tokenizer?"
                ),
            });
        }
        check_positions(model.position_limit(), prompt.len(), max_new_tokens)?;
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self {
            tokens: prompt.to_vec(),
            n_prompt: prompt.len(),
            cache: model.empty_cache(),
            sampling,
            rng,
        })
    }

    /// Prompt and new tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The new tokens.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.n_prompt..]
    }

    /// Tokens that are not in the cache yet; at least one.
    pub fn n_unread(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// Has the model read the next `n` tokens, at most all that are unread, and gives
    /// the hidden states after them as [`Llama::logits`] takes them,
    /// `[1, n, hidden_size]`. What is read in parts is in the last bits not what it is
    /// read at once.
    pub fn read(&mut self, model: &Llama, n: usize) -> Tensor<3> {
        let start = self.cache.len();
        let end = start.saturating_add(n).min(self.tokens.len());
        let ids = ids(&self.tokens[start..end], &model.device().inner());
        if end - start <= FEW {
            return rows_apart(|| model.hidden_after(ids, &mut self.cache));
        }
        model.hidden_after(ids, &mut self.cache)
    }

    /// Logits of the next token, `vocab_size` of them, after reading all that is unread.
    ///
    /// # Errors
    ///
    /// [`ModelError::NotFinite`] if they are NaN or infinite, naming where that begins;
    /// [`ModelError::Device`] if the device fails.
    pub fn next_logits(&mut self, model: &Llama) -> Result<Vec<f32>, ModelError> {
        self.begin_again_where_rotation_changes(model);
        let hidden = self.read(model, usize::MAX);
        let [_, n, width] = hidden.dims();
        let logits = model.logits(hidden.narrow(1, n - 1, 1).reshape([1, width]));
        let logits = values(logits)?;
        self.check_finite(model, &logits)?;
        Ok(logits)
    }

    /// Chooses the next token from its logits, which are scratch space, and puts it
    /// behind the others, unread.
    pub fn choose(&mut self, logits: &mut [f32]) -> u32 {
        let Self {
            tokens,
            n_prompt,
            sampling,
            rng,
            ..
        } = self;
        let next = choose(logits, tokens, *n_prompt, sampling, rng);
        self.tokens.push(next);
        next
    }

    /// As `Phi3ForCausalLM.prepare_inputs_for_generation` does.
    fn begin_again_where_rotation_changes(&mut self, model: &Llama) {
        if let Some(end) = model.cache_ends_at()
            && !self.cache.is_empty()
            && self.cache.len() <= end
            && self.tokens.len() > end
        {
            self.cache = model.empty_cache();
        }
    }

    fn check_finite(&self, model: &Llama, logits: &[f32]) -> Result<(), ModelError> {
        if all_finite(logits) {
            return Ok(());
        }
        let embedded = model.embed(ids(&self.tokens, &model.device().inner()));
        let positions = model.positions(&embedded, 0);
        Err(ModelError::NotFinite {
            what: "the logits of the next token".to_owned(),
            first: first_not_finite(model, embedded, &positions)?,
        })
    }
}

/// Logits of the next token of each of several texts, as
/// [`Continuation::next_logits`] gives those of one.
///
/// Weights are read once for all texts of which only the last token is unread. On the
/// CPU each has the logits that it has alone, bit for bit (but for experts, which are
/// given the tokens of all texts together); on other devices up to the order of sums.
///
/// # Errors
///
/// Of each text its own, as there.
pub fn next_logits_of_all(
    model: &Llama,
    texts: &mut [&mut Continuation],
) -> Vec<Result<Vec<f32>, ModelError>> {
    for text in texts.iter_mut() {
        text.begin_again_where_rotation_changes(model);
    }
    if texts.len() < 2 || texts.iter().any(|text| text.n_unread() != 1) {
        let each = texts.iter_mut();
        return each.map(|text| text.next_logits(model)).collect();
    }
    let last = texts.iter().filter_map(|text| text.tokens.last().copied());
    let last: Vec<u32> = last.collect();
    let n = last.len();
    let mut caches: Vec<&mut KvCache> = texts.iter_mut().map(|text| &mut text.cache).collect();
    let device = model.device().inner();
    let logits = rows_apart(|| {
        let ids = ids(&last, &device).reshape([n, 1]);
        let hidden = model.hidden_after_each(ids, &mut caches);
        let width = hidden.dims()[2];
        model.logits(hidden.reshape([n, width]))
    });
    let all = match values(logits) {
        Ok(all) => all,
        Err(error) => {
            let said = error.to_string();
            let again = |_| Err(ModelError::device("logits", &said));
            return (0..n).map(again).collect();
        }
    };
    let of_each = all.chunks_exact(all.len() / n).zip(texts.iter());
    at_once(of_each.collect(), |(logits, text)| {
        text.check_finite(model, logits)?;
        Ok(logits.to_vec())
    })
}

/// A tensor's values on the host, as f32.
fn values(tensor: Tensor<2>) -> Result<Vec<f32>, ModelError> {
    tensor
        .try_into_data_dtype(DType::F32)
        .map_err(|error| ModelError::device("logits", &error))?
        .try_into_vec::<f32>()
        .map_err(|error| ModelError::device("logits", &error))
}

fn ids(tokens: &[u32], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    Tensor::from_data(TensorData::new(ids, [1, tokens.len()]), device)
}

/// Counts instead of stopping at the first: without a branch it is vectorised,
/// and small beside the choice of a token.
fn all_finite(values: &[f32]) -> bool {
    values.iter().filter(|value| !value.is_finite()).count() == 0
}
