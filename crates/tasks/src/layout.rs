//! From a record to an item: llm-foundry's layout (`query`, `choices`, `gold`)
//! and the data sets' own, told apart by their keys.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use crate::{
    MultipleChoice, OpenQuestion, TaskName,
    python::{capitalize, is_space},
};

/// A record of a file.
pub(crate) type Record = Map<String, Value>;

/// What is wrong with a record.
type Wrong = String;

/// The multiple-choice item that a record holds.
pub(crate) fn multiple_choice(name: TaskName, record: &Record) -> Result<MultipleChoice, Wrong> {
    let item = if has(record, &["query", "choices", "gold"]) {
        from_query(name, record)
    } else if has(record, &["context_options", "continuation", "gold"]) {
        let contexts = texts(record, "context_options")?;
        let gold = index(record, "gold")?;
        let continuation = text(record, "continuation")?;
        Ok(MultipleChoice::of_contexts(contexts, continuation, gold))
    } else {
        from_data_set(name, record)
    }?;
    match item.choices.len() {
        0 => Err("there is no choice".to_owned()),
        n if item.gold >= n => Err(format!(
            "the right choice is said to be number {} counted from 0, but there are {n} choices",
            item.gold
        )),
        _ => Ok(item),
    }
}

/// The question that a record holds, in GSM8K's own layout.
pub(crate) fn open_question(record: &Record) -> Result<OpenQuestion, Wrong> {
    let required = ["question", "answer"];
    if !has(record, &required) {
        return Err(unknown(record, "`question` and `answer`"));
    }
    let answer = text(record, "answer")?.to_owned();
    if !answer.contains("#### ") {
        return Err("`answer` must end in `#### ` and a number".to_owned());
    }
    Ok(OpenQuestion {
        question: text(record, "question")?.to_owned(),
        answer,
    })
}

/// llm-foundry's layout. It wraps questions in words of its own, which are
/// taken off again.
fn from_query(name: TaskName, record: &Record) -> Result<MultipleChoice, Wrong> {
    let query = text(record, "query")?;
    let after = |start: &str| {
        query
            .strip_prefix(start)
            .ok_or_else(|| format!("`query` must begin with `{start}` in this layout"))
    };
    let context = match name {
        TaskName::ArcEasy | TaskName::ArcChallenge => science(after("Question: ")?),
        TaskName::Piqa => {
            let goal = after("Question: ")?;
            science(goal.strip_suffix('\n').unwrap_or(goal))
        }
        TaskName::BoolQ => {
            let (passage, question) = after("Passage: ")?
                .rsplit_once("\nQuestion: ")
                .ok_or("`query` must hold a line that begins with `Question: ` in this layout")?;
            yes_or_no(passage, question.strip_suffix('?').unwrap_or(question))
        }
        // Published with the preprocessing done.
        TaskName::HellaSwag | TaskName::OpenBookQa => query.to_owned(),
        TaskName::WinoGrande => {
            return Err(unknown(
                record,
                "`context_options`, `continuation` and `gold`",
            ));
        }
        TaskName::Gsm8k => return Err(unknown(record, "`question` and `answer`")),
    };
    let (choices, gold) = (texts(record, "choices")?, index(record, "gold")?);
    let (choices, gold) = match name {
        TaskName::ArcEasy | TaskName::ArcChallenge => without_repeats(choices, gold),
        _ => (choices, gold),
    };
    Ok(MultipleChoice::new(&context, choices, gold))
}

/// llm-foundry fills ARC's questions of three choices up to four by repeating one.
fn without_repeats(choices: Vec<String>, gold: usize) -> (Vec<String>, usize) {
    let mut distinct: Vec<String> = Vec::with_capacity(choices.len());
    let mut gold_of_distinct = gold;
    for (i, choice) in choices.into_iter().enumerate() {
        let known = distinct.iter().position(|other| *other == choice);
        let at = known.unwrap_or_else(|| {
            distinct.push(choice);
            distinct.len() - 1
        });
        if i == gold {
            gold_of_distinct = at;
        }
    }
    (distinct, gold_of_distinct)
}

fn from_data_set(name: TaskName, record: &Record) -> Result<MultipleChoice, Wrong> {
    match name {
        TaskName::ArcEasy | TaskName::ArcChallenge => {
            let (question, choices, gold) = lettered(record, "question")?;
            Ok(MultipleChoice::new(&science(question), choices, gold))
        }
        TaskName::OpenBookQa => {
            let (stem, choices, gold) = lettered(record, "question_stem")?;
            Ok(MultipleChoice::new(stem, choices, gold))
        }
        TaskName::BoolQ => boolq(record),
        TaskName::HellaSwag => hellaswag(record),
        TaskName::Piqa => {
            let keys = ["goal", "sol1", "sol2", "label"];
            if !has(record, &keys) {
                return Err(unknown(
                    record,
                    "`goal`, `sol1`, `sol2` and `label` (or labels in a file beside it whose name ends \
                     in -labels.lst)",
                ));
            }
            let choices = ["sol1", "sol2"].map(|key| text(record, key).map(str::to_owned));
            let choices = choices.into_iter().collect::<Result<_, _>>()?;
            let goal = text(record, "goal")?;
            Ok(MultipleChoice::new(
                &science(goal),
                choices,
                index(record, "label")?,
            ))
        }
        TaskName::WinoGrande => winogrande(record),
        TaskName::Gsm8k => Err("GSM8K has no choices".to_owned()),
    }
}

fn science(question: &str) -> String {
    format!("Question: {question}\nAnswer:")
}

fn yes_or_no(passage: &str, question: &str) -> String {
    format!("{passage}\nQuestion: {question}?\nAnswer:")
}

/// ARC and `OpenBookQA`: the question as text beside `choices.text` and
/// `choices.label`, or as `question.stem` with `question.choices`, a list of
/// `text` and `label`.
fn lettered<'a>(record: &'a Record, key: &str) -> Result<(&'a str, Vec<String>, usize), Wrong> {
    let nested = record.get("question").and_then(Value::as_object);
    let (question, choices) = match nested {
        Some(nested) if has(nested, &["stem", "choices"]) => {
            (text(nested, "stem")?, nested.get("choices"))
        }
        _ if has(record, &[key, "choices"]) => (text(record, key)?, record.get("choices")),
        _ => {
            return Err(unknown(
                record,
                &format!(
                    "`{key}`, `choices` with `text` and `label`, and `answerKey`; or `question` with \
                     `stem` and `choices`, and `answerKey`"
                ),
            ));
        }
    };
    let (choices, labels) = match choices {
        Some(Value::Object(lists)) => (texts(lists, "text")?, texts(lists, "label")?),
        Some(Value::Array(list)) => {
            let all = |key| {
                let parts = list.iter().map(|choice| match choice {
                    Value::Object(choice) => text(choice, key).map(str::to_owned),
                    _ => Err(format!("a choice must be an object with `{key}`")),
                });
                parts.collect::<Result<Vec<_>, _>>()
            };
            (all("text")?, all("label")?)
        }
        _ => return Err("`choices` must be an object or a list".to_owned()),
    };
    if choices.len() != labels.len() {
        return Err(format!(
            "there are {} choices and {} labels",
            choices.len(),
            labels.len()
        ));
    }
    let answer = text(record, "answerKey")?.trim_start();
    let gold = labels.iter().position(|label| label == answer);
    let gold = gold.ok_or_else(|| {
        format!(
            "`answerKey` is `{answer}`, which is none of the labels {}",
            labels.join(", ")
        )
    })?;
    Ok((question, choices, gold))
}

/// The harness reads `SuperGLUE`'s copy of it, whose passages begin with the
/// title that the original keeps apart.
fn boolq(record: &Record) -> Result<MultipleChoice, Wrong> {
    let answered = record.contains_key("label") || record.contains_key("answer");
    if !(has(record, &["question", "passage"]) && answered) {
        return Err(unknown(
            record,
            "`question`, `passage` and `label` (0 or 1, or true or false) or `answer` (true or false)",
        ));
    }
    let gold = match (record.get("answer"), record.get("label")) {
        (Some(Value::Bool(yes)), _) | (_, Some(Value::Bool(yes))) => usize::from(*yes),
        _ => index(record, "label")?,
    };
    let passage = text(record, "passage")?;
    let passage = match record.get("title") {
        Some(Value::String(title)) => format!("{title} -- {passage}"),
        _ => passage.to_owned(),
    };
    let context = yes_or_no(&passage, text(record, "question")?);
    let choices = ["no", "yes"].map(str::to_owned).to_vec();
    Ok(MultipleChoice::new(&context, choices, gold))
}

fn hellaswag(record: &Record) -> Result<MultipleChoice, Wrong> {
    let keys = ["ctx_a", "ctx_b", "activity_label", "endings", "label"];
    if !has(record, &keys) {
        return Err(unknown(
            record,
            "`ctx_a`, `ctx_b`, `activity_label`, `endings` and `label`",
        ));
    }
    let context = format!(
        "{}: {} {}",
        text(record, "activity_label")?,
        text(record, "ctx_a")?,
        capitalize(text(record, "ctx_b")?)
    );
    let endings = texts(record, "endings")?;
    let endings = endings.iter().map(|ending| without_brackets(ending));
    Ok(MultipleChoice::new(
        &without_brackets(&context),
        endings.collect(),
        index(record, "label")?,
    ))
}

/// The harness's `preprocess`: brackets are left over from `WikiHow`.
fn without_brackets(text: &str) -> String {
    #[expect(clippy::unwrap_used, reason = "the expression is a constant")]
    static BRACKETS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\[.*?\]").unwrap());
    let text = text.trim_matches(is_space).replace(" [title]", ". ");
    BRACKETS.replace_all(&text, "").replace("  ", " ")
}

fn winogrande(record: &Record) -> Result<MultipleChoice, Wrong> {
    if !has(record, &["sentence", "option1", "option2", "answer"]) {
        return Err(unknown(
            record,
            "`sentence`, `option1`, `option2` and `answer`",
        ));
    }
    let sentence = text(record, "sentence")?;
    let (before, after) = sentence
        .split_once('_')
        .ok_or("`sentence` must hold a `_` where the options go")?;
    let gold = match (&record["answer"], index(record, "answer")) {
        (_, Ok(number @ 1..=2)) => number - 1,
        (found, _) => return Err(format!("`answer` must be 1 or 2, found {found}")),
    };
    let contexts = ["option1", "option2"].map(|key| Ok(format!("{before}{}", text(record, key)?)));
    let contexts = contexts.into_iter().collect::<Result<_, Wrong>>()?;
    let continuation = after.trim_matches(is_space);
    Ok(MultipleChoice::of_contexts(contexts, continuation, gold))
}

fn has(record: &Record, keys: &[&str]) -> bool {
    keys.iter().all(|key| record.contains_key(*key))
}

fn unknown(record: &Record, expected: &str) -> Wrong {
    let found: Vec<String> = record.keys().map(|key| format!("`{key}`")).collect();
    format!("expected {expected}; found {}", found.join(", "))
}

fn text<'a>(record: &'a Record, key: &str) -> Result<&'a str, Wrong> {
    match record.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{key}` must be a text, found {other}")),
        None => Err(format!("`{key}` is missing")),
    }
}

fn texts(record: &Record, key: &str) -> Result<Vec<String>, Wrong> {
    let list = record.get(key).and_then(Value::as_array);
    let texts = list.map(|list| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        list.iter().map(text).collect::<Option<Vec<_>>>()
    });
    texts
        .flatten()
        .ok_or_else(|| format!("`{key}` must be a list of texts"))
}

/// A number from 0, also one written as a text, as `HellaSwag` has it.
fn index(record: &Record, key: &str) -> Result<usize, Wrong> {
    let number = match record.get(key) {
        Some(Value::String(text)) => text.parse().ok(),
        Some(value) => value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok()),
        None => return Err(format!("`{key}` is missing")),
    };
    number.ok_or_else(|| {
        let found = &record[key];
        format!("`{key}` must be a number from 0, found {found}")
    })
}
