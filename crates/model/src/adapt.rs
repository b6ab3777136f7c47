//! An adapter onto a decoder: what of it only a language model can judge. Its
//! embedding may be tied to its vocabulary projection, and its vocabulary may
//! have another size than the base's.

use burn::{module::Param, tensor::Tensor};
use olora_adapter::{AdapterError, PeftAdapter};

use crate::{Llama, ModelConfig};

const EMBEDDING: &str = "embed_tokens";
const HEAD: &str = "lm_head";

/// An embedding or a vocabulary projection in an adapter's file.
struct End {
    path: String,
    rows: usize,
    /// Whether `modules_to_save` names it; else it came along.
    trained: bool,
}

impl End {
    fn of(adapter: &PeftAdapter, name: &str) -> Option<Self> {
        let weight = format!("{name}.weight");
        let (path, shape, trained) = adapter
            .saved()
            .find(|(path, ..)| *path == weight || path.ends_with(&format!(".{weight}")))?;
        Some(Self {
            path: path.to_owned(),
            rows: shape.first().copied().unwrap_or_default(),
            trained,
        })
    }
}

/// The rows that an adapter gives to the vocabulary, if not those of the base:
/// its embedding and its vocabulary projection are then both in it, whole.
///
/// # Errors
///
/// [`AdapterError::Impossible`] if only one of the two has other rows.
pub fn adapted_vocabulary(
    adapter: &PeftAdapter,
    vocab_size: usize,
    tied: bool,
) -> Result<Option<usize>, AdapterError> {
    let ends = [EMBEDDING, HEAD].map(|name| End::of(adapter, name));
    let mut other = ends.iter().flatten().filter(|end| end.rows != vocab_size);
    let Some(end) = other.next() else {
        return Ok(None);
    };
    let rows = end.rows;
    let whole = match &ends {
        [Some(embedding), Some(head)] => embedding.rows == head.rows,
        // One weight for both: PEFT loads it into the shared one, unless it trained a copy of one end.
        [Some(only), None] | [None, Some(only)] => tied && (!only.trained || adapter.ties_weights),
        [None, None] => true,
    };
    if whole {
        return Ok(Some(rows));
    }
    let missing = match &ends {
        [Some(_), None] => HEAD,
        [None, _] => EMBEDDING,
        _ if ends[0].as_ref().is_some_and(|end| end.rows == vocab_size) => EMBEDDING,
        _ => HEAD,
    };
    Err(AdapterError::Impossible {
        path: end.path.clone(),
        what: format!("{rows} rows where the base has {vocab_size}"),
        reason: format!(
            "the vocabulary was resized for training, and the adapter does not hold `{missing}` of that size \
             too, without which nobody can say what its new rows are. Save both \
             (save_pretrained(…, save_embedding_layers=True)), or resize the base as in training, save it, \
             and give that with --model"
        ),
    })
}

impl ModelConfig {
    /// The configuration of this model with the adapter on it: the same, but for
    /// the vocabulary, which an adapter may have resized.
    ///
    /// # Errors
    ///
    /// As [`adapted_vocabulary`].
    pub fn adapted(self, adapter: &PeftAdapter) -> Result<Self, AdapterError> {
        let rows = adapted_vocabulary(adapter, self.vocab_size, self.tie_word_embeddings)?;
        Ok(match rows {
            Some(rows) => self.with_vocabulary(rows),
            None => self,
        })
    }
}

impl Llama {
    /// The model with an adapter on it, and what to say of how it fits.
    ///
    /// Where embedding and vocabulary projection are one weight, an adapter may
    /// hold it under both names, if the values are equal, or under one, if it is
    /// the base's or if training tied it too. A vocabulary of another size comes
    /// with the adapter: see [`adapted_vocabulary`].
    ///
    /// # Errors
    ///
    /// [`AdapterError::Impossible`] names what one weight cannot be; otherwise as
    /// [`PeftAdapter::attach`].
    pub fn adapted(
        mut self,
        mut adapter: PeftAdapter,
    ) -> Result<(Self, Vec<String>), AdapterError> {
        let mut notes: Vec<String> = adapter.settle_prefix(&self).into_iter().collect();
        let tied = self.lm_head.is_none();
        if tied {
            self.settle_ties(&mut adapter, &mut notes)?;
        }
        let now = self.vocab_size();
        if let Some(rows) = adapted_vocabulary(&adapter, now, tied)? {
            notes.push(format!(
                "the adapter's vocabulary has {rows} rows, and the base's {now}: the base is resized, and \
                 all rows are the adapter's"
            ));
            self.resize_vocabulary(rows);
        }
        Ok((adapter.attach(self)?, notes))
    }

    /// Leaves at most one end of a tied embedding in the adapter.
    fn settle_ties(
        &self,
        adapter: &mut PeftAdapter,
        notes: &mut Vec<String>,
    ) -> Result<(), AdapterError> {
        let refuse = |path: &str, reason: String| {
            Err(AdapterError::Impossible {
                path: path.to_owned(),
                what: "weights of its own".to_owned(),
                reason,
            })
        };
        if adapter.ties_weights
            && let Some(path) = [EMBEDDING, HEAD]
                .iter()
                .find_map(|name| adapter.adapts(name))
        {
            return Err(AdapterError::Impossible {
                path: path.to_owned(),
                what: "LoRA at both ends of a tied embedding".to_owned(),
                reason: "here factors on an embedding work where tokens come in, and not where they go out: \
                         merge it with the program that trained it"
                    .to_owned(),
            });
        }
        match [EMBEDDING, HEAD].map(|name| End::of(adapter, name)) {
            [Some(embedding), Some(head)] => {
                if !adapter.saved_alike(&embedding.path, &head.path) {
                    return refuse(
                        &head.path,
                        format!(
                            "this model ties it to `{}`, and the adapter holds other values for each: the two \
                             were trained apart. Untie the base before (tie_word_embeddings: false in \
                             config.json and a copy of the embedding as `{}` in the weights)",
                            embedding.path, head.path
                        ),
                    );
                }
                adapter.forget(&head.path);
                // What is left stands for both ends.
                adapter.ties_weights = true;
                notes.push(format!(
                    "the adapter holds `{}` and `{}`, which are equal, as the base ties them",
                    embedding.path, head.path
                ));
            }
            [Some(only), None] | [None, Some(only)] => {
                let is_base = adapter.saves_the_layer(&only.path, self, EMBEDDING)?;
                if is_base {
                    adapter.forget(&only.path);
                    notes.push(format!(
                        "the adapter's copy of `{}` is the base's, and is not needed",
                        only.path
                    ));
                } else if only.trained && !adapter.ties_weights
                    || only.path.ends_with(&format!("{HEAD}.weight"))
                {
                    return refuse(
                        &only.path,
                        "this model ties embedding and `lm_head`, and PEFT has trained a copy of one of the \
                         two, which the other does not follow: one weight cannot be both. Untie the base \
                         before (tie_word_embeddings: false in config.json and a copy of the embedding as \
                         `lm_head.weight` in the weights)"
                            .to_owned(),
                    );
                }
            }
            [None, None] => {}
        }
        Ok(())
    }

    /// Makes room for a vocabulary of another size; the values are to be set.
    fn resize_vocabulary(&mut self, rows: usize) {
        let table = &self.model.embed_tokens.weight;
        let width = table.lazy_shape()[1];
        let (device, dtype) = (self.device(), table.base().dtype());
        let zeros = |shape| Param::from_tensor(Tensor::<2>::zeros(shape, (&device, dtype)));
        self.model.embed_tokens.weight = zeros([rows, width]);
        if let Some(head) = &mut self.lm_head {
            head.weight = zeros([width, rows]);
        }
    }
}
