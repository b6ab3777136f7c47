//! The number formats that this project computes and stores in.

use std::{error::Error, fmt, str::FromStr};

use burn::{
    backend::FloatDType,
    tensor::{DType, Device},
};
use serde::{Deserialize, Serialize};

/// A number format of weights, of factors, or of what is computed with them.
///
/// Burn's [`DType`] has many more; these are those that checkpoints are kept in
/// and that the operations of this crate are for. Its name is that of
/// `config.json`, recipes and the command line.
///
/// ```
/// use olora_operations::Dtype;
///
/// let dtype: Dtype = "bf16".parse()?;
/// assert_eq!(dtype.name(), "bfloat16");
/// # Ok::<(), olora_operations::UnknownDtype>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dtype {
    /// 32-bit.
    #[default]
    #[serde(rename = "float32")]
    F32,
    /// bfloat16: the exponent of f32 with 8 bits of precision.
    #[serde(rename = "bfloat16")]
    Bf16,
    /// IEEE half: 11 bits of precision, and nothing above 65504.
    #[serde(rename = "float16")]
    F16,
}

impl Dtype {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F16];

    /// As `config.json`, recipes and the command line spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// As Rust spells it: the shorter name that [`FromStr`] takes too.
    pub fn short_name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Bytes of one number.
    pub fn size(self) -> usize {
        DType::from(self).size()
    }

    /// The largest magnitude that it holds.
    pub fn limit(self) -> f32 {
        self.float().finfo().max as f32
    }

    /// The one that Burn calls `dtype`, if it is one of these.
    pub fn of(dtype: DType) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| DType::from(*known) == dtype)
    }

    /// Those that a device computes in.
    pub fn offered_by(device: &Device) -> Vec<Self> {
        let offered = Self::ALL.into_iter();
        offered
            .filter(|&dtype| device.supports_dtype(DType::from(dtype)))
            .collect()
    }

    fn float(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
            Self::F16 => FloatDType::F16,
        }
    }
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        dtype.float().into()
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(name: &str) -> Result<Self, UnknownDtype> {
        Self::ALL
            .into_iter()
            .find(|dtype| [dtype.name(), dtype.short_name()].contains(&name))
            .ok_or_else(|| UnknownDtype(name.to_owned()))
    }
}

/// What was given is the name of no [`Dtype`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownDtype(pub String);

impl fmt::Display for UnknownDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no number format: write float32, bfloat16 or float16 (f32, bf16 or f16 for \
             short)",
            self.0
        )
    }
}

impl Error for UnknownDtype {}

#[cfg(test)]
mod tests {
    use burn::tensor::{bf16, f16};

    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (dtype, name, short) in [
            (Dtype::F32, "float32", "f32"),
            (Dtype::Bf16, "bfloat16", "bf16"),
            (Dtype::F16, "float16", "f16"),
        ] {
            assert_eq!(dtype.to_string(), name);
            assert_eq!(name.parse(), Ok(dtype));
            assert_eq!(short.parse(), Ok(dtype));
            let json = format!("\"{name}\"");
            assert_eq!(serde_json::to_string(&dtype).unwrap(), json);
            assert_eq!(serde_json::from_str::<Dtype>(&json).unwrap(), dtype);
        }
        assert_eq!(Dtype::default(), Dtype::F32);
    }

    #[test]
    fn a_name_of_none_is_refused_with_those_that_there_are() {
        let error = "float64".parse::<Dtype>().unwrap_err().to_string();
        assert!(
            error.contains("`float64`") && error.contains("bfloat16"),
            "{error}"
        );
    }

    #[test]
    fn sizes_and_limits_are_those_of_the_format() {
        let found = Dtype::ALL.map(|dtype| (dtype.size(), dtype.limit()));
        let right = [
            (4, f32::MAX),
            (2, bf16::MAX.to_f32()),
            (2, f16::MAX.to_f32()),
        ];
        assert_eq!(found, right);
    }

    #[test]
    fn burns_name_leads_back() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::of(dtype.into()), Some(dtype));
        }
        assert_eq!(Dtype::of(DType::F64), None);
    }
}
