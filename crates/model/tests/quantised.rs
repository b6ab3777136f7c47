//! Checkpoints whose matrices are packed, by bitsandbytes, mlx, GPTQ and AWQ
//! (`fixtures/make_quantised.py`), and what is wrong with damaged ones.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use burn::tensor::Device;
use common::{fixture, floats, host, ids, max_diff};
use olora_model::{Dtype, ModelConfig, load, save};
use safetensors::{Dtype as Stored, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

const DOWN: &str = "model.layers.0.mlp.down_proj";
const STATE: &str = "model.layers.0.mlp.down_proj.weight.quant_state.bitsandbytes__nf4";

fn quantised(name: &str) -> PathBuf {
    fixture("quantised").join(name)
}

fn difference(from: &std::path::Path, golden: &str) -> f32 {
    let device = Device::flex();
    let golden = quantised(golden).join("golden.safetensors");
    let (model, _) = load(from, Dtype::F32, &device).unwrap();
    let logits = host(model.forward(ids(&golden, "input_ids", &device)));
    max_diff(&logits, &floats(&golden, "logits").1)
}

#[test]
fn they_compute_what_transformers_does_with_the_same_values() {
    for name in ["bnb-nf4-double", "bnb-nf4", "mlx-4", "mlx-8", "gptq", "awq"] {
        let difference = difference(&quantised(name), name);
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

#[test]
fn what_is_saved_of_them_is_dense_and_says_so() {
    let (model, config) = load(&quantised("mlx-4"), Dtype::F32, &Device::flex()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("saved");
    save(&model, &config, Dtype::F32, None, &out).unwrap();
    let config = ModelConfig::from_dir(&out).unwrap();
    assert!(!config.json().contains_key("quantization"));
    assert!(!config.json().contains_key("quantization_config"));
    assert!(difference(&out, "mlx-4") < 1e-4);
}

/// A tensor: type, shape, bytes.
type Tensor = (Stored, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Tensor>;

fn tensors(name: &str) -> Tensors {
    let bytes = fs::read(quantised(name).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    let all = file.tensors().into_iter();
    all.map(|(name, view)| (name, owned(view))).collect()
}

/// A fixture with other tensors and configuration.
fn changed(name: &str, change: impl FnOnce(&mut Tensors, &mut Value)) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = tensors(name);
    let config = fs::read(quantised(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    change(&mut tensors, &mut config);
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    let path = directory.path().join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    directory
}

/// That a changed fixture is refused with all of these words.
#[track_caller]
fn assert_refused(name: &str, words: &[&str], change: impl FnOnce(&mut Tensors, &mut Value)) {
    let directory = changed(name, change);
    let error = load(directory.path(), Dtype::F32, &Device::flex())
        .map(|_| ())
        .unwrap_err()
        .to_string();
    for word in words {
        assert!(error.contains(word), "{word} in {error}");
    }
}

/// Sets a key of the JSON beside a matrix of bitsandbytes'.
fn set(tensors: &mut Tensors, key: &str, value: Value) {
    let (_, shape, bytes) = tensors.get_mut(STATE).unwrap();
    let mut state: Value = serde_json::from_slice(bytes).unwrap();
    state[key] = value;
    *bytes = state.to_string().into_bytes();
    *shape = vec![bytes.len()];
}

/// Without the last of what a tensor's first dimension counts.
fn shorten(tensors: &mut Tensors, name: &str) {
    let (_, shape, bytes) = tensors.get_mut(name).unwrap();
    let each = bytes.len() / shape[0];
    shape[0] -= 1;
    bytes.truncate(bytes.len() - each);
}

/// Every tensor beside a matrix's values, and what stands for the values.
fn parts() -> Vec<(&'static str, Vec<String>, String)> {
    let of = |parts: &[&str]| parts.iter().map(|part| format!("{DOWN}.{part}")).collect();
    let nested = of(&[
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        "weight.quant_state.bitsandbytes__nf4",
    ]);
    let weight = format!("{DOWN}.weight");
    let words = format!("{DOWN}.qweight");
    vec![
        ("bnb-nf4-double", nested, weight.clone()),
        ("mlx-8", of(&["scales", "biases"]), weight),
        ("gptq", of(&["scales", "qzeros"]), words.clone()),
        ("awq", of(&["scales", "qzeros"]), words),
    ]
}

#[test]
fn a_part_that_is_missing_is_named() {
    for (fixture, parts, values) in parts() {
        for part in parts {
            let words = [part.as_str(), values.as_str(), "Copy or make it again"];
            assert_refused(fixture, &words, |tensors, _| {
                tensors.remove(&part).unwrap();
            });
        }
    }
}

#[test]
fn values_that_are_missing_are_named() {
    for (fixture, _, values) in parts() {
        assert_refused(fixture, &[&values], |tensors, _| {
            tensors.remove(&values).unwrap();
        });
    }
}

#[test]
fn a_part_that_is_too_short_is_named() {
    for (fixture, parts, _) in parts() {
        for part in parts.iter().filter(|part| !part.contains("quant_state")) {
            assert_refused(fixture, &[part], |tensors, _| shorten(tensors, part));
        }
    }
}

#[test]
fn a_part_of_another_type_is_named_with_both() {
    for (fixture, parts, values) in parts() {
        for part in parts.iter().chain([&values]) {
            assert_refused(fixture, &[part, "has dtype", "expected"], |tensors, _| {
                let (dtype, shape, bytes) = tensors.get_mut(part).unwrap();
                *dtype = Stored::I8;
                *shape = vec![bytes.len()];
            });
        }
    }
}

#[test]
fn a_matrix_with_values_cut_off_is_refused() {
    for (fixture, _, values) in parts() {
        assert_refused(fixture, &[DOWN], |tensors, _| shorten(tensors, &values));
    }
}

#[test]
fn a_shape_that_lies_is_refused_before_anything_is_made_of_it() {
    for shape in [
        json!([1_u64 << 40, 1_u64 << 40]),
        json!([64, 128]),
        json!([0, 64]),
    ] {
        assert_refused("bnb-nf4-double", &[STATE, "bytes"], |tensors, _| {
            set(tensors, "shape", shape);
        });
    }
    assert_refused("bnb-nf4-double", &["no matrix"], |tensors, _| {
        set(tensors, "shape", json!([4096]));
    });
}

/// As many values, but not the model's.
#[test]
fn a_shape_that_is_not_the_models_is_misshapen() {
    let words = ["misshapen", DOWN, "[32, 128]", "[64, 64]"];
    assert_refused("bnb-nf4-double", &words, |tensors, _| {
        set(tensors, "shape", json!([32, 128]));
    });
}

#[test]
fn a_description_that_is_no_json_is_refused() {
    assert_refused("bnb-nf4-double", &[STATE], |tensors, _| {
        tensors.get_mut(STATE).unwrap().2[0] = 0xff;
    });
}

#[test]
fn another_kind_of_bitsandbytes_is_refused_by_name() {
    for (key, value) in [
        ("quant_type", json!("fp4")),
        ("blocksize", json!(128)),
        ("nested_blocksize", json!(512)),
        ("nested_dtype", json!("float16")),
    ] {
        assert_refused("bnb-nf4-double", &[key, "bf16"], |tensors, _| {
            set(tensors, key, value);
        });
    }
}

#[test]
fn fp4_and_eight_bits_are_refused_by_their_tensors() {
    assert_refused("bnb-nf4", &["FP4", DOWN], |tensors, _| {
        let state = tensors.remove(STATE).unwrap();
        tensors.insert(STATE.replace("nf4", "fp4"), state);
    });
    assert_refused("bnb-nf4", &["LLM.int8", DOWN], |tensors, _| {
        let scales = (Stored::F32, vec![1], vec![0; 4]);
        tensors.insert(format!("{DOWN}.SCB"), scales);
    });
}

#[test]
fn another_code_book_is_refused_with_the_entry() {
    for (part, entry) in [("quant_map", "entry 3"), ("nested_quant_map", "entry 3")] {
        let name = format!("{DOWN}.weight.{part}");
        assert_refused("bnb-nf4-double", &[entry, &name], |tensors, _| {
            let bytes = &mut tensors.get_mut(&name).unwrap().2;
            bytes[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
        });
    }
}

#[test]
fn a_scale_that_is_not_finite_is_refused_with_its_place() {
    let infinite = f32::INFINITY.to_le_bytes();
    let half = [0x00, 0x7c];
    for (fixture, part, bytes) in [
        (
            "bnb-nf4-double",
            "weight.nested_absmax",
            infinite.as_slice(),
        ),
        ("bnb-nf4", "weight.absmax", &infinite),
        ("mlx-8", "scales", &half),
        ("mlx-8", "biases", &half),
        ("gptq", "scales", &half),
        ("awq", "scales", &half),
    ] {
        let words = [DOWN, "model.safetensors", "inf", "column 0"];
        assert_refused(fixture, &words, |tensors, _| {
            let part = &mut tensors.get_mut(&format!("{DOWN}.{part}")).unwrap().2;
            part[..bytes.len()].copy_from_slice(bytes);
        });
    }
}

#[test]
fn groups_in_another_order_are_refused() {
    let words = ["g_idx", "input 1", "desc_act"];
    assert_refused("gptq", &words, |tensors, _| {
        let order = &mut tensors.get_mut(&format!("{DOWN}.g_idx")).unwrap().2;
        order[4] = 1;
    });
}

#[test]
fn act_order_that_reorders_nothing_is_read() {
    let directory = changed("gptq", |_, config| {
        config["quantization_config"]["desc_act"] = json!(true);
    });
    assert!(difference(directory.path(), "gptq") < 1e-4);
}

#[test]
fn a_layer_that_is_there_twice_is_refused() {
    for fixture in ["gptq", "awq"] {
        assert_refused(fixture, &["twice", DOWN], |tensors, _| {
            let dense = (Stored::F16, vec![128, 128], vec![0; 128 * 128 * 2]);
            tensors.insert(format!("{DOWN}.weight"), dense);
        });
    }
}

#[test]
fn a_bias_that_is_not_zero_is_not_passed_over() {
    let name = format!("{DOWN}.bias");
    assert_refused("gptq", &["unused", &name], |tensors, _| {
        tensors.get_mut(&name).unwrap().2[1] = 0x3c;
    });
}

#[test]
fn bits_that_do_not_fit_the_tensors_are_refused() {
    assert_refused("mlx-4", &["8 words", "64 values of 8 bits"], |_, config| {
        config["quantization"]["bits"] = json!(8);
        config["quantization_config"]["bits"] = json!(8);
    });
}

#[test]
fn a_layer_that_is_packed_against_the_configuration_is_refused() {
    assert_refused("mlx-4", &["lm_head", "false"], |_, config| {
        for section in ["quantization", "quantization_config"] {
            config[section]["lm_head"] = json!(false);
        }
    });
}

#[test]
fn a_layer_that_is_dense_against_the_configuration_is_refused() {
    let scales = format!("{DOWN}.scales");
    assert_refused("mlx-4", &[&scales], |_, config| {
        for section in ["quantization", "quantization_config"] {
            config[section][DOWN] = json!({"group_size": 64, "bits": 4});
        }
    });
}

#[test]
fn packed_weights_of_which_the_configuration_says_nothing_are_refused() {
    for fixture in ["bnb-nf4", "mlx-4", "gptq", "awq"] {
        let words = ["config.json", "quantization_config", "copy"];
        assert_refused(fixture, &words, |_, config| {
            let config = config.as_object_mut().unwrap();
            config.remove("quantization");
            config.remove("quantization_config");
        });
    }
}

#[test]
fn packed_weights_in_pytorchs_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for (from, name) in [
        (fixture("pytorch/zip"), "pytorch_model.bin"),
        (quantised("gptq"), "config.json"),
    ] {
        fs::copy(from.join(name), directory.path().join(name)).unwrap();
    }
    let error = load(directory.path(), Dtype::F32, &Device::flex());
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("safetensors and in GGUF"), "{error}");
}

#[test]
fn dense_weights_that_are_said_to_be_packed_are_refused() {
    for fixture in ["bnb-nf4", "mlx-8", "gptq", "awq"] {
        let words = ["config.json", "quantization_config", "none is", "remove"];
        assert_refused(fixture, &words, |tensors, _| {
            let dense = changed_to_dense(tensors.keys());
            *tensors = dense;
        });
    }
}

/// A weight in f32 for each layer of these tensors.
fn changed_to_dense<'a>(names: impl Iterator<Item = &'a String>) -> Tensors {
    let layers = names.map(|name| {
        let end = name.find(".weight").or_else(|| name.rfind('.'));
        format!("{}.weight", &name[..end.unwrap()])
    });
    let layers: BTreeSet<String> = layers.collect();
    layers
        .into_iter()
        .map(|name| (name, (Stored::F32, vec![1], vec![0; 4])))
        .collect()
}

#[test]
fn weights_in_8_bits_that_nothing_describes_are_named_by_their_format() {
    for dtype in [Stored::I8, Stored::F8_E4M3, Stored::F8_E5M2] {
        let words = [
            "down_proj.weight",
            "in 8 bits",
            &format!("{dtype:?}"),
            "original",
        ];
        assert_refused("bnb-nf4", &words, |tensors, config| {
            config
                .as_object_mut()
                .unwrap()
                .remove("quantization_config");
            *tensors = changed_to_dense([format!("{DOWN}.weight")].iter());
            let (stored, _, bytes) = tensors.values_mut().next().unwrap();
            *stored = dtype;
            bytes.truncate(1);
            let scale = (Stored::F32, vec![1], vec![0; 4]);
            tensors.insert(format!("{DOWN}.weight_scale"), scale);
        });
    }
}

#[test]
fn tensors_of_gptq_and_awq_need_the_name_of_their_maker() {
    for fixture in ["gptq", "awq"] {
        let words = ["config.json", "quant_method", "qweight"];
        assert_refused(fixture, &words, |_, config| {
            let section = config["quantization_config"].as_object_mut().unwrap();
            section.remove("quant_method");
        });
    }
}
