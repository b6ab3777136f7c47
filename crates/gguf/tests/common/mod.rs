//! What the tests of this crate share.

#![allow(dead_code, reason = "not every test uses everything")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use safetensors::SafeTensors;
use serde_json::{Map, Value};

/// A file or folder of `fixtures/`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

/// Shape and values.
pub(crate) type Tensor = (Vec<usize>, Vec<f32>);

/// The tensors of a `.safetensors` file of `f32`.
pub(crate) fn safetensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = fs::read(path).expect("the fixture is there");
    let file = SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let (chunks, _) = view.data().as_chunks();
            let values = chunks.iter().map(|&bytes| f32::from_le_bytes(bytes));
            (name, (view.shape().to_vec(), values.collect()))
        })
        .collect()
}

/// The object in a JSON file.
pub(crate) fn json(path: &Path) -> Map<String, Value> {
    let bytes = fs::read(path).expect("the fixture is there");
    serde_json::from_slice(&bytes).expect("the fixture is an object")
}

/// Where files stay for `check_gguf.py`.
pub(crate) fn kept(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gguf");
    fs::create_dir_all(&directory).unwrap();
    directory.join(name)
}
