//! Pairs of answers and answers with labels: every layout, written out, and what
//! is refused or left out, with its record.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use burn::data::dataset::Dataset;
use common::{CHATML, World, lines};
use olora_data::{
    Answers, Batch, Corpus, DataOptions, Format, KeyUse, Sample, Samples, Schedule,
    ValidationSplit, split,
};
use serde_json::{Value, json};

fn of(answers: Answers) -> DataOptions {
    DataOptions {
        answers,
        max_length: 2000,
        ..DataOptions::default()
    }
}

/// Each record, as a file of its own, becomes this pair, with a template or
/// without.
fn all_become(world: &World, records: &[Value], chosen: &str, rejected: &str) {
    for record in records {
        let found = world.all_marked("data.jsonl", &record.to_string(), &of(Answers::Pair));
        let (found, data) = found.unwrap_or_else(|error| panic!("{record}: {error}"));
        assert_eq!(found, [chosen, rejected], "{record}");
        assert_eq!(data.format, Format::Preference);
        let preferred: Vec<_> = data.samples.iter().map(|s| s.preferred).collect();
        assert_eq!(preferred, [Some(true), Some(false)]);
    }
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

const ASKED: &str = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";

#[test]
fn pairs_of_one_question_in_every_layout_are_the_same_samples() {
    let (user, yo, no) = (
        turn("user", "Hi"),
        turn("assistant", "Yo"),
        turn("assistant", "No"),
    );
    all_become(
        &World::new(Some(CHATML)),
        &[
            json!({"prompt": "Hi", "chosen": "Yo", "rejected": "No"}),
            json!({"question": "Hi", "chosen": "Yo", "rejected": "No", "id": 7}),
            json!({"instruction": "Hi", "input": "", "chosen": "Yo", "rejected": "No"}),
            json!({"Prompt": "Hi", "Chosen": "Yo", "Rejected": "No"}),
            // As turns, of the answer alone.
            json!({"prompt": [user], "chosen": [yo], "rejected": [no]}),
            json!({"prompt": "Hi", "chosen": [yo], "rejected": [no]}),
            json!({"messages": [user], "chosen": [yo], "rejected": [no]}),
            json!({"conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Yo"}, "rejected": {"from": "gpt", "value": "No"}}),
            json!({"messages": [user], "chosen": "Yo", "rejected": "No"}),
            // With what was asked in both: the prompt is what they begin with.
            json!({"chosen": [user, yo], "rejected": [user, no]}),
            json!({"prompt": "Hi", "chosen": [user, yo], "rejected": [user, no]}),
            json!({"prompt": [user], "chosen": [user, yo], "rejected": [user, no]}),
            // UltraFeedback says the chosen one once more.
            json!({"prompt": "Hi", "prompt_id": "a", "chosen": [user, yo], "rejected": [user, no],
                "messages": [user, yo]}),
            // In a table, turns are text.
            json!({"chosen": json!([user, yo]).to_string(), "rejected": json!([user, no]).to_string()}),
            json!({"chosen": "\n\nHuman: Hi\n\nAssistant: Yo", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}),
        ],
        &format!("{ASKED}⟦Yo<|im_end|>⟧\n"),
        &format!("{ASKED}⟦No<|im_end|>⟧\n"),
    );
}

#[test]
fn only_what_differs_is_an_answer() {
    let shared = [
        turn("system", "Be brief."),
        turn("user", "Hi"),
        turn("assistant", "Yo"),
        turn("user", "Well?"),
    ];
    let with = |last: &str| [&shared[..], &[turn("assistant", last)]].concat();
    let asked = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
                 <|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n";
    all_become(
        &World::new(Some(CHATML)),
        &[
            json!({"chosen": with("a"), "rejected": with("b")}),
            json!({"prompt": "Hi", "chosen": with("a"), "rejected": with("b")}),
            json!({"prompt": shared, "chosen": "a", "rejected": "b"}),
            json!({"system": "Be brief.", "prompt": shared[1..], "chosen": [turn("assistant", "a")],
                "rejected": [turn("assistant", "b")]}),
        ],
        &format!("{asked}⟦a<|im_end|>⟧\n"),
        &format!("{asked}⟦b<|im_end|>⟧\n"),
    );
}

#[test]
fn without_a_template_words_are_joined_and_a_prompt_may_be_what_both_begin_with() {
    let world = World::new(None);
    all_become(
        &world,
        &[
            json!({"prompt": "Hi", "chosen": " yo", "rejected": " no"}),
            // The space is the answer's, as in TRL.
            json!({"chosen": "Hi yo", "rejected": "Hi no"}),
        ],
        "<s>Hi⟦ yo</s>⟧",
        "<s>Hi⟦ no</s>⟧",
    );
    let alpaca = json!({"instruction": "Hi", "chosen": "yo", "rejected": "no"});
    let (found, _) = world
        .all_marked("data.jsonl", &alpaca.to_string(), &of(Answers::Pair))
        .unwrap();
    assert!(
        found[0].ends_with("### Instruction:\nHi\n\n### Response:\n⟦yo</s>⟧"),
        "{found:?}"
    );
}

#[test]
fn columns_name_them_and_every_other_key_is_accounted_for() {
    let world = World::new(Some(CHATML));
    let record = json!({"q": "Hi", "better": "Yo", "worse": "No", "id": 3, "score_chosen": 4.5});
    let options = DataOptions {
        columns: [("prompt", "q"), ("chosen", "better"), ("rejected", "worse")]
            .map(|(name, key)| (name.to_owned(), key.to_owned()))
            .into(),
        ..of(Answers::Pair)
    };
    let error = world.load_with("data.jsonl", &record.to_string(), &options);
    let error = error.unwrap_err();
    assert!(
        error.contains("nothing uses `score_chosen` (1 record"),
        "{error}"
    );
    let options = DataOptions {
        ignore: vec!["score_chosen".to_owned()],
        ..options
    };
    let data = world
        .load_with("data.jsonl", &record.to_string(), &options)
        .unwrap();
    let mut uses: Vec<_> = data
        .report
        .reading
        .keys
        .iter()
        .map(|key| (key.key.as_str(), key.use_))
        .collect();
    uses.sort_unstable();
    assert_eq!(
        uses,
        [
            ("chosen", KeyUse::Used),
            ("id", KeyUse::Harmless),
            ("prompt", KeyUse::Used),
            ("rejected", KeyUse::Used),
            ("score_chosen", KeyUse::Ignored),
        ]
    );
}

#[test]
fn labels_say_which_answers_are_good_in_any_layout() {
    let world = World::new(Some(CHATML));
    let text = lines(&[
        json!({"prompt": "Hi", "completion": "Yo", "label": true}),
        json!({"prompt": "Hi", "completion": "No", "label": false}),
    ]);
    let (found, data) = world
        .all_marked("data.jsonl", &text, &of(Answers::Labelled))
        .unwrap();
    assert_eq!(
        found,
        [
            format!("{ASKED}⟦Yo<|im_end|>⟧\n"),
            format!("{ASKED}⟦No<|im_end|>⟧\n")
        ]
    );
    assert_eq!((data.format, data.samples.unit()), (Format::Labelled, 1));
    let preferred = |samples: &Corpus| samples.iter().map(|s| s.preferred).collect::<Vec<_>>();
    assert_eq!(preferred(&data.samples), [Some(true), Some(false)]);
    let turns = |last: &str, label: bool| json!({"messages": [turn("user", "Hi"), turn("assistant", last)], "label": label});
    let text = lines(&[turns("Yo", true), turns("No", false)]);
    let (as_turns, _) = world
        .all_marked("data.jsonl", &text, &of(Answers::Labelled))
        .unwrap();
    assert_eq!(as_turns, found);
    // A pair is one good answer and one bad one.
    let pair = json!({"prompt": "Hi", "chosen": "Yo", "rejected": "No"}).to_string();
    let (of_pair, data) = world
        .all_marked("data.jsonl", &pair, &of(Answers::Labelled))
        .unwrap();
    assert_eq!((of_pair, data.samples.unit()), (found, 1));
    assert_eq!(preferred(&data.samples), [Some(true), Some(false)]);
}

fn load(records: &[Value], answers: Answers) -> Result<Samples, String> {
    World::new(Some(CHATML)).load_with("data.jsonl", &lines(records), &of(answers))
}

/// Among good ones, they are left out and named; alone, nothing is left.
#[test]
fn pairs_with_nothing_to_learn_are_left_out_by_name() {
    let good = json!({"prompt": "Hi", "chosen": "Yo", "rejected": "No"});
    for (bad, why) in [
        (
            json!({"prompt": "Hi", "chosen": "Yo", "rejected": "Yo"}),
            "its `chosen` and `rejected` are the same",
        ),
        (
            json!({"chosen": [turn("user", "Hi")], "rejected": [turn("user", "Hi")]}),
            "its `chosen` and `rejected` are the same",
        ),
        (
            json!({"chosen": [turn("user", "Hi")], "rejected": [turn("user", "Hi"), turn("assistant", "No")]}),
            "all turns of its `chosen` are in the other one too",
        ),
        (
            json!({"prompt": "Hi", "chosen": "", "rejected": "No"}),
            "its `chosen` is empty",
        ),
        (
            json!({"prompt": "Hi", "chosen": "Yo", "rejected": null}),
            "its `rejected` is empty",
        ),
        (
            json!({"prompt": "Hi", "chosen": "  ", "rejected": "No"}),
            "empty",
        ),
        (
            json!({"prompt": "Hi", "rejected": "No"}),
            "it has no `chosen`",
        ),
        (
            json!({"prompt": "Hi", "chosen": "Yo"}),
            "it has no `rejected`",
        ),
    ] {
        let data = load(&[good.clone(), bad.clone(), good.clone()], Answers::Pair).unwrap();
        assert_eq!(data.samples.len(), 4, "{bad}");
        let skipped = &data.report.reading.skipped;
        assert!(
            skipped.len() == 1
                && skipped[0].starts_with("record 2 (line 2): ")
                && skipped[0].contains(why),
            "{bad}: {skipped:?}"
        );
        if bad.get("chosen").is_some() && bad.get("rejected").is_some() {
            let error = load(std::slice::from_ref(&bad), Answers::Pair).unwrap_err();
            assert!(
                error.contains("1 of 1 records have nothing to train") && error.contains(why),
                "{error}"
            );
        }
    }
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_record() {
    let good = json!({"prompt": "Hi", "completion": "Yo", "label": true});
    let pair = json!({"prompt": "Hi", "chosen": "Yo", "rejected": "No"});
    for (records, answers, message) in [
        (
            vec![
                good.clone(),
                json!({"prompt": "Hi", "completion": "No", "label": 0}),
            ],
            Answers::Labelled,
            "data.jsonl, record 2 (line 2): `label` must be true or false, found a number",
        ),
        (
            vec![
                good.clone(),
                json!({"prompt": "Hi", "completion": "No", "label": "false"}),
            ],
            Answers::Labelled,
            "record 2 (line 2): `label` must be true or false, found a string",
        ),
        (
            vec![good.clone(), json!({"prompt": "Hi", "completion": "No"})],
            Answers::Labelled,
            "record 2 (line 2): the key `label` is missing",
        ),
        (
            vec![good.clone(), good.clone()],
            Answers::Labelled,
            "data.jsonl: all 2 answers have the label true",
        ),
        (
            vec![json!({"prompt": "Hi", "completion": "Yo"})],
            Answers::Pair,
            "are not those of answers that were judged",
        ),
        (
            vec![json!({"prompt": "Hi", "chosen": 3, "rejected": "No"})],
            Answers::Pair,
            "record 1 (line 1): `chosen` must be a string or a list of turns, found a number",
        ),
        (
            vec![json!({"prompt": "Hi", "chosen": "Yo", "rejected": ["No", "Nope"]})],
            Answers::Pair,
            "`rejected` must be a string or a list of turns, found a list",
        ),
        (
            vec![json!({"chosen": "Yo", "rejected": "No"})],
            Answers::Pair,
            "there is no prompt beside `chosen` and `rejected`",
        ),
        (
            vec![json!({"prompt": "Hi", "chosen": "Yo", "rejected": "No", "weight": 0.5})],
            Answers::Pair,
            "answers that were judged are taken whole",
        ),
        (
            vec![pair],
            Answers::One,
            "it is preference data. To learn from both: [objective] method",
        ),
    ] {
        let error = load(&records, answers).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
    let options = DataOptions {
        format: Some(Format::Alpaca),
        ..of(Answers::Pair)
    };
    let error = World::new(None).load_with("data.jsonl", &good.to_string(), &options);
    assert!(
        error
            .unwrap_err()
            .contains("data.format asks for Alpaca, but the objective learns from")
    );
}

/// Cut at the end, as TRL cuts; what is then left of one answer alone, or the same
/// of both, is no pair.
#[test]
fn the_limit_keeps_or_drops_both() {
    let world = World::new(None);
    let text = lines(&[
        json!({"prompt": "abcd", "chosen": "efghij", "rejected": "e"}),
        json!({"prompt": "abcd", "chosen": "efgx", "rejected": "efgy"}),
        json!({"prompt": "abcdefgh", "chosen": "i", "rejected": "j"}),
    ]);
    // A beginning of the sequence, and seven letters.
    let options = DataOptions {
        max_length: 8,
        ..of(Answers::Pair)
    };
    let (found, data) = world.all_marked("data.jsonl", &text, &options).unwrap();
    assert_eq!(found, ["<s>abcd⟦efg⟧", "<s>abcd⟦e</s>⟧"]);
    assert_eq!((data.report.n_truncated, data.report.n_dropped), (5, 4));
    let told = data.report.to_string();
    assert!(told.contains("or no difference between the two"), "{told}");
}

/// Pairs whose prompts differ in length, each recognisable.
fn pairs(n: u32) -> Corpus {
    Corpus::pairs((0..n).map(|i| {
        let sample = |length: u32, end: u32| {
            let tokens: Vec<u32> = (0..length).map(|_| i).chain([end]).collect();
            let trained = (0..=length).map(|at| at == length).collect();
            Sample::new(tokens, trained)
        };
        [sample(2 + i % 5, 1000), sample(3 + i % 7, 2000)]
    }))
}

#[test]
fn no_batch_and_no_split_takes_a_pair_apart() {
    let all = pairs(23);
    assert_eq!((all.len(), all.n_units(), all.unit()), (46, 23, 2));
    let (train, valid) = split(all.clone(), ValidationSplit::Count(5), 3).unwrap();
    assert_eq!((train.n_units(), valid.n_units()), (18, 5));
    let whole = |rows: &[Sample]| {
        for pair in rows.chunks(2) {
            let [chosen, rejected] = pair else {
                panic!("half a pair")
            };
            assert_eq!(chosen.tokens[0], rejected.tokens[0]);
            assert_eq!(
                (chosen.preferred, rejected.preferred),
                (Some(true), Some(false))
            );
        }
    };
    whole(&train.iter().collect::<Vec<_>>());
    let schedules = [
        Schedule::new(&all, 4, 7, 12).unwrap(),
        Schedule::packed(&all, 2, 12, 7, 12).unwrap(),
        Schedule::sequential(all.clone(), 4).unwrap(),
    ];
    for schedule in schedules {
        let n = schedule.n_batches_per_epoch();
        let mut seen = Vec::new();
        for index in 0..n {
            let batch = schedule.get(index).unwrap();
            let size = schedule.size(index, 0).unwrap();
            let samples = batch.rows.concat();
            whole(&samples);
            seen.extend(samples.iter().step_by(2).map(|chosen| chosen.tokens[0]));
            assert!(batch.rows.iter().all(|row| row.len() % 2 == 0));
            let made = batch.batch(0);
            assert!(made.pairs.is_some());
            assert_eq!(size.n_inputs(), made.inputs.len());
            assert_eq!(
                (size.n_tokens, size.n_targets),
                (made.n_tokens, made.targets.len())
            );
            let preferred = made.preferred.unwrap();
            assert!(preferred.chunks(2).all(|pair| pair == [true, false]));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..23).collect::<Vec<_>>());
    }
}

#[test]
fn each_prompt_goes_with_the_answer_to_the_one_before() {
    let sample = |prompt: &[u32], answer: &[u32]| {
        let trained = [vec![false; prompt.len()], vec![true; answer.len()]].concat();
        Sample::new([prompt, answer].concat(), trained)
    };
    let samples = [
        sample(&[1, 2, 3], &[10, 11]),
        sample(&[4], &[20]),
        sample(&[5, 6], &[30, 31, 32]),
    ];
    let expected = [
        sample(&[1, 2, 3], &[30, 31, 32]),
        sample(&[4], &[10, 11]),
        sample(&[5, 6], &[20]),
    ];
    let rows = [samples[..2].to_vec(), samples[2..].to_vec()];
    for batch in [Batch::from_samples(&samples, 9), Batch::packed(&rows, 9)] {
        assert_eq!(batch.n_samples(), 3);
        assert_eq!(batch.target_samples(), [0, 0, 1, 2, 2, 2]);
        assert_eq!(batch.mismatched(10, 0), Batch::from_samples(&expected, 0));
        let cut = batch.mismatched(4, 0);
        assert_eq!(cut.targets, [30, 10, 11, 20]);
    }
}

/// ORPO's cross-entropy is of the chosen answer with its prompt.
#[test]
fn a_chosen_answers_prompt_may_be_trained_without_being_of_the_answer() {
    let options = DataOptions {
        train_on_prompt: true,
        ..of(Answers::Pair)
    };
    let record = json!({"prompt": "ab", "chosen": "c", "rejected": "d"}).to_string();
    let data = World::new(None)
        .load_with("data.jsonl", &record, &options)
        .unwrap();
    let [chosen, rejected] = [data.samples.sample(0), data.samples.sample(1)];
    assert_eq!(chosen.trained, [false, true, true, true, true]);
    assert_eq!(chosen.weights, Some(vec![0.0, 0.0, 0.0, 1.0, 1.0]));
    assert_eq!(rejected.trained, [false, false, false, true, true]);
    assert_eq!(rejected.weights, None);
    let batch = Batch::from_samples(&[chosen, rejected], 0);
    assert_eq!(
        batch.target_weights,
        Some(vec![0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    );
}
