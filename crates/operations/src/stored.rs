//! A weight and what else an operation may be given, as a backend sees them.

use std::{ops::Range, sync::Arc};

use burn::backend::{
    Autodiff, Backend, DType, ExtensionType, TensorData, TensorMetadata,
    autodiff::checkpoint::strategy::CheckpointStrategy,
    tensor::{Device, FloatTensor},
};
use olora_packed::Packed;

use crate::{placed::Placed, portable::Portable, weight::Products};

/// Values of a packed weight that are tensors of floats at once, in the portable
/// body: 32 MiB of f32.
const PANEL_VALUES: usize = 1 << 23;

/// A tensor or none, as an argument of an operation.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) enum Maybe<B: Backend> {
    /// There is one.
    Tensor(FloatTensor<B>),
    /// There is none.
    Nothing,
}

impl<B: Backend> Maybe<B> {
    pub(crate) fn new(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::Nothing, Self::Tensor)
    }

    pub(crate) fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            Self::Nothing => None,
        }
    }
}

/// A packed matrix, `[d_out, d_in]`, in the host's memory.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub packed: Arc<Packed>,
    pub products: Products,
}

#[cfg(test)]
impl From<Packed> for Host {
    fn from(packed: Packed) -> Self {
        Self {
            packed: Arc::new(packed),
            products: Products::Exact,
        }
    }
}

/// A weight, `[d_in, d_out]`, as an argument of an operation.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) enum Stored<B: Backend> {
    /// Every value.
    Dense(FloatTensor<B>),
    /// Packed, `[d_out, d_in]`, in the host's memory.
    Host(Host),
    /// Packed, on a device that has no kernels for it.
    Placed(#[extension_type] Placed<B>),
}

impl<B: Backend> Stored<B> {
    /// The tensor that it is, if it is one.
    pub(crate) fn dense(&self) -> Option<&FloatTensor<B>> {
        match self {
            Self::Dense(weight) => Some(weight),
            Self::Host(_) | Self::Placed(_) => None,
        }
    }

    /// `[d_in, d_out]`.
    pub(crate) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => [weight.shape()[0], weight.shape()[1]],
            Self::Host(host) => {
                let [d_out, d_in] = host.packed.shape();
                [d_in, d_out]
            }
            Self::Placed(placed) => {
                let [d_out, d_in] = placed.shape();
                [d_in, d_out]
            }
        }
    }

    /// `x·W`, for x `[n, d_in]`.
    pub(crate) fn multiplied(&self, x: Portable<B>) -> Portable<B> {
        if let Self::Dense(weight) = self {
            return x.matmul(Portable(weight.clone()));
        }
        let (device, dtype) = (x.device(), x.dtype());
        let of_panels = self.panels().map(|rows| {
            let panel = self.panel(rows, &device, dtype);
            x.clone().matmul(panel.transpose())
        });
        Portable::cat(of_panels.collect(), 1)
    }

    /// `g·Wᵀ`, for g `[n, d_out]`.
    pub(crate) fn multiplied_back(&self, grad: Portable<B>) -> Portable<B> {
        if let Self::Dense(weight) = self {
            return grad.matmul(Portable::<B>(weight.clone()).transpose());
        }
        let (device, dtype) = (grad.device(), grad.dtype());
        let mut panels = self.panels();
        let of_panel = |rows: Range<usize>| {
            let panel = self.panel(rows.clone(), &device, dtype);
            grad.clone().narrow(1, rows).matmul(panel)
        };
        let first = of_panel(panels.next().unwrap_or_default());
        let Some(second) = panels.next() else {
            return first;
        };
        // Added in f32, so that not every panel rounds.
        let mut sum = first.f32() + of_panel(second).f32();
        for rows in panels {
            sum = sum + of_panel(rows).f32();
        }
        sum.cast(dtype)
    }

    /// Rows of the packed matrix that are unpacked at once.
    fn panels(&self) -> impl Iterator<Item = Range<usize>> + use<B> {
        let [d_in, d_out] = self.dims();
        let height = (PANEL_VALUES / d_in.max(1)).max(1);
        (0..d_out)
            .step_by(height)
            .map(move |start| start..(start + height).min(d_out))
    }

    /// Rows of the matrix `[d_out, d_in]` as values, `[rows, d_in]`.
    fn panel(&self, rows: Range<usize>, device: &Device<B>, dtype: DType) -> Portable<B> {
        match self {
            Self::Dense(weight) => Portable::<B>(weight.clone())
                .transpose()
                .narrow(0, rows)
                .cast(dtype),
            Self::Host(host) => {
                let shape = [rows.len(), host.packed.shape()[1]];
                let data = TensorData::new(unpacked(&host.packed, rows), shape);
                Portable::<B>(B::float_from_data(data, device)).cast(dtype)
            }
            Self::Placed(placed) => placed.rows(rows, dtype),
        }
    }
}

impl<B: Backend, C: CheckpointStrategy> Stored<Autodiff<B, C>> {
    /// Whether it trains.
    pub(crate) fn is_tracked(&self) -> bool {
        match self {
            Self::Dense(weight) => weight.is_tracked(),
            Self::Host(_) | Self::Placed(_) => false,
        }
    }

    /// Without what follows it.
    pub(crate) fn into_primitive(self) -> Stored<B> {
        match self {
            Self::Dense(weight) => Stored::Dense(weight.into_primitive()),
            Self::Host(host) => Stored::Host(host),
            Self::Placed(placed) => Stored::Placed(placed.into_primitive()),
        }
    }
}

/// Rows of a packed matrix as values. Callers ask for rows that are there.
pub(crate) fn unpacked(packed: &Packed, rows: Range<usize>) -> Vec<f32> {
    let columns = packed.shape()[1];
    let mut values = vec![0.0; rows.len() * columns];
    unpack(packed, rows, 0..columns, &mut values);
    values
}

/// Writes some columns of some rows of a packed matrix, row after row. Callers
/// ask for what is there.
pub(crate) fn unpack(
    packed: &Packed,
    rows: Range<usize>,
    columns: Range<usize>,
    output: &mut [f32],
) {
    let stride = columns.len();
    if let Err(error) = packed.unpack(rows, columns, output, stride) {
        unreachable!("{error}");
    }
}
