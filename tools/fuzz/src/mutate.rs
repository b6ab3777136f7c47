//! Inputs made of other inputs: bytes anywhere, and values where the form of a
//! file is known. The same seed makes the same inputs.

mod json;
mod layout;
mod text;

use crate::parts::{SEPARATOR, split};

/// The most bytes of an input, but for what is made long on purpose.
const LONGEST: usize = 256 << 10;

/// `SplitMix64` (Steele, Lea and Flood, 2014).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed and of the input that they are for.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number);
        let next = random.next();
        Self(next)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// With a chance of one in `n`.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn from<'a>(&mut self, corpus: &'a [Vec<u8>]) -> &'a [u8] {
        &corpus[self.below(corpus.len())]
    }
}

/// An input made of those of a corpus, which is not empty.
pub fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let chosen = random.from(corpus);
    let mut parts: Vec<Vec<u8>> = split(chosen).into_iter().map(<[u8]>::to_vec).collect();
    for _ in 0..=random.below(3) {
        let at = random.below(parts.len());
        if random.once_in(12) {
            // A part of another input, in this one's place or beside it.
            let other = random.from(corpus);
            let other = split(other);
            parts[at] = random.of(&other).to_vec();
            continue;
        }
        if random.once_in(12) {
            let other = random.from(corpus);
            splice(random, &mut parts[at], other);
        }
        part(random, &mut parts[at]);
    }
    if random.once_in(20) {
        parts.truncate(1 + random.below(parts.len()));
    }
    let mut input = parts.join(SEPARATOR);
    if random.once_in(10) {
        bytes(random, &mut input);
    }
    input
}

/// Changes a file by what it seems to be.
fn part(random: &mut Random, part: &mut Vec<u8>) {
    // The name of a file may stand before it.
    let named = part
        .iter()
        .take(80)
        .position(|&byte| byte == b'\n')
        .filter(|&end| {
            part[..end]
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"./- _".contains(byte))
        })
        .filter(|_| !random.once_in(30));
    let begin = named.map_or(0, |end| end + 1);
    let mut body = part.split_off(begin);
    let done = match random.below(10) {
        0 => false,
        1 => text::change(random, &mut body),
        _ if body.starts_with(b"GGUF") => layout::gguf(random, &mut body),
        _ if layout::is_safetensors(&body) => layout::safetensors(random, &mut body),
        _ => json::change(random, &mut body) || text::change(random, &mut body),
    };
    if !done {
        bytes(random, &mut body);
    }
    part.append(&mut body);
}

/// Numbers that are the first or the last of their kind.
const EDGES: [u64; 18] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x3fff_ffff_ffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX - 7,
    u64::MAX - 1,
    u64::MAX,
];

/// Puts one of [`EDGES`], or a number near the one that is there, into `width`
/// bytes.
fn edge(random: &mut Random, bytes: &mut [u8], at: usize, width: usize) {
    let Some(place) = bytes.get_mut(at..at + width) else {
        return;
    };
    let mut old = [0; 8];
    old[..width].copy_from_slice(place);
    let old = u64::from_le_bytes(old);
    let new = match random.below(4) {
        0 => old.wrapping_add(1 + random.below(16) as u64),
        1 => old.wrapping_sub(1 + random.below(16) as u64),
        2 => old.wrapping_mul(2 << random.below(30)),
        _ => random.of(&EDGES),
    };
    place.copy_from_slice(&new.to_le_bytes()[..width]);
}

/// Changes bytes, whatever they are.
fn bytes(random: &mut Random, input: &mut Vec<u8>) {
    if input.is_empty() {
        input.push(random.next() as u8);
        return;
    }
    for _ in 0..=random.below(4) {
        let n = input.len();
        if n == 0 {
            return;
        }
        let at = random.below(n);
        match random.below(9) {
            0 => input[at] ^= 1 << random.below(8),
            1 => input[at] = random.next() as u8,
            2 => input.truncate(at),
            3 => {
                let width = random.of(&[1, 2, 4, 8]);
                edge(random, input, at, width);
            }
            4 => {
                let end = (at + 1 + random.below(64)).min(n);
                input.drain(at..end);
            }
            5 => {
                let count = 1 + random.below(16);
                let new: Vec<u8> = (0..count).map(|_| random.next() as u8).collect();
                input.splice(at..at, new);
            }
            6 => {
                let end = (at + 1 + random.below(64)).min(n);
                let times = random.of(&[1, 2, 8, 100, 1000]);
                let block = input[at..end].repeat(times);
                if input.len() + block.len() <= LONGEST {
                    input.splice(at..at, block);
                }
            }
            7 => {
                let end = (at + 1 + random.below(64)).min(n);
                let fill = random.of(&[0, 0xff, b' ', b'0', b'[']);
                input[at..end].fill(fill);
            }
            _ => {
                // Half of it moves.
                let end = (at + 1 + random.below(256)).min(n);
                let block: Vec<u8> = input.drain(at..end).collect();
                let to = random.below(input.len() + 1);
                input.splice(to..to, block);
            }
        }
    }
}

fn splice(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    if other.is_empty() || input.len() + other.len() > LONGEST {
        return;
    }
    let from = random.below(other.len());
    let to = (from + 1 + random.below(512)).min(other.len());
    let at = random.below(input.len() + 1);
    let end = if random.once_in(2) {
        at
    } else {
        (at + (to - from)).min(input.len())
    };
    input.splice(at..end, other[from..to].iter().copied());
}
