//! A frozen weight: dense, or packed in 4 to 8 bits as its file has it.

use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use olora_packed::Packed;

use crate::support::to_dtype;

/// A frozen matrix of a layer, `[d_in, d_out]`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Values of a float dtype, `[d_in, d_out]`.
    Dense(Tensor<2>),
    /// Blocks of a few bits a value. It has no gradient, and nothing of its
    /// size in floats is ever made by an operation.
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

/// A packed matrix that operations multiply with. Cloning it shares the bytes.
#[derive(Clone, Debug)]
pub struct PackedTensor {
    packed: Arc<Packed>,
}

impl PackedTensor {
    /// Of a matrix `[d_out, d_in]`, as files have them.
    pub fn new(packed: Packed) -> Self {
        Self {
            packed: Arc::new(packed),
        }
    }

    /// The matrix, `[d_out, d_in]`.
    pub fn packed(&self) -> &Packed {
        &self.packed
    }

    /// `[d_in, d_out]`, as for a dense weight.
    pub fn dims(&self) -> [usize; 2] {
        let [d_out, d_in] = self.packed.shape();
        [d_in, d_out]
    }

    /// Every value, `[d_in, d_out]`, on a device: a view of `[d_out, d_in]`.
    pub fn dense(&self, device: &Device, dtype: DType) -> Tensor<2> {
        let [rows, columns] = self.packed.shape();
        self.some_rows(0..rows)
            .map(|values| {
                let data = TensorData::new(values, [rows, columns]);
                let device = device.clone().inner();
                let dense = Tensor::<2>::from_data(data, (&device, DType::F32));
                to_dtype(dense, dtype).transpose()
            })
            .unwrap_or_else(|| unreachable!("all rows of a packed matrix are there"))
    }

    /// Rows of the matrix, one for each id: what an embedding gives.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`, each below `d_out`
    /// - output: `[batch, seq, d_in]`, in `dtype`, a constant
    pub fn embedding(&self, ids: Tensor<2, Int>, dtype: DType) -> Tensor<3> {
        let device = ids.device().inner();
        let [batch, seq] = ids.dims();
        let [_, rows] = self.dims();
        let _ = rows;
        let table = self.dense(&device, dtype).transpose();
        let width = table.dims()[1];
        table
            .select(0, ids.reshape([batch * seq]))
            .reshape([batch, seq, width])
    }

    fn some_rows(&self, rows: std::ops::Range<usize>) -> Option<Vec<f32>> {
        let columns = self.packed.shape()[1];
        let mut values = vec![0.0; rows.len() * columns];
        self.packed
            .unpack(rows, 0..columns, &mut values, columns)
            .ok()?;
        Some(values)
    }
}
