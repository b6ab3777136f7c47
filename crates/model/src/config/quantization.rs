//! How a checkpoint's matrices are packed, as `config.json` says it
//! (`quantization_config`, or mlx-lm's `quantization`).

use std::collections::BTreeMap;

use olora_packed::GptqZeros;
use serde_json::{Map, Value};

use super::Keys;
use crate::ModelError;

/// What is read, for messages.
const SUPPORTED: &str = "NF4 by bitsandbytes, GPTQ and AWQ with 4 bits, MLX's affine 4 and 8 bits, GGUF files, and \
     weights in f32, f16 and bf16: get the model in one of these, most often its original in bf16, \
     which `model.quantize` packs as it is read";

/// A way of packing that is read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Quantization {
    /// bitsandbytes' NF4, which says the rest beside each matrix.
    Nf4 {
        /// What the bytes of packed values are said to be.
        storage: safetensors::Dtype,
    },
    /// MLX's affine.
    Mlx(Mlx),
    /// GPTQ with 4 bits.
    Gptq {
        /// Inputs that share a scale.
        group: usize,
        /// What stored zeros mean.
        zeros: GptqZeros,
        /// Whether groups may be in another order than the inputs (`desc_act`).
        reordered: bool,
    },
    /// AWQ with 4 bits.
    Awq {
        /// Inputs that share a scale.
        group: usize,
    },
}

/// MLX's settings, by layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mlx {
    /// Of layers that are not named.
    pub(crate) default: Groups,
    /// Of layers by path; `None` is a layer that is dense.
    pub(crate) layers: BTreeMap<String, Option<Groups>>,
}

/// Bits of a value, and how many values share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    pub(crate) bits: usize,
    pub(crate) size: usize,
}

impl Quantization {
    /// What the file says, `None` if it says nothing.
    ///
    /// # Errors
    ///
    /// [`ModelError::Unsupported`] for what is not read, by name.
    pub(crate) fn of(keys: &Keys<'_>) -> Result<Option<Self>, ModelError> {
        let section = |key: &str| match keys.get(key) {
            None => Ok(None),
            Some(Value::Object(section)) => Ok(Some(section.clone())),
            Some(other) => Err(keys.expected(key, other, "an object")),
        };
        let general = section("quantization_config")?;
        if let Some(json) = &general {
            let section = Section {
                keys: keys.within(json),
                name: "quantization_config",
            };
            if let Some(method) = section.method()? {
                return section.by(&method).map(Some);
            }
        }
        let (json, name) = match (section("quantization")?, general) {
            // mlx-lm writes both, and the same.
            (Some(json), Some(other)) if json != other => {
                let what = "a quantised checkpoint whose `quantization` and `quantization_config` say different things";
                return Err(keys.unsupported(what.to_owned(), SUPPORTED));
            }
            (Some(json), _) => (json, "quantization"),
            (None, Some(json)) => (json, "quantization_config"),
            (None, None) => return Ok(None),
        };
        let keys = keys.within(&json);
        Section { keys, name }.mlx().map(Some)
    }
}

/// One of the two objects of the file.
#[derive(Clone, Copy)]
struct Section<'a> {
    keys: Keys<'a>,
    name: &'static str,
}

impl Section<'_> {
    fn unsupported(&self, what: &str) -> ModelError {
        let what = format!("a quantised checkpoint with {what} (`{}`)", self.name);
        self.keys.unsupported(what, SUPPORTED)
    }

    /// Who made it. Files that bitsandbytes' first users saved do not say it.
    fn method(&self) -> Result<Option<String>, ModelError> {
        let method = self.keys.text("quant_method")?;
        let of_bitsandbytes = ["load_in_4bit", "load_in_8bit"];
        if method.is_none()
            && of_bitsandbytes
                .iter()
                .any(|&key| self.keys.get(key).is_some())
        {
            return Ok(Some("bitsandbytes".to_owned()));
        }
        Ok(method)
    }

    fn by(&self, method: &str) -> Result<Quantization, ModelError> {
        match method {
            "bitsandbytes" | "bitsandbytes_4bit" | "bitsandbytes_8bit" => self.bitsandbytes(method),
            "gptq" => self.gptq(),
            "awq" => self.awq(),
            "mlx" => self.mlx(),
            other => Err(self.unsupported(&format!("`quant_method: {other}`"))),
        }
    }

    fn bitsandbytes(&self, method: &str) -> Result<Quantization, ModelError> {
        if self.keys.flag("load_in_8bit")? || method == "bitsandbytes_8bit" {
            return Err(self.unsupported("bitsandbytes' 8 bits, `load_in_8bit: true`"));
        }
        let kind = self.keys.text("bnb_4bit_quant_type")?;
        if let Some(kind) = kind.filter(|kind| kind != "nf4") {
            return Err(self.unsupported(&format!("`bnb_4bit_quant_type: {kind}`")));
        }
        let storage = self.keys.text("bnb_4bit_quant_storage")?;
        let storage = match storage.as_deref() {
            None | Some("uint8") => safetensors::Dtype::U8,
            Some("bfloat16") => safetensors::Dtype::BF16,
            Some("float16") => safetensors::Dtype::F16,
            Some("float32") => safetensors::Dtype::F32,
            Some(other) => {
                return Err(self.unsupported(&format!("`bnb_4bit_quant_storage: {other}`")));
            }
        };
        Ok(Quantization::Nf4 { storage })
    }

    fn gptq(&self) -> Result<Quantization, ModelError> {
        self.four_bits("bits")?;
        let group = self.group("group_size", &[32, 64, 128])?;
        let zeros = match self.keys.text("checkpoint_format")?.as_deref() {
            None | Some("gptq") => GptqZeros::LessOne,
            Some("gptq_v2") => GptqZeros::Plain,
            Some(other) => return Err(self.unsupported(&format!("`checkpoint_format: {other}`"))),
        };
        Ok(Quantization::Gptq {
            group,
            zeros,
            reordered: self.keys.flag("desc_act")?,
        })
    }

    fn awq(&self) -> Result<Quantization, ModelError> {
        // AutoAWQ's own names, in files that transformers did not write.
        let own = |key: &'static str, theirs: &'static str| match self.keys.get(key) {
            Some(_) => key,
            None => theirs,
        };
        self.four_bits(own("bits", "w_bit"))?;
        let group = self.group(own("group_size", "q_group_size"), &[32, 64, 128])?;
        let version = self.keys.text("version")?.map(|name| name.to_lowercase());
        if let Some(other) = version.filter(|version| version != "gemm") {
            return Err(self.unsupported(&format!("AWQ's `version: {other}`")));
        }
        if !self.keys.flag_or("zero_point", true)? {
            return Err(self.unsupported("AWQ's `zero_point: false`"));
        }
        Ok(Quantization::Awq { group })
    }

    fn four_bits(&self, key: &str) -> Result<(), ModelError> {
        match self.keys.get(key) {
            None => Err(self.unsupported(&format!("no `{key}`"))),
            Some(_) if self.keys.size_or(key, 4)? == 4 => Ok(()),
            Some(bits) => Err(self.unsupported(&format!("`{key}: {bits}`"))),
        }
    }

    fn group(&self, key: &str, supported: &[usize]) -> Result<usize, ModelError> {
        let size = self.keys.get(key).unwrap_or(&Value::Null);
        let known = size.as_u64().map(|size| size as usize);
        known
            .filter(|size| supported.contains(size))
            .ok_or_else(|| {
                let sizes = supported.iter().map(ToString::to_string);
                let sizes = sizes.collect::<Vec<_>>().join(", ");
                self.unsupported(&format!("`{key}: {size}` instead of one of {sizes}"))
            })
    }

    /// mlx-lm writes its settings without saying whose they are.
    fn mlx(&self) -> Result<Quantization, ModelError> {
        if self.keys.get("group_size").is_none() || self.keys.get("bits").is_none() {
            return Err(self.unsupported("no `quant_method` that says how"));
        }
        let default = self.groups()?;
        let mut layers = BTreeMap::new();
        for (key, value) in self.keys.json {
            match value {
                Value::Object(json) => {
                    let keys = self.keys.within(json);
                    let section = Section { keys, ..*self };
                    let groups = section
                        .layer(json, default)
                        .map_err(|error| named(error, key))?;
                    layers.insert(key.clone(), Some(groups));
                }
                // What is not a layer says nothing about bits.
                Value::Bool(packed) if key.contains('.') || key == "lm_head" => {
                    layers.insert(key.clone(), packed.then_some(default));
                }
                _ => {}
            }
        }
        Ok(Quantization::Mlx(Mlx { default, layers }))
    }

    fn layer(&self, json: &Map<String, Value>, default: Groups) -> Result<Groups, ModelError> {
        if json.is_empty() {
            return Ok(default);
        }
        self.groups()
    }

    fn groups(&self) -> Result<Groups, ModelError> {
        let mode = self.keys.text("mode")?;
        if let Some(mode) = mode.filter(|mode| mode != "affine") {
            return Err(self.unsupported(&format!("MLX's `mode: {mode}`")));
        }
        // What mlx takes where nothing is said.
        let bits = self.keys.size_or("bits", 4)?;
        if !matches!(bits, 4 | 8) {
            return Err(self.unsupported(&format!("MLX's `bits: {bits}`")));
        }
        let size = match self.keys.get("group_size") {
            None => 64,
            Some(_) => self.group("group_size", &[32, 64, 128])?,
        };
        Ok(Groups { bits, size })
    }
}

/// The error with the layer that it is about.
fn named(error: ModelError, layer: &str) -> ModelError {
    match error {
        ModelError::Unsupported {
            path,
            what,
            supported,
        } => ModelError::Unsupported {
            path,
            what: format!("{what} for the layer `{layer}`"),
            supported,
        },
        other => other,
    }
}

impl Mlx {
    /// What is said of a layer; `None` if it is dense.
    pub(crate) fn of(&self, layer: &str) -> Option<Groups> {
        self.layers
            .get(layer)
            .copied()
            .unwrap_or(Some(self.default))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn of(json: &Value) -> Result<Option<Quantization>, String> {
        Quantization::of(&Keys {
            json: json.as_object().unwrap(),
            path: Path::new("config.json"),
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_read_is_understood() {
        assert_eq!(of(&json!({"hidden_size": 3})), Ok(None));
        let nf4 = json!({"quantization_config": {
            "load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_quant_type": "nf4"}});
        let storage = safetensors::Dtype::U8;
        assert_eq!(of(&nf4), Ok(Some(Quantization::Nf4 { storage })));
        let gptq = json!({"quantization_config": {
            "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true,
            "checkpoint_format": "gptq_v2"}});
        let zeros = GptqZeros::Plain;
        let right = Quantization::Gptq {
            group: 128,
            zeros,
            reordered: true,
        };
        assert_eq!(of(&gptq), Ok(Some(right)));
        let awq = json!({"quantization_config": {
            "quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}});
        assert_eq!(of(&awq), Ok(Some(Quantization::Awq { group: 64 })));
    }

    #[test]
    fn settings_of_mlx_may_differ_by_layer() {
        let groups = |bits, size| Groups { bits, size };
        for key in ["quantization", "quantization_config"] {
            let json = json!({key: {
                "group_size": 64, "bits": 4, "mode": "affine", "lm_head": false,
                "model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 8}}});
            let Ok(Some(Quantization::Mlx(mlx))) = of(&json) else {
                panic!("{key}: {:?}", of(&json));
            };
            assert_eq!(mlx.of("model.layers.0.mlp.up_proj"), Some(groups(4, 64)));
            assert_eq!(mlx.of("model.layers.0.mlp.down_proj"), Some(groups(8, 32)));
            assert_eq!(mlx.of("lm_head"), None);
        }
    }

    /// With what there is, and what to do.
    #[test]
    fn what_is_not_read_is_refused_by_name() {
        let own = |section: Value| json!({"quantization_config": section});
        let gptq = |key: &str, value: Value| {
            let mut section = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
            section[key] = value;
            own(section)
        };
        let mlx = |key: &str, value: Value| {
            let mut section = json!({"bits": 4, "group_size": 64});
            section[key] = value;
            json!({"quantization": section})
        };
        let cases = [
            (own(json!({})), "no `quant_method`"),
            (own(json!({"quant_method": "fp8"})), "quant_method: fp8"),
            (
                own(json!({"quant_method": "compressed-tensors"})),
                "compressed-tensors",
            ),
            (own(json!({"load_in_8bit": true})), "load_in_8bit: true"),
            (
                own(json!({"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"})),
                "bnb_4bit_quant_type: fp4",
            ),
            (gptq("bits", json!(3)), "bits: 3"),
            (gptq("bits", Value::Null), "no `bits`"),
            (
                json!({"quantization": {"bits": 4, "group_size": 64},
                    "quantization_config": {"bits": 8, "group_size": 64}}),
                "say different things",
            ),
            (gptq("group_size", json!(-1)), "group_size: -1"),
            (
                gptq("checkpoint_format", json!("marlin")),
                "checkpoint_format: marlin",
            ),
            (
                own(
                    json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}),
                ),
                "version: gemv",
            ),
            (mlx("bits", json!(6)), "bits: 6"),
            (mlx("mode", json!("mxfp4")), "mode: mxfp4"),
            (
                mlx("model.layers.3.mlp", json!({"bits": 3})),
                "the layer `model.layers.3.mlp`",
            ),
        ];
        for (json, expected) in cases {
            let message = of(&json).unwrap_err();
            assert!(message.contains(expected), "{message}");
            assert!(message.contains("config.json"), "{message}");
            assert!(message.contains("its original in bf16"), "{message}");
        }
    }
}
