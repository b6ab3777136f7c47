//! Several layers on the same input: queries, keys and values of one token.

use burn::tensor::Tensor;

use crate::PackedTensor;

/// `x·W` for each of some packed weights, all at once; `None` where that is nothing but one
/// after the other, as [`project`](crate::project) does it, and so left to the caller.
///
/// It is something else on the CPU in f32, without autodiff, for a single row, or rows that are
/// [kept apart](crate::rows_apart): products of a token are so short there that waiting for the last
/// thread of each is a part of their time. The bits are those of one after the other.
///
/// # Shapes
///
/// - x: `[.., d_in]`; weights: `[d_in, d_out]` each, their own `d_out`
/// - outputs: `[.., d_out]`
///
/// # Panics
///
/// Where the result is not `None`, if these do not fit each other.
pub fn project_together<const D: usize, const N: usize>(
    x: &Tensor<D>,
    weights: [&PackedTensor; N],
) -> Option<[Tensor<D>; N]> {
    #[cfg(feature = "flex")]
    return on_host(x, weights);
    #[cfg(not(feature = "flex"))]
    {
        let _ = (x, weights);
        None
    }
}

#[cfg(feature = "flex")]
fn on_host<const D: usize, const N: usize>(
    x: &Tensor<D>,
    weights: [&PackedTensor; N],
) -> Option<[Tensor<D>; N]> {
    use burn::tensor::{DType, TensorData};

    use crate::{apart::rows_are_apart, cpu, is_host, supports};

    let (device, dims) = (x.device(), x.dims());
    let n_rows: usize = dims[..D - 1].iter().product();
    let products = weights.first()?.products();
    let alone = n_rows == 1 || n_rows > 1 && rows_are_apart();
    if !alone
        || x.is_autodiff()
        || x.dtype() != DType::F32
        || !supports(&device)
        || !is_host(&device)
        || weights.iter().any(|weight| weight.products() != products)
    {
        return None;
    }
    for weight in weights {
        assert_eq!(
            weight.dims()[0],
            dims[D - 1],
            "an input of {dims:?} and a weight of {:?} do not fit each other",
            weight.dims()
        );
    }
    let data = x.clone().into_data();
    let rows = data.as_slice::<f32>().ok()?;
    let hosts = weights.map(PackedTensor::host);
    let outputs = cpu::multiplied_together(rows, n_rows, &hosts);
    let tensors = outputs.into_iter().zip(weights).map(|(output, weight)| {
        let mut dims = dims;
        dims[D - 1] = weight.dims()[1];
        Tensor::from_data(TensorData::new(output, dims), (&device, DType::F32))
    });
    // As many as there are weights.
    tensors.collect::<Vec<_>>().try_into().ok()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{Device, TensorData};
    use olora_packed::{Format, Packed};

    use super::*;
    use crate::{Products, project, rows_apart};

    fn some(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0)
            .collect()
    }

    fn bits(tensor: Tensor<3>) -> Vec<u32> {
        tensor.into_data().iter::<f32>().map(f32::to_bits).collect()
    }

    /// Small, and large enough to be handed out; matrices of other heights than pieces.
    #[test]
    fn together_has_the_bits_of_one_after_the_other() {
        let device = Device::flex();
        for (d_in, heights) in [(256, [96, 32, 33]), (768, [300, 96, 100])] {
            let numbers = [Format::Bf16, Format::F32];
            for format in crate::formats::all_formats().into_iter().chain(numbers) {
                let [a, b, c] = heights
                    .map(|d_out| PackedTensor::new(crate::formats::packed(format, [d_out, d_in])));
                for products in [Products::Exact, Products::Rounded] {
                    let weights = [&a, &b, &c].map(|weight| weight.clone().with_products(products));
                    let weights = weights.each_ref();
                    for n in [1, 2, 8] {
                        let data = TensorData::new(some(n * d_in, 5), [n, 1, d_in]);
                        let x = Tensor::<3>::from_data(data, &device);
                        rows_apart(|| {
                            let together = project_together(&x, weights).unwrap();
                            for (found, weight) in together.into_iter().zip(weights) {
                                assert_eq!(found.dims(), [n, 1, weight.dims()[1]]);
                                let right = project(x.clone(), weight.clone(), None, None);
                                assert_eq!(bits(found), bits(right), "{format:?}, {d_in}, {n}");
                            }
                        });
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_one_text_and_what_trains_are_left_to_the_caller() {
        let device = Device::flex();
        let values = some(8 * 4, 1);
        let packed = Packed::pack(Format::F32, [8, 4], &values).unwrap();
        let weight = PackedTensor::new(packed);
        let rounded = weight.clone().with_products(Products::Rounded);
        let x = |n: usize, device: &Device| Tensor::<3>::ones([1, n, 4], device);
        assert!(project_together(&x(1, &device), [&weight, &weight]).is_some());
        assert!(project_together(&x(1, &device), [&weight, &rounded]).is_none());
        assert!(project_together(&x(2, &device), [&weight]).is_none());
        assert!(project_together(&x(1, &device.clone().autodiff()), [&weight]).is_none());
    }
}
