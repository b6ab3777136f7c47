//! The one way through a module's parameters.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::collections::BTreeMap;

use burn::{
    module::{Lora, Module, Param, ParamId},
    tensor::{Device, Tensor},
};
use common::{Toy, config, silent};
use olora_adapter::{
    AdapterConfig, Anchor, Dora, Kind, LowRank, MapParams, Parameter, Place, Role, attach,
    map_params, parameters_to_save, params,
};

fn toy() -> Toy {
    Toy::new(6, 8, 4, &Device::flex())
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

/// An adapter with everything that one can have.
fn adapted() -> Toy {
    let config = AdapterConfig {
        dora: true,
        modules_to_save: names(&["embed"]),
        ..config(2, 2.0)
    };
    attach(toy(), &config, 1, &mut silent()).unwrap()
}

#[test]
fn every_field_of_an_adapter_has_its_role_and_its_layer() {
    let model = adapted();
    // A field that is added has to be given a role here, or this does not compile.
    let LowRank {
        a,
        b,
        anchor,
        dora,
        dropout: _,
        scale: _,
        subtract_anchor: _,
        packed: _,
    } = model.down.weight.reparameterization::<LowRank>().unwrap();
    let Anchor { a: a0, b: b0 } = anchor.as_ref().unwrap();
    let Dora {
        magnitude,
        start,
        weight_squares,
    } = dora.as_ref().unwrap();
    let expected: BTreeMap<ParamId, Role> = [
        (a.id, Role::A),
        (b.id, Role::B),
        (a0.id, Role::AnchorA),
        (b0.id, Role::AnchorB),
        (magnitude.id, Role::Magnitude),
        (start.id, Role::MagnitudeStart),
        (weight_squares.id, Role::WeightSquares),
        (model.down.weight.id, Role::Base),
    ]
    .into();
    let found = params(&model).into_iter();
    let found = found.filter(|param| param.layer() == "down");
    let found: Vec<Parameter> = found.collect();
    assert!(
        found
            .iter()
            .all(|param| param.kind() == Some(Kind::Linear) && param.path().starts_with("down."))
    );
    let roles: BTreeMap<_, _> = found.iter().map(|p| (p.id(), p.role())).collect();
    assert_eq!(roles, expected);
    let trained = found.iter().filter(|param| param.trains());
    let trained: Vec<_> = trained.map(Parameter::role).collect();
    assert_eq!(trained, [Role::A, Role::B, Role::Magnitude]);
}

#[test]
fn paths_shapes_and_orientations_are_those_of_the_file() {
    let found = params(&toy()).into_iter();
    let found: Vec<_> = found
        .map(|param| (param.path().to_owned(), param.shape(), param.torch_shape()))
        .collect();
    let expected = [
        ("embed.weight", vec![11, 6], vec![11, 6]),
        ("up.weight", vec![6, 8], vec![8, 6]),
        ("up.bias", vec![8], vec![8]),
        ("down.weight", vec![8, 4], vec![4, 8]),
    ];
    assert_eq!(
        found,
        expected.map(|(path, ours, torch)| (path.to_owned(), ours, torch))
    );
}

#[test]
fn looking_initialises_nothing() {
    let model = toy();
    for param in params(&model) {
        assert!(param.trains() && param.num_elements() > 0, "{param:?}");
        assert!(!param.is_initialized(), "{param:?}");
    }
    // Nor does it where everything but the factors is frozen, and nothing looks at a bias.
    let model = attach(model, &config(2, 2.0), 1, &mut silent()).unwrap();
    let all = params(&model);
    let bias = all.iter().find(|param| param.path() == "up.bias").unwrap();
    assert!(!bias.trains() && !bias.is_initialized());
    assert!(!model.up.bias.as_ref().unwrap().is_initialized());
}

#[test]
fn what_trains_is_the_same_with_autodiff_and_without() {
    let trained = |model: &Toy| -> Vec<String> {
        let trained = params(model).into_iter().filter(Parameter::trains);
        trained.map(|param| param.path().to_owned()).collect()
    };
    let plain = adapted();
    let expected = [
        "embed.weight",
        "up.weight.low_rank.a",
        "up.weight.low_rank.b",
        "up.weight.low_rank.dora.magnitude",
        "down.weight.low_rank.a",
        "down.weight.low_rank.b",
        "down.weight.low_rank.dora.magnitude",
    ];
    assert_eq!(trained(&plain), expected);
    let training = Module::train(plain);
    assert_eq!(trained(&training), expected);
    assert_eq!(trained(&training.valid()), expected);
    assert!(trained(&training.no_grad()).is_empty());
}

#[test]
fn what_trains_beside_the_factors_is_saved_and_is_what_was_named() {
    let saved = |model: &Toy| -> Vec<String> {
        let saved = params(model).into_iter();
        let saved = saved.filter(|param| param.role() == Role::Saved);
        saved.map(|param| param.path().to_owned()).collect()
    };
    for name in ["embed", "embed.weight", "up"] {
        let name = names(&[name]);
        let setup = AdapterConfig {
            targets: names(&["down"]),
            modules_to_save: name.clone(),
            ..config(2, 2.0)
        };
        let named = parameters_to_save(&toy(), &name);
        let named: Vec<_> = named.iter().map(|param| param.path().to_owned()).collect();
        assert!(!named.is_empty());
        let model = attach(toy(), &setup, 1, &mut silent()).unwrap();
        assert_eq!(saved(&model), named, "{name:?}");
        assert_eq!(saved(&Module::train(model)), named, "{name:?}");
    }
    // Without an adapter there is nothing beside it.
    let whole = params(&toy());
    assert!(
        whole
            .iter()
            .all(|param| param.role() == Role::Base && param.trains())
    );
}

#[test]
fn what_others_attach_is_no_part_of_our_adapter() {
    let model = toy().apply_lora(Lora::new(2, 2.0));
    let foreign = params(&model).into_iter();
    let foreign = foreign.filter(|param| param.role() == Role::Foreign);
    // Three matrices, two factors each.
    assert_eq!(foreign.count(), 6);
    assert!(olora_adapter::factors(&model).is_empty());
}

#[test]
fn mapping_replaces_by_role() {
    struct Zero;
    impl MapParams for Zero {
        fn map<const D: usize>(
            &mut self,
            place: &Place,
            param: Param<Tensor<D>>,
        ) -> Param<Tensor<D>> {
            if place.role == Role::B && place.layer() == "up" {
                param.map(|tensor| tensor.zeros_like())
            } else {
                param
            }
        }
    }
    let before = adapted();
    let after = map_params(before.clone(), &mut Zero);
    for (before, after) in params(&before).iter().zip(params(&after)) {
        let zeroed = before.path() == "up.weight.low_rank.b";
        let (before, after) = (before.data().unwrap(), after.data().unwrap());
        assert_eq!(before != after, zeroed);
    }
}

#[test]
fn an_adapter_prints_what_it_is() {
    let model = adapted();
    let low_rank = model.up.weight.reparameterization::<LowRank>().unwrap();
    assert_eq!(
        low_rank.to_string(),
        "LowRank {d_in: 6, rank: 2, d_out: 8, scale: 1, anchor: subtracted, dora: true, \
         dropout: 0, params: 80}"
    );
}
