//! Packed matrices of files by other programs, and packing while reading.
//! `fixtures/quantised` is made by `fixtures/make_quantised.py`.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use olora_packed::{BlockFormat, Format, Packed};
use safetensors::{Dtype as Stored, tensor::TensorView};
use serde::Deserialize;

use super::{Dtype, source::Source};
use crate::{ModelError, Quantize};

const FIXTURES: [&str; 6] = ["bnb-nf4-double", "bnb-nf4", "mlx-4", "mlx-8", "gptq", "awq"];
const FORMATS: [Format; 6] = [
    Format::Nf4,
    Format::Nf4Double,
    Format::Blocks(BlockFormat::Q8_0),
    Format::Blocks(BlockFormat::Q4_0),
    Format::Blocks(BlockFormat::Q4K),
    Format::Blocks(BlockFormat::Q6K),
];

#[derive(Deserialize)]
struct Expected {
    shape: [usize; 2],
    crc32: u32,
    begin: [f32; 4],
}

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    fixtures.join(name)
}

/// The source of one of [`FIXTURES`], and what its matrices hold.
fn quantised(name: &str) -> (Source, BTreeMap<String, Expected>) {
    let directory = fixture("quantised").join(name);
    let expected = fs::read(directory.join("expected.json")).unwrap();
    (
        Source::open(&directory).unwrap(),
        serde_json::from_slice(&expected).unwrap(),
    )
}

/// `zlib.crc32`.
fn crc(bytes: &[u8]) -> u32 {
    let table: [u32; 256] = std::array::from_fn(|i| {
        (0..8).fold(i as u32, |value, _| {
            value >> 1 ^ if value & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    });
    !bytes.iter().fold(!0, |sum: u32, byte| {
        sum >> 8 ^ table[((sum ^ u32::from(*byte)) & 255) as usize]
    })
}

fn values(packed: &Packed) -> Vec<f32> {
    let [rows, columns] = packed.shape();
    let mut values = vec![0.0; rows * columns];
    packed
        .unpack(0..rows, 0..columns, &mut values, columns)
        .unwrap();
    values
}

fn read(source: &Source, name: &str) -> Vec<f32> {
    let shape = source.shape(name).unwrap().to_vec();
    let data = source.read(name, &shape, false, Dtype::F32).unwrap();
    data.try_into_vec().unwrap()
}

/// Format, shape and every bit of what they are.
fn assert_same(left: &Packed, right: &Packed, of: &str) {
    assert_eq!(
        (left.shape(), left.format()),
        (right.shape(), right.format()),
        "{of}"
    );
    if let Some((_, left)) = left.as_blocks() {
        assert!(left == right.as_blocks().unwrap().1, "{of}");
    }
    let bits = |packed: &Packed| {
        values(packed)
            .into_iter()
            .map(f32::to_bits)
            .collect::<Vec<_>>()
    };
    assert!(bits(left) == bits(right), "{of}");
}

#[test]
fn packed_matrices_unpack_to_what_their_makers_read() {
    let mut across_rows = 0;
    for name in FIXTURES {
        let (source, expected) = quantised(name);
        for (tensor, expected) in expected {
            assert_eq!(source.shape(&tensor), Some(expected.shape.as_slice()));
            let Some(packed) = source.packed(&tensor).unwrap() else {
                // 96 values a row are no multiple of a block's 64.
                assert_eq!((name, expected.shape[1]), ("bnb-nf4", 96), "{tensor}");
                across_rows += 1;
                continue;
            };
            assert_eq!(packed.shape(), expected.shape, "{name} {tensor}");
            assert_eq!(
                source.format(&tensor),
                Some(packed.format()),
                "{name} {tensor}"
            );
            let values = values(&packed);
            assert_eq!(values[..4], expected.begin, "{name} {tensor}");
            let sum = crc(bytemuck::cast_slice(&values));
            assert_eq!(sum, expected.crc32, "{name} {tensor}");
        }
    }
    assert_eq!(across_rows, 1);
}

#[test]
fn reading_a_packed_matrix_gives_its_values() {
    for name in FIXTURES {
        let (source, expected) = quantised(name);
        for (tensor, expected) in expected {
            let sum = crc(bytemuck::cast_slice(&read(&source, &tensor)));
            assert_eq!(sum, expected.crc32, "{name} {tensor}");
        }
    }
}

#[test]
fn a_packed_matrix_is_read_the_other_way_around_too() {
    let (source, _) = quantised("awq");
    let name = "model.layers.0.self_attn.k_proj.weight";
    let straight = read(&source, name);
    let turned = source.read(name, &[128, 64], true, Dtype::F32).unwrap();
    let turned: Vec<f32> = turned.try_into_vec().unwrap();
    assert_eq!(turned[5 * 64 + 3], straight[3 * 128 + 5]);
}

#[test]
fn what_belongs_to_packed_matrices_has_no_name() {
    for name in FIXTURES {
        let (source, expected) = quantised(name);
        let names: Vec<&str> = source.names().collect();
        for tensor in expected.keys() {
            assert_eq!(names.iter().filter(|name| *name == tensor).count(), 1);
        }
        for tensor in names {
            let idle = source.is_idle(tensor);
            let weight = tensor.ends_with(".weight");
            assert!(weight || idle && name == "gptq", "{name}: {tensor}");
        }
    }
}

#[test]
fn dense_tensors_are_not_packed() {
    for (name, tensor) in [
        ("bnb-nf4", "model.embed_tokens.weight"),
        ("bnb-nf4", "model.norm.weight"),
        // Its configuration says so.
        ("mlx-4", "model.layers.0.mlp.down_proj.weight"),
    ] {
        let (source, _) = quantised(name);
        assert!(source.packed(tensor).unwrap().is_none(), "{tensor}");
        assert_eq!(source.format(tensor), None, "{tensor}");
    }
    let (source, _) = quantised("mlx-8");
    assert!(
        source
            .packed("model.embed_tokens.weight")
            .unwrap()
            .is_some()
    );
}

/// A safetensors file with one matrix `w`, of `f32`.
fn checkpoint([rows, columns]: [usize; 2], values: &[f32]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let bytes = bytemuck::cast_slice(values);
    let view = TensorView::new(Stored::F32, vec![rows, columns], bytes).unwrap();
    let path = directory.path().join("model.safetensors");
    safetensors::serialize_to_file([("w", view)], None, &path).unwrap();
    directory
}

fn wave(count: usize) -> Vec<f32> {
    let wave = |i: usize| (i as f32 * 0.37).sin() * 0.1 + (i % 13) as f32 * 0.003;
    (0..count).map(wave).collect()
}

#[test]
fn packing_by_parts_is_packing_the_whole() {
    // Several parts, the last of them smaller.
    let shape = [300, 512];
    let values = wave(300 * 512);
    let directory = checkpoint(shape, &values);
    let source = Source::open(directory.path()).unwrap();
    for format in FORMATS {
        let packed = source.packed_as("w", format).unwrap().unwrap();
        let whole = Packed::pack(format, shape, &values).unwrap();
        assert_same(&packed, &whole, &format.to_string());
    }
}

#[test]
fn every_kind_of_file_is_packed_as_its_values_are() {
    let of_pickle = (fixture("pytorch/zip"), "model.embed_tokens.weight");
    let bf16 = (
        fixture("llama-sharded-bf16"),
        "model.layers.1.self_attn.q_proj.weight",
    );
    // Rows interleaved, in the file.
    let gguf = (
        fixture("gguf/llama-llama3.gguf"),
        "model.layers.0.self_attn.k_proj.weight",
    );
    for (path, name) in [of_pickle, bf16, gguf] {
        let source = Source::open(&path).unwrap();
        let &[rows, columns] = source.shape(name).unwrap() else {
            panic!("{name}");
        };
        let format = Format::Blocks(BlockFormat::Q4_0);
        let packed = source.packed_as(name, format).unwrap();
        if columns % 32 > 0 {
            assert!(packed.is_none(), "{name}");
            continue;
        }
        let whole = Packed::pack(format, [rows, columns], &read(&source, name)).unwrap();
        assert_same(&packed.unwrap(), &whole, &path.display().to_string());
    }
}

#[test]
fn what_is_packed_is_packed_anew_from_its_values() {
    for fixture in FIXTURES {
        let (source, expected) = quantised(fixture);
        for (name, Expected { shape, .. }) in expected {
            for format in [Format::Blocks(BlockFormat::Q8_0), Format::Nf4Double] {
                let packed = source.packed_as(&name, format).unwrap();
                if source.format(&name) == Some(format) {
                    assert_same(
                        &packed.unwrap(),
                        &source.packed(&name).unwrap().unwrap(),
                        &name,
                    );
                } else if shape[1].is_multiple_of(format.block_values()) {
                    let whole = Packed::pack(format, shape, &read(&source, &name)).unwrap();
                    assert_same(&packed.unwrap(), &whole, &name);
                } else {
                    assert!(packed.is_none(), "{name} {format}");
                }
            }
        }
    }
}

#[test]
fn rows_that_do_not_divide_into_blocks_stay_dense() {
    let directory = checkpoint([4, 96], &wave(4 * 96));
    let source = Source::open(directory.path()).unwrap();
    let packs = |quantize: Quantize| source.packed_as("w", quantize.format()).unwrap().is_some();
    assert_eq!(Quantize::ALL.map(packs), [false, true, true, false]);
}

#[test]
fn a_value_that_is_not_finite_is_found_in_its_row() {
    let mut values = wave(300 * 512);
    values[200 * 512 + 7] = f32::NAN;
    let directory = checkpoint([300, 512], &values);
    let source = Source::open(directory.path()).unwrap();
    for format in FORMATS {
        match source.packed_as("w", format) {
            Err(ModelError::NotFiniteWeight { tensor, at, n, .. }) => {
                assert_eq!((tensor.as_str(), at, n), ("w", vec![200, 7], 1));
            }
            other => panic!("{format}: {other:?}"),
        }
    }
}

#[test]
fn a_value_beyond_the_scales_is_named_with_its_place() {
    let mut values = wave(300 * 512);
    values[200 * 512 + 7] = 1e8;
    let directory = checkpoint([300, 512], &values);
    let source = Source::open(directory.path()).unwrap();
    let error = source
        .packed_as("w", Quantize::Q8_0.format())
        .unwrap_err()
        .to_string();
    let place = (200 * 512 + 7).to_string();
    for part in ["`w`", "model.safetensors", &place, "Q8_0"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_matrix_that_is_not_there_is_missing() {
    let (source, _) = quantised("gptq");
    // A part of a matrix is no weight.
    for name in ["w", "model.layers.0.mlp.up_proj.qzeros"] {
        let missing = |error| matches!(error, ModelError::Missing { .. });
        assert!(missing(source.packed(name).unwrap_err()), "{name}");
        let error = source.packed_as(name, Format::Nf4).unwrap_err();
        assert!(missing(error), "{name}");
    }
}

/// Times and memory of a real checkpoint: directory or file in `OLORA_CHECKPOINT`.
#[test]
#[ignore = "needs a checkpoint, named by OLORA_CHECKPOINT"]
#[allow(clippy::print_stdout, reason = "it is for its numbers")]
fn a_real_checkpoint_is_packed() {
    let path = PathBuf::from(env::var("OLORA_CHECKPOINT").unwrap());
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key));
            line.unwrap_or_default().replace(['\t', ' '], "")
        };
        ["VmRSS", "VmHWM", "RssAnon", "RssFile"].map(line).join(" ")
    };
    let names = |source: &Source| {
        let matrix = |name: &&str| source.shape(name).is_some_and(|shape| shape.len() == 2);
        let names = source.names().filter(matrix).map(str::to_owned);
        names.collect::<Vec<String>>()
    };
    println!("before: {}", resident());
    let begin = Instant::now();
    let source = Source::open(&path).unwrap();
    let all = names(&source);
    let as_stored: Vec<_> = all
        .iter()
        .filter_map(|name| source.packed(name).unwrap())
        .collect();
    let bytes: usize = as_stored.iter().map(Packed::bytes).sum();
    println!(
        "as stored: {} of {} matrices packed, {bytes} bytes, {:?}, {}",
        as_stored.len(),
        all.len(),
        begin.elapsed(),
        resident()
    );
    drop(as_stored);
    drop(source);
    for quantize in Quantize::ALL {
        let source = Source::open(&path).unwrap();
        let begin = Instant::now();
        let packed: Vec<_> = all
            .iter()
            .filter_map(|name| source.packed_as(name, quantize.format()).unwrap())
            .collect();
        let bytes: usize = packed.iter().map(Packed::bytes).sum();
        println!(
            "{quantize}: {} of {} matrices, {bytes} bytes, {:?}, {}",
            packed.len(),
            all.len(),
            begin.elapsed(),
            resident()
        );
    }
}
