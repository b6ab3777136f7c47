//! What only some families have in their metadata, and what llama.cpp takes for
//! granted of them: a model that differs is refused.

use serde_json::{Map, Value};

use super::{
    container::Metadata,
    rope::{Rope, Scaling},
    shape::{Shape, number, optional_size, size},
};
use crate::{GgufError, config::GRANITE, families::Own};

impl Shape<'_> {
    /// Adds a family's own keys to the metadata.
    pub(super) fn describe_own(&self, metadata: &mut Metadata) -> Result<(), GgufError> {
        let name = |key: &str| format!("{}.{key}", self.family.architecture);
        match self.family.own {
            Own::Nothing | Own::MistralWithin => {}
            Own::Gemma2 => {
                for (key, default) in [
                    ("attn_logit_softcapping", 50.0),
                    ("final_logit_softcapping", 30.0),
                ] {
                    let cap = if self.config.contains_key(key) {
                        number(self.config, key)?
                    } else {
                        Some(default)
                    };
                    let cap = cap.ok_or_else(|| {
                        GgufError::unwritable(
                            format!("`{key}: null`"),
                            "llama.cpp always caps them",
                        )
                    })?;
                    metadata.f32(&name(key), cap as f32);
                }
                self.refuse_other_scale(46)?;
                self.pattern(metadata, 2, false)?;
            }
            Own::Gemma3 => {
                for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                    if let Some(cap) = number(self.config, key)? {
                        let what = format!("`{key}: {cap}`");
                        return Err(GgufError::unwritable(what, "Gemma 3 has no caps"));
                    }
                }
                let local = self.rope()?.local_theta.unwrap_or(10_000.0);
                metadata.f32(&name("rope.freq_base_swa"), local as f32);
                self.refuse_other_scale(62)?;
                self.pattern(metadata, 6, false)?;
            }
            Own::Phi3 => self.phi3(metadata)?,
            Own::SmolLm3 => self.refuse_other_rotations()?,
            Own::Granite => {
                for (key, stored) in GRANITE {
                    let value = number(self.config, key)?.unwrap_or(1.0);
                    metadata.f32(&name(stored), value as f32);
                }
            }
            Own::Olmo3 => {
                let Rope {
                    theta, local_theta, ..
                } = self.rope()?;
                let local = local_theta.unwrap_or(theta);
                if local != theta {
                    return Err(GgufError::unwritable(
                        format!(
                            "a base of {local} in blocks with a window and of {theta} in others"
                        ),
                        "llama.cpp computes one for all",
                    ));
                }
                metadata.f32(&name("rope.freq_base_swa"), local as f32);
                self.pattern(metadata, 4, true)?;
            }
            Own::Ministral3 => {
                let parameters = self.config.get("rope_parameters");
                let parameters = parameters.and_then(Value::as_object);
                if let Scaling::Yarn(yarn) = self.rope()?.scaling
                    && let Some(all) = yarn.all
                {
                    metadata.f32(&name("rope.scaling.yarn_log_multiplier"), all as f32);
                }
                let empty = Map::new();
                let beta = number(parameters.unwrap_or(&empty), "llama_4_scaling_beta")?;
                let beta = beta.ok_or_else(|| {
                    GgufError::unwritable(
                        "a Ministral 3 model without `llama_4_scaling_beta`",
                        "a file without it is Mistral's",
                    )
                })?;
                metadata.f32(&name("attention.temperature_scale"), beta as f32);
            }
            Own::Mixtral => {
                let used = optional_size(self.config, "num_experts_per_tok")?.unwrap_or(2);
                metadata.u32(&name("expert_count"), self.experts()? as u32);
                metadata.u32(&name("expert_used_count"), used as u32);
            }
            Own::Qwen3Moe => self.qwen3_moe(metadata)?,
        }
        Ok(())
    }

    /// llama.cpp scales queries by the root of a head's width, but in the largest
    /// model of a family, which it tells by its number of blocks.
    fn refuse_other_scale(&self, largest: usize) -> Result<(), GgufError> {
        let computed = if self.layers == largest {
            size(self.config, "hidden_size")? / self.heads.queries.max(1)
        } else {
            self.head_dim
        };
        let scalar = number(self.config, "query_pre_attn_scalar")?.unwrap_or(256.0);
        if scalar == computed as f64 {
            return Ok(());
        }
        Err(GgufError::unwritable(
            format!("`query_pre_attn_scalar: {scalar}`"),
            format!("llama.cpp computes {computed} for a model of this shape"),
        ))
    }

    /// Which blocks have a window, as a list: always, or where it is not what
    /// llama.cpp takes without one, all but the last of `every` so many.
    fn pattern(
        &self,
        metadata: &mut Metadata,
        every: usize,
        always: bool,
    ) -> Result<(), GgufError> {
        let usual: Vec<bool> = (0..self.layers)
            .map(|layer| layer % every < every - 1)
            .collect();
        let sliding = self.sliding(&usual)?;
        let window = optional_size(self.config, "sliding_window")?;
        if sliding.contains(&true) && window.is_none() && self.config.contains_key("sliding_window")
        {
            return Err(GgufError::unwritable(
                "blocks with a window",
                "`sliding_window` is null",
            ));
        }
        if always || sliding != usual {
            let key = format!(
                "{}.attention.sliding_window_pattern",
                self.family.architecture
            );
            metadata.flags(&key, &sliding);
        }
        Ok(())
    }

    fn sliding(&self, usual: &[bool]) -> Result<Vec<bool>, GgufError> {
        if let Some(types) = self.config.get("layer_types").and_then(Value::as_array) {
            return Ok(types
                .iter()
                .map(|kind| kind == "sliding_attention")
                .collect());
        }
        Ok(
            match optional_size(self.config, "sliding_window_pattern")? {
                Some(every) => (0..self.layers)
                    .map(|layer| (layer + 1) % every != 0)
                    .collect(),
                None => usual.to_vec(),
            },
        )
    }

    fn phi3(&self, metadata: &mut Metadata) -> Result<(), GgufError> {
        let name = |key: &str| format!("{}.{key}", self.family.architecture);
        let inner = ["rope_parameters", "rope_scaling"];
        let inner = inner
            .iter()
            .find_map(|key| self.config.get(*key)?.as_object());
        let empty = Map::new();
        let inner = inner.unwrap_or(&empty);
        let original = self.original(inner)?;
        metadata.u32(
            &name("rope.scaling.original_context_length"),
            original as u32,
        );
        if optional_size(self.config, "sliding_window")?.is_none() {
            // As the converter has it.
            metadata.u32(&name("attention.sliding_window"), 0);
        }
        if let Scaling::LongRope { .. } = self.rope()?.scaling {
            let longest = size(self.config, "max_position_embeddings")? as f64;
            let longer = number(inner, "factor")?.unwrap_or(longest / original);
            let own = if longer > 1.0 {
                (1.0 + longer.ln() / original.ln()).sqrt()
            } else {
                1.0
            };
            let factor = number(inner, "attention_factor")?.unwrap_or(own);
            metadata.f32(&name("rope.scaling.attn_factor"), factor as f32);
        }
        Ok(())
    }

    /// How many experts a block has; 0 without any.
    pub(super) fn experts(&self) -> Result<usize, GgufError> {
        let given = match optional_size(self.config, "num_local_experts")? {
            Some(given) => Some(given),
            None => optional_size(self.config, "num_experts")?,
        };
        Ok(match self.family.own {
            Own::Mixtral => given.unwrap_or(8),
            Own::Qwen3Moe => given.unwrap_or(128),
            _ => 0,
        })
    }

    fn qwen3_moe(&self, metadata: &mut Metadata) -> Result<(), GgufError> {
        let refused = |what: &str, reason: &str| Err(GgufError::unwritable(what, reason));
        let key = |key| self.config.get(key);
        if key("norm_topk_prob").and_then(Value::as_bool) != Some(true) {
            let reason = "llama.cpp scales the weights of a token's experts to add up to one";
            return refused("`norm_topk_prob: false`", reason);
        }
        let dense = key("mlp_only_layers").and_then(Value::as_array);
        let every = optional_size(self.config, "decoder_sparse_step")?.unwrap_or(1);
        if every != 1 || dense.is_some_and(|dense| !dense.is_empty()) {
            return refused(
                "blocks without experts",
                "llama.cpp has none in these models",
            );
        }
        let used = optional_size(self.config, "num_experts_per_tok")?.unwrap_or(8);
        let width = optional_size(self.config, "moe_intermediate_size")?.unwrap_or(768);
        let architecture = self.family.architecture;
        for (name, value) in [
            ("expert_count", self.experts()?),
            ("expert_used_count", used),
            ("expert_feed_forward_length", width),
        ] {
            metadata.u32(&format!("{architecture}.{name}"), value as u32);
        }
        Ok(())
    }

    /// llama.cpp leaves out every fourth.
    fn refuse_other_rotations(&self) -> Result<(), GgufError> {
        let usual = |layer: usize| !(layer + 1).is_multiple_of(4);
        let same = match self.config.get("no_rope_layers").and_then(Value::as_array) {
            Some(listed) => {
                let mut listed = listed.iter().take(self.layers).enumerate();
                listed.all(|(layer, rotates)| (rotates.as_u64() != Some(0)) == usual(layer))
            }
            None => {
                let every = optional_size(self.config, "no_rope_layer_interval")?.unwrap_or(4);
                (0..self.layers).all(|layer| (layer + 1).is_multiple_of(every) != usual(layer))
            }
        };
        if same {
            return Ok(());
        }
        Err(GgufError::unwritable(
            "`no_rope_layers`",
            "llama.cpp leaves every fourth block without rotation, and no others",
        ))
    }
}
