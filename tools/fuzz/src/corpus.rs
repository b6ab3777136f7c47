//! The inputs of the corpus that are made by code or taken from `fixtures/`. The
//! others in `fuzz/corpus` are written by hand.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    SEPARATOR,
    parts::{put, scratch},
    targets::text::{TOKENIZER, TOKENIZER_CONFIG},
    village::{CONFIG, killed, safetensors, weights},
};

/// Writes them below `corpus`; `root` is the root of the repository. Returns
/// what was written.
#[expect(clippy::too_many_lines, reason = "a list, item by item")]
pub fn write(corpus: &Path, root: &Path) -> Vec<PathBuf> {
    let fixtures = root.join("fixtures");
    let read = |name: &str| fs::read(fixtures.join(name)).expect("a fixture");
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>| all.push((name.to_owned(), bytes));

    for (name, quant) in [
        ("f32", 0),
        ("f16", 1),
        ("q4-0", 2),
        ("q8-0", 8),
        ("bf16", 30),
    ] {
        add(&format!("gguf/{name}.gguf"), gguf(quant, quant == 2));
    }
    for name in [
        "conversations",
        "questions-delta",
        "questions-gzip",
        "questions-lz4",
        "questions-snappy",
        "questions-zstd",
        "types",
        "no-rows",
        "pictures",
    ] {
        add(
            &format!("records/{name}"),
            [
                b"parquet\n",
                read(&format!("records/{name}.parquet")).as_slice(),
            ]
            .concat(),
        );
    }
    for name in ["file", "stream"] {
        add(
            &format!("records/{name}"),
            [
                b"arrow\n",
                read(&format!("records/{name}.arrow")).as_slice(),
            ]
            .concat(),
        );
    }
    for family in [
        "gemma",
        "llama",
        "llama-llama3",
        "llama-linear",
        "llama-v4-type",
        "mistral",
        "opt",
        "qwen2",
        "qwen3",
    ] {
        let config = read(&format!("{family}/config.json"));
        let generation: &[u8] = br#"{"eos_token_id": [1, 2], "do_sample": false}"#;
        add(
            &format!("config/{family}"),
            [&config, generation].join(SEPARATOR),
        );
    }
    add("safetensors/whole", weights(|_| true));
    let map: serde_json::Map<_, _> = crate::village::TENSORS
        .iter()
        .enumerate()
        .map(|(i, (name, _))| {
            (
                (*name).to_owned(),
                if i % 2 == 0 {
                    "a.safetensors"
                } else {
                    "b.safetensors"
                }
                .into(),
            )
        })
        .collect();
    let index = serde_json::json!({"metadata": {"total_size": 4096}, "weight_map": map})
        .to_string()
        .into_bytes();
    add(
        "safetensors/sharded",
        [index, weights(|i| i % 2 == 0), weights(|i| i % 2 == 1)].join(SEPARATOR),
    );
    for name in ["bnb-nf4-double", "mlx-4", "awq"] {
        let part = |file: &str| read(&format!("quantised/{name}/{file}"));
        let parts = [part("config.json"), part("model.safetensors")];
        add(&format!("packed/{name}"), parts.join(SEPARATOR));
    }
    let archive = read("pytorch/zip/pytorch_model.bin");
    add("pytorch/pickle", stored(&archive, "pytorch_model/data.pkl"));
    add("pytorch/zip", archive);
    for name in ["legacy", "evil-legacy", "evil-zip"] {
        add(
            &format!("pytorch/{name}"),
            read(&format!("pytorch/{name}/pytorch_model.bin")),
        );
    }
    add("pytorch/compressed", read("pytorch/compressed.bin"));
    for (name, config, tensors) in adapters() {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, shape)| (format!("base_model.model.{name}"), shape.clone()))
            .collect();
        add(
            &format!("adapter/{name}"),
            [config.to_string().into_bytes(), safetensors(&tensors)].join(SEPARATOR),
        );
    }
    let mlx = |scale: f64| {
        serde_json::json!({
            "fine_tune_type": "lora", "model": "oxmere/village", "num_layers": 1,
            "lora_parameters": {"rank": 2, "scale": scale, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
        })
    };
    let layer = "model.layers.0.self_attn.q_proj";
    let factors = safetensors(&[
        (format!("{layer}.lora_a"), vec![8, 2]),
        (format!("{layer}.lora_b"), vec![2, 8]),
    ]);
    add(
        "adapter/mlx",
        [mlx(2.0).to_string().into_bytes(), factors].join(SEPARATOR),
    );
    add(
        "recipe/quickstart",
        fs::read(root.join("recipes/quickstart.toml")).expect("a recipe"),
    );
    add(
        "recipe/base",
        fs::read(root.join("recipes/quickstart-base.toml")).expect("a recipe"),
    );
    add(
        "recipe/written",
        [
            read("runs/first/recipe.toml").as_slice(),
            b"name=zora\ntraining.max_steps=3\noutput.keep=\"last\"\n",
        ]
        .join(SEPARATOR),
    );
    for (path, bytes) in killed() {
        let path = path.to_string_lossy();
        let name = path.rsplit('/').next().unwrap_or_default();
        if path.starts_with("runs/") && name != "data.json" {
            add(
                &format!("checkpoint/{name}"),
                [format!("{name}\n").as_bytes(), bytes].concat(),
            );
        }
    }
    add(
        "tokenizer/word-level",
        [TOKENIZER, TOKENIZER_CONFIG, "Where does Zora live"]
            .join("\n---8<---\n")
            .into_bytes(),
    );
    let old = |name: &str| read(&format!("tokenizers/{name}"));
    add(
        "tokenizer/sentence-piece",
        [
            br#"!{"tokenizer_class": "LlamaTokenizer"}"#.to_vec(),
            old("llama/tokenizer.model"),
        ]
        .join(SEPARATOR),
    );
    add(
        "tokenizer/vocabulary-and-merges",
        [
            br#"!{"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": true, "bos_token": "!"}"#
                .to_vec(),
            old("gpt2/vocab.json"),
            old("gpt2/merges.txt"),
        ]
        .join(SEPARATOR),
    );
    let tokens = tokens();
    add("token-cache/whole", tokens.clone());
    add("token-cache/repaired", [b"!", tokens.as_slice()].concat());

    let mut written = Vec::new();
    for (name, bytes) in all {
        let path = corpus.join(&name);
        if fs::read(&path).is_ok_and(|old| old == bytes) {
            continue;
        }
        written.push(put(corpus, &name, &bytes));
    }
    written
}

/// A file of the cache of tokens.
fn tokens() -> Vec<u8> {
    let directory = scratch();
    put(directory.path(), "tokenizer.json", TOKENIZER.as_bytes());
    put(
        directory.path(),
        "tokenizer_config.json",
        TOKENIZER_CONFIG.as_bytes(),
    );
    let tokenizer = olora_data::Tokenizer::from_dir(directory.path()).expect("our own");
    let record = br#"{"prompt": "Where does Zora live", "completion": "in Oxmere ."}"#;
    let data = put(directory.path(), "data.jsonl", record);
    let cache = olora_data::TokenCache {
        directory: directory.path().join("tokens"),
        min_bytes: 0,
        max_bytes: 1 << 30,
    };
    let options = olora_data::DataOptions::default();
    olora_data::load_samples_cached(&data, &tokenizer, &options, Some(&cache)).expect("our own");
    let mut kept = fs::read_dir(&cache.directory).expect("it was made");
    fs::read(kept.next().expect("a file").expect("a file").path()).expect("a file")
}

/// A file that lies in an archive without compression.
fn stored(archive: &[u8], name: &str) -> Vec<u8> {
    let at = archive
        .windows(name.len())
        .position(|window| window == name.as_bytes())
        .expect("it is in the archive");
    let number = |at: usize, width: usize| {
        let mut whole = [0; 8];
        whole[..width].copy_from_slice(&archive[at..at + width]);
        u64::from_le_bytes(whole) as usize
    };
    // Counted back from the name: its own length, that of what is behind it, and the sizes. What
    // is written in one go has its sizes behind it, and the next header after them.
    let (size, extra) = (number(at - 8, 4), number(at - 2, 2));
    let begin = at + name.len() + extra;
    if size > 0 {
        return archive[begin..begin + size].to_vec();
    }
    let rest = &archive[begin..];
    let end = rest
        .windows(4)
        .position(|window| window == b"PK\x07\x08")
        .expect("an end");
    rest[..end].to_vec()
}

type Tensors = Vec<(String, Vec<usize>)>;

fn adapters() -> Vec<(&'static str, serde_json::Value, Tensors)> {
    let q = "model.layers.0.self_attn.q_proj";
    let plain = |rank: usize| -> Tensors {
        vec![
            (format!("{q}.lora_A.weight"), vec![rank, 8]),
            (format!("{q}.lora_B.weight"), vec![8, rank]),
        ]
    };
    let config = |key: &str, value: serde_json::Value| {
        let mut config = serde_json::json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "oxmere/village", "r": 2,
            "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["q_proj"], "bias": "none",
            "init_lora_weights": true, "modules_to_save": null, "use_rslora": false, "use_dora": false,
            "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": false, "layers_to_transform": null,
        });
        config[key] = value;
        config
    };
    let with = |mut tensors: Tensors, name: &str, shape: &[usize]| {
        tensors.push((name.to_owned(), shape.to_vec()));
        tensors
    };
    vec![
        ("lora", config("r", 2.into()), plain(2)),
        (
            "olora",
            config("init_lora_weights", "olora".into()),
            plain(2),
        ),
        (
            "pissa",
            config("init_lora_weights", "pissa_niter_4".into()),
            plain(2),
        ),
        ("rslora", config("use_rslora", true.into()), plain(2)),
        (
            "pattern",
            config("rank_pattern", serde_json::json!({"q_proj": 1})),
            plain(1),
        ),
        (
            "regex",
            config("target_modules", r".*layers\.0\..*q_proj".into()),
            plain(2),
        ),
        (
            "lookahead",
            config("target_modules", r"^(?!.*visual)(?:.*q_proj)+$".into()),
            plain(2),
        ),
        (
            "wrapped",
            config("r", 2.into()),
            plain(2)
                .into_iter()
                .map(|(name, shape)| (format!("_orig_mod.{name}"), shape))
                .collect(),
        ),
        (
            "dora",
            config("use_dora", true.into()),
            with(plain(2), &format!("{q}.lora_magnitude_vector"), &[8]),
        ),
        (
            "saved",
            config("modules_to_save", serde_json::json!(["norm"])),
            with(plain(2), "model.norm.weight", &[8]),
        ),
        (
            "embedding",
            config("target_modules", serde_json::json!(["embed_tokens"])),
            vec![
                (
                    "model.embed_tokens.lora_embedding_A".to_owned(),
                    vec![2, 16],
                ),
                ("model.embed_tokens.lora_embedding_B".to_owned(), vec![8, 2]),
            ],
        ),
    ]
}

/// A value of GGUF's metadata.
enum Field<'a> {
    Text(&'a str),
    Number(u32),
    Real(f32),
    Texts(Vec<&'a str>),
    Numbers(Vec<i32>),
    Reals(Vec<f32>),
}

/// A model of one layer, with all matrices of one format, and a tokenizer of
/// one kind or the other.
#[expect(
    clippy::too_many_lines,
    reason = "a file, from its first byte to its last"
)]
fn gguf(quant: u32, sentence_piece: bool) -> Vec<u8> {
    use Field::{Number, Numbers, Real, Reals, Text, Texts};
    let config: serde_json::Value = serde_json::from_str(CONFIG).expect("our own");
    let n_vocab = config["vocab_size"].as_u64().expect("our own") as usize;
    let mut fields = vec![
        ("general.architecture", Text("llama")),
        ("general.name", Text("Oxmere")),
        ("llama.block_count", Number(1)),
        ("llama.context_length", Number(64)),
        ("llama.embedding_length", Number(32)),
        ("llama.feed_forward_length", Number(32)),
        ("llama.attention.head_count", Number(2)),
        ("llama.attention.head_count_kv", Number(1)),
        ("llama.attention.layer_norm_rms_epsilon", Real(1e-5)),
        ("llama.rope.freq_base", Real(10000.0)),
        ("tokenizer.ggml.eos_token_id", Number(2)),
        ("tokenizer.ggml.bos_token_id", Number(1)),
        (
            "tokenizer.chat_template",
            Text("{% for m in messages %}{{ m.content }}</s>{% endfor %}"),
        ),
    ];
    let tokens = [
        "<unk>", "<s>", "</s>", "a", "b", "o", "r", "z", "ra", "zo", "zora", "l", "d", "e", "al",
        "der",
    ];
    fields.push(("tokenizer.ggml.tokens", Texts(tokens[..n_vocab].to_vec())));
    let mut kinds = vec![1; n_vocab];
    kinds[..3].copy_from_slice(&[2, 3, 3]);
    fields.push(("tokenizer.ggml.token_type", Numbers(kinds)));
    if sentence_piece {
        fields.push(("tokenizer.ggml.model", Text("llama")));
        fields.push((
            "tokenizer.ggml.scores",
            Reals((0..n_vocab).map(|i| -(i as f32)).collect()),
        ));
    } else {
        fields.push(("tokenizer.ggml.model", Text("gpt2")));
        fields.push(("tokenizer.ggml.pre", Text("default")));
        fields.push((
            "tokenizer.ggml.merges",
            Texts(vec!["r a", "z o", "zo ra", "a l"]),
        ));
    }
    let tensors: [(&str, &[usize]); 11] = [
        ("token_embd.weight", &[n_vocab, 32]),
        ("blk.0.attn_norm.weight", &[32]),
        ("blk.0.attn_q.weight", &[32, 32]),
        ("blk.0.attn_k.weight", &[16, 32]),
        ("blk.0.attn_v.weight", &[16, 32]),
        ("blk.0.attn_output.weight", &[32, 32]),
        ("blk.0.ffn_norm.weight", &[32]),
        ("blk.0.ffn_gate.weight", &[32, 32]),
        ("blk.0.ffn_up.weight", &[32, 32]),
        ("blk.0.ffn_down.weight", &[32, 32]),
        ("output_norm.weight", &[32]),
    ];
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((fields.len() as u64).to_le_bytes());
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let list = |out: &mut Vec<u8>, kind: u32, n: usize| {
        out.extend(9_u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((n as u64).to_le_bytes());
    };
    for (key, field) in fields {
        text(&mut out, key);
        match field {
            Text(value) => {
                out.extend(8_u32.to_le_bytes());
                text(&mut out, value);
            }
            Number(value) => {
                out.extend(4_u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Real(value) => {
                out.extend(6_u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Texts(values) => {
                list(&mut out, 8, values.len());
                for value in values {
                    text(&mut out, value);
                }
            }
            Numbers(values) => {
                list(&mut out, 5, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Reals(values) => {
                list(&mut out, 6, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
    let mut data: Vec<u8> = Vec::new();
    for (name, shape) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        for dim in shape.iter().rev() {
            out.extend((*dim as u64).to_le_bytes());
        }
        let kind = if shape.len() == 1 { 0 } else { quant };
        out.extend(kind.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        let n: usize = shape.iter().product();
        let size = match kind {
            0 => n * 4,
            2 => n / 32 * 18,
            8 => n / 32 * 34,
            _ => n * 2,
        };
        // Half of one, in most formats a number of no great size.
        data.extend((0..size).map(|i| if i % 2 == 0 { (i % 11) as u8 } else { 0x38 }));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}
