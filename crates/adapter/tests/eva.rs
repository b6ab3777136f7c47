//! Which rows EVA looks at.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use burn::tensor::{Device, Int, Tensor};
use common::{Toy, max_diff, random};
use olora_adapter::{
    AdapterConfig, AdapterError, Directions, LayerFactors, Method, Project, Rows, attach_along,
    factors,
};

/// `up` is given eight rows, of which the last four count; `down` is given those
/// four, and as many times row 0 as padding.
fn found(padding: usize) -> Vec<LayerFactors> {
    let device = Device::flex();
    let _alone = common::alone();
    let toy = Toy::new(6, 8, 4, &device);
    let x = random([8, 6], &device);
    let config = AdapterConfig {
        method: Method::Eva,
        rank: 2,
        ..AdapterConfig::default()
    };
    let chosen = vec![4, 5, 6, 7];
    let run = |toy: &Toy, _batch| {
        let mut picked = chosen.clone();
        picked.extend(vec![0; padding]);
        let picked = Tensor::<1, Int>::from_ints(picked.as_slice(), &device);
        toy.down
            .project(toy.up.project(x.clone()).select(0, picked));
        Ok::<_, AdapterError>(Rows {
            chosen: chosen.clone(),
            picked: vec!["down".to_owned()],
        })
    };
    let directions = Directions::find(toy.clone(), &config, 1.0, 4, run).unwrap();
    factors(&attach_along(toy, &config, &directions).unwrap())
}

#[test]
fn padding_stays_out_even_where_there_are_as_many_rows_before_a_pick_as_behind_it() {
    let expected = found(0);
    assert_eq!(expected.len(), 2);
    // With four rows of padding, both layers are given eight.
    for padding in [4, 5] {
        for (ours, expected) in found(padding).into_iter().zip(&expected) {
            assert_eq!(ours.path, expected.path);
            let apart = max_diff(ours.a, expected.a.clone());
            assert!(
                apart < 1e-6,
                "{}, {padding} rows of padding: {apart}",
                ours.path
            );
        }
    }
}
