//! The part of a GGUF file before its tensors' data: metadata and a list of
//! the tensors. Values stay where they are in the file until they are asked for,
//! so nothing that a header claims makes this crate allocate.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::Path,
};

use crate::{
    GgufError,
    types::{SUPPORTED, TensorType},
};

/// The four bytes that every GGUF file begins with.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
/// The version that is written.
pub(crate) const VERSION: u32 = 3;
/// Where tensors begin, unless `general.alignment` says otherwise.
pub(crate) const ALIGNMENT: usize = 32;
/// Arrays of arrays are allowed; nobody has a use for many levels.
const DEEPEST: usize = 4;
/// How much of a text that is none a message shows.
const SHOWN: usize = 64;
/// `GGML_MAX_DIMS`.
const MOST_DIMENSIONS: u32 = 4;

/// `enum gguf_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes, for kinds that always have the same number.
    fn size(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }
}

/// Where a value of the metadata is.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) kind: Kind,
    /// For arrays, the kind of the elements and how many there are.
    pub(crate) elements: Option<(Kind, u64)>,
    /// The value's bytes; for arrays, those of the elements.
    pub(crate) bytes: Range<usize>,
}

/// What the list of tensors says of one of them.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    /// Row-major, outermost first: the reverse of the order in the file.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: TensorType,
    /// Its data's place in the file.
    pub(crate) bytes: Range<usize>,
    /// Which file it is in, of a model that is split over several.
    pub(crate) part: usize,
}

/// A header that was found to be in order.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) fields: HashMap<String, Field>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor { path, bytes, at: 0 };
        let version = cursor.opening()?;
        if !(2..=3).contains(&version) {
            let what = format!("GGUF version {version}");
            return Err(GgufError::unsupported(path, what, "versions 2 and 3"));
        }
        let n_tensors = cursor.u64("the number of tensors")?;
        let n_fields = cursor.u64("the number of metadata entries")?;

        let mut fields = HashMap::new();
        for _ in 0..n_fields {
            let key = cursor.text("a metadata key")?.to_owned();
            let field = cursor.field(&key)?;
            if fields.insert(key.clone(), field).is_some() {
                return Err(cursor.malformed(format!("the metadata has `{key}` twice")));
            }
        }

        let mut declared = Vec::new();
        for _ in 0..n_tensors {
            declared.push(cursor.tensor()?);
        }
        let alignment = alignment(path, bytes, &fields)?;
        let start = cursor.at.next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for tensor in declared {
            let name = tensor.name.clone();
            let info = tensor.place(path, bytes.len(), start, alignment)?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(cursor.malformed(format!("it has the tensor `{name}` twice")));
            }
        }
        refuse_overlaps(path, &tensors)?;
        Ok(Self { fields, tensors })
    }
}

/// Tensors that share bytes would take more memory than the file has bytes, as
/// many times as there are tensors.
fn refuse_overlaps(path: &Path, tensors: &BTreeMap<String, TensorInfo>) -> Result<(), GgufError> {
    let mut places: Vec<_> = tensors.iter().collect();
    places.sort_unstable_by_key(|(_, info)| info.bytes.start);
    for pair in places.windows(2) {
        let [(first, a), (second, b)] = pair else {
            continue;
        };
        if a.bytes.end > b.bytes.start {
            return Err(GgufError::malformed(
                path,
                format!("the tensors `{first}` and `{second}` overlap"),
            ));
        }
    }
    Ok(())
}

fn alignment(
    path: &Path,
    bytes: &[u8],
    fields: &HashMap<String, Field>,
) -> Result<usize, GgufError> {
    let Some(field) = fields.get("general.alignment") else {
        return Ok(ALIGNMENT);
    };
    let value = (field.kind == Kind::U32)
        .then(|| &bytes[field.bytes.clone()])
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_le_bytes);
    match value {
        Some(value) if value.is_power_of_two() && value >= 8 => Ok(value as usize),
        _ => Err(GgufError::malformed(
            path,
            "`general.alignment` must be a power of two, at least 8, as a 32-bit number",
        )),
    }
}

/// A tensor as listed, before its data has been looked for.
struct Declared {
    name: String,
    shape: Vec<usize>,
    elements: u64,
    kind: TensorType,
    offset: u64,
}

impl Declared {
    fn place(
        self,
        path: &Path,
        length: usize,
        start: usize,
        alignment: usize,
    ) -> Result<TensorInfo, GgufError> {
        let Self { name, kind, .. } = &self;
        let (block, size) = kind.block();
        let row = self.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(block) {
            return Err(GgufError::malformed(
                path,
                format!(
                    "rows of the tensor `{name}` have {row} elements, but {} comes in blocks of {block}",
                    kind.name()
                ),
            ));
        }
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(GgufError::malformed(
                path,
                format!(
                    "the tensor `{name}` begins at {}, which is not a multiple of {alignment}",
                    self.offset
                ),
            ));
        }
        let size = self.elements / block as u64 * size as u64;
        let first = self.offset.saturating_add(start as u64);
        let end = first.saturating_add(size);
        if end > length as u64 {
            return Err(GgufError::Truncated {
                path: path.to_owned(),
                what: format!("the tensor `{name}` ({size} bytes of {})", kind.name()),
                expected: end,
                found: length as u64,
            });
        }
        Ok(TensorInfo {
            part: 0,
            shape: self.shape,
            kind: self.kind,
            bytes: first as usize..end as usize,
        })
    }
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn malformed(&self, reason: String) -> GgufError {
        GgufError::malformed(self.path, reason)
    }

    /// Checks the first bytes and gives the version.
    fn opening(&mut self) -> Result<u32, GgufError> {
        let not_gguf = |reason: String| GgufError::NotGguf {
            path: self.path.to_owned(),
            reason,
        };
        match self.bytes.get(..4) {
            Some(magic) if magic == MAGIC => self.at = 4,
            Some(magic) => {
                return Err(not_gguf(format!(
                    "it begins with \"{}\", not \"GGUF\"",
                    magic.escape_ascii()
                )));
            }
            None => {
                return Err(not_gguf(format!("it has only {} bytes", self.bytes.len())));
            }
        }
        let version = self.u32("the version")?;
        if matches!(version.swap_bytes(), 1..=3) {
            return Err(GgufError::unsupported(
                self.path,
                "its numbers in big-endian order",
                "little-endian files (gguf_convert_endian.py converts)",
            ));
        }
        Ok(version)
    }

    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], GgufError> {
        let end = (self.at as u64).saturating_add(count);
        if end > self.bytes.len() as u64 {
            return Err(GgufError::Truncated {
                path: self.path.to_owned(),
                what: what.to_owned(),
                expected: end,
                found: self.bytes.len() as u64,
            });
        }
        let taken = &self.bytes[self.at..end as usize];
        self.at = end as usize;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        let low = self.u32(what)?;
        let high = self.u32(what)?;
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn text(&mut self, what: &str) -> Result<&'a str, GgufError> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| {
            let shown = &bytes[..bytes.len().min(SHOWN)];
            let lossy = String::from_utf8_lossy(shown).into_owned();
            let more = if shown.len() < bytes.len() {
                " …"
            } else {
                ""
            };
            self.malformed(format!("{what} is not UTF-8: \"{lossy}\"{more}"))
        })
    }

    fn kind(&mut self, key: &str) -> Result<Kind, GgufError> {
        let id = self.u32(key)?;
        Kind::from_id(id)
            .ok_or_else(|| self.malformed(format!("`{key}` has a value of unknown type {id}")))
    }

    fn field(&mut self, key: &str) -> Result<Field, GgufError> {
        let kind = self.kind(key)?;
        if kind != Kind::Array {
            let start = self.at;
            self.skip(kind, 1, key, 0)?;
            return Ok(Field {
                kind,
                elements: None,
                bytes: start..self.at,
            });
        }
        let element = self.kind(key)?;
        let count = self.u64(key)?;
        let start = self.at;
        self.skip(element, count, key, 1)?;
        Ok(Field {
            kind,
            elements: Some((element, count)),
            bytes: start..self.at,
        })
    }

    /// Steps over `count` values and sees that they are all there. Whatever
    /// `count` is, each step consumes bytes that the file really has.
    fn skip(&mut self, kind: Kind, count: u64, key: &str, depth: usize) -> Result<(), GgufError> {
        if let Some(size) = kind.size() {
            let what = format!("`{key}`");
            return self.take(count.saturating_mul(size), &what).map(drop);
        }
        if depth > DEEPEST {
            return Err(self.malformed(format!("`{key}` has arrays {depth} levels deep")));
        }
        for _ in 0..count {
            if kind == Kind::Text {
                self.text(key)?;
            } else {
                let element = self.kind(key)?;
                let count = self.u64(key)?;
                self.skip(element, count, key, depth + 1)?;
            }
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<Declared, GgufError> {
        let name = self.text("the list of tensors")?.to_owned();
        let what = format!("the description of the tensor `{name}`");
        let dimensions = self.u32(&what)?;
        if dimensions > MOST_DIMENSIONS {
            return Err(self.malformed(format!(
                "the tensor `{name}` has {dimensions} dimensions, but at most {MOST_DIMENSIONS} are allowed"
            )));
        }
        let mut shape = Vec::new();
        let mut elements = 1_u64;
        for _ in 0..dimensions {
            let size = self.u64(&what)?;
            // No file has 2⁴⁸ elements; below that, sizes in bytes cannot overflow.
            elements = elements.saturating_mul(size);
            if elements == 0 || elements >> 48 != 0 {
                return Err(self.malformed(format!(
                    "the tensor `{name}` has a dimension of {size}, which makes its size impossible"
                )));
            }
            shape.push(size as usize);
        }
        shape.reverse();
        let kind = TensorType::from_id(self.u32(&what)?).map_err(|kind| {
            let what = format!("the tensor `{name}` in the format {kind}");
            GgufError::unsupported(self.path, what, SUPPORTED)
        })?;
        let offset = self.u64(&what)?;
        Ok(Declared {
            name,
            shape,
            elements,
            kind,
            offset,
        })
    }
}
