//! Values of the metadata, read from the file when they are asked for.

use std::path::Path;

use crate::{
    GgufError,
    header::{Field, Header, Kind},
};

/// Looks up what a header lists.
#[derive(Clone, Copy)]
pub(crate) struct Metadata<'a> {
    pub(crate) path: &'a Path,
    pub(crate) bytes: &'a [u8],
    pub(crate) header: &'a Header,
}

impl<'a> Metadata<'a> {
    fn field(&self, key: &str) -> Option<(&'a Field, &'a [u8])> {
        let field = self.header.fields.get(key)?;
        Some((field, &self.bytes[field.bytes.clone()]))
    }

    fn expected(&self, key: &str, expected: &str) -> GgufError {
        GgufError::malformed(self.path, format!("`{key}` is not {expected}"))
    }

    pub(crate) fn missing(&self, key: &str) -> GgufError {
        GgufError::malformed(self.path, format!("its metadata lacks `{key}`"))
    }

    /// A whole number that is not negative, whatever its width.
    pub(crate) fn size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let Some((field, bytes)) = self.field(key) else {
            return Ok(None);
        };
        let number = match field.kind {
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => Some(unsigned(bytes)),
            Kind::I8 | Kind::I16 | Kind::I32 | Kind::I64 => {
                Some(unsigned(bytes)).filter(|_| bytes.last().is_some_and(|&byte| byte < 0x80))
            }
            _ => None,
        };
        number
            .map(Some)
            .ok_or_else(|| self.expected(key, "a whole number of 0 or more"))
    }

    pub(crate) fn required_size(&self, key: &str) -> Result<u64, GgufError> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A number with a fraction. `f32` is taken by its shortest decimal form, so
    /// that 1e-5 stays 1e-5.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        let Some((field, bytes)) = self.field(key) else {
            return Ok(None);
        };
        let number = match (field.kind, bytes) {
            (Kind::F32, &[a, b, c, d]) => {
                let number = f32::from_le_bytes([a, b, c, d]);
                number.to_string().parse().ok()
            }
            (Kind::F64, bytes) => bytes.try_into().ok().map(f64::from_le_bytes),
            _ => None,
        };
        number
            .filter(|number: &f64| number.is_finite())
            .map(Some)
            .ok_or_else(|| self.expected(key, "a finite number"))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.field(key) {
            None => Ok(None),
            Some((field, &[byte])) if field.kind == Kind::Bool => Ok(Some(byte != 0)),
            Some(_) => Err(self.expected(key, "true or false")),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        match self.field(key) {
            None => Ok(None),
            Some((field, bytes)) if field.kind == Kind::Text => text(bytes)
                .map(|(text, _)| Some(text))
                .ok_or_else(|| self.expected(key, "a text")),
            Some(_) => Err(self.expected(key, "a text")),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, GgufError> {
        let Some((field, mut bytes)) = self.field(key) else {
            return Ok(None);
        };
        if !matches!(field.elements, Some((Kind::Text, _))) {
            return Err(self.expected(key, "a list of texts"));
        }
        let mut all = Vec::new();
        while let Some((one, rest)) = text(bytes) {
            all.push(one);
            bytes = rest;
        }
        Ok(Some(all))
    }

    /// A list of flags; `None` also if the key is something else.
    pub(crate) fn flags(&self, key: &str) -> Option<Vec<bool>> {
        let (field, bytes) = self.field(key)?;
        let is_list = matches!(field.elements, Some((Kind::Bool, _)));
        is_list.then(|| bytes.iter().map(|byte| *byte != 0).collect())
    }

    /// A list of numbers of 32 bits.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, GgufError> {
        let Some((field, bytes)) = self.field(key) else {
            return Ok(None);
        };
        let number: fn([u8; 4]) -> f64 = match field.elements {
            Some((Kind::F32, _)) => |bytes| f64::from(f32::from_le_bytes(bytes)),
            Some((Kind::I32, _)) => |bytes| f64::from(i32::from_le_bytes(bytes)),
            Some((Kind::U32, _)) => |bytes| f64::from(u32::from_le_bytes(bytes)),
            _ => return Err(self.expected(key, "a list of numbers of 32 bits")),
        };
        let (chunks, _) = bytes.as_chunks();
        Ok(Some(chunks.iter().map(|&bytes| number(bytes)).collect()))
    }
}

/// Up to eight bytes, least significant first.
fn unsigned(bytes: &[u8]) -> u64 {
    let fold = |number, &byte| number << 8 | u64::from(byte);
    bytes.iter().rev().fold(0, fold)
}

/// A text with its length before it, and what follows it.
fn text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_at_checked(8)?;
    let (text, rest) = rest.split_at_checked(unsigned(length) as usize)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}
