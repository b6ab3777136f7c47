//! What was meant by a key that there is not.

/// Keys of other tools, and what they are called here. Their own docs name them
/// so: PEFT, transformers' trainer, TRL, axolotl, mlx-lm, Unsloth.
const ELSEWHERE: [(&str, &str); 49] = [
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
];

/// How far apart two words may be that are one with a slip in it, by
/// Jaro and Winkler, as clap has it for options.
const ALIKE: f64 = 0.8;

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
        let here: Vec<&str> = after.split('`').skip(1).step_by(2).collect();
        let meant = nearest(found, here.iter().copied()).map(|near| format!("`{near}`"));
        let meant = match meant {
            None if is_key => of_elsewhere(found),
            near => near,
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

/// A key of another section, or of another tool.
fn of_elsewhere(found: &str) -> Option<String> {
    let keys = super::schema::keys();
    let last = |key: &'_ str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let elsewhere = ELSEWHERE.iter().find(|(name, _)| *name == found);
    let key = elsewhere.map(|(_, key)| (*key).to_owned());
    let same = || {
        keys.iter()
            .find(|key| key.contains('.') && last(key) == found)
            .cloned()
    };
    let near = || {
        let all = keys.iter().filter(|key| key.contains('.'));
        let names: Vec<_> = all.map(|key| (last(key), key)).collect();
        let near = nearest(found, names.iter().map(|(name, _)| name.as_str()))?;
        let (_, key) = names.iter().find(|(name, _)| name == near)?;
        Some((*key).clone())
    };
    let key = key.or_else(same).or_else(near)?;
    let (section, name) = key.rsplit_once('.')?;
    Some(format!("`{name}` of `[{section}]`"))
}

/// The word that is most like the one that was found, if one is like it.
fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let alike = known
        .into_iter()
        .map(|word| (strsim::jaro_winkler(found, word), word))
        .filter(|(alike, _)| *alike > ALIKE);
    alike
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
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
            ("lora_r", "`rank` of `[adapter]`"),
            ("batchsize", "`batch_size` of `[training]`"),
        ] {
            assert!(said(found).contains(meant), "{}", said(found));
        }
        let strange = "unknown field `zzz`, expected `rank` or `alpha`";
        assert_eq!(explained(strange), strange);
        let variant = explained("unknown variant `olra`, expected one of `lora`, `olora`\n");
        assert!(variant.contains("did you mean `olora`?"), "{variant}");
    }

    #[test]
    fn what_others_call_a_key_is_one_here() {
        let keys = super::super::schema::keys();
        for (name, key) in ELSEWHERE {
            assert!(keys.iter().any(|known| known == key), "{name}: {key}");
        }
    }
}
