//! What is said, how much of it, in which colours, and to programs as JSON.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path, process::Output};

use assert_cmd::Command;
use common::{olora, refused, root, stderr, stdout};
use serde_json::{Value, json};
use tempfile::TempDir;

const BASE: &str = "recipes/quickstart/base";
const ADAPTER: &str = "fixtures/peft/train-lora/final";
const RED: &str = "\u{1b}[1m\u{1b}[31merror:\u{1b}[0m";

/// Two steps of the quickstart, with more arguments.
fn train(out: &TempDir, more: &[&str]) -> Output {
    let directory = format!("output.directory=\"{}\"", out.path().display());
    let mut arguments = vec!["train", "recipes/quickstart.toml"];
    for setting in [
        directory.as_str(),
        "training.max_steps=2",
        "training.log_every=1",
        "training.evaluate_every=0",
        "samples.prompts=[]",
    ] {
        arguments.extend(["--set", setting]);
    }
    olora(&[&arguments, more].concat())
}

/// What stdout has: a line of JSON for each event.
fn events(output: &Output) -> Vec<Value> {
    let text = stdout(output);
    let events = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    events.collect()
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    let events = events.iter();
    events.filter(|event| event["event"] == name).collect()
}

#[test]
fn with_json_stdout_has_the_events_of_a_run_and_stderr_has_the_words() {
    let out = TempDir::new().unwrap();
    let output = train(&out, &["--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let events = events(&output);
    let names: Vec<_> = events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    for name in [
        "device",
        "data",
        "model",
        "ready",
        "step",
        "evaluation",
        "checkpoint",
        "took",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert_eq!(names.last(), Some(&"summary"));
    let steps = named(&events, "step");
    assert_eq!(steps.len(), 2);
    assert_eq!(
        (&steps[1]["step"], &steps[1]["total_steps"]),
        (&2.into(), &2.into())
    );
    for key in [
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "seconds_left",
    ] {
        assert!(steps[1][key].is_number(), "{key}: {}", steps[1]);
    }
    assert!(
        stderr(&output).contains("step 2/2 | loss"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn quietly_there_is_the_result_and_nothing_else() {
    let out = TempDir::new().unwrap();
    let output = train(&out, &["-q"]);
    assert_eq!(stderr(&output), "");
    assert!(
        stdout(&output).starts_with("finished"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn verbosely_there_are_layers_keys_and_the_times_of_stages() {
    let out = TempDir::new().unwrap();
    let text = stderr(&train(&out, &["-v"]));
    for expected in [
        "layer ",
        "model.layers.0.self_attn.q_proj",
        "training data, keys: `prompt` in ",
        "threads: ",
        "checkpoint: ",
    ] {
        assert!(text.contains(expected), "`{expected}` is not in\n{text}");
    }
}

#[test]
fn a_line_of_a_run_says_how_long_it_takes() {
    let out = TempDir::new().unwrap();
    let text = stderr(&train(&out, &[]));
    let line = text
        .lines()
        .find(|line| line.starts_with("step 1/2 | "))
        .unwrap();
    assert!(line.ends_with(" left") && line.contains(" s, "), "{line}");
}

#[test]
fn an_error_is_an_event_too() {
    let output = olora(&[
        "train",
        "recipes/quickstart.toml",
        "--json",
        "--set",
        "model.path=no/such/model",
    ]);
    let events = events(&output);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (&events[0]["event"], &events[0]["code"]),
        (&"error".into(), &1.into())
    );
    let message = events[0]["message"].as_str().unwrap();
    assert!(message.contains("no/such/model"), "{message}");
}

#[test]
fn what_goes_without_saying_and_what_more_is_said_exclude_each_other() {
    let text = refused(&olora(&["devices", "-q", "-v"]), 2);
    assert!(text.contains("cannot be used with"), "{text}");
    let text = refused(&olora(&["train", "x.toml", "--tui", "--json"]), 2);
    assert!(text.contains("cannot be used with"), "{text}");
}

/// What an error looks like, with these arguments and this environment.
fn error(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = Command::cargo_bin("olora").unwrap();
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command
        .envs(environment.iter().copied())
        .current_dir(root());
    stderr(&command.args(arguments).output().unwrap())
}

#[test]
fn errors_are_red_where_it_is_asked_for() {
    let wrong = ["report", "no/such/comparison"];
    let always = ["--color", "always", "report", "no/such/comparison"];
    assert!(error(&always, &[]).starts_with(RED));
    assert!(error(&wrong, &[("CLICOLOR_FORCE", "1")]).starts_with(RED));
    // What is asked for on the command line goes before what the environment says.
    assert!(error(&always, &[("NO_COLOR", "1")]).starts_with(RED));
    for (arguments, environment) in [
        (&wrong[..], &[][..]),
        (&wrong, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]),
        (
            &["--color=never", "report", "x"],
            &[("CLICOLOR_FORCE", "1")],
        ),
    ] {
        let text = error(arguments, environment);
        assert!(text.starts_with("error: "), "{environment:?}: {text:?}");
    }
}

#[test]
fn errors_of_the_command_line_have_the_same_colours() {
    let escape = '\u{1b}';
    assert!(error(&["fly", "--color", "always"], &[]).contains(escape));
    assert!(!error(&["fly", "--color", "never"], &[("CLICOLOR_FORCE", "1")]).contains(escape));
    assert!(!error(&["fly"], &[]).contains(escape));
}

#[test]
fn a_colour_that_there_is_not_is_refused() {
    let text = refused(&olora(&["devices", "--color", "pink"]), 2);
    assert!(text.contains("'pink'") && text.contains("never"), "{text}");
}

/// `olora generate` on the quickstart's base, with this on stdin.
fn generate(stdin: &str, more: &[&str]) -> Output {
    let arguments = ["generate", "--model", BASE, "--max-new-tokens", "4"];
    Command::cargo_bin("olora")
        .unwrap()
        .current_dir(root())
        .args(arguments)
        .args(more)
        .write_stdin(stdin)
        .output()
        .unwrap()
}

#[test]
fn a_prompt_may_come_from_stdin() {
    let given = stdout(&generate("", &["--prompt", "Where does Alder live?"]));
    assert!(!given.trim().is_empty());
    assert_eq!(stdout(&generate("Where does Alder live?\n", &[])), given);
    let dash = ["--prompt", "-"];
    assert_eq!(stdout(&generate("Where does Alder live?\n", &dash)), given);
}

#[test]
fn an_empty_stdin_is_refused_by_name() {
    let text = refused(&generate("\n", &["--prompt", "-"]), 2);
    assert!(text.contains("stdin is empty"), "{text}");
}

#[test]
fn how_fast_it_was_is_said_on_stderr() {
    let text = stderr(&generate("", &["--prompt", "Where does Alder live?"]));
    assert!(
        text.contains(" prompt tokens in ") && text.contains(" new in "),
        "{text}"
    );
}

/// The quickstart's base with this chat template.
fn with_template(out: &TempDir, template: &str) -> String {
    let base = out.path().join("base");
    fs::create_dir(&base).unwrap();
    for file in fs::read_dir(root().join(BASE)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), base.join(file.file_name())).unwrap();
    }
    let path = base.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = json!(template);
    fs::write(path, config.to_string()).unwrap();
    base.to_str().unwrap().to_owned()
}

/// What is said of a system message, with this template.
fn system(template: &str, system: &str) -> Output {
    let out = TempDir::new().unwrap();
    let base = with_template(&out, template);
    let prompt = ["--prompt", "Where?", "--max-new-tokens", "2"];
    let model = ["generate", "--model", &base, "--system", system];
    olora(&[&model[..], &prompt].concat())
}

#[test]
fn a_system_message_reaches_the_model_or_is_refused() {
    let all = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}";
    let output = system(all, "Be brief.");
    assert!(output.status.success(), "{}", stderr(&output));
    let users = "{% for m in messages if m.role == 'user' %}{{ m.content }}<|end|>{% endfor %}";
    let text = refused(&system(users, "Be brief."), 1);
    assert!(
        text.contains("--system: the chat template leaves it out"),
        "{text}"
    );
    let none =
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x";
    let text = refused(&system(none, "Be brief."), 1);
    assert!(
        text.contains("--system: the chat template takes none"),
        "{text}"
    );
    let text = refused(&system(all, " "), 2);
    assert!(text.contains("--system is empty"), "{text}");
}

#[test]
fn a_system_message_without_a_template_is_refused() {
    let prompt = ["--prompt", "Where?", "--system", "Be brief."];
    let text = refused(&generate("", &prompt), 1);
    assert!(
        text.contains("--system: there is no chat template"),
        "{text}"
    );
    let text = refused(&generate("", &[&prompt[..], &["--raw"]].concat()), 2);
    assert!(text.contains("cannot be used with"), "{text}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_is_written_is_an_event() {
    let out = TempDir::new().unwrap();
    let (adapter, model) = (out.path().join("smaller"), out.path().join("model.gguf"));
    let adapter_in = "fixtures/peft/llama-lora";
    let convert = [
        "convert",
        adapter_in,
        "--output",
        text(&adapter),
        "--rank",
        "2",
        "--json",
    ];
    let told = events(&olora(&convert));
    assert_eq!(named(&told, "reduced")[0]["rank"], 2);
    assert_eq!(named(&told, "written")[0]["path"], text(&adapter));
    let convert = ["convert", BASE, "--output", text(&model), "--json"];
    let told = events(&olora(&convert));
    let written = named(&told, "written");
    assert_eq!(written.len(), 1, "{told:?}");
    assert!(written[0]["tensors"].is_object(), "{told:?}");
}

#[test]
fn a_merge_tells_what_rounding_takes() {
    let out = TempDir::new().unwrap();
    let output = train(&out, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let (run, merged) = (out.path().join("quickstart"), out.path().join("merged"));
    let merge = [
        "merge",
        "--adapter",
        text(&run),
        "--output",
        text(&merged),
        "--json",
    ];
    let told = events(&olora(&[&merge[..], &["--dtype", "bfloat16"]].concat()));
    let rounded = named(&told, "rounded");
    assert_eq!(rounded.len(), 1, "{told:?}");
    assert!(rounded[0]["loss_after"].is_number(), "{told:?}");
}

#[test]
fn a_push_lists_its_files_as_events() {
    let push = ["push", ADAPTER, "owner/name", "--dry-run", "--json"];
    let told = events(&olora(&push));
    let files = named(&told, "file");
    let is_weights = |file: &&&Value| file["file"] == "adapter_model.safetensors";
    assert!(
        files.iter().find(is_weights).unwrap()["bytes"].is_u64(),
        "{told:?}"
    );
    assert_eq!(told.last().unwrap()["event"], "pushed");
}

#[test]
fn tasks_are_events_before_the_result() {
    let data = TempDir::new().unwrap();
    let question =
        r#"{"query": "Question: Who is Imke?", "choices": ["a hen", "a friend"], "gold": 1}"#;
    fs::write(data.path().join("arc_easy.jsonl"), question).unwrap();
    let tasks = [
        "--tasks",
        "arc_easy",
        "--task-data",
        text(data.path()),
        "--json",
    ];
    let told = events(&olora(
        &[&["evaluate", "--model", BASE][..], &tasks].concat(),
    ));
    let progress = named(&told, "task");
    let last = progress.last().unwrap();
    assert_eq!((&last["done"], &last["total"]), (&1.into(), &1.into()));
    assert_eq!(told.last().unwrap()["tasks"][0]["task"], "arc_easy");
}

#[test]
fn a_doctors_findings_are_events_before_the_list() {
    let told = events(&olora(&[
        "doctor",
        "--device",
        "cpu",
        "--lengths",
        "7",
        "--json",
    ]));
    let (findings, list) = (named(&told, "finding"), told.last().unwrap());
    assert_eq!(named(&told, "examining")[0]["operations"], findings.len());
    assert!(findings.iter().all(|finding| finding["device"] == "cpu"));
    let listed = list[0]["examinations"][0]["findings"].as_array().unwrap();
    assert_eq!(listed.len(), findings.len());
}

#[test]
fn a_comparison_is_events() {
    let out = TempDir::new().unwrap();
    let directory = out.path().join("comparison");
    let mut arguments = vec!["compare", "recipes/quickstart.toml", "--json"];
    arguments.extend(["--methods", "lora", "--lrs", "3e-3", "--seeds", "1"]);
    arguments.extend(["--output", text(&directory)]);
    for setting in [
        "training.max_steps=2",
        "training.evaluate_every=1",
        "training.warmup_steps=1",
    ] {
        arguments.extend(["--set", setting]);
    }
    let told = events(&olora(&arguments));
    assert_eq!(named(&told, "trial")[0]["number"], 1);
    assert!(
        named(&told, "trial_finished")[0]["loss"].is_number(),
        "{told:?}"
    );
    let report = named(&told, "report");
    assert!(
        report[0]["markdown"]
            .as_str()
            .unwrap()
            .starts_with("# lora"),
        "{told:?}"
    );
}
