//! A PEFT directory from the host.

use std::{collections::BTreeMap, path::Path};

use burn::module::Module;
use olora_files::write_atomically;
use olora_operations::Dtype;

use super::{
    CONFIG_FILE, Layer, PREFIX, PeftAdapter, TENSOR_FILE,
    read::{io, malformed},
    tensors::{self, Written},
};
use crate::{
    AdapterError,
    saved::Stored,
    target::{Kind, linear_paths},
};

/// The key under which the tensor file says which weights the adapter is for.
/// PEFT reads none but `format`.
pub(super) const FINGERPRINT: &str = "olora.base_fingerprint";
/// The key that [`PeftAdapter::base_packing`] has in the file's metadata.
pub(super) const PACKING: &str = "olora.base_packing";

/// The ends of the path of an embedding, and of a vocabulary projection.
pub(super) const EMBEDDING: &str = "embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// How an adapter is written.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// The number format of the factors.
    pub dtype: Dtype,
    /// The text of `README.md`, if one is wanted.
    pub card: Option<String>,
}

impl PeftAdapter {
    /// Writes the adapter to `directory`. Each file is written under a temporary
    /// name and renamed, the configuration last.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Io`] names the file; [`AdapterError::NotFinite`] and
    /// [`AdapterError::DoesNotFit`] the tensor whose values are no numbers, or not
    /// in the number format.
    pub fn write(&self, directory: &Path, options: &WriteOptions) -> Result<(), AdapterError> {
        self.ensure_sound()?;
        let mut tensors = Vec::new();
        let mut add = |name, shape, values, dtype| {
            tensors.push(Written {
                name,
                shape,
                values,
                dtype,
            });
        };
        let dtype = options.dtype;
        for (path, layer) in &self.layers {
            for (name, factor) in names(layer.kind).into_iter().zip([&layer.a, &layer.b]) {
                let name = format!("{PREFIX}{path}.{name}");
                add(
                    name,
                    factor.shape.as_slice(),
                    factor.values.as_slice(),
                    dtype,
                );
            }
            if let Some(magnitude) = &layer.magnitude {
                let name = format!("{PREFIX}{path}.lora_magnitude_vector");
                add(name, &magnitude.shape, &magnitude.values, dtype);
            }
        }
        for (path, (value, _)) in &self.saved {
            if self.is_base_weight(path) {
                // The base's own, which is not to be rounded, under the name that PEFT gives it.
                let (layer, name) = path.rsplit_once('.').unwrap_or((path, "weight"));
                let name = format!("{PREFIX}{layer}.base_layer.{name}");
                add(name, &value.shape, &value.values, Dtype::F32);
            } else {
                add(
                    format!("{PREFIX}{path}"),
                    &value.shape,
                    &value.values,
                    dtype,
                );
            }
        }
        if let Some(value) = self.tied_embedding()
            && !self.saved.keys().any(|path| path.ends_with(HEAD))
        {
            // PEFT 0.21 looks for both ends of what it ties.
            add(
                format!("{PREFIX}{HEAD}"),
                &value.shape,
                &value.values,
                dtype,
            );
        }
        let json = serde_json::to_string_pretty(&self.to_json())
            .map_err(|error| malformed(&directory.join(CONFIG_FILE), "JSON value", &error))?;

        let path = directory.join(TENSOR_FILE);
        let notes = [
            (FINGERPRINT, &self.base_fingerprint),
            (PACKING, &self.base_packing),
        ];
        tensors::write(&path, tensors, &notes)?;
        if let Some(card) = &options.card {
            write_file(&directory.join("README.md"), card.as_bytes())?;
        }
        write_file(&directory.join(CONFIG_FILE), json.as_bytes())
    }
}

impl PeftAdapter {
    /// An embedding that trains whole, and is the vocabulary projection too.
    pub(super) fn tied_embedding(&self) -> Option<&Stored> {
        let mut saved = self.saved.iter();
        let (_, (value, _)) = saved.find(|(path, (_, trained))| {
            self.ties_weights && *trained && path.ends_with(EMBEDDING)
        })?;
        Some(value)
    }
}

/// What a layer's factors are called.
pub(super) fn names(kind: Kind) -> [&'static str; 2] {
    match kind {
        Kind::Linear => ["lora_A.weight", "lora_B.weight"],
        Kind::Embedding => ["lora_embedding_A", "lora_embedding_B"],
    }
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    write_atomically(path, |file| file.write_all(bytes))
        .map_err(|source| io("writing", path, source))
}

/// The shortest list of names that PEFT resolves to exactly these layers: last
/// names if no layer of the model outside the adapter shares one, else paths.
pub(super) fn target_names<M: Module>(layers: &BTreeMap<String, Layer>, module: &M) -> Vec<String> {
    let mut names: Vec<String> = layers
        .keys()
        .map(|path| last_name(path).to_owned())
        .collect();
    names.sort();
    names.dedup();
    let ambiguous = linear_paths(module).iter().any(|(path, _)| {
        !layers.contains_key(path) && names.iter().any(|name| name == last_name(path))
    });
    if ambiguous {
        layers.keys().cloned().collect()
    } else {
        names
    }
}

/// The values that differ from the rest, by last name where all layers of that
/// name have the same, else by path.
pub(super) fn pattern<'a, T: PartialEq + Copy>(
    layers: &(impl Iterator<Item = (&'a String, T)> + Clone),
    differs: impl Fn(&T) -> bool,
) -> BTreeMap<String, T> {
    let mut pattern = BTreeMap::new();
    for (path, value) in layers.clone().filter(|(_, value)| differs(value)) {
        let name = last_name(path);
        let mut namesakes = layers.clone().filter(|(other, _)| last_name(other) == name);
        if namesakes.all(|(_, other)| other == value) {
            pattern.insert(name.to_owned(), value);
        } else {
            pattern.insert(path.clone(), value);
        }
    }
    pattern
}

fn last_name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}
