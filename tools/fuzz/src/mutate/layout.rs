//! Changes to headers of binary files: sizes, counts, kinds and offsets that lie.

use serde_json::Value;

use super::{Random, bytes, edge, json};

/// Whether a file begins as safetensors do.
pub(super) fn is_safetensors(file: &[u8]) -> bool {
    header(file).is_some()
}

/// The header and what is behind it.
fn header(file: &[u8]) -> Option<(Value, &[u8])> {
    let length = u64::from_le_bytes(*file.first_chunk()?);
    let end = usize::try_from(length).ok()?.checked_add(8)?;
    let value = serde_json::from_slice(file.get(8..end)?).ok()?;
    Some((value, &file[end..]))
}

/// Changes a safetensors file's header, its length, or the values.
pub(super) fn safetensors(random: &mut Random, file: &mut Vec<u8>) -> bool {
    let Some((mut value, values)) = header(file) else {
        return false;
    };
    let mut values = values.to_vec();
    let mut text = match random.below(5) {
        0 => value.to_string().into_bytes(),
        1 => {
            ranges(random, &mut value);
            value.to_string().into_bytes()
        }
        _ => json::changed(random, &mut value),
    };
    if random.once_in(4) {
        bytes(random, &mut values);
    }
    if random.once_in(4) {
        let special = random.of(&[
            f32::NAN,
            f32::INFINITY,
            f32::MAX,
            f32::MIN_POSITIVE / 2.0,
            -0.0,
        ]);
        let at = random.below(values.len() / 4 + 1) * 4;
        if let Some(place) = values.get_mut(at..at + 4) {
            place.copy_from_slice(&special.to_le_bytes());
        }
    }
    let mut length = (text.len() as u64).to_le_bytes();
    if random.once_in(5) {
        edge(random, &mut length, 0, 8);
    } else if random.once_in(3) {
        text.resize(text.len().next_multiple_of(8), b' ');
        length = (text.len() as u64).to_le_bytes();
    }
    *file = [&length[..], &text, &values].concat();
    true
}

/// Gives tensors each other's places and shapes.
fn ranges(random: &mut Random, header: &mut Value) {
    let Some(tensors) = header.as_object_mut() else {
        return;
    };
    let n = tensors.len();
    let from = tensors
        .values()
        .nth(random.below(n))
        .cloned()
        .unwrap_or_default();
    let key = random.of(&["data_offsets", "shape", "dtype"]);
    if let Some(Value::Object(to)) = tensors.values_mut().nth(random.below(n)) {
        to.insert(key.to_owned(), from[key].clone());
    }
}

/// Changes the numbers of a GGUF header: wherever one is, it is found by reading
/// as a reader would.
pub(super) fn gguf(random: &mut Random, file: &mut Vec<u8>) -> bool {
    let places = numbers(file);
    if places.is_empty() {
        return false;
    }
    for _ in 0..=random.below(3) {
        let (at, width) = random.of(&places);
        match random.below(6) {
            0 => {
                // What the number was of is longer or shorter than it says.
                let end = (at + width + random.below(40)).min(file.len());
                let from = (at + width).min(end);
                if random.once_in(2) {
                    file.drain(from..end);
                } else {
                    let block = file[from..end].to_vec();
                    file.splice(from..from, block);
                }
                return true;
            }
            1 => {
                let (other, _) = random.of(&places);
                let (from, to) = (other.min(file.len()), (other + width).min(file.len()));
                let value = file[from..to].to_vec();
                if let Some(place) = file.get_mut(at..at + value.len()) {
                    place.copy_from_slice(&value);
                }
            }
            _ => edge(random, file, at, width),
        }
    }
    true
}

/// Where the numbers of a header are, and how wide.
fn numbers(file: &[u8]) -> Vec<(usize, usize)> {
    let mut walk = Walk {
        file,
        at: 4,
        found: Vec::new(),
    };
    // As far as it goes: what is not to be read is not changed either.
    let _ = walk.header();
    walk.found
}

struct Walk<'a> {
    file: &'a [u8],
    at: usize,
    found: Vec<(usize, usize)>,
}

impl Walk<'_> {
    fn number(&mut self, width: usize) -> Option<u64> {
        let bytes = self.file.get(self.at..self.at + width)?;
        let mut whole = [0; 8];
        whole[..width].copy_from_slice(bytes);
        self.found.push((self.at, width));
        self.at += width;
        Some(u64::from_le_bytes(whole))
    }

    fn text(&mut self) -> Option<()> {
        let length = usize::try_from(self.number(8)?).ok()?;
        self.at = self
            .at
            .checked_add(length)
            .filter(|&at| at <= self.file.len())?;
        Some(())
    }

    fn value(&mut self, kind: u64, depth: usize) -> Option<()> {
        match kind {
            0 | 1 | 7 => drop(self.number(1)?),
            2 | 3 => drop(self.number(2)?),
            4..=6 => drop(self.number(4)?),
            10..=12 => drop(self.number(8)?),
            8 => self.text()?,
            9 if depth < 4 => {
                let kind = self.number(4)?;
                let n = self.number(8)?;
                for i in 0..n {
                    let known = self.found.len();
                    self.value(kind, depth + 1)?;
                    // Of long lists the first few are enough.
                    if i >= 4 {
                        self.found.truncate(known);
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn header(&mut self) -> Option<()> {
        self.number(4)?;
        let n_tensors = self.number(8)?;
        let n_fields = self.number(8)?;
        for _ in 0..n_fields {
            self.text()?;
            let kind = self.number(4)?;
            self.value(kind, 0)?;
        }
        for _ in 0..n_tensors {
            self.text()?;
            let n_dims = self.number(4)?;
            for _ in 0..n_dims.min(16) {
                self.number(8)?;
            }
            self.number(4)?;
            self.number(8)?;
        }
        Some(())
    }
}
