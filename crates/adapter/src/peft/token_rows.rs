//! PEFT's `trainable_token_indices`: some rows of an embedding train, beside
//! factors on other layers. Where the vocabulary was resized, PEFT saves the
//! whole table too; rows and table are one embedding that is saved whole.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value};

use super::read::malformed;
use crate::{AdapterConfig, AdapterError, saved::Stored, target::is_or_ends_with};

const KEY: &str = "trainable_token_indices";
/// What PEFT wraps the layer in.
const WRAPPER: &str = ".token_adapter.";
const ROWS: &str = "trainable_tokens_delta";
const TABLE: &str = "base_layer.weight";
/// What a list without a name is for.
const EMBEDDING: &str = "embed_tokens";

/// A layer's rows and its table, as the file has them.
#[derive(Default)]
struct Found {
    rows: Option<Stored>,
    table: Option<Stored>,
}

/// A file's tensors, with rows in their tables.
#[derive(Default)]
pub(super) struct Combined {
    pub(super) tensors: Vec<(String, Stored)>,
    /// Whether the rows are for both ends of a tied embedding.
    pub(super) ties: bool,
    /// What to say.
    pub(super) note: Option<String>,
}

/// Puts trained rows into their tables, which are then among the modules that
/// are saved whole.
///
/// # Errors
///
/// [`AdapterError::Unsupported`] for rows without their table, and
/// [`AdapterError::Malformed`] for what contradicts itself.
pub(super) fn combined(
    tensors: Vec<(String, Stored)>,
    json: &Map<String, Value>,
    config: &mut AdapterConfig,
    config_file: &Path,
    file: &Path,
) -> Result<Combined, AdapterError> {
    let tokens = tokens(json, config_file)?;
    if tokens.is_empty() {
        return Ok(Combined {
            tensors,
            ..Combined::default()
        });
    }
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    let mut all = Vec::with_capacity(tensors.len());
    for (name, stored) in tensors {
        let Some((layer, part)) = name.split_once(WRAPPER) else {
            all.push((name, stored));
            continue;
        };
        let of_layer = found.entry(layer.to_owned()).or_default();
        if part == TABLE {
            of_layer.table = Some(stored);
        } else if part == ROWS
            || part
                .strip_prefix(ROWS)
                .is_some_and(|rest| rest.starts_with('.'))
        {
            of_layer.rows = Some(stored);
        } else {
            all.push((name, stored));
        }
    }
    let wrong = |reason: String| malformed(file, "adapter", &reason);
    let (mut ties, mut n_rows) = (false, 0);
    for (layer, Found { rows, table }) in found {
        let named = tokens
            .iter()
            .find(|(name, _)| is_or_ends_with(&layer, name));
        // The other end of a tied embedding is not named.
        ties |= named.is_none();
        let Some((_, ids)) = named.or(tokens.first()) else {
            continue;
        };
        let (Some(rows), Some(mut table)) = (rows, table) else {
            return Err(AdapterError::Unsupported {
                file: config_file.to_owned(),
                what: format!(
                    "`{KEY}` without the table that the rows are of, which the file does not have for `{layer}` \
                     (save_pretrained(…, save_embedding_layers=True) adds it)"
                ),
            });
        };
        let (&[n, width], &[height, of_table]) = (&rows.shape[..], &table.shape[..]) else {
            return Err(wrong(format!("`{layer}{WRAPPER}{ROWS}` is no table")));
        };
        if n != ids.len() || width != of_table {
            return Err(wrong(format!(
                "`{layer}{WRAPPER}{ROWS}` is {n} × {width}, but `{KEY}` names {} tokens, and the table is {height} × \
                 {of_table}",
                ids.len()
            )));
        }
        for (row, &id) in rows.values.chunks_exact(width.max(1)).zip(ids) {
            let place = id.saturating_mul(width);
            let old = table.values.get_mut(place..place.saturating_add(width));
            let old = old.ok_or_else(|| {
                wrong(format!(
                    "`{KEY}` names the token {id}, and the table of `{layer}` has {height} rows"
                ))
            })?;
            old.copy_from_slice(row);
        }
        n_rows = n_rows.max(n);
        let last = layer.rsplit('.').next().unwrap_or(&layer).to_owned();
        if !config.modules_to_save.contains(&last) {
            config.modules_to_save.push(last);
        }
        all.push((format!("{layer}.weight"), table));
    }
    if n_rows == 0 {
        return Err(AdapterError::Unsupported {
            file: config_file.to_owned(),
            what: format!("`{KEY}`, of which the file has no rows"),
        });
    }
    let note = format!(
        "{n_rows} rows of the embedding were trained (`{KEY}`); with the table beside them, it is read as an \
         embedding that is saved whole"
    );
    Ok(Combined {
        tensors: all,
        ties,
        note: Some(note),
    })
}

/// The tokens of each layer that is named; a list alone is for the embedding.
fn tokens(
    json: &Map<String, Value>,
    file: &Path,
) -> Result<Vec<(String, Vec<usize>)>, AdapterError> {
    let ids = |value: &Value| -> Option<Vec<usize>> {
        let all = value.as_array()?.iter();
        all.map(|id| usize::try_from(id.as_u64()?).ok()).collect()
    };
    let read = match json.get(KEY) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Object(map)) => map
            .iter()
            .map(|(name, value)| Some((name.clone(), ids(value)?)))
            .collect(),
        Some(value) => ids(value).map(|ids| vec![(EMBEDDING.to_owned(), ids)]),
    };
    let mut read = read.ok_or_else(|| {
        let reason = format!("`{KEY}` must be a list of tokens, or one for each layer");
        malformed(file, "adapter configuration", &reason)
    })?;
    read.retain(|(_, ids)| !ids.is_empty());
    Ok(read)
}
