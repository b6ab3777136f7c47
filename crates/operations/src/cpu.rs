//! Kernels for the CPU backend in f32: rows in parallel, one pass over memory,
//! exponentials that vectorise, products accumulated in place.
//!
//! How work is divided follows from shapes alone, never from the number of
//! threads, so that results do not depend on it.

mod attention;
mod bf16;
mod frozen;
mod likelihood;
mod logits;
mod loss;
mod matrix;
mod norm;
mod packed;
mod projection;
mod rotary;
mod row;
mod rows;
mod swiglu;
mod team;
mod vector;

use burn::backend::{
    Bytes, DType, Shape,
    flex::{FlexTensor, Layout},
};

/// See [`at_once`](crate::at_once).
pub(crate) fn at_once<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    team::at_once(items, work)
}

/// See [`limit_threads`](crate::limit_threads).
pub(crate) fn limit_threads(n: usize) {
    team::limit(n);
}

pub(crate) use packed::multiplied_together;

/// Whether all of them are f32, which these kernels are for.
fn all_f32<'a>(tensors: impl IntoIterator<Item = &'a FlexTensor>) -> bool {
    tensors
        .into_iter()
        .all(|tensor| tensor.dtype() == DType::F32)
}

/// All values from the first on, following the strides; see
/// [`FlexTensor::layout`].
fn strided(tensor: &FlexTensor) -> &[f32] {
    &tensor.storage::<f32>()[tensor.layout().start_offset()..]
}

/// The same tensor with its values one after the other.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// The same tensor with what is along its last axis next to each other.
fn dense_last(tensor: FlexTensor) -> FlexTensor {
    let strides = tensor.layout().strides();
    let dense = strides.last().is_none_or(|stride| *stride == 1);
    if dense && strides.iter().all(|stride| *stride >= 0) {
        tensor
    } else {
        contiguous(tensor)
    }
}

/// The values of a tensor that [`contiguous`] gave.
fn values(tensor: &FlexTensor) -> &[f32] {
    &strided(tensor)[..tensor.layout().num_elements()]
}

/// A tensor of the given values.
fn tensor(values: Vec<f32>, shape: impl Into<Vec<usize>>) -> FlexTensor {
    let layout = Layout::contiguous(Shape::from(shape.into()));
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

/// `[batch, heads, seq, n]` over values that lie as `[batch, seq, heads, n]`,
/// the order in which projections give and take them.
fn by_heads(values: Vec<f32>, [batch, heads, seq, n]: [usize; 4]) -> FlexTensor {
    let strides = [seq * heads * n, n, heads * n, 1].map(|stride| stride as isize);
    let layout = Layout::new(Shape::from(vec![batch, heads, seq, n]), strides.to_vec(), 0);
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

/// The shape as a vector.
fn shape(tensor: &FlexTensor) -> Vec<usize> {
    tensor.layout().shape().to_vec()
}
