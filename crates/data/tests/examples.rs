//! What of a data set is kept to be looked at.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{World, lines};
use olora_data::{Answers, DataOptions, Example, Piece};
use serde_json::{Value, json};

fn examples(records: &[Value], answers: Answers) -> Vec<Example> {
    let world = World::new(None);
    let options = DataOptions {
        answers,
        max_length: 10_000,
        ..DataOptions::default()
    };
    let data = world.load_with("data.jsonl", &lines(records), &options);
    Example::of(&data.unwrap().samples, &world.tokenizer()).unwrap()
}

fn piece(text: &str, trained: bool) -> Piece {
    Piece {
        text: text.to_owned(),
        trained,
        weight: f32::from(trained),
    }
}

#[test]
fn the_first_sample_with_what_is_trained_in_it() {
    let records = ["Rook", "Ash"].map(|place| json!({"prompt": "Where? ", "completion": place}));
    // Every byte is a token, `<s>` begins and `</s>` ends the sample.
    let expected = Example {
        index: 0,
        n_tokens: 13,
        n_trained_tokens: 5,
        n_shown_tokens: 13,
        preferred: None,
        pieces: vec![piece("<s>Where? ", false), piece("Rook</s>", true)],
    };
    assert_eq!(examples(&records, Answers::One), [expected]);
}

#[test]
fn of_a_pair_both_answers() {
    let record = json!({"prompt": "Where? ", "chosen": "Rook", "rejected": "Ash"});
    let shown = examples(&[record], Answers::Pair);
    let shown: Vec<_> = shown.iter().map(|one| (one.index, one.preferred)).collect();
    assert_eq!(shown, [(0, Some(true)), (1, Some(false))]);
}

#[test]
fn a_long_sample_is_passed_over_for_a_short_one() {
    let long = "x".repeat(Example::MOST_TOKENS);
    let records = [long.as_str(), "Ash"].map(|said| json!({"prompt": "Say: ", "completion": said}));
    let shown = examples(&records, Answers::One);
    assert_eq!((shown.len(), shown[0].index), (1, 1));
}

#[test]
fn where_all_are_long_the_first_is_cut() {
    let long = "x".repeat(Example::MOST_TOKENS);
    let shown = examples(
        &[json!({"prompt": "Say: ", "completion": long})],
        Answers::One,
    );
    let [shown] = shown.as_slice() else {
        panic!("{shown:?}")
    };
    assert_eq!(shown.n_shown_tokens, Example::MOST_TOKENS);
    assert_eq!(shown.n_tokens, Example::MOST_TOKENS + "Say: ".len() + 2);
    assert_eq!(shown.n_trained_tokens, Example::MOST_TOKENS + 1);
}
