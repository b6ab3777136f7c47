use serde_json::Value;

use super::*;

fn name(spec: &str) -> HubDataset {
    match crate::DatasetName::parse(spec).unwrap() {
        crate::DatasetName::Hub(name) => name,
        local @ crate::DatasetName::Local { .. } => panic!("{local:?}"),
    }
}

fn owned(files: &[&str]) -> Vec<String> {
    files.iter().map(|file| (*file).to_owned()).collect()
}

fn with(spec: &str, files: &[&str], yaml: &str) -> Result<Choice, HubError> {
    let card = Card::parse(Some(&format!("---\n{yaml}\n---\n")), None).unwrap();
    choose(&name(spec), &owned(files), &card)
}

#[track_caller]
fn refused(spec: &str, files: &[&str], yaml: &str, parts: &[&str]) {
    let message = with(spec, files, yaml).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

/// What `fixtures/make_dataset_layouts.py` wrote.
fn layouts() -> Vec<Value> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/dataset_layouts.json"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    all["layouts"].as_array().unwrap().clone()
}

fn files_of(value: &Value) -> Vec<String> {
    let list = value.as_array().unwrap();
    list.iter()
        .map(|file| file.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_layout_is_taken_as_python_takes_it() {
    let mut taken = 0;
    for layout in layouts() {
        let what = &layout["name"];
        let mut files = files_of(&layout["files"]);
        let card = Card::parse(layout["readme"].as_str(), None);
        if let Some(error) = layout.get("error") {
            let refused =
                card.is_err() || choose(&name("oxmere/tales"), &files, &card.unwrap()).is_err();
            assert!(refused, "{what}: {error}");
            continue;
        }
        let card = card.unwrap();
        files.push("README.md".to_owned());
        let default = card.usual().unwrap().map(|config| config.name.as_str());
        if !card.configs.is_empty() {
            assert_eq!(default, layout["default"].as_str(), "{what}");
        }
        for (config, splits) in layout["configs"].as_object().unwrap() {
            let mut wanted = name("oxmere/tales");
            wanted.config = Some(config.clone());
            for (split, expected) in splits.as_object().unwrap() {
                wanted.split = Some(split.clone());
                let choice = choose(&wanted, &files, &card).unwrap();
                assert_eq!(choice.files, files_of(expected), "{what}: {split}");
                assert_eq!((&choice.config, &choice.split), (config, split), "{what}");
                taken += 1;
            }
            wanted.split = Some("thornby".to_owned());
            let Err(HubError::NoSplit { there, .. }) = choose(&wanted, &files, &card) else {
                panic!("{what}: a split that is not there");
            };
            let expected: Vec<_> = splits.as_object().unwrap().keys().cloned().collect();
            assert_eq!(there, expected, "{what}");
        }
    }
    assert!(taken > 60, "{taken}");
}

#[test]
fn the_only_split_is_taken_and_said() {
    let choice = with("oxmere/tales", &["test.jsonl"], "").unwrap();
    assert_eq!(choice.split, "test");
    assert_eq!(
        choice.notes,
        ["split `test` is used, the only one that there is"]
    );
}

#[test]
fn several_splits_without_train_are_listed() {
    refused(
        "oxmere/tales",
        &["test.csv", "dev.csv"],
        "",
        &[
            "none is called `train`",
            "\n  oxmere/tales:validation",
            "\n  oxmere/tales:test",
        ],
    );
}

#[test]
fn an_unknown_split_is_answered_with_those_there_are() {
    refused(
        "oxmere/tales/zora:jorun",
        &["a.csv"],
        "configs: [{config_name: zora, data_files: a.csv}]",
        &["no split `jorun`", "\n  oxmere/tales/zora:train"],
    );
}

#[test]
fn configurations_without_a_default_are_listed() {
    let yaml = "configs: [{config_name: zora, data_files: a.csv}, {config_name: jorun}]";
    refused(
        "oxmere/tales",
        &["a.csv"],
        yaml,
        &[
            "several configurations",
            "\n  oxmere/tales/zora",
            "\n  oxmere/tales/jorun",
        ],
    );
    refused(
        "oxmere/tales/alder",
        &["a.csv"],
        yaml,
        &["no configuration `alder`", "\n  oxmere/tales/jorun"],
    );
}

#[test]
fn a_configuration_of_a_set_that_names_none() {
    refused(
        "oxmere/tales/alder",
        &["a.csv"],
        "",
        &["no configuration `alder`", "\n  oxmere/tales/default"],
    );
    assert!(with("oxmere/tales/default", &["a.csv"], "").is_ok());
}

#[test]
fn files_of_another_form_are_left_out_and_said() {
    let choice = with(
        "oxmere/tales",
        &["a.jsonl", "b.jsonl", "c.csv", "d.parquet", "LICENSE"],
        "",
    )
    .unwrap();
    assert_eq!(choice.files, ["a.jsonl", "b.jsonl"]);
    let [note] = &choice.notes[..] else {
        panic!("{choice:?}");
    };
    assert!(
        note.contains("`c.csv` and another file of split `train`"),
        "{note}"
    );
}

#[test]
fn files_that_are_named_are_read_whatever_their_form() {
    let choice = with(
        "oxmere/tales",
        &["a.jsonl", "b.csv"],
        "configs: [{config_name: default, data_files: [b.csv, a.jsonl]}]",
    )
    .unwrap();
    assert_eq!(choice.files, ["b.csv", "a.jsonl"]);
    assert!(choice.notes.is_empty(), "{choice:?}");
}

#[test]
fn a_file_that_two_patterns_match_counts_once() {
    let choice = with("oxmere/tales", &["train-train.csv"], "").unwrap();
    assert_eq!(choice.files, ["train-train.csv"]);
}

#[test]
fn forms_that_are_not_read_are_named() {
    for (files, part) in [
        (&["a.jpg", "b.jpg", "metadata.jsonl"][..], "holds images"),
        (&["a.wav"], "holds sounds"),
        (&["a.arrow"], "holds Arrow files"),
        (&["a.csv.bz2"], "`a.csv.bz2` is packed"),
        (&["a.parquet.gz"], "`a.parquet.gz` is packed"),
        (&["a.zip"], "holds zip archives"),
        (&["a.npy", "b.npy"], "of no known form (`a.npy`, `b.npy`)"),
        (&["a.csv.md5"], "of no known form"),
        (&[], "holds no data files"),
    ] {
        refused("oxmere/tales", files, "", &[part]);
    }
}

#[test]
fn what_would_have_files_read_differently_is_refused_and_what_is_unknown_noted() {
    let yaml = |more: &str| format!("configs: [{{config_name: c, data_files: a.csv, {more}}}]");
    refused(
        "oxmere/tales",
        &["a.csv"],
        &yaml("sep: ;"),
        &["`sep: ;`", "not supported"],
    );
    refused(
        "oxmere/tales",
        &["a.csv"],
        &yaml(r#"sep: "\t""#),
        &["`sep: \t`"],
    );
    let choice = with("oxmere/tales", &["a.csv"], &yaml(r#"sep: ",", zora: 1"#)).unwrap();
    let [note] = &choice.notes[..] else {
        panic!("{choice:?}");
    };
    assert!(note.contains("`zora`"), "{note}");
}

#[test]
fn patterns_that_lead_elsewhere_are_refused() {
    for path in [
        "https://example.com/a.csv",
        "hf://datasets/o/n/a.csv",
        "/a.csv",
        "zip://a.csv::b",
    ] {
        refused(
            "oxmere/tales",
            &["a.csv"],
            &format!("configs: [{{config_name: c, data_files: '{path}'}}]"),
            &[path, "not in the repository"],
        );
    }
    refused(
        "oxmere/tales",
        &["a.csv"],
        "configs: [{config_name: c, data_files: ../a.csv}]",
        &["`../a.csv`"],
    );
}

#[test]
fn the_hubs_conversion_is_read_by_its_directories() {
    let files = owned(&[
        "zora/train/0000.parquet",
        "zora/train/0001.parquet",
        "zora/partial-test/0000.parquet",
        "jorun/tales-train-00000-of-00002.parquet",
        "jorun/tales-train-00001-of-00002.parquet",
        "jorun/tales-dev.parquet",
        ".gitattributes",
    ]);
    let card = converted(&name("oxmere/tales"), &files);
    let chosen = |spec: &str| choose(&name(spec), &files, &card).unwrap().files;
    assert_eq!(chosen("oxmere/tales/zora"), files[..2]);
    assert_eq!(chosen("oxmere/tales/zora:test"), files[2..3]);
    assert_eq!(chosen("oxmere/tales/jorun"), files[3..5]);
    assert_eq!(chosen("oxmere/tales/jorun:dev"), files[5..6]);
}

#[test]
fn a_missing_shard_is_found_by_the_others_names() {
    let all = owned(&["d/train-00000-of-00002.csv", "d/train-00001-of-00002.csv"]);
    assert_eq!(missing_shard(&all), None);
    assert_eq!(missing_shard(&all[1..]).as_deref(), Some(&*all[1]));
    assert_eq!(missing_shard(&owned(&["a.csv", "b.csv"])), None);
}

/// Twenty thousand files, in as many directories.
fn many() -> Vec<String> {
    (0..20_000)
        .map(|i| format!("village{i}/train.jsonl"))
        .collect()
}

/// What a description says of `many`.
fn of_many(yaml: &str) -> Result<Choice, String> {
    let card = Card::parse(Some(&format!("---\n{yaml}\n---\n")), None)?;
    choose(&name("oxmere/tales"), &many(), &card).map_err(|error| error.to_string())
}

fn paths(paths: impl Iterator<Item = String>) -> String {
    let paths: Vec<_> = paths.collect();
    format!(
        "configs:\n- config_name: a\n  data_files: [{}]",
        paths.join(", ")
    )
}

#[test]
fn more_patterns_than_files_can_be_compared_with_are_refused() {
    for pattern in ["'**'", "'**/a*/**/*b*'"] {
        let error = of_many(&paths((0..100_000).map(|_| pattern.to_owned()))).unwrap_err();
        let told = "100000 patterns for one split, too many or too long ones for 20000 files";
        assert!(error.contains(told), "{error}");
    }
    let long = format!("'{}*'", "?".repeat(4_000_000));
    let error = of_many(&paths(std::iter::once(long))).unwrap_err();
    assert!(error.contains("too long"), "{error}");
}

#[test]
fn thousands_of_names_are_read() {
    let names = (0..20_000).map(|i| format!("village{i}/train.jsonl"));
    assert_eq!(of_many(&paths(names)).unwrap().files.len(), 20_000);
}

#[test]
fn patterns_of_a_directory_each_are_compared_with_what_is_in_it() {
    let patterns = (0..2_000).map(|i| format!("'village{i}/tr*'"));
    // All that begin with `village1/` are one.
    assert_eq!(of_many(&paths(patterns)).unwrap().files.len(), 2_000);
}

#[test]
fn thousands_of_configurations_are_read() {
    let configs = (0..20_000).map(|i| format!("- config_name: c{i}\n  data_dir: village{i}\n"));
    let configs: String = configs.collect();
    let chosen = of_many(&format!("configs:\n{configs}  default: true")).unwrap();
    assert_eq!(chosen.files, ["village19999/train.jsonl"]);
    let files: Vec<_> = (0..20_000)
        .map(|i| format!("c{i}/s{i}/0000.parquet"))
        .collect();
    assert_eq!(
        converted(&name("oxmere/tales"), &files).configs.len(),
        20_000
    );
}
