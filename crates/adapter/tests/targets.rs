//! Which layers an adapter goes on, and what is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use burn::{module::Module, tensor::Device};
use common::{Toy, config, silent};
use olora_adapter::{AdapterConfig, AdapterError, attach, factors, resolve};

fn toy() -> Toy {
    Toy::new(6, 8, 4, &Device::flex())
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn resolved(include: &[&str], exclude: &[&str]) -> Vec<String> {
    let model = vec![toy(), toy()];
    let targets = resolve(&model, &names(include), &names(exclude)).unwrap();
    targets.into_iter().map(|target| target.path).collect()
}

#[test]
fn all_linear_is_every_linear_layer_and_no_embedding() {
    assert_eq!(
        resolved(&["all-linear"], &[]),
        ["0.up", "0.down", "1.up", "1.down"]
    );
}

#[test]
fn names_paths_and_globs_select_exactly() {
    assert_eq!(resolved(&["up"], &[]), ["0.up", "1.up"]);
    assert_eq!(resolved(&["1.up", "0.down"], &[]), ["0.down", "1.up"]);
    assert_eq!(resolved(&["1.*"], &[]), ["1.up", "1.down"]);
    assert_eq!(resolved(&["**.{up,down}"], &["0.*"]), ["1.up", "1.down"]);
    assert_eq!(resolved(&["all-linear"], &["down"]), ["0.up", "1.up"]);
}

#[test]
fn a_name_is_a_whole_name() {
    // `p` ends `up`, and `1` begins `1.up`; neither is the layer's name.
    for wrong in ["p", "1", "0", "emb", "up.weight"] {
        let error = resolve(&vec![toy(), toy()], &names(&["down", wrong]), &[]).unwrap_err();
        assert!(
            matches!(&error, AdapterError::UnmatchedTargets { unmatched, .. } if unmatched == &[wrong])
        );
        assert!(error.to_string().contains("`down`, `up`"), "{error}");
    }
}

#[test]
fn an_embedding_is_found_by_its_name_only() {
    assert_eq!(
        resolved(&["embed", "1.up"], &[]),
        ["0.embed", "1.embed", "1.up"]
    );
    assert_eq!(resolved(&["0.embed"], &[]), ["0.embed"]);
    assert_eq!(resolved(&["0.*"], &[]), ["0.up", "0.down"]);
    assert_eq!(resolved(&["all-linear"], &["1.*"]), ["0.up", "0.down"]);
}

#[test]
fn an_exclusion_that_matches_nothing_is_an_error_too() {
    let error = resolve(&toy(), &names(&["all-linear"]), &names(&["lm_head"])).unwrap_err();
    assert!(error.to_string().contains("`lm_head`"), "{error}");
}

#[test]
fn no_targets_adapt_nothing_rather_than_everything() {
    assert!(matches!(
        resolve(&toy(), &[], &[]),
        Err(AdapterError::NoTargets(_))
    ));
    let all = names(&["all-linear"]);
    assert!(matches!(
        resolve(&toy(), &all, &all),
        Err(AdapterError::NoTargets(_))
    ));
}

#[test]
fn trainable_values_are_exactly_the_factors() {
    let model = attach(toy(), &config(3, 3.0), 1, &mut silent()).unwrap();
    let counted: usize = factors(&model)
        .iter()
        .map(|layer| layer.a.shape().num_elements() + layer.b.shape().num_elements())
        .sum();
    // up: 6·3 + 3·8, down: 8·3 + 3·4
    assert_eq!(counted, 42 + 36);
    // Base, bias and embedding, the factors, and their anchors.
    assert_eq!(
        model.num_params(),
        6 * 8 + 8 + 8 * 4 + 11 * 6 + 2 * (42 + 36)
    );
}

#[test]
fn a_rank_above_the_smaller_side_is_refused_with_the_layer() {
    let error = attach(toy(), &config(5, 5.0), 1, &mut silent())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`down`") && error.contains("[8, 4]") && error.contains("between 1 and 4"),
        "{error}"
    );
}

#[test]
fn impossible_configurations_are_refused_by_key() {
    let refused = |config: AdapterConfig, key: &str| {
        let error = attach(toy(), &config, 1, &mut silent())
            .unwrap_err()
            .to_string();
        assert!(error.contains(key), "{error}");
    };
    refused(config(0, 1.0), "rank");
    refused(config(1, 0.0), "alpha");
    refused(
        AdapterConfig {
            dropout: 1.0,
            ..config(1, 1.0)
        },
        "dropout",
    );
}

#[test]
fn a_second_adapter_is_refused() {
    let once = attach(
        toy(),
        &AdapterConfig {
            targets: names(&["up"]),
            ..config(1, 1.0)
        },
        1,
        &mut silent(),
    )
    .unwrap();
    let error = attach(
        once,
        &AdapterConfig {
            targets: names(&["down"]),
            ..config(1, 1.0)
        },
        1,
        &mut silent(),
    );
    assert!(matches!(error, Err(AdapterError::AlreadyAdapted(path)) if path == "up.weight"));
}
