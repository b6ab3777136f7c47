//! What Python's `gguf`, llama.cpp, bitsandbytes and mlx make of the same numbers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{collections::BTreeMap, fs, path::Path};

use olora_packed::{
    Affine, BlockFormat, Bytes, Format, GptqZeros, NestedScales, Packed, ScaleType,
    TransposedParts, dynamic_code, pack_blocks,
};

type Golden = BTreeMap<String, Vec<u8>>;

fn golden() -> (Golden, serde_json::Value) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/packed");
    let bytes = fs::read(directory.join("golden.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    let tensors = tensors.map(|(name, view)| (name, view.data().to_vec()));
    let sums = fs::read(directory.join("sums.json")).unwrap();
    (tensors.collect(), serde_json::from_slice(&sums).unwrap())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks().0.iter();
    chunks.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// That values are the same to the bit; a NaN is no NaN here.
#[track_caller]
fn assert_bits(ours: &[f32], right: &[f32], of: &str) {
    assert_eq!(ours.len(), right.len(), "{of}");
    let pairs = ours.iter().zip(right).enumerate();
    for (i, (ours, right)) in pairs {
        assert_eq!(
            ours.to_bits(),
            right.to_bits(),
            "{of}, {i}: {ours} for {right}"
        );
    }
}

fn unpacked(packed: &Packed) -> Vec<f32> {
    let [rows, columns] = packed.shape();
    let mut values = vec![0.0; rows * columns];
    packed
        .unpack(0..rows, 0..columns, &mut values, columns)
        .unwrap();
    values
}

/// `zlib.crc32`.
fn crc(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let table: [u32; 256] = std::array::from_fn(|i| {
        (0..8).fold(i as u32, |value, _| {
            value >> 1 ^ if value & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    });
    let sum = bytes.into_iter().fold(!0_u32, |sum, byte| {
        sum >> 8 ^ table[((sum ^ u32::from(byte)) & 255) as usize]
    });
    u64::from(!sum)
}

fn crc_of(values: &[f32]) -> u64 {
    crc(values.iter().flat_map(|value| value.to_le_bytes()))
}

/// `filler` of `make_packed.py`.
fn filler(i: usize, j: usize) -> u8 {
    (i * 31 + (i >> 8) * 7 + j * 97 + j * j % 251 + i * j % 241) as u8
}

/// `numbers` of `make_packed.py`.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut draw = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 48) as i64
    };
    (0..count)
        .map(|_| {
            let sum = draw() + draw() + draw() + draw() - 2 * 65_535;
            sum as f32 * 2.0_f32.powi(-20)
        })
        .collect()
}

/// The bit patterns of 16-bit scales that are finite.
fn finite(value: impl Fn(u16) -> f32) -> Vec<u16> {
    (0..=u16::MAX)
        .filter(|&bits| value(bits).is_finite())
        .collect()
}

fn half(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

fn brain(bits: u16) -> f32 {
    half::bf16::from_bits(bits).to_f32()
}

/// Where 16-bit scales stand in a block.
fn scales(format: BlockFormat) -> &'static [usize] {
    match format {
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
        BlockFormat::Q2K => &[80, 82],
        BlockFormat::Q3K => &[108],
        BlockFormat::Q6K => &[208],
        BlockFormat::Q8K => &[],
    }
}

fn of_gguf() -> impl Iterator<Item = BlockFormat> {
    // Python's package does not read Q8_K.
    let formats = BlockFormat::ALL.into_iter();
    formats.filter(|format| *format != BlockFormat::Q8K)
}

const MADE: [BlockFormat; 8] = [
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q5_0,
    BlockFormat::Q5_1,
    BlockFormat::Q8_0,
    BlockFormat::Q4K,
    BlockFormat::Q5K,
    BlockFormat::Q6K,
];

#[test]
fn blocks_with_hostile_scales_are_those_of_gguf() {
    let (golden, _) = golden();
    for format in of_gguf() {
        let bytes = golden[&format!("{format}.blocks")].clone();
        let right = floats(&golden[&format!("{format}.values")]);
        let shape = [2, right.len() / 2];
        let packed = Packed::from_blocks(format, shape, Bytes::from(bytes)).unwrap();
        assert_bits(&unpacked(&packed), &right, format.name());
    }
}

#[test]
fn blocks_with_every_finite_scale_are_those_of_gguf() {
    let (_, sums) = golden();
    let patterns = finite(half);
    for format in of_gguf() {
        let mut bytes = Vec::new();
        for i in 0..patterns.len() {
            let begin = bytes.len();
            bytes.extend((0..format.block_bytes()).map(|j| filler(i, j)));
            for (nth, at) in scales(format).iter().enumerate() {
                let pattern = match nth {
                    0 => patterns[i],
                    _ => patterns[(i * 40_503 + 77) % patterns.len()],
                };
                bytes[begin + at..][..2].copy_from_slice(&pattern.to_le_bytes());
            }
        }
        let shape = [patterns.len(), format.block_values()];
        let packed = Packed::from_blocks(format, shape, Bytes::from(bytes)).unwrap();
        let sum = crc_of(&unpacked(&packed));
        assert_eq!(Some(sum), sums[format.name()].as_u64(), "{format}");
    }
}

#[test]
fn scales_that_are_not_finite_are_refused_by_name() {
    for format in of_gguf() {
        for at in scales(format) {
            for pattern in [0x7c00_u16, 0xfc00, 0x7e00, 0x7c01, 0xffff] {
                let mut bytes = vec![0; 4 * format.block_bytes()];
                bytes[3 * format.block_bytes() + at..][..2].copy_from_slice(&pattern.to_le_bytes());
                let shape = [2, 2 * format.block_values()];
                let error = Packed::from_blocks(format, shape, Bytes::from(bytes)).unwrap_err();
                let place = format!("of block 3 (row 1, from column {})", format.block_values());
                assert!(error.to_string().contains(&place), "{error}");
            }
        }
    }
}

#[test]
fn what_is_cut_or_does_not_divide_is_refused() {
    let made = |shape, length| {
        Packed::from_blocks(BlockFormat::Q4K, shape, Bytes::from(vec![0; length]))
            .unwrap_err()
            .to_string()
    };
    assert!(
        made([2, 256], 287).contains("must be 288 long"),
        "{}",
        made([2, 256], 287)
    );
    assert!(made([2, 256], 289).contains("is 289 long"));
    let width = made([2, 320], 360);
    assert!(
        width.contains("rows of 320 values do not divide into Q4_K's blocks of 256"),
        "{width}"
    );
    let large = made([usize::MAX, 256], 144);
    assert!(large.contains("larger than memory can be"), "{large}");
}

#[test]
fn a_part_of_a_mapped_file_is_used_as_it_lies() {
    let mut file = vec![7_u8; 5];
    pack_blocks(BlockFormat::Q8_0, &numbers(64, 1), &mut file).unwrap();
    file.extend([7; 3]);
    let owner = std::sync::Arc::new(file);
    let part = Bytes::part(owner.clone(), 5..5 + 68).unwrap();
    let mapped = Packed::from_blocks(BlockFormat::Q8_0, [2, 32], part).unwrap();
    assert!(std::ptr::eq(
        &raw const owner[5],
        mapped.as_blocks().unwrap().1.as_ptr()
    ));
    let right = Packed::pack(BlockFormat::Q8_0, [2, 32], &numbers(64, 1)).unwrap();
    assert_eq!(unpacked(&mapped), unpacked(&right));
    assert!(Bytes::part(owner, 70..77).is_err());
}

#[test]
fn rows_in_another_order_are_the_same_rows() {
    let values = numbers(4 * 256, 12);
    let packed = Packed::pack(BlockFormat::Q6K, [4, 256], &values).unwrap();
    let sorted = packed.rearranged(|row| [2, 0, 3, 1][row]).unwrap();
    let (before, after) = (unpacked(&packed), unpacked(&sorted));
    for (row, source) in [2, 0, 3, 1].into_iter().enumerate() {
        assert_bits(
            &after[row * 256..][..256],
            &before[source * 256..][..256],
            "row",
        );
    }
    assert!(packed.rearranged(|row| row + 1).is_err());
    let nf4 = Packed::pack(Format::Nf4, [4, 256], &values).unwrap();
    let error = nf4.rearranged(|row| row).unwrap_err().to_string();
    assert!(error.contains("NF4"), "{error}");
}

#[test]
fn rows_that_are_packed_are_those_of_ggml() {
    let (golden, sums) = golden();
    let hard = floats(&golden["quantise.input"]);
    let many = numbers(1024 * 256, 4);
    for format in MADE {
        let packed = Packed::pack(format, [8, 256], &hard).unwrap();
        let right = &golden[&format!("quantise.{format}")];
        let size = right.len() / 8;
        let ours = packed.as_blocks().unwrap().1;
        for (row, (ours, right)) in ours.chunks(size).zip(right.chunks(size)).enumerate() {
            assert_eq!(ours, right, "{format}, row {row}");
        }
        let packed = Packed::pack(format, [1024, 256], &many).unwrap();
        let sum = crc(packed.as_blocks().unwrap().1.iter().copied());
        assert_eq!(
            Some(sum),
            sums[format!("quantise.{format}")].as_u64(),
            "{format}"
        );
    }
}

#[test]
fn what_a_format_does_not_hold_is_refused_with_its_place() {
    let mut values = numbers(512, 2);
    for (value, formats) in [
        (f32::NAN, &MADE[..]),
        (f32::NEG_INFINITY, &MADE[..]),
        (3e38, &MADE[..]),
    ] {
        values[300] = value;
        for format in formats {
            let error = Packed::pack(*format, [2, 256], &values).unwrap_err();
            let words = format!("value 300 is {value}, which {format} does not hold");
            assert!(error.to_string().contains(&words), "{error}");
        }
    }
    values[300] = f32::INFINITY;
    for format in [Format::Nf4, Format::Nf4Double] {
        let error = Packed::pack(format, [2, 256], &values).unwrap_err();
        assert!(error.to_string().contains("value 300 is inf"), "{error}");
    }
    for format in [BlockFormat::Q2K, BlockFormat::Q3K, BlockFormat::Q8K] {
        let error = Packed::pack(format, [2, 256], &values)
            .unwrap_err()
            .to_string();
        assert!(error.contains("can be read, not made"), "{error}");
    }
}

/// The input of `make_nf4`.
fn nf4_input() -> Vec<f32> {
    let mut values = numbers(96 * 256, 5);
    values[3 * 256..][..64].fill(0.0);
    values[4 * 256..][..64]
        .iter_mut()
        .for_each(|value| *value *= 2.0_f32.powi(-120));
    values[5 * 256 + 64..][..64]
        .iter_mut()
        .for_each(|value| *value *= 1024.0);
    values
}

fn nested(golden: &Golden) -> NestedScales {
    NestedScales {
        places: Bytes::from(golden["nf4_double.absmax"].clone()),
        code: floats(&golden["nf4_double.nested_code"])
            .try_into()
            .unwrap(),
        scales: floats(&golden["nf4_double.nested_absmax"]),
        offset: floats(&golden["nf4_double.offset"])[0],
    }
}

#[test]
fn nf4_is_read_as_by_bitsandbytes() {
    let (golden, sums) = golden();
    let quants = Bytes::from(golden["nf4.quants"].clone());
    let largest = Bytes::from(golden["nf4.absmax"].clone());
    let single = Packed::from_nf4([96, 256], quants.clone(), largest).unwrap();
    assert_eq!(Some(crc_of(&unpacked(&single))), sums["nf4"].as_u64());
    assert_eq!(single.bytes(), Format::Nf4.bytes([96, 256]).unwrap());

    let double = Packed::from_nf4_double([96, 256], quants, nested(&golden)).unwrap();
    let values = unpacked(&double);
    let right = floats(&golden["nf4_double.values"]);
    assert_bits(&values[2 * 256..6 * 256], &right, "NF4");
    assert_eq!(Some(crc_of(&values)), sums["nf4_double"].as_u64());
    assert_eq!(double.bytes(), Format::Nf4Double.bytes([96, 256]).unwrap());
}

#[test]
fn nf4_is_made_as_by_bitsandbytes() {
    let (golden, _) = golden();
    let values = nf4_input();
    let quants = Bytes::from(golden["nf4.quants"].clone());
    let largest = Bytes::from(golden["nf4.absmax"].clone());
    let right = Packed::from_nf4([96, 256], quants.clone(), largest).unwrap();
    let ours = Packed::pack(Format::Nf4, [96, 256], &values).unwrap();
    assert_bits(&unpacked(&ours), &unpacked(&right), "NF4");

    assert_bits(
        &*dynamic_code(),
        &floats(&golden["nf4_double.nested_code"]),
        "code",
    );
    // The mean of the largest values is one bit from PyTorch's; what follows from PyTorch's is
    // compared in `src/nf4.rs`.
    let right = Packed::from_nf4_double([96, 256], quants, nested(&golden)).unwrap();
    let ours = Packed::pack(Format::Nf4Double, [96, 256], &values).unwrap();
    for (ours, right) in unpacked(&ours).iter().zip(unpacked(&right)) {
        assert!((ours - right).abs() <= 1e-4, "{ours} for {right}");
    }
}

#[test]
fn nf4_with_scales_that_are_not_finite_is_refused() {
    let mut largest = vec![0_u8; 8 * 4];
    largest[5 * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let quants = Bytes::from(vec![0; 256]);
    let error = Packed::from_nf4([4, 128], quants.clone(), Bytes::from(largest)).unwrap_err();
    let words = "the largest value of block 5 (row 2, from column 64) is NaN";
    assert!(error.to_string().contains(words), "{error}");

    let scales = NestedScales {
        places: Bytes::from(vec![255; 8]),
        code: dynamic_code(),
        scales: vec![3e38],
        offset: 3e38,
    };
    let error = Packed::from_nf4_double([4, 128], quants, scales).unwrap_err();
    assert!(error.to_string().contains("of block 0"), "{error}");
}

#[test]
fn affine_groups_are_those_of_mlx() {
    let (golden, _) = golden();
    for bits_ in [4, 8] {
        for group in [32, 64, 128] {
            for (name, scales) in [("f16", ScaleType::F16), ("bf16", ScaleType::Bf16)] {
                let name = format!("affine{bits_}_{group}_{name}");
                let part = |part| Bytes::from(golden[&format!("{name}.{part}")].clone());
                let affine = Affine::new(bits_, group, scales).unwrap();
                let packed = Packed::from_affine(
                    affine,
                    [2, 256],
                    part("quants"),
                    part("scales"),
                    part("biases"),
                );
                let values = unpacked(&packed.unwrap());
                let right = floats(&golden[&format!("{name}.values")]);
                assert_bits(&values, &right, &name);
            }
        }
    }
}

#[test]
fn affine_groups_with_every_scale_are_those_of_mlx() {
    let (_, sums) = golden();
    let small = |bits| Some(brain(bits)).filter(|value| value.abs() <= 2.0_f32.powi(100));
    let small = |bits| small(bits).unwrap_or(f32::NAN);
    for (bits, group, scales, patterns, name) in [
        (4, 32, ScaleType::F16, finite(half), "affine4_32_f16"),
        (8, 64, ScaleType::Bf16, finite(small), "affine8_64_bf16"),
    ] {
        let count = patterns.len();
        let size = group * bits / 8;
        let quants = (0..count).flat_map(|i| (0..size).map(move |j| filler(i, j)));
        let bytes = |nth: &dyn Fn(usize) -> usize| {
            let patterns = (0..count).flat_map(|i| patterns[nth(i) % count].to_le_bytes());
            Bytes::from(patterns.collect::<Vec<_>>())
        };
        let packed = Packed::from_affine(
            Affine::new(bits, group, scales).unwrap(),
            [count, group],
            Bytes::from(quants.collect::<Vec<_>>()),
            bytes(&|i| i),
            bytes(&|i| i * 40_503 + 77),
        );
        let sum = crc_of(&unpacked(&packed.unwrap()));
        assert_eq!(Some(sum), sums[name].as_u64(), "{name}");
    }
}

#[test]
fn affine_groups_whose_values_overflow_are_refused() {
    let affine = Affine::new(8, 32, ScaleType::Bf16).unwrap();
    let scale = half::bf16::from_f32(2e38).to_le_bytes();
    let error = Packed::from_affine(
        affine,
        [1, 32],
        Bytes::from(vec![0; 32]),
        Bytes::from(scale.to_vec()),
        Bytes::from(vec![0; 2]),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("the largest value of block 0"),
        "{error}"
    );
    for (bits, group) in [(3, 64), (4, 16)] {
        assert!(Affine::new(bits, group, ScaleType::F16).is_err());
    }
}

#[test]
fn gptq_and_awq_are_repacked_without_a_change() {
    let (golden, _) = golden();
    let parts = |of: &str| TransposedParts {
        quants: &golden[&format!("{of}.qweight")],
        zeros: &golden["transposed.qzeros"],
        scales: &golden["transposed.scales"],
    };
    let in_order: Vec<u8> = (0..256_i32).flat_map(|i| (i / 128).to_le_bytes()).collect();
    let gptq = |groups, zeros| Packed::from_gptq(128, [16, 256], parts("gptq"), groups, zeros);
    let read = gptq(Some(&in_order), GptqZeros::LessOne).unwrap();
    // The sign of a zero aside.
    assert_eq!(unpacked(&read), floats(&golden["gptq.values"]));
    let other = gptq(None, GptqZeros::Plain).unwrap();
    assert_ne!(unpacked(&other), floats(&golden["gptq.values"]));
    let awq = Packed::from_awq(128, [16, 256], parts("awq")).unwrap();
    assert_eq!(unpacked(&awq), floats(&golden["awq.values"]));
}

#[test]
fn gptq_with_groups_out_of_order_or_parts_cut_is_refused() {
    let (quants, zeros, scales) = ([0; 2048], [0; 16], [0; 64]);
    let parts = TransposedParts {
        quants: &quants,
        zeros: &zeros,
        scales: &scales,
    };
    let made = |parts, groups: Option<&[u8]>, group, shape| {
        let made = Packed::from_gptq(group, shape, parts, groups, GptqZeros::LessOne);
        made.unwrap_err().to_string()
    };
    assert!(Packed::from_gptq(128, [16, 256], parts, None, GptqZeros::LessOne).is_ok());
    let mut groups: Vec<u8> = (0..256_i32).flat_map(|i| (i / 128).to_le_bytes()).collect();
    groups[3 * 4] = 1;
    let error = made(parts, Some(&groups), 128, [16, 256]);
    assert!(
        error.contains("input 3 is in group 1") && error.contains("act-order"),
        "{error}"
    );
    let cut = TransposedParts {
        zeros: &zeros[1..],
        ..parts
    };
    let error = made(cut, None, 128, [16, 256]);
    assert!(error.contains("`qzeros` must be 16 long"), "{error}");
    assert!(made(parts, None, 48, [16, 256]).contains("the group size is 48"));
    assert!(made(parts, None, 128, [12, 256]).contains("the number of outputs is 12"));
}

/// A row's sum as `dot_rows` promises it, from unpacked values.
fn dot(row: &[f32], vector: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 32];
    for (i, (weight, value)) in row.iter().zip(vector).enumerate() {
        sums[i % 32] = value.mul_add(*weight, sums[i % 32]);
    }
    let mut width = 16;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// A matrix in every format, of 16 rows of 512.
fn every_format() -> Vec<Packed> {
    let values = numbers(16 * 512, 8);
    let made = MADE.map(Format::from).into_iter();
    let made = made.chain([Format::Nf4, Format::Nf4Double]);
    let mut all: Vec<_> = made
        .map(|format| Packed::pack(format, [16, 512], &values).unwrap())
        .collect();
    for format in [BlockFormat::Q2K, BlockFormat::Q3K, BlockFormat::Q8K] {
        let mut bytes: Vec<u8> = (0..32 * format.block_bytes())
            .map(|i| filler(i / 84, i))
            .collect();
        for block in bytes.chunks_mut(format.block_bytes()) {
            for at in scales(format) {
                block[at + 1] = 0x2c;
            }
            if format == BlockFormat::Q8K {
                block[..4].copy_from_slice(&0.01_f32.to_le_bytes());
            }
        }
        all.push(Packed::from_blocks(format, [16, 512], Bytes::from(bytes)).unwrap());
    }
    for (bits, group) in [(4, 32), (4, 128), (8, 64)] {
        let bytes = |count: usize| (0..count).map(|i| filler(i / 50, i)).collect::<Vec<_>>();
        let scales = |high| {
            let bytes = (0..16 * 512 / group).flat_map(|i| [filler(i, 1), high]);
            Bytes::from(bytes.collect::<Vec<_>>())
        };
        let quants = Bytes::from(bytes(16 * 512 * bits / 8));
        let affine = Affine::new(bits, group, ScaleType::F16).unwrap();
        let packed = Packed::from_affine(affine, [16, 512], quants, scales(0x2c), scales(0xac));
        all.push(packed.unwrap());
    }
    all
}

#[test]
fn products_of_rows_are_those_of_unpacked_rows() {
    let vector = numbers(512, 9);
    for packed in every_format() {
        let values = unpacked(&packed);
        let mut sums = [0.5; 11];
        packed.dot_rows(3..14, &vector, &mut sums).unwrap();
        let right: Vec<f32> = (3..14)
            .map(|row| 0.5 + dot(&values[row * 512..][..512], &vector))
            .collect();
        assert_bits(&sums, &right, &packed.format().to_string());
        assert!(sums.iter().any(|sum| *sum != 0.5), "{}", packed.format());
        assert!(packed.dot_rows(3..17, &vector, &mut [0.0; 14]).is_err());
        assert!(packed.dot_rows(0..1, &vector[1..], &mut [0.0; 1]).is_err());
        assert!(packed.dot_rows(0..2, &vector, &mut [0.0; 1]).is_err());
    }
}

#[test]
fn panels_are_parts_of_every_format() {
    for packed in every_format() {
        let values = unpacked(&packed);
        let mut panel = vec![0.0; 3 * 301];
        packed.unpack(5..8, 70..371, &mut panel, 301).unwrap();
        for (row, panel) in panel.chunks(301).enumerate() {
            let right = &values[(row + 5) * 512 + 70..][..301];
            assert_bits(panel, right, &packed.format().to_string());
        }
    }
}
