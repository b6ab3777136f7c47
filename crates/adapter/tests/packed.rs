//! Packed weights in a module: the same as their unpacked values, whatever is
//! attached, and in the place of a parameter that holds nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeMap;

use burn::{
    module::{Module, Param},
    nn::{Embedding, EmbeddingConfig, Linear, LinearConfig},
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use olora_adapter::{
    AdapterConfig, Embed, Kind, Method, PackedBase, PackedWeight, Placement, Project, attach,
    factors, hollow, merge, merged_params, packed_weights, params, project_each, put_on,
    without_adapter,
};
use olora_operations::PackedTensor;
use olora_packed::{BlockFormat, Packed};

const D_IN: usize = 64;
const D_OUT: usize = 48;
const VOCAB: usize = 10;

#[derive(Module, Debug)]
struct Net {
    embed: Embedding,
    first: Linear,
    second: Linear,
}

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5;
    (0..n).map(number).collect()
}

fn packed(shape: [usize; 2], seed: usize, kind: Kind) -> PackedBase {
    let values = numbers(shape[0] * shape[1], seed);
    let tensor = PackedTensor::new(Packed::pack(BlockFormat::Q4_0, shape, &values).unwrap());
    PackedBase { tensor, kind }
}

fn all_packed() -> BTreeMap<String, PackedBase> {
    BTreeMap::from([
        (
            "embed".to_owned(),
            packed([VOCAB, D_IN], 3, Kind::Embedding),
        ),
        ("first".to_owned(), packed([D_OUT, D_IN], 4, Kind::Linear)),
    ])
}

/// An embedding, a packed layer and a dense one; all dense if not `packed`.
fn net(stays_packed: bool) -> Net {
    let device = Device::flex();
    let all = all_packed();
    let weight = |path: &str, dims: [usize; 2]| {
        Param::from_tensor(if stays_packed {
            hollow(dims, &device, DType::F32)
        } else {
            all[path].dense(&device, DType::F32)
        })
    };
    let mut embed = EmbeddingConfig::new(VOCAB, D_IN).init(&device);
    embed.weight = weight("embed", [VOCAB, D_IN]);
    let mut first = LinearConfig::new(D_IN, D_OUT)
        .with_bias(false)
        .init(&device);
    first.weight = weight("first", [D_IN, D_OUT]);
    let mut second = LinearConfig::new(D_OUT, D_IN)
        .with_bias(false)
        .init(&device);
    let data = TensorData::new(numbers(D_OUT * D_IN, 5), [D_OUT, D_IN]);
    second.weight = Param::from_tensor(Tensor::from_data(data, (&device, DType::F32)));
    let net = Net {
        embed,
        first,
        second,
    };
    if stays_packed { put_on(net, all) } else { net }
}

fn run(net: &Net) -> Vec<f32> {
    let ids = Tensor::<2, Int>::from_data([[1, 7, 3], [0, 9, 9]], &Device::flex());
    let x = net.embed.embed(ids);
    let y = net.second.project(net.first.project(x));
    y.into_data().try_to_vec().unwrap()
}

/// Starts, magnitudes and copies come out of sums in another order.
fn assert_near(packed: &[f32], dense: &[f32]) {
    let largest = dense
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    for (packed, dense) in packed.iter().zip(dense) {
        assert!((packed - dense).abs() < 1e-5 * largest, "{packed} {dense}");
    }
}

fn config(method: Method) -> AdapterConfig {
    AdapterConfig {
        rank: 4,
        alpha: 8.0,
        method,
        ..AdapterConfig::default()
    }
}

fn attached(net: Net, config: &AdapterConfig) -> Net {
    attach(net, config, 42, &mut |_, _| {}).unwrap()
}

/// Moves every factor, so that the update is not zero.
fn moved(net: Net) -> Net {
    use olora_adapter::{MapParams, Place, Role, map_params};
    struct Move;
    impl MapParams for Move {
        fn map<const D: usize>(
            &mut self,
            place: &Place,
            param: Param<Tensor<D>>,
        ) -> Param<Tensor<D>> {
            match place.role {
                Role::A | Role::B | Role::Magnitude => param.map(|old| {
                    let data = TensorData::new(
                        numbers(old.shape().num_elements(), place.path.len()),
                        old.shape(),
                    );
                    let device = old.device();
                    old + Tensor::<D>::from_data(data, (&device, DType::F32)).mul_scalar(0.1)
                }),
                _ => param,
            }
        }
    }
    map_params(net, &mut Move)
}

#[test]
fn a_packed_module_computes_what_its_unpacked_values_do() {
    assert_eq!(run(&net(true)), run(&net(false)));
}

#[test]
fn burns_own_forward_is_given_the_whole_weight() {
    let x = Tensor::<2>::from_data(
        TensorData::new(numbers(2 * D_IN, 9), [2, D_IN]),
        (&Device::flex(), DType::F32),
    );
    let forward = |net: Net| -> Vec<f32> {
        let y = net.first.forward(x.clone());
        y.into_data().try_to_vec().unwrap()
    };
    assert_near(&forward(net(true)), &forward(net(false)));
}

#[test]
fn the_parameter_itself_is_hollow_and_what_lists_it_is_not() {
    let net = net(true);
    let base: Vec<f32> = net.first.weight.base().into_data().try_to_vec().unwrap();
    assert!(base.iter().all(|value| *value == 0.0));
    let all = params(&net);
    let first = all
        .iter()
        .find(|param| param.path() == "first.weight")
        .unwrap();
    assert!(first.packed().is_some());
    assert_eq!(first.torch_shape(), [D_OUT, D_IN]);
    let right = all_packed()["first"]
        .dense(&Device::flex(), DType::F32)
        .into_data();
    assert_eq!(first.data().unwrap(), right);
    let flat: Vec<f32> = first.flat().into_data().try_to_vec().unwrap();
    assert_eq!(flat, right.try_to_vec::<f32>().unwrap());
}

#[test]
fn every_method_attaches_as_to_the_unpacked_values() {
    for method in [
        Method::Lora,
        Method::Olora,
        Method::Pissa,
        Method::OloraTail,
        Method::LoraOrthogonal,
    ] {
        let config = config(method);
        let of = |stays_packed| attached(net(stays_packed), &config);
        assert_eq!(
            run(&of(true)),
            run(&net(true)),
            "{method:?}: step 0 is the base"
        );
        assert_near(&run(&moved(of(true))), &run(&moved(of(false))));
    }
}

#[test]
fn magnitudes_are_those_of_the_unpacked_values() {
    let config = AdapterConfig {
        dora: true,
        ..config(Method::Lora)
    };
    let of = |stays_packed| attached(net(stays_packed), &config);
    assert_eq!(run(&of(true)), run(&net(true)));
    assert_near(&run(&moved(of(true))), &run(&moved(of(false))));
}

#[test]
fn an_adapter_on_the_embedding_leaves_it_packed() {
    let config = AdapterConfig {
        targets: vec!["embed".to_owned(), "first".to_owned()],
        ..config(Method::Lora)
    };
    let of = |stays_packed| moved(attached(net(stays_packed), &config));
    assert_eq!(packed_weights(&of(true)).len(), 2);
    assert_eq!(run(&of(true)), run(&of(false)));
}

#[test]
fn training_and_validation_keep_it_packed() {
    let trained = Module::train(attached(net(true), &config(Method::Olora)));
    assert_eq!(packed_weights(&trained).len(), 2);
    assert_eq!(packed_weights(&trained.valid()).len(), 2);
    assert_eq!(run(&trained.valid()), run(&net(true)));
}

#[test]
fn without_its_adapter_it_is_packed_again() {
    let bare = without_adapter(moved(attached(net(true), &config(Method::Olora)))).unwrap();
    assert!(factors(&bare).is_empty());
    assert_eq!(packed_weights(&bare).len(), 2);
    assert!(
        bare.first
            .weight
            .reparameterization::<PackedWeight>()
            .is_some()
    );
    assert_eq!(run(&bare), run(&net(true)));
}

#[test]
fn merging_makes_it_dense() {
    let of = |stays_packed| moved(attached(net(stays_packed), &config(Method::Lora)));
    let merged = merge(of(true)).unwrap();
    assert!(packed_weights(&merged).is_empty());
    let dense = merge(of(false)).unwrap();
    for (ours, dense) in params(&merged).iter().zip(params(&dense)) {
        assert_eq!(
            ours.data().unwrap(),
            dense.data().unwrap(),
            "{}",
            ours.path()
        );
    }
}

/// Blocks that were unpacked, added nothing to and packed again could be others.
#[test]
fn a_weight_to_which_nothing_is_added_stays_in_its_blocks() {
    for method in [Method::Lora, Method::Olora] {
        let stays_packed = |net: &Net| {
            let all = merged_params(net).unwrap();
            let first = all
                .iter()
                .find(|param| param.param().path() == "first.weight");
            first.unwrap().packed().is_some()
        };
        let adapted = attached(net(true), &config(method));
        assert!(stays_packed(&adapted), "{method:?}");
        assert!(!stays_packed(&moved(adapted)), "{method:?}");
    }
}

#[test]
fn a_residual_placement_is_refused_by_name() {
    let config = AdapterConfig {
        placement: Placement::Residual,
        ..config(Method::Olora)
    };
    let error = attach(net(true), &config, 42, &mut |_, _| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("first") && error.contains("anchored"),
        "{error}"
    );
}

#[test]
fn a_module_that_trains_whole_becomes_dense() {
    let config = AdapterConfig {
        targets: vec!["second".to_owned()],
        modules_to_save: vec!["first".to_owned()],
        ..config(Method::Lora)
    };
    let net = attached(net(true), &config);
    assert_eq!(
        packed_weights(&net).into_keys().collect::<Vec<_>>(),
        ["embed"]
    );
    assert_eq!(run(&net), run(&self::net(true)));
    let all = params(&net);
    let first = all
        .iter()
        .find(|param| param.path() == "first.weight")
        .unwrap();
    assert!(first.trains());
}

/// With biases and without, plain layers and one that is adapted among them.
#[test]
fn layers_of_one_input_give_what_each_gives_alone() {
    let bits =
        |y: Tensor<3>| -> Vec<u32> { y.into_data().iter::<f32>().map(f32::to_bits).collect() };
    let mut biased = net(true).first;
    let bias = TensorData::new(numbers(D_OUT, 8), [D_OUT]);
    biased.bias = Some(Param::from_tensor(Tensor::from_data(bias, &Device::flex())));
    let adapted = moved(attached(net(true), &config(Method::Olora))).first;
    let plain = net(true).first;
    for layers in [[&plain, &biased], [&plain, &adapted], [&adapted, &biased]] {
        for n in [1, 3] {
            let data = TensorData::new(numbers(n * D_IN, 9), [n, 1, D_IN]);
            let x = Tensor::<3>::from_data(data, &Device::flex());
            let alone = layers.map(|layer| bits(layer.project(x.clone())));
            assert_eq!(project_each(layers, &x).map(bits), alone);
            olora_operations::rows_apart(|| {
                let alone = layers.map(|layer| bits(layer.project(x.clone())));
                assert_eq!(project_each(layers, &x).map(bits), alone);
            });
        }
    }
}
