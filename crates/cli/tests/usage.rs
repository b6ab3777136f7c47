//! What is refused, with which exit code: 2 if the command line or the recipe
//! cannot be meant, 1 for what was found in files. Nothing is written, and
//! nothing of a number's size is made first.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    fs,
    time::{Duration, Instant},
};

use common::{olora, refused, root, stderr, stdout};
use tempfile::TempDir;

const RECIPE: &str = "recipes/quickstart.toml";
const BASE: &str = "recipes/quickstart/base";
const VALID: &str = "recipes/quickstart/valid.jsonl";

/// What cannot be meant: the command, and what is said.
const WRONG: &str = r#" => Usage:
    fly => unrecognized subcommand
    train => nothing to train was given
    train --model {base} => --model needs --data
    train --data {valid} => --data needs --model
    train --resume => nothing to train was given
    train {recipe} --rank 0 => between 1 and
    train {recipe} --lr fast => expected a number, or "auto"
    train {recipe} --lr -1 => `training.learning_rate` is -1
    train {recipe} --epochs 1 --max-steps 2 => cannot be used with
    train {recipe} --output / => the run's own directory
    train {recipe} --method olra => did you mean `olora`?
    train {recipe} --set lora_r=8 => did you mean `rank` of `[adapter]`?
    train {recipe} --learning-rte 1 => a similar argument exists: '--learning-rate'
    init --model {base} => no data file lies here
    init --example --model {base} => cannot be used with
    init --model {base} --data {valid} --purpose chat => invalid value 'chat'
    init --model {base} --data {valid} --memory lots => must be a size
    completions cmd => invalid value 'cmd'
    train {out}/nowhere.toml => nowhere.toml: the recipe cannot be read
    train {out} => the recipe cannot be read
    train {out}/broken.toml => broken.toml: TOML parse error
    train {out}/latin.toml => UTF-8
    train {recipe} {recipe} => unexpected argument
    train {recipe} --fast => unexpected argument
    train {recipe} --resume=yes => unexpected value
    train {recipe} --set training.max_steps => expected key=value
    train {recipe} --set =1 => the key is empty
    train {recipe} --set training.learnig_rate=1 => learnig_rate
    train {recipe} --set training=7 => invalid type
    train {recipe} --set name.first=7 => `name` is not a table
    train {recipe} --set training.max_steps=1 --set training.epochs=1 => not both
    train {recipe} --set adapter.method=qlora => qlora
    train {recipe} --set adapter.targets=[] => empty
    train {recipe} --set adapter.targets=["q_{proj"] => not a valid pattern
    train {recipe} --set model.dtype=int4 => int4
    train {recipe} --set data.format=tale => tale
    train {recipe} --set objective.method=ppo => ppo
    train {recipe} --set objective.beta=0.1 => `objective.beta` has no use with `method = "cross-entropy"`
    train {recipe} --set objective.method=dpo --set objective.beta=0 => `objective.beta` is 0
    train {recipe} --set objective.method=dpo --set objective.beta=-1 => `objective.beta` is -1
    train {recipe} --set objective.method=dpo --set objective.loss=log => log
    train {recipe} --set objective.method=dpo --set objective.gamma=1 => `objective.gamma` has no use
    train {recipe} --set objective.method=dpo --set objective.loss=ipo --set objective.label_smoothing=0.1 => has no use with `loss
    train {recipe} --set objective.method=dpo --set objective.label_smoothing=0.5 => below 0.5
    train {recipe} --set objective.method=dpo --set data.train_on_prompt=true => `data.train_on_prompt` has no use
    train {recipe} --set objective.method=kto --set training.batch_size=1 => needs `training.batch_size` of at least 2
    train {recipe} --set name=a/b => `name` is "a/b"
    train {recipe} --set name=.. => `name` is ".."
    train {recipe} --set name=Alder{newline}Zora => `name` is "Alder\nZora"
    train {recipe} --set output.directory={out}/a{newline}b => `output.directory` is
    train {recipe} --device tpu => there is no device `tpu`
    train {recipe} --device cpu:7 => cpu:7
    train {recipe} --device cpu:99999999999999999999 => is not a device number
    train {recipe} --tui => --tui needs a terminal
    train {recipe} --no-check => --no-check has no use
    train {recipe} --no-fusion => --no-fusion has no use
    train {recipe} --autotune --no-autotune => cannot be used with
    plan {out}/nowhere.toml => nowhere.toml
    plan {recipe} --set training.batch_size=0 => `training.batch_size` is 0
    compare {recipe} --methods qlora => there is no method `qlora`
    compare {recipe} --lrs -1 => `training.learning_rate` is -1.0
    compare {recipe} --lrs nan => `training.learning_rate` is NaN
    compare {recipe} --lrs fast => invalid value 'fast'
    compare {recipe} --set training.evaluate_every=0 => set `training.evaluate_every`
    compare {recipe} --tasks arc_easy => --task-data
    compare {recipe} --output {out}/a{newline}b => control characters
    report => DIRECTORIES
    report {out} {base} --html => say which with -o
    report {out} -o {out}/r.html => --html
    board {out} --port 70000 => 70000
    board {out} --host 0.0.0.0 => OLORA_API_KEY
    board {out} --allow-origin localhost => expected a scheme and a host
    board {out} --no-fusion => unexpected argument
    evaluate --model {base} => --data
    evaluate --data {valid} => --model
    evaluate --model {base} --data {valid} --tasks gsm8k --task-data {out} => cannot be used with
    evaluate --model {base} --data {valid} --set training.epochs=1 => --set here is for `[data]`
    evaluate --model {base} --data {valid} --reference {base} => --reference is what DPO and KTO compare with
    evaluate --model {base} --data {valid} --dtype int4 => invalid value 'int4'
    evaluate --model {base} --data {valid} --chat => --tasks
    evaluate --model {base} --tasks chess --task-data {out} => chess
    evaluate --model {base} --tasks gsm8k => --task-data
    evaluate --model {base} --tasks gsm8k,gsm8k --task-data {out} => twice
    evaluate --model {base} --tasks piqa --task-data {out} --chat => --chat is not supported
    evaluate --model {base} --tasks piqa --task-data {out} --max-new-tokens 8 => has no use
    evaluate --model {base} --tasks gsm8k --task-data {out} --max-length 64 --max-new-tokens 64 => no room for the question
    generate --prompt Where? => --model
    generate --model {base} => give a prompt with --prompt
    generate --model {base} --prompt Where? --top-k 5 => --temperature
    merge --output {out}/merged => --adapter
    merge --adapter {adapter} => --output
    merge --adapter {adapter} --output {out}/merged --dtype q8_0 => q8_0 is a format of GGUF
    merge --adapter {adapter} --output {out}/m.gguf --shard-size 1GB => --shard-size is for directories
    merge --adapter {adapter} --output {out}/a{newline}b => control characters
    convert --output {out}/converted => ADAPTERS
    convert {adapter} --output {out}/converted --method olora => --method is for
    convert {adapter} --output {out}/converted --form native --rank 2 => leave out `--form native`
    convert {adapter} --output {out}/c.gguf --dtype float16 => leave out --form and --dtype
    convert {adapter} --output {out}/converted --weights 1,2 => --weights has 2 numbers for 1
    push => PATH
    push {adapter} => REPOSITORY
    push {adapter} a/b --no-fusion => unexpected argument
    inspect => PATH
    inspect village {base} => invalid value 'village'
    inspect data {valid} => --model
    inspect model {base} --sample 1 => are for `inspect data`
    inspect model {base} --no-fusion => unexpected argument
    devices --fast => unexpected argument
    doctor --device tpu => there is no device `tpu`
    doctor --device cpu --autotune => --autotune has no use"#;

/// Numbers that no one means, wherever one can be given.
const NUMBERS: &str = r"train {recipe} --set training.batch_size=1000000000000 => between 1 and 65536
    train {recipe} --set training.batch_size=1e12 => usize
    train {recipe} --set training.accumulation=1000000000 => between 1 and 65536
    train {recipe} --set training.max_steps=9000000000000000000 => between 1 and 1000000000
    train {recipe} --set data.max_length=1000000000000 => between 2 and 16777216
    train {recipe} --set adapter.rank=1000000000 => between 1 and 65536
    train {recipe} --set adapter.method=pissa --set adapter.iterations=1000000000 => at most 1000
    train {recipe} --set samples.max_new_tokens=1000000000000 => between 1 and 1048576
    train {recipe} --set seed=-1 => u64
    plan {recipe} --set training.max_steps=0 => between 1 and
    compare {recipe} --ranks 0 => between 1 and 65536
    compare {recipe} --ranks 8,1000000000 => between 1 and 65536
    compare {recipe} --tuning-seeds 1001 => 0..=1000
    compare {recipe} --seeds 1000000000000 => 0..=1000
    compare {recipe} --set seed=9223372036854775807 => set a smaller `seed`
    compare {recipe} --widen 1000000000 => between 0 and 100
    compare {recipe} --lrs 1e300 => 32 bits
    compare {recipe} --limit 0 => between 1 and
    evaluate --model {base} --data {valid} --batch-size 0 => between 1 and 65536
    evaluate --model {base} --data {valid} --batch-size 1000000000000 => between 1 and 65536
    evaluate --model {base} --data {valid} --batch-size 99999999999999999999 => between 1 and 65536
    evaluate --model {base} --data {valid} --max-length 1 => between 2 and 16777216
    evaluate --model {base} --data {valid} --max-length 1000000000000 => between 2 and 16777216
    evaluate --model {base} --data {valid} --set data.max_skipped=7 => `data.max_skipped` is 7.0
    evaluate --model {base} --tasks gsm8k --task-data {out} --limit 0 => between 1 and
    evaluate --model {base} --tasks gsm8k --task-data {out} --max-new-tokens 0 => between 1 and 1048576
    evaluate --model {base} --tasks gsm8k --task-data {out} --batch-tokens 1000000000000 => between 1 and
    generate --model {base} --prompt x --max-new-tokens 0 => between 1 and 1048576
    generate --model {base} --prompt x --max-new-tokens 1000000000000 => between 1 and 1048576
    generate --model {base} --prompt x --temperature -1 => between 0
    generate --model {base} --prompt x --temperature nan => between 0
    generate --model {base} --prompt x --temperature 1e30 => between 0
    generate --model {base} --prompt x --temperature 1 --top-k 0 => between 1 and
    generate --model {base} --prompt x --temperature 1 --top-p 0 => above 0 and at most 1
    generate --model {base} --prompt x --temperature 1 --top-p -0.5 => above 0 and at most 1
    generate --model {base} --prompt x --temperature 1 --top-p 1.5 => above 0 and at most 1
    generate --model {base} --prompt x --repetition-penalty 0 => between 0.01 and 100
    generate --model {base} --prompt x --repetition-penalty -1 => between 0.01 and 100
    generate --model {base} --prompt x --temperature 1 --seed -1 => -1
    generate --model {base} --prompt x --temperature 1 --seed 99999999999999999999 => 99999999999999999999
    merge --adapter {adapter} --output {out}/merged --shard-size 0 => must be a size
    merge --adapter {adapter} --output {out}/merged --shard-size 99999999999999GB => must be a size
    convert {adapter} --output {out}/converted --rank 0 => between 1 and 65536
    convert {adapter} --output {out}/converted --rank 1000000000 => between 1 and 65536
    convert {adapter} --output {out}/converted --weights 1e300 => that float32 can hold
    convert {adapter} --output {out}/converted --weights -1e300 => that float32 can hold
    convert {adapter} --output {out}/converted --weights 1e-300 => that float32 can hold
    convert {adapter} --output {out}/converted --weights nan => that float32 can hold
    convert {adapter} --output {out}/converted --weights inf => that float32 can hold
    inspect data {valid} --model {base} --max-length 0 => between 2 and 16777216
    inspect data {valid} --model {base} --samples 0 => between 1 and
    inspect data {valid} --model {base} --sample -1 => unexpected argument
    doctor --device cpu --lengths 0 => between 1 and 16384
    doctor --device cpu --lengths 7,1000000000 => between 1 and 16384";

/// What is only known when files have been looked at.
const FOUND: &str = r#"train {recipe} --set model.path=no/such/model => no/such/model
    train {recipe} --set data.train={out}/none.jsonl => none.jsonl
    train {recipe} --set adapter.targets=["query"] => `query`
    train {recipe} --set adapter.rank=100 => rank 100
    train {recipe} --set output.directory={out} --resume => resume
    report {out} => no finished runs
    report {out}/nowhere => nowhere
    report {out} --html => neither a run
    report {out}/nowhere --html => nowhere
    board {out}/nowhere => nowhere
    evaluate --model {base} --data {out}/none.jsonl => none.jsonl
    evaluate --model {base} --tasks piqa --task-data {out} => piqa
    evaluate --model {base} --tasks gsm8k --task-data {out} --max-length 60000 => 256 positions
    generate --adapter recipes --prompt x => adapter_config.json
    merge --adapter {out}/none --output {out}/merged => none
    merge --adapter {adapter} --model no/such/model --output {out}/merged => no/such/model
    inspect data {valid} --model {base} --sample 4000000000 => there is no sample
    init {out}/broken.toml --model {base} --data {valid} => is not overwritten
    init {out}/new.toml --model {base} --data {valid} --memory 1MB => the run does not fit into 1.0 MB
    init {out}/new.toml --model {base} --data {out}/none.jsonl => none.jsonl
    init {out}/new.toml --model no/such/model --data {valid} => no/such/model
    inspect adapter {out} => adapter_config.json"#;

/// Words, of which `{…}` stand for paths that have no place in a table.
fn run(line: &str, out: &TempDir) -> std::process::Output {
    let out = out.path().to_str().unwrap();
    let words = line.split(' ').map(|word| {
        word.replace("{out}", out)
            .replace("{recipe}", RECIPE)
            .replace("{base}", BASE)
            .replace("{valid}", VALID)
            .replace("{adapter}", "fixtures/peft/llama-lora")
            .replace("{newline}", "\n")
    });
    let mut words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
    // The repository may hold a run of the quickstart, in the place that its recipe names.
    if line.starts_with("train {recipe}") && !line.contains("output.directory") {
        words.extend(["--set".to_owned(), format!("output.directory={out}")]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    olora(&words)
}

fn check(code: i32, cases: &str) {
    let out = TempDir::new().unwrap();
    fs::write(out.path().join("broken.toml"), "name = ").unwrap();
    fs::write(out.path().join("latin.toml"), b"name = \"Z\xf3ra\"").unwrap();
    let question = r#"{"question": "How many?", "answer": "Four. #### 4"}"#;
    fs::write(out.path().join("gsm8k.jsonl"), question).unwrap();
    let there = || {
        let entries = fs::read_dir(out.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = there();
    for case in cases.lines() {
        let (line, expected) = case.split_once("=> ").unwrap();
        let line = line.trim();
        // A build without pages has no such command, nor option.
        let is_of_web = line.starts_with("board") || line.starts_with("report {out}");
        if is_of_web && !cfg!(feature = "web") {
            continue;
        }
        let began = Instant::now();
        let output = run(line, &out);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {text}");
        assert!(text.contains(expected), "{line}: {text}");
        assert!(!text.contains("panicked"), "{line}: {text}");
        assert_eq!(stdout(&output), "", "{line}: an error has no result");
        assert_eq!(there(), before, "{line}: something was written");
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{line}: it took long"
        );
    }
}

#[test]
fn wrong_usage_is_2_everywhere() {
    check(2, WRONG);
}

#[test]
fn numbers_that_no_one_means_are_refused_before_anything_is_read() {
    check(2, NUMBERS);
}

#[test]
fn more_threads_than_anyone_has_are_refused_before_they_are_started() {
    for (threads, code) in [("1000000000", 2), ("-1", 2), ("many", 2), ("2", 0), ("", 0)] {
        let output = assert_cmd::Command::cargo_bin("olora")
            .unwrap()
            .env("RAYON_NUM_THREADS", threads)
            .arg("devices")
            .output()
            .unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{threads}: {text}");
        let expected = format!("RAYON_NUM_THREADS is {threads:?}, but must be between 0 and 1024");
        assert_eq!(text.contains(&expected), code == 2, "{text}");
    }
}

#[test]
fn what_is_found_in_files_is_1() {
    check(1, FOUND);
    let there = TempDir::new().unwrap();
    fs::write(there.path().join("letter.txt"), "from Jorun").unwrap();
    for command in [
        "merge --adapter {adapter} --output {out}",
        "convert {adapter} --output {out}",
    ] {
        let text = refused(&run(command, &there), 1);
        assert!(text.contains("exists already"), "{text}");
    }
    // Each number is one that float32 can hold, but not what comes of two.
    let large = "convert {adapter} --output {out}/large --weights 3e38";
    let output = run(large, &there);
    assert!(output.status.success(), "{}", stderr(&output));
    let larger = "convert {out}/large --output {out}/larger --weights 3e38";
    let text = refused(&run(larger, &there), 1);
    assert!(text.contains("beyond what float32 can hold"), "{text}");
    assert!(!there.path().join("larger").exists());
    // More samples to hold out than there are is known when they have been read.
    let out = TempDir::new().unwrap();
    let recipe = fs::read_to_string(root().join(RECIPE)).unwrap();
    let recipe = recipe.replace(
        "validation = \"quickstart/valid.jsonl\"",
        "validation_samples = 1000000",
    );
    fs::write(out.path().join("held.toml"), common::moved(&recipe)).unwrap();
    let elsewhere = "train {out}/held.toml --set output.directory={out}";
    let text = refused(&run(elsewhere, &out), 1);
    assert!(
        text.contains("`data.validation_samples` is") && text.contains("1000000"),
        "{text}"
    );
}

#[test]
fn help_is_a_success_and_ends_with_the_exit_codes() {
    let out = TempDir::new().unwrap();
    for line in ["--help", "help", "--version", "train --help", "devices"] {
        let output = run(line, &out);
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(!stdout(&output).is_empty(), "{line}");
    }
    let help = stdout(&run("--help", &out));
    let (_, codes) = help.split_once("Exit codes:").unwrap();
    for code in ["0 ", "1 ", "2 ", "130, 143 "] {
        assert!(codes.contains(&format!("\n  {code}")), "{code}: {codes}");
    }
}

#[test]
fn a_prompt_beyond_the_models_positions_is_refused_before_its_weights_are_read() {
    let out = TempDir::new().unwrap();
    // All of a model but its weights.
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(root().join(BASE).join(name), out.path().join(name)).unwrap();
    }
    let model = out.path().to_str().unwrap();
    let prompt = "7 ".repeat(60_000);
    for more in [&[][..], &["--raw"]] {
        let arguments = [&["generate", "--model", model, "--prompt", &prompt], more].concat();
        let text = refused(&olora(&arguments), 1);
        assert!(
            text.contains("tokens long, but must be at most 256"),
            "{}",
            &text[text.len().saturating_sub(300)..]
        );
    }
    let setting = format!("samples.prompts=[\"{prompt}\"]");
    let output = olora(&["train", RECIPE, "--set", &setting, "--set", "name=never"]);
    let text = refused(&output, 1);
    assert!(
        text.contains("`samples.prompts`"),
        "{}",
        &text[text.len().saturating_sub(300)..]
    );
    assert!(!root().join("runs/never").exists());
}

#[test]
fn control_characters_of_files_are_shown_on_stderr_and_left_in_results() {
    let out = TempDir::new().unwrap();
    let file = out.path().join("data.jsonl");
    let record = |key: &str| {
        format!("{{\"prompt\": \"Zora\", \"completion\": \"lives\\u001b[2J in Oxmere\"{key}}}\n")
    };
    fs::write(&file, record(", \"\\u001b[31mred\\u009b\\r\": 1")).unwrap();
    let arguments = ["inspect", "data", file.to_str().unwrap(), "--model", BASE];
    let text = stderr(&olora(&arguments));
    assert!(text.contains("\\u{1b}[31mred\\u{9b}\\r"), "{text}");
    assert!(
        !text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'),
        "{text:?}"
    );
    // A pipe gets what is there.
    fs::write(&file, record("")).unwrap();
    let output = olora(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains('\u{1b}'), "{:?}", stdout(&output));
}
