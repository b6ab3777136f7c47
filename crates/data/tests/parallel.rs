//! However many threads tokenise, what comes out is what one thread makes.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fmt::Write, fs};

use common::{CHATML, World};
use olora_data::{DataOptions, Samples, load_samples_cached};

fn load(world: &World, n_threads: usize) -> Result<Samples, String> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
    let (path, tokenizer) = (world.path("a.jsonl"), world.tokenizer());
    let load = || load_samples_cached(&path, &tokenizer, &DataOptions::default(), None);
    pool.build()
        .unwrap()
        .install(load)
        .map_err(|error| error.to_string())
}

/// Prompts of very different lengths, so that threads finish out of order.
fn lines(n: usize, bad: &[usize]) -> String {
    let mut lines = String::new();
    for i in 0..n {
        let prompt = "word ".repeat(1 + i * i % 97);
        let completion = if bad.contains(&i) {
            "{\"a\": 1}".to_owned()
        } else {
            format!("\"{i}\"")
        };
        writeln!(
            lines,
            "{{\"prompt\": \"{prompt}\", \"completion\": {completion}}}"
        )
        .unwrap();
    }
    lines
}

#[test]
fn samples_come_in_the_order_of_the_file() {
    for template in [None, Some(CHATML)] {
        let world = World::new(template);
        fs::write(world.path("a.jsonl"), lines(500, &[])).unwrap();
        let one = load(&world, 1).unwrap();
        assert_eq!(one.samples.len(), 500);
        for n_threads in [2, 7] {
            let many = load(&world, n_threads).unwrap();
            assert_eq!(many.samples, one.samples);
            assert_eq!(many.report, one.report);
        }
    }
}

#[test]
fn of_several_bad_records_the_first_is_named() {
    let world = World::new(None);
    fs::write(world.path("a.jsonl"), lines(500, &[123, 124, 380, 499])).unwrap();
    let expected = load(&world, 1).unwrap_err();
    assert!(
        expected.ends_with(
            "a.jsonl, record 124 (line 124): `completion` is an object with `a`: say which of them is the answer, such as \
             data.columns = { completion = \"completion.a\" }"
        ),
        "{expected}"
    );
    for _ in 0..20 {
        assert_eq!(load(&world, 7).unwrap_err(), expected);
    }
}
