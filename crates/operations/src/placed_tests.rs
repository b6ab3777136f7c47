//! Packed weights as tensor operations unpack them, against the kernels that
//! unpack them on the host: on the same backend.

use burn::backend::{DType, Flex, TensorData, TensorMetadata, flex::FlexTensor};
use olora_packed::{BlockFormat, Format, Packed};

use crate::{
    formats::{all_formats, made, packed, some},
    logits::WantedGradients,
    loss::{LossKernel, portable},
    placed::Placed,
    projection::{Layer, ProjectionKernel},
    stored::{Stored, unpacked},
};

fn numbers(seed: u32, shape: &[usize]) -> FlexTensor {
    let values = some(seed, shape.iter().product());
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}

fn read(tensor: FlexTensor) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

fn placed(packed: &Packed) -> Placed<Flex> {
    Placed::new(packed, &numbers(1, &[1]).device())
}

/// Within rounding of sums in another order.
fn assert_close(ours: FlexTensor, right: FlexTensor, of: Format) {
    let (ours, right) = (read(ours), read(right));
    assert_eq!(ours.len(), right.len());
    let size = right.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    assert!(size > 0.0, "all zero, which proves nothing");
    let worst = ours.iter().zip(&right).map(|(x, y)| (x - y).abs());
    let worst = worst.fold(0.0, f32::max);
    assert!(worst <= 3e-6 * size, "{of}: {worst} of {size}");
}

#[test]
fn values_are_those_of_the_kernels() {
    for format in all_formats() {
        let packed = packed(format, [5, 512]);
        let ours = placed(&packed).rows(1..4, DType::F32).0;
        // A zero may have another sign.
        assert_eq!(read(ours), unpacked(&packed, 1..4), "{format}");
    }
}

#[test]
fn values_are_cast_to_half_precision() {
    for dtype in [DType::BF16, DType::F16] {
        let packed = packed(BlockFormat::Q4_0.into(), [5, 64]);
        assert_eq!(placed(&packed).rows(0..5, dtype).dtype(), dtype);
    }
}

#[test]
fn selected_rows_are_those_of_the_kernels() {
    for format in all_formats() {
        let packed = packed(format, [5, 256]);
        let ids = FlexTensor::from_data(TensorData::from([4_i64, 0, 4]));
        let ours = read(placed(&packed).selected(&ids, DType::F32).0);
        let right = [4, 0, 4].map(|row| unpacked(&packed, row..row + 1));
        assert_eq!(ours, right.concat(), "{format}");
    }
}

fn layer(weight: Stored<Flex>) -> Layer<Flex> {
    let [d_in, d_out] = weight.dims();
    Layer {
        weight,
        bias: Some(numbers(9, &[d_out])),
        factors: Some([numbers(3, &[d_in, 4]), numbers(4, &[4, d_out])]),
        anchor: Some([numbers(5, &[d_in, 4]), numbers(6, &[4, d_out])]),
        scale: 1.5,
    }
}

#[test]
fn projections_are_the_kernels() {
    for format in all_formats() {
        let packed = packed(format, [70, 256]);
        let ours = layer(Stored::Placed(placed(&packed)));
        let right = layer(Stored::Host(packed.into()));
        let (x, grad) = (numbers(1, &[2, 9, 256]), numbers(8, &[2, 9, 70]));
        let (output, down) = Flex::projection_forward(x.clone(), &ours);
        let (right_output, _) = Flex::projection_forward(x.clone(), &right);
        assert_close(output, right_output, format);
        let kept = || Some([x.clone(), down.clone().unwrap()]);
        let back = |layer| Flex::projection_backward(layer, kept(), grad.clone(), true);
        let (ours, right) = (back(&ours), back(&right));
        assert_close(ours.grad_x.unwrap(), right.grad_x.unwrap(), format);
    }
}

/// So many rows that they are not unpacked at once.
#[test]
fn projections_by_several_panels_are_the_kernels() {
    let packed = made(BlockFormat::Q8_0, [140_000, 64]);
    let format = packed.format();
    let layer = |weight| Layer {
        weight,
        bias: None,
        factors: None,
        anchor: None,
        scale: 0.0,
    };
    let ours = layer(Stored::Placed(placed(&packed)));
    let right = layer(Stored::Host(packed.into()));
    let (x, grad) = (numbers(1, &[2, 64]), numbers(8, &[2, 140_000]));
    let (output, _) = Flex::projection_forward(x.clone(), &ours);
    assert_close(output, Flex::projection_forward(x, &right).0, format);
    let back = |layer| Flex::projection_backward(layer, None, grad.clone(), true);
    let (ours, right) = (back(&ours), back(&right));
    // A sum of 140,000 products by two orders.
    let (ours, right) = (read(ours.grad_x.unwrap()), read(right.grad_x.unwrap()));
    let size = right.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    for (ours, right) in ours.iter().zip(&right) {
        assert!((ours - right).abs() < 3e-5 * size, "{ours} for {right}");
    }
}

#[test]
fn losses_are_the_kernels() {
    let packed = made(BlockFormat::Q6K, [500, 256]);
    let (format, hidden) = (packed.format(), numbers(1, &[13, 256]));
    let ids: Vec<i64> = (0..13).map(|i| i * 37 % 500).collect();
    let ids = FlexTensor::from_data(TensorData::new(ids, [13]));
    let wanted = WantedGradients {
        hidden: true,
        weight: false,
    };
    let ours = Stored::Placed(placed(&packed));
    let ours = portable::<Flex>(hidden.clone(), &ours, &ids, 10, None, 4, wanted);
    let right = Stored::Host(packed.into());
    let right = Flex::loss_and_gradients(hidden, right, ids, 10, None, 4, wanted);
    assert_close(ours.loss, right.loss, format);
    let (ours, right) = (ours.grad_hidden.unwrap(), right.grad_hidden.unwrap());
    assert_close(ours, right, format);
}
