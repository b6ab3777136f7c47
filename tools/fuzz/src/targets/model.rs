//! Configurations, weights and adapters.

use std::path::Path;

use olora_adapter::{Combination, PeftAdapter, WriteOptions, params};
use olora_devices::find;
use olora_model::{Dtype, Llama, ModelConfig, load, save, weight_files, weights_fingerprint};

use crate::{
    SEPARATOR,
    parts::{put, scratch, split, twice, twice_in_any_words},
    village::{CONFIG, model},
};

/// Parts: `config.json` and `generation_config.json`.
pub fn config(data: &[u8]) {
    let directory = scratch();
    let parts = split(data);
    put(directory.path(), "config.json", parts[0]);
    if let Some(generation) = parts.get(1) {
        put(directory.path(), "generation_config.json", generation);
    }
    let read = twice(
        "a configuration",
        || ModelConfig::from_dir(directory.path()),
        |one, other| one.json() == other.json() && one.eos_token_ids == other.eos_token_ids,
    );
    let Ok(config) = read else { return };
    let again = ModelConfig::from_json(config.json().clone(), directory.path())
        .expect("it was read before");
    assert_eq!(again.vocab_size, config.vocab_size);
    let _ = (
        config.stored_dtype(),
        config.check_generation(usize::MAX, usize::MAX),
    );
    // As `inspect model` and `plan` do; nothing is to be in memory for that.
    let device = find("cpu").expect("it is compiled in");
    let llama = config.init(&device);
    let _ = params(&llama)
        .iter()
        .map(params::Parameter::num_elements)
        .fold(0, usize::saturating_add);
    let _ = params(&config.miniature().init(&device));
}

/// Parts: a safetensors file; or an index, and the files `a`, `b` and so on that
/// it names.
pub fn safetensors(data: &[u8]) {
    let directory = scratch();
    put(directory.path(), "config.json", CONFIG.as_bytes());
    let parts = split(data);
    if let [index, shards @ ..] = parts.as_slice()
        && !shards.is_empty()
    {
        put(directory.path(), "model.safetensors.index.json", index);
        for (name, shard) in ["a", "b", "c", "d"].into_iter().zip(shards) {
            put(directory.path(), &format!("{name}.safetensors"), shard);
        }
    } else {
        put(directory.path(), "model.safetensors", data);
    }
    weights(directory.path());
}

/// Parts: `config.json` and a safetensors file of packed weights.
pub fn packed(data: &[u8]) {
    let directory = scratch();
    if let [config, weights @ ..] = split(data).as_slice() {
        put(directory.path(), "config.json", config);
        put(
            directory.path(),
            "model.safetensors",
            &weights.join(SEPARATOR),
        );
    }
    weights(directory.path());
}

/// A `pytorch_model.bin`: an archive if the input is one, and otherwise as a
/// file of before PyTorch 1.6, and as the pickle within an archive.
pub fn pytorch(data: &[u8]) {
    let directory = scratch();
    put(directory.path(), "config.json", CONFIG.as_bytes());
    put(directory.path(), "pytorch_model.bin", data);
    weights(directory.path());
    if !data.starts_with(b"PK") {
        let storage = [0; 2048];
        let archive = zip(&[
            ("archive/data.pkl", data),
            ("archive/data/0", &storage),
            ("archive/version", b"3\n"),
        ]);
        put(directory.path(), "pytorch_model.bin", &archive);
        weights(directory.path());
    }
}

fn weights(directory: &Path) {
    let device = find("cpu").expect("it is compiled in");
    let _ = weight_files(directory);
    let _ = weights_fingerprint(directory);
    let read = twice_in_any_words(
        "a checkpoint",
        || load(directory, Dtype::F32, &device),
        |one, other| values(&one.0) == values(&other.0),
    );
    let Ok((model, config)) = read else { return };
    let written = directory.join("written");
    // Weights that are not finite need not be written.
    if save(&model, &config, Dtype::F32, None, &written).is_ok() {
        let again = load(&written, Dtype::F32, &device).expect("what was written can be read");
        assert_eq!(
            values(&model),
            values(&again.0),
            "weights are others when they are written and read"
        );
    }
}

fn values(model: &Llama) -> Vec<(String, Vec<u8>)> {
    let all = params(model);
    let all = all.iter().map(|param| {
        let data = param.data().expect("weights on the CPU");
        (param.path().to_owned(), data.bytes().to_vec())
    });
    all.collect()
}

/// Parts: `adapter_config.json` and `adapter_model.safetensors`, or mlx-lm's
/// `adapters.safetensors`.
pub fn adapter(data: &[u8]) {
    let directory = scratch();
    let parts = split(data);
    let here = directory.path().join("adapter");
    put(&here, "adapter_config.json", parts[0]);
    for name in ["adapter_model.safetensors", "adapters.safetensors"] {
        put(&here, name, parts.get(1).copied().unwrap_or_default());
    }
    let read = twice_in_any_words("an adapter", || PeftAdapter::read(&here), alike);
    let Ok(adapter) = read else { return };
    let _ = (
        adapter.num_params(),
        adapter.is_idle(),
        adapter.plain_layers("a test").is_ok(),
    );
    for (path, a, b) in adapter.shapes() {
        let n: usize = a.iter().chain(&b).product();
        assert!(
            n <= data.len() * data.len(),
            "{path} is larger than its file"
        );
    }
    let written = directory.path().join("written");
    if adapter.write(&written, &WriteOptions::default()).is_ok() {
        let again = PeftAdapter::read(&written).expect("what was written can be read");
        assert!(
            alike(&adapter, &again),
            "an adapter is another when it is written and read"
        );
    }
    let for_mlx = directory.path().join("mlx");
    if adapter
        .write_mlx(&for_mlx, &WriteOptions::default())
        .is_ok()
    {
        PeftAdapter::read(&for_mlx).expect("what was written can be read");
    }
    let _ = adapter.clone().reduced(1);
    for combination in [Combination::Cat, Combination::Linear] {
        let _ = PeftAdapter::combined(
            vec![(adapter.clone(), 0.5), (adapter.clone(), 1e300)],
            combination,
        );
    }
    let base = directory.path().join("base");
    model(&base);
    let device = find("cpu").expect("it is compiled in");
    let (model, _) = load(&base, Dtype::F32, &device).expect("our own");
    if let Ok((model, _)) = model.adapted(adapter) {
        let _ = olora_adapter::has_moved(&model);
        let _ = olora_adapter::merge(model);
    }
}

fn alike(one: &PeftAdapter, other: &PeftAdapter) -> bool {
    one.shapes() == other.shapes()
        && one.num_params() == other.num_params()
        && one.is_idle() == other.is_idle()
        && one.base == other.base
}

/// An archive without compression, with right checksums.
pub(crate) fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let at = out.len() as u32;
        let mut about = Vec::new();
        // Version, flags, method, time and date.
        for word in [20_u16, 0, 0, 0, 33] {
            about.extend(word.to_le_bytes());
        }
        for word in [crc.sum(), bytes.len() as u32, bytes.len() as u32] {
            about.extend(word.to_le_bytes());
        }
        about.extend((name.len() as u16).to_le_bytes());
        about.extend(0_u16.to_le_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&about);
        out.extend(name.as_bytes());
        out.extend(*bytes);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&about);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (at, length, n) = (out.len() as u32, directory.len() as u32, files.len() as u16);
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    for count in [n, n] {
        out.extend(count.to_le_bytes());
    }
    out.extend(length.to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend([0; 2]);
    out
}
