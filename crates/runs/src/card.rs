//! The model card beside an adapter: what it is, what it was made from and how
//! it did. `README.md` with the front matter that the Hugging Face hub reads.

use std::fmt::Write;

use olora_data::Answers;
use serde_json::{Value, json};

use crate::{Recipe, Summary, measures::in_words};

/// The card of a finished run.
///
/// `rows` are those of a vocabulary that was resized; `with_pictures` is that the
/// base is the text model of one that reads pictures too.
pub(crate) fn card(
    recipe: &Recipe,
    summary: &Summary,
    rows: Option<usize>,
    with_pictures: bool,
) -> String {
    let adapter = &recipe.adapter.config;
    let method = recipe.adapter.method_name();
    let base = base_name(recipe);
    let mut tags = vec!["lora".to_owned(), "olora".to_owned()];
    if method != "olora" && method != "lora" {
        tags.push(method.to_owned());
    }
    if let Some(objective) = &summary.objective {
        tags.extend(objective.split(',').next().map(str::to_owned));
    }
    let quoted = |text: &str| Value::from(text).to_string();
    let mut text = format!(
        "---\nbase_model: {}\nlibrary_name: peft\npipeline_tag: text-generation\ntags: {}\n---\n\n",
        quoted(&base),
        json!(tags)
    );
    let mut line = |row: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = text.write_fmt(row);
    };
    line(format_args!("# {}\n\n", recipe.name));
    line(format_args!(
        "An adapter for `{base}`, trained with olora and saved as PEFT \
         files.\n\n"
    ));
    line(format_args!("| | |\n|---|---|\n"));
    line(format_args!("| method | {method}{} |\n", variants(recipe)));
    if let Some(objective) = &summary.objective {
        line(format_args!("| objective | {objective} |\n"));
    }
    if let Some(from) = &recipe.adapter.from {
        let from = from.display();
        line(format_args!("| started from | the adapter in `{from}` |\n"));
    }
    line(format_args!(
        "| rank, alpha | {}, {} |\n",
        adapter.rank, adapter.alpha
    ));
    let targets = adapter.targets.join(", ");
    line(format_args!("| targets | {targets} |\n"));
    if !adapter.modules_to_save.is_empty() {
        let modules = adapter.modules_to_save.join(", ");
        line(format_args!("| trained whole | {modules} |\n"));
    }
    let millions = |n: usize| n as f64 / 1e6;
    line(format_args!(
        "| trained parameters | {:.3} M of {:.1} M |\n",
        millions(summary.n_trained_params),
        millions(summary.n_params)
    ));
    line(format_args!("| data | {} |\n", data_names(recipe)));
    line(format_args!(
        "| steps | {} of {}, {} tokens |\n",
        summary.steps,
        step_size(recipe),
        summary.tokens
    ));
    line(format_args!(
        "| learning rate | {}, {:?}{} |\n",
        recipe.training.learning_rate,
        recipe.training.schedule,
        recipe
            .training
            .loraplus_ratio
            .map(|ratio| format!(", LoRA+ ratio {ratio}"))
            .unwrap_or_default()
    ));
    let loss = |loss: Option<f64>| loss.map_or("not measured".to_owned(), |x| format!("{x:.4}"));
    line(format_args!(
        "| training loss at the end | {} |\n",
        loss(summary.train_loss)
    ));
    line(format_args!(
        "| validation loss, before and after | {}, {} |\n",
        loss(summary.validation_loss_before),
        loss(summary.validation_loss)
    ));
    line(format_args!("{}", measured(summary)));
    line(format_args!("| seed | {} |\n\n", recipe.seed));
    let base = if with_pictures {
        line(format_args!(
            "`{base}` reads pictures too, and this is an adapter of its text model. Write that, and load the \
             adapter onto it; onto the whole, PEFT would load it without an effect:\n\n\
             ```\nolora convert {base} --output text-model\n```\n\n"
        ));
        "text-model".to_owned()
    } else {
        base
    };
    line(format_args!(
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
         base = AutoModelForCausalLM.from_pretrained({})\n{}\
         model = PeftModel.from_pretrained(base, \"this directory\")\n```\n",
        quoted(&base),
        rows.map(|rows| format!("base.resize_token_embeddings({rows})\n"))
            .unwrap_or_default()
    ));
    text
}

/// Rows of what an objective measures beside its loss, if anything.
fn measured(summary: &Summary) -> String {
    let rows = [
        ("before", &summary.validation_measures_before),
        ("after", &summary.validation_measures),
    ];
    let rows = rows.iter().filter(|(_, measures)| !measures.is_empty());
    rows.fold(String::new(), |text, (when, measures)| {
        text + &format!("| on validation data, {when} | {} |\n", in_words(measures))
    })
}

/// How many sequences a step has.
fn step_size(recipe: &Recipe) -> String {
    let n = recipe.training.batch_size * recipe.training.accumulation;
    match recipe.objective.answers() {
        Answers::Pair => format!("{n} pairs"),
        Answers::One | Answers::Labelled => format!("{n} sequences"),
    }
}

/// What an adapter of this recipe records as its base.
pub(crate) fn base_name(recipe: &Recipe) -> String {
    let path = || {
        let path = recipe.model.path.display().to_string();
        // With one slash it would read as a name on the hub.
        let ambiguous = path.matches('/').count() == 1 && !path.starts_with(['/', '.']);
        if ambiguous { format!("./{path}") } else { path }
    };
    recipe.model.base_name.clone().unwrap_or_else(path)
}

fn variants(recipe: &Recipe) -> String {
    let adapter = &recipe.adapter.config;
    let mut variants = String::new();
    for (is, name) in [(adapter.dora, "DoRA"), (adapter.rslora, "rank-stabilised")] {
        if is {
            variants += ", ";
            variants += name;
        }
    }
    variants
}

/// What was trained on. Where a file lies on the machine that trained is nobody
/// else's business; a name on the hub is.
fn data_names(recipe: &Recipe) -> String {
    let sources = recipe.data.all_sources();
    let names = sources
        .iter()
        .flat_map(|source| &source.path.0)
        .map(|name| {
            let is_local = !recipe.data.located.0.contains_key(name);
            let file = std::path::Path::new(name).file_name();
            match file.filter(|_| is_local) {
                Some(file) => file.to_string_lossy().into_owned(),
                None => name.clone(),
            }
        });
    names.collect::<Vec<_>>().join(", ")
}
