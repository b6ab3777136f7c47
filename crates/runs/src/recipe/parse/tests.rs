//! What is read, what is refused, and what is written again.

use super::*;

const MINIMAL: &str = r#"
        name = "run"
        [model]
        path = "base"
        [adapter]
        [data]
        train = "train.jsonl"
    "#;

fn excluded(recipe: &Recipe, has_lm_head: bool) -> Vec<String> {
    match recipe.adapter.trained(has_lm_head) {
        Trained::Adapter(config) => config.exclude,
        Trained::Everything => panic!("there is no adapter"),
    }
}

fn error(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
    Recipe::parse(text, "recipe.toml", &overrides)
        .unwrap_err()
        .to_string()
}

#[test]
fn defaults_are_written_back_and_read_again() {
    let recipe = Recipe::parse(MINIMAL, "recipe.toml", &[]).unwrap();
    let text = recipe.to_toml().unwrap();
    assert!(
        text.contains("learning_rate = 0.0002") && text.contains("method = \"olora\""),
        "{text}"
    );
    assert_eq!(Recipe::parse(&text, "resolved", &[]).unwrap(), recipe);
}

#[test]
fn samples_are_cut_where_reading_data_without_a_recipe_cuts_them() {
    let recipe = Recipe::parse(MINIMAL, "recipe.toml", &[]).unwrap();
    let options = olora_data::DataOptions::default();
    assert_eq!(recipe.data.max_length, options.max_length);
}

#[test]
fn overrides_take_toml_values_and_bare_strings() {
    let overrides = [
        "training.max_steps=7",
        "name=second",
        "adapter.targets=[\"q_proj\"]",
        "adapter.method=lora",
    ];
    let recipe = Recipe::parse(MINIMAL, "recipe.toml", &overrides.map(str::to_owned)).unwrap();
    assert_eq!(recipe.training.max_steps, Some(7));
    assert_eq!(recipe.name, "second");
    assert_eq!(recipe.adapter.config.targets, ["q_proj"]);
    assert_eq!(recipe.adapter.config.method, Method::Lora);
    let timed = format!("{MINIMAL}\n[training]\nmax_steps = 7\n");
    let epochs = ["training.epochs=2".to_owned()];
    let replaced = Recipe::parse(&timed, "recipe.toml", &epochs).unwrap();
    assert_eq!(replaced.training.max_steps, None);
    assert_eq!(replaced.training.epochs, Some(2.0));
    let numbered = Recipe::parse(MINIMAL, "recipe.toml", &["name=7".to_owned()]).unwrap();
    assert_eq!(numbered.name, "7");
}

#[test]
fn lm_head_is_left_out_of_all_linear_and_of_nothing_else() {
    let exclude = |overrides: &[&str]| {
        let overrides: Vec<_> = overrides.iter().map(|s| (*s).to_owned()).collect();
        let recipe = Recipe::parse(MINIMAL, "recipe.toml", &overrides).unwrap();
        excluded(&recipe, true)
    };
    assert_eq!(exclude(&[]), ["lm_head"]);
    assert!(exclude(&["adapter.targets=[\"q_proj\", \"lm_head\"]"]).is_empty());
    assert!(exclude(&["adapter.targets=[\"all-linear\", \"lm_head\"]"]).is_empty());
    assert!(exclude(&["adapter.exclude=[]"]).is_empty());
    let recipe = Recipe::parse(MINIMAL, "recipe.toml", &[]).unwrap();
    assert!(excluded(&recipe, false).is_empty());
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let text = format!("{MINIMAL}\n[training]\nlearnig_rate = 1.0\n");
    let message = error(&text, &[]);
    assert!(
        message.contains("learnig_rate") && message.contains("line"),
        "{message}"
    );
    let message = error(MINIMAL, &["training.learnig_rate=1"]);
    assert!(message.contains("learnig_rate"), "{message}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let both = format!("{MINIMAL}\n[training]\nmax_steps = 1\nepochs = 1\n");
    assert!(error(&both, &[]).contains("not both"));
    let overrides = ["training.max_steps=1", "training.epochs=1"];
    assert!(error(MINIMAL, &overrides).contains("not both"));
    let cases = [
        (["adapter.method=none", "adapter.rank=4"], "have no use"),
        (["adapter.method=lora", "adapter.rho=2.0"], "adapter.rho"),
        (
            ["adapter.method=eva", "adapter.gradient_batches=2"],
            "adapter.gradient_batches",
        ),
        (
            ["adapter.method=olora", "adapter.gradient_scale=0.5"],
            "adapter.gradient_scale",
        ),
        (
            ["adapter.method=lora-gradient", "adapter.gradient_scale=0"],
            "adapter.gradient_scale",
        ),
        (
            [
                "adapter.method=olora-gradient",
                "adapter.placement=residual",
            ],
            "placement",
        ),
        (
            ["adapter.method=none", "training.loraplus_ratio=16.0"],
            "loraplus_ratio",
        ),
        (["training.loraplus_ratio=0.5", "name=x"], "loraplus_ratio"),
        (
            ["adapter.method=milora", "adapter.form=native"],
            "PEFT does not have",
        ),
        (["adapter.iterations=4", "name=x"], "iterations"),
        (["adapter.method=lora-orthogonal", "adapter.rank=5"], "even"),
        (
            [
                "adapter.modules_to_save=[\"lm_head\"]",
                "model.dtype=bfloat16",
            ],
            "modules_to_save",
        ),
        (["training.epsilon=1e-50", "name=x"], "epsilon"),
        (
            [
                "training.schedule=constant",
                "training.min_learning_rate=1e-5",
            ],
            "min_learning_rate",
        ),
        (["training.optimizer=sgd", "training.beta2=0.9"], "beta2"),
        (["adapter.rank=0", "name=x"], "rank"),
        (
            ["adapter.method=lora", "adapter.placement=residual"],
            "placement",
        ),
        (["adapter.targets=[]", "name=x"], "empty"),
        (
            ["adapter.targets=[\"q_{proj\"]", "name=x"],
            "not a valid pattern",
        ),
        (["output.keep=best", "name=x"], "validation"),
        (["model.weights=random", "name=x"], "noise"),
        (["output.dtype=bfloat16", "name=x"], "output.dtype"),
        (
            ["training.pad_to_multiple_of=0", "name=x"],
            "pad_to_multiple_of",
        ),
        (
            ["adapter.method=none", "model.dtype=bfloat16"],
            "half precision",
        ),
        (["name=a/b", "seed=1"], "`name`"),
        (
            ["training.optimizer=sgd", "training.weight_decay=0.1"],
            "weight_decay",
        ),
    ];
    for (overrides, expected) in cases {
        let message = error(MINIMAL, &overrides);
        assert!(message.contains(expected), "{overrides:?}: {message}");
    }
}

/// Each: settings, the key and what was found, and what is allowed. The last
/// are what TOML or the type of the key has no form for.
const NUMBERS: &str = r#"training.batch_size=1000000000000 | `training.batch_size` is 1000000000000 | between 1 and 65536
        training.batch_size=0 | `training.batch_size` is 0 | between 1 and 65536
        training.accumulation=1000000000 | `training.accumulation` is 1000000000 | between 1 and 65536
        training.accumulation=0 | `training.accumulation` is 0 | between 1 and 65536
        training.max_steps=9000000000000000000 | `training.max_steps` is 9000 | and 1000000000
        training.max_steps=0 | `training.max_steps` is 0 | between 1 and
        training.epochs=1e300 | `training.epochs` is 1e300 | at most 100000.0
        training.epochs=nan | `training.epochs` is NaN | above 0
        training.epochs=-1 | `training.epochs` is -1.0 | above 0
        training.warmup_steps=1000000000001 | `training.warmup_steps` is | and 1000000000
        training.log_every=0 | `training.log_every` is 0 | between 1 and
        training.evaluate_every=1000000000001 | `training.evaluate_every` is | and 1000000000
        training.checkpoint_every=1000000000001 | `training.checkpoint_every` is | and 1000000000
        training.keep_checkpoints=0 | `training.keep_checkpoints` is 0 | between 1 and
        training.keep_checkpoints=1000000000001 | `training.keep_checkpoints` is | and 1000000000
        training.pad_to_multiple_of=1000000000 | `training.pad_to_multiple_of` is | and 65536
        training.learning_rate=1e300 | `training.learning_rate` is 1e300 | 32 bits
        training.learning_rate=1e-300 | `training.learning_rate` is 1e-300 | 32 bits
        training.learning_rate=nan | `training.learning_rate` is NaN | 32 bits
        training.learning_rate=inf | `training.learning_rate` is inf | 32 bits
        training.min_learning_rate=1.0 | `training.min_learning_rate` is 1.0 | `training.learning_rate`
        training.loraplus_ratio=1e300 | `training.loraplus_ratio` is 1e300 | finite in 32 bits
        training.weight_decay=1e300 | `training.weight_decay` is 1e300 | below 1
        training.weight_decay=-0.1 | `training.weight_decay` is -0.1 | 0 or more
        training.max_grad_norm=1e-300 | `training.max_grad_norm` is 1e-300 | 32 bits
        training.max_grad_norm=inf | `training.max_grad_norm` is inf | 32 bits
        training.epsilon=1e300 | `training.epsilon` is 1e300 | 32 bits
        training.beta1=1.0 | `training.beta1` is 1.0 | below 1
        training.beta2=0.99999999999 | `training.beta2` is 0.99999999999 | in 32 bits
        data.max_length=1 | `data.max_length` is 1 | between 2 and 16777216
        data.max_length=1000000000000 | `data.max_length` is 1000000000000 | between 2 and 16777216
        data.validation_samples=0 | `data.validation_samples` is 0 | between 1 and 4294967295
        data.validation_samples=10000000000 | `data.validation_samples` is | and 4294967295
        data.max_skipped=1.5 | `data.max_skipped` is 1.5 | between 0.0 and 1.0
        data.train="village.jsonl#0" | "village.jsonl#0" asks for the first 0 records | between 1
        data.train="village.jsonl#99999999999999999999" | asks for the first 9999 | 4294967295
        adapter.rank=1000000000 | `rank` is 1000000000 | between 1 and 65536
        adapter.rank_pattern={ q_proj = 1000000000 } | `rank` is 1000000000 | between 1 and 65536
        adapter.alpha=1e300 | `alpha` is 1e300 | 32 bits
        adapter.alpha=nan | `alpha` is NaN | 32 bits
        adapter.alpha_pattern={ q_proj = 1e-300 } | `alpha` is 1e-300 | 32 bits
        adapter.dropout=0.99999999999 | `dropout` is 0.99999999999 | in 32 bits
        adapter.iterations=1000000000 & adapter.method=pissa | `iterations` is 1000000000 | at most 1000
        adapter.rho=1e300 & adapter.method=eva | `adapter.rho` is 1e300 | between 1.0 and 1000.0
        samples.max_new_tokens=1000000000000 | `samples.max_new_tokens` is | between 0 and 1048576
        samples.max_new_tokens=0 & samples.prompts=["Where is Zora?"] | `samples.max_new_tokens` is 0 | between 1
        seed=-1 | invalid value: integer `-1` | u64
        training.batch_size=1e12 | invalid type: floating point `1000000000000 | usize
        training.max_steps=-1 | invalid value: integer `-1` | usize"#;

#[test]
fn numbers_that_no_one_means_are_refused_by_key_with_what_is_allowed() {
    for case in NUMBERS.lines() {
        let case = case.trim();
        let [settings, found, allowed] = case.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{case}");
        };
        let overrides: Vec<&str> = settings.split(" & ").collect();
        let message = error(MINIMAL, &overrides);
        assert!(
            message.contains(found) && message.contains(allowed),
            "{case}: {message}"
        );
    }
    let weighted = MINIMAL.replace("train = \"train.jsonl\"", "")
        + "\n[[data.sources]]\npath = \"a.jsonl\"\nweight = 1e300\n";
    let message = error(&weighted, &[]);
    assert!(
        message.contains("`data.sources.weight` is 1e300"),
        "{message}"
    );
    let mut recipe = Recipe::parse(MINIMAL, "recipe.toml", &[]).unwrap();
    recipe.seed = u64::MAX;
    assert!(recipe.validate("recipe.toml").is_err());
}

#[test]
fn what_others_mean_is_still_taken() {
    for setting in [
        "training.batch_size=65536",
        "training.max_steps=1000000000",
        "training.checkpoint_every=0",
        "training.evaluate_every=0",
        "training.learning_rate=1e20",
        "training.max_grad_norm=0",
        "training.warmup_steps=0",
        "data.max_length=1048576",
        "data.train=\"village.jsonl#20\"",
        "data.train=\"village.jsonl#notes\"",
        "samples.max_new_tokens=0",
        "name=\"Zora and Jorun, 2nd\"",
        "output.directory=\"../runs\"",
    ] {
        Recipe::parse(MINIMAL, "recipe.toml", &[setting.to_owned()]).unwrap();
    }
}

#[test]
fn names_that_are_no_names_of_directories_are_refused() {
    let long = format!("name=\"{}\"", "a".repeat(201));
    for setting in [
        "name=\"\"",
        "name=\" \"",
        "name=\".\"",
        "name=\"..\"",
        "name=\"../Oxmere\"",
        "name=\"a\\\\b\"",
        "name=\"first\\nsecond\"",
        "name=\"\\u001b[2J\"",
        "name=\"\\u009b2J\"",
        "name=\"\\u0000\"",
        &long,
    ] {
        let message = error(MINIMAL, &[setting]);
        assert!(message.contains("`name` is \""), "{setting}: {message}");
    }
    let message = error(MINIMAL, &["output.directory=\"runs\\nmore\""]);
    assert!(
        message.contains("`output.directory` is \"runs\\nmore\""),
        "{message}"
    );
}
