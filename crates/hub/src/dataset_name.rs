//! What a user writes as data, told apart.

use std::{fmt, path::Path};

use crate::{
    HubError,
    name::{RepositoryKind, Target, check_repository, is_inside},
};

/// Data as a user names it.
///
/// | written | meaning |
/// |---|---|
/// | `path/to/data.jsonl`, `path/to/directory`, `data/*.parquet` | local files |
/// | `owner/name` | a data set of the hub, at `main`: its default configuration, split `train` |
/// | `owner/name/configuration` | another configuration |
/// | `owner/name@revision` | at a branch, a tag or a commit |
/// | `owner/name:split` | another split |
/// | `owner/name:split[:500]`, `owner/name#500` | its first 500 records |
/// | `owner/name/configuration@revision:split#500` | all of it |
///
/// What stands after the name may come in any order. A local path that exists
/// always wins, also with `#500` after it. A word without a slash is never a
/// name of the hub, nor is anything that looks like a path: it starts with `/`,
/// `.` or `~`, has a backslash, more than two slashes, `*`, `?` or `[`, ends
/// as data files do (`.jsonl`, `.csv.gz` and so on), or has three parts of which
/// the first two are a directory that exists.
///
/// ```
/// use olora_hub::DatasetName;
///
/// let DatasetName::Hub(name) = DatasetName::parse("owner/stories/short@v2:test#500")? else {
///     panic!("there is no such file");
/// };
/// assert_eq!((name.repository.as_str(), name.revision()), ("owner/stories", "v2"));
/// assert_eq!((name.config.as_deref(), name.split.as_deref()), (Some("short"), Some("test")));
/// assert_eq!(name.first, Some(500));
/// assert!(matches!(DatasetName::parse("data/*.jsonl")?, DatasetName::Local { .. }));
/// # Ok::<(), olora_hub::HubError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatasetName {
    /// A file or directory that exists, or a pattern.
    Local {
        /// The path or pattern as it was written, without `#500`.
        path: String,
        /// The first so many records only.
        first: Option<usize>,
    },
    /// A data set of the hub. Not looked up yet.
    Hub(HubDataset),
}

/// A data set of the hub, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubDataset {
    /// `owner/name`.
    pub repository: String,
    /// The configuration that was asked for, if any.
    pub config: Option<String>,
    /// The branch, tag or commit that was asked for, if any.
    pub revision: Option<String>,
    /// The split that was asked for, if any.
    pub split: Option<String>,
    /// The first so many records only; at least 1.
    pub first: Option<usize>,
}

impl HubDataset {
    /// The branch, tag or commit to look up: `main` unless another was asked for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    pub(crate) fn target(&self) -> Target {
        self.target_at(self.revision())
    }

    pub(crate) fn target_at(&self, revision: &str) -> Target {
        Target {
            kind: RepositoryKind::Dataset,
            repository: self.repository.clone(),
            revision: revision.to_owned(),
            shown: self.to_string(),
        }
    }
}

impl fmt::Display for HubDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(config) = &self.config {
            write!(f, "/{config}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(split) = &self.split {
            write!(f, ":{split}")?;
        }
        match self.first {
            Some(first) => write!(f, "#{first}"),
            None => Ok(()),
        }
    }
}

impl DatasetName {
    /// Tells a local path and a data set of the hub apart. Looks at the file
    /// system, never at the network.
    ///
    /// # Errors
    ///
    /// [`HubError::NoSuchPath`] for what looks like a path but does not exist,
    /// patterns aside; [`HubError::BadDatasetName`] for what is neither a path
    /// nor a possible name, or asks for a part that cannot be had.
    pub fn parse(spec: &str) -> Result<Self, HubError> {
        let bad = |reason: String| HubError::BadDatasetName {
            spec: spec.to_owned(),
            reason,
        };
        if Path::new(spec).exists() {
            return Ok(Self::Local {
                path: spec.to_owned(),
                first: None,
            });
        }
        let (path, first) = match spec.rsplit_once('#') {
            Some((path, first)) => (path, Some(first)),
            None => (spec, None),
        };
        let hint = path_hint(path);
        if is_pattern(path) || (first.is_some() && Path::new(path).exists()) {
            return Ok(Self::Local {
                path: path.to_owned(),
                first: first.map(count).transpose().map_err(bad)?,
            });
        }
        if let Some(hint) = hint {
            return Err(HubError::NoSuchPath {
                path: path.into(),
                hint,
            });
        }
        parse_hub(spec).map(Self::Hub).map_err(bad)
    }
}

/// What stands before the first mark of a revision, a split or a number.
fn head(spec: &str) -> &str {
    spec.split(['@', ':', '#']).next().unwrap_or_default()
}

/// Whether this stands for several local files. A split may be written with
/// brackets, so these count only before it.
fn is_pattern(spec: &str) -> bool {
    !spec.contains("://") && (spec.contains(['*', '?']) || head(spec).contains('['))
}

/// Whether a name ends as files of data do.
fn ends_like_data(name: &str) -> bool {
    const FORMS: [&str; 9] = [
        "parquet", "jsonl", "ndjson", "json", "csv", "tsv", "txt", "text", "arrow",
    ];
    const PACKED: [&str; 7] = ["gz", "gzip", "zst", "zstd", "bz2", "xz", "zip"];
    let lower = name.to_ascii_lowercase();
    let mut ends = lower.rsplit('.');
    let last = ends.next().unwrap_or_default();
    PACKED.contains(&last) || (FORMS.contains(&last) && ends.next().is_some())
}

/// What to tell someone whose path does not exist, if it was meant as a path.
fn path_hint(spec: &str) -> Option<&'static str> {
    const PLAIN: &str = "Check the spelling and the current directory";
    if spec.contains("://") {
        return Some(
            "A data set of the hub is written without the address, as `owner/name`; data from \
             elsewhere has to be downloaded first",
        );
    }
    if spec.starts_with('~') {
        return Some(
            "`~` is expanded by the shell, not inside quotes or a file: write the whole path",
        );
    }
    let head = head(spec);
    if head.starts_with("datasets/") && head.matches('/').count() == 2 {
        return Some(
            "A data set of the hub is written `owner/name`, without `datasets/` before it",
        );
    }
    let path_like = spec.starts_with(['/', '.'])
        || spec.contains('\\')
        || head.ends_with('/')
        || head.matches('/').count() > 2
        || (head.matches('/').count() == 2 && has_parent(head))
        || ends_like_data(head);
    if path_like {
        return Some(PLAIN);
    }
    (!head.contains('/')).then_some(
        "A data set of the hub is written with its owner, as `openai/gsm8k` for what was `gsm8k`; \
         a local one as the path of a file or a directory",
    )
}

/// Whether a path leads into a directory that exists: then its last part is
/// misspelt, and no configuration.
fn has_parent(path: &str) -> bool {
    Path::new(path).parent().is_some_and(Path::is_dir)
}

fn count(text: &str) -> Result<usize, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(count @ 1..) if digits => Ok(count),
        _ => Err(format!(
            "`{text}`, after the #, is not a number of records, from 1 on"
        )),
    }
}

/// The marked parts of a name, each with its mark. Marks inside brackets are
/// part of a slice.
fn parts(marked: &str) -> Vec<(char, &str)> {
    let mut starts = Vec::new();
    let mut depth = 0_usize;
    for (at, mark) in marked.char_indices() {
        match mark {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            '@' | ':' | '#' if depth == 0 => starts.push((at, mark)),
            _ => {}
        }
    }
    let ends = starts.iter().skip(1).map(|(at, _)| *at);
    let ends: Vec<_> = ends.chain([marked.len()]).collect();
    starts
        .into_iter()
        .zip(ends)
        .map(|((at, mark), end)| (mark, &marked[at + 1..end]))
        .collect()
}

fn parse_hub(spec: &str) -> Result<HubDataset, String> {
    let head = head(spec);
    let mut slashes = head.match_indices('/').map(|(at, _)| at);
    let (repository, config) = match slashes.nth(1) {
        Some(at) => (&head[..at], Some(&head[at + 1..])),
        None => (head, None),
    };
    check_repository(repository)?;
    if let Some(config) = config
        && (config.trim() != config || config.starts_with('.') || !is_inside(config))
    {
        return Err(format!("`{config}` is not a possible configuration"));
    }
    let (mut revision, mut split, mut first) = (None, None, None);
    for (mark, text) in parts(&spec[head.len()..]) {
        let twice = match mark {
            '@' => revision.replace(text).is_some(),
            ':' => split.replace(text).is_some(),
            _ => first.replace(count(text)?).is_some(),
        };
        if twice {
            return Err(format!("it has two parts that begin with {mark}"));
        }
    }
    if let Some(revision) = revision
        && !is_inside(revision)
    {
        return Err(format!(
            "`{revision}`, after the @, is not a possible branch, tag or commit"
        ));
    }
    let split = match split.map(parse_split).transpose()? {
        None => None,
        Some((split, None)) => Some(split),
        Some((_, Some(_))) if first.is_some() => {
            return Err("it says twice how many records, in brackets and after the #".to_owned());
        }
        Some((split, slice)) => {
            first = slice;
            Some(split)
        }
    };
    Ok(HubDataset {
        repository: repository.to_owned(),
        config: config.map(str::to_owned),
        revision: revision.map(str::to_owned),
        split: split.map(str::to_owned),
        first,
    })
}

/// A split, and how many of its records a slice asks for.
fn parse_split(text: &str) -> Result<(&str, Option<usize>), String> {
    let (split, first) = match text.split_once('[') {
        None => (text, None),
        Some((split, slice)) => {
            let end = slice
                .strip_suffix(']')
                .and_then(|slice| slice.strip_prefix(':'))
                .and_then(|end| count(end).ok());
            let first = end.ok_or_else(|| {
                format!(
                    "of the slices of `datasets` only the first records can be had, as \
                     `{split}[:500]` or `#500`, not `[{slice}`; for a percentage, work out the \
                     number"
                )
            })?;
            (split, Some(first))
        }
    };
    if text.contains('+') {
        return Err(format!(
            "`{text}`, after the colon, is more than one split: give each as a name of its own"
        ));
    }
    if !is_split(split) {
        return Err(format!(
            "`{split}`, after the colon, is not a possible split, such as `train` (single files \
             of a data set cannot be named)"
        ));
    }
    Ok((split, first))
}

/// Whether a split can be called so: words of letters, digits and `_`, with dots between.
pub(crate) fn is_split(name: &str) -> bool {
    name.split('.')
        .all(|word| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(spec: &str) -> HubDataset {
        match DatasetName::parse(spec) {
            Ok(DatasetName::Hub(name)) => name,
            other => panic!("{spec}: {other:?}"),
        }
    }

    fn bare(repository: &str) -> HubDataset {
        HubDataset {
            repository: repository.to_owned(),
            config: None,
            revision: None,
            split: None,
            first: None,
        }
    }

    #[test]
    fn every_part_of_a_name_is_found() {
        let some = |text: &str| Some(text.to_owned());
        let plain = bare("oxmere/tales_1.0");
        assert_eq!(hub("oxmere/tales_1.0"), plain);
        for (spec, expected) in [
            (
                "oxmere/tales_1.0/a config-1",
                HubDataset {
                    config: some("a config-1"),
                    ..plain.clone()
                },
            ),
            (
                "oxmere/tales_1.0@refs/convert/parquet",
                HubDataset {
                    revision: some("refs/convert/parquet"),
                    ..plain.clone()
                },
            ),
            (
                "oxmere/tales_1.0:train.part_2",
                HubDataset {
                    split: some("train.part_2"),
                    ..plain.clone()
                },
            ),
            (
                "oxmere/tales_1.0#500",
                HubDataset {
                    first: Some(500),
                    ..plain
                },
            ),
        ] {
            assert_eq!(hub(spec), expected);
            assert_eq!(expected.to_string(), spec);
        }
    }

    #[test]
    fn the_marked_parts_may_come_in_any_order() {
        let expected = hub("oxmere/tales/short@v1:test#7");
        assert_eq!(expected.to_string(), "oxmere/tales/short@v1:test#7");
        for spec in [
            "oxmere/tales/short:test@v1#7",
            "oxmere/tales/short#7:test@v1",
            "oxmere/tales/short:test[:7]@v1",
        ] {
            assert_eq!(hub(spec), expected, "{spec}");
        }
    }

    #[test]
    fn what_exists_wins_over_the_hub() {
        let directory = tempfile::tempdir().unwrap();
        let path = format!("{}/a#1", directory.path().display());
        std::fs::write(&path, "").unwrap();
        let local = |spec: &str| match DatasetName::parse(spec) {
            Ok(DatasetName::Local { path, first }) => (path, first),
            other => panic!("{spec}: {other:?}"),
        };
        assert_eq!(local(&path), (path.clone(), None));
        assert_eq!(local(&format!("{path}#12")), (path.clone(), Some(12)));
        let error = DatasetName::parse(&format!("{path}#twelve")).unwrap_err();
        assert!(error.to_string().contains("after the #"), "{error}");
    }

    #[test]
    fn patterns_are_local_and_not_looked_at() {
        for (spec, path, first) in [
            ("thornby/*.jsonl", "thornby/*.jsonl", None),
            (
                "thornby/part-[0-9].csv#3",
                "thornby/part-[0-9].csv",
                Some(3),
            ),
            ("/no/such/**/x?.txt", "/no/such/**/x?.txt", None),
        ] {
            let expected = DatasetName::Local {
                path: path.to_owned(),
                first,
            };
            assert_eq!(DatasetName::parse(spec).unwrap(), expected);
        }
    }

    #[test]
    fn what_looks_like_a_path_is_never_a_hub_name() {
        for spec in [
            "./oxmere/tales",
            "/oxmere/tales",
            "~/tales",
            "a/b/c/d",
            "oxmere/tales/",
            "oxmere\\tales",
            "oxmere/tales.jsonl",
            "oxmere/tales.jsonl#500",
            "data/train.csv.gz",
            "oxmere/tales/part.parquet",
            "src/layout/zora",
            "gsm8k",
            "tales:train",
            "datasets/oxmere/tales",
            "https://huggingface.co/datasets/oxmere/tales",
            "hf://datasets/oxmere/tales",
            "",
        ] {
            let error = DatasetName::parse(spec).unwrap_err();
            assert!(
                matches!(error, HubError::NoSuchPath { .. }),
                "{spec}: {error}"
            );
        }
    }

    #[test]
    fn the_hint_fits_the_mistake() {
        let message = |spec| DatasetName::parse(spec).unwrap_err().to_string();
        assert!(message("gsm8k").contains("`openai/gsm8k`"));
        assert!(message("~/tales").contains("expanded by the shell"));
        assert!(message("https://huggingface.co/datasets/o/n").contains("without the address"));
        assert!(message("datasets/o/n").contains("without `datasets/`"));
        assert!(message("data/train.jsonl").contains("current directory"));
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for (spec, part) in [
            ("oxmere/ta les", "ta les"),
            ("oxmere/..", ".."),
            ("oxmere/a--b", "a--b"),
            ("oxmere/tales/.hidden", "configuration"),
            ("oxmere/tales@", "after the @"),
            ("oxmere/tales@../../x", "after the @"),
            ("oxmere/tales@v1@v2", "two parts that begin with @"),
            ("oxmere/tales:a:b", "two parts that begin with :"),
            ("oxmere/tales:", "after the colon"),
            ("oxmere/tales:data/train.jsonl", "single files"),
            ("oxmere/tales:train+test", "more than one split"),
            ("oxmere/tales:train[:10]+test", "not `[:10]+test`"),
            ("oxmere/tales:train[:10%]", "a percentage"),
            ("oxmere/tales:train[10:20]", "not `[10:20]`"),
            ("oxmere/tales:train[:5]#5", "says twice"),
            ("oxmere/tales#0", "from 1 on"),
            ("oxmere/tales#+5", "from 1 on"),
            ("oxmere/tales#99999999999999999999", "from 1 on"),
        ] {
            let error = DatasetName::parse(spec).unwrap_err();
            assert!(
                matches!(error, HubError::BadDatasetName { .. }),
                "{spec}: {error}"
            );
            assert!(error.to_string().contains(part), "{spec}: {error}");
        }
    }
}
