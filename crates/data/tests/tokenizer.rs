//! What is read from a checkpoint's directory, and text in and out.

#![allow(clippy::unwrap_used)]

mod common;

use common::{CHATML, World};
use olora_data::{Message, Tokenizer, describe_sample, load_samples};
use serde_json::json;

#[test]
fn special_tokens_come_from_the_configuration() {
    let world = World::new(None);
    let tokenizer = world.tokenizer();
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()),
        (Some(0), Some(1), 1)
    );
    assert_eq!(tokenizer.n_vocab(), 4 + 256 + 1);
    assert_eq!(tokenizer.token(3).as_deref(), Some("<|im_end|>"));
    assert_eq!(tokenizer.stop_ids(), [1]);
    assert!(!tokenizer.has_chat_template());

    world.write("generation_config.json", &json!({"eos_token_id": [3, 1]}));
    world.write(
        "config.json",
        &json!({"eos_token_id": 1, "bos_token_id": 2}),
    );
    assert_eq!(world.tokenizer().stop_ids(), [1, 3]);
    // The tokenizer's own word counts; without it, that of the model's configuration.
    assert_eq!(world.tokenizer().bos_id(), Some(0));
    world.write("tokenizer_config.json", &json!({"pad_token": "<unknown>"}));
    let tokenizer = world.tokenizer();
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()),
        (Some(2), Some(3), 3)
    );
}

#[test]
fn generation_stops_where_the_template_ends_a_turn() {
    // A base model's end-of-sequence with a ChatML template: a model trained on it ends with both in reach.
    let tokenizer = World::new(Some(CHATML)).tokenizer();
    assert_eq!(
        (tokenizer.eos_id(), tokenizer.stop_ids()),
        (Some(1), &[1, 3][..])
    );
}

#[test]
fn the_template_file_comes_before_the_configuration() {
    let world = World::new(Some("config"));
    let render = || {
        world
            .tokenizer()
            .render_chat(&[Message::new("user", "Hi")], true)
            .unwrap()
    };
    assert_eq!(render(), "config");
    let named = json!([{"name": "tools", "template": "t"}, {"name": "default", "template": "d{{ bos_token }}"}]);
    world.write(
        "tokenizer_config.json",
        &json!({"chat_template": named, "bos_token": "<s>"}),
    );
    assert_eq!(render(), "d<s>");
    std::fs::write(world.path("chat_template.jinja"), CHATML).unwrap();
    assert_eq!(
        render(),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn text_goes_in_and_out_whole() {
    let tokenizer = World::new(None).tokenizer();
    // Longer than the truncation and shorter than the padding that tokenizer.json asks for.
    let text = "Hi y, é → 漢字 </s>";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!((ids[0], ids.last()), (0, Some(&1)));
    assert_eq!(ids.len(), text.len() - "</s>".len() - " y".len() + 3);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), format!("<s>{text}"));
    assert_eq!(
        tokenizer.decode(&ids, true).unwrap(),
        text.trim_end_matches("</s>")
    );
    assert_eq!(tokenizer.encode(text, false).unwrap(), ids[1..]);
}

#[test]
fn a_stream_gives_whole_characters() {
    let tokenizer = World::new(None).tokenizer();
    let mut stream = tokenizer.decode_stream();
    let ids = tokenizer.encode("a→é</s>b", false).unwrap();
    let pieces: Vec<_> = ids.into_iter().map(|id| stream.push(id).unwrap()).collect();
    let expected = [
        Some("a"),
        None,
        None,
        Some("→"),
        None,
        Some("é"),
        None,
        Some("b"),
    ];
    assert_eq!(pieces, expected.map(|piece| piece.map(str::to_owned)));
}

#[test]
fn a_description_keeps_the_spaces_that_a_decoder_strips() {
    let world = World::new(None);
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    world.write("tokenizer.json", &json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 3, "content": "</s>", "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": metaspace, "decoder": metaspace,
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "▁one": 1, "▁two": 2, "</s>": 3}, "unk_token": "<unk>"}
    }));
    world.write("tokenizer_config.json", &json!({"eos_token": "</s>"}));
    let tokenizer = world.tokenizer();
    std::fs::write(
        world.path("a.jsonl"),
        r#"{"prompt": "one one", "completion": " two"}"#,
    )
    .unwrap();
    let data = load_samples(
        &world.path("a.jsonl"),
        &tokenizer,
        &olora_data::DataOptions::default(),
    )
    .unwrap();
    let pieces = describe_sample(&data.samples.sample(0), &tokenizer).unwrap();
    let pieces: Vec<_> = pieces
        .into_iter()
        .map(|piece| (piece.text, piece.trained))
        .collect();
    assert_eq!(
        pieces,
        [("one one".to_owned(), false), (" two</s>".to_owned(), true)]
    );
}

/// Each makes the tokenizers library panic: as it reads the file, or as it encodes.
#[test]
fn files_that_make_the_library_panic_are_errors_that_name_them() {
    let prefix = |model: &mut serde_json::Value| {
        *model = json!({
            "type": "BPE", "continuing_subword_prefix": "######", "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]],
        });
    };
    let chunks = json!({"type": "FixedLength", "length": 0});
    for part in ["model", "pre_tokenizer"] {
        let world = World::new(None);
        let path = world.path("tokenizer.json");
        let json = std::fs::read(&path).unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        match part {
            "model" => prefix(&mut json["model"]),
            _ => json[part] = chunks.clone(),
        }
        world.write("tokenizer.json", &json);
        let tokenizer = Tokenizer::from_dir(world.dir.path());
        let encoded = tokenizer.and_then(|tokenizer| tokenizer.encode("Oxmere", true));
        let message = encoded.unwrap_err().to_string();
        let directory = world.dir.path().display().to_string();
        assert!(
            message.contains(&directory) && message.contains("tokenizers library broke off"),
            "{part}: {message}"
        );
    }
}

#[test]
fn a_stop_that_is_no_token_is_refused_by_name() {
    for file in ["config.json", "generation_config.json"] {
        for value in [json!(-1), json!("</s>"), json!([1, -1])] {
            let world = World::new(None);
            world.write(file, &json!({"eos_token_id": value}));
            let error = Tokenizer::from_dir(world.dir.path()).unwrap_err();
            let message = error.to_string();
            assert!(
                message.contains(file) && message.contains(&format!("`eos_token_id` is {value}")),
                "{message}"
            );
        }
    }
}
