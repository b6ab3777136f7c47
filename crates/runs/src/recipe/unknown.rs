//! What was meant by a key that there is not.

/// Keys of other tools, and what they are called here. Their own docs name them
/// so: PEFT, transformers' trainer, TRL, axolotl, mlx-lm, Unsloth.
const ELSEWHERE: [(&str, &str); 77] = [
    ("lr", "training.learning_rate"),
    ("learning-rate", "training.learning_rate"),
    ("num_epochs", "training.epochs"),
    ("num_train_epochs", "training.epochs"),
    ("n_epochs", "training.epochs"),
    ("steps", "training.max_steps"),
    ("iters", "training.max_steps"),
    ("num_steps", "training.max_steps"),
    ("micro_batch_size", "training.batch_size"),
    ("per_device_train_batch_size", "training.batch_size"),
    ("train_batch_size", "training.batch_size"),
    ("gradient_accumulation_steps", "training.accumulation"),
    ("grad_accumulation_steps", "training.accumulation"),
    ("gradient_accumulation", "training.accumulation"),
    ("gradient_checkpointing", "training.recompute"),
    ("grad_checkpoint", "training.recompute"),
    ("lr_scheduler", "training.schedule"),
    ("lr_scheduler_type", "training.schedule"),
    ("scheduler", "training.schedule"),
    ("lr_schedule", "training.schedule"),
    ("warmup", "training.warmup_steps"),
    ("optim", "training.optimizer"),
    ("adam_beta1", "training.beta1"),
    ("adam_beta2", "training.beta2"),
    ("adam_epsilon", "training.epsilon"),
    ("gradient_clipping", "training.max_grad_norm"),
    ("logging_steps", "training.log_every"),
    ("steps_per_report", "training.log_every"),
    ("eval_steps", "training.evaluate_every"),
    ("steps_per_eval", "training.evaluate_every"),
    ("save_steps", "training.checkpoint_every"),
    ("save_every", "training.checkpoint_every"),
    ("save_total_limit", "training.keep_checkpoints"),
    ("early_stopping_patience", "training.patience"),
    ("r", "adapter.rank"),
    ("lora_r", "adapter.rank"),
    ("lora_rank", "adapter.rank"),
    ("lora_alpha", "adapter.alpha"),
    ("lora_dropout", "adapter.dropout"),
    ("target_modules", "adapter.targets"),
    ("lora_target_modules", "adapter.targets"),
    ("use_rslora", "adapter.rslora"),
    ("use_dora", "adapter.dora"),
    ("exclude_modules", "adapter.exclude"),
    ("base_model", "model.path"),
    ("max_seq_length", "data.max_length"),
    ("sequence_len", "data.max_length"),
    ("sample_packing", "data.packing"),
    ("output_dir", "output.directory"),
    ("grad_clip", "training.max_grad_norm"),
    ("clip_grad_norm", "training.max_grad_norm"),
    ("max_seq_len", "data.max_length"),
    ("seq_len", "data.max_length"),
    ("max_len", "data.max_length"),
    ("cutoff_len", "data.max_length"),
    ("context_length", "data.max_length"),
    ("dataset", "data.train"),
    ("datasets", "data.train"),
    ("train_file", "data.train"),
    ("train_dataset", "data.train"),
    ("eval_dataset", "data.validation"),
    ("validation_file", "data.validation"),
    ("val_set_size", "data.validation_samples"),
    ("test_size", "data.validation_samples"),
    ("eval", "data.validation"),
    ("data_seed", "data.split_seed"),
    ("load_in_4bit", "model.quantize"),
    ("load_in_8bit", "model.quantize"),
    ("quantization", "model.quantize"),
    ("bf16", "model.compute_dtype"),
    ("torch_dtype", "model.dtype"),
    ("model_name", "model.path"),
    ("model_name_or_path", "model.path"),
    ("lora_layers", "adapter.layers"),
    ("layers_to_transform", "adapter.layers"),
    ("num_layers", "adapter.layers"),
    ("init_lora_weights", "adapter.method"),
];

/// Values of other tools, and how they are had here.
const VALUES: [(&str, &str); 4] = [
    ("dora", "`dora = true` of `[adapter]`, beside a method"),
    ("rslora", "`rslora = true` of `[adapter]`, beside a method"),
    (
        "qlora",
        "`quantize = \"nf4\"` of `[model]`, beside a method",
    ),
    ("full", "`method = \"none\"`, which trains every weight"),
];

/// How alike two words are at least that are one with a slip in it, by Jaro and
/// Winkler: a beginning that is the same counts more.
const ALIKE: f64 = 0.8;

/// The same for a key of another section, which is a longer way.
const ALIKE_ELSEWHERE: f64 = 0.9;

/// An error of reading a recipe, with what may have been meant by a key or a value
/// that there is not.
pub(super) fn explained(error: &str) -> String {
    let error = error.trim_end();
    let kinds = [("unknown field `", true), ("unknown variant `", false)];
    for (start, is_key) in kinds {
        let Some((before, rest)) = error.rsplit_once(start) else {
            continue;
        };
        let Some((found, after)) = rest.split_once('`') else {
            continue;
        };
        // The next line says where it is.
        let list = after.lines().next().unwrap_or_default();
        let here: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
        let near = nearest(found, here.iter().copied(), ALIKE).map(|near| format!("`{near}`"));
        let meant = if is_key {
            known(found, &here)
                .or(near)
                .or_else(|| like_elsewhere(found))
        } else {
            let known = VALUES.iter().find(|(name, _)| *name == found);
            known.map(|(_, how)| (*how).to_owned()).or(near)
        };
        if let Some(meant) = meant {
            return format!(
                "{before}{start}{found}`: did you mean {meant}?{}",
                others(after)
            );
        }
    }
    error.to_owned()
}

/// What is said after the word that was found, as a sentence of its own.
fn others(after: &str) -> String {
    let after = after.trim_start_matches([',', ' ']);
    let mut letters = after.chars();
    match letters.next() {
        None => String::new(),
        Some(first) => format!(" {}{}", first.to_uppercase(), letters.as_str()),
    }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// A dotted key in words.
fn told(key: &str) -> String {
    match key.rsplit_once('.') {
        Some((section, name)) => format!("`{name}` of `[{section}]`"),
        None => format!("`{key}`, before the first section"),
    }
}

/// A key that another tool calls so, or that another section has.
fn known(found: &str, here: &[&str]) -> Option<String> {
    if let Some((_, key)) = ELSEWHERE.iter().find(|(name, _)| *name == found) {
        let name = last(key);
        return Some(if here.contains(&name) {
            format!("`{name}`")
        } else {
            told(key)
        });
    }
    let keys = super::schema::keys();
    let mut same = keys.iter().filter(|key| last(key) == found);
    // Of a word that several sections have, nobody knows which was meant.
    let first = same.next()?;
    same.next().is_none().then(|| told(first))
}

/// A key of another section that is much like it.
fn like_elsewhere(found: &str) -> Option<String> {
    let keys = super::schema::keys();
    let words = keys
        .iter()
        .filter(|key| key.contains('.'))
        .map(|key| last(key));
    let near = nearest(found, words, ALIKE_ELSEWHERE)?;
    let key = keys
        .iter()
        .find(|key| key.contains('.') && last(key) == near)?;
    Some(told(key))
}

/// The word that is most like the one that was found, if one is like it.
fn nearest<'a>(
    found: &str,
    known: impl IntoIterator<Item = &'a str>,
    alike: f64,
) -> Option<&'a str> {
    let near = known
        .into_iter()
        .map(|word| (strsim::jaro_winkler(found, word), word))
        .filter(|(likeness, _)| *likeness > alike);
    near.max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_said_where_something_is_like_it() {
        let said = |found: &str| {
            explained(&format!(
                "line 3\nunknown field `{found}`, expected `rank` or `alpha`"
            ))
        };
        assert_eq!(
            said("rnk"),
            "line 3\nunknown field `rnk`: did you mean `rank`? Expected `rank` or `alpha`"
        );
        for (found, meant) in [
            ("learning_rate", "`learning_rate` of `[training]`"),
            ("num_train_epochs", "`epochs` of `[training]`"),
            ("lora_r", "did you mean `rank`?"),
            ("lora_dropout", "`dropout` of `[adapter]`"),
            ("batchsize", "`batch_size` of `[training]`"),
            ("seed", "`seed`, before the first section"),
            ("gamma", "`gamma` of `[objective]`"),
            ("grad_clip", "`max_grad_norm` of `[training]`"),
        ] {
            assert!(said(found).contains(meant), "{}", said(found));
        }
        let strange = "unknown field `zzz`, expected `rank` or `alpha`";
        assert_eq!(explained(strange), strange);
        let variant = explained("unknown variant `olra`, expected one of `lora`, `olora`\n");
        assert!(variant.contains("did you mean `olora`?"), "{variant}");
        let other = explained("unknown variant `qlora`, expected one of `lora`, `olora`\n");
        assert!(other.contains("did you mean `quantize"), "{other}");
        // The words of the line that says where it is are no keys.
        let placed = explained("unknown field `date`, expected `rank`\nin `data`\n");
        assert!(!placed.contains("did you mean `data`"), "{placed}");
    }

    #[test]
    fn what_others_call_a_key_is_one_here() {
        let keys = super::super::schema::keys();
        for (name, key) in ELSEWHERE {
            assert!(keys.iter().any(|known| known == key), "{name}: {key}");
        }
    }
}
