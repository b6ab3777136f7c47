//! The factored forward pass against Burn's composed one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Device, Tensor},
};
use common::{Toy, cast, config, max_diff, random, silent, values};
use olora_adapter::{
    AdapterConfig, LowRank, MapParams, Method, Place, Role, attach, factors, map_params, merge,
    without_adapter,
};

/// Moves every factor away from where it started, as training would.
fn perturb(model: Toy) -> Toy {
    struct Perturb;
    impl MapParams for Perturb {
        fn map<const D: usize>(
            &mut self,
            place: &Place,
            param: Param<Tensor<D>>,
        ) -> Param<Tensor<D>> {
            if !matches!(place.role, Role::A | Role::B | Role::Magnitude) {
                return param;
            }
            param.map(|t| {
                let noise = t.random_like(burn::tensor::Distribution::Normal(0.0, 0.3));
                t + noise
            })
        }
    }
    map_params(model, &mut Perturb)
}

fn check(setup: &AdapterConfig, dims: [usize; 3]) {
    let device = Device::flex();
    let toy = Toy::new(dims[0], dims[1], dims[2], &device);
    let what = format!(
        "{:?}, dora {}, rank {}, {dims:?}",
        setup.method, setup.dora, setup.rank
    );
    let adapted = perturb(attach(toy.clone(), setup, 3, &mut silent()).unwrap());
    let x2 = random([5, dims[0]], &device);
    let x3 = random([2, 3, dims[0]], &device);

    let change = max_diff(adapted.project(x2.clone()), toy.project(x2.clone()));
    assert!(
        change > 0.05,
        "the adapter must do something, but changes outputs by {change}"
    );
    // Relative to the outputs, which some ranks make large.
    let size = values(adapted.project(x2.clone()))
        .iter()
        .fold(1.0_f32, |size, x| size.max(x.abs()));
    let close = |a: f32| assert!(a < 3e-6 * size, "{what}: {a} of {size}");
    close(max_diff(
        adapted.project(x2.clone()),
        adapted.forward(x2.clone()),
    ));
    close(max_diff(adapted.project(x3.clone()), adapted.forward(x3)));
    let merged = merge(adapted.clone()).unwrap();
    assert!(factors(&merged).is_empty());
    close(max_diff(adapted.project(x2.clone()), merged.project(x2)));
}

#[test]
fn equals_the_composed_form_for_every_rank_and_shape() {
    let _alone = common::alone();
    for method in Method::ALL {
        if method.needs_data() {
            continue;
        }
        let even = method == Method::LoraOrthogonal;
        for rank in if even { [2, 4, 8] } else { [1, 3, 8] } {
            for dora in [false, true] {
                let setup = AdapterConfig {
                    method,
                    dora,
                    ..config(rank, 1.5 * rank as f64)
                };
                check(&setup, [8, 8, 8]);
                check(&setup, [12, 20, 9]);
            }
        }
    }
}

#[test]
fn gradients_equal_the_composed_forms_and_none_reaches_the_base() {
    let _alone = common::alone();
    for rank in [1, 3, 8] {
        for dims in [[8, 8, 8], [12, 20, 9]] {
            let device = Device::flex();
            let toy = Toy::new(dims[0], dims[1], dims[2], &device);
            let adapted =
                perturb(attach(toy, &config(rank, 0.7 * rank as f64), 3, &mut silent()).unwrap());
            let adapted = Module::train(adapted);
            let x = Tensor::from_inner(random([4, 3, dims[0]], &device));
            let target: Tensor<3> = Tensor::from_inner(random([4, 3, dims[2]], &device));

            let fast = (adapted.project(x.clone()) - target.clone())
                .square()
                .sum()
                .backward();
            let slow = (adapted.forward(x) - target).square().sum().backward();
            for layer in [&adapted.up, &adapted.down] {
                let low_rank = layer.weight.reparameterization::<LowRank>().unwrap();
                for factor in [&low_rank.a, &low_rank.b] {
                    let fast = factor.val().grad(&fast).unwrap();
                    let slow = factor.val().grad(&slow).unwrap();
                    let size = fast.clone().abs().max().into_scalar::<f32>();
                    assert!(size > 1e-3, "a gradient of {size} proves nothing");
                    assert!(max_diff(fast, slow) < 2e-5 * size.max(1.0));
                }
                let anchor = low_rank.anchor.as_ref().unwrap();
                assert!(
                    anchor.a.val().grad(&fast).is_none() && anchor.b.val().grad(&fast).is_none()
                );
                assert!(layer.weight.base().grad(&fast).is_none());
            }
            assert!(
                adapted
                    .up
                    .bias
                    .as_ref()
                    .unwrap()
                    .val()
                    .grad(&fast)
                    .is_none()
            );
        }
    }
}

#[test]
fn lora_starts_with_a_gradient_for_b_alone_and_olora_for_both() {
    let _alone = common::alone();
    let device = Device::flex();
    for (method, a_moves) in [(Method::Lora, false), (Method::Olora, true)] {
        let setup = AdapterConfig {
            method,
            ..config(3, 3.0)
        };
        let adapted = attach(Toy::new(8, 10, 6, &device), &setup, 1, &mut silent()).unwrap();
        let adapted = Module::train(adapted);
        let grads = adapted
            .project(Tensor::from_inner(random([4, 8], &device)))
            .square()
            .sum()
            .backward();
        let low_rank = adapted.down.weight.reparameterization::<LowRank>().unwrap();
        let size = |t: Tensor<2>| t.grad(&grads).unwrap().abs().max().into_scalar::<f32>();
        assert_eq!(size(low_rank.a.val()) > 0.0, a_moves, "{method:?}");
        assert!(size(low_rank.b.val()) > 0.0, "{method:?}");
    }
}

#[test]
fn an_anchored_start_is_the_base_bit_for_bit_in_f32_and_bf16() {
    let _alone = common::alone();
    for dtype in [DType::F32, DType::BF16] {
        for method in Method::ALL
            .into_iter()
            .filter(|method| method.is_anchored() && !method.needs_data())
        {
            for dora in [false, true] {
                is_the_base_bit_for_bit(dtype, method, dora);
            }
        }
        // Those that start from zero are no less.
        is_the_base_bit_for_bit(dtype, Method::Lora, true);
    }
}

fn is_the_base_bit_for_bit(dtype: DType, method: Method, dora: bool) {
    let device = Device::flex();
    {
        let toy = cast(Toy::new(12, 20, 9, &device), dtype);
        let x = random([3, 5, 12], &device).cast(dtype);
        let setup = AdapterConfig {
            method,
            dora,
            ..config(4, 6.0)
        };
        let adapted = attach(toy.clone(), &setup, 1, &mut silent()).unwrap();
        assert_eq!(
            adapted.project(x.clone()).into_data(),
            toy.project(x.clone()).into_data(),
            "{dtype:?} {method:?} {dora}"
        );

        // Trained, then taken off again.
        let trained = perturb(adapted);
        assert!(max_diff(trained.project(x.clone()), toy.project(x.clone())) > 0.05);
        let off = without_adapter(trained).unwrap();
        assert_eq!(
            off.project(x.clone()).into_data(),
            toy.project(x).into_data(),
            "{dtype:?}"
        );
    }
}

#[test]
fn a_start_with_dropout_is_still_the_base() {
    let _alone = common::alone();
    let device = Device::flex();
    let toy = Toy::new(12, 20, 9, &device);
    let setup = AdapterConfig {
        dropout: 0.5,
        ..config(4, 6.0)
    };
    let adapted = Module::train(attach(toy.clone(), &setup, 1, &mut silent()).unwrap());
    let x = random([30, 12], &device);
    let tracked = Tensor::from_inner(x.clone());
    assert_eq!(
        adapted.project(tracked.clone()).inner().into_data(),
        toy.project(x.clone()).into_data()
    );
    // Away from the start, dropout acts in training and not in evaluation.
    let trained = Module::train(perturb(adapted.valid()));
    assert!(
        max_diff(
            trained.project(tracked.clone()).inner(),
            trained.forward(tracked).inner()
        ) > 0.01
    );
    let evaluated = trained.valid();
    assert!(max_diff(evaluated.project(x.clone()), evaluated.forward(x)) < 5e-6);
}

#[test]
fn a_residual_start_is_the_base_up_to_rounding() {
    let _alone = common::alone();
    let device = Device::flex();
    let placement = olora_adapter::Placement::Residual;
    let methods = Method::ALL
        .into_iter()
        .filter(|method| method.is_anchored() && !method.needs_data());
    for (method, dora) in methods.flat_map(|method| [(method, false), (method, true)]) {
        for (dtype, tolerance) in [(DType::F32, 3e-6), (DType::BF16, 3e-2)] {
            let toy = cast(Toy::new(12, 20, 9, &device), dtype);
            let x = random([30, 12], &device).cast(dtype);
            let setup = AdapterConfig {
                placement,
                method,
                dora,
                ..config(4, 3.0)
            };
            let adapted = attach(toy.clone(), &setup, 1, &mut silent()).unwrap();
            assert!(
                max_diff(adapted.up.weight.base(), toy.up.weight.base()) > 0.01,
                "the base is not a residual"
            );
            let diff = max_diff(adapted.project(x.clone()), toy.project(x.clone()));
            assert!(
                diff < tolerance,
                "{method:?}, dora {dora}, {dtype:?}: {diff}"
            );
            let off = without_adapter(perturb(adapted)).unwrap();
            assert!(max_diff(off.project(x.clone()), toy.project(x)) < tolerance);
        }
    }
}

#[test]
fn merging_leaves_the_module_it_was_given_alone() {
    let _alone = common::alone();
    let device = Device::flex();
    let adapted = perturb(
        attach(
            Toy::new(8, 8, 8, &device),
            &config(2, 2.0),
            1,
            &mut silent(),
        )
        .unwrap(),
    );
    let before = adapted.up.weight.base().into_data();
    merge(adapted.clone()).unwrap();
    assert_eq!(adapted.up.weight.base().into_data(), before);
    assert_eq!(factors(&adapted).len(), 2);
}

#[test]
fn merging_factors_that_are_not_finite_is_refused_by_name() {
    let _alone = common::alone();
    let device = Device::flex();
    struct Poison;
    impl ModuleMapper for Poison {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|t| t.div_scalar(0.0))
        }
    }
    let adapted = attach(
        Toy::new(8, 8, 8, &device),
        &config(2, 2.0),
        1,
        &mut silent(),
    )
    .unwrap();
    let error = merge(adapted.map(&mut Poison)).unwrap_err().to_string();
    assert!(
        error.contains("`up`") && error.contains("not finite"),
        "{error}"
    );
}
