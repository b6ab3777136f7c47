//! A GGUF file: its header, its configuration, its tensors, its tokenizer.

use olora_gguf::GgufFile;

use crate::parts::{put, scratch, twice};

/// Tensors that are read, of files that hold many.
const TENSORS: usize = 8;

/// Reads all that a checkpoint's directory would hold.
pub fn run(data: &[u8]) {
    let directory = scratch();
    let path = put(directory.path(), "zora.gguf", data);
    let opened = twice(
        "a GGUF file",
        || GgufFile::open(&path),
        |one, other| one.config() == other.config() && one.names().eq(other.names()),
    );
    let Ok(file) = opened else { return };
    for name in file.names().take(TENSORS) {
        let shape = file
            .shape(name)
            .expect("a tensor that is listed has a shape");
        let elements: usize = shape.iter().product();
        // No format packs more than five values into a byte.
        assert!(
            elements <= data.len().saturating_mul(6),
            "`{name}` has more values than the file can hold"
        );
        assert!(file.stored_type(name).is_some());
        let read = file.read(name).expect("a tensor that was checked");
        let again = file.read(name).expect("a tensor that was checked");
        assert_eq!(read.len(), elements);
        let bits = |values: &[f32]| {
            values
                .iter()
                .map(|value| value.to_bits())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            bits(&read),
            bits(&again),
            "`{name}` is read as other values"
        );
    }
    assert!(file.read("oxmere").is_err());
    let tokenizer = twice("its tokenizer", || file.tokenizer(), PartialEq::eq);
    #[cfg(feature = "data")]
    if tokenizer.is_ok() {
        super::text::encode(olora_data::Tokenizer::from_path(&path), "Zora of Oxmere");
    }
    #[cfg(not(feature = "data"))]
    drop(tokenizer);
}
