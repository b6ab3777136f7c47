//! Tasks: what is read from files, what is asked, and what is scored.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation::log_softmax};
use olora_data::Tokenizer;
use olora_model::{Dtype, Llama, ModelConfig, Sampling};
use olora_tasks::{
    ChoiceResult, ItemResults, Items, MultipleChoice, Task, TaskError, TaskName, TaskOptions,
    TaskResult, load, score, write_items,
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/quickstart/base")
}

/// A directory with one file of these records.
fn directory(file: &str, records: &[Value]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    let lines = lines.join("\n");
    fs::write(directory.path().join(file), lines).unwrap();
    directory
}

fn read(name: TaskName, file: &str, records: &[Value]) -> Vec<MultipleChoice> {
    let directory = directory(file, records);
    let mut tasks = load(&[name], directory.path(), None).unwrap();
    match tasks.remove(0).items {
        Items::Choices(items) => items,
        Items::Open(_) => panic!("{name} is multiple choice"),
    }
}

/// The prompt and the choices as they are scored, of a task whose choices
/// continue one context.
fn asked(name: TaskName, record: &Value) -> (String, Vec<String>, usize) {
    let item = read(name, &format!("{name}.jsonl"), std::slice::from_ref(record)).remove(0);
    let [context, _] = item.requests[0].clone();
    assert!(item.requests.iter().all(|[other, _]| *other == context));
    let continuations = item
        .requests
        .into_iter()
        .map(|[_, continuation]| continuation);
    let continuations: Vec<String> = continuations.collect();
    let choices: Vec<String> = item
        .choices
        .iter()
        .map(|choice| format!(" {choice}"))
        .collect();
    assert_eq!(choices, continuations, "lengths are of other choices");
    (context, continuations, item.gold)
}

fn expected(context: &str, choices: &[&str], gold: usize) -> (String, Vec<String>, usize) {
    let choices = choices.iter().map(|choice| (*choice).to_owned()).collect();
    (context.to_owned(), choices, gold)
}

#[test]
fn arc_is_asked_as_question_and_answer_in_every_layout() {
    let expected = expected(
        "Question: What melts?\nAnswer:",
        &[" ice", " wood", " stone"],
        1,
    );
    let texts = ["ice", "wood", "stone"];
    let listed = json!([
        {"text": "ice", "label": "A"}, {"text": "wood", "label": "B"}, {"text": "stone", "label": "C"}
    ]);
    let layouts = [
        json!({"question": "What melts?", "choices": {"text": texts, "label": ["A", "B", "C"]}, "answerKey": "B"}),
        json!({"question": "What melts?", "choices": {"text": texts, "label": ["1", "2", "3"]}, "answerKey": "2"}),
        json!({"id": "x", "question": {"stem": "What melts?", "choices": listed}, "answerKey": "B"}),
        json!({"query": "Question: What melts?", "choices": texts, "gold": 1}),
        // A question of three choices, filled up.
        json!({"query": "Question: What melts?", "choices": ["ice", "wood", "ice", "stone"], "gold": 1}),
    ];
    for name in [TaskName::ArcEasy, TaskName::ArcChallenge] {
        for layout in &layouts {
            assert_eq!(asked(name, layout), expected, "{layout}");
        }
    }
    let filled = json!({"query": "Question: x", "choices": ["a", "b", "a", "c"], "gold": 3});
    assert_eq!(asked(TaskName::ArcEasy, &filled).2, 2);
}

#[test]
fn openbookqa_is_the_bare_stem() {
    let expected = expected("Ice", &[" melts", " burns"], 0);
    let layouts = [
        json!({"question_stem": "Ice", "choices": {"text": ["melts", "burns"], "label": ["A", "B"]}, "answerKey": " A"}),
        json!({"question": {"stem": "Ice", "choices": [{"text": "melts", "label": "A"}, {"text": "burns", "label": "B"}]}, "answerKey": "A"}),
        json!({"query": "Ice", "choices": ["melts", "burns"], "gold": 0}),
    ];
    for layout in &layouts {
        assert_eq!(asked(TaskName::OpenBookQa, layout), expected, "{layout}");
    }
    let other_name = read(TaskName::OpenBookQa, "openbook_qa.jsonl", &layouts[..1]);
    assert_eq!(other_name.len(), 1);
}

#[test]
fn boolq_is_passage_question_and_no_or_yes() {
    let expected = expected(
        "Ice melts.\nQuestion: Why?\nQuestion: does ice melt?\nAnswer:",
        &[" no", " yes"],
        1,
    );
    let passage = "Ice melts.\nQuestion: Why?";
    let layouts = [
        json!({"question": "does ice melt", "passage": passage, "label": 1}),
        json!({"question": "does ice melt", "passage": passage, "label": true}),
        json!({"question": "does ice melt", "passage": passage, "answer": true}),
        json!({"query": format!("Passage: {passage}\nQuestion: does ice melt?"), "choices": ["no", "yes"], "gold": 1}),
    ];
    for layout in &layouts {
        assert_eq!(asked(TaskName::BoolQ, layout), expected, "{layout}");
    }
    // The original keeps apart the title that the harness's copy has in the passage.
    let titled =
        json!({"question": "is it", "title": "Ice", "passage": "It is cold.", "answer": false});
    let (context, _, gold) = asked(TaskName::BoolQ, &titled);
    assert_eq!(
        (context.as_str(), gold),
        ("Ice -- It is cold.\nQuestion: is it?\nAnswer:", 0)
    );
}

#[test]
fn hellaswag_is_preprocessed_as_published() {
    let record = json!({
        "activity_label": "Removing ice from car",
        "ctx_a": "[header] How to begin [title] Look  around.",
        "ctx_b": "then the Man",
        "endings": ["[substeps] gets a broom. ", " [title] sits   down.", "goes"],
        "label": "2",
    });
    let (context, choices, gold) = asked(TaskName::HellaSwag, &record);
    assert_eq!(
        (context.as_str(), gold),
        (
            "Removing ice from car: How to begin. Look around. Then the man",
            2
        )
    );
    // `strip` comes first, so that a title at the very beginning is no ". ", and what
    // brackets leave behind stays.
    assert_eq!(choices, ["  gets a broom.", "  sits  down.", " goes"]);

    let without_second = json!({
        "activity_label": "Ice", "ctx_a": "A man sits.", "ctx_b": "", "endings": ["a", "b"], "label": 0,
    });
    assert_eq!(
        asked(TaskName::HellaSwag, &without_second).0,
        "Ice: A man sits."
    );
    let foundry = json!({"query": "Ice: A man", "choices": ["sits", "runs"], "gold": 1});
    assert_eq!(
        asked(TaskName::HellaSwag, &foundry),
        (
            "Ice: A man".to_owned(),
            vec![" sits".to_owned(), " runs".to_owned()],
            1
        )
    );
}

#[test]
fn piqa_is_asked_as_question_and_answer_with_labels_inside_or_beside() {
    let expected = expected("Question: ice\nAnswer:", &[" melt it", " burn it"], 1);
    let layouts = [
        json!({"goal": "ice", "sol1": "melt it", "sol2": "burn it", "label": 1}),
        json!({"query": "Question: ice\n", "choices": ["melt it", "burn it"], "gold": 1}),
    ];
    for layout in &layouts {
        assert_eq!(asked(TaskName::Piqa, layout), expected, "{layout}");
    }
    let unlabelled = json!({"goal": "ice", "sol1": "melt it", "sol2": "burn it"});
    let directory = directory("piqa.jsonl", &[unlabelled.clone(), unlabelled]);
    let without = load(&[TaskName::Piqa], directory.path(), None).unwrap_err();
    assert!(without.to_string().contains("-labels.lst"), "{without}");
    fs::write(directory.path().join("piqa-labels.lst"), "1\n0\n").unwrap();
    let tasks = load(&[TaskName::Piqa], directory.path(), None).unwrap();
    let Items::Choices(items) = &tasks[0].items else {
        panic!("piqa is multiple choice")
    };
    assert_eq!((items[0].gold, items[1].gold), (1, 0));
    fs::write(directory.path().join("piqa-labels.lst"), "1\n").unwrap();
    let too_few = load(&[TaskName::Piqa], directory.path(), None).unwrap_err();
    assert!(
        too_few.to_string().contains("1 labels for the 2 items"),
        "{too_few}"
    );
}

#[test]
fn winogrande_asks_under_which_context_the_same_end_is_likelier() {
    let layouts = [
        json!({"sentence": "Ann met Sue because _ was in town. ", "option1": "Ann", "option2": "Sue", "answer": "2"}),
        json!({
            "context_options": ["Ann met Sue because Ann", "Ann met Sue because Sue"],
            "continuation": "was in town.", "gold": 1,
        }),
    ];
    for layout in &layouts {
        let items = read(
            TaskName::WinoGrande,
            "winogrande.jsonl",
            std::slice::from_ref(layout),
        );
        assert_eq!(items[0].gold, 1);
        assert_eq!(
            items[0].requests,
            [
                ["Ann met Sue because Ann", " was in town."],
                ["Ann met Sue because Sue", " was in town."]
            ]
            .map(|request| request.map(str::to_owned)),
            "{layout}"
        );
    }
}

#[test]
fn gsm8k_is_asked_as_question_and_answer() {
    let record = json!({"question": "How many?", "answer": "1 + 1 = 2\n#### 2"});
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("gsm8k")).unwrap();
    let file = directory.path().join("gsm8k/test.jsonl");
    fs::write(file, record.to_string()).unwrap();
    let tasks = load(&[TaskName::Gsm8k], directory.path(), None).unwrap();
    let Items::Open(items) = &tasks[0].items else {
        panic!("gsm8k is answered by generating")
    };
    assert_eq!(items[0].prompt(), "Question: How many?\nAnswer:");
}

/// The message of an error that names the file.
fn refusal(name: TaskName, content: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = format!("{name}.jsonl");
    fs::write(directory.path().join(&file), content).unwrap();
    let error = load(&[name], directory.path(), None).unwrap_err();
    assert!(matches!(error, TaskError::Data { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&file), "{text}");
    text
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn what_cannot_be_asked_is_refused_with_file_and_line() {
    let good = r#"{"query": "Question: x", "choices": ["a", "b"], "gold": 1}"#;
    let cases = [
        (TaskName::ArcEasy, String::new(), "no items"),
        (
            TaskName::ArcEasy,
            format!("{good}\n\n{{\"query\": "),
            "line 3: expected one JSON object",
        ),
        (
            TaskName::ArcEasy,
            format!("{good}\n[1]"),
            "line 2: expected a JSON object",
        ),
        (
            TaskName::ArcEasy,
            good.replace("\"gold\": 1", "\"gold\": 2"),
            "number 2 counted from 0, but there are 2 choices",
        ),
        (
            TaskName::ArcEasy,
            good.replace("\"gold\": 1", "\"gold\": -1"),
            "`gold` must be a number from 0, found -1",
        ),
        (
            TaskName::ArcEasy,
            good.replace(r#""a", "b""#, ""),
            "there is no choice",
        ),
        (
            TaskName::ArcEasy,
            good.replace(r#""a", "b""#, "1"),
            "`choices` must be a list of texts",
        ),
        (
            TaskName::ArcEasy,
            good.replace("Question: ", "Q: "),
            "must begin with `Question: `",
        ),
        (
            TaskName::ArcEasy,
            r#"{"goal": "x"}"#.to_owned(),
            "line 1: expected `question`, `choices`",
        ),
        (
            TaskName::ArcEasy,
            r#"{"question": "x", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}"#
                .to_owned(),
            "`answerKey` is `B`, which is none of the labels A",
        ),
        (
            TaskName::OpenBookQa,
            r#"{"question_stem": "x", "choices": {"text": ["a"], "label": []}, "answerKey": "A"}"#
                .to_owned(),
            "1 choices and 0 labels",
        ),
        (
            TaskName::BoolQ,
            r#"{"question": "x", "passage": "y", "label": -1}"#.to_owned(),
            "found -1",
        ),
        (
            TaskName::BoolQ,
            r#"{"question": "x", "passage": "y"}"#.to_owned(),
            "`answer` (true or false)",
        ),
        (
            TaskName::HellaSwag,
            r#"{"ctx_a": "x"}"#.to_owned(),
            "`activity_label`",
        ),
        (
            TaskName::WinoGrande,
            r#"{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}"#.to_owned(),
            "must hold a `_`",
        ),
        (
            TaskName::WinoGrande,
            r#"{"sentence": "a _", "option1": "a", "option2": "b", "answer": ""}"#.to_owned(),
            "`answer` must be 1 or 2",
        ),
        (TaskName::WinoGrande, good.to_owned(), "`context_options`"),
        (
            TaskName::Gsm8k,
            r#"{"question": "x", "answer": "7"}"#.to_owned(),
            "must end in `#### `",
        ),
        (
            TaskName::Gsm8k,
            good.to_owned(),
            "expected `question` and `answer`; found `query`",
        ),
    ];
    for (name, content, expected) in cases {
        let text = refusal(name, &content);
        assert!(text.contains(expected), "{content}: {text}");
    }
    let empty = tempfile::tempdir().unwrap();
    let text = load(&[TaskName::OpenBookQa], empty.path(), None)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("openbookqa.jsonl or openbook_qa.jsonl"),
        "{text}"
    );
    let text = "arc".parse::<TaskName>().unwrap_err();
    assert!(
        text.contains("no task `arc`") && text.contains("arc_easy, arc_challenge"),
        "{text}"
    );
}

#[test]
fn a_limit_reads_no_further() {
    let directory = tempfile::tempdir().unwrap();
    let good = r#"{"query": "Question: x", "choices": ["a", "b"], "gold": 1}"#;
    let content = format!("\u{feff}{good}\r\n{good}\r\nnot JSON\n");
    fs::write(directory.path().join("arc_easy.jsonl"), content).unwrap();
    let tasks = load(&[TaskName::ArcEasy], directory.path(), Some(2)).unwrap();
    assert_eq!(tasks[0].items.len(), 2);
}

struct Tiny {
    llama: Llama,
    config: ModelConfig,
    tokenizer: Tokenizer,
}

fn tiny() -> Tiny {
    let (llama, config) = olora_model::load(&base(), Dtype::F32, &Device::flex()).unwrap();
    let tokenizer = Tokenizer::from_dir(&base()).unwrap();
    Tiny {
        llama,
        config,
        tokenizer,
    }
}

impl Tiny {
    fn options(&self) -> TaskOptions {
        TaskOptions::new(&self.config, &self.tokenizer, false)
    }

    fn score(&self, tasks: &[Task], options: &TaskOptions) -> Vec<TaskResult> {
        score(&self.llama, &self.tokenizer, tasks, options, &mut |_| {}).unwrap()
    }

    /// The log-probability of `text` after `context`, token by token, from the
    /// last `length` tokens of the two.
    fn by_hand(&self, context: &str, text: &str, length: usize) -> f64 {
        let whole = self
            .tokenizer
            .encode(&format!("{context}{text}"), true)
            .unwrap();
        let n = whole.len() - self.tokenizer.encode(context, true).unwrap().len();
        let input = &whole[whole.len().saturating_sub(length + 1)..whole.len() - 1];
        let ids: Vec<i32> = input.iter().map(|&id| id as i32).collect();
        let ids = TensorData::new(ids, [1, input.len()]);
        let ids = Tensor::<2, Int>::from_data(ids, &self.llama.device());
        let scores = log_softmax(self.llama.forward(ids), 2);
        let [_, seq, vocab] = scores.dims();
        let scores: Vec<f32> = scores.into_data_dtype(DType::F32).try_into_vec().unwrap();
        let targets = whole[whole.len() - n..].iter().zip(seq - n..);
        targets
            .map(|(&id, at)| f64::from(scores[at * vocab + id as usize]))
            .sum()
    }
}

fn choices(result: &TaskResult) -> &[ChoiceResult] {
    match &result.items {
        ItemResults::Choices(items) => items,
        ItemResults::Generations(_) => panic!("a multiple-choice task"),
    }
}

/// Items of many lengths: choices that begin alike, that begin one another, of
/// one token and of many, and contexts that differ.
fn tasks() -> (TempDir, Vec<Task>) {
    let questions = [
        "Where does Alder live?",
        "Who is the best friend of Clover the potter of Thistledown?",
        "What does Zeb take to market when winter is over and the roads are dry again?",
        "How?",
    ];
    let arc: Vec<Value> = (0..12)
        .map(|i| {
            let choices: &[&str] = match i % 3 {
                0 => &["Alder lives in Oxmere", "Alder lives in Larkmoor by the sea", "Alder"],
                1 => &["a potter", "butter", "the glassblower of Amberford, who sells blue bowls"],
                _ => &["oak", "tin", "oak stools"],
            };
            json!({"query": format!("Question: {}", questions[i % 4]), "choices": choices, "gold": i % 2})
        })
        .collect();
    let boolq: Vec<Value> = (0..5)
        .map(|i| json!({"passage": questions[i % 4], "question": "is it so", "label": i % 2}))
        .collect();
    let winogrande: Vec<Value> = (0..5)
        .map(|i| {
            json!({
                "sentence": format!("{} Alder met Clover because _ was in town.", questions[i % 4]),
                "option1": "Alder", "option2": "Clover the potter", "answer": "1",
            })
        })
        .collect();
    let out = tempfile::tempdir().unwrap();
    let names = [TaskName::ArcEasy, TaskName::BoolQ, TaskName::WinoGrande];
    for (name, records) in names.iter().zip([arc, boolq, winogrande]) {
        let lines: Vec<String> = records.iter().map(Value::to_string).collect();
        let lines = lines.join("\n");
        fs::write(out.path().join(format!("{name}.jsonl")), lines).unwrap();
    }
    let tasks = load(&names, out.path(), None).unwrap();
    (out, tasks)
}

/// The largest difference of two results' log-likelihoods, everything that is
/// counted being equal.
fn difference(ours: &[TaskResult], theirs: &[TaskResult]) -> f64 {
    let mut largest = 0.0_f64;
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours.metrics, theirs.metrics, "{}", ours.task);
        for (a, b) in choices(ours).iter().zip(choices(theirs)) {
            assert_eq!(
                (&a.is_greedy, &a.tokens, a.prediction),
                (&b.is_greedy, &b.tokens, b.prediction)
            );
            let pairs = a.log_likelihoods.iter().zip(&b.log_likelihoods);
            largest = pairs.fold(largest, |largest, (a, b)| largest.max((a - b).abs()));
        }
    }
    largest
}

#[test]
fn choices_score_the_sum_of_their_tokens_log_probabilities() {
    let tiny = tiny();
    let (_directory, tasks) = tasks();
    let results = tiny.score(&tasks, &tiny.options());
    for (task, result) in tasks.iter().zip(&results) {
        let Items::Choices(items) = &task.items else {
            panic!("multiple choice")
        };
        for (item, scored) in items.iter().zip(choices(result)) {
            for ([context, text], ours) in item.requests.iter().zip(&scored.log_likelihoods) {
                let expected = tiny.by_hand(context, text, 256);
                assert!(
                    (ours - expected).abs() < 1e-4 && expected < -1.0,
                    "{context}{text}: {ours} and {expected}"
                );
            }
        }
    }
    assert_eq!(
        results[0].metrics.keys().collect::<Vec<_>>(),
        ["acc", "acc_bytes", "acc_norm"]
    );
    assert_eq!(results[1].metrics.keys().collect::<Vec<_>>(), ["acc"]);
    assert_eq!(results[2].metrics.keys().collect::<Vec<_>>(), ["acc"]);
    assert!(results[0].tokens < results[0].request_tokens);
}

#[test]
fn sharing_prefixes_batching_and_padding_change_nothing() {
    let tiny = tiny();
    let (_directory, tasks) = tasks();
    let alone = TaskOptions {
        share_prefix: false,
        ..tiny.options()
    };
    let alone = tiny.score(&tasks, &alone);
    assert_eq!(alone[0].tokens, alone[0].request_tokens);
    for (batch_tokens, padding_multiple) in [(2048, 1), (1, 1), (60, 1), (2048, 8), (100, 64)] {
        let options = TaskOptions {
            batch_tokens,
            padding_multiple,
            ..tiny.options()
        };
        let difference = difference(&tiny.score(&tasks, &options), &alone);
        assert!(
            difference < 1e-5,
            "{difference} with {batch_tokens} tokens at once, padded to {padding_multiple}"
        );
    }
}

#[test]
fn long_contexts_are_cut_on_the_left() {
    let tiny = tiny();
    let (_directory, tasks) = tasks();
    let options = TaskOptions {
        max_length: 20,
        ..tiny.options()
    };
    let results = tiny.score(&tasks, &options);
    let whole = tiny.score(&tasks, &tiny.options());
    let Items::Choices(items) = &tasks[2].items else {
        panic!("multiple choice")
    };
    let mut cut = 0;
    for (i, item) in items.iter().enumerate() {
        for (k, [context, text]) in item.requests.iter().enumerate() {
            let ours = choices(&results[2])[i].log_likelihoods[k];
            let expected = tiny.by_hand(context, text, 20);
            assert!((ours - expected).abs() < 1e-4, "{context}{text}");
            cut += usize::from((ours - choices(&whole[2])[i].log_likelihoods[k]).abs() > 1e-3);
        }
    }
    assert!(cut > 0, "nothing was long enough to be cut");
}

#[test]
fn progress_counts_every_item() {
    let tiny = tiny();
    let (_directory, tasks) = tasks();
    let options = TaskOptions {
        batch_tokens: 100,
        ..tiny.options()
    };
    let mut seen = Vec::new();
    score(
        &tiny.llama,
        &tiny.tokenizer,
        &tasks[..1],
        &options,
        &mut |progress| {
            seen.push((progress.done, progress.total));
        },
    )
    .unwrap();
    assert_eq!((seen[0], *seen.last().unwrap()), ((0, 12), (12, 12)));
    assert!(seen.len() > 2 && seen.is_sorted(), "{seen:?}");
}

fn gsm8k(questions: &[&str]) -> (TempDir, Vec<Task>) {
    let records: Vec<Value> = questions
        .iter()
        .map(|question| json!({"question": question, "answer": "#### 7"}))
        .collect();
    let directory = directory("gsm8k.jsonl", &records);
    let tasks = load(&[TaskName::Gsm8k], directory.path(), None).unwrap();
    (directory, tasks)
}

#[test]
fn answers_are_the_greedy_continuations_whatever_they_are_batched_with() {
    let tiny = tiny();
    // Of the same length in tokens some of them, so that they are written together.
    let questions = [
        "Where is Alder?",
        "Where is Clover?",
        "Where is Alder?",
        "Who is it?",
    ];
    let (_directory, tasks) = gsm8k(&questions);
    let options = TaskOptions {
        max_new_tokens: 12,
        ..tiny.options()
    };
    for batch_tokens in [1, 2048] {
        let options = TaskOptions {
            batch_tokens,
            ..options.clone()
        };
        let results = tiny.score(&tasks, &options);
        let ItemResults::Generations(items) = &results[0].items else {
            panic!("gsm8k is answered by generating")
        };
        for (item, question) in items.iter().zip(questions) {
            let prompt = format!("Question: {question}\nAnswer:");
            let prompt = tiny.tokenizer.encode(&prompt, true).unwrap();
            let greedy = Sampling::default();
            let go_on = |_| ControlFlow::Continue(());
            let stop = &options.stop_ids;
            let tokens =
                olora_model::generate(&tiny.llama, &prompt, 12, &greedy, stop, go_on).unwrap();
            let text = tiny.tokenizer.decode(&tokens, true).unwrap();
            assert_eq!(
                (item.response.as_str(), item.tokens),
                (text.as_str(), tokens.len())
            );
            assert_eq!((item.gold.as_str(), item.strict_match), ("7", false));
        }
        assert!(items.iter().any(|item| !item.response.is_empty()));
    }
}

#[test]
fn options_that_cannot_be_meant_are_refused() {
    let tiny = tiny();
    let (_directory, questions) = gsm8k(&["Where is Alder?"]);
    let (_other, several) = tasks();
    let usual = tiny.options();
    let cases = [
        (
            &several,
            TaskOptions {
                chat: true,
                ..usual.clone()
            },
            "arc_easy is multiple choice",
        ),
        (
            &questions,
            TaskOptions {
                chat: true,
                ..usual.clone()
            },
            "has no chat template",
        ),
        (
            &questions,
            TaskOptions {
                max_new_tokens: 256,
                ..usual.clone()
            },
            "leave room for the question within 256",
        ),
        (
            &several,
            TaskOptions {
                max_length: 3,
                ..usual.clone()
            },
            "arc_easy.jsonl, item 0 counted from 0: a choice has",
        ),
    ];
    for (tasks, options, expected) in cases {
        let error = score(&tiny.llama, &tiny.tokenizer, tasks, &options, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

/// A token that was added to the tokenizer, and has no row in the embedding.
#[test]
fn tokens_without_a_row_are_refused_where_an_item_uses_them() {
    let tiny = tiny();
    let directory = tempfile::tempdir().unwrap();
    let mut json: Value =
        serde_json::from_slice(&fs::read(base().join("tokenizer.json")).unwrap()).unwrap();
    let added = json!({"id": 1024, "content": "<|bell|>", "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false, "special": false});
    json["added_tokens"].as_array_mut().unwrap().push(added);
    fs::write(directory.path().join("tokenizer.json"), json.to_string()).unwrap();
    let config = base().join("tokenizer_config.json");
    fs::copy(config, directory.path().join("tokenizer_config.json")).unwrap();
    let tokenizer = Tokenizer::from_dir(directory.path()).unwrap();
    let run = |tasks: &[Task]| {
        let options = TaskOptions {
            max_new_tokens: 2,
            ..tiny.options()
        };
        score(&tiny.llama, &tokenizer, tasks, &options, &mut |_| {})
    };
    let (_kept, unused) = gsm8k(&["Where does Alder live?"]);
    run(&unused).unwrap();
    let (_kept, used) = gsm8k(&["Where?", "Where does <|bell|> live?"]);
    let error = run(&used).unwrap_err().to_string();
    for part in [
        "question 1 counted from 0",
        "`<|bell|>` (1024)",
        "only 1024 rows",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let records = [
        json!({"query": "Question: x", "choices": ["a", "b"], "gold": 1}),
        json!({"query": "Question: y", "choices": ["a", "<|bell|>"], "gold": 1}),
    ];
    let kept = self::directory("arc_easy.jsonl", &records);
    let tasks = load(&[TaskName::ArcEasy], kept.path(), None).unwrap();
    let error = run(&tasks).unwrap_err().to_string();
    for part in ["item 1 counted from 0", "`<|bell|>` (1024)"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn results_are_written_and_read_again_and_never_over_others() {
    let tiny = tiny();
    let (_directory, tasks) = tasks();
    let results = tiny.score(&tasks, &tiny.options());
    let out = tempfile::tempdir().unwrap();
    write_items(out.path(), &results).unwrap();
    let text = fs::read_to_string(out.path().join("arc_easy.jsonl")).unwrap();
    let again: Vec<ChoiceResult> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(again.len(), 12);
    for (read, written) in again.iter().zip(choices(&results[0])) {
        assert_eq!(
            (read.index, read.acc_norm),
            (written.index, written.acc_norm)
        );
        // Numbers in JSON are read to the last digit but one.
        let pairs = read.log_likelihoods.iter().zip(&written.log_likelihoods);
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-12));
    }
    let error = write_items(out.path(), &results[1..]).unwrap_err();
    assert!(
        error.to_string().contains("boolq.jsonl exists already"),
        "{error}"
    );

    let json = serde_json::to_string(&results[0]).unwrap();
    let read: TaskResult = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (read.task, &read.metrics),
        (TaskName::ArcEasy, &results[0].metrics)
    );
    assert!(json.contains(r#""task":"arc_easy""#), "{json}");
}
