//! A frozen weight: dense, or packed in 4 to 16 bits.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
};

use burn::{
    backend::Dispatch,
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use olora_packed::Packed;

use crate::{
    loss::{PACKED_ROWS, rows_at_once},
    placed::Placed,
    stored::{Host, Stored, unpack, unpacked},
    support::{supports, to_dtype},
};

/// A frozen matrix of a layer, `[d_in, d_out]`.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a tensor is as large wherever it is passed"
)]
pub enum Weight {
    /// Values of a float dtype, `[d_in, d_out]`.
    Dense(Tensor<2>),
    /// Blocks of a few bits a value. It has no gradient, and nothing of its
    /// size in floats is ever made by an operation, but for the compositions
    /// that run where [`supports`] says no.
    Packed(PackedTensor),
}

impl Weight {
    /// `[d_in, d_out]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Packed(packed) => packed.dims(),
        }
    }

    /// Cast to the dtype of what it is multiplied with. Packed weights are
    /// unpacked into that anyway.
    #[must_use]
    pub fn to_dtype(self, dtype: DType) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(to_dtype(weight, dtype)),
            packed @ Self::Packed(_) => packed,
        }
    }

    /// How many rows of logits are there at once, unless the caller says, where
    /// this is the projection to the vocabulary.
    ///
    /// As [`rows_at_once`] says; but a packed weight is unpacked twice for each
    /// such chunk, so that it has 128 rows at least, beside whose products that
    /// is little: 66 MB of logits for a vocabulary of 128,256.
    pub fn rows_at_once(&self) -> usize {
        let rows = rows_at_once(self.dims()[1]);
        match self {
            Self::Dense(_) => rows,
            Self::Packed(_) => rows.max(PACKED_ROWS),
        }
    }

    /// As the operations take it, for a device that has them.
    pub(crate) fn stored(self, device: &Device) -> Stored<Dispatch> {
        match self {
            Self::Dense(weight) => Stored::Dense(weight.into_dispatch()),
            Self::Packed(packed) if is_host(device) => Stored::Host(packed.host()),
            // What has no codes is a number format, which devices have of their own.
            Self::Packed(packed) if packed.packed().format().code_layout().is_none() => {
                Stored::Dense(packed.dense(device, DType::F32).into_dispatch())
            }
            Self::Packed(packed) => Stored::Placed(packed.placed(device)),
        }
    }

    /// The whole matrix, `[d_in, d_out]`, on a device: for starts, oracles and
    /// merging, one layer at a time.
    pub fn dense(&self, device: &Device, dtype: DType) -> Tensor<2> {
        match self {
            Self::Dense(weight) => to_dtype(weight.clone(), dtype),
            Self::Packed(packed) => packed.dense(device, dtype),
        }
    }
}

impl From<Tensor<2>> for Weight {
    fn from(weight: Tensor<2>) -> Self {
        Self::Dense(weight)
    }
}

impl From<PackedTensor> for Weight {
    fn from(weight: PackedTensor) -> Self {
        Self::Packed(weight)
    }
}

/// What makes logits of hidden states: a weight, and what bends its products.
#[derive(Clone, Debug)]
pub struct OutputHead {
    /// `[width, vocab]`.
    pub weight: Weight,
    /// Logits `z` become `cap·tanh(z/cap)`, if there is a cap (Gemma 2,
    /// [arXiv 2408.00118](https://arxiv.org/abs/2408.00118), section 2).
    pub soft_cap: Option<f64>,
}

impl<W: Into<Weight>> From<W> for OutputHead {
    fn from(weight: W) -> Self {
        Self {
            weight: weight.into(),
            soft_cap: None,
        }
    }
}

/// `cap·tanh(z/cap)` in f32, or `z` as it is without a cap.
///
/// # Shapes
///
/// - logits, output: the same, in the dtype of the logits
pub fn soft_capped<const D: usize>(logits: Tensor<D>, cap: Option<f64>) -> Tensor<D> {
    let Some(cap) = cap else { return logits };
    let dtype = logits.dtype();
    let bent = to_dtype(logits, DType::F32).div_scalar(cap).tanh();
    to_dtype(bent.mul_scalar(cap), dtype)
}

/// Whether rows are equal up to the last bits of their largest value.
fn is_same_row(found: &[f32], right: &[f32]) -> bool {
    let largest = right
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * largest;
    found.len() == right.len() && found.iter().zip(right).all(near)
}

/// Whether the device computes in the host's memory, with kernels for packed
/// weights.
pub fn is_host(device: &Device) -> bool {
    #[allow(unused_imports, reason = "unused without a backend")]
    use burn::backend::DispatchDevice;
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[allow(unreachable_patterns, reason = "reachable with other backends")]
        _ => false,
    }
}

/// How the CPU multiplies with packed matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// In f32, with the values that are packed: the results are those of the
    /// unpacked matrix, bit for bit, but where x is a single row, or the rows of the matrix are
    /// [interleaved](Packed::interleaved).
    #[default]
    Exact,
    /// Both sides are rounded to bfloat16 first, and products, which are exact in
    /// f32, are summed in f32: what bfloat16 matrix instructions compute. Where the
    /// processor has none (AMX, AVX512-BF16), results are the same up to the order
    /// of sums. An update by factors is summed with them, all rounded. Of a single row,
    /// x alone is rounded.
    Rounded,
}

/// A packed matrix that operations multiply with. Cloning it shares the bytes.
#[derive(Clone, Debug)]
pub struct PackedTensor {
    shared: Arc<Shared>,
    products: Products,
}

/// What clones of a packed tensor have in common.
#[derive(Debug)]
struct Shared {
    packed: Arc<Packed>,
    /// Copies on devices that have no kernels for it, made when first used there.
    placed: Mutex<Vec<(Device, Placed<Dispatch>)>>,
}

impl PackedTensor {
    /// Of a matrix `[d_out, d_in]`, as files have them.
    pub fn new(packed: Packed) -> Self {
        Self {
            shared: Arc::new(Shared {
                packed: Arc::new(packed),
                placed: Mutex::default(),
            }),
            products: Products::default(),
        }
    }

    /// The same matrix, multiplied with so on the CPU. Other devices have ways of
    /// their own.
    #[must_use]
    pub fn with_products(self, products: Products) -> Self {
        Self { products, ..self }
    }

    /// How the CPU multiplies with it.
    pub fn products(&self) -> Products {
        self.products
    }

    /// The matrix, `[d_out, d_in]`.
    pub fn packed(&self) -> &Packed {
        &self.shared.packed
    }

    /// As the CPU's kernels take it.
    pub(crate) fn host(&self) -> Host {
        Host {
            packed: self.shared.packed.clone(),
            products: self.products,
        }
    }

    /// `[d_in, d_out]`, as for a dense weight.
    pub fn dims(&self) -> [usize; 2] {
        let [d_out, d_in] = self.packed().shape();
        [d_in, d_out]
    }

    /// Its codes on a device, the same for all clones.
    fn placed(&self, device: &Device) -> Placed<Dispatch> {
        let device = device.clone().inner();
        let mut placed = match self.shared.placed.lock() {
            Ok(placed) => placed,
            // Whoever panicked had not pushed yet, or had done so.
            Err(poisoned) => poisoned.into_inner(),
        };
        if let Some((_, found)) = placed.iter().find(|(at, _)| *at == device) {
            return found.clone();
        }
        let made = Placed::new(self.packed(), device.as_dispatch());
        placed.push((device, made.clone()));
        made
    }

    /// Every value, `[d_in, d_out]`, on a device: a view of `[d_out, d_in]`.
    pub fn dense(&self, device: &Device, dtype: DType) -> Tensor<2> {
        let [rows, columns] = self.packed().shape();
        let data = TensorData::new(unpacked(self.packed(), 0..rows), [rows, columns]);
        let device = device.clone().inner();
        let dense = Tensor::<2>::from_data(data, (&device, DType::F32));
        to_dtype(dense, dtype).transpose()
    }

    /// Whether a device unpacks the first row as the CPU does, up to the last bits:
    /// one without the integer operations for it, or with wrong ones, does not.
    ///
    /// # Errors
    ///
    /// What the device says if the row cannot be read back.
    pub fn is_unpacked_by(&self, device: &Device) -> Result<bool, String> {
        let width = self.packed().shape()[1];
        let ids = Tensor::<2, Int>::zeros([1, 1], device);
        let found = self.embedding(ids, DType::F32).try_into_data();
        let found: Vec<f32> = found.map_err(|error| error.to_string())?.iter().collect();
        let mut row = vec![0.0; width];
        unpack(self.packed(), 0..1, 0..width, &mut row);
        Ok(is_same_row(&found, &row))
    }

    /// Rows of the matrix, one for each id: what an embedding gives. Only these
    /// are unpacked, each once.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`, each below `d_out`
    /// - output: `[batch, seq, d_in]`, in `dtype`, a constant
    ///
    /// # Panics
    ///
    /// On the CPU, if an id is not below `d_out`, as Burn's embedding does there.
    pub fn embedding(&self, ids: Tensor<2, Int>, dtype: DType) -> Tensor<3> {
        let device = ids.device().inner();
        let [batch, seq] = ids.dims();
        let [width, rows] = self.dims();
        let has_codes = self.packed().format().code_layout().is_some();
        if supports(&device) && !is_host(&device) && has_codes {
            let ids = ids
                .without_autodiff()
                .reshape([batch * seq])
                .into_dispatch();
            let found = self.placed(&device).selected(&ids, dtype).0;
            return Tensor::<2>::from_dispatch(found).reshape([batch, seq, width]);
        }
        let ids: Vec<i64> = ids.into_data().iter::<i64>().collect();
        let stray = ids
            .iter()
            .find(|id| usize::try_from(**id).map_or(true, |id| id >= rows));
        assert!(
            stray.is_none(),
            "the id {} is not one of the {rows} rows of an embedding",
            stray.copied().unwrap_or_default()
        );
        let mut values = vec![0.0; ids.len() * width];
        let mut places: HashMap<i64, usize> = HashMap::new();
        for (i, id) in ids.iter().enumerate() {
            match places.entry(*id) {
                Entry::Occupied(first) => {
                    let first = first.get() * width;
                    values.copy_within(first..first + width, i * width);
                }
                Entry::Vacant(place) => {
                    place.insert(i);
                    let row = *id as usize;
                    let output = &mut values[i * width..(i + 1) * width];
                    unpack(self.packed(), row..row + 1, 0..width, output);
                }
            }
        }
        let data = TensorData::new(values, [batch, seq, width]);
        to_dtype(Tensor::from_data(data, (&device, DType::F32)), dtype)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::formats::made;

    #[test]
    fn a_row_that_is_unpacked_wrongly_is_found() {
        let right = [0.5, -2.0, 0.0];
        assert!(is_same_row(&[0.5, -2.000_000_2, 0.0], &right));
        for wrong in [&[0.5, -2.0, 0.1][..], &[0.5, f32::NAN, 0.0], &[0.5, -2.0]] {
            assert!(!is_same_row(wrong, &right), "{wrong:?}");
        }
    }

    #[test]
    fn the_cpu_unpacks_as_it_does() {
        let packed = PackedTensor::new(made(olora_packed::BlockFormat::Q4K, [3, 512]));
        assert_eq!(packed.is_unpacked_by(&Device::flex()), Ok(true));
    }
}
