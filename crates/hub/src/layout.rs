//! Which files of a data set make up a configuration and a split: the rules of
//! Python's `datasets` ("Structure your repository" in its documentation, and
//! its `data_files.py`), applied to the list of a repository's files.
//!
//! Differences, each on purpose: a file that two patterns match counts once; of
//! a split, files of another form than most are left out with a note also where
//! the description's patterns match them, instead of being read as what they
//! are not; splits that are not asked for may be of any form, or missing; logs
//! and tasks of agents (`.eval`, `.md`, `.toml`) are no data to train on, and
//! files beside them are found.

mod forms;

use std::collections::{BTreeMap, BTreeSet};

use globset::{GlobBuilder, GlobMatcher};

use forms::readable;

use crate::{
    HubDataset, HubError,
    card::{Card, Config},
    dataset_name::is_split,
};

/// Never data unless a pattern ends in exactly this name.
const IGNORED: [&str; 6] = [
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dummy_data.zip",
    "dataset_dict.json",
];

/// The splits that names are searched for, with the words that mean them.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The most work that the patterns of a split may be, a second or two: one for each file that one is compared with, and
/// for its own making as much as for [`PATTERN_WORK`] files and for [`BYTE_WORK`] files a byte.
const MOST_WORK: usize = 10_000_000;
const PATTERN_WORK: usize = 4_000;
const BYTE_WORK: usize = 16;

/// Stands between words of a name.
const BETWEEN: &str = "[-._ 0-9]";

/// Ends the name of a file that is one of several of a split.
const SHARD: &str = "[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*.*";

/// Descriptions of these do not change how files are read.
const HARMLESS: [&str; 6] = [
    "description",
    "version",
    "features",
    "drop_labels",
    "drop_metadata",
    "dataset_info",
];

/// These do: the separator, which lines are a table's head, and the like.
const READING: [&str; 20] = [
    "sep",
    "delimiter",
    "header",
    "names",
    "column_names",
    "columns",
    "usecols",
    "skiprows",
    "skipfooter",
    "nrows",
    "quotechar",
    "quoting",
    "escapechar",
    "comment",
    "encoding",
    "field",
    "filters",
    "keep_linebreaks",
    "sample_by",
    "decimal",
];

/// What is used of a data set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) config: String,
    pub(crate) split: String,
    /// In the order in which they are read, each once.
    pub(crate) files: Vec<String>,
    /// What a user should know.
    pub(crate) notes: Vec<String>,
}

/// The configuration and the split that were asked for, or the usual ones.
pub(crate) fn choose(name: &HubDataset, files: &[String], card: &Card) -> Result<Choice, HubError> {
    let config = pick_config(name, card)?;
    let refuse = |reason: String| HubError::NoData {
        name: name.repository.clone(),
        reason,
    };
    let mut notes = Vec::new();
    parameters(&config, &mut notes).map_err(&refuse)?;
    let splits = match &config.files {
        Some(splits) => splits.clone(),
        None => automatic(files, config.dir.as_deref()).map_err(&refuse)?,
    };
    let split = pick_split(name, &config, &splits, &mut notes)?;
    let patterns = splits
        .into_iter()
        .find_map(|(name, patterns)| (name == split).then_some(patterns))
        .unwrap_or_default();
    let matched = matched(&patterns, files, config.dir.as_deref()).map_err(&refuse)?;
    let files = readable(&matched, &split, &mut notes).map_err(&refuse)?;
    Ok(Choice {
        config: config.name,
        split,
        files,
        notes,
    })
}

/// The configurations and splits of `refs/convert/parquet`, the branch where
/// the hub keeps its own conversion of a data set: `config/split/0000.parquet`,
/// or `config/name-split-00000-of-00001.parquet` where it is old.
pub(crate) fn converted(name: &HubDataset, files: &[String]) -> Card {
    let dataset = name.repository.rsplit('/').next().unwrap_or_default();
    let mut configs: Vec<Config> = Vec::new();
    let mut places = BTreeMap::new();
    let mut split_places = BTreeMap::new();
    for file in files.iter().filter(|file| file.ends_with(".parquet")) {
        let parts: Vec<_> = file.split('/').collect();
        let split = match parts[..] {
            [_, split, _] => split.strip_prefix("partial-").unwrap_or(split),
            [_, file] => {
                let end =
                    shard(file).map_or_else(|| file.len() - ".parquet".len(), |shard| shard.0);
                let stem = &file[..end];
                stem.strip_prefix(dataset)
                    .and_then(|stem| stem.strip_prefix('-'))
                    .or_else(|| Some(stem.rsplit_once('-')?.1))
                    .unwrap_or(stem)
            }
            _ => continue,
        };
        let at = *places.entry(parts[0]).or_insert(configs.len());
        if at == configs.len() {
            configs.push(Config {
                name: parts[0].to_owned(),
                ..Config::default()
            });
        }
        let splits = configs[at].files.get_or_insert_default();
        let place = *split_places.entry((at, split)).or_insert(splits.len());
        let pattern = escape(file);
        match splits.get_mut(place) {
            Some((_, patterns)) => patterns.push(pattern),
            None => splits.push((split.to_owned(), vec![pattern])),
        }
    }
    Card {
        configs,
        described: None,
    }
}

/// Where the name of a file says how many there are (`-00001-of-00005`), and
/// one of them is missing: a name that shows it.
pub(crate) fn missing_shard(files: &[String]) -> Option<String> {
    let mut counts: BTreeMap<(&str, usize), (usize, &str)> = BTreeMap::new();
    for file in files {
        if let Some((at, total)) = shard(file) {
            counts.entry((&file[..at], total)).or_insert((0, file)).0 += 1;
        }
    }
    counts
        .into_iter()
        .find(|((_, total), (count, _))| count < total)
        .map(|(_, (_, file))| file.to_owned())
}

/// Where `-00001-of-00005` begins in a name, and the second number.
fn shard(file: &str) -> Option<(usize, usize)> {
    const LENGTH: usize = "-00001-of-00005".len();
    let bytes = file.as_bytes();
    let digits = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_digit);
    let found = bytes.windows(LENGTH).rposition(|part| {
        part[0] == b'-' && digits(&part[1..6]) && &part[6..10] == b"-of-" && digits(&part[10..])
    })?;
    Some((found, file[found + 10..found + LENGTH].parse().ok()?))
}

fn pick_config(name: &HubDataset, card: &Card) -> Result<Config, HubError> {
    let unknown = |there: Vec<String>| HubError::NoConfiguration {
        name: name.repository.clone(),
        asked: name.config.clone(),
        there,
    };
    let names = || card.configs.iter().map(|config| config.name.clone());
    let found = match &name.config {
        _ if card.configs.is_empty() => {
            let only = "default".to_owned();
            if name.config.as_ref().is_some_and(|asked| *asked != only) {
                return Err(unknown(vec![only]));
            }
            return Ok(Config {
                name: only,
                ..Config::default()
            });
        }
        Some(asked) => card.configs.iter().find(|config| config.name == *asked),
        None => card.usual().map_err(|reason| HubError::BadCard {
            name: name.repository.clone(),
            file: "README.md",
            reason,
        })?,
    };
    found.cloned().ok_or_else(|| unknown(names().collect()))
}

fn pick_split(
    name: &HubDataset,
    config: &Config,
    splits: &[(String, Vec<String>)],
    notes: &mut Vec<String>,
) -> Result<String, HubError> {
    let names = || splits.iter().map(|(split, _)| split);
    let wanted = name.split.as_deref().unwrap_or("train");
    if names().any(|split| split == wanted) {
        return Ok(wanted.to_owned());
    }
    if let ([(only, _)], None) = (splits, &name.split) {
        notes.push(format!(
            "split `{only}` is used, the only one that there is"
        ));
        return Ok(only.clone());
    }
    let shown = match &name.config {
        Some(config) => format!("{}/{config}", name.repository),
        None if config.name == "default" => name.repository.clone(),
        None => format!("{}/{}", name.repository, config.name),
    };
    Err(HubError::NoSplit {
        name: shown,
        asked: name.split.clone(),
        there: names().cloned().collect(),
    })
}

/// Refuses what would have files read in another way, and notes what is unknown.
fn parameters(config: &Config, notes: &mut Vec<String>) -> Result<(), String> {
    let all_tsv = || {
        let mut patterns = config.files.iter().flatten().flat_map(|(_, paths)| paths);
        patterns.all(|path| path.contains(".tsv"))
    };
    for (key, value) in &config.parameters {
        let usual = match (key.as_str(), value.as_str()) {
            ("sep" | "delimiter", Some(",")) => true,
            ("sep" | "delimiter", Some("\t")) => all_tsv(),
            ("encoding", Some(encoding)) => encoding.to_ascii_lowercase().starts_with("utf"),
            _ => false,
        };
        if usual || value.is_null() || HARMLESS.contains(&key.as_str()) {
            continue;
        }
        if READING.contains(&key.as_str()) {
            return Err(format!(
                "its description has the files of configuration `{}` read with `{key}: {}`, which \
                 is not supported; download them, convert them, and give their paths",
                config.name,
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned)
            ));
        }
        notes.push(format!(
            "`{key}` in the description of configuration `{}` is not known and not used",
            config.name
        ));
    }
    Ok(())
}

/// A pattern of the description, relative to the repository.
fn join(dir: Option<&str>, pattern: &str) -> String {
    let pattern = pattern.trim_start_matches("./");
    match dir.map(|dir| dir.trim_start_matches("./").trim_end_matches('/')) {
        None | Some("" | ".") => pattern.to_owned(),
        Some(dir) => format!("{dir}/{pattern}"),
    }
}

/// Makes a pattern of a name that matches this name alone.
fn escape(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            '*' | '?' | '[' => format!("[{c}]"),
            c => c.to_string(),
        })
        .collect::<Vec<_>>()
        .concat()
}

fn is_magic(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// A pattern as `fsspec` understands it: `*` stays in a directory, `**` stands
/// for any number of them, and braces mean nothing.
fn matcher(pattern: &str) -> Result<GlobMatcher, String> {
    if let Some(part) = pattern
        .split('/')
        .find(|part| part.contains("**") && *part != "**")
    {
        return Err(format!(
            "its description uses the pattern `{pattern}`, in which `{part}` holds `**` beside \
             other characters"
        ));
    }
    let mut escaped = String::with_capacity(pattern.len());
    let mut in_class = false;
    for c in pattern.chars() {
        match c {
            '[' => in_class = true,
            ']' => in_class = false,
            '{' | '}' | '\\' if !in_class => escaped.push('\\'),
            _ => {}
        }
        escaped.push(c);
    }
    GlobBuilder::new(&escaped)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|error| {
            format!(
                "its description uses the pattern `{pattern}`, which is malformed ({})",
                error.kind()
            )
        })
}

/// The files that a pattern stands for, sorted. What is hidden (`.name`) or
/// special (`__name__/`) has to be named as such.
fn glob<'a>(pattern: &str, files: impl Iterator<Item = &'a str>) -> Result<Vec<&'a str>, String> {
    fn hidden(path: &str) -> usize {
        path.split('/')
            .filter(|part| part.starts_with('.') && !part.trim_matches('.').is_empty())
            .count()
    }
    fn special(path: &str) -> usize {
        path.rsplit_once('/').map_or(0, |(parent, _)| {
            parent
                .split('/')
                .filter(|part| part.starts_with("__"))
                .count()
        })
    }
    fn last(path: &str) -> &str {
        path.rsplit('/').next().unwrap_or_default()
    }
    let matcher = matcher(pattern)?;
    let mut found: Vec<_> = files
        .filter(|file| {
            matcher.is_match(file)
                && (!IGNORED.contains(&last(file)) || last(file) == last(pattern))
                && hidden(file) == hidden(pattern)
                && special(file) == special(pattern)
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// The splits that the names of the files show, with the patterns of each.
fn automatic(files: &[String], dir: Option<&str>) -> Result<Vec<(String, Vec<String>)>, String> {
    let find = |pattern: &str| glob(&join(dir, pattern), files.iter().map(String::as_str));
    let sharded = find(&format!("data/*-{SHARD}"))?;
    if !sharded.is_empty() {
        let mut splits: Vec<&str> = sharded
            .iter()
            .filter_map(|file| {
                let name = file.rsplit('/').next()?;
                Some(&name[..shard(name)?.0])
            })
            .collect();
        if let Some(bad) = splits.iter().find(|split| !is_split(split)) {
            return Err(format!(
                "the files of its directory `data` are named after a split `{bad}`, which is not \
                 a possible one"
            ));
        }
        let order = |split: &str| KEYWORDS.iter().position(|(known, _)| *known == split);
        splits.sort_unstable_by_key(|split| (order(split).unwrap_or(KEYWORDS.len()), *split));
        splits.dedup();
        return Ok(splits
            .into_iter()
            .map(|split| (split.to_owned(), vec![format!("data/{split}-{SHARD}")]))
            .collect());
    }
    let in_directories = |word: &str| {
        vec![
            format!("**/{word}/**"),
            format!("**/{word}{BETWEEN}*/**"),
            format!("**/*{BETWEEN}{word}/**"),
            format!("**/*{BETWEEN}{word}{BETWEEN}*/**"),
        ]
    };
    let in_names = |word: &str| {
        vec![
            format!("**/{word}{BETWEEN}*"),
            format!("**/*{BETWEEN}{word}{BETWEEN}*"),
        ]
    };
    for patterns in [
        &in_directories as &dyn Fn(&str) -> Vec<String>,
        &in_names as &dyn Fn(&str) -> Vec<String>,
    ] {
        let mut splits = Vec::new();
        for (split, words) in KEYWORDS {
            let patterns: Vec<_> = words.iter().flat_map(|word| patterns(word)).collect();
            let mut some = false;
            for pattern in &patterns {
                some = some || !find(pattern)?.is_empty();
            }
            if some {
                splits.push((split.to_owned(), patterns));
            }
        }
        if !splits.is_empty() {
            return Ok(splits);
        }
    }
    if find("**")?.is_empty() {
        return Err(match dir {
            Some(dir) => format!("its directory `{dir}` holds no data files, or is not there"),
            None => "it holds no data files".to_owned(),
        });
    }
    Ok(vec![("train".to_owned(), vec!["**".to_owned()])])
}

/// The files of some patterns, each once, and whether it was named as such.
fn matched(
    patterns: &[String],
    files: &[String],
    dir: Option<&str>,
) -> Result<Vec<(String, bool)>, String> {
    let mut found: Vec<(String, bool)> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut there: Vec<&str> = files.iter().map(String::as_str).collect();
    there.sort_unstable();
    let mut work = MOST_WORK;
    for pattern in patterns {
        if pattern.contains("://") || pattern.contains("::") || pattern.starts_with('/') {
            return Err(format!(
                "its description names `{pattern}`, which is not in the repository"
            ));
        }
        let whole = join(dir, pattern);
        let named = !is_magic(pattern);
        let here = if is_magic(&whole) {
            // Only files that begin as it does can match.
            let start = &whole[..whole.find(['*', '?', '[']).unwrap_or(whole.len())];
            let first = there.partition_point(|file| *file < start);
            let like = || {
                let from = there[first..].iter().copied();
                from.take_while(|file| file.starts_with(start))
            };
            let costs = like().count() + PATTERN_WORK + whole.len().saturating_mul(BYTE_WORK);
            work = work.checked_sub(costs).ok_or_else(|| {
                format!(
                    "its description has {} patterns for one split, too many or too long ones for \
                     {} files",
                    patterns.len(),
                    files.len()
                )
            })?;
            glob(&whole, like())?
        } else {
            // A name: it stands for itself, and a split may list many thousands of them.
            let place = there.binary_search(&whole.as_str());
            place.map_or_else(|_| Vec::new(), |place| vec![there[place]])
        };
        if here.is_empty() && named {
            return Err(format!(
                "its description names the file `{whole}`, which is not in the repository"
            ));
        }
        for file in here {
            if seen.insert(file) {
                found.push((file.to_owned(), named));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
