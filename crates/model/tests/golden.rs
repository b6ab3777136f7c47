//! Logits and greedy continuations equal transformers'.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::ops::ControlFlow;

use burn::tensor::{DType, Device, Tensor, TensorData};
use common::{fixture, floats, host, ids, max_diff, tokens};
use olora_adapter::packed_weights;
use olora_model::{
    Companions, Dense, Dtype, KvCache, Matrices, Products, Sampling, generate, hold_in_bf16, load,
    load_as, save,
};
use olora_packed::Format;

/// Logits within 1e-4 and the same 16 greedy tokens, all through the cache.
fn check(name: &str) {
    let directory = fixture(name);
    let golden = directory.join("golden.safetensors");
    let device = Device::flex();
    let (model, _) = load(&directory, Dtype::F32, &device).unwrap();

    let logits = host(model.forward(ids(&golden, "input_ids", &device)));
    let diff = max_diff(&logits, &floats(&golden, "logits").1);
    assert!(diff < 1e-4, "{name}: logits differ by {diff}");

    let prompt = tokens(&golden, "prompt_ids");
    let expected = tokens(&golden, "greedy_ids");
    let go_on = |_| ControlFlow::Continue(());
    let ours = generate(
        &model,
        &prompt,
        expected.len(),
        &Sampling::default(),
        &[],
        go_on,
    )
    .unwrap();
    assert_eq!(ours, expected, "{name}");
}

#[test]
fn llama() {
    check("llama");
}

#[test]
fn llama_with_tied_embeddings() {
    check("llama-tied");
}

#[test]
fn llama_tied_with_only_the_head_in_the_file() {
    check("llama-tied-lm-head");
}

#[test]
fn llama_with_linear_rope_scaling() {
    check("llama-linear");
}

#[test]
fn llama_with_llama3_rope_scaling() {
    check("llama-llama3");
}

#[test]
fn llama_with_a_head_dim_of_its_own() {
    check("llama-head-dim");
}

#[test]
fn llama_with_a_transformers_4_config() {
    check("llama-v4");
}

#[test]
fn llama_with_the_older_type_key() {
    check("llama-v4-type");
}

#[test]
fn mistral_with_a_window_shorter_than_the_sequence() {
    check("mistral");
}

#[test]
fn qwen2_with_biases() {
    check("qwen2");
}

#[test]
fn qwen3_with_head_norms() {
    check("qwen3");
}

#[test]
fn gemma() {
    check("gemma");
}

#[test]
fn opt() {
    check("opt");
}

#[test]
fn opt_without_biases_from_a_file_of_the_base_model_alone() {
    check("opt-plain");
}

#[test]
fn gemma2_with_capped_scores_and_logits() {
    check("gemma2");
}

#[test]
fn gemma3_with_two_rotations_and_windows() {
    check("gemma3");
}

#[test]
fn text_models_within_models_of_pictures() {
    for name in [
        "gemma3-multimodal",
        "gemma3-multimodal-v5",
        "mistral3-multimodal",
    ] {
        check(name);
    }
}

#[test]
fn phi3_with_fused_projections_and_a_part_that_rotates() {
    check("phi3");
}

#[test]
fn phi3_with_long_and_short_factors() {
    check("phi3-longrope");
    let directory = fixture("phi3-longrope");
    let golden = directory.join("golden.safetensors");
    let device = Device::flex();
    let (model, _) = load(&directory, Dtype::F32, &device).unwrap();
    let logits = host(model.forward(ids(&golden, "short_ids", &device)));
    let diff = max_diff(&logits, &floats(&golden, "short_logits").1);
    assert!(diff < 1e-4, "logits differ by {diff}");

    // From one set of factors to the other, as transformers' `generate` does.
    let go_on = |_| ControlFlow::Continue(());
    let prompt = tokens(&golden, "crossing_prompt_ids");
    let expected = tokens(&golden, "crossing_greedy_ids");
    let greedy = Sampling::default();
    let ours = generate(&model, &prompt, expected.len(), &greedy, &[], go_on).unwrap();
    assert_eq!(ours, expected);
}

#[test]
fn smollm3_with_a_block_that_does_not_rotate() {
    check("smollm3");
}

#[test]
fn granite_with_four_multipliers() {
    check("granite");
}

#[test]
fn olmo2_with_norms_after() {
    check("olmo2");
}

#[test]
fn olmo3_with_windows_that_rotate_unscaled() {
    check("olmo3");
}

#[test]
fn ministral3_with_queries_that_grow() {
    check("ministral3");
}

#[test]
fn yarn_and_dynamic_scaling() {
    for name in ["llama-yarn", "qwen3-yarn", "llama-dynamic"] {
        check(name);
    }
}

#[test]
fn experts() {
    for name in ["qwen3-moe", "mixtral"] {
        check(name);
    }
}

/// All experts of a block in one tensor, as transformers 5 has them in memory.
#[test]
fn experts_in_one_tensor() {
    for (name, experts, [gate, up, down], router) in [
        (
            "qwen3-moe",
            "mlp.experts",
            ["gate_proj", "up_proj", "down_proj"],
            "mlp.gate",
        ),
        (
            "mixtral",
            "block_sparse_moe.experts",
            ["w1", "w3", "w2"],
            "block_sparse_moe.gate",
        ),
    ] {
        let directory = fixture(name);
        let bytes = std::fs::read(directory.join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut stacked: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for (key, view) in tensors.tensors() {
            if !key.contains(&format!(".{experts}.")) {
                let key = key.replace(router, "mlp.gate");
                stacked.push((key, view.shape().to_vec(), view.data().to_vec()));
            }
        }
        for layer in 0..2 {
            let of = |expert: usize, matrix: &str| {
                let key = format!("model.layers.{layer}.{experts}.{expert}.{matrix}.weight");
                let view = tensors.tensor(&key).ok()?;
                Some((view.shape().to_vec(), view.data().to_vec()))
            };
            let Some((shape, _)) = of(0, gate) else {
                continue;
            };
            let all = |matrices: &[&str]| -> Vec<u8> {
                let each = (0..4).flat_map(|expert| matrices.iter().map(move |m| (expert, *m)));
                each.flat_map(|(expert, matrix)| of(expert, matrix).unwrap().1)
                    .collect()
            };
            let prefix = format!("model.layers.{layer}.mlp.experts");
            let [inner, width] = [shape[0], shape[1]];
            let both = vec![4, 2 * inner, width];
            stacked.push((format!("{prefix}.gate_up_proj"), both, all(&[gate, up])));
            let back = vec![4, width, inner];
            stacked.push((format!("{prefix}.down_proj"), back, all(&[down])));
        }
        let out = tempfile::tempdir().unwrap();
        std::fs::copy(
            directory.join("config.json"),
            out.path().join("config.json"),
        )
        .unwrap();
        let views = stacked.iter().map(|(key, shape, bytes)| {
            let dtype = safetensors::Dtype::F32;
            let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes);
            (key.as_str(), view.unwrap())
        });
        let written = safetensors::serialize(views, None).unwrap();
        std::fs::write(out.path().join("model.safetensors"), written).unwrap();

        let device = Device::flex();
        let golden = directory.join("golden.safetensors");
        let logits = |path: &std::path::Path| {
            let (model, _) = load(path, Dtype::F32, &device).unwrap();
            host(model.forward(ids(&golden, "input_ids", &device)))
        };
        assert_eq!(logits(out.path()), logits(&directory), "{name}");
    }
}

/// What transformers computes with weights and arithmetic in bf16.
#[test]
fn families_in_bf16() {
    for name in ["gemma", "opt", "gemma2", "gemma3", "olmo2"] {
        let directory = fixture(name);
        let golden = directory.join("golden.safetensors");
        let device = Device::flex();
        let (model, _) = load(&directory, Dtype::Bf16, &device).unwrap();
        let logits = host(model.forward(ids(&golden, "input_ids", &device)));
        let diff = max_diff(&logits, &floats(&golden, "logits_bf16").1);
        assert!(diff < 0.2, "{name}: logits differ by {diff}");
        let exact = max_diff(&logits, &floats(&golden, "logits").1);
        assert!(exact > 1e-3, "{name} did not compute in bf16");
    }
}

/// √32 is 5.65685…, and 5.65625 in bf16.
#[test]
fn gemmas_embeddings_are_scaled_by_a_rounded_root() {
    let device = Device::flex();
    for (dtype, scale) in [(Dtype::F32, 32_f32.sqrt()), (Dtype::Bf16, 5.65625)] {
        let (model, _) = load(&fixture("gemma"), dtype, &device).unwrap();
        let ids = Tensor::from_data(TensorData::new(vec![3, 9], [1, 2]), &device);
        let table = &model.model.embed_tokens;
        let plain = table.forward(ids.clone()).cast(DType::F32);
        let expected = (plain * scale).cast(DType::from(dtype));
        assert_eq!(host(model.embed(ids)), host(expected), "{dtype:?}");
    }
}

#[test]
fn documents_in_one_row_are_each_counted_from_the_first_position() {
    for name in ["gemma", "opt"] {
        let directory = fixture(name);
        let golden = directory.join("golden.safetensors");
        let device = Device::flex();
        let (model, _) = load(&directory, Dtype::F32, &device).unwrap();
        let row = ids(&golden, "input_ids", &device).narrow(0, 0, 1);
        let x = model.embed(row.clone());
        let positions = model.positions_in_documents(&x, &[vec![9, 11, 4]]);
        let x = model.with_positions(x, &positions);
        let blocks = model.model.layers.iter();
        let x = blocks.fold(x, |x, block| block.forward(x, &positions));
        let packed = model.logits(model.model.norm.forward(x));
        for (start, length) in [(0, 9), (9, 11), (20, 4)] {
            let alone = model.forward(row.clone().narrow(1, start, length));
            let ours = packed.clone().narrow(1, start, length);
            let diff = max_diff(&host(ours), &host(alone));
            assert!(diff < 1e-5, "{name}: from {start}, logits differ by {diff}");
        }
    }
}

#[test]
fn a_sharded_bf16_checkpoint_in_f32_and_in_bf16() {
    check("llama-sharded-bf16");
    let directory = fixture("llama-sharded-bf16");
    let golden = directory.join("golden.safetensors");
    let device = Device::flex();
    let (model, _) = load(&directory, Dtype::Bf16, &device).unwrap();
    let logits = host(model.forward(ids(&golden, "input_ids", &device)));
    // bf16 has 8 bits of mantissa; logits here reach about 10.
    let diff = max_diff(&logits, &floats(&golden, "logits_bf16").1);
    assert!(diff < 0.2, "logits differ by {diff}");
    let exact = max_diff(&logits, &floats(&golden, "logits").1);
    assert!(exact > 1e-3, "the model did not compute in bf16");
}

/// On the CPU: the same values, in other memory.
#[test]
fn matrices_as_stored_give_the_logits_of_tensors_to_the_bit() {
    for name in ["llama-sharded-bf16", "llama", "qwen3", "gemma"] {
        let directory = fixture(name);
        let device = Device::flex();
        let input = ids(&directory.join("golden.safetensors"), "input_ids", &device);
        let (tensors, _) = load(&directory, Dtype::F32, &device).unwrap();
        let expected = host(tensors.forward(input.clone()));
        let stored = Matrices {
            dense: Dense::AsStored,
            ..Matrices::default()
        };
        let (model, _) = load_as(&directory, Dtype::F32, stored, &device).unwrap();
        let formats: Vec<_> = packed_weights(&model)
            .into_values()
            .map(|base| base.tensor.packed().format())
            .collect();
        let expected_format = match name {
            "llama-sharded-bf16" => Format::Bf16,
            _ => Format::F32,
        };
        assert!(!formats.is_empty(), "{name}");
        assert!(
            formats.iter().all(|found| *found == expected_format),
            "{name}"
        );
        assert_eq!(host(model.forward(input)), expected, "{name}");
    }
}

/// In whatever form matrices are held, a value that is no number is said in the same words.
#[test]
fn a_weight_that_is_no_number_is_named_with_its_place() {
    let out = tempfile::tempdir().unwrap();
    let directory = fixture("llama");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(directory.join(name), out.path().join(name)).unwrap();
    }
    let file = out.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    // The length of the header, the header, the tensors.
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let matrix = "model.layers.0.self_attn.q_proj.weight";
    let begin = tensors[matrix]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[header + begin + 20..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let device = Device::flex();
    let said = |dense| {
        let matrices = Matrices {
            dense,
            ..Matrices::default()
        };
        let loaded = load_as(out.path(), Dtype::F32, matrices, &device);
        loaded.map(drop).unwrap_err().to_string()
    };
    let expected = said(Dense::Tensors);
    assert!(
        expected.contains("NaN") && expected.contains(matrix),
        "{expected}"
    );
    assert_eq!(said(Dense::AsStored), expected);
    assert_eq!(said(Dense::Bf16(Products::Rounded)), expected);
}

/// A checkpoint in bfloat16 held as it is: multiplied with in float32 to the bit, or rounded,
/// which is about as far from float32 as transformers in bfloat16.
#[test]
fn matrices_in_bf16_are_multiplied_with_exactly_or_rounded() {
    let directory = fixture("llama-sharded-bf16");
    let golden = directory.join("golden.safetensors");
    let device = Device::flex();
    let input = ids(&golden, "input_ids", &device);
    let (tensors, _) = load(&directory, Dtype::F32, &device).unwrap();
    let exact = host(tensors.forward(input.clone()));
    let logits = |products| {
        let matrices = Matrices {
            dense: Dense::Bf16(products),
            ..Matrices::default()
        };
        let (model, _) = load_as(&directory, Dtype::F32, matrices, &device).unwrap();
        let held = hold_in_bf16(tensors.clone(), products).unwrap();
        let logits = host(model.forward(input.clone()));
        assert_eq!(host(held.forward(input.clone())), logits, "{products:?}");
        logits
    };
    assert_eq!(logits(Products::Exact), exact);
    let rounded = logits(Products::Rounded);
    let diff = max_diff(&rounded, &exact);
    let theirs = max_diff(&floats(&golden, "logits_bf16").1, &exact);
    assert!(
        diff > 1e-3 && diff < theirs,
        "rounded products differ by {diff}, all in bfloat16 by {theirs}"
    );
}

/// Rounding f32 weights to bfloat16 beyond what it holds is refused, with the weight's name.
#[test]
fn weights_beyond_bf16_are_refused_by_name() {
    let directory = fixture("llama");
    let device = Device::flex();
    let (mut model, _) = load(&directory, Dtype::F32, &device).unwrap();
    let weight = &model.model.layers[1].mlp.linear_layers()[0].weight;
    let id = weight.id;
    let huge = weight.val() * 0.0 + 3.4e38;
    struct Put(burn::module::ParamId, Option<Tensor<2>>);
    impl burn::module::ModuleMapper for Put {
        fn map_float<const D: usize>(
            &mut self,
            param: burn::module::Param<Tensor<D>>,
        ) -> burn::module::Param<Tensor<D>> {
            if param.id != self.0 {
                return param;
            }
            let huge = self.1.take().unwrap();
            param.map(|weight| huge.reshape(weight.shape()))
        }
    }
    model = burn::module::Module::map(model, &mut Put(id, Some(huge)));
    let error = hold_in_bf16(model, Products::Rounded)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("model.layers.1.mlp.") && error.contains("bfloat16"),
        "{error}"
    );
}

#[test]
fn the_cache_changes_nothing_however_the_sequence_is_cut() {
    for name in ["llama", "mistral", "qwen3", "gemma", "opt"] {
        let directory = fixture(name);
        let golden = directory.join("golden.safetensors");
        let device = Device::flex();
        let (model, _) = load(&directory, Dtype::F32, &device).unwrap();
        let input = ids(&golden, "input_ids", &device);
        let [batch, seq] = input.dims();
        let all = model.forward(input.clone());
        let n_vocab = all.dims()[2];
        let mut cache = KvCache::new(model.model.layers.len());
        let mut at = 0;
        for length in [1, 9, 2, 12] {
            let logits = model.next_token_logits(input.clone().narrow(1, at, length), &mut cache);
            at += length;
            let expected = all.clone().narrow(1, at - 1, 1).reshape([batch, n_vocab]);
            assert!(
                max_diff(&host(logits), &host(expected)) < 1e-5,
                "{name} at {at}"
            );
        }
        assert_eq!((at, cache.len()), (seq, seq));
    }
}

/// Both rows of a batch are begun; the second is continued twice, and padded.
#[test]
fn rows_of_a_cache_are_continued_each_in_its_own_way() {
    for name in ["llama", "mistral", "opt"] {
        let directory = fixture(name);
        let golden = directory.join("golden.safetensors");
        let device = Device::flex();
        let (model, _) = load(&directory, Dtype::F32, &device).unwrap();
        let input = ids(&golden, "input_ids", &device);
        let mut cache = KvCache::new(model.model.layers.len());
        let begun = model.hidden_after(input.clone().narrow(1, 0, 10), &mut cache);
        let whole = model.hidden(input.clone());
        let expected = whole.clone().narrow(1, 0, 10);
        assert!(max_diff(&host(begun), &host(expected)) < 1e-5, "{name}");

        let mut cache = cache.rows(&[1, 0, 1]);
        let row = |row: usize, length: usize| {
            let tokens = input.clone().narrow(0, row, 1).narrow(1, 10, length);
            let padding = Tensor::zeros([1, 14 - length], &device);
            Tensor::cat(vec![tokens, padding], 1)
        };
        let ends = Tensor::cat(vec![row(1, 14), row(0, 3), row(1, 7)], 0);
        let ours = model.hidden_after(ends, &mut cache);
        assert_eq!(cache.len(), 24);
        for (at, row, length) in [(0, 1, 14), (1, 0, 3), (2, 1, 7)] {
            let ours = ours.clone().narrow(0, at, 1).narrow(1, 0, length);
            let expected = whole.clone().narrow(0, row, 1).narrow(1, 10, length);
            let diff = max_diff(&host(ours), &host(expected));
            assert!(diff < 1e-5, "{name}: row {at} differs by {diff}");
        }
    }
}

#[test]
fn padding_on_the_right_changes_no_earlier_token() {
    let directory = fixture("mistral");
    let golden = directory.join("golden.safetensors");
    let device = Device::flex();
    let (model, _) = load(&directory, Dtype::F32, &device).unwrap();
    let input = ids(&golden, "input_ids", &device);
    let short = model.forward(input.clone().narrow(1, 0, 10));
    let long = model.forward(input).narrow(1, 0, 10);
    assert!(max_diff(&host(short), &host(long)) < 1e-5);
}

#[test]
fn generation_stops_after_any_stop_id_and_when_told() {
    let directory = fixture("llama");
    let golden = directory.join("golden.safetensors");
    let (model, _) = load(&directory, Dtype::F32, &Device::flex()).unwrap();
    let prompt = tokens(&golden, "prompt_ids");
    let expected = tokens(&golden, "greedy_ids");
    let first_repeat = expected.iter().position(|&id| id == expected[3]).unwrap();
    let stop = [999, expected[3]];
    let ours = generate(&model, &prompt, 16, &Sampling::default(), &stop, |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(ours, expected[..=first_repeat]);

    let mut seen = 0;
    let ours = generate(&model, &prompt, 16, &Sampling::default(), &[], |_| {
        seen += 1;
        if seen == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(ours.unwrap(), expected[..2]);
}

#[test]
fn sampling_repeats_with_its_seed_and_changes_without() {
    let directory = fixture("llama");
    let (model, _) = load(&directory, Dtype::F32, &Device::flex()).unwrap();
    let draw = |seed| {
        let sampling = Sampling {
            temperature: 2.0,
            seed,
            ..Sampling::default()
        };
        generate(&model, &[1, 5], 12, &sampling, &[], |_| {
            ControlFlow::Continue(())
        })
        .unwrap()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn what_is_saved_loads_with_the_same_logits_and_config() {
    for (name, dtype) in [
        ("llama-tied", Dtype::F32),
        ("qwen3", Dtype::F32),
        ("gemma", Dtype::F32),
        ("opt", Dtype::F32),
        ("opt-plain", Dtype::F32),
        ("llama-sharded-bf16", Dtype::Bf16),
        ("gemma2", Dtype::F32),
        ("gemma3-multimodal", Dtype::F32),
        ("phi3-longrope", Dtype::F32),
        ("smollm3", Dtype::F32),
        ("granite", Dtype::F32),
        ("olmo3", Dtype::F32),
        ("mistral3-multimodal", Dtype::F32),
        ("qwen3-moe", Dtype::F32),
        ("mixtral", Dtype::F32),
    ] {
        let directory = fixture(name);
        let golden = directory.join("golden.safetensors");
        let device = Device::flex();
        let (model, config) = load(&directory, Dtype::F32, &device).unwrap();
        let out = tempfile::tempdir().unwrap();
        let saved = out.path().join("saved");
        let companions = Companions::read(&directory).unwrap();
        save(&model, &config, dtype, Some(&companions), &saved).unwrap();
        let (again, config_again) = load(&saved, Dtype::F32, &device).unwrap();
        let input = ids(&golden, "input_ids", &device);
        assert_eq!(
            host(again.forward(input.clone())),
            host(model.forward(input)),
            "{name}"
        );
        assert_eq!(config_again.stored_dtype(), Some(dtype));
        assert_eq!(config_again.ropes, config.ropes);
    }
}
