//! Configurations of models that people fine-tune: read, with as many parameters
//! as are published, or refused for what is not computed.
//!
//! Rows hold facts of the published `config.json` files, as far as they decide
//! anything. A tied head is counted once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::path::Path;

use burn::{module::Module, tensor::Device};
use olora_model::ModelConfig;
use serde_json::{Map, Value, json};

fn read(config: Value) -> Result<ModelConfig, String> {
    let Value::Object(json) = config else {
        panic!("a configuration is an object")
    };
    ModelConfig::from_json(json, Path::new("config.json")).map_err(|error| error.to_string())
}

/// A configuration from the six sizes that all have.
fn shape(
    model_type: &str,
    [vocab, hidden, inner, layers, heads, kv_heads]: [usize; 6],
    own: impl Into<Option<Value>>,
) -> Value {
    let mut json: Map<String, Value> = json!({
        "model_type": model_type, "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
    })
    .as_object()
    .unwrap()
    .clone();
    if let Some(Value::Object(own)) = own.into() {
        json.extend(own);
    }
    Value::Object(json)
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn popular_models_are_read_with_their_published_number_of_parameters() {
    let llama3 = json!({
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    });
    let qwen = json!({
        "tie_word_embeddings": true, "rope_theta": 1e6, "use_sliding_window": false,
        "sliding_window": 32768, "max_window_layers": 28, "use_mrope": false,
    });
    let qwen3 = |tied: bool| {
        json!({
            "head_dim": 128, "attention_bias": false, "tie_word_embeddings": tied,
            "rope_theta": 1e6, "rope_scaling": null, "sliding_window": null,
            "use_sliding_window": false, "max_window_layers": 36,
        })
    };
    let gemma2 = |head_dim: usize, scalar: usize| {
        json!({
            "head_dim": head_dim, "query_pre_attn_scalar": scalar,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 4096, "sliding_window_size": 4096, "cache_implementation": "hybrid",
        })
    };
    let gemma3 = json!({
        "head_dim": 256, "query_pre_attn_scalar": 256, "attn_logit_softcapping": null,
        "final_logit_softcapping": null, "hidden_activation": "gelu_pytorch_tanh",
        "rope_local_base_freq": 10000, "rope_theta": 1_000_000, "rope_scaling": null,
        "sliding_window": 512, "sliding_window_pattern": 6,
    });
    let gemma3_whole = |layers: usize, hidden: usize, inner: usize, more: Value| {
        let mut text = json!({
            "model_type": "gemma3_text", "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        });
        text.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
            "mm_tokens_per_image": 256, "image_token_index": 262_144, "text_config": text,
            "vision_config": {"model_type": "siglip_vision_model"},
        })
    };
    let longrope = json!({
        "type": "longrope", "short_factor": vec![1.0; 48], "long_factor": vec![2.0; 48],
    });
    let granite = |embedding: f64, logits: f64, residual: f64, attention: f64| {
        json!({
            "embedding_multiplier": embedding, "logits_scaling": logits,
            "residual_multiplier": residual, "attention_multiplier": attention,
            "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
        })
    };
    let models = [
        (
            "Llama-2-7b",
            shape(
                "llama",
                [32000, 4096, 11008, 32, 32, 32],
                json!({"pretraining_tp": 1}),
            ),
            6_738_415_616,
        ),
        (
            "Llama-3.1-8B",
            shape(
                "llama",
                [128_256, 4096, 14336, 32, 32, 8],
                json!({"rope_scaling": llama3}),
            ),
            8_030_261_248,
        ),
        (
            "Llama-3.2-1B",
            shape(
                "llama",
                [128_256, 2048, 8192, 16, 32, 8],
                json!({"head_dim": 64, "tie_word_embeddings": true, "rope_scaling": llama3}),
            ),
            1_235_814_400,
        ),
        (
            "Llama-3.2-3B",
            shape(
                "llama",
                [128_256, 3072, 8192, 28, 24, 8],
                json!({"head_dim": 128, "tie_word_embeddings": true, "rope_scaling": llama3}),
            ),
            3_212_749_824,
        ),
        (
            "TinyLlama-1.1B",
            shape("llama", [32000, 2048, 5632, 22, 32, 4], json!({})),
            1_100_048_384,
        ),
        (
            "SmolLM2-135M",
            shape(
                "llama",
                [49152, 576, 1536, 30, 9, 3],
                json!({"tie_word_embeddings": true}),
            ),
            134_515_008,
        ),
        (
            "SmolLM2-1.7B",
            shape(
                "llama",
                [49152, 2048, 8192, 24, 32, 32],
                json!({"tie_word_embeddings": true}),
            ),
            1_711_376_384,
        ),
        (
            "SmolLM3-3B",
            shape(
                "smollm3",
                [128_256, 2048, 11008, 36, 16, 4],
                json!({"tie_word_embeddings": true, "rope_theta": 5e6, "no_rope_layer_interval": 4}),
            ),
            3_075_098_624,
        ),
        (
            "Mistral-7B-v0.1",
            shape(
                "mistral",
                [32000, 4096, 14336, 32, 32, 8],
                json!({"sliding_window": 4096}),
            ),
            7_241_732_096,
        ),
        (
            "Mistral-7B-v0.3",
            shape(
                "mistral",
                [32768, 4096, 14336, 32, 32, 8],
                json!({"sliding_window": null}),
            ),
            7_248_023_552,
        ),
        (
            "Mistral-Nemo-2407",
            shape(
                "mistral",
                [131_072, 5120, 14336, 40, 32, 8],
                json!({"head_dim": 128, "sliding_window": null}),
            ),
            12_247_782_400,
        ),
        (
            "Mixtral-8x7B",
            shape(
                "mixtral",
                [32000, 4096, 14336, 32, 32, 8],
                json!({
                    "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": null,
                    "output_router_logits": false,
                }),
            ),
            46_702_792_704,
        ),
        (
            "Qwen2.5-0.5B",
            shape("qwen2", [151_936, 896, 4864, 24, 14, 2], qwen.clone()),
            494_032_768,
        ),
        (
            "Qwen2.5-1.5B",
            shape("qwen2", [151_936, 1536, 8960, 28, 12, 2], qwen),
            1_543_714_304,
        ),
        (
            "Qwen2.5-7B",
            shape(
                "qwen2",
                [152_064, 3584, 18944, 28, 28, 4],
                json!({"tie_word_embeddings": false}),
            ),
            7_615_616_512,
        ),
        (
            "DeepSeek-R1-Distill-Qwen-1.5B",
            shape(
                "qwen2",
                [151_936, 1536, 8960, 28, 12, 2],
                json!({"tie_word_embeddings": false}),
            ),
            1_777_088_000,
        ),
        (
            "Qwen3-0.6B",
            shape("qwen3", [151_936, 1024, 3072, 28, 16, 8], qwen3(true)),
            596_049_920,
        ),
        (
            "Qwen3-4B",
            shape("qwen3", [151_936, 2560, 9728, 36, 32, 8], qwen3(true)),
            4_022_468_096,
        ),
        (
            "Qwen3-8B",
            shape("qwen3", [151_936, 4096, 12288, 36, 32, 8], qwen3(false)),
            8_190_735_360,
        ),
        (
            "Qwen3-30B-A3B",
            shape(
                "qwen3_moe",
                [151_936, 2048, 6144, 48, 32, 4],
                json!({
                    "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
                    "moe_intermediate_size": 768, "norm_topk_prob": true, "mlp_only_layers": [],
                    "decoder_sparse_step": 1, "sliding_window": null, "output_router_logits": false,
                }),
            ),
            30_532_122_624,
        ),
        (
            "gemma-2b",
            shape(
                "gemma",
                [256_000, 2048, 16384, 18, 8, 1],
                json!({"head_dim": 256}),
            ),
            2_506_172_416,
        ),
        (
            "gemma-7b",
            shape(
                "gemma",
                [256_000, 3072, 24576, 28, 16, 16],
                json!({"head_dim": 256}),
            ),
            8_537_680_896,
        ),
        (
            "gemma-2-2b",
            shape("gemma2", [256_000, 2304, 9216, 26, 8, 4], gemma2(256, 256)),
            2_614_341_888,
        ),
        (
            "gemma-2-9b",
            shape(
                "gemma2",
                [256_000, 3584, 14336, 42, 16, 8],
                gemma2(256, 256),
            ),
            9_241_705_984,
        ),
        (
            "gemma-2-27b",
            shape(
                "gemma2",
                [256_000, 4608, 36864, 46, 32, 16],
                gemma2(128, 144),
            ),
            27_227_128_320,
        ),
        (
            "gemma-3-270m",
            shape(
                "gemma3_text",
                [262_144, 640, 2048, 18, 4, 1],
                gemma3.clone(),
            ),
            268_098_176,
        ),
        (
            "gemma-3-1b",
            shape("gemma3_text", [262_144, 1152, 6912, 26, 4, 1], gemma3),
            999_885_952,
        ),
        (
            "gemma-3-4b, its text model",
            gemma3_whole(34, 2560, 10240, json!({})),
            3_880_263_168,
        ),
        (
            "Phi-3-mini-4k",
            shape(
                "phi3",
                [32064, 3072, 8192, 32, 32, 32],
                json!({"sliding_window": 2047}),
            ),
            3_821_079_552,
        ),
        (
            "Phi-3.5-mini",
            shape(
                "phi3",
                [32064, 3072, 8192, 32, 32, 32],
                json!({
                    "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
                    "rope_scaling": longrope, "sliding_window": 262_144, "attention_bias": false,
                }),
            ),
            3_821_079_552,
        ),
        (
            "Phi-4-mini",
            shape(
                "phi3",
                [200_064, 3072, 8192, 32, 24, 8],
                json!({
                    "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
                    "rope_scaling": longrope, "partial_rotary_factor": 0.75,
                    "tie_word_embeddings": true, "sliding_window": 262_144,
                }),
            ),
            3_836_021_760,
        ),
        (
            "phi-4",
            shape(
                "phi3",
                [100_352, 5120, 17920, 40, 40, 10],
                json!({
                    "max_position_embeddings": 16384, "original_max_position_embeddings": 16384,
                    "rope_theta": 250_000, "rope_scaling": null, "sliding_window": null,
                }),
            ),
            14_659_507_200,
        ),
        (
            "OLMo-2-0425-1B",
            shape(
                "olmo2",
                [100_352, 2048, 8192, 16, 16, 16],
                json!({"rope_theta": 500_000}),
            ),
            1_484_916_736,
        ),
        (
            "OLMo-2-1124-7B",
            shape(
                "olmo2",
                [100_352, 4096, 11008, 32, 32, 32],
                json!({"rope_theta": 500_000}),
            ),
            7_298_617_344,
        ),
        (
            "granite-3.1-8b",
            shape(
                "granite",
                [49155, 4096, 12800, 40, 32, 8],
                granite(12.0, 16.0, 0.22, 0.007_812_5),
            ),
            8_170_848_256,
        ),
        (
            "opt-125m",
            json!({
                "model_type": "opt", "vocab_size": 50272, "hidden_size": 768, "ffn_dim": 3072,
                "num_hidden_layers": 12, "num_attention_heads": 12, "word_embed_proj_dim": 768,
            }),
            125_239_296,
        ),
    ];
    let mut wrong = Vec::new();
    for (name, config, published) in models {
        match read(config) {
            Ok(config) => {
                let counted = config.init(&Device::flex()).num_params();
                if counted != published {
                    wrong.push(format!(
                        "{name}: {counted} parameters, published {published}"
                    ));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn popular_models_that_are_not_computed_are_refused_for_the_reason() {
    let sizes = [1024, 64, 128, 2, 4, 2];
    for (name, config, reason) in [
        (
            "gpt2",
            json!({"model_type": "gpt2", "n_embd": 768}),
            "model_type: gpt2",
        ),
        ("phi-2", shape("phi", sizes, json!({})), "model_type: phi"),
        (
            "falcon-7b",
            shape("falcon", sizes, json!({})),
            "model_type: falcon",
        ),
        (
            "Qwen1.5-MoE-A2.7B",
            shape("qwen2_moe", sizes, json!({})),
            "model_type: qwen2_moe",
        ),
        (
            "DeepSeek-V3",
            shape("deepseek_v3", sizes, json!({})),
            "model_type: deepseek_v3",
        ),
        (
            "gpt-oss-20b",
            shape("gpt_oss", sizes, json!({})),
            "model_type: gpt_oss",
        ),
        (
            "gemma-3n-E2B",
            shape("gemma3n", sizes, json!({})),
            "model_type: gemma3n",
        ),
        (
            "Llama-4-Scout",
            shape("llama4", sizes, json!({})),
            "model_type: llama4",
        ),
        (
            "c4ai-command-r7b",
            shape("cohere2", sizes, json!({})),
            "model_type: cohere2",
        ),
        (
            "Qwen2.5-VL-3B",
            shape(
                "qwen2_5_vl",
                sizes,
                json!({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}),
            ),
            "model_type: qwen2_5_vl",
        ),
        (
            "opt-350m",
            json!({
                "model_type": "opt", "vocab_size": 50272, "hidden_size": 1024, "ffn_dim": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "word_embed_proj_dim": 512,
                "do_layer_norm_before": false,
            }),
            "do_layer_norm_before: false",
        ),
        (
            "a Llama with Mixtral's experts",
            shape("llama", sizes, json!({"num_local_experts": 8})),
            "num_local_experts: 8",
        ),
    ] {
        let error = read(config).map(|_| ()).unwrap_err();
        assert!(error.contains(reason), "{name}: {error}");
    }
}
