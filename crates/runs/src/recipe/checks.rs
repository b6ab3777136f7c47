//! What a recipe cannot mean, key by key, of the sections with the most numbers.

use std::collections::BTreeSet;

use olora_training::Decay;

use super::{
    Dtype, Keep, OptimizerKind, Rate, Recipe, ResizeEmbeddings, TrainingSection,
    bounds::{
        MAX_ACCUMULATION, MAX_BATCH_SIZE, MAX_EPOCHS, MAX_PADDING, MAX_ROWS, MAX_SAMPLES,
        MAX_STEPS, Problems, is_single,
    },
};

impl Recipe {
    /// What is scored on the way, and what the best evaluation is.
    pub(super) fn check_tasks(&self, has_validation: bool, problems: &mut Problems) {
        let tasks = &self.tasks;
        problems.check(
            tasks.names.is_empty() == tasks.data.is_none(),
            "`tasks.names` and `tasks.data`, the directory with a file for each, go together: give both or neither",
        );
        problems.check(
            tasks.limit.is_none() || !tasks.names.is_empty(),
            "`tasks.limit` has no use without `tasks.names`: remove it",
        );
        if let Some(limit) = tasks.limit {
            let why = "it is how many items of each task are scored";
            problems.within("tasks.limit", limit, &(1..=MAX_SAMPLES), why);
        }
        problems.check(
            tasks.names.is_empty() || has_validation,
            "`[tasks]` are scored with each evaluation, which needs validation data: set `data.validation` or \
             `data.validation_samples`",
        );
        let distinct: BTreeSet<_> = tasks.names.iter().collect();
        problems.check(
            distinct.len() == tasks.names.len(),
            "`tasks.names` has a task twice: remove one",
        );
        if let Some(task) = self.training.best_by.task() {
            problems.check(
                tasks.names.contains(&task),
                &format!(
                    "`training.best_by = \"{0}\"` needs the task to be scored: add it to `tasks.names`",
                    task.as_str()
                ),
            );
            problems.check(
                self.keep() == Keep::Best || self.training.patience.is_some(),
                "`training.best_by` has no use but with `training.patience` or `output.keep = \"best\"`: remove it",
            );
        }
    }

    /// The keys of a start along the gradient.
    pub(super) fn check_gradient(&self, problems: &mut Problems) {
        let adapter = &self.adapter;
        let is_used = !adapter.everything && adapter.config.method.is_of_gradient();
        for (key, is_given) in [
            ("gradient_batches", adapter.gradient_batches.is_some()),
            ("gradient_scale", adapter.gradient_scale.is_some()),
        ] {
            problems.check(
                is_used || !is_given,
                &format!(
                    "`adapter.{key}` has no use but with `method = \"olora-gradient\"` or \"lora-gradient\": \
                     remove it"
                ),
            );
        }
        if let Some(batches) = adapter.gradient_batches {
            let why = "so many micro-batches are kept in memory, block by block, for the start";
            problems.within(
                "adapter.gradient_batches",
                batches,
                &(1..=MAX_ACCUMULATION),
                why,
            );
        }
        if let Some(scale) = adapter.gradient_scale {
            let why = "it is the length of the factors' columns and rows";
            problems.within("adapter.gradient_scale", scale, &(1e-6..=1e6), why);
        }
    }

    pub(super) fn check_rows(&self, problems: &mut Problems) {
        let key = "model.resize_embeddings";
        let allowed = 1..=MAX_ROWS;
        match self.model.resize_embeddings {
            ResizeEmbeddings::No | ResizeEmbeddings::Tokens => {}
            ResizeEmbeddings::AtLeast(rows) => {
                problems.within(
                    key,
                    rows,
                    &allowed,
                    "an embedding gets at least so many rows",
                );
            }
            ResizeEmbeddings::ToMultipleOf(multiple) => {
                let key = format!("{key}.pad_to_multiple_of");
                problems.within(
                    &key,
                    multiple,
                    &(1..=MAX_PADDING),
                    "rows are added up to a multiple",
                );
            }
        }
        problems.check(
            self.model.resize_embeddings.is_no()
                || self.model.dtype.is_none_or(|dtype| dtype == Dtype::F32),
            "`model.resize_embeddings` needs `model.dtype = \"float32\"`: the new rows train, and small updates \
             vanish in half precision",
        );
    }
}

impl TrainingSection {
    /// Adds everything that cannot be meant.
    pub(super) fn check(&self, problems: &mut Problems) {
        self.check_sizes(problems);
        self.check_rate(problems);
        problems.number(
            "training.max_grad_norm",
            self.max_grad_norm,
            self.max_grad_norm >= 0.0 && is_single(self.max_grad_norm),
            "0, which does not clip, or a positive number that 32 bits can hold",
        );
        problems.number(
            "training.epsilon",
            self.epsilon,
            self.epsilon as f32 > 0.0 && (self.epsilon as f32).is_finite(),
            "above 0 and finite, in 32 bits too",
        );
        problems.check(
            self.schedule != Decay::Constant || self.min_learning_rate == 0.0,
            "`training.min_learning_rate` has no use with `schedule = \"constant\"`: remove it",
        );
        for (key, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            problems.number(
                &format!("training.{key}"),
                beta,
                // Rounded to 1, it would divide by zero.
                beta >= 0.0 && (beta as f32) < 1.0,
                "at least 0 and below 1, in 32 bits too",
            );
        }
        let defaults = TrainingSection::default();
        let adam = |t: &TrainingSection| [t.weight_decay, t.beta1, t.beta2, t.epsilon];
        problems.check(
            self.optimizer == OptimizerKind::Adamw || adam(self) == adam(&defaults),
            "`training.weight_decay`, `beta1`, `beta2` and `epsilon` have no use with `optimizer = \"sgd\"`: remove them",
        );
    }

    /// The learning rate, and what depends on it.
    fn check_rate(&self, problems: &mut Problems) {
        // What a rate that is to be found would do is not known yet: the usual one stands for it.
        let rate = self.learning_rate.or_usual();
        let holds = rate > 0.0 && is_single(rate);
        problems.number(
            "training.learning_rate",
            rate,
            holds,
            "above 0 and finite, and so in 32 bits, in which devices compute",
        );
        // What goes with a rate that cannot be meant is no fault of its own.
        let rate = if holds { rate } else { Rate::Auto.or_usual() };
        if self.learning_rate == Rate::Auto {
            problems.check(
                self.min_learning_rate == 0.0,
                "`training.min_learning_rate` has no use with `learning_rate = \"auto\"`, which may turn out lower: \
                 remove it",
            );
            problems.check(
                self.optimizer == OptimizerKind::Adamw,
                "`training.learning_rate = \"auto\"` is for `optimizer = \"adamw\"`: give a number",
            );
        } else {
            problems.number(
                "training.min_learning_rate",
                self.min_learning_rate,
                !holds || (0.0..=rate).contains(&self.min_learning_rate),
                "between 0 and `training.learning_rate`",
            );
        }
        if let Some(ratio) = self.loraplus_ratio {
            problems.number(
                "training.loraplus_ratio",
                ratio,
                ratio >= 1.0 && is_single(ratio * rate),
                "at least 1, and its product with `training.learning_rate` finite in 32 bits",
            );
        }
        problems.number(
            "training.weight_decay",
            self.weight_decay,
            self.weight_decay >= 0.0 && self.weight_decay * rate < 1.0,
            "0 or more, and its product with `training.learning_rate` below 1: \
             as great a share of each weight is taken away in a step",
        );
        problems.check(
            self.schedule == Decay::Wsd || self.decay_steps.is_none(),
            "`training.decay_steps` has no use but with `schedule = \"wsd\"`: remove it",
        );
        if let Some(steps) = self.decay_steps {
            let why = "so many steps at the end of the run decay";
            problems.within("training.decay_steps", steps, &(1..=MAX_STEPS), why);
        }
    }

    /// How much, how long and how often.
    fn check_sizes(&self, problems: &mut Problems) {
        problems.check(
            self.max_steps.is_none() || self.epochs.is_none(),
            "give `training.max_steps` or `training.epochs`, not both",
        );
        let longest = "no run takes as many steps";
        if let Some(steps) = self.max_steps {
            problems.within("training.max_steps", steps, &(1..=MAX_STEPS), longest);
        }
        if let Some(epochs) = self.epochs {
            problems.number(
                "training.epochs",
                epochs,
                epochs > 0.0 && epochs <= MAX_EPOCHS,
                &format!("above 0 and at most {MAX_EPOCHS:?}, passes over the data"),
            );
        }
        problems.within(
            "training.batch_size",
            self.batch_size,
            &(1..=MAX_BATCH_SIZE),
            "the sequences of a micro-batch are computed at once; `training.accumulation` makes larger steps",
        );
        problems.within(
            "training.accumulation",
            self.accumulation,
            &(1..=MAX_ACCUMULATION),
            "as many micro-batches are computed for every step",
        );
        for (key, steps, least) in [
            ("warmup_steps", self.warmup_steps, 0),
            ("log_every", self.log_every, 1),
            ("evaluate_every", self.evaluate_every, 0),
            ("checkpoint_every", self.checkpoint_every, 0),
        ] {
            let key = format!("training.{key}");
            problems.within(&key, steps, &(least..=MAX_STEPS), longest);
        }
        problems.within(
            "training.keep_checkpoints",
            self.keep_checkpoints,
            &(1..=MAX_STEPS),
            "a run goes on from its newest checkpoint, and has no more of them than steps",
        );
        if let Some(patience) = self.patience {
            let why = "so many evaluations without a lower validation loss end the run";
            problems.within("training.patience", patience, &(1..=MAX_STEPS), why);
            problems.check(
                self.evaluate_every > 0,
                "`training.patience` counts evaluations, and `training.evaluate_every` is 0: set it",
            );
        }
        if let Some(multiple) = self.pad_to_multiple_of {
            problems.within(
                "training.pad_to_multiple_of",
                multiple,
                &(1..=MAX_PADDING),
                "every sequence is padded to a length that it divides",
            );
        }
    }
}
