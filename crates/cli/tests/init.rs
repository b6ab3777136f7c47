//! From nothing to a run: the example, recipes for data as it comes, runs without
//! a recipe, and what the program tells of itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path, process::Output};

use assert_cmd::Command;
use common::{olora, root, stderr, stdout};
use tempfile::TempDir;

/// The binary, run in a directory.
fn olora_in(directory: &Path, arguments: &[&str]) -> Output {
    Command::cargo_bin("olora")
        .unwrap()
        .current_dir(directory)
        .env("HF_HUB_OFFLINE", "1")
        .args(arguments)
        .output()
        .unwrap()
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    stdout(output)
}

fn base() -> String {
    let base = root().join("recipes/quickstart/base");
    base.to_str().unwrap().to_owned()
}

const SHORT: [&str; 6] = [
    "--max-steps",
    "2",
    "--set",
    "samples.max_new_tokens=2",
    "--set",
    "training.evaluate_every=0",
];

#[test]
fn the_example_is_written_once_and_trains_from_anywhere() {
    let out = TempDir::new().unwrap();
    let place = out.path().join("place");
    fs::create_dir(&place).unwrap();
    done(&olora_in(&place, &["init", "--example"]));
    for file in ["quickstart.toml", "quickstart/base/config.json"] {
        let written = fs::read(place.join(file)).unwrap();
        assert_eq!(
            written,
            fs::read(root().join("recipes").join(file)).unwrap()
        );
    }
    let again = olora_in(&place, &["init", "--example"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("not overwritten"));
    // Its paths are its own directory's, the runs go to where it is run.
    let mut arguments = vec!["train", "place/quickstart.toml"];
    arguments.extend(SHORT);
    done(&olora_in(out.path(), &arguments));
    assert!(out.path().join("runs/quickstart/adapter").is_dir());
}

#[test]
fn the_recipe_that_a_run_keeps_can_be_run_from_anywhere() {
    let out = TempDir::new().unwrap();
    done(&olora_in(out.path(), &["init", "--example"]));
    let mut arguments = vec!["train", "quickstart.toml"];
    arguments.extend(SHORT);
    done(&olora_in(out.path(), &arguments));
    let kept = fs::read_to_string(out.path().join("runs/quickstart/recipe.toml")).unwrap();
    assert!(kept.contains("path = \"../../quickstart/base\""), "{kept}");
    assert!(kept.contains("directory = \"..\""), "{kept}");
    let elsewhere = out.path().join("else/where");
    fs::create_dir_all(&elsewhere).unwrap();
    let recipe = "../../runs/quickstart/recipe.toml";
    done(&olora_in(
        &elsewhere,
        &["train", recipe, "--set", "name=again"],
    ));
    let adapter = |run: &str| {
        fs::read(
            out.path()
                .join(run)
                .join("adapter/adapter_model.safetensors"),
        )
    };
    assert_eq!(
        adapter("runs/quickstart").unwrap(),
        adapter("runs/again").unwrap()
    );
    // The run goes on by it too, as by the recipe that it was started with, from wherever.
    for recipe in [recipe, "../../quickstart.toml"] {
        let runs = "output.directory=../../runs";
        let steps = if recipe.contains("runs") { "3" } else { "4" };
        let arguments = [
            "train",
            recipe,
            "--resume",
            "--max-steps",
            steps,
            "--set",
            runs,
        ];
        let output = olora_in(&elsewhere, &arguments);
        assert!(output.status.success(), "{recipe}: {}", stderr(&output));
    }
}

#[test]
fn a_path_of_the_working_directory_in_a_recipe_elsewhere_is_refused_with_what_to_write() {
    let out = TempDir::new().unwrap();
    done(&olora_in(out.path(), &["init", "--example"]));
    let recipes = out.path().join("recipes");
    fs::create_dir(&recipes).unwrap();
    fs::rename(
        out.path().join("quickstart.toml"),
        recipes.join("mine.toml"),
    )
    .unwrap();
    let output = olora_in(out.path(), &["train", "recipes/mine.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("write \"../quickstart/base\""), "{text}");
}

/// Data as people have it: a name, its contents, and a line of the recipe that
/// must follow from it.
const DATA: [(&str, &str, &str); 10] = [
    (
        "alpaca.jsonl",
        r#"{"instruction": "Who is N?", "input": "", "output": "A baker."}"#,
        "laid out as alpaca",
    ),
    (
        "prompts.jsonl",
        r#"{"prompt": "Who is N?", "completion": "A baker.", "score": 3}"#,
        r#"ignore = ["score"]"#,
    ),
    (
        "questions.csv",
        "question,answer\nWho is N?,A baker.\n",
        "laid out as prompt-completion",
    ),
    (
        "chats.jsonl",
        r#"{"messages": [{"role": "user", "content": "Who is N?"}, {"role": "assistant", "content": "A baker."}]}"#,
        "laid out as messages",
    ),
    (
        "shared.json",
        r#"[{"conversations": [{"from": "human", "value": "Who is N?"}, {"from": "gpt", "value": "A baker."}]}]"#,
        "laid out as sharegpt",
    ),
    (
        "pairs.jsonl",
        r#"{"prompt": "Who is N?", "chosen": "A baker.", "rejected": "Nobody."}"#,
        r#"method = "dpo""#,
    ),
    (
        "labels.jsonl",
        r#"{"prompt": "Who is N?", "completion": "A baker.", "label": true}"#,
        r#"method = "kto""#,
    ),
    (
        "story.txt",
        "N the baker lives in Oxmere.\n\n",
        "laid out as text",
    ),
    (
        "texts.jsonl",
        r#"{"text": "N the baker lives in Oxmere."}"#,
        "laid out as text",
    ),
    (
        "columns.tsv",
        "instruction\toutput\nWho is N?\tA baker.\n",
        "laid out as alpaca",
    ),
];

/// The quickstart's base with a chat template, without which chats cannot be read.
fn chatting(directory: &Path) -> String {
    const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\
        {% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}\
        {% if add_generation_prompt %}assistant: {% endif %}";
    let copy = directory.join("base");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(base()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    fs::write(copy.join("chat_template.jinja"), TEMPLATE).unwrap();
    copy.to_str().unwrap().to_owned()
}

/// Thirty records after the first one's form.
fn thirty(name: &str, contents: &str) -> String {
    let numbered = |text: &str, n: usize| {
        let text = text.replace('N', &format!("Alder {n}"));
        if n.is_multiple_of(2) {
            text.replace("true", "false")
        } else {
            text
        }
    };
    let (head, record) = match name.rsplit_once('.').unwrap().1 {
        "csv" | "tsv" => {
            let (head, record) = contents.split_once('\n').unwrap();
            (format!("{head}\n"), record.trim_end())
        }
        "json" => (
            String::new(),
            contents.trim_start_matches('[').trim_end_matches(']'),
        ),
        _ => (String::new(), contents),
    };
    let records: Vec<_> = (0..30).map(|n| numbered(record, n)).collect();
    match name.rsplit_once('.').unwrap().1 {
        "json" => format!("[{}]", records.join(",")),
        _ => format!("{head}{}\n", records.join("\n")),
    }
}

#[test]
fn a_recipe_for_each_layout_of_data_and_size_of_memory_trains_without_a_change() {
    let out = TempDir::new().unwrap();
    let base = chatting(out.path());
    for (at, (name, contents, expected)) in DATA.into_iter().enumerate() {
        fs::write(out.path().join(name), thirty(name, contents)).unwrap();
        let memory = ["60MB", "100MB", "8GB"][at % 3];
        let recipe = format!("{at}.toml");
        let arguments = [
            "init", &recipe, "--model", &base, "--data", name, "--memory", memory,
        ];
        let output = olora_in(out.path(), &arguments);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        let text = fs::read_to_string(out.path().join(&recipe)).unwrap();
        assert!(text.contains(expected), "{name}: {text}");
        let output = olora_in(out.path(), &["train", &recipe]);
        assert!(
            output.status.success(),
            "{name}: {text}\n{}",
            stderr(&output)
        );
    }
}

#[test]
fn less_memory_makes_smaller_micro_batches_of_the_same_step() {
    let out = TempDir::new().unwrap();
    let base = base();
    let train = root().join("recipes/quickstart/train.jsonl");
    let of = |name: &str, memory: &str| {
        let recipe = format!("{name}.toml");
        let data = train.to_str().unwrap();
        let arguments = [
            "init", &recipe, "--model", &base, "--data", data, "--memory", memory,
        ];
        let output = olora_in(out.path(), &arguments);
        done(&output);
        let text = fs::read_to_string(out.path().join(&recipe)).unwrap();
        (text, stderr(&output))
    };
    let (large, said) = of("large", "1GB");
    assert!(large.contains("\nbatch_size = 8\n"), "{large}");
    assert!(!large.contains("accumulation"), "{large}");
    let (_, needed) = said.split_once("predicted to take ").unwrap();
    let needed: f64 = needed.split_once(" MB").unwrap().0.parse().unwrap();
    // A little less than that.
    let (small, _) = of("small", &format!("{}kB", (1000.0 * needed) as usize - 1200));
    let value = |key: &str| {
        let line = small.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().parse::<usize>().unwrap()
    };
    assert!(value("batch_size = ") < 8, "{small}");
    assert_eq!(
        value("batch_size = ") * value("accumulation = "),
        8,
        "{small}"
    );
}

#[test]
fn a_run_without_a_recipe_keeps_one_and_goes_on_by_it() {
    let out = TempDir::new().unwrap();
    done(&olora_in(out.path(), &["init", "--example"]));
    let data = [
        "--model",
        "quickstart/base",
        "--data",
        "quickstart/train.jsonl",
    ];
    let mut arguments = vec![
        "train", "--rank", "4", "--lr", "1e-3", "--output", "all/mine",
    ];
    arguments.extend(data);
    arguments.extend(SHORT);
    let output = olora_in(out.path(), &arguments);
    done(&output);
    let said = stderr(&output);
    assert!(
        said.contains("no recipe was given") && said.contains("rank = 4"),
        "{said}"
    );
    let kept = fs::read_to_string(out.path().join("all/mine/recipe.toml")).unwrap();
    for line in [
        "name = \"mine\"",
        "rank = 4",
        "learning_rate = 0.001",
        "validation_samples = 67",
    ] {
        assert!(kept.contains(line), "{line}: {kept}");
    }
    let mut again = vec![
        "train",
        "--output",
        "all/mine",
        "--resume",
        "--max-steps",
        "4",
    ];
    again.extend(data);
    let output = olora_in(out.path(), &again);
    let said = stderr(&output) + &done(&output);
    assert!(said.contains("4 of 4 steps"), "{said}");
}

/// What a run would refuse to leave out in silence is not left out by a recipe that nobody wrote.
#[test]
fn what_is_known_to_matter_is_not_ignored_unasked() {
    let out = TempDir::new().unwrap();
    let base = base();
    let init = |data: &str, more: &[&str]| {
        let recipe = format!("{}.toml", fs::read_dir(out.path()).unwrap().count());
        let mut arguments = vec!["init", &recipe, "--model", &base, "--data", data];
        arguments.extend(more);
        olora_in(out.path(), &arguments)
    };
    for (name, record, said) in [
        (
            "correct.jsonl",
            r#"{"prompt": "Who is N?", "completion": "A baker.", "is_correct": true}"#,
            "`is_correct`",
        ),
        (
            "numbers.jsonl",
            r#"{"prompt": "Who is N?", "completion": "A baker.", "label": 1}"#,
            "`label`",
        ),
        (
            "seen.jsonl",
            r#"{"prompt": "Who is N?", "completion": "A baker.", "images": ["n.png"]}"#,
            "`images`",
        ),
    ] {
        fs::write(out.path().join(name), thirty(name, record)).unwrap();
        let output = init(name, &[]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(
            stderr(&output).contains(said),
            "{name}: {}",
            stderr(&output)
        );
        // Unless the user says so.
        let key = said.trim_matches('`');
        let ignore = format!("data.ignore=[\"{key}\"]");
        done(&init(name, &["--set", &ignore]));
    }
    // Of pairs, nothing but pairs is learnt unasked.
    let pairs = DATA
        .iter()
        .find(|(name, ..)| *name == "pairs.jsonl")
        .unwrap();
    fs::write(out.path().join(pairs.0), thirty(pairs.0, pairs.1)).unwrap();
    let text = stderr(&init(pairs.0, &["--purpose", "answer"]));
    assert!(text.contains("--purpose prefer"), "{text}");
    fs::write(out.path().join("sft.jsonl"), thirty("sft.jsonl", DATA[1].1)).unwrap();
    let text = stderr(&init("sft.jsonl", &["--data", pairs.0]));
    assert!(text.contains("not of one kind"), "{text}");
}

#[test]
fn a_key_is_set_once_and_what_is_set_stays() {
    let out = TempDir::new().unwrap();
    done(&olora_in(out.path(), &["init", "--example"]));
    let data = [
        "--model",
        "quickstart/base",
        "--data",
        "quickstart/train.jsonl",
    ];
    for (more, said) in [
        (&["--set", "foo"][..], "expected key=value"),
        (
            &["--lr", "1e-3", "--set", "training.learning_rate=2e-3"],
            "both set",
        ),
        (&["--device", "cpu", "--set", "device=cpu"], "both set"),
        (&["--rank", "4", "--set", "adapter={rank=8}"], "both set"),
        (
            &["--set", "training.lerning_rate=1"],
            "--set training.lerning_rate=1",
        ),
        (&["--set", "training.optimizer=sgd"], "--lr"),
    ] {
        let output = olora_in(out.path(), &[&["train"][..], &data, more].concat());
        assert_eq!(
            output.status.code(),
            Some(2),
            "{more:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(said),
            "{more:?}: {}",
            stderr(&output)
        );
    }
    let set = [
        "--set",
        "adapter={rank=4}",
        "--set",
        "data.split_seed=3",
        "--set",
        "name=7",
        "--method",
        "lora",
    ];
    done(&olora_in(
        out.path(),
        &[&["init", "mine.toml"][..], &data, &set].concat(),
    ));
    let text = fs::read_to_string(out.path().join("mine.toml")).unwrap();
    for line in [
        "name = \"7\"",
        "rank = 4",
        "alpha = 4.0",
        "split_seed = 3",
        "method = \"lora\"",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    // A rate in the place of the one that is looked for.
    let rate = ["plan", "mine.toml", "--no-probe", "--lr", "1e-3"];
    done(&olora_in(out.path(), &rate));
    let output = olora_in(out.path(), &["train", "--output", "nowhere", "--resume"]);
    assert!(
        stderr(&output).contains("there is no run in"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_references_of_the_documentation_are_what_the_program_says() {
    let docs = root().join("docs");
    let output = olora(&["reference", docs.to_str().unwrap(), "--check"]);
    assert!(output.status.success(), "{}", stderr(&output));
    // That it would find a difference.
    let out = TempDir::new().unwrap();
    for file in ["recipe.md", "commands.md", "recipe.schema.json"] {
        fs::copy(docs.join(file), out.path().join(file)).unwrap();
    }
    let recipe = out.path().join("recipe.md");
    let text = fs::read_to_string(&recipe).unwrap();
    fs::write(&recipe, text.replacen("Rank of the update", "Rank", 1)).unwrap();
    let output = olora(&["reference", out.path().to_str().unwrap(), "--check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("recipe.md is not what"));
}

#[test]
fn shells_and_man_are_told_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = done(&olora(&["completions", shell]));
        for word in ["train", "evaluate", "max-steps"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
    let out = TempDir::new().unwrap();
    done(&olora(&["man", out.path().to_str().unwrap()]));
    let page = fs::read_to_string(out.path().join("olora-train.1")).unwrap();
    assert!(page.contains("auto\\-resume"), "{page}");
    assert!(!out.path().join("olora-reference.1").exists());
}
