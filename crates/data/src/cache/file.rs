//! One data file's samples as bytes.
//!
//! Little-endian: [`MAGIC`], the key, the format, the number of samples and of
//! tokens, each sample's length, all tokens, one bit for each token that is
//! trained, and the SHA-256 of all that.

use sha2::{Digest, Sha256};

use super::{Encoded, Key};
use crate::{Format, Sample};

/// The last of it is the version of this layout.
const MAGIC: &[u8; 8] = b"olora-t1";

/// `None` for a sample of 2³² tokens or more.
pub(super) fn encode(encoded: &Encoded, key: &Key) -> Option<Vec<u8>> {
    let samples = &encoded.samples;
    let format = Format::ALL.iter().position(|f| *f == encoded.format)?;
    let n_tokens: usize = samples.iter().map(Sample::len).sum();
    let mut bytes = Vec::with_capacity(128 + 4 * samples.len() + n_tokens * 33 / 8);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(key);
    bytes.push(u8::try_from(format).ok()?);
    bytes.extend_from_slice(&(samples.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(n_tokens as u64).to_le_bytes());
    for sample in samples {
        bytes.extend_from_slice(&u32::try_from(sample.len()).ok()?.to_le_bytes());
    }
    for token in samples.iter().flat_map(|sample| &sample.tokens) {
        bytes.extend_from_slice(&token.to_le_bytes());
    }
    let mut mask = vec![0_u8; n_tokens.div_ceil(8)];
    for (i, trained) in samples
        .iter()
        .flat_map(|sample| &sample.trained)
        .enumerate()
    {
        mask[i / 8] |= u8::from(*trained) << (i % 8);
    }
    bytes.extend_from_slice(&mask);
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    Some(bytes)
}

/// `None` for anything but what [`encode`] made under the same key. Sizes are
/// held against what is there before anything is allocated for them.
pub(super) fn decode(bytes: &[u8], key: &Key) -> Option<Encoded> {
    let (body, checksum) = bytes.split_last_chunk::<32>()?;
    if Sha256::digest(body).as_slice() != checksum {
        return None;
    }
    let rest = body.strip_prefix(MAGIC)?.strip_prefix(key)?;
    let (&format, rest) = rest.split_first()?;
    let format = *Format::ALL.get(usize::from(format))?;
    let (n_samples, rest) = size(rest)?;
    let (n_tokens, rest) = size(rest)?;
    let (lengths, rest) = rest.split_at_checked(n_samples.checked_mul(4)?)?;
    let (tokens, mask) = rest.split_at_checked(n_tokens.checked_mul(4)?)?;
    if mask.len() != n_tokens.div_ceil(8) {
        return None;
    }
    let tokens: Vec<_> = words(tokens).collect();
    let mut start = 0_usize;
    let mut samples = Vec::with_capacity(n_samples);
    for length in words(lengths) {
        let end = start.checked_add(length as usize)?;
        let tokens = tokens.get(start..end)?.to_vec();
        let trained = (start..end).map(|i| mask[i / 8] >> (i % 8) & 1 == 1);
        let trained = trained.collect();
        samples.push(Sample { tokens, trained });
        start = end;
    }
    (start == n_tokens).then_some(Encoded { format, samples })
}

fn size(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (size, rest) = bytes.split_first_chunk::<8>()?;
    Some((usize::try_from(u64::from_le_bytes(*size)).ok()?, rest))
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = [7; 32];

    fn encoded() -> Encoded {
        let sample = |tokens: &[u32], trained: &[u8]| Sample {
            tokens: tokens.to_vec(),
            trained: trained.iter().map(|&t| t == 1).collect(),
        };
        Encoded {
            format: Format::ShareGpt,
            samples: vec![
                sample(&[5, 6, u32::MAX], &[0, 1, 1]),
                sample(&[], &[]),
                sample(&[1, 2, 3, 4, 5, 6, 7], &[0, 0, 0, 1, 0, 0, 1]),
            ],
        }
    }

    /// With a checksum that is right, as of a file that was made wrong.
    fn sealed(mut body: Vec<u8>) -> Vec<u8> {
        let checksum = Sha256::digest(&body);
        body.extend_from_slice(&checksum);
        body
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        for encoded in [
            encoded(),
            Encoded {
                samples: Vec::new(),
                ..encoded()
            },
        ] {
            let bytes = encode(&encoded, &KEY).unwrap();
            assert_eq!(decode(&bytes, &KEY), Some(encoded));
        }
    }

    #[test]
    fn one_bit_or_byte_off_is_nothing() {
        let bytes = encode(&encoded(), &KEY).unwrap();
        for i in 0..bytes.len() {
            assert_eq!(decode(&bytes[..i], &KEY), None, "cut at {i}");
            let mut flipped = bytes.clone();
            flipped[i] ^= 1;
            assert_eq!(decode(&flipped, &KEY), None, "flipped at {i}");
        }
        assert_eq!(decode(&[bytes, vec![0]].concat(), &KEY), None);
    }

    #[test]
    fn another_files_samples_are_not_taken() {
        let bytes = encode(&encoded(), &KEY).unwrap();
        assert_eq!(decode(&bytes, &[8; 32]), None);
    }

    #[test]
    fn sizes_that_do_not_fit_are_nothing_even_under_a_right_checksum() {
        let bytes = encode(&encoded(), &KEY).unwrap();
        let body = &bytes[..bytes.len() - 32];
        assert!(decode(&sealed(body.to_vec()), &KEY).is_some());
        // The sizes begin after 8 bytes of magic, 32 of key and one of format.
        for at in [41, 49, 57] {
            for wrong in [[0xff; 4], [0; 4], [1, 0, 0, 0]] {
                let mut body = body.to_vec();
                body[at..at + 4].copy_from_slice(&wrong);
                assert_eq!(decode(&sealed(body), &KEY), None, "{wrong:?} at {at}");
            }
            let mut body = body.to_vec();
            body[40] = 200;
            assert_eq!(decode(&sealed(body), &KEY), None, "an unknown format");
        }
        for length in 0..body.len() {
            assert_eq!(decode(&sealed(body[..length].to_vec()), &KEY), None);
        }
    }
}
