//! Tensor operations of any backend, with operators, so that the portable
//! bodies read as formulas.

use std::ops::{Add, Mul, Range, Sub};

use burn::backend::{
    Backend, DType, Shape, Slice, TensorData, TensorMetadata,
    tensor::{BoolTensor, Device, FloatTensor},
};

use crate::support::cast;

/// A float tensor of backend `B`.
pub(crate) struct Portable<B: Backend>(pub(crate) FloatTensor<B>);

impl<B: Backend> Clone for Portable<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> Portable<B> {
    pub(crate) fn shape(&self) -> Vec<usize> {
        self.0.shape().to_vec()
    }

    pub(crate) fn dtype(&self) -> DType {
        self.0.dtype()
    }

    pub(crate) fn device(&self) -> Device<B> {
        self.0.device()
    }

    pub(crate) fn cast(self, dtype: DType) -> Self {
        Self(cast::<B>(self.0, dtype))
    }

    pub(crate) fn f32(self) -> Self {
        self.cast(DType::F32)
    }

    pub(crate) fn reshape(self, shape: impl Into<Vec<usize>>) -> Self {
        Self(B::float_reshape(self.0, Shape::from(shape.into())))
    }

    pub(crate) fn matmul(self, rhs: Self) -> Self {
        Self(B::float_matmul(self.0, rhs.0))
    }

    /// The last two axes exchanged.
    pub(crate) fn transpose(self) -> Self {
        Self(B::float_transpose(self.0))
    }

    pub(crate) fn scale(self, by: f64) -> Self {
        // Times one is a kernel, too.
        if by == 1.0 {
            return self;
        }
        Self(B::float_mul_scalar(self.0, by.into()))
    }

    pub(crate) fn add_scalar(self, value: f64) -> Self {
        Self(B::float_add_scalar(self.0, value.into()))
    }

    pub(crate) fn neg(self) -> Self {
        Self(B::float_neg(self.0))
    }

    pub(crate) fn exp(self) -> Self {
        Self(B::float_exp(self.0))
    }

    pub(crate) fn tanh(self) -> Self {
        Self(B::float_tanh(self.0))
    }

    /// `cap·tanh(x/cap)`.
    pub(crate) fn soft_capped(self, cap: f64) -> Self {
        self.scale(1.0 / cap).tanh().scale(cap)
    }

    /// How [`soft_capped`](Self::soft_capped) grows with `x`, given what it
    /// made of it: `1 − tanh²(x/cap)`.
    pub(crate) fn slope_of_cap(self, cap: f64) -> Self {
        let tanh = self.scale(1.0 / cap);
        (tanh.clone() * tanh).neg().add_scalar(1.0)
    }

    pub(crate) fn log(self) -> Self {
        Self(B::float_log(self.0))
    }

    pub(crate) fn sqrt(self) -> Self {
        Self(B::float_sqrt(self.0))
    }

    pub(crate) fn recip(self) -> Self {
        Self(B::float_recip(self.0))
    }

    /// Summed over one axis, which stays with length one.
    pub(crate) fn sum_dim(self, dim: usize) -> Self {
        Self(B::float_sum_dim(self.0, dim))
    }

    pub(crate) fn mean_dim(self, dim: usize) -> Self {
        Self(B::float_mean_dim(self.0, dim))
    }

    pub(crate) fn max_dim(self, dim: usize) -> Self {
        Self(B::float_max_dim(self.0, dim))
    }

    /// Summed along one axis, up to each element.
    pub(crate) fn cumsum(self, dim: usize) -> Self {
        Self(B::float_cumsum(self.0, dim))
    }

    /// Some lines of the first axis.
    pub(crate) fn select_rows(self, lines: &[usize]) -> Self {
        let lines: Vec<i32> = lines.iter().map(|line| *line as i32).collect();
        let n = lines.len();
        let lines = B::int_from_data(TensorData::new(lines, [n]), &self.device());
        Self(B::float_select(self.0, 0, lines))
    }

    /// Where it is infinite or not a number.
    pub(crate) fn not_finite(self) -> BoolTensor<B> {
        let dtype = bool_dtype::<B>(&self.device());
        let nan = B::float_is_nan(self.0.clone(), dtype);
        B::bool_or(nan, B::float_is_inf(self.0, dtype))
    }

    /// Part of one axis.
    pub(crate) fn narrow(self, dim: usize, range: Range<usize>) -> Self {
        let shape = self.shape();
        if range == (0..shape[dim]) {
            return self;
        }
        let slices: Vec<Slice> = shape
            .iter()
            .enumerate()
            .map(|(axis, len)| {
                let range = if axis == dim { range.clone() } else { 0..*len };
                Slice::from(range)
            })
            .collect();
        Self(B::float_slice(self.0, &slices))
    }

    pub(crate) fn cat(parts: Vec<Self>, dim: usize) -> Self {
        if parts.len() == 1 {
            let mut parts = parts;
            return parts.swap_remove(0);
        }
        Self(B::float_cat(
            parts.into_iter().map(|part| part.0).collect(),
            dim,
        ))
    }

    pub(crate) fn fill_where(self, mask: BoolTensor<B>, value: f64) -> Self {
        Self(B::float_mask_fill(self.0, mask, value.into()))
    }

    /// Whether `self` is less than `other`, each broadcast to the other.
    pub(crate) fn lower(self, other: Self) -> BoolTensor<B> {
        let dtype = bool_dtype::<B>(&self.device());
        let shape: Vec<usize> = self
            .shape()
            .iter()
            .zip(other.shape())
            .map(|(a, b)| (*a).max(b))
            .collect();
        let expand = |tensor: Self| B::float_expand(tensor.0, Shape::from(shape.clone()));
        B::float_lower(expand(self), expand(other), dtype)
    }

    /// `start, start + 1, ..`, in f32: brought there, since to count them takes a device three
    /// kernels.
    pub(crate) fn count(range: Range<usize>, device: &Device<B>) -> Self {
        let n = range.len();
        let values: Vec<f32> = range.map(|i| i as f32).collect();
        Self(B::float_from_data(TensorData::new(values, [n]), device)).f32()
    }
}

fn bool_dtype<B: Backend>(device: &Device<B>) -> burn::backend::BoolDType {
    burn::backend::get_device_settings::<B>(device).bool_dtype
}

impl<B: Backend> Add for Portable<B> {
    type Output = Self;
    fn add(self, rhs: Self) -> Self {
        Self(B::float_add(self.0, rhs.0))
    }
}

impl<B: Backend> Sub for Portable<B> {
    type Output = Self;
    fn sub(self, rhs: Self) -> Self {
        Self(B::float_sub(self.0, rhs.0))
    }
}

impl<B: Backend> Mul for Portable<B> {
    type Output = Self;
    fn mul(self, rhs: Self) -> Self {
        Self(B::float_mul(self.0, rhs.0))
    }
}
