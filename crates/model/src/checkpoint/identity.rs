//! Telling one checkpoint's weights from another's without reading them all.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use olora_files::Fnv1a;

use super::weight_files;
use crate::ModelError;

const BLOCK: usize = 4096;
const STRIDE: u64 = 1 << 20;

/// Calls `on` with what tells a checkpoint's weights from others: the sizes of
/// its files and one block in each mebibyte.
///
/// # Errors
///
/// As [`weight_files`], and [`ModelError::Io`].
pub fn sample_weights(path: &Path, on: &mut dyn FnMut(&[u8])) -> Result<(), ModelError> {
    for file in weight_files(path)? {
        let failed = |source| ModelError::io("reading", &file, source);
        let mut opened = File::open(&file).map_err(failed)?;
        let length = opened.metadata().map_err(failed)?.len();
        on(&length.to_le_bytes());
        let mut block = [0; BLOCK];
        for start in (0..length).step_by(STRIDE as usize) {
            opened.seek(SeekFrom::Start(start)).map_err(failed)?;
            let n_read = opened.read(&mut block).map_err(failed)?;
            on(&block[..n_read]);
        }
    }
    Ok(())
}

/// 64-bit FNV-1a over [`sample_weights`], in hexadecimal: what an adapter keeps
/// of its base's weights.
///
/// # Errors
///
/// As [`sample_weights`].
pub fn weights_fingerprint(path: &Path) -> Result<String, ModelError> {
    let mut hash = Fnv1a::default();
    sample_weights(path, &mut |bytes| hash.add(bytes))?;
    Ok(format!("{:016x}", hash.value()))
}
