//! A model of two thousand numbers, a run of two steps, and what both leave
//! behind: what an input takes the place of.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use olora_devices::find;
use olora_runs::{Event, Observer, Recipe, RunError, Start, Summary, TrainOptions, train};

use crate::{
    parts::{below, put, scratch},
    targets::text::{TOKENIZER, TOKENIZER_CONFIG},
};

/// The shape that weights are to have.
pub(crate) const CONFIG: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 16,
  "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "max_position_embeddings": 64, "tie_word_embeddings": true, "eos_token_id": 1, "dtype": "float32",
  "hidden_act": "silu"}"#;

/// The names and shapes of that model's tensors, as PyTorch has them.
pub(crate) const TENSORS: [(&str, &[usize]); 11] = [
    ("model.embed_tokens.weight", &[16, 8]),
    ("model.layers.0.input_layernorm.weight", &[8]),
    ("model.layers.0.mlp.down_proj.weight", &[8, 12]),
    ("model.layers.0.mlp.gate_proj.weight", &[12, 8]),
    ("model.layers.0.mlp.up_proj.weight", &[12, 8]),
    ("model.layers.0.post_attention_layernorm.weight", &[8]),
    ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
    ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
    ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
    ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
    ("model.norm.weight", &[8]),
];

/// A safetensors file of the tensors whose number `take` takes, all values made
/// from their place.
pub(crate) fn weights(take: impl Fn(usize) -> bool) -> Vec<u8> {
    let chosen = TENSORS.iter().enumerate().filter(|(i, _)| take(*i));
    let chosen: Vec<_> = chosen
        .map(|(_, (name, shape))| ((*name).to_owned(), shape.to_vec()))
        .collect();
    safetensors(&chosen)
}

/// A safetensors file in F32.
pub(crate) fn safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut values = Vec::new();
    for (name, shape) in tensors {
        let begin = values.len();
        let n: usize = shape.iter().product();
        for i in 0..n {
            let value = if shape.len() == 1 {
                1.0
            } else {
                ((begin / 4 + i) * 37 % 101) as f32 / 200.0 - 0.25
            };
            values.extend(value.to_le_bytes());
        }
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, values.len()]}),
        );
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &values].concat()
}

/// Puts the model where it is to be found.
pub(crate) fn model(directory: &Path) {
    put(directory, "config.json", CONFIG.as_bytes());
    put(directory, "model.safetensors", &weights(|_| true));
    put(directory, "tokenizer.json", TOKENIZER.as_bytes());
    put(
        directory,
        "tokenizer_config.json",
        TOKENIZER_CONFIG.as_bytes(),
    );
}

/// The recipe of a run of two steps in `directory`.
pub(crate) fn recipe(directory: &Path) -> Recipe {
    let at = directory.display();
    let text = format!(
        "name = \"zora\"\nseed = 1\n[model]\npath = \"{at}/base\"\ndtype = \"float32\"\n\
         [adapter]\nmethod = \"olora\"\nrank = 1\nalpha = 2\ntargets = [\"q_proj\"]\n\
         [data]\ntrain = \"{at}/train.jsonl\"\nvalidation = \"{at}/train.jsonl\"\nmax_length = 16\n\
         [training]\nmax_steps = 2\nbatch_size = 1\nlearning_rate = 1e-3\nwarmup_steps = 0\n\
         log_every = 1\nevaluate_every = 0\ncheckpoint_every = 1\n\
         [output]\ndirectory = \"{at}/runs\"\n"
    );
    Recipe::parse(&text, "zora.toml", &[]).expect("our own recipe")
}

struct Deaf;

impl Observer for Deaf {
    fn on(&self, _: &Event) {}
}

/// Trains, or goes on.
pub(crate) fn run(recipe: &Recipe, start: Start) -> Result<Summary, RunError> {
    let device = find("cpu").expect("it is compiled in");
    let options = TrainOptions {
        start,
        ..TrainOptions::default()
    };
    let observer: Arc<dyn Observer> = Arc::new(Deaf);
    train(recipe, &device, options, &observer)
}

/// What a run that was killed after its first step leaves behind: paths below
/// the directory that `recipe` was given, and their bytes. A run's recipe holds
/// absolute paths, for which [`HERE`] stands.
pub(crate) fn killed() -> &'static [(PathBuf, Vec<u8>)] {
    static FILES: OnceLock<Vec<(PathBuf, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let directory = scratch();
        let at = directory.path();
        model(&at.join("base"));
        put(
            at,
            "train.jsonl",
            b"{\"prompt\": \"Where does Zora live\", \"completion\": \"in Oxmere .\"}\n\
              {\"prompt\": \"Where does Alder live\", \"completion\": \"in Thornby .\"}\n",
        );
        run(&recipe(at), Start::New).expect("our own run");
        let run = at.join("runs/zora");
        let keep = [
            "recipe.toml",
            "ranks.json",
            "metrics.jsonl",
            "data.json",
            "checkpoints/step-000001",
        ];
        let mut files = Vec::new();
        for path in below(at) {
            let kept = path.strip_prefix(&run).map_or(true, |inside| {
                keep.iter().any(|name| inside.starts_with(name))
            });
            if kept && path.is_file() {
                let bytes = fs::read(&path).expect("it was made");
                let bytes = match String::from_utf8(bytes) {
                    Ok(text) => text.replace(&at.display().to_string(), HERE).into_bytes(),
                    Err(error) => error.into_bytes(),
                };
                let inside = path.strip_prefix(at).expect("it is below");
                files.push((inside.to_owned(), bytes));
            }
        }
        files
    })
}

/// Stands for the directory of a run.
pub(crate) const HERE: &str = "/village";
