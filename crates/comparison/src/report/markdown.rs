//! A report as Markdown.

use std::{collections::BTreeSet, fmt::Write};

use olora_data::Answers;
use olora_files::size;

use super::{Group, Lengths, Report, Standing};
use crate::{
    pictures,
    statistics::{Interval, area, deviation, mean},
    trial::Trial,
    variant::Variant,
};

impl Report {
    /// The whole report.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_markdown(&mut text);
        text
    }

    fn write_markdown(&self, text: &mut String) -> std::fmt::Result {
        let names: Vec<String> = self
            .sections()
            .first()
            .map(|groups| groups.iter().map(|g| g.variant.to_string()).collect())
            .unwrap_or_default();
        writeln!(text, "# {}\n", names.join(", "))?;
        writeln!(
            text,
            "Made of the {} files in `cells/` by `olora report`.\n",
            self.n_trials
        )?;
        self.write_setting(text)?;
        self.write_caveats(text)?;
        for groups in self.sections() {
            self.write_section(text, groups)?;
        }
        self.write_lengths(text)?;
        self.write_pictures(text)?;
        if let Some(scores) = &self.scores {
            text.push_str(scores);
        }
        self.write_rates(text)
    }

    /// Those that there is something to show in.
    fn write_pictures(&self, text: &mut String) -> std::fmt::Result {
        if !pictures::losses(self).figure.is_empty() {
            writeln!(text, "![Validation loss by step](loss.svg)\n")?;
        }
        if !pictures::steps(self).figure.is_empty() {
            writeln!(
                text,
                "![Steps to the last loss of {}](steps.svg)\n",
                self.reference
            )?;
        }
        if !pictures::rates(self).figure.is_empty() {
            writeln!(text, "![Last loss by learning rate](rates.svg)")?;
        }
        Ok(())
    }

    fn write_setting(&self, text: &mut String) -> std::fmt::Result {
        let trials = || self.groups.iter().flat_map(|group| &group.trials);
        let Some(trial) = trials().next() else {
            return Ok(());
        };
        let recipe = &trial.recipe;
        let training = &recipe.training;
        let held_out = match (&recipe.data.validation, recipe.data.validation_samples) {
            (Some(path), _) => format!("`{path}`"),
            (None, n) => format!("{} samples held out of it", n.unwrap_or(0)),
        };
        let distinct = |of: &dyn Fn(&Trial) -> String| {
            let all: BTreeSet<String> = trials().map(of).collect();
            Vec::from_iter(all)
        };
        let versions = distinct(&|trial| {
            let versions = trial.versions.iter();
            let versions: Vec<String> = versions
                .map(|(name, version)| format!("{name} {version}"))
                .collect();
            versions.join(", ")
        });
        let dates = distinct(&|trial| trial.finished.split('T').next().unwrap_or("").to_owned());
        let dates = match dates.as_slice() {
            [first, .., last] => format!("{first} to {last}"),
            dates => dates.concat(),
        };
        let n_sequences = training.batch_size * training.accumulation;
        let what = match recipe.objective.answers() {
            Answers::Pair => "pairs of sequences",
            Answers::One | Answers::Labelled => "sequences",
        };
        writeln!(text, "| | |\n|---|---|")?;
        let packing = recipe.model.quantize;
        let packing = if packing.is_stored() {
            String::new()
        } else {
            format!(", `model.quantize = \"{}\"`", packing.name())
        };
        writeln!(
            text,
            "| base | `{}`{packing} |",
            recipe.model.path.display()
        )?;
        if recipe.objective.answers() != Answers::One {
            let objective = recipe.objective.described();
            writeln!(text, "| objective | {objective} |")?;
        }
        writeln!(text, "| training data | `{}` |", recipe.data.described())?;
        writeln!(text, "| validation data | {held_out} |")?;
        if self.groups.iter().any(|group| group.steps.is_some()) {
            let lengths: BTreeSet<usize> = self.groups.iter().filter_map(|g| g.steps).collect();
            let lengths: Vec<String> = lengths.iter().map(usize::to_string).collect();
            writeln!(
                text,
                "| runs | {} steps of {n_sequences} {what} of at most {} tokens |",
                lengths.join(", "),
                recipe.data.max_length,
            )?;
        } else {
            writeln!(
                text,
                "| run | {} steps of {n_sequences} {what} of at most {} tokens: {} {what}, {} tokens |",
                trial.steps,
                recipe.data.max_length,
                trial.steps * n_sequences,
                trial.tokens
            )?;
        }
        writeln!(
            text,
            "| adapter | on {}, alpha {} |",
            recipe.adapter.config.targets.join(", "),
            recipe.adapter.config.alpha
        )?;
        writeln!(
            text,
            "| learning rate | {} steps of warm-up, then {} |",
            training.warmup_steps,
            format!("{:?}", training.schedule).to_lowercase()
        )?;
        let devices = distinct(&|trial| trial.device.clone());
        writeln!(text, "| device | {} |", devices.join("; "))?;
        writeln!(text, "| versions | {} |", versions.join("; "))?;
        writeln!(text, "| date | {dates} |\n")
    }

    fn write_caveats(&self, text: &mut String) -> std::fmt::Result {
        let Self {
            reference,
            tuning_seed,
            tuning_seeds,
            ..
        } = self;
        let chosen_on = match tuning_seeds {
            0 | 1 => format!("seed {tuning_seed}"),
            n => format!("{n} seeds, from {tuning_seed} on"),
        };
        let all_tuned = self.groups.iter().all(|group| group.only_tuned);
        let apart = match tuning_seeds {
            _ if all_tuned => "no other seed was run",
            0 => "that seed is among those averaged, which flatters every method",
            1 => "that seed is not among those that are averaged",
            _ => "those seeds are not among those that are averaged",
        };
        let trials = || self.groups.iter().flat_map(|group| &group.trials);
        writeln!(
            text,
            "Read with care:\n\n\
             - Differences are to {reference} at the same rank and seed, which has the same order of data. In the tables \
             ± is the standard deviation over seeds; brackets, and ± in sentences, are Student's 95 % intervals over \
             seeds. Of twenty, one leaves out the truth by chance, and none says anything of other validation data. \
             p is that of the paired t-test of the last losses; Holm's is corrected for all methods, ranks and lengths of \
             this report, and is what to go by where several were tried.\n\
             - Each method has its own learning rate, the best of those tried on {chosen_on} (last table: neighbours \
             may be far apart, and some methods were tried at more of them). It was chosen by the same validation data that \
             are reported, and {apart}.\n\
             - Steps to {reference}'s last loss are those after which the validation loss stays at or below it, by straight \
             lines between evaluations. Seconds are those steps at the median time of a step, with the start, on the machine \
             as it was."
        )?;
        writeln!(
            text,
            "- Before the first step, the losses of all runs lie within {:.1e} of each other.",
            self.largest_start_difference
        )?;
        let n_evaluations = trials()
            .map(|trial| trial.validation.len())
            .min()
            .unwrap_or(0);
        if n_evaluations < 5 {
            writeln!(
                text,
                "- There are only {n_evaluations} evaluations in a run: steps between them are guesses."
            )?;
        }
        for group in &self.groups {
            group.write_caveats(text)?;
        }
        writeln!(text)
    }

    fn write_section(&self, text: &mut String, groups: &[Group]) -> std::fmt::Result {
        let Some(first) = groups.first() else {
            return Ok(());
        };
        let reference = self.reference;
        match first.steps {
            None => writeln!(text, "## Rank {}\n", first.rank)?,
            Some(steps) => writeln!(text, "## Rank {}, {steps} steps\n", first.rank)?,
        }
        writeln!(
            text,
            "| method | learning rate | seeds | last loss | to {reference} | mean loss over the run | to {reference} \
             | steps to {reference}'s last loss | seconds to it | start | trained | peak memory |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
        )?;
        for group in groups {
            let standing = self.standing(group);
            let standing = standing.as_ref();
            let trials = &group.trials;
            let n_steps = trials.iter().map(|trial| trial.steps).max().unwrap_or(0);
            let areas: Vec<f64> = trials
                .iter()
                .filter_map(|trial| area(&trial.validation))
                .collect();
            let starts: Vec<f64> = trials.iter().map(|trial| trial.attach_seconds).collect();
            let peak = trials.iter().filter_map(|trial| trial.peak_memory).max();
            let seeds = match group.diverged.len() {
                0 => trials.len().to_string(),
                n => format!("{}, {n} more diverged", trials.len()),
            };
            if trials.is_empty() {
                writeln!(
                    text,
                    "| {} | diverged at all |{}",
                    group.variant,
                    " |".repeat(10)
                )?;
                continue;
            }
            writeln!(
                text,
                "| {} | {:e} | {} | {} | {} | {} | {} | {} | {} | {:.2} s | {} | {} |",
                group.variant,
                group.rate,
                seeds,
                spread(&group.last_losses()),
                interval(standing.and_then(|standing| standing.loss)),
                spread(&areas),
                interval(standing.and_then(|standing| standing.area)),
                reached(
                    standing.map_or(&[][..], |standing| &standing.steps),
                    &format!(" of {n_steps}")
                ),
                reached(standing.map_or(&[][..], |standing| &standing.seconds), ""),
                mean(&starts),
                trials.first().map_or(0, |trial| trial.trained_params),
                peak.map_or_else(|| "–".to_owned(), size),
            )?;
        }
        write_measures(text, groups)?;
        self.write_further(text, groups)?;
        writeln!(text)?;
        for group in groups {
            if group.variant != self.reference
                && let Some(standing) = self.standing(group)
            {
                writeln!(text, "- {}", sentence(group, &standing, reference))?;
            }
        }
        writeln!(text)?;
        self.write_one_rate(text, groups)
    }

    /// What is not in the first table for want of room.
    fn write_further(&self, text: &mut String, groups: &[Group]) -> std::fmt::Result {
        let reference = self.reference;
        writeln!(
            text,
            "\n| method | p | p by Holm | steps to 1.25 × {reference}'s last loss | seconds to it \
             | loss at a third of the rate | at the rate | at three times the rate |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|"
        )?;
        for group in groups.iter().filter(|group| !group.trials.is_empty()) {
            let standing = self.standing(group);
            let standing = standing.as_ref();
            let told = |p: Option<f64>| p.map_or_else(|| "–".to_owned(), probability);
            let ps = standing.and_then(|standing| standing.p);
            let of = |times: f64| match group.loss_near_rate(times) {
                None => "not tried".to_owned(),
                Some(loss) if loss.is_finite() => format!("{loss:.4}"),
                Some(_) => "diverged".to_owned(),
            };
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                group.variant,
                told(ps.map(|(p, _)| p)),
                told(ps.map(|(_, p)| p)),
                reached(
                    standing.map_or(&[][..], |standing| &standing.steps_near),
                    ""
                ),
                reached(
                    standing.map_or(&[][..], |standing| &standing.seconds_near),
                    ""
                ),
                of(1.0 / super::FAR),
                of(1.0),
                of(super::FAR),
            )?;
        }
        Ok(())
    }

    /// The methods at one rate for all, where they were run at one.
    fn write_one_rate(&self, text: &mut String, groups: &[Group]) -> std::fmt::Result {
        let at_one_rate = self.at_one_rate(groups);
        let Some(place) = groups.first().map(Group::place) else {
            return Ok(());
        };
        if at_one_rate.is_empty() {
            return Ok(());
        }
        let reference = self.reference;
        writeln!(
            text,
            "### At one rate for all, {place}\n\n\
             The papers' protocol: no method has a rate of its own.\n\n\
             | rate | method | seeds | last loss | to {reference} | mean loss over the run | to {reference} \
             | steps to {reference}'s last loss |\n|---:|---|---:|---:|---:|---:|---:|---:|"
        )?;
        for (rate, runs) in at_one_rate {
            let reference = runs
                .iter()
                .find(|(group, _)| group.variant == self.reference);
            let Some((_, theirs)) = reference else {
                continue;
            };
            let finished = |trials: &[Trial]| -> Vec<Trial> {
                let trials = trials.iter().filter(|trial| trial.diverged.is_none());
                trials.cloned().collect()
            };
            let theirs = finished(theirs);
            for (group, all) in &runs {
                let itself = group.variant == self.reference;
                let trials = &finished(all);
                let seeds = match all.len() - trials.len() {
                    0 => trials.len().to_string(),
                    n => format!("{}, {n} more diverged", trials.len()),
                };
                if trials.is_empty() {
                    let rest = " |".repeat(5);
                    writeln!(text, "| {rate:e} | {} | {seeds} |{rest}", group.variant)?;
                    continue;
                }
                let standing = Self::standing_of(trials, &theirs);
                let standing = standing.as_ref();
                let losses: Vec<f64> = trials.iter().map(Trial::last_loss).collect();
                let areas: Vec<f64> = trials
                    .iter()
                    .filter_map(|trial| area(&trial.validation))
                    .collect();
                let n_steps = trials.iter().map(|trial| trial.steps).max().unwrap_or(0);
                let other = standing.filter(|_| !itself);
                writeln!(
                    text,
                    "| {rate:e} | {} | {seeds} | {} | {} | {} | {} | {} |",
                    group.variant,
                    spread(&losses),
                    interval(other.and_then(|standing| standing.loss)),
                    spread(&areas),
                    interval(other.and_then(|standing| standing.area)),
                    reached(
                        standing.map_or(&[][..], |standing| &standing.steps),
                        &format!(" of {n_steps}")
                    ),
                )?;
            }
        }
        writeln!(text)
    }

    /// How long a run with its own schedule has to be, where several lengths were run.
    fn write_lengths(&self, text: &mut String) -> std::fmt::Result {
        let ranks: BTreeSet<usize> = self.groups.iter().map(|group| group.rank).collect();
        for rank in ranks {
            let lengths = self.lengths(rank);
            if lengths.is_empty() {
                continue;
            }
            let reference = self.reference;
            let ends = self.groups.iter().filter(|group| group.rank == rank);
            let longest = ends.filter_map(|group| group.steps).max().unwrap_or(0);
            writeln!(
                text,
                "## With a schedule of its own, rank {rank}\n\n\
                 How many steps a run has to have in all, at the method's best rate for that length, to end at \
                 {reference}'s last loss after {longest} steps, or at 1.25 times it; by straight lines between the logarithms \
                 of the losses of the lengths that were run.\n\n\
                 | method | steps to 1.25 × | steps to 1 × |\n|---|---:|---:|"
            )?;
            for Lengths {
                variant,
                near,
                exact,
            } in lengths
            {
                writeln!(
                    text,
                    "| {variant} | {} | {} |",
                    in_all(&near),
                    in_all(&exact)
                )?;
            }
            writeln!(text)?;
        }
        Ok(())
    }

    /// What the rates were chosen by.
    fn write_rates(&self, text: &mut String) -> std::fmt::Result {
        let mut rates: Vec<f64> = self
            .groups
            .iter()
            .flat_map(|group| group.tried.iter().map(|(rate, _)| *rate))
            .collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        let of = match self.tuning_seeds {
            0 | 1 => "of the first seed".to_owned(),
            n => format!("of the first {n} seeds"),
        };
        let by_length = self.groups.iter().any(|group| group.steps.is_some());
        let (steps, line) = if by_length {
            (" steps |", "---:|")
        } else {
            ("", "")
        };
        writeln!(text, "\n## Last loss {of} by learning rate\n")?;
        let head: Vec<String> = rates.iter().map(|rate| format!("{rate:e}")).collect();
        writeln!(text, "| method | rank |{steps} {} |", head.join(" | "))?;
        writeln!(text, "|---|---:|{line}{}", "---:|".repeat(rates.len()))?;
        for group in &self.groups {
            let cells = rates.iter().map(|rate| {
                let tried = group.tried.iter().find(|(tried, _)| tried == rate);
                match tried {
                    None => String::new(),
                    Some((_, loss)) if !loss.is_finite() => "diverged".to_owned(),
                    Some((_, loss)) if *rate == group.rate => format!("**{loss:.4}**"),
                    Some((_, loss)) => format!("{loss:.4}"),
                }
            });
            let cells: Vec<String> = cells.collect();
            let steps = group.steps.map(|steps| format!(" {steps} |"));
            writeln!(
                text,
                "| {} | {} |{} {} |",
                group.variant,
                group.rank,
                steps.unwrap_or_default(),
                cells.join(" | ")
            )?;
        }
        Ok(())
    }
}

impl Group {
    /// What is to be known of this method beyond what holds for all.
    fn write_caveats(&self, text: &mut String) -> std::fmt::Result {
        let Self {
            variant,
            rate,
            tried,
            diverged,
            ..
        } = self;
        let place = self.place();
        if self.only_tuned && self.trials.len() + diverged.len() > 0 {
            writeln!(
                text,
                "- {variant} at {place} was run on no other seed than chose its rate, which flatters it."
            )?;
        }
        if rate.is_nan() {
            return writeln!(
                text,
                "- {variant} at {place} diverged at every rate that was tried: lower ones may do."
            );
        }
        if tried.len() == 1 {
            writeln!(
                text,
                "- {variant} at {place} was tried at one learning rate alone, which is no tuning."
            )?;
        } else if let Some((end, beyond)) = edge(tried, *rate) {
            writeln!(
                text,
                "- {variant} at {place} was best at the {end} rate tried, {rate:e}: a {beyond} one may be better."
            )?;
        }
        for seed in diverged {
            writeln!(
                text,
                "- {variant} at {place} diverged on seed {seed} at its rate, and is compared without it."
            )?;
        }
        Ok(())
    }
}

/// At which end of the rates tried the best is, if at one, and what lies beyond.
fn edge(tried: &[(f64, f64)], best: f64) -> Option<(&'static str, &'static str)> {
    let lower = tried.iter().any(|(rate, _)| *rate < best);
    let higher = tried.iter().any(|(rate, _)| *rate > best);
    match (lower, higher) {
        (false, _) => Some(("lowest", "lower")),
        (_, false) => Some(("highest", "higher")),
        _ => None,
    }
}

/// What an objective measures beside its loss, where it does.
fn write_measures(text: &mut String, groups: &[Group]) -> std::fmt::Result {
    let names: BTreeSet<&str> = groups
        .iter()
        .flat_map(|group| group.measures().into_keys())
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let names = Vec::from_iter(names);
    writeln!(
        text,
        "\nOn the validation data, after the last step:\n\n| method | {} |\n|---|{}",
        names.join(" | "),
        "---:|".repeat(names.len())
    )?;
    for group in groups.iter().filter(|group| !group.trials.is_empty()) {
        let measures = group.measures();
        let told = names.iter().map(|name| {
            let values = measures.get(name);
            values.map_or_else(|| "–".to_owned(), |values| spread(values))
        });
        let told: Vec<_> = told.collect();
        writeln!(text, "| {} | {} |", group.variant, told.join(" | "))?;
    }
    Ok(())
}

/// `0.012`, or `1e-5`.
fn probability(p: f64) -> String {
    if p < 0.001 {
        format!("{p:.0e}")
    } else {
        format!("{p:.3}")
    }
}

/// The mean over seeds with its interval, where all of them got there.
fn in_all(lengths: &[Option<f64>]) -> String {
    let there: Vec<f64> = lengths.iter().copied().flatten().collect();
    match Interval::of(&there).filter(|_| there.len() == lengths.len()) {
        Some(Interval { mean, half_width }) => format!("{mean:.1} ± {half_width:.1}"),
        None => reached(lengths, ""),
    }
}

/// `1.2345 ± 0.0012`.
fn spread(values: &[f64]) -> String {
    match deviation(values) {
        Some(deviation) => format!("{:.4} ± {deviation:.4}", mean(values)),
        None => format!("{:.4}", mean(values)),
    }
}

/// `-0.0123 [-0.0150, -0.0096]`.
fn interval(interval: Option<Interval>) -> String {
    interval.map_or_else(
        || "–".to_owned(),
        |Interval { mean, half_width }| {
            format!(
                "{mean:+.4} [{:+.4}, {:+.4}]",
                mean - half_width,
                mean + half_width
            )
        },
    )
}

/// The mean where all seeds got there, or how many did.
fn reached(values: &[Option<f64>], of: &str) -> String {
    let there: Vec<f64> = values.iter().copied().flatten().collect();
    match (there.len(), values.len()) {
        (_, 0) => "–".to_owned(),
        (0, _) => "not reached".to_owned(),
        (n, all) if n == all => format!("{:.1}{of}", mean(&there)),
        (n, all) => format!("{:.1}{of} ({n} of {all} seeds)", mean(&there)),
    }
}

/// In words, what a row says.
fn sentence(group: &Group, standing: &Standing, reference: Variant) -> String {
    let Group { variant, .. } = group;
    let place = group.place();
    let told = |interval: Option<Interval>, what: &str| match interval {
        None => format!("of its {what}, fewer than two seeds say nothing"),
        Some(interval) if !interval.is_clear() => format!(
            "its {what} cannot be told from {reference}'s ({:+.4} ± {:.4})",
            interval.mean, interval.half_width
        ),
        Some(interval) => format!(
            "its {what} is {} by {:.4} ± {:.4}",
            if interval.mean < 0.0 {
                "lower"
            } else {
                "higher"
            },
            interval.mean.abs(),
            interval.half_width
        ),
    };
    let there: Vec<f64> = standing.steps.iter().copied().flatten().collect();
    let n_steps = group
        .trials
        .iter()
        .map(|trial| trial.steps)
        .max()
        .unwrap_or(0);
    let steps = match (there.len(), standing.steps.len()) {
        (_, 0) => format!("it has no seed in common with {reference}"),
        (0, all) if all > 1 => {
            format!("none of {all} seeds ends at or below {reference}'s last loss")
        }
        (0, _) => format!("its seed does not end at or below {reference}'s last loss"),
        (n, all) if n < all => {
            format!("{n} of {all} seeds end at or below {reference}'s last loss")
        }
        (n, _) => {
            let width =
                Interval::of(&there).map(|interval| format!(" ± {:.1}", interval.half_width));
            format!(
                "{} at or below {reference}'s last loss after {:.1}{} of {n_steps} steps",
                if n == 1 {
                    "its seed stays"
                } else {
                    "all seeds stay"
                },
                mean(&there),
                width.unwrap_or_default()
            )
        }
    };
    format!(
        "**{variant} at {place}**: {}; {}; {steps}.",
        told(standing.loss, "last loss"),
        told(standing.area, "mean loss over the run"),
    )
}
